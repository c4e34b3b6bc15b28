"""A* coding: pinned numbers, the bounds that its search relies on, and samples of the right distribution."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import kstest

from parsimony.benchmarks.sample_coding import SampleCoding, gaussian
from parsimony.methods.image import relative_entropy_coding as rec
from parsimony.methods.image.a_star_coding import AStarCoding

ONE = np.ones(1)


def posterior(bits: float, ratio: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a Gaussian with so many bits of divergence from N(0, 1)."""
    mean = brentq(lambda m: rec.divergence(np.array([m]), ratio * ONE, 0 * ONE, ONE)[0] - bits, 0, 99)
    return np.array([mean]), np.array([ratio])


def test_the_generator_is_philox_as_published():
    """Known answer of Random123 for a counter and a key of zeros (the generator counts before it draws)."""
    words = np.random.Philox(key=0, counter=2**256 - 1).random_raw(4)
    assert [f"{int(word):016x}" for word in words] == [
        "16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b"
    ]  # fmt: skip


def test_candidates_are_pinned_normal_and_can_be_drawn_alone():
    drawn = rec.candidates(7, 20, 0, 5000)
    assert drawn[0, :3].tolist() == [0.5982131958007812, -0.5051994323730469, -0.2680234909057617]
    for i in (0, 1, 77, 4999):
        assert (rec.candidates(7, 20, i, 1)[0] == drawn[i]).all()
        assert (rec.decode(i, np.full(20, 0.5), np.full(20, 2.0), 7) == 0.5 + 2.0 * drawn[i]).all()
    assert kstest(drawn.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(drawn.T) - np.eye(20)).max() < 0.06
    assert not (rec.candidates(8, 20, 0, 10) == drawn[:10]).any(1).any()


def test_gumbels_fall_strictly_and_begin_as_a_gumbel():
    for stream in range(20):
        assert (np.diff(rec.gumbels(stream, 2**12)) < 0).all()
    firsts = np.array([rec.gumbels(stream, 1)[0] for stream in range(2000)])
    assert kstest(firsts, "gumbel_r").pvalue > 1e-3


@pytest.mark.parametrize("d", [1, 5, 40])
def test_where_q_is_p_the_first_candidate_stands_for_it(d):
    mean, std = np.linspace(-1, 1, d), np.linspace(0.1, 2, d)
    assert all(rec.encode(mean, std, mean, std, 10, stream) == 0 for stream in range(50))


def test_ending_early_changes_no_index(monkeypatch):
    mean, std = posterior(4.0)
    early = [rec.encode(mean, std, 0 * ONE, ONE, 15, stream) for stream in range(30)]
    monkeypatch.setattr(rec, "largest_ratio", lambda *_: np.inf)
    assert early == [rec.encode(mean, std, 0 * ONE, ONE, 15, stream) for stream in range(30)]


def test_the_largest_ratio_is_the_supremum():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=3), rng.uniform(0.1, 0.9, 3)
    z = np.stack(np.meshgrid(*[np.linspace(-5, 5, 61)] * 3), -1).reshape(-1, 3)
    ratio = (-np.log(std) - 0.5 * ((z - mean) / std) ** 2 + 0.5 * z**2).sum(1).max()
    bound = rec.largest_ratio(mean, std, np.zeros(3), np.ones(3))
    assert ratio <= bound < ratio + 0.2
    assert rec.largest_ratio(mean, 1.5 * np.ones(3), np.zeros(3), np.ones(3)) == np.inf


@pytest.mark.parametrize("bits", [3.0, 5.0, 7.0])
def test_samples_are_those_of_q_with_candidates_to_spare_and_biased_without(bits):
    mean, std = posterior(bits)
    pvalues, errors = {}, {}
    for spare in (0, 5):
        count = int(bits) + spare
        indices = [rec.encode(mean, std, 0 * ONE, ONE, count, stream) for stream in range(800)]
        samples = np.array([rec.decode(i, 0 * ONE, ONE, stream)[0] for stream, i in enumerate(indices)])
        scaled = (samples - mean) / std
        pvalues[spare], errors[spare] = kstest(scaled, "norm").pvalue, abs(scaled.mean()) + abs(scaled.std() - 1)
    assert pvalues[5] > 1e-3 and errors[5] < 0.12
    assert pvalues[0] < 1e-3 and errors[0] > 2 * errors[5]


def test_the_benchmark_sees_samples_that_are_too_near_the_prior():
    """With no candidate to spare they are; with 2^5 times as many they lie, and spread, as they should."""
    benchmark = SampleCoding(False, items=1, draws=150, bits=[4], dimensions=[1, 6])
    items = benchmark.items({}, 0)
    assert [(item.id, item.category) for item in items] == [("d1_4_bits_00", "4_bits"), ("d6_4_bits_00", "4_bits_in_6")]

    class Desk:
        points = ("none", "five")

        def system(self, point, dtype):
            return AStarCoding(spare=5 if point == "five" else 0)

        def rng(self, item):
            return np.random.default_rng(len(item))

    for item in items:
        found = {(point, metric): value for point, metric, value, _ in benchmark.measure(item, Desk()).numbers}
        for point, spare in (("none", 0), ("five", 5)):
            assert found[point, "bits_beyond"] == 150 * spare and found[point, "index_beyond"] < 150 * spare
        values = found["five", "values"]
        assert values == 150 * (1 if item.id.startswith("d1") else 6)
        assert abs(found["five", "shift"]) / values < 0.2 and abs(found["five", "squares"] / values - 1) < 0.3
        assert found["none", "shift"] > max(abs(found["five", "shift"]), 0.1 * values)


@pytest.mark.parametrize(("bits", "d"), [(3, 1), (8, 1), (3, 16), (8, 16)])
def test_gaussians_have_the_divergence_that_is_asked_for(bits, d):
    mean, std = gaussian(bits, d, np.random.default_rng(0))
    shares = rec.divergence(mean, std, np.zeros(d), np.ones(d))
    np.testing.assert_allclose(shares, bits / d, rtol=1e-9)
    assert (mean > 0).all() and (std < 1).all()
