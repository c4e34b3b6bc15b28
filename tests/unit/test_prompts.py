"""Prompts: real, prefix-stable, taking turns; and the benchmark's comparison of answers."""

import re

import torch

from parsimony.assets import fetch
from parsimony.benchmarks.continuation import first_difference
from parsimony.benchmarks.prompts import CATEGORIES, _cut, spec_mix, wiki_texts
from parsimony.plan import make_plan


def paths(root):
    plan = make_plan([], root)
    keys = {key for keys in CATEGORIES.values() for key in keys if plan.lock[key].source == "package"}
    return {key: fetch(key, plan.lock, root / "resources") for key in keys}


def test_the_mix_takes_turns_and_a_smaller_one_is_a_prefix(root):
    there = paths(root)
    counts = dict.fromkeys(CATEGORIES, 6)
    large = spec_mix(there, counts, seed=0)
    small = spec_mix(there, dict.fromkeys(CATEGORIES, 2), seed=0)
    assert small == large[: len(small)]
    categories = [item.category for item in large]
    present = [c for c in CATEGORIES if c != "translation"]
    assert categories == present * 6
    assert len({item.id for item in large}) == len(large)
    assert spec_mix(there, counts | {"code": 1}, seed=0)[0] == large[0]
    assert spec_mix(there, counts, seed=1) != large
    for item in large:
        assert len(item.turns) == (2 if item.category == "multi_turn" else 1)
        assert all(20 <= len(turn) <= 4000 for turn in item.turns)
        assert item.category != "free_writing" or not re.search("[\u4e00-\u9fff]", item.turns[0])


def test_all_gsm8k_items_can_be_had(root):
    maths = spec_mix(paths(root), {"maths": 1000}, seed=0)
    assert len(maths) == 100


def test_calibration_prompts_are_no_benchmark_prompts(root):
    """Calibration asks about titles in sentences of its own; no benchmark uses those sentences."""
    from parsimony.recipes.recycling_calibration import REQUESTS

    everything = [turn for item in spec_mix(paths(root), dict.fromkeys(CATEGORIES, 10_000), 0) for turn in item.turns]
    for request in REQUESTS:
        head = request.split("{}")[0]
        assert not any(turn.startswith(head) and len(turn) < 120 for turn in everything)


def test_wiki_texts_are_long_and_stable(root):
    path = paths(root)["wiki_summaries"]
    texts = wiki_texts(path, 8, 1000, seed=0)
    assert len(texts) == 8 and all(len(item.turns[0]) >= 1000 for item in texts)
    assert wiki_texts(path, 3, 1000, seed=0) == texts[:3]


def test_cut_ends_at_a_sentence():
    assert _cut("One. Two. Three.", 11) == "One. Two."
    assert _cut("no end at all here", 5) == "no en"


def test_first_difference_counts_over_turns():
    a, b = torch.tensor([1, 2, 3]), torch.tensor([4, 5])
    assert first_difference([a, b], [a, b]) is None
    assert first_difference([a, torch.tensor([4, 6])], [a, b]) == 4
    assert first_difference([a[:2], b], [a, b]) == 1
