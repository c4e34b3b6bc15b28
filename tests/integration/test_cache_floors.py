"""Benchmarks of caches say nothing if the model fails them with its full cache: the real SmolLM2 must keep floors."""

from collections import Counter

import pytest

from parsimony.assets import fetch
from parsimony.instantiate import instantiate
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.full import Full
from parsimony.models.language import Language
from parsimony.plan import make_plan


@pytest.fixture(scope="module")
def plan(root):
    return make_plan([], root)


@pytest.fixture(scope="module")
def bench(root, plan):
    for key in ("smollm2_gguf", "smollm2_135m_instruct"):
        folder = fetch(key, plan.lock, root / "resources")
    return FullCache(Language.load(folder, ["<|im_end|>"], "float32"))


class FullCache:
    """A workbench of the full cache alone."""

    points = ("full",)

    def __init__(self, model):
        self.loaded = model

    def model(self, dtype):
        return self.loaded

    def kept(self, code, settings, make):
        return make()

    def system(self, point, dtype):
        return Full().build(self.loaded, Inputs())


def totals(root, plan, bench, key, **changed) -> Counter:
    """Sums of all numbers of the full cache over the items of a benchmark."""
    config = plan.benchmarks[key]
    paths = {asset: fetch(asset, plan.lock, root / "resources") for asset in config.assets}
    benchmark, sums = instantiate(config.target, config.params | changed), Counter()
    items = benchmark.items(paths, seed=0)
    for item in items:
        outcome = benchmark.measure(item, bench)
        assert not outcome.failures
        sums.update({metric: value for _, metric, value, _ in outcome.numbers})
    return sums + Counter(items=len(items))


@pytest.mark.parametrize("key", ["cache_retrieval", "cache_retrieval_blind"])
def test_codes_are_found_in_the_full_cache(root, plan, bench, key):
    found = totals(root, plan, bench, key, items=10, lengths=[512])
    assert found["score"] >= 0.8 * found["items"]


def test_a_code_is_found_at_every_depth(root, plan, bench):
    found = totals(root, plan, bench, "cache_depths", items=1, lengths=[512, 2048])
    assert found["score"] >= 0.8 * found["items"]


def test_passages_help_with_their_questions(root, plan, bench):
    found = totals(root, plan, bench, "passage_qa", items=8)
    assert found["gained"] > 1.5 * found["scored"]  # nats a token
    assert found["score"] > 0.15 * found["items"]


def test_the_full_cache_writes_its_own_answer(root, plan, bench):
    """In half precision a near tie may fall the other way, rarely."""
    found = totals(root, plan, bench, "cache_generation", items=1, limit=48)
    assert found["scored"] >= 60 and found["same_top"] >= 0.97 * found["scored"]
    assert found["final_bytes"] == pytest.approx(found["final_whole_bytes"])
