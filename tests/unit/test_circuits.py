"""Hidden Chow-Liu trees and their coder: the invariants of the paper, by brute force where that is possible."""

from __future__ import annotations

import csv
import gzip
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from parsimony.benchmarks.circuit_evaluation import CircuitEvaluation
from parsimony.benchmarks.digits_batches import DigitsBatches
from parsimony.errors import UserError
from parsimony.methods.lossless import circuit_passes
from parsimony.methods.lossless.circuit_coder import CircuitCodec
from parsimony.models.circuit import (
    WEIGHTS,
    HiddenChowLiuTree,
    chow_liu,
    mutual_information,
    plain_colours,
    rooted,
    shifted_colours,
    tables,
)
from parsimony.models.vtree import Vtree, schedule
from parsimony.recipes import circuits

MODES = CircuitCodec.modes


def edges(D: int, kind: str, seed: int = 0) -> np.ndarray:
    """Edges of a random tree, a chain or a star."""
    rng = np.random.default_rng(seed)
    below = {"random": lambda i: rng.integers(i), "chain": lambda i: i - 1, "star": lambda i: 0}[kind]
    return rng.permutation(D)[[(i, below(i)) for i in range(1, D)]]


def circuit(D: int, M: int, K: int = 256, balanced: bool = True, kind: str = "random", seed: int = 0):
    """A random circuit whose values depend on one another."""
    tree = HiddenChowLiuTree(rooted(edges(D, kind, seed), D, balanced), M, K, seed)
    with torch.no_grad():
        for p, dim in zip(tree.parameters(), (0, 2, 1), strict=True):
            p.pow_(8).div_(p.sum(dim, keepdim=True))
    return tree


def as_stored(tree: HiddenChowLiuTree) -> HiddenChowLiuTree:
    """The same in float64 with the parameters of the tables that are coded with."""
    held = tree.tables()
    tree = tree.double()
    with torch.no_grad():
        for (name, p), dim in zip(tree.named_parameters(), (0, 2, 1), strict=True):
            p.copy_(torch.from_numpy(np.diff(tables(held[name], dim), axis=dim) / 2.0**24))
    return tree


def codec(tmp_path, tree: HiddenChowLiuTree, shape: tuple[int, ...], mode: str = "once", tiles: bool = False):
    save_file(tree.tables() | {"shape": np.array(shape, np.int32)}, tmp_path / "circuit.safetensors")
    return CircuitCodec(tmp_path / "circuit.safetensors", mode, tiles)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> CircuitCodec:
    return codec(tmp_path_factory.mktemp("small"), circuit(30, 5), (5, 6))


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> CircuitCodec:
    return codec(tmp_path_factory.mktemp("tiled"), circuit(24, 3), (2, 4, 3), tiles=True)


def pixels(shape: tuple[int, ...]):
    values = st.one_of(st.integers(0, 255), st.integers(0, 2), st.just(7))
    return arrays.arrays(np.uint8, shape, elements=values)


def test_a_tiny_circuit_agrees_with_enumeration():
    D, M, K = 5, 3, 3
    tree = as_stored(circuit(D, M, K))
    everything = np.array(list(product(range(K), repeat=D)))
    states = np.array(list(product(range(M), repeat=D)))
    variable, parent = tree.variable.numpy(), tree.parent.numpy()
    prior, A, f = (p.detach().numpy() for p in tree.parameters())
    latent = prior[states[:, 0]] * np.prod([A[i - 1][states[:, parent[i]], states[:, i]] for i in range(1, D)], 0)
    given_states = np.prod([f[i][everything[:, variable[i]]][:, states[:, i]] for i in range(D)], 0)
    joint = given_states @ latent
    x = torch.from_numpy(everything)
    np.testing.assert_allclose(tree(x).exp().detach().numpy(), joint, rtol=1e-9)
    assert joint.sum() == pytest.approx(1)
    for size in range(D + 1):
        for kept in combinations(range(D), size):
            known = torch.zeros(D, dtype=torch.bool)
            known[list(kept)] = True
            found = tree(x, known).exp().detach().numpy()
            rows = everything[:, list(kept)]
            expected = [joint[(rows == row).all(1)].sum() for row in rows]
            np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_intervals_are_the_conditionals_and_the_chain_is_the_joint(tmp_path, mode):
    D, K = 6, 4
    tree = circuit(D, 3, K, seed=2)
    coder = codec(tmp_path, tree, (2, 3), mode)
    tree = as_stored(tree)
    variable = tree.variable.numpy()
    past = np.random.default_rng(0).integers(0, K, D)
    known = torch.zeros(D, dtype=torch.bool)
    before = 0.0
    for k, node in enumerate(coder.vtree.order):
        xs = np.repeat(past[None], K, 0)
        xs[:, variable[node]] = np.arange(K)
        lows, highs, bits = coder._intervals(np.ascontiguousarray(xs[:, variable].astype(np.uint8)))
        assert lows[0, k] == 0 and highs[-1, k] == 1 << 24 and (lows[1:, k] == highs[:-1, k]).all()
        known[variable[node]] = True
        marginal = tree(torch.from_numpy(xs), known).detach().numpy()
        conditional = np.exp(marginal - before)
        assert conditional.sum() == pytest.approx(1, abs=1e-9)
        np.testing.assert_allclose((highs - lows)[:, k] / 2.0**24, conditional, atol=8 / 2**24)
        before = marginal[past[variable[node]]]
    np.testing.assert_allclose(bits * np.log(2), -tree(torch.from_numpy(xs)).detach().numpy(), rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(xs=st.lists(pixels((5, 6)), max_size=5))
def test_every_mode_writes_the_same_streams_and_reads_them_back(small, xs):
    streams = small.encode_batch(xs)
    for mode in MODES:
        other = small.in_mode(mode)
        assert other.encode_batch(xs) == streams
        assert all(np.array_equal(x, y) for x, y in zip(xs, other.decode_batch(streams), strict=True))


@settings(max_examples=30, deadline=None)
@given(x=st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda n: st.one_of(pixels(n), pixels((*n, 3)))))
def test_images_of_any_size_are_one_stream_of_tiles(tiled, x):
    assert np.array_equal(tiled.decode(tiled.encode(x)), x)


