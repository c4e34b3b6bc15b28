"""Batched speculation: every row gets the greedy output of its prompt alone; realignment changes no entry."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from parsimony.methods.autoregressive.batch_speculative_broken import Holes, NoRepad, WrongToken
from parsimony.methods.autoregressive.batch_verify import BatchLoop, PooledLoop
from parsimony.methods.autoregressive.draft_model import DraftNetwork
from parsimony.methods.autoregressive.verify import VerifyLoop

RNG = np.random.default_rng(0)
V = 300


def prompts_of(seed, lengths):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(0, V, n)) for n in lengths]  # token 0 is padding and end of turn


def alone(model, prompts, limit):
    return [VerifyLoop(model).generate(prompt, limit, RNG).tokens.tolist() for prompt in prompts]


def decided(model, prompts, limit):
    """The same, of draws in which no layout of a batch can turn a choice: some pairs of tokens tie to the last bit."""
    expected = alone(model, prompts, limit)
    for prompt, tokens in zip(prompts, expected, strict=True):
        if tokens:
            ids = torch.cat([prompt, torch.tensor(tokens[:-1], dtype=prompt.dtype)])[None]
            logits = model.decoder.prefill(ids, model.decoder.cache(ids.shape[1]), want="all")[0, len(prompt) - 1 :]
            first, second = logits.topk(2).values.T
            assume((first - second).min() > 1e-4)
    return expected


def outputs(batch):
    return [generation.tokens.tolist() for generation in batch.generations]


def network(model, kind):
    """An oracle, a drafter that is always wrong, one that is right now and then, and a mixture of the last two."""
    if kind == "oracle":
        return DraftNetwork(model.decoder)
    if kind == "wrong":
        return DraftNetwork(model.decoder, (torch.arange(V) + 1) % V)
    if kind == "first_layer":
        return DraftNetwork(model.decoder.first_layers(1))
    half = torch.arange(V)
    half[1::3] += 1  # the oracle's, of which a third is spoilt: ragged patterns of every kind
    return DraftNetwork(model.decoder, half % V)


KINDS = ["oracle", "wrong", "first_layer", "ragged"]
CASES = dict(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    limit=st.integers(0, 10),
    kind=st.sampled_from(KINDS),
    K=st.integers(1, 5),
    bonus=st.booleans(),
    together=st.sampled_from([None, 1, 2, 3, 4]),
)


@settings(max_examples=25, deadline=None)
@given(**CASES)
def test_eqspec_gives_each_row_its_own_greedy_output(tiny, seed, lengths, limit, kind, K, bonus, together):
    prompts = prompts_of(seed, lengths)
    expected = decided(tiny, prompts, limit)
    batch = BatchLoop(tiny, network(tiny, kind), K, bonus).generate_batch(prompts, limit, RNG, together)
    assert outputs(batch) == expected
    check_costs(batch, K)


@settings(max_examples=20, deadline=None)
@given(**CASES, window=st.integers(1, 8), sort=st.booleans())
def test_exspec_gives_the_same_for_any_window_batch_and_order(
    tiny, seed, lengths, limit, kind, K, bonus, together, window, sort
):
    prompts = prompts_of(seed, lengths)
    expected = decided(tiny, prompts, limit)
    loop = PooledLoop(tiny, network(tiny, kind), K, bonus, window, sort)
    for _ in range(2):  # the buffers of the first run are there in the second
        batch = loop.generate_batch(prompts, limit, RNG, together)
        assert outputs(batch) == expected
        check_costs(batch, K)
        assert 0 <= batch.grouped <= batch.cost.passes


def check_costs(batch, K):
    for generation in batch.generations:
        cost, n = generation.cost, len(generation.tokens)
        assert sum(cost.accepted_per_pass) == max(n - 1, 0)
        assert cost.passes == len(cost.accepted_per_pass) and all(1 <= g <= K + 1 for g in cost.accepted_per_pass)
        assert 0 <= cost.accepted <= cost.drafted <= K * cost.passes
    for name in ("drafted", "accepted"):
        assert getattr(batch.cost, name) == sum(getattr(g.cost, name) for g in batch.generations)
    assert sum(batch.cost.accepted_per_pass) == sum(sum(g.cost.accepted_per_pass) for g in batch.generations)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), lengths=st.lists(st.integers(1, 30), max_size=4), limit=st.integers(0, 8))
def test_plain_batches_are_greedy_and_never_realigned(tiny, seed, lengths, limit):
    prompts, loop = prompts_of(seed, lengths), Watched(tiny, None, 0)
    expected = decided(tiny, prompts, limit)
    batch = loop.generate_batch(prompts, limit, RNG)
    assert outputs(batch) == expected
    assert batch.cost.passes <= max(limit - 1, 0) and batch.cost.drafted == 0


class Watched(BatchLoop):
    """Looks at the caches after every round."""

    rounds = moved = 0

    def _realign(self, rows, caches):
        before = [(list(s.tokens), s.pads) for s in rows]
        aligned = super()._realign(rows, caches)
        width = max(len(s.tokens) for s in rows)
        self.rounds += 1
        self.moved += aligned[0] is not caches[0]
        for s, (tokens, _) in zip(rows, before, strict=True):
            assert s.tokens == tokens  # no real token is lost or made
            assert s.width == width and s.pads >= 0
        assert min(s.pads for s in rows) == 0
        pads = torch.tensor([s.pads for s in rows])
        ids = torch.tensor([[0] * s.pads + s.tokens for s in rows])
        for cache, (decoder, lag) in zip(aligned, self.networks, strict=True):
            assert len(cache) == width - lag  # the newest token is not encoded
            expected = (torch.arange(width - lag) - pads[:, None]).clamp(min=-1)
            assert (cache.positions[:, :, : width - lag] == expected).all()  # 0..c-1, and -1 exactly on padding
            if width == lag:
                continue
            fresh = decoder.cache(width, len(rows))
            decoder.prefill(ids[:, : width - lag], fresh, pads=pads, want="none")
            real = expected >= 0
            for layer in range(decoder.config.layers):
                for ours, theirs in ((cache.keys, fresh.keys), (cache.values, fresh.values)):
                    ours, theirs = ours(layer).transpose(1, 2), theirs(layer).transpose(1, 2)
                    torch.testing.assert_close(ours[real], theirs[real], atol=1e-4, rtol=0)
                    assert not self.moved or not ours[~real].any()
        return aligned


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    kind=st.sampled_from(KINDS),
    K=st.integers(1, 4),
)
def test_realigned_caches_equal_those_of_a_prefill_of_the_padded_batch(tiny, seed, lengths, kind, K):
    loop = Watched(tiny, network(tiny, kind), K)
    prompts = prompts_of(seed, lengths)
    expected = decided(tiny, prompts, 12)
    assert outputs(loop.generate_batch(prompts, 12, RNG)) == expected


def test_ragged_rounds_do_move_entries(tiny):
    loop = Watched(tiny, network(tiny, "ragged"), 4)
    loop.generate_batch(prompts_of(0, [5, 12, 9, 20]), 20, RNG)
    assert loop.moved > 2


@pytest.mark.parametrize("scheduler", [BatchLoop, PooledLoop])
@pytest.mark.parametrize("bonus", [True, False])
def test_an_oracle_gains_all_and_a_wrong_drafter_one_token_a_round(tiny, scheduler, bonus):
    prompts, K, limit = prompts_of(1, [4, 9, 17]), 4, 22
    assert all(len(tokens) == limit for tokens in alone(tiny, prompts, limit))  # no early end spoils the counts
    wrong = scheduler(tiny, network(tiny, "wrong"), K, bonus).generate_batch(prompts, limit, RNG)
    oracle = scheduler(tiny, network(tiny, "oracle"), K, bonus).generate_batch(prompts, limit, RNG)
    for generation in wrong.generations:
        assert generation.cost.accepted_per_pass == [1] * (limit - 1) and generation.cost.accepted == 0
    most = K + 1 if bonus else K
    for generation in oracle.generations:
        gained = generation.cost.accepted_per_pass
        assert gained[:-2] == [most] * len(gained[:-2]) and max(gained) == most
    if not bonus:
        # The code counts the last of K right drafts as the bonus: its acceptance rate ends at (K - 1) / K.
        assert oracle.cost.accepted / oracle.cost.drafted <= (K - 1) / K


def test_sequences_of_one_length_are_grouped_and_stay_in_place(tiny):
    prompts = prompts_of(4, [9] * 6)
    loop = PooledLoop(tiny, network(tiny, "wrong"), 3)
    batch = loop.generate_batch(prompts, 10, RNG, together=3)
    assert all(len(each.tokens) == 10 for each in batch.generations)  # none ends early, so all stay of one length
    assert batch.grouped == batch.cost.passes
    apart = loop.generate_batch(prompts_of(3, [5, 7, 9, 11]), 10, RNG, together=4)
    assert apart.grouped == apart.cost.passes - 1  # padded anew once, and of one stored length from then on


def test_a_tail_smaller_than_a_batch_falls_back(tiny):
    batch = PooledLoop(tiny, network(tiny, "wrong"), 3).generate_batch(prompts_of(3, [9, 9]), 10, RNG, together=3)
    assert batch.grouped == 0


@pytest.mark.parametrize("broken", [Holes, WrongToken, NoRepad])
def test_the_broken_variants_are_broken(tiny, broken):
    """At one sequence only the accepted wrong token shows; in a ragged batch all of them differ."""
    prompts = prompts_of(11, [4, 9, 17, 23])
    expected = alone(tiny, prompts, 24)
    loop = broken(tiny, network(tiny, "ragged"), 4)
    found = outputs(loop.generate_batch(prompts, 24, RNG))
    assert sum(a != b for a, b in zip(found, expected, strict=True)) >= 2
    single = outputs(loop.generate_batch(prompts, 24, RNG, together=1))
    assert (single == expected) == (broken is not WrongToken)


def test_a_stop_token_in_the_prompt_and_in_one_row_ends_that_row_alone(tiny):
    prompts = [torch.tensor([1, 50, 0, 1, 60, 0, 1]), *prompts_of(3, [9, 14])]
    free = alone(tiny, prompts, 20)
    stop = free[1][7]
    bounded = type(tiny)(tiny.decoder, tiny.folder, tiny.stop)
    bounded.__dict__["stop_ids"] = frozenset({stop})
    expected = alone(bounded, prompts, 20)
    assert len(expected[1]) <= 8 and max(map(len, expected)) == 20
    for loop in (BatchLoop, PooledLoop):
        for kind in KINDS:
            assert outputs(loop(bounded, network(tiny, kind), 4).generate_batch(prompts, 20, RNG)) == expected


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 4))
def test_align_copies_the_named_entries_and_pads_with_zeros(tiny, seed, rows):
    rng, decoder = np.random.default_rng(seed), tiny.decoder
    source, target = decoder.cache(20, 3), decoder.cache(2, rows)
    source.data.copy_(torch.randn(source.data.shape, generator=torch.Generator().manual_seed(seed)))
    source.positions.copy_(torch.from_numpy(rng.integers(0, 50, source.positions.shape)))
    source.lengths = [20] * decoder.config.layers
    parts = [(source, int(rng.integers(3)), *sorted(rng.integers(0, 20, 2).tolist())) for _ in range(rows)]
    width = max(stop - begin for _, _, begin, stop in parts) + int(rng.integers(3))
    target.align(parts, width)
    assert target.lengths == [width] * decoder.config.layers
    for row, (_, at, begin, stop) in enumerate(parts):
        pad = width - (stop - begin)
        assert torch.equal(target.data[:, :, row, :, pad:width], source.data[:, :, at, :, begin:stop])
        assert torch.equal(target.positions[:, row, pad:width], source.positions[:, at, begin:stop])
        assert not target.data[:, :, row, :, :pad].any() and (target.positions[:, row, :pad] == -1).all()
    again = target.data.clone()
    target.align([None] * rows, width)
    assert torch.equal(target.data, again) and len(target) == width


def test_extend_gives_back_what_a_longer_prefill_holds(tiny):
    decoder, (ids,) = tiny.decoder, prompts_of(4, [12])
    whole, part = decoder.cache(12), decoder.cache(4)
    decoder.prefill(ids[None], whole)
    decoder.prefill(ids[None, :5], part)
    part.extend(whole, 0, 5, 12)
    assert part.plain and len(part) == 12
    for layer in range(decoder.config.layers):
        torch.testing.assert_close(part.keys(layer), whole.keys(layer), atol=1e-5, rtol=0)
