"""EMS: fixed slots a head, merging as one scatter, and what a merged slot is worth in attention."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.budget import entries
from parsimony.methods.kv_cache.ems import EMS, Slots, cosines
from parsimony.methods.kv_cache.eviction import RandomEviction, SnapKV
from parsimony.methods.kv_cache.held import HALF, Held, prefill
from parsimony.methods.kv_cache.scores import best, received

T, H, R, D = 70, 2, 2, 8


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(2, 290, T + 40))


@pytest.fixture(scope="module")
def prefilled(tiny, ids):
    return prefill(tiny.decoder, ids[:T])


def context(method, prefilled, model):
    return method.build(model, Inputs()).hold(prefilled)[0]


def slots(decoder=None, n=24, M=12, w=4, seed=0, keys=None, values=None, **options) -> Slots:
    """A layer of random tensors, or of those given."""
    rng = torch.Generator().manual_seed(seed)
    keys = torch.randn(H, n, D, generator=rng) if keys is None else keys
    values = torch.randn(H, n, D, generator=rng) if values is None else values
    glo, loc = torch.rand(2, H, n, generator=rng)
    return Slots(keys, values, glo, loc, M, w, EMS(M, "tokens", w, **options), decoder)


POINTS = {
    "paper": {},
    "lowest": {"overflow": "lowest"},
    "no_zero": {"threshold": -1.0},
    "evict": {"threshold": 2.0},
    "moved": {"merged_keys": "moved", "threshold": 0.1},
    "stored": {"merged_keys": "stored", "threshold": 0.1},
    "observer_sum": {"per_observer": True, "combine": "sum"},
}


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("budget", [5, 12, 40])
def test_every_head_has_m_slots_at_every_step_and_no_slot_is_the_zero_centre(tiny, ids, prefilled, name, budget):
    held = context(EMS(budget, "tokens", window=8, **POINTS[name]), prefilled, tiny)
    for n, token in enumerate(ids[T:]):
        for layer in held.layers:
            keys, values, bias = layer.seen(torch.zeros(H, R, D), T + n)
            assert keys.shape == values.shape == (H, budget, D) and bias.shape == (H, budget)
            assert (bias >= 0).all() and torch.isfinite(keys).all() and torch.isfinite(values).all()
            # Positions ascend, the window is the last tokens, and no token is counted twice.
            at, members = layer.marks[0], layer.marks[3]
            assert (at.diff(dim=1) > 0).all()
            w = min(8, budget)
            assert torch.equal(at[:, -w:], torch.arange(T + n - w, T + n).expand(H, -1).float())
            assert (members[:, -w:] == 1).all() and (members.sum(1) <= T + n).all()
        logits = held.extend(token[None])
    assert torch.isfinite(logits).all() and len(held) == len(ids)
    elements = 2 * 2 * H * budget * D
    assert held.nbytes() == elements * HALF.itemsize + 2 * 4 * H * budget * 4


def test_the_whole_budget_is_the_full_cache(tiny, ids, prefilled):
    for layer, keys, values in zip(
        context(EMS(1.0), prefilled, tiny).layers, prefilled.keys, prefilled.values, strict=True
    ):
        q = torch.randn(H, R, D)
        for ours, full in zip(layer.attend(q, T), Held(keys, values).attend(q, T), strict=True):
            torch.testing.assert_close(ours, full)


@pytest.mark.parametrize("options", [{"mass": 0.0}, {"threshold": 1.01}])
@pytest.mark.parametrize("combine", ["max", "sum", "global", "local"])
def test_without_tokens_to_merge_it_is_eviction_by_the_score(tiny, prefilled, options, combine):
    held = context(EMS(20, "tokens", 6, combine=combine, **options), prefilled, tiny)
    for n, layer in enumerate(held.layers):
        loc, glo = received(prefilled, n, T - 6)[:, : T - 6], received(prefilled, n)[:, : T - 6]
        glo = glo * loc.mean(1, keepdim=True) / glo.mean(1, keepdim=True)
        s = {"max": torch.maximum(glo, loc), "sum": glo + loc, "global": glo, "local": loc}[combine]
        expected = Held(prefilled.keys[n], prefilled.values[n])
        expected.keep(torch.cat((best(s, 14), torch.arange(T - 6, T).expand(H, -1)), 1))
        assert torch.equal(layer.keys, expected.keys) and torch.equal(layer.values, expected.values)
        assert (layer.marks[3] == 1).all()


def test_the_local_score_alone_without_merging_is_snapkv_without_pooling(tiny, prefilled):
    ours = context(EMS(20, "tokens", 6, combine="local", mass=0.0), prefilled, tiny)
    theirs = context(SnapKV(20, "tokens", window=6, kernel=1), prefilled, tiny)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


def test_the_score_per_observer_is_the_mean_attention_of_those_that_see_a_token(tiny, prefilled):
    held = context(EMS(1.0, combine="global", per_observer=True), prefilled, tiny)
    for n, layer in enumerate(held.layers):
        mean = received(prefilled, n) / torch.arange(T, 0, -1)
        s = layer.scores(T)
        torch.testing.assert_close(s / s.sum(1, keepdim=True), mean / mean.sum(1, keepdim=True))


@given(seed=st.integers(0, 99), M=st.integers(5, 20), threshold=st.sampled_from([-1.0, 0.05, 0.3]))
@settings(max_examples=60, deadline=None)
def test_merged_values_are_the_weighted_means_of_their_members(seed, M, threshold):
    """Against a loop over tokens; weights are scores, so each value lies in its members' convex hull."""
    n, w = 24, 4
    before = slots(n=n, M=n, w=w, seed=seed)
    after = slots(n=n, M=M, w=w, seed=seed, threshold=threshold)
    s, K, V = before.scores(n - w), before.keys.float(), before.values.float()
    for h in range(H):
        ranked = sorted(range(n - w), key=lambda j: -float(s[h, j]))
        centres, members = sorted(ranked[: M - w]), {c: [c] for c in ranked[: M - w]}
        kept = float(s[h, ranked[: M - w]].sum())
        for x in ranked[M - w :]:
            if kept < 0.95 * float(s[h].sum()):
                of_k, of_v = (cosines(part[h, None, [x]], part[h, None, centres])[0, 0] for part in (K, V))
                near = of_k * of_v
                if near.max() >= threshold:
                    members[centres[int(near.argmax())]].append(x)
            kept += float(s[h, x])
        for slot, c in enumerate(centres):
            weight = s[h, members[c]] / s[h, members[c]].sum()
            torch.testing.assert_close(after.values[h, slot].float(), weight @ V[h, members[c]], atol=4e-3, rtol=4e-3)
            assert torch.equal(after.keys[h, slot], before.keys[h, c]) and after.marks[3, h, slot] == len(members[c])