def test_streams_depend_neither_on_batch_nor_on_threads(small):
    xs = list(np.random.default_rng(3).integers(0, 256, (17, 5, 6), dtype=np.uint8))
    threads, streams = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            streams.append(small.encode_batch(xs))
            assert np.array_equal(small.decode_batch(streams[0]), xs)
    finally:
        torch.set_num_threads(threads)
    assert streams[0] == streams[1] == streams[2] == [small.encode(x) for x in xs]


def test_compiled_sums_are_those_of_numpy_in_order():
    """No product and sum are fused and no order is changed, which would make streams depend on the machine."""
    rng = np.random.default_rng(0)
    for M in (1, 3, 16):
        rows, u, found = rng.random((M, M)), rng.random(M), np.empty(M)
        expected = np.zeros(M)
        for t in range(M):
            expected += rows[t] * u[t]
        circuit_passes._multiply(rows, u, found)
        assert np.array_equal(found, expected)


def test_code_length_is_that_of_the_probabilities(small):
    """Of images of one colour, and of random ones, which expand."""
    rng = np.random.default_rng(1)
    xs = [*np.repeat(np.arange(256, dtype=np.uint8), 30).reshape(-1, 5, 6)[::16]]
    xs += [*rng.integers(0, 256, (50, 5, 6), dtype=np.uint8)]
    ideal, D = small.bits(xs), 30
    coded = np.array([8 * len(stream) for stream in small.encode_batch(xs)])
    samples, _ = small._samples(xs)
    lows, highs, _ = small._intervals(samples)
    exact = -np.log2((highs - lows) / 2.0**24).sum(1)
    assert (coded >= exact - 4).all() and (coded <= exact + 24 + 8).all()
    assert (coded <= ideal + D * 1e-4 + 64).all()
    assert coded[-50:].mean() > 8 * D


@pytest.mark.parametrize("kind", ["random", "chain", "star"])
@pytest.mark.parametrize("D", [2, 31, 200])
def test_evaluations_are_as_many_as_the_theorem_says(D, kind):
    M = 4
    balanced = Vtree.of(HiddenChowLiuTree(rooted(edges(D, kind), D), 1, 1).parent.numpy())
    size = balanced.edges(M).sum() + M
    count = {mode: schedule(balanced, mode).evaluations(balanced, M) for mode in MODES}
    assert count["once"] <= 2 * size
    assert count["path"] <= 3 * (np.log2(D) + 1) * size
    assert D * size <= count["naive"] <= 2 * D * size
    deep = Vtree.of(HiddenChowLiuTree(rooted(edges(D, kind), D, False), 1, 1).parent.numpy())
    assert schedule(deep, "once").evaluations(deep, M) <= 2 * size  # whatever the tree


