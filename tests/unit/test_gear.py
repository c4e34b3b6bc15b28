"""GEAR: a base quantiser, outliers that stay as they were, and a low-rank matrix of what error is left."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.gear import Block, Gear, heads, power_iteration, singular, vectors
from parsimony.methods.kv_cache.held import Held, prefill
from parsimony.methods.kv_cache.quantise import Codes

PLAIN = {"sparse": 0.0, "rank": 0, "chunk_rank": 0}
BACKBONES = {"kivi": {"group": 8, "gap": 16}, "kcvt": {"backbone": "kcvt", "gap": 20}}


def cache(H=3, n=64, d=16, seed=0):
    """x [H, n, d] in half precision, whose channels differ in offset and spread, with outliers."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(H, n, d, generator=g) * torch.rand(H, 1, d, generator=g) + 3 * torch.randn(H, 1, d, generator=g)
    return torch.where(torch.rand(H, n, d, generator=g) < 0.02, 4 * x, x).half().float()


def block(x, kind="keys", r=4, **params):
    return Block.of(x, kind, r, Gear(**BACKBONES["kivi"] | params))


def error(x, **params) -> float:
    return sum(float((block(x, kind, **params).restore() - x).norm()) for kind in ("keys", "values"))


@given(n=st.integers(1, 40), d=st.integers(1, 16), rounds=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_factors_of_full_rank_leave_nothing(n, d, rounds, seed):
    E = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed))
    r = min(n, d)
    for A, P in (power_iteration(E, r, rounds), singular(E, r)):
        torch.testing.assert_close(A @ P.mT, E, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_full_rank_makes_up_for_all_that_codes_lose(backbone):
    x = cache(n=80)
    for kind in ("keys", "values"):
        for sparse in (0.0, 0.1):
            found = Block.of(x, kind, 16, Gear(**BACKBONES[backbone], sparse=sparse)).restore()
            torch.testing.assert_close(found, x, atol=1e-2, rtol=1e-2)  # factors are held in half precision


@given(seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_best_factors_never_lose_by_a_higher_rank(seed):
    x = cache(seed=seed)
    errors = [error(x, r=r, exact=True, sparse=0.0) for r in (0, 1, 2, 4, 8, 16)]
    assert all(more <= less * (1 + 1e-3) for less, more in zip(errors, errors[1:], strict=False))


def test_errors_fall_with_bits_outliers_and_rank_on_average():
    def mean(**params):
        return np.mean([error(cache(seed=seed), **params) for seed in range(12)])

    for name, values in {"r": (0, 2, 4, 8), "sparse": (0.0, 0.04, 0.16)}.items():
        errors = [mean(**{name: value}) for value in values]
        assert errors == sorted(errors, reverse=True), name
    errors = [mean(key_bits=bits, value_bits=bits) for bits in (1, 2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True)


@given(seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_power_iteration_comes_near_the_best_factors(seed):
    """Quantisation errors have no low rank, so that the tail is long; three rounds find most of what there is."""
    x = cache(n=512, d=64, seed=seed)
    E = x - block(x, r=0, sparse=0.0).restore()
    A, P = power_iteration(E, 4)
    best, Q = singular(E, 4)
    found, tail = (E - A @ P.mT).norm(dim=(1, 2)), (E - best @ Q.mT).norm(dim=(1, 2))
    assert (found >= tail * (1 - 1e-5)).all() and (found <= 1.05 * tail).all()


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_without_corrections_it_is_the_base_quantiser_bit_for_bit(kind):
    x = cache()
    found = block(x, kind, 0, sparse=0.0)
    base = Codes.of(x, 2, 1 if kind == "keys" else 2, 8)
    assert all(torch.equal(a, b) for a, b in zip(found.codes.tensors(), base.tensors(), strict=True))
    assert torch.equal(found.restore(), base.restore())
    coarse = Block.of(x, kind, 0, Gear(**BACKBONES["kcvt"], sparse=0.0)).restore()
    rows = vectors(x, "channel" if kind == "keys" else "token")
    torch.testing.assert_close(
        vectors(coarse, "channel" if kind == "keys" else "token"), Codes.of(rows, 2, 1, rows.shape[1]).restore()
    )


@pytest.mark.parametrize("backbone", BACKBONES)
@given(kind=st.sampled_from(["keys", "values"]), r=st.sampled_from([0, 4]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_extreme_entries_of_every_vector_come_out_as_they_were(backbone, kind, r, seed):
    x, per = cache(n=80, seed=seed), "channel" if kind == "keys" else "token"
    found = Block.of(x, kind, r, Gear(**BACKBONES[backbone], sparse=0.1))
    rows, restored = vectors(x, per), vectors(found.restore(), per)
    k = round(0.05 * rows.shape[1])
    assert found.at.shape == (len(rows), 2 * k) and found.at.dtype == torch.uint8
    at = found.at.long()
    exact = {"atol": 0, "rtol": 0} if r == 0 else {"atol": 4e-3, "rtol": 1e-3}
    torch.testing.assert_close(restored.gather(1, at), rows.gather(1, at), **exact)
    rest = rows.scatter(1, at, torch.nan)
    for extreme in (rows.gather(1, at).amin(1) <= rest.nan_to_num(torch.inf).amin(1),
                    rows.gather(1, at).amax(1) >= rest.nan_to_num(-torch.inf).amax(1)):  # fmt: skip
        assert extreme.all()


def test_the_mean_of_a_vector_stands_where_outliers_were():
    """A channel far from zero keeps its narrow range; with zero in it, two bits would be steps of ten."""
    x = 30 + cache(1, 64, 4) / 10
    x[0, 5] = 300
    found = Block.of(x, "keys", 0, Gear(group=64, sparse=4 / 64)).restore()
    assert (found - x).abs().max() < 1


def test_heads_and_sequences_do_not_share_anything():
    x = cache()
    together = block(x, sparse=0.1).restore()
    for h in range(3):
        torch.testing.assert_close(block(x[h : h + 1], sparse=0.1).restore()[0], together[h], atol=1e-3, rtol=1e-3)
    assert torch.equal(heads(vectors(x, "token"), "token", 3), x)
    assert torch.equal(heads(vectors(x, "channel"), "channel", 3), x)


@given(H=st.integers(1, 3), n=st.sampled_from([16, 64, 320]), r=st.integers(0, 8), bits=st.sampled_from([2, 4]),
       s=st.sampled_from([0.0, 0.02, 0.2]))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_bytes_are_codes_scales_factors_and_outliers(H, n, r, bits, s):
    for kind in ("keys", "values"):
        d = 16
        found = block(cache(H, n, d), kind, r, sparse=s, key_bits=bits, value_bits=bits)
        vector, count = (n, H * d) if kind == "keys" else (H * d, n)
        nonzero = count * 2 * round(s / 2 * vector)
        elements, index = H * n * d, 8 if vector <= 256 else 16
        expected = elements * bits + 2 * 16 * elements / 8 + H * min(r, n, d) * (n + d) * 16 + nonzero * (16 + index)
        assert sum(t.numel() * t.element_size() for t in found.tensors()) * 8 == expected


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(2, 290, 110))


@pytest.fixture(scope="module")
def prefilled(tiny, ids):
    return prefill(tiny.decoder, ids[:70])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_attention_is_that_over_the_restored_cache(prefilled, backbone):
    for held in Gear(**BACKBONES[backbone], sparse=0.1).hold(prefilled):
        for _ in range(25):
            held.append(torch.randn(2, 8), torch.randn(2, 8))
        q = torch.randn(2, 2, 8)
        y, weights = held.attend(q, 95)
        expected = Held.attend(held, q, 95)
        torch.testing.assert_close((y, weights), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_chunks_are_compressed_once_with_a_rank_of_their_own(tiny, ids, prefilled, backbone):
    settings = Gear(**BACKBONES[backbone], key_bits=4, value_bits=4, sparse=0.1, rank=3, chunk_rank=1)
    context = settings.build(tiny, Inputs()).hold(prefilled)[0]
    layer, gap = context.layers[0], settings.gap
    first = layer.blocks["keys"][0]
    assert first.A.shape == (2, 70 - 70 % gap, 3) and layer.rest["keys"].shape[1] == 70 % gap
    before = [tensor.clone() for tensor in first.tensors()]
    logits = context.extend(ids[70:])
    assert all(torch.equal(a, b) for a, b in zip(before, layer.blocks["keys"][0].tensors(), strict=True))
    for kind in ("keys", "values"):
        assert [each.A.shape[1:] for each in layer.blocks[kind][1:]] == [(gap, 1)] * (110 // gap - 70 // gap)
        assert layer.rest[kind].shape[1] == 110 % gap
    assert sum(held.seen(torch.zeros(2, 2, 8), 0)[0].shape[1] for held in context.layers) == 220
    whole = Gear(**BACKBONES[backbone], key_bits=8, value_bits=8, rank=8).build(tiny, Inputs()).hold(prefilled)[0]
    exact = tiny.decoder.forward(ids[None], tiny.decoder.cache(110))[0, 70:]
    near, far = (whole.extend(ids[70:]) - exact).abs().mean(), (logits - exact).abs().mean()
    assert near < 0.05 and near < far


def test_each_correction_makes_two_bits_better_on_the_way_to_attention(tiny, prefilled):
    def lost(**params):
        layers = Gear(**BACKBONES["kivi"] | params).hold(prefilled)
        pairs = zip(layers, prefilled.keys, strict=True)
        return float(sum((held.seen(keys, 0)[0] - keys).norm() for held, keys in pairs))

    base, lowrank, both = lost(**PLAIN), lost(sparse=0.0), lost(sparse=0.1)
    assert both < lowrank < base and lost(sparse=0.1, rank=0) < base


def test_wrong_params_say_what_is_wrong():
    for params in ({"backbone": "int4"}, {"sparse": 2.0}, {"gap": 40}):
        with pytest.raises(UserError, match="gear: .*mend its params"):
            Gear(**params)
