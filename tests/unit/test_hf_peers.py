"""The peers run transformers itself on our weights; what they cost is counted as ours is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.hf_assisted import HfAssisted
from parsimony.methods.autoregressive.hf_generate import Watch, load
from parsimony.methods.autoregressive.hf_prompt_lookup import HfPromptLookup
from parsimony.methods.autoregressive.prompt_lookup import NgramDrafter, PromptLookup
from parsimony.methods.autoregressive.verify import VerifyLoop

RNG = np.random.default_rng(0)


def prompts():
    rng = np.random.default_rng(5)
    return [torch.from_numpy(rng.integers(2, 300, n)).repeat(times) for n, times in ((9, 1), (40, 1), (25, 3), (12, 5))]


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.integers(0, 3), min_size=2, max_size=40),
    n=st.integers(1, 4),
    length=st.integers(1, 12),
)
def test_prompt_lookup_drafts_what_transformers_drafts(ids, n, length):
    """Token by token; 0 ends a turn."""
    theirs = PromptLookupCandidateGenerator(torch.tensor([0]), length, n, max_length=1000)
    drafter = NgramDrafter(length, n, frozenset([0]))
    drafter.start(torch.tensor(ids[:-1]), ids[-1], None)
    candidates, _ = theirs.get_candidates(torch.tensor([ids]))
    assert drafter.propose(1000).tokens.tolist() == candidates[0, len(ids) :].tolist()


@pytest.mark.parametrize("n", [2, 3])
def test_prompt_lookup_accepts_in_each_pass_what_transformers_accepts(tiny, n):
    ours = PromptLookup(max_ngram=n).build(tiny, Inputs())
    theirs = HfPromptLookup(max_ngram=n).build(tiny, Inputs())
    gained = []
    for prompt in prompts():
        mine, other = (system.generate(prompt, 40, RNG) for system in (ours, theirs))
        assert mine.tokens.tolist() == other.tokens.tolist()
        assert mine.cost.accepted_per_pass == other.cost.accepted_per_pass
        # In front of the limit transformers drafts tokens beyond it; the last token may then be drafted, not a bonus.
        assert mine.cost.accepted <= other.cost.accepted <= mine.cost.accepted + 1
        assert mine.cost.drafted <= other.cost.drafted
        gained += mine.cost.accepted_per_pass
    assert max(gained) > 2


def test_an_assistant_of_all_layers_is_always_right_and_owns_nothing(tiny):
    system = HfAssisted(layers=99, draft_tokens=4).build(tiny, Inputs())
    greedy = VerifyLoop(tiny).generate(prompts()[1], 21, RNG)
    ours = system.generate(prompts()[1], 21, RNG)
    assert ours.tokens.tolist() == greedy.tokens.tolist() and len(ours.tokens) == 21
    # The first four tokens are drafted before the prompt is read and come with the first token.
    assert ours.cost.accepted_per_pass == [4, 5, 5, 5, 1]
    assert ours.cost.accepted == ours.cost.drafted == 16
    target = {parameter.data_ptr() for parameter in system.network.parameters()}
    assert {parameter.data_ptr() for parameter in system.options["assistant_model"].parameters()} == target


def test_fewer_layers_draft_too_and_the_output_stays(tiny):
    system = HfAssisted(layers=1, draft_tokens=3).build(tiny, Inputs())
    assistant = system.options["assistant_model"]
    assert len(assistant.model.layers) == 1 and len(system.network.model.layers) == 2
    for prompt in prompts():
        greedy, ours = VerifyLoop(tiny).generate(prompt, 24, RNG), system.generate(prompt, 24, RNG)
        assert ours.tokens.tolist() == greedy.tokens.tolist()
        assert 0 < ours.cost.accepted < ours.cost.drafted <= 3 * ours.cost.passes
        assert ours.cost.cache_bytes == greedy.cost.cache_bytes


def test_the_watch_leaves_no_hook_and_an_end_inside_the_prompt_ends_nothing(tiny):
    system, (stop,) = HfPromptLookup().build(tiny, Inputs()), tiny.stop_ids
    prompt = prompts()[1].clone()
    prompt[[3, 20]] = stop
    expected = VerifyLoop(tiny).generate(prompt, 12, RNG).tokens.tolist()
    assert system.generate(prompt, 12, RNG).tokens.tolist() == expected
    assert not system.network._forward_hooks and not system.network._forward_pre_hooks
    assert load(tiny.folder, torch.float32, tiny.decoder.device) is system.network


def test_what_a_pass_gained_follows_from_what_was_cached():
    """Prompt 1 2; the pass over it drafts 3 9 and accepts 3, the next drafts 5 6 and accepts both, the last nothing."""
    watch = Watch()
    watch.passes = [(0, torch.tensor([1, 2, 3, 9])), (3, torch.tensor([4, 5, 6])), (6, torch.tensor([7, 1]))]
    watch.times = [(0.0, 1.0)] * 3
    cost = watch.cost(torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]), prompt=2)
    assert cost.accepted_per_pass == [1, 3, 1]
    assert (cost.passes, cost.drafted, cost.accepted, cost.rows) == (3, 5, 3, 8)
    watch.passes[0] = (0, torch.tensor([1, 2, 9, 9]))
    watch.passes.insert(1, (2, torch.tensor([3])))
    watch.times.append((0.0, 1.0))
    assert watch.cost(torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]), prompt=2).accepted_per_pass == [1, 3, 1]