def test_units_are_evaluated_behind_what_they_depend_on():
    tree = Vtree.of(HiddenChowLiuTree(rooted(edges(40, "random"), 40), 1, 1).parent.numpy())
    assert sorted(tree.order) == list(range(40))
    steps = schedule(tree, "once")
    assert len(set(steps.up)) == len(steps.up) == len(tree.above)  # each once, all of them in the end
    assert len(set(steps.down)) == len(steps.down)
    done = set()
    for node in steps.up:
        assert {tree.first[node], tree.second[node]} - {-1} <= done
        done.add(node)


@pytest.mark.parametrize("kind", ["random", "chain", "star"])
def test_balanced_trees_are_flat_and_others_keep_their_edges(kind):
    D = 100
    given = edges(D, kind)
    kept = rooted(given, D, False)
    pairs = {frozenset((i, int(kept[i]))) for i in range(D) if kept[i] >= 0}
    assert pairs == {frozenset(pair) for pair in given.tolist()}
    flat = rooted(given, D)
    assert (flat < 0).sum() == 1 and len(HiddenChowLiuTree(flat, 1, 1).levels) - 2 <= np.log2(D)


@pytest.mark.parametrize("soft", [True, False])
def test_mutual_information_finds_the_chain_that_made_the_data(soft):
    rng = np.random.default_rng(0)
    x = np.zeros((3000, 70), np.int64)  # more variables than a chunk
    x[:, 0] = rng.integers(0, 8, 3000)
    for i in range(1, 70):
        x[:, i] = np.where(rng.random(3000) < 0.8, x[:, i - 1], rng.integers(0, 8, 3000))
    information = mutual_information(x, 8, 8, soft)
    assert np.allclose(information, information.T) and (information >= 0).all()
    assert {frozenset(pair) for pair in chow_liu(information).tolist()} == {frozenset((i, i + 1)) for i in range(69)}
    if not soft:
        joint = np.histogram2d(x[:, 3], x[:, 68], bins=8)[0] / len(x)
        apart = joint.sum(1, keepdims=True) * joint.sum(0)
        assert information[3, 68] == pytest.approx((joint * np.log(joint / apart)).sum(), abs=1e-5)


@pytest.mark.parametrize("balanced", [True, False])
def test_expectation_maximisation_never_loses_likelihood(balanced):
    rng = np.random.default_rng(0)
    z = rng.integers(0, 3, 200)
    x = torch.from_numpy((z[:, None] * 2 + rng.integers(0, 2, (200, 12))) % 5)
    tree = circuit(12, 4, 5, balanced).double()
    found = []
    for _ in range(15):
        flows, total = tree.flows(x.split(64))
        tree.maximise(flows, 0.0, 1.0)
        found.append(total)
        for p, dim in zip(tree.parameters(), (0, 2, 1), strict=True):
            assert torch.allclose(p.sum(dim), torch.ones((), dtype=p.dtype))
    assert (np.diff(found) >= -1e-9).all() and found[-1] > found[0] + 10
    counts = flows["leaves"].sum((1, 2))
    assert torch.allclose(counts, torch.full_like(counts, len(x)))  # each variable is seen once a sample


def test_stored_tables_are_exact_integers_close_to_what_was_learnt():
    from fractions import Fraction

    assert all(
        Fraction(int(w)) ** 8 <= Fraction(2) ** (240 - q) < Fraction(int(w) + 1) ** 8 for q, w in enumerate(WEIGHTS)
    )
    tree = circuit(9, 4)
    stored = tables(tree.tables()["leaves"], 1)
    assert (np.diff(stored, axis=1) > 0).all() and (stored[:, 0] == 0).all() and (stored[:, -1] == 1 << 24).all()
    p, q = tree.leaves.detach().double().numpy(), np.diff(stored, axis=1) / 2.0**24
    assert (p * np.log2(p / q)).sum(1).max() < 1e-3  # bits


@given(x=pixels((3, 4, 3)))
def test_colours_come_back(x):
    assert np.array_equal(plain_colours(shifted_colours(x)), x)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_streams_are_refused_or_give_an_image(small, tiled, data):
    for coder, shape in ((small, (5, 6)), (tiled, (5, 6, 3))):
        stream = bytearray(coder.encode(data.draw(pixels(shape))))
        cut = data.draw(st.integers(0, len(stream)))
        stream = stream[:cut] + data.draw(st.binary(max_size=12))
        try:
            assert coder.decode(bytes(stream)).dtype == np.uint8
        except UserError as error:
            assert "encode" in str(error) or "decode" in str(error)


