"""Batched continuation: what is compared, what is counted, and that a wrong lossless method fails."""

import json

import numpy as np
import pytest
import torch

from parsimony.benchmarks.spec_batch import SpecBatch
from parsimony.interfaces import Item
from parsimony.methods.autoregressive.batch_speculative_broken import WrongToken
from parsimony.methods.autoregressive.batch_verify import BatchLoop, PooledLoop
from parsimony.methods.autoregressive.draft_model import DraftNetwork
from parsimony.methods.autoregressive.verify import VerifyLoop

ITEM = Item("batch_2_pool_0", "batch_2", ("a b", "why", "tell me more", "x"))


class Desk:
    """A workbench with systems that are there already."""

    records = {}

    def __init__(self, model, systems, reference, lossless=True):
        self._model, self._systems, self._reference = model, systems, reference
        self.points, self.lossless = tuple(systems), lossless

    def model(self, dtype):
        return self._model

    def system(self, point, dtype):
        return self._systems[point]

    def reference(self, dtype):
        return self._reference

    def rng(self, item):
        return np.random.default_rng(0)


def bench(timed=False, **changes):
    params = dict(batches=[1, 2], pools=2, prompts=3, limit=8, characters=200)
    return SpecBatch("float32", timed, **(params | changes))


def numbers(outcome, point):
    return {metric: value for p, metric, value, _ in outcome.numbers if p == point}


@pytest.fixture(scope="module")
def networks(tiny):
    return DraftNetwork(tiny.decoder), DraftNetwork(tiny.decoder, (torch.arange(300) + 1) % 300)


def test_exact_answers_and_counts(tiny, networks):
    oracle, _ = networks
    systems = {"eqspec": BatchLoop(tiny, oracle, 3), "exspec": PooledLoop(tiny, oracle, 3)}
    for reference in (BatchLoop(tiny, None, 0), VerifyLoop(tiny)):
        outcome = bench().measure(ITEM, Desk(tiny, systems, reference))
        assert not outcome.failures
        for point in systems:
            found = numbers(outcome, point)
            assert found["exact"] == found["partial"] == found["sequences"] == 4 and found["tied"] == 0
            assert found["batch_passes"] <= found["passes"] and found["grouped"] <= found["batch_passes"]
            assert found["step_tokens"] == found["tokens"] - 4
            assert "seconds" not in found and "realign_seconds" not in found  # an untimed rerun gives the same bytes
            lengths = outcome.outputs[point, "answer_tokens"]
            assert len(outcome.outputs[point, "tokens"]) == sum(lengths) == found["tokens"]


def test_a_wrong_method_fails_if_it_declares_losslessness(tiny, networks):
    systems = {"dsd": WrongToken(tiny, networks[1], 3)}
    for lossless in (True, False):
        outcome = bench().measure(ITEM, Desk(tiny, systems, BatchLoop(tiny, None, 0), lossless))
        found = numbers(outcome, "dsd")
        assert found["exact"] == 0 and 0 <= found["partial"] < 2
        assert (("dsd", "exact") in outcome.failures) == lossless


def test_timed_runs_take_turns_with_the_reference_in_batches_and_alone(tiny, networks):
    systems = {"eqspec": BatchLoop(tiny, networks[0], 3)}
    outcome = bench(timed=True).measure(ITEM, Desk(tiny, systems, BatchLoop(tiny, None, 0)))
    found = numbers(outcome, "eqspec")
    assert found["alone_tokens"] == found["reference_tokens"] == found["tokens"]
    assert min(found[f"{name}seconds"] for name in ("", "alone_", "reference_", "prefill_", "verify_")) > 0
    assert 0 <= found["realign_seconds"] < found["seconds"]
    alone = bench(timed=True).measure(ITEM, Desk(tiny, {"batch_greedy": systems["eqspec"]}, VerifyLoop(tiny)))
    assert "reference_seconds" not in numbers(alone, "batch_greedy")


def test_items_are_pools_at_every_batch_size(tmp_path):
    lines = "\n".join(json.dumps({"prompt": f"How much is {n} and {n}?"}) for n in range(9))
    (tmp_path / "gsm8k.jsonl").write_text(lines)
    items = bench().items({"gsm8k_sample": tmp_path}, seed=0)
    assert [item.id for item in items] == ["batch_1_pool_0", "batch_2_pool_0"]
    assert items[0].turns == items[1].turns and items[1].category == "batch_2"
    assert bench().items({"gsm8k_sample": tmp_path}, seed=0) == items
    assert bench().items({}, seed=0) == [] and bench().skipped({}) == {}