def test_global_scores_keep_the_most_attention_and_the_maximum_more_than_chance(tiny, prefilled):
    def mass(method, n) -> torch.Tensor:
        layer = context(method, prefilled, tiny).layers[n]
        kept = (layer.keys[:, :, None] == prefilled.keys[n].to(HALF)[:, None]).all(-1).any(1)  # [H, T]
        return (received(prefilled, n) * kept).sum(1)

    for n in range(2):
        chance = mass(RandomEviction(20, "tokens", window=6), n)
        assert (mass(EMS(20, "tokens", 6, combine="global"), n) >= chance).all()
        assert (mass(EMS(20, "tokens", 6), n) >= chance).all()


def twins(**options) -> tuple[Slots, torch.Tensor, torch.Tensor]:
    """Tokens of which 6 in front of the window are copies of the first 6, and what the full cache holds of them."""
    rng = torch.Generator().manual_seed(3)
    keys, values = torch.randn(2, H, 16, D, generator=rng).to(HALF).float()
    keys[:, 6:12], values[:, 6:12] = keys[:, :6], values[:, :6]
    glo = torch.rand(H, 16, generator=rng) + 1
    glo[:, :6] += 2  # so that one of each is a centre
    decoder = options.pop("decoder", None)
    layer = Slots(keys, values, glo, glo, 10, 4, EMS(10, "tokens", 4, mass=1.0, **options), decoder)
    return layer, keys, values