def test_what_a_circuit_does_not_take_is_refused_by_name(small, tiled, tmp_path):
    for x in (np.zeros((5, 7), np.uint8), np.zeros((5, 6), np.int64), np.zeros((5, 6, 3), np.uint8)):
        with pytest.raises(UserError, match="circuit_coder: "):
            small.encode(x)
    for x in (np.zeros((0, 4, 3), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros(24, np.uint8)):
        with pytest.raises(UserError, match="circuit_coder takes grey or colour"):
            tiled.encode(x)
    with pytest.raises(UserError, match="values from 0 to 3"):
        codec(tmp_path, circuit(6, 2, 4), (2, 3)).encode(np.full((2, 3), 4, np.uint8))
    with pytest.raises(UserError, match="mode 'fast' is none of once, path, naive"):
        small.in_mode("fast")
    assert small.encode_batch([]) == [] and small.decode_batch([]) == []


def test_damage_is_seen(small):
    x = np.random.default_rng(5).integers(0, 256, (5, 6), dtype=np.uint8)
    stream, seen = small.encode(x), 0
    for n in range(len(stream)):
        damaged = stream[:n] + bytes([stream[n] ^ 64]) + stream[n + 1 :]
        with pytest.raises(UserError):
            small.decode(damaged)
        seen += 1
    assert seen > 20


class Desk:
    """A workbench of codecs that are there."""

    def __init__(self, reference=None, **systems):
        self.points, self.systems, self.other = tuple(systems), systems, reference

    def system(self, point, dtype):
        return self.systems[point]

    def reference(self, dtype):
        return self.other

    def rng(self, item):
        return np.random.default_rng(0)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """Digits of a kind: each a rectangle, brighter in the middle."""
    folder, rng = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    rows = []
    for n in range(1100):
        x, (r, c) = np.zeros((28, 28), int), rng.integers(4, 14, 2)
        x[r : r + 10, c : c + 8] = 250 - rng.integers(0, 3)
        rows.append([*x.ravel().tolist(), n % 10])
    with gzip.open(folder / "mnist_5k.csv.gz", "wt") as file:
        csv.writer(file).writerows(rows)
    return {"mnist_5k": folder}


@pytest.fixture(scope="module")
def learnt(mnist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learnt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuits, "FOLD", 20)
        with pytest.raises(UserError, match="it must need 0.01 at most"):
            circuits.of_digits(folder, mnist, "mnist_5k", 1, 1, 1.0, 0.01, 0, crop=6, bins=8)
        circuits.of_digits(folder, mnist, "mnist_5k", 3, 2, 1.0, 3.0, 0, crop=6, bins=8)
    return CircuitCodec(folder / "circuit.safetensors", "once", False)


def test_orders_of_evaluation_are_compared_on_what_a_circuit_takes(mnist, learnt):
    benchmark = CircuitEvaluation(items=2, each=3)
    items = benchmark.items(mnist, 0)
    outcome = benchmark.measure(items[1], Desk(crop=learnt))
    numbers = {metric: value for _, metric, value, _ in outcome.numbers}
    assert not outcome.failures and numbers["values"] == 3 * 36 and numbers["edges"] == 3 * learnt.size
    assert numbers["once_evaluations"] < numbers["path_evaluations"] < numbers["naive_evaluations"]
    assert numbers["ideal_bits"] < numbers["one_code_bits"] < numbers["code_bits"] < 3 * 36 * 8

    class Backwards(CircuitCodec):
        def encode_batch(self, xs):
            return super().encode_batch(xs[::-1])

    class Wrong(CircuitCodec):
        def in_mode(self, mode):
            return super().in_mode(mode) if mode != "path" else Backwards(self.file, mode, False)

    wrong = benchmark.measure(items[0], Desk(crop=Wrong(learnt.file, "once", False)))
    assert list(wrong.failures) == [("crop", "path_seconds")]


def test_batches_are_timed_beside_the_reference_and_checked(mnist, tmp_path):
    coder = codec(tmp_path, circuit(784, 2), (28, 28))

    class Wrong(CircuitCodec):
        def decode_batch(self, data):
            return [x ^ 1 for x in super().decode_batch(data)]

    benchmark = DigitsBatches([1, 3], items=2)
    items = benchmark.items(mnist, 0)
    assert [item.id for item in items] == ["batch_1_000", "batch_3_000", "batch_1_001", "batch_3_001"]
    desk = Desk(coder, right=coder, wrong=Wrong(coder.file, "once", False))
    outcome = benchmark.measure(items[3], desk)
    numbers = {(point, metric): value for point, metric, value, _ in outcome.numbers}
    assert list(outcome.failures) == [("wrong", "exact_items")]
    assert numbers["right", "bits"] == numbers["right", "reference_bits"]
    assert numbers["right", "bits"] == 8 * sum(len(coder.encode(x)) for x in benchmark.images[3:6])
