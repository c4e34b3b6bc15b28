"""Aggressive decoding gives the greedy output for every source, in no more passes, and tolerates as much as asked."""

import numpy as np
import pytest
import torch
from conftest import ROOT, write_tiny_seq2seq
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.benchmarks.sentences import corrupt, word_edits
from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.aggressive_decoding import AggressiveDecoding, position, unique_ends
from parsimony.methods.autoregressive.generalized_aggressive_decoding import (
    BlockDrafter,
    GeneralizedAggressiveDecoding,
    accepted,
)
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.models.seq2seq import EncoderDecoder, Seq2Seq

RNG = np.random.default_rng(0)
NONE = Inputs()
ASSETS = ROOT / "results" / "published" / "assets"
ARMS = [{}, {"resync": False}, {"draft": "lookup"}]
SENTENCES = [
    "He is the first and most frequently invoked spirit in the story.",
    "The city is the capital of the province and lies on the river.",
    "In geometry, a straight line is an infinitely long object with no width.",
    "The first part of the series was released in the United States in 1998.",
    "Her style was strongly influenced by the music of the early years.",
    "The album was recorded in London and was a success in many countries.",
]


@pytest.fixture(scope="module")
def corrector() -> Seq2Seq:
    """The model that is shipped: it copies, so drafts are accepted."""
    return Seq2Seq.load(ASSETS / "correction_seq2seq", ["<end>"], "float32")


@pytest.fixture(scope="module")
def translator() -> Seq2Seq:
    return Seq2Seq.load(ASSETS / "translation_seq2seq", ["<end>"], "float32")


@pytest.fixture(scope="module")
def drafter() -> Inputs:
    return Inputs({"nat": ASSETS / "translation_drafter"})


class Watched:
    """A drafter around another that notes the cache's length, and that of the output with its first token."""

    reads_prompt = False

    def __init__(self, inner):
        self.inner, self.seen = inner, []

    def start(self, prompt, token, logits):
        self.length = 1
        self.inner.start(prompt, token, logits)

    def propose(self, room):
        return self.inner.propose(room)

    def observe(self, rows, logits, path, gained):
        self.length += len(gained)
        self.seen.append((len(self.loop._cache), self.length, len(gained)))
        self.inner.observe(rows, logits, path, gained)


def same_as_greedy(model, system, source, limit):
    greedy = VerifyLoop(model).generate(source, limit, RNG)
    ours = system.generate(source, limit, RNG)
    assert ours.tokens.tolist() == greedy.tokens.tolist()
    assert ours.cost.passes <= greedy.cost.passes
    assert min(ours.cost.accepted_per_pass, default=1) >= 1
    return greedy, ours


@pytest.mark.parametrize("arm", ARMS, ids=str)
@settings(max_examples=25, deadline=None)
@given(source=st.lists(st.integers(3, 299) | st.integers(3, 5), max_size=25), limit=st.integers(1, 60))
def test_equals_greedy_on_random_sources(tiny_seq2seq, arm, source, limit):
    """The empty source, sources that repeat themselves, and outputs longer than the source among them."""
    system = AggressiveDecoding(**arm).build(tiny_seq2seq, NONE)
    same_as_greedy(tiny_seq2seq, system, torch.tensor(source, dtype=torch.int64), limit)


