"""Draft models: same output, a cache in step that computes no token twice, and drafts that stop where they cost."""

import numpy as np
import pytest
import torch
from conftest import write_tiny_drafter
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.methods.autoregressive.budget import Budget
from parsimony.methods.autoregressive.draft_model import DraftNetwork, NetworkDrafter
from parsimony.methods.autoregressive.verify import VerifyLoop

RNG = np.random.default_rng(0)
V = 300


def prompt_of(seed, length):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, V, length))


def networks(model):
    spoilt = torch.arange(V)
    spoilt[::2] += 1
    yield DraftNetwork(model.decoder)
    yield DraftNetwork(model.decoder, spoilt % V)
    yield DraftNetwork(model.decoder.first_layers(1))


class Watched(NetworkDrafter):
    """Compares each draft with what the network says from scratch, and counts the tokens it encodes."""

    encoded = 0

    def propose(self, room):
        before = len(self._cache)
        draft = super().propose(room)
        if len(draft.tokens):
            self.encoded += len(self._cache) - before
            decoder, text = self.network.decoder, torch.cat((self.context, draft.tokens))
            logits = decoder.forward(text[None], decoder.cache(len(text)))[0, len(self.context) - 1 : -1]
            assert self.network.best(logits).tolist() == draft.tokens.tolist()
            assert len(self._cache) == len(text) - 1
        return draft


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 30), limit=st.integers(0, 12), K=st.integers(1, 6))
def test_the_cache_stays_in_step_and_nothing_is_computed_twice(tiny, seed, length, limit, K):
    prompt = prompt_of(seed, length)
    expected = VerifyLoop(tiny).generate(prompt, limit, RNG).tokens.tolist()
    for network in networks(tiny):
        drafter = Watched(network, K)
        generation = VerifyLoop(tiny, drafter).generate(prompt, limit, RNG)
        assert generation.tokens.tolist() == expected
        # Each token of the text once, and rejected drafts once; the last draft of a pass is never encoded in it.
        rejected = generation.cost.drafted - generation.cost.accepted
        assert drafter.encoded <= len(expected) + rejected


def test_the_target_as_its_own_drafter_is_always_right(tiny):
    generation = VerifyLoop(tiny, NetworkDrafter(DraftNetwork(tiny.decoder), 3)).generate(prompt_of(2, 9), 21, RNG)
    assert len(generation.tokens) == 21
    assert generation.cost.accepted_per_pass == [4] * 5 and generation.cost.accepted == generation.cost.drafted


def test_first_layers_share_the_tensors(tiny):
    early = tiny.decoder.first_layers(1)
    assert early.layers[0] is tiny.decoder.layers[0] and early.head is tiny.decoder.head
    assert early.config.layers == len(early.layers) == 1 and tiny.decoder.config.layers == 2
    ids, whole, ours = prompt_of(0, 8)[None], [], []
    tiny.decoder.forward(ids, tiny.decoder.cache(8), hook=lambda i, x: whole.append(x))
    early.forward(ids, early.cache(8), hook=lambda i, x: ours.append(x))
    assert len(ours) == 1 and torch.equal(ours[0], whole[0])
    with pytest.raises(UserError, match="network of 2 layers has no first 3"):
        tiny.decoder.first_layers(3)


def test_a_distilled_drafter_says_only_tokens_of_its_head(tiny, tmp_path):
    write_tiny_drafter(tmp_path)
    network = DraftNetwork.distilled(tiny.decoder, tmp_path)
    assert network.decoder.embedding is tiny.decoder.embedding
    drafter = Watched(network, 4)
    expected = VerifyLoop(tiny).generate(prompt_of(3, 9), 20, RNG).tokens.tolist()
    assert VerifyLoop(tiny, drafter).generate(prompt_of(3, 9), 20, RNG).tokens.tolist() == expected
    drafter.sample(1.0, np.random.default_rng(0))
    drafter.start(prompt_of(3, 9), 5, None)
    draft = NetworkDrafter.propose(drafter, 4)
    outside = torch.ones(V, dtype=torch.bool)
    outside[network.tokens] = False
    assert draft.q.shape == (4, V) and not draft.q[:, outside].any()
    torch.testing.assert_close(draft.q.sum(1), torch.ones(4, dtype=torch.float64))
    assert (draft.q.gather(1, draft.tokens[:, None]) > 0).all()
    drafter.start(prompt_of(3, 9), 5, None)  # greedy again unless asked
    assert NetworkDrafter.propose(drafter, 4).q is None


def test_drafting_stops_where_it_does_not_pay_and_starts_every_sequence(tiny):
    prompt = prompt_of(5, 9)
    wrong = DraftNetwork(tiny.decoder, (torch.arange(V) + 1) % V)
    steep = Budget(np.array([1, 2, 9]), np.array([1.0, 1.8, 9.0]))
    free = Budget(np.array([1, 9]), np.array([1.0, 1.0]))
    drafter = NetworkDrafter(wrong, 4, steep)
    cost = VerifyLoop(tiny, drafter, steep).generate(prompt, 40, RNG).cost
    assert cost.passes == 39 and cost.drafted < 10
    assert len(drafter.counts[drafter.counts[:, 0] > 0]) and not drafter.counts[:, 1].any()
    drafter.start(prompt, 5, None)
    assert len(drafter.propose(4).tokens) == 1 and len(drafter.propose(4).tokens) == 0
    good = NetworkDrafter(DraftNetwork(tiny.decoder), 4, free)
    assert max(VerifyLoop(tiny, good, free).generate(prompt, 40, RNG).cost.accepted_per_pass) == 5
    assert torch.equal(good.counts[:, 0], good.counts[:, 1])


def test_drafting_counts_in_the_budget():
    budget = Budget(np.array([1, 4]), np.array([2.0, 5.0]))
    assert budget.with_drafting(0.25).cost.tolist() == pytest.approx([2.0, 3.5, 5.0, 6.5])


def test_drawn_drafts_keep_the_distribution_of_the_target(tiny, tmp_path):
    """With a drafter that is mostly wrong, and cannot say every token."""
    from collections import Counter

    from scipy.stats import chi2_contingency

    drafter = NetworkDrafter(DraftNetwork.distilled(tiny.decoder, write_tiny_drafter(tmp_path)), 2)
    samples = []
    for loop in (VerifyLoop(tiny), VerifyLoop(tiny, drafter)):
        rng, prompt = np.random.default_rng(len(samples)), prompt_of(1, 12)
        runs = [loop.generate(prompt, 3, rng, temperature=0.25) for _ in range(300)]
        samples.append([tuple(run.tokens.tolist()[1:]) for run in runs])
    assert 0 < sum(run.cost.accepted for run in runs) < sum(run.cost.drafted for run in runs)
    common = [pair for pair, count in Counter(sum(samples, [])).items() if count >= 12]
    table = [[each.count(pair) for pair in common] for each in samples]
    table = [[*row, len(each) - sum(row)] for row, each in zip(table, samples, strict=True)]
    assert len(common) >= 5
    assert chi2_contingency(table).pvalue > 1e-4
