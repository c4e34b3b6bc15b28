"""Synthetic counterparts of real sentences are pure functions of text and seed, and what is learnt is not asked."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsimony.benchmarks.correction import Correction
from parsimony.benchmarks.sentences import Lexicon, corrupt, sentences, word_edits
from parsimony.benchmarks.toy_translation import ToyTranslation

TEXT = "The old cats of the town like a warm place in the sun, and people see them."
WORDS = st.lists(st.sampled_from("abc"), max_size=7).map(" ".join)


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    words = TEXT[:-1].lower().split()
    texts = [[" ".join(["Many", *rng.choice(words, k)]) + "." for k in (6, 14, 20)] for _ in range(200)]
    rows = {n: {"extract": " ".join(three)} for n, three in enumerate(texts)}
    (tmp_path / "summaries.json").write_text(json.dumps(rows))
    return {"wiki_summaries": tmp_path}


@given(st.integers(0, 10**6))
def test_errors_come_at_the_asked_rate(seed):
    assert corrupt(TEXT, 0.0, np.random.default_rng(seed)) == TEXT
    first, again = (corrupt(TEXT, 0.3, np.random.default_rng(seed)) for _ in range(2))
    assert first == again
    assert word_edits(first, TEXT) <= 2 * len(TEXT.split())


def test_more_errors_at_a_higher_rate():
    edits = [sum(word_edits(corrupt(TEXT, rate, np.random.default_rng(n)), TEXT) for n in range(200))
             for rate in (0.02, 0.1, 0.3)]  # fmt: skip
    assert 0 < edits[0] < edits[1] < edits[2]


@given(WORDS, WORDS, WORDS)
def test_word_edits_are_a_distance(a, b, c):
    assert (word_edits(a, b) == 0) == (a.split() == b.split())
    assert word_edits(a, b) == word_edits(b, a)
    assert word_edits(a, c) <= word_edits(a, b) + word_edits(b, c)
    assert abs(len(a.split()) - len(b.split())) <= word_edits(a, b) <= max(len(a.split()), len(b.split()))


def test_a_lexicon_is_one_to_one_and_keeps_other_words():
    lexicon = Lexicon([TEXT] * 3 + ["the the the"], 8, 0)
    assert len(set(lexicon.words.values())) == len(lexicon.words) == 8
    assert lexicon.words == Lexicon([TEXT] * 3 + ["the the the"], 8, 0).words
    assert lexicon.translate("Zebra Quux.") == "Zebra Quux."
    lexicon.moving = {"old"}
    lexicon.words = {"the": "bo", "old": "rika", "cats": "mu"}
    assert lexicon.translate("The old cats, old sun.") == "Bo rika mu, rika sun."
    assert lexicon.translate("Old cats sun.") == "mu Rika sun."


def test_what_is_learnt_is_not_asked(paths):
    learnt, held = sentences(paths["wiki_summaries"])
    assert held and len(learnt) > 5 * len(held) and not set(learnt) & set(held)
    for benchmark in (
        Correction("float32", False, 4, 20),
        ToyTranslation(lexicon=5, lexicon_seed=0, dtype="float32", timed=False, items=4, limit=20),
    ):
        items = benchmark.items(paths, 0)
        assert [item.id for item in items] == [item.id for item in benchmark.items(paths, 0)]
        assert {item.category for item in items} == set(benchmark.categories)
        assert len(items) == 4 * len(benchmark.categories) == len({item.id for item in items})
        assert benchmark.items({}, 0) == []
        item = items[0]
        scores = dict((metric, value) for metric, value, _ in benchmark.score(item, benchmark.wanted[item.id]))
        assert scores["exact_match"] == 1 and scores["word_edits"] == 0


def test_clean_items_are_their_own_answer(paths):
    benchmark = Correction("float32", False, 4, 20)
    for item in benchmark.items(paths, 0):
        if item.category == "errors_00":
            assert item.turns[0] == benchmark.wanted[item.id]
