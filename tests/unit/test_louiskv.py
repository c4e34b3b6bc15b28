"""LouisKV: boundaries, units, budgets, and that everything fetched is the full cache."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.full import Full
from parsimony.methods.kv_cache.held import prefill
from parsimony.methods.kv_cache.louiskv import Louis, LouisKV, calibrate, clusters, partition, similarity
from parsimony.methods.kv_cache.retrieval import means

T, STEPS = 70, 40


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(2, 290, T + STEPS))


@pytest.fixture(scope="module")
def prefilled(tiny, ids):
    return prefill(tiny.decoder, ids[:T])


def held(method, prefilled, model):
    return method.build(model, Inputs()).hold(prefilled)[0]


def retrievals(method, prefilled, model, ids):
    context = held(method, prefilled, model)
    context.extend(ids[T:])
    return [layer.retrievals for layer in context.layers]


def layer(method, n=50, seed=0, H=2, d=8):
    g = torch.Generator().manual_seed(seed)
    return Louis(torch.randn(H, n, d, generator=g), torch.randn(H, n, d, generator=g), method.budget, method, 0)


def step(louis, g, H=2, R=3, d=8):
    louis.append(torch.randn(H, d, generator=g), torch.randn(H, d, generator=g))
    return louis.seen(torch.randn(H, R, d, generator=g), 0)[0]


@pytest.mark.parametrize("units", ["clusters", "pages", "tokens", "random"])
@pytest.mark.parametrize("tau", [-1.0, 0.5, 2.0])
def test_a_budget_of_everything_is_the_full_cache(tiny, ids, prefilled, units, tau):
    context = held(LouisKV(1000, tau, units=units, size=5, local=8), prefilled, tiny)
    torch.testing.assert_close(context.extend(ids[T:]), held(Full(), prefilled, tiny).extend(ids[T:]))
    assert all(layer.count <= 16 for layer in context.layers)


def test_tau_says_how_often_entries_are_chosen(tiny, ids, prefilled):
    assert retrievals(LouisKV(20, -1.0, local=8), prefilled, tiny, ids) == [1, 1]
    assert retrievals(LouisKV(20, 2.0, local=8), prefilled, tiny, ids) == [STEPS, STEPS]
    assert retrievals(LouisKV(20, 2.0, stride=4, local=8), prefilled, tiny, ids) == [STEPS // 4] * 2


@given(taus=st.lists(st.floats(-1, 1.1), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_retrievals_are_boundaries_and_the_first_step_and_rise_with_tau(taus, seed):
    g = torch.Generator().manual_seed(seed)
    queries = torch.randn(20, 2, 3, 8, generator=g) + 1
    r = [float(similarity(a.half().float(), b)) for a, b in zip(queries, queries[1:], strict=False)]
    counts = []
    for tau in sorted(taus):
        louis = layer(LouisKV(10, tau, local=4))
        for q in queries:
            louis.append(torch.zeros(2, 8), torch.zeros(2, 8))
            louis.seen(q, 0)
        assert louis.retrievals == 1 + sum(each < tau for each in r)
        counts.append(louis.retrievals)
    assert counts == sorted(counts)


@given(
    n=st.integers(1, 60), budget=st.integers(1, 40), tau=st.sampled_from([-1.0, 0.0, 2.0]), stride=st.integers(0, 5),
    units=st.sampled_from(["clusters", "pages", "tokens", "random"]), local=st.integers(1, 9), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_token_is_in_one_place_and_the_budget_holds(n, budget, tau, stride, units, local, seed):
    g = torch.Generator().manual_seed(seed)
    louis = layer(LouisKV(budget, tau, stride, units, 4, 2, local), n, seed)
    for t in range(25):
        keys = step(louis, g)
        sinks, pool = louis.sinks.shape[2], louis.labels.shape[1]
        assert sinks + pool + louis.count == n + t + 1 and pool == louis.store.count
        assert keys.shape[1] == sinks + louis.fetched.shape[2] + louis.count
        assert louis.fetched.shape[2] <= budget and louis.count <= max(2 * local, 1) + 1
        labels = torch.cat((louis.labels.long(), *(each.expand(2, -1) for each in louis.closed)), 1)
        assert not labels.numel() or 0 <= int(labels.min()) <= int(labels.max()) < louis.index[0].shape[1]
    assert louis.moved <= louis.retrievals * budget * 2 * 2 * 8 * 2


def test_a_segment_is_one_unit_described_by_the_mean_of_its_keys():
    g = torch.Generator().manual_seed(0)
    louis = layer(LouisKV(1000, 2.0, stride=5, local=6), n=4)  # sinks alone: the pool begins empty
    for _ in range(33):
        step(louis, g)
    keys = torch.from_numpy(louis.store.data[0, :, : louis.store.count]).float()
    labels = louis.labels.long()
    assert torch.equal(labels[0], torch.arange(labels.shape[1]) // 5 + labels[0, 0])
    found = means(keys, labels, louis.index[0].shape[1])
    for unit in labels[0].unique():
        torch.testing.assert_close(found[:, unit], louis.index[0][:, unit].float(), atol=2e-3, rtol=2e-3)


def test_pages_are_scored_by_the_most_a_key_within_their_bounds_can_score():
    louis = layer(LouisKV(8, 2.0, units="pages", size=4, sinks=0, local=2), n=34)
    keys = torch.from_numpy(louis.store.data[0, :, : louis.store.count]).float().view(2, 8, 4, 8)
    q = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    low, high = keys.amin(2), keys.amax(2)
    bound = torch.maximum(q[:, :, None] * low[:, None], q[:, :, None] * high[:, None]).sum(-1)
    torch.testing.assert_close(louis.scores(q), (bound / 8**0.5).softmax(-1).mean(1))
    assert (bound[:, :, :, None] >= torch.einsum("hrd,hpnd->hrpn", q, keys) - 1e-5).all()


def test_single_tokens_are_the_oracle(prefilled):
    budget, q = 9, prefilled.queries[1][:, :, -1]
    louis = Louis(prefilled.keys[1], prefilled.values[1], budget, LouisKV(budget, units="tokens", sinks=3, local=5), 0)
    chosen = louis.choose(louis.scores(q), budget)
    pool = prefilled.keys[1][:, 3:-5]
    weights = (q @ pool.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)
    assert torch.equal(chosen, weights.topk(budget).indices.sort(-1).values)


def test_a_group_shares_its_choice_and_the_last_unit_is_cut(prefilled):
    louis = Louis(prefilled.keys[0], prefilled.values[0], 10, LouisKV(10, units="pages", size=4, sinks=0, local=6), 0)
    scores = torch.tensor([[0.1, 0.9, 0.3] + [0.0] * 13, [0.0] * 14 + [0.2, 0.1]])
    assert louis.choose(scores, 10).tolist() == [[0, 1, *range(4, 12)], [0, 1, *range(56, 64)]]


@given(n=st.integers(1, 80), count=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_clusters_are_deterministic_and_blind_to_what_all_keys_share(n, count, seed):
    keys = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(seed))
    count = min(count, n)
    labels = clusters(keys, count)
    assert torch.equal(labels, clusters(keys, count))
    assert labels.shape == (2, n) and 0 <= int(labels.min()) <= int(labels.max()) < count
    assert partition(keys, LouisKV(size=16), prompt=True)[1] == -(-n // 16)


def test_clusters_find_directions_beside_a_large_common_mean():
    g = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(1, 3, 16, generator=g), dim=-1)
    truth = torch.arange(60) % 3
    keys = 20 + centres[:, truth] + 0.05 * torch.randn(1, 60, 16, generator=g)
    labels = clusters(keys, 3)[0]
    assert len({(a, b) for a, b in zip(truth.tolist(), labels.tolist(), strict=True)}) == 3


def test_overlap_of_fetches_is_their_jaccard_similarity():
    louis = layer(LouisKV(4, sinks=0, local=2), n=22)
    assert louis.numbers == {"overlap": 0.0, "fetched_again": 0}
    for chosen in ([0, 1, 2, 3], [0, 1, 2, 3], [2, 3, 4, 5], [9]):
        louis.fetch(torch.tensor([chosen, chosen]))
    assert louis.numbers["fetched_again"] == 3 and louis.numbers["overlap"] == pytest.approx(1 + 2 / 6 + 0)


def test_two_runs_are_the_same(tiny, ids, prefilled):
    for units in ("clusters", "random"):
        first, second = (held(LouisKV(12, 0.5, units=units, local=8), prefilled, tiny) for _ in range(2))
        assert torch.equal(first.extend(ids[T:]), second.extend(ids[T:]))


def test_what_is_held_leaves_the_pool_out(tiny, ids, prefilled):
    context = held(LouisKV(8, -1.0, local=8), prefilled, tiny)
    before = context.nbytes()
    assert before < 0.6 * prefilled.nbytes
    context.extend(ids[T : T + 1])
    louis = context.layers[0]
    assert louis.fetched.shape[2] == 8 and louis.moved == louis.fetched.numel() * 2
    assert sum(len(each.sinks[0, 0]) + each.fetched.shape[2] + each.count for each in context.layers) == 2 * (4 + 17)


def test_tau_is_calibrated_to_a_rate(tiny, ids):
    taus = [calibrate(tiny.decoder, [ids, ids.flip(0)], rate, 20) for rate in (0.0, 0.25, 0.9)]
    assert taus == sorted(taus) and taus[0] >= -1 and taus[-1] <= 1
    queries = prefill(tiny.decoder, ids).queries
    r = torch.stack([similarity(q[:, :, 19:-1], q[:, :, 20:]) for q in queries])
    tau = calibrate(tiny.decoder, [ids], 0.25, 20)
    assert abs(float((r < tau).float().mean()) - 0.25) < 0.02


def test_wrong_settings_are_refused():
    for wrong in ({"units": "words"}, {"budget": 0}, {"stride": -1}, {"local": 0}):
        with pytest.raises(UserError, match="louiskv"):
            LouisKV(**wrong)
