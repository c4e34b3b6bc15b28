"""Cache methods: what they hold of a prefilled context, how many bytes, and what attention then sees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.methods.kv_cache.budget import entries
from parsimony.methods.kv_cache.eviction import PyramidKV, RandomEviction, SnapKV
from parsimony.methods.kv_cache.full import Full
from parsimony.methods.kv_cache.h2o import H2O
from parsimony.methods.kv_cache.held import Abreast, Context, prefill
from parsimony.methods.kv_cache.kivi import Kivi
from parsimony.methods.kv_cache.quantise import Codes, joined, pack, unpack
from parsimony.methods.kv_cache.scores import received
from parsimony.methods.kv_cache.store import HostStore
from parsimony.methods.kv_cache.streaming_llm import StreamingLLM

T = 70


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(2, 290, T + 40))


@pytest.fixture(scope="module")
def prefilled(tiny, ids):
    return prefill(tiny.decoder, ids[:T])


def held(method, prefilled, model) -> Context:
    from parsimony.interfaces import Inputs

    return method.build(model, Inputs()).hold(prefilled)[0]


def exact(model, ids) -> torch.Tensor:
    """Logits [n, V] of the network behind every token."""
    return model.decoder.forward(ids[None], model.decoder.cache(len(ids)))[0]


@given(bits=st.integers(1, 8), n=st.integers(0, 200), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_codes_survive_packing(bits, n, seed):
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**bits, n).astype(np.uint8))
    packed = pack(codes, bits)
    assert len(packed) == -(-n * bits // 8) or 8 % bits == 0 and len(packed) == -(-n // (8 // bits))
    assert torch.equal(unpack(packed, bits, n), codes)


@given(bits=st.integers(1, 8), axis=st.integers(0, 2), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_no_value_is_off_by_more_than_half_a_step(bits, axis, seed):
    x = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    codes = Codes.of(x, bits, axis, 4)
    step = codes.scale.float().repeat_interleave(4, axis)
    assert ((codes.restore() - x).abs() <= 0.5 * step + 0.01).all()
    assert sum(t.numel() * t.element_size() for t in codes.tensors()) == 512 * bits // 8 + 2 * 2 * 128
    constant = Codes.of(torch.full((2, 4, 4), 0.5), bits, axis, 4)
    assert torch.equal(constant.restore(), torch.full((2, 4, 4), 0.5))


def test_blocks_joined_are_the_same_codes():
    x = torch.randn(2, 6, 8)
    parts = [Codes.of(x[:, n : n + 1], 3, 2, 4) for n in range(6)]
    assert torch.equal(joined(parts, 1).restore(), torch.cat([part.restore() for part in parts], 1))
    with pytest.raises(UserError, match="groups divide"):
        Codes.of(x, 2, 1, 4)


def test_the_prefill_is_the_networks_own(tiny, ids, prefilled):
    cache = tiny.decoder.cache(T)
    logits = tiny.decoder.prefill(ids[None, :T], cache, want="all")[0]
    torch.testing.assert_close(prefilled.logits, logits[-1])
    weights = []
    tiny.decoder.forward(ids[None, :T], tiny.decoder.cache(T), attention=weights)
    for layer, w in enumerate(weights):
        torch.testing.assert_close(prefilled.keys[layer], cache.keys(layer)[0])
        H = prefilled.keys.shape[1]
        torch.testing.assert_close(received(prefilled, layer), w[0].view(H, -1, T, T).mean(1).sum(1))


def test_the_full_cache_goes_on_as_the_network_does(tiny, ids, prefilled):
    context = held(Full(), prefilled, tiny)
    torch.testing.assert_close(context.extend(ids[T:]), exact(tiny, ids)[T:], atol=2e-2, rtol=2e-2)
    assert context.nbytes() == prefilled.nbytes * len(ids) // T and len(context) == len(ids)


def test_the_full_cache_generates_what_greedy_decoding_does(tiny, ids):
    from parsimony.interfaces import Inputs

    rng = np.random.default_rng(0)
    for n in (1, 9, 30):
        expected = VerifyLoop(tiny).generate(ids[:n], 12, rng)
        found = Full().build(tiny, Inputs()).generate(ids[:n], 12, rng)
        assert found.tokens.tolist() == expected.tokens.tolist()


EVICTING = {
    "snapkv": lambda budget: SnapKV(budget, window=8),
    "snapkv_max": lambda budget: SnapKV(budget, window=8, kernel=7, pooling="max"),
    "random": lambda budget: RandomEviction(budget, window=8),
    "h2o": lambda budget: H2O(budget),
    "streaming_cache": lambda budget: StreamingLLM(budget),
    "streaming_text": lambda budget: StreamingLLM(budget, positions="text"),
}


@pytest.mark.parametrize("name", EVICTING)
def test_budgets_hold_at_every_step_and_the_whole_context_is_the_full_cache(tiny, ids, prefilled, name):
    whole, full = held(EVICTING[name](1.0), prefilled, tiny), held(Full(), prefilled, tiny)
    if not name.startswith(("h2o", "streaming")):  # those go on evicting
        torch.testing.assert_close(whole.extend(ids[T:]), full.extend(ids[T:]))
    else:
        assert [layer.count for layer in whole.layers] == [T, T]
    context = held(EVICTING[name](0.25), prefilled, tiny)
    C = entries(0.25, "ratio", prefilled)
    for n, token in enumerate(ids[T:]):
        grown = n if name.startswith(("snapkv", "random")) else 0
        assert [layer.count for layer in context.layers] == [C + grown] * 2
        context.extend(token[None])
    assert len(context) == len(ids)


def test_contexts_go_on_abreast_as_each_does_alone(tiny, ids, prefilled):
    methods = [Full(), Kivi(), *(make(0.25) for make in EVICTING.values())]
    alone, together = ([held(method, prefilled, tiny) for method in methods] for _ in range(2))
    abreast = Abreast(together)
    logits = torch.cat((abreast.extend(ids[T : T + 20]), abreast.extend(ids[T + 20 :])), 1)
    for n, context in enumerate(alone):
        torch.testing.assert_close(logits[n], context.extend(ids[T:]), atol=2e-4, rtol=2e-4)
        assert len(together[n]) == len(ids) and together[n].nbytes() == context.nbytes()
        torch.testing.assert_close(together[n].logits, context.logits, atol=2e-4, rtol=2e-4)
    assert abreast.extend(ids[:0]).shape == (len(methods), 0, 300)
    fresh = Abreast([held(method, prefilled, tiny) for method in methods])
    scores = fresh.score(ids[T : T + 5])
    assert torch.equal(scores[:, 0], prefilled.logits.expand(len(methods), -1))
    torch.testing.assert_close(scores[:, 1:], logits[:, :4])


def test_snapkv_keeps_its_window_and_what_the_window_looks_at(prefilled, tiny):
    context = held(SnapKV(20, "tokens", window=6, kernel=1), prefilled, tiny)
    for n, layer in enumerate(context.layers):
        scores = received(prefilled, n, T - 6)[:, : T - 6]
        for head in range(scores.shape[0]):
            kept = sorted(scores[head].topk(14).indices.tolist()) + list(range(T - 6, T))
            torch.testing.assert_close(layer.keys[head].float(), prefilled.keys[n][head, kept], atol=1e-2, rtol=1e-2)


def test_pyramid_gives_lower_layers_more_and_the_mean_is_the_budget(prefilled, tiny):
    for budget in (12, 24, 40, 64):
        counts = [layer.count for layer in held(PyramidKV(budget, "tokens", window=8), prefilled, tiny).layers]
        assert counts == sorted(counts, reverse=True) and abs(sum(counts) / len(counts) - budget) <= 1


def test_streaming_positions_follow_the_cache(tiny, ids, prefilled):
    """Sinks and window alone: what the network would say of just these tokens, put next to one another."""
    context = held(StreamingLLM(20, "tokens"), prefilled, tiny)
    keys, _, _ = context.layers[0].seen(torch.zeros(2, 2, 8), T)
    gaps = torch.arange(20) + T - 20 + 1
    kept = torch.cat((torch.arange(4), torch.arange(T - 16, T)))
    moved = tiny.decoder.rope(prefilled.keys[0][None, :, kept], (gaps - kept)[None])[0]
    torch.testing.assert_close(keys, moved, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_kivi_holds_fewer_bytes_and_all_tokens(tiny, ids, prefilled, bits):
    context = held(Kivi(bits, bits, group=8, residual=16), prefilled, tiny)
    full = held(Full(), prefilled, tiny)
    assert context.nbytes() < full.nbytes()
    for layer, keys in zip(context.layers, prefilled.keys, strict=True):
        assert layer.rest["keys"].shape[1] == T % 16 and layer.rest["values"].shape[1] == 16
        seen, _, _ = layer.seen(torch.zeros(2, 2, 8), T)
        assert seen.shape == keys.shape
        torch.testing.assert_close(seen[:, T - T % 16 :], keys[:, T - T % 16 :].half().float())
    error = (context.extend(ids[T:]) - full.extend(ids[T:])).abs().mean()
    assert error < {2: 2.0, 4: 0.5, 8: 0.05}[bits]
    for layer in context.layers:
        assert layer.rest["keys"].shape[1] == len(ids) % 16 and layer.rest["values"].shape[1] == 16
        assert max(len(blocks) for blocks in layer.blocks.values()) < 40


def test_budgets_in_tokens_shares_and_bytes_are_one_axis(prefilled):
    L, H, _, d = prefilled.keys.shape
    assert entries(0.5, "ratio", prefilled) == entries(T // 2, "tokens", prefilled) == T // 2
    assert entries(2 * L * H * d * 2 * 35, "bytes", prefilled) == 35
    assert entries(0.0, "ratio", prefilled) == 1 and entries(1000, "tokens", prefilled) == T
    with pytest.raises(UserError, match="pages"):
        entries(1, "pages", prefilled)


def test_a_store_gives_back_what_it_took_and_counts_it():
    keys, values = torch.randn(2, 5, 8).half(), torch.randn(2, 5, 8).half()
    store = HostStore(keys, values, room=2)
    for n in range(7):  # grows on the way
        store.append(keys[:, :1] + n, values[:, :1] - n)
    chosen = torch.tensor([[4, 0, 11], [1, 2, 3]])
    found = store.fetch(chosen)
    assert torch.equal(found[0][0], torch.stack((keys[0, 4], keys[0, 0], keys[0, 0] + 6)))
    assert torch.equal(found[1][1], values[1, 1:4])
    assert store.moved == 2 * 2 * 3 * 8 * 2 and store.nbytes() == 2 * 2 * 12 * 8 * 2
