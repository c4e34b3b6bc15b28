"""The suffix drafter: what its two trees hold, what it carries on, the hybrid rule, and greedy output throughout."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.methods.autoregressive.budget import Budget
from parsimony.methods.autoregressive.prompt_lookup import NgramDrafter
from parsimony.methods.autoregressive.suffix_decoding import HybridDrafter, SuffixDecoding, SuffixDrafter
from parsimony.methods.autoregressive.verify import VerifyLoop

RNG = np.random.default_rng(0)


def drafter(cached=-1, persist=True, **params) -> SuffixDrafter:
    method = SuffixDecoding(max_cached_requests=cached, persist=persist, **params)
    return SuffixDrafter(method.depth, method.max_cached_requests, method.persist, method.rule)


def prompt_of(seed, length):
    return torch.from_numpy(np.random.default_rng(seed).integers(2, 300, length))


def speak(drafter, prompt, output):
    """What the loop tells a drafter when ``output`` comes token by token; the last pass is not observed."""
    nothing = torch.empty(0)
    drafter.start(torch.tensor(prompt), output[0], None)
    for token in output[1:-1]:
        drafter.observe(nothing, nothing, nothing, torch.tensor([token]))
    drafter.finish(torch.tensor(output))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), shape=st.sampled_from(["linear", "tree"]), cached=st.sampled_from([-1, 0, 1]),
    persist=st.booleans(), free=st.booleans(),
)  # fmt: skip
def test_output_is_greedy_whatever_the_trees_hold(tiny, seed, shape, cached, persist, free):
    budget = Budget(np.array([1, 20]), np.array([1.0, 1.0 if free else 3.0]))
    ours = VerifyLoop(tiny, drafter(cached, persist, shape=shape, alpha=4.0, min_prob=0.02), budget)
    for n in (seed, seed + 1, seed):
        prompt = prompt_of(n, 1 + n % 20)
        greedy = VerifyLoop(tiny).generate(prompt, 24, RNG)
        generation = ours.generate(prompt, 24, RNG)
        assert generation.tokens.tolist() == greedy.tokens.tolist()
    if persist and cached < 0 and free and len(greedy.tokens) == 24:  # the third output is known from the first
        assert generation.cost.passes < greedy.cost.passes


def test_the_trees_hold_prompt_and_output_and_outputs_alone(tiny):
    mine = drafter()
    loop = VerifyLoop(tiny, mine)
    prompt = prompt_of(1, 12)
    first = loop.generate(prompt, 20, RNG).tokens
    second = loop.generate(prompt_of(2, 12), 20, RNG).tokens
    assert [mine.outputs[key].tolist() for key in mine.outputs] == [first.tolist(), second.tolist()]
    assert mine.local[0].tolist()[:12] == prompt_of(2, 12).tolist()  # the local tree is the newest request's


def test_the_end_of_an_output_is_learnt_as_well():
    mine = drafter()
    speak(mine, [1, 2], [5, 6, 7, 0])
    assert mine.outputs.count([5, 6, 7, 0]) == 1 and mine.outputs.count([1]) == 0


def test_the_higher_score_wins_and_the_local_tree_on_ties():
    mine = drafter()
    speak(mine, [1], [10, 11, 12, 13, 20, 21])
    mine.start(torch.tensor([9, 10, 11, 12, 14, 22, 9, 10, 11]), 12, None)
    # global: 13 and what follows; it occurs once there, the running output ends at its only token 12
    local = mine.local.speculate(mine.context, **mine.rule)
    outputs = mine.outputs.speculate(mine.context, **mine.rule)
    assert local.tokens.tolist()[:2] == [14, 22] and outputs.tokens.tolist()[:2] == [13, 20]
    assert local.score == 0.5 * 4 and outputs.score == 1 + 1 + 1  # four tokens at one half, three certain ones
    assert mine.propose(100).tokens.tolist() == outputs.tokens.tolist()
    assert mine.propose(1).tokens.tolist() == [13]  # room cuts both: 1 against 1/2
    mine.outputs.remove(1)
    assert mine.propose(100).tokens.tolist() == local.tokens.tolist()


def test_the_local_tree_wins_ties():
    mine = drafter()
    mine.outputs.extend(99, [3, 4, 5, 3, 4, 8])
    mine.start(torch.tensor([3, 4, 6, 3]), 4, None)
    scores = [tree.speculate(mine.context, **mine.rule).score for tree in (mine.local, mine.outputs)]
    assert scores == [1.0, 1.0]  # two tokens at one half
    assert mine.propose(10).tokens.tolist() == [6, 3]


def test_the_oldest_outputs_leave_first():
    mine = drafter(cached=2)
    for n in range(4):
        speak(mine, [1], [10 + n, 20 + n, 30 + n])
    assert [mine.outputs[key].tolist() for key in mine.outputs] == [[12, 22, 32], [13, 23, 33]]
    assert mine.outputs.count([10]) == 0 and mine.outputs.count([12, 22]) == 1


@pytest.mark.parametrize(("cached", "persist", "carries"), [(-1, True, True), (0, True, False), (-1, False, False)])
def test_what_is_carried_on(tiny, cached, persist, carries):
    loop, prompt = VerifyLoop(tiny, drafter(cached, persist)), prompt_of(5, 20)
    first, second = (loop.generate(prompt, 40, RNG).cost.passes for _ in range(2))
    assert bool(loop.state()) == carries
    assert second < first if carries else second == first


def test_state_survives_a_round_trip(tiny):
    loop, fresh = VerifyLoop(tiny, drafter()), VerifyLoop(tiny, drafter())
    for n in range(3):
        loop.generate(prompt_of(n, 20), 30, RNG)
    saved = loop.state()
    assert saved["tokens"].nbytes == 4 * saved["lengths"].sum()
    fresh.restore(saved)
    for n in (1, 7):
        costs = [each.generate(prompt_of(n, 20), 30, RNG).cost for each in (loop, fresh)]
        assert costs[0].accepted_per_pass == costs[1].accepted_per_pass
        assert costs[0].drafted == costs[1].drafted
    assert all(torch.equal(loop.state()[name], fresh.state()[name]) for name in saved)
    fresh.restore({})
    assert len(fresh.drafter.outputs) == 0


class Never:
    """A fallback that counts how often it is asked."""

    reads_prompt = False

    def __init__(self, inner):
        self.inner, self.asked, self.told = inner, 0, 0
        self.start, self.state, self.restore = inner.start, inner.state, inner.restore

    def propose(self, room):
        self.asked += 1
        return self.inner.propose(room)

    def observe(self, rows, logits, path, gained):
        self.told += 1
        self.inner.observe(rows, logits, path, gained)


def test_the_hybrid_asks_its_fallback_only_where_the_suffix_draft_promises_less(tiny):
    fallback = Never(NgramDrafter(3, 2, frozenset(), learns=True))
    hybrid = HybridDrafter(drafter(), fallback, predicted=2)
    prompt = [1, 2, 3, 4, 5, 6]
    speak(hybrid.suffix, prompt, [31, 32, 33, 34, 35, 36, 37, 38])
    hybrid.start(torch.tensor(prompt), 31, None)
    suffix = hybrid.suffix.speculate(10)
    assert suffix.score < 2
    assert hybrid.propose(10).tokens.tolist() == fallback.inner.propose(10).tokens.tolist() and fallback.asked == 1
    nothing = torch.empty(0)
    for token in (32, 33, 34):
        hybrid.observe(nothing, nothing, nothing, torch.tensor([token]))
    assert hybrid.suffix.speculate(10).score == 2  # four tokens at one half: the running output is there as well
    assert hybrid.propose(10).tokens.tolist()[:3] == [35, 36, 37] and fallback.asked == 1 and fallback.told == 3
    greedy = [VerifyLoop(tiny).generate(prompt_of(n, 9), 24, RNG).tokens.tolist() for n in (1, 2, 1)]
    loop = VerifyLoop(tiny, HybridDrafter(drafter(), Never(NgramDrafter(3, 2, frozenset(), learns=True)), 2))
    assert [loop.generate(prompt_of(n, 9), 24, RNG).tokens.tolist() for n in (1, 2, 1)] == greedy
    saved = loop.state()
    assert set(saved) == {"suffix_tokens", "suffix_lengths", "fallback_counts"}
    loop.restore({})
    assert not loop.state()["fallback_counts"].any() and not len(loop.state()["suffix_tokens"])
    loop.restore(saved)
    assert all(torch.equal(loop.state()[name], tensor) for name, tensor in saved.items())


def test_an_unknown_shape_is_one_sentence():
    with pytest.raises(UserError, match="shape 'bush' is not one of linear, tree"):
        SuffixDecoding(shape="bush")


@pytest.mark.parametrize("cached", [-1, 0, 1, 3])
@pytest.mark.parametrize("shape", ["linear", "tree"])
def test_drafts_are_those_of_the_official_cache(cached, shape):
    """Both trees, the choice between them and first-in-first-out eviction, over requests with common parts."""
    why = "the official cache is not installed; `make oracles` builds it from the package arctic-inference"
    theirs = pytest.importorskip("arctic_inference.suffix_decoding", reason=why).SuffixDecodingCache(64, cached)
    mine, rng, drafted = drafter(cached, shape=shape, alpha=2.0), np.random.default_rng(cached + 1), 0
    phrases = [rng.integers(0, 30, int(rng.integers(2, 9))).tolist() for _ in range(12)]
    for request in range(12):
        prompt, output = (sum((phrases[n] for n in rng.integers(0, 12, count)), []) for count in (6, 10))
        theirs.start_request(request, prompt)
        theirs.add_active_response(request, output[:1])
        mine.start(torch.tensor(prompt), output[0], None)
        for at in range(1, len(output)):
            expected = theirs.speculate(request, prompt + output[:at], 16, 2.0, use_tree_spec=shape == "tree")
            draft = mine.propose(100)
            assert draft.tokens.tolist() == expected.token_ids and draft.odds.tolist() == expected.probs
            assert (draft.tree.parents[1:] - 1).tolist() == expected.parents
            drafted += len(expected.token_ids)
            theirs.add_active_response(request, output[at : at + 1])
            mine.observe(torch.empty(0), torch.empty(0), torch.empty(0), torch.tensor(output[at : at + 1]))
        theirs.stop_request(request)
        mine.finish(torch.tensor(output))
    assert drafted > 300
