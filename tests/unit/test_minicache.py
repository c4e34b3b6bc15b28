"""MiniCache: directions on the sphere, lengths, what is retained, and pairs of layers that share a store."""

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.full import Full
from parsimony.methods.kv_cache.held import Held, prefill
from parsimony.methods.kv_cache.minicache import Merged, MiniCache, Pair, angles, slerp
from parsimony.models.decoder import Decoder
from parsimony.models.language import Language

T = 70
seeds = st.integers(0, 99)
parts = st.floats(0, 1)


def states(seed=0, H=2, n=40, d=8, near=0.0):
    """Keys and values of two layers, [2, 2, H, n, d]; ``near`` 1: the upper is a multiple of the lower."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 2, H, n, d, generator=g)
    x[:, 1] = torch.lerp(x[:, 1], x[:, 0], near)
    return (x * torch.tensor([1.0, 2.5])[:, None, None, None]).half().float()


def restored(pair, place):
    q = torch.zeros(pair.limit.shape[1], 1, 8)
    return torch.stack(Merged(pair, place).seen(q, 0)[:2])


@given(seed=seeds, t=parts, near=st.floats(-1, 1))
@settings(max_examples=60, deadline=None)
def test_directions_lie_on_the_way_from_one_layer_to_the_other(seed, t, near):
    x = states(seed, near=near).double()
    lower, upper = x[:, 0], x[:, 1]
    e, omega = slerp(lower, upper, t), angles(lower, upper)
    torch.testing.assert_close(e.norm(dim=-1), torch.ones(2, 2, 40).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close((e * F.normalize(upper, dim=-1)).sum(-1), ((1 - t) * omega).cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close((e * F.normalize(lower, dim=-1)).sum(-1), (t * omega).cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(slerp(upper, lower, 1 - t), e, atol=1e-6, rtol=0)


def test_the_ends_of_the_way_are_the_layers_own_directions():
    lower, upper = states().unbind(1)
    torch.testing.assert_close(slerp(lower, upper, 0.0), F.normalize(lower, dim=-1))
    torch.testing.assert_close(slerp(lower, upper, 1.0), F.normalize(upper, dim=-1))


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, 0.0])
def test_equal_opposite_and_missing_directions_are_finite(factor):
    x = states()[:, 0]
    e = slerp(x, factor * x, 0.6)
    assert e.isfinite().all() and angles(x, factor * x).isfinite().all()
    torch.testing.assert_close(e, (1 if factor >= 0 else -1) * F.normalize(x, dim=-1), atol=1e-3, rtol=0)


@given(seed=seeds, t=parts)
@settings(max_examples=20, deadline=None)
def test_a_multiple_of_the_other_layer_is_restored_exactly(seed, t):
    x = states(seed, near=1.0)
    pair = Pair(x, MiniCache(t=t, gamma=0.0))
    for place in (0, 1):
        torch.testing.assert_close(restored(pair, place), x[:, place], atol=5e-3, rtol=5e-3)


@given(seed=seeds, t=parts, gamma=st.floats(0.01, 1), retain=st.sampled_from(["threshold", "share"]))
@settings(max_examples=40, deadline=None)
def test_retained_tokens_are_exact_and_lengths_are_kept(seed, t, gamma, retain):
    x = states(seed)
    pair = Pair(x, MiniCache(t=t, gamma=gamma, retain=retain))
    d = angles(x[:, 0], x[:, 1])
    for kind in range(2):
        at = pair.retained[kind][0]
        apart = torch.zeros(2, 40, dtype=torch.bool)
        apart[at % 2, at // 2] = True
        for head in range(2):  # those that differ most, and counts differ between heads
            kept, merged = d[kind, head][apart[head]], d[kind, head][~apart[head]]
            if len(merged):
                assert kept.min() >= merged.max()
            if retain == "share":
                assert len(kept) == math.ceil(gamma * 40)
            else:
                least, most = d[kind, head].min(), d[kind, head].max()
                assert torch.equal(apart[head], d[kind, head] > most - gamma * (most - least))
        for place in (0, 1):
            found = restored(pair, place)[kind]
            assert torch.equal(found[apart], x[kind, place][apart])
            torch.testing.assert_close(found.norm(dim=-1), x[kind, place].norm(dim=-1), atol=1e-2, rtol=5e-3)


@given(seed=seeds, t=parts, retain=st.sampled_from(["threshold", "share"]))
@settings(max_examples=20, deadline=None)
def test_retaining_more_never_loses_more(seed, t, retain):
    x, errors = states(seed), []
    for gamma in (0.0, 0.05, 0.2, 0.5, 0.9, 1.0):
        pair = Pair(x, MiniCache(t=t, gamma=gamma, retain=retain))
        errors.append(float(sum((restored(pair, place) - x[:, place]).square().sum() for place in (0, 1))))
    assert all(more <= less * (1 + 1e-6) + 1e-6 for less, more in zip(errors, errors[1:], strict=False))
    assert retain == "threshold" or errors[-1] == 0


def test_averaging_and_copying_hold_one_vector_for_both_layers():
    x = states()
    for t, expected in ((0.5, x.mean(1)), (0.0, x[:, 0])):
        pair = Pair(x, MiniCache(merge="linear", t=t, gamma=0.0))
        for place in (0, 1):
            torch.testing.assert_close(restored(pair, place), expected, atol=2e-3, rtol=2e-3)
        assert pair.lengths is None


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(2, 290, T + 30))


def network(tiny, tied=False) -> Language:
    """A random network of 6 layers that write little; ``tied``: adjacent ones project keys and values alike."""
    c = replace(tiny.decoder.config, layers=6, windows=(None,) * 6)
    H, G, D = c.heads * c.width, c.kv_heads * c.width, c.hidden
    shapes = {"q_proj": (H, D), "k_proj": (G, D), "v_proj": (G, D), "o_proj": (D, H), "gate_proj": (64, D),
              "up_proj": (64, D), "down_proj": (D, 64), "embed_tokens": (c.vocabulary, D)}  # fmt: skip

    def weights(name: str):
        kind = name.split(".")[-2]
        if "norm" in kind:
            return None if kind in ("q_norm", "k_norm") else torch.ones(D)
        if name.endswith("bias") or kind not in shapes:
            return None
        if tied and kind in ("k_proj", "v_proj"):
            name = kind
        g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.randn(*shapes[kind], generator=g) * (0.01 if kind in ("o_proj", "down_proj") else 0.2)

    return replace(tiny, decoder=Decoder(c, weights, torch.float32))


@pytest.fixture(scope="module")
def deep(tiny):
    return network(tiny)


@pytest.fixture(scope="module")
def prefilled(deep, ids):
    return prefill(deep.decoder, ids[:T])


def test_pairs_go_up_from_the_middle():
    assert MiniCache().merged(30) == [15, 17, 19, 21, 23, 25, 27]
    assert MiniCache(start=-2).merged(30) == [28] and MiniCache(start=-8).merged(30) == [22, 24, 26, 28]
    assert MiniCache(start=0, pairs=2).merged(30) == [0, 2] and MiniCache().merged(2) == []


def test_layers_that_are_not_merged_are_the_full_caches(deep, prefilled):
    layers, full = MiniCache(start=-2).hold(prefilled), Full().build(deep, Inputs()).hold(prefilled)[0].layers
    assert [type(held) for held in layers] == [Held] * 4 + [Merged] * 2
    assert all(torch.equal(a.buffer, b.buffer) for a, b in zip(layers[:4], full[:4], strict=True))


@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_bytes_follow_the_formula_and_shared_ones_count_once(deep, prefilled, gamma):
    H, d = prefilled.keys.shape[1], prefilled.keys.shape[3]
    context = MiniCache(start=2, gamma=gamma, retain="share").build(deep, Inputs()).hold(prefilled)[0]
    plain, retained = 2 * H * T * d * 2, math.ceil(gamma * T)
    side = 2 * (H * T * 2 * 2 + H * retained * (2 * d * 2 + 4) + H * 4)  # lengths, retained and their index, limits
    assert context.nbytes() == 2 * plain + 2 * (plain + side)
    halves = MiniCache(start=2, merge="linear", t=0.5, gamma=0.0).build(deep, Inputs()).hold(prefilled)[0]
    assert halves.nbytes() == prefilled.nbytes * 4 // 6 + 2 * 2 * H * 4


SETTINGS = {
    "slerp": {}, "share": {"retain": "share", "gamma": 0.2}, "mean": {"merge": "linear", "t": 0.5, "gamma": 0.0},
    "codes": {"bits": 4, "group": 8, "residual": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_attention_is_that_over_the_restored_cache(prefilled, name):
    lower, upper = MiniCache(start=-2, **SETTINGS[name]).hold(prefilled)[-2:]
    q = torch.randn(2, 2, 8)
    for n in range(20):
        for held in (lower, upper):
            held.append(torch.randn(2, 8), torch.randn(2, 8))
            y, weights = held.attend(q, T + n)
            assert weights.shape[-1] == T + n + 1
            torch.testing.assert_close((y, weights), Held.attend(held, q, T + n), atol=1e-4, rtol=1e-4)
            held.watch(q, weights)


def test_decoded_tokens_are_exact_until_the_upper_layer_has_them_too(prefilled):
    settings = MiniCache(start=-2, gamma=0.2, retain="share")
    lower, upper = settings.hold(prefilled)[-2:]
    pair, q = lower.pair, torch.zeros(2, 2, 8)
    new = torch.randn(2, 2, 30, 2, 8, generator=torch.Generator().manual_seed(0)).half()  # kind, layer, token, head
    for n in range(30):
        for place, held in enumerate((lower, upper)):
            held.append(*new[:, place, n])
            keys, values, _ = held.seen(q, T + n)
            assert torch.equal(keys[:, -1].half(), new[0, place, n])
            assert torch.equal(values[:, -1].half(), new[1, place, n])
            held.watch(q, torch.zeros(2, 2, T + n + 1))
    # Merged one by one they are what they are together, retained by the angle that the prompt came to.
    x = new.permute(0, 1, 3, 2, 4).float()
    later = angles(x[:, 0], x[:, 1]) > pair.limit
    whole = torch.cat((torch.stack((prefilled.keys[-2:], prefilled.values[-2:])), x), 3)
    expected = slerp(whole[:, 0], whole[:, 1], 0.6)[:, None] * whole.norm(dim=-1, keepdim=True)
    for kind, (at, _) in enumerate(pair.retained):
        token, head = at // 2, at % 2
        assert int((token >= T).sum()) == int(later[kind].sum())
        expected[kind][:, head, token] = whole[kind][:, head, token]
    for place, held in enumerate((lower, upper)):
        found = torch.stack(held.seen(q, T + 30)[:2])
        torch.testing.assert_close(found, expected[:, place], atol=5e-3, rtol=5e-3)
    assert len(pair.new) == 0


@pytest.mark.parametrize("name", SETTINGS)
def test_a_context_goes_on_over_merged_layers(deep, ids, prefilled, name):
    context = MiniCache(**SETTINGS[name]).build(deep, Inputs()).hold(prefilled)[0]
    full = Full().build(deep, Inputs()).hold(prefilled)[0]
    assert context.extend(ids[T:]).isfinite().all() and len(context) == len(ids)
    full.extend(ids[T:])
    assert context.nbytes() < full.nbytes()
    keys = [held.seen(torch.zeros(2, 2, 8), 0)[0] for held in context.layers]
    assert all(each.shape == (2, len(ids), 8) for each in keys)


def test_codes_hold_directions_and_layers_that_are_not_merged(deep, prefilled):
    half, codes = (MiniCache(bits=bits, group=8, residual=16).build(deep, Inputs()).hold(prefilled)[0].nbytes()
                   for bits in (None, 4))  # fmt: skip
    assert codes < 0.7 * half  # groups of 8 cost 4 bits an element more


def test_alike_layers_lose_little_and_others_much(tiny, ids):
    """The premise by construction: same projections of states that hardly change; and without it."""
    lost = []
    for tied in (True, False):
        prefilled = prefill(network(tiny, tied).decoder, ids[:T])
        x = torch.stack((prefilled.keys[-2:], prefilled.values[-2:]))
        cosine = angles(x[:, 0], x[:, 1]).cos().mean()
        assert cosine > 0.95 if tied else abs(cosine) < 0.3
        layers = MiniCache(start=-2, gamma=0.0).hold(prefilled)[-2:]
        found = torch.stack([torch.stack(held.seen(torch.zeros(2, 2, 8), T)[:2]) for held in layers], 1)
        lost.append(float((found - x).norm() / x.norm()))
    assert lost[0] < 0.2 and lost[1] > 0.5


def test_wrong_params_say_what_is_wrong():
    for params in ({"merge": "sum"}, {"retain": "all"}, {"t": 1.5}, {"gamma": -0.1}):
        with pytest.raises(UserError, match="minicache: .*mend its params"):
            MiniCache(**params)