@pytest.mark.parametrize("arm", ARMS, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_equals_greedy_on_real_corrections(corrector, arm, rate):
    system, rng = AggressiveDecoding(**arm).build(corrector, NONE), np.random.default_rng(0)
    for text in SENTENCES:
        same_as_greedy(corrector, system, corrector.encode(corrupt(text, rate, rng)), 100)
        same_as_greedy(corrector, system, corrector.encode(" ".join([text] * 3)), 100)


def published_loop(model, source: list[int], limit: int, resync: bool) -> tuple[list[int], int]:
    """The algorithm word for word, without a cache: output and number of decoder passes."""
    x, y, p, passes = torch.tensor(source, dtype=torch.int64), [], 0, 0
    while True:
        draft = x[p:].tolist() if 0 <= p < len(source) else []
        o = [int(model.next_logits(x, torch.tensor(y + draft[:j], dtype=torch.int64)).argmax())
             for j in range(len(draft) + 1)]  # fmt: skip
        passes += 1
        wrong = next(j for j, token in enumerate(o) if j == len(draft) or token != draft[j])
        for token in o[: wrong + 1]:
            y.append(token)
            if token == 0 or len(y) == limit:
                return y, passes
        p = -1
        for m in (1, 2, 3) if resync else ():
            ends = [end for end in range(m, len(source) + 1) if source[end - m : end] == y[-m:]]
            if len(ends) == 1:
                p = ends[0]
            if len(ends) < 2:
                break


@pytest.mark.parametrize("resync", [True, False])
def test_takes_the_passes_of_the_published_algorithm(corrector, resync):
    system, rng = AggressiveDecoding(resync=resync).build(corrector, NONE), np.random.default_rng(1)
    for text in SENTENCES[:4]:
        source = corrector.encode(corrupt(text, 0.2, rng))
        ours = system.generate(source, 100, RNG)
        tokens, passes = published_loop(corrector, source.tolist(), 100, resync)
        assert (ours.tokens.tolist(), ours.cost.passes) == (tokens, passes)


def test_a_perfect_copy_takes_one_pass(corrector):
    system = AggressiveDecoding().build(corrector, NONE)
    copied = 0
    for text in SENTENCES:
        source = corrector.encode(text)
        ours = system.generate(source, 100, RNG)
        if ours.tokens.tolist() == [*source.tolist(), 0]:
            copied += 1
            assert ours.cost.accepted_per_pass == [len(source) + 1]
    assert copied >= 4


@given(st.lists(st.integers(0, 3), max_size=14), st.lists(st.integers(0, 4), max_size=14))
def test_a_position_is_found_only_where_it_is_unique(x, y):
    found = position(y, unique_ends(x))
    places = [[end for end in range(m, len(x) + 1) if x[end - m : end] == y[-m:]] for m in range(1, min(3, len(y)) + 1)]
    decided = next((each for each in places if len(each) < 2), [])
    assert found == (decided[0] if decided else None)


def test_the_cache_holds_all_but_the_newest_token(corrector, translator, drafter):
    for model, system in (
        (corrector, AggressiveDecoding().build(corrector, NONE)),
        (translator, GeneralizedAggressiveDecoding(5).build(translator, drafter)),
    ):
        system.drafter = Watched(system.drafter)
        system.drafter.loop = system
        for text in SENTENCES:
            system.generate(model.encode(corrupt(text, 0.3, RNG)), 100, RNG)
        assert len(system.drafter.seen) >= 6
        assert all(held == length - 1 and gained >= 1 for held, length, gained in system.drafter.seen)


@pytest.mark.parametrize("block", [1, 5, 25])
def test_strict_gad_equals_greedy(tiny_seq2seq, translator, drafter, tmp_path, block):
    noise = Inputs({"nat": write_tiny_seq2seq(tmp_path, causal=False, seed=3)})
    system = GeneralizedAggressiveDecoding(block).build(tiny_seq2seq, noise)
    for length in (0, 3, 20):
        same_as_greedy(tiny_seq2seq, system, torch.arange(3, 3 + length), 40)
    system = GeneralizedAggressiveDecoding(block).build(translator, drafter)
    saved = 0
    for text in SENTENCES:
        greedy, ours = same_as_greedy(translator, system, translator.encode(text), 100)
        saved += greedy.cost.passes - ours.cost.passes
    assert saved > 0


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(0, 8))
def test_acceptance_is_monotone_in_beta_and_tau(seed, k):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.integers(0, 4, (k + 1, 6)) / 2)  # ties among them
    tokens = torch.from_numpy(rng.integers(0, 6, k))
    table = [[accepted(tokens, logits, beta, tau) for tau in (0.0, 0.5, 1.0, 9.0)] for beta in (1, 2, 3, 6)]
    assert (np.diff(table, axis=0) >= 0).all() and (np.diff(table, axis=1) >= 0).all()
    right = (logits[:k].argmax(-1) == tokens).tolist()
    assert table[0][0] == (right.index(False) if False in right else k)
    assert table[-1][-1] == k


def test_a_tolerating_loop_gains_more_and_may_differ(translator, drafter):
    strict, loose = (GeneralizedAggressiveDecoding(25, *b).build(translator, drafter) for b in ((1, 0.0), (5, 3.0)))
    runs = [[loop.generate(translator.encode(text), 100, RNG) for text in SENTENCES] for loop in (strict, loose)]
    gained = [sum(map(len, (r.tokens for r in run))) / sum(r.cost.passes for r in run) for run in runs]
    assert gained[1] >= gained[0] > 1.5


def test_the_drafter_sees_its_own_prefix(translator, drafter):
    """Drafts depend on what was accepted: behind a wrong prefix they are others."""
    one = BlockDrafter(EncoderDecoder.load(drafter.assets["nat"]), 5)
    one.start(translator.encode(SENTENCES[0]), 0, None)
    first = one.propose(10).tokens
    one.observe(None, None, None, first[:2])
    assert len(one.propose(3).tokens) == 3 and len(one.propose(0).tokens) == 0
    assert one.propose(10).tokens.tolist() != first.tolist()


def test_wrong_parameters_and_drafters_are_refused(translator, tmp_path):
    with pytest.raises(UserError, match="'source' or 'lookup'"):
        AggressiveDecoding(draft="both")
    with pytest.raises(UserError, match="block >= 1"):
        GeneralizedAggressiveDecoding(block=0)
    with pytest.raises(UserError, match="same tokenizer"):
        inputs = Inputs({"nat": write_tiny_seq2seq(tmp_path, causal=False)})
        GeneralizedAggressiveDecoding().build(translator, inputs)


def test_the_shipped_corrector_corrects(corrector):
    loop, rng = VerifyLoop(corrector), np.random.default_rng(3)
    damaged = [corrupt(text, 0.15, rng) for text in SENTENCES * 5]
    outputs = [corrector.decode(loop.generate(corrector.encode(text), 100, RNG).tokens) for text in damaged]
    left = sum(map(word_edits, outputs, SENTENCES * 5))
    assert left < 0.9 * sum(map(word_edits, damaged, SENTENCES * 5))