def test_copies_merge_without_error_only_if_they_count_as_several():
    q = torch.randn(H, R, D, generator=torch.Generator().manual_seed(4))
    exact, plain = twins(), twins(bias=False)
    full = Held(*exact[1:]).attend(q, 16)[0]
    assert (exact[0].marks[3, :, :6] == 2).all()
    torch.testing.assert_close(exact[0].attend(q, 16)[0], full, atol=2e-3, rtol=2e-3)
    assert (plain[0].attend(q, 16)[0] - full).abs().max() > 0.05


def test_copies_whose_keys_are_merged_stay_copies_and_opposites_are_not_similar():
    layer, keys, _ = twins(merged_keys="stored")
    torch.testing.assert_close(layer.keys[:, :6].float(), keys[:, :6], atol=2e-3, rtol=2e-3)
    x, c = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
    assert (cosines(x, c) * cosines(x, c)).tolist() == [[[0.0, 1.0]]]


def test_a_key_moved_to_its_centre_is_the_same_key_there(tiny):
    """The same unrotated key at two positions: merged at the centre's it is what stood there; mixed phases are not."""
    keys = torch.randn(H, 1, D, generator=torch.Generator().manual_seed(5)).expand(-1, 16, -1)
    turned = tiny.decoder.rope(keys[None], torch.arange(16)[None])[0]
    values = torch.ones(H, 16, D)
    glo = torch.ones(H, 16)
    glo[:, 3] = 5
    held = {
        how: Slots(turned, values, glo, glo, 5, 4, EMS(5, "tokens", 4, mass=1.0, threshold=-1, merged_keys=how),
                   tiny.decoder)
        for how in ("centre", "moved", "stored")
    }  # fmt: skip
    for how in ("centre", "moved"):
        torch.testing.assert_close(held[how].keys[:, 0].float(), turned[:, 3], atol=4e-3, rtol=4e-3)
    assert (held["stored"].keys[:, 0].float() - turned[:, 3]).abs().max() > 0.05
    assert held["moved"].marks[3, 0].tolist() == [12, 1, 1, 1, 1]


@pytest.mark.parametrize("overflow", ["oldest", "lowest"])
def test_the_token_that_leaves_the_window_is_merged_or_a_weaker_centre_is(overflow):
    layer = slots(n=24, M=12, w=4, threshold=2.0, overflow=overflow)
    oldest, new = layer.marks[0, 0, 8], torch.full((H, D), 2.0)
    layer.watch(torch.zeros(H, R, D), torch.nn.functional.one_hot(torch.tensor(8), 12).expand(H, R, -1) * 50.0)
    before = layer.marks[0].clone()
    layer.append(new, new)
    assert (oldest in layer.marks[0]) == (overflow == "lowest")
    if overflow == "oldest":
        assert torch.equal(layer.marks[0, :, :8], before[:, :8])
    assert torch.equal(layer.values[:, -1].float(), new) and layer.count == 12


def test_scores_go_on_online(tiny, ids, prefilled):
    """Global scores of slots that nothing was merged into are sums over all queries that saw them."""
    layer = slots(n=12, M=40, w=4)
    start, rows = layer.marks.clone(), []
    for n in range(6):
        layer.append(torch.zeros(H, D), torch.zeros(H, D))
        weights = torch.rand(H, R, 13 + n)
        layer.watch(torch.zeros(H, R, D), weights)
        rows.append(weights.mean(1))
    torch.testing.assert_close(layer.marks[1, :, :12], start[1] + sum(row[:, :12] for row in rows))
    faded = start[2]
    for row in rows:
        faded = faded * 0.75 + row[:, :12]
    torch.testing.assert_close(layer.marks[2, :, :12], faded)


def test_budgets_are_those_of_the_others_and_wrong_params_are_one_sentence(tiny, prefilled):
    for budget, unit in ((0.25, "ratio"), (30, "tokens"), (9000, "bytes")):
        layers = context(EMS(budget, unit), prefilled, tiny).layers
        assert [layer.count for layer in layers] == [entries(budget, unit, prefilled)] * 2
    for wrong in ({"combine": "mean"}, {"window": 0}, {"mass": 1.5}, {"merged_keys": "all"}, {"overflow": "all"}):
        with pytest.raises(UserError, match="mend its params"):
            EMS(0.25, **wrong)
