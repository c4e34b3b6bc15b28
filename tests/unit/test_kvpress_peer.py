"""Entries that our rules keep against those that NVIDIA's kvpress keeps, on the same weights and tokens."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache

from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.ems import EMS
from parsimony.methods.kv_cache.eviction import PyramidKV, SnapKV
from parsimony.methods.kv_cache.held import prefill
from parsimony.methods.kv_cache.scores import best
from parsimony.methods.kv_cache.streaming_llm import StreamingLLM

T = 230


@pytest.fixture(scope="module")
def kvpress():
    return pytest.importorskip("kvpress", reason="kvpress is not installed; `make oracles` installs it")


@pytest.fixture(scope="module")
def prefilled(tiny):
    return prefill(tiny.decoder, torch.from_numpy(np.random.default_rng(7).integers(2, 290, T)))


@pytest.fixture(scope="module")
def network(tiny):
    """That of ``transformers``, which hands out attention weights, as one rule of kvpress needs."""
    return AutoModelForCausalLM.from_pretrained(tiny.folder, attn_implementation="eager", local_files_only=True).eval()


def places(keys, exact) -> list[list[int]]:
    """Positions, ascending for each head, of entries that were kept ([H, n, d]) of a layer ([H, T, d])."""
    distance, found = (keys.float()[:, :, None] - exact[:, None]).norm(dim=-1).min(-1)
    assert (distance < 0.02).all()
    return found.sort(-1).values.tolist()


def theirs(press, network, prefilled) -> list[list[list[int]]]:
    """Positions that a press keeps in each layer and head."""
    hook, cache = press.forward_hook, DynamicCache()
    steps = {"cache_position": torch.arange(T)}  # which `transformers` no longer passes on to its layers
    press.forward_hook = lambda module, inputs, kwargs, output: hook(module, inputs, kwargs | steps, output)
    with torch.inference_mode(), press(network):
        network(prefilled.ids[None], past_key_values=cache)
    return [places(layer.keys[0], exact) for layer, exact in zip(cache.layers, prefilled.keys, strict=True)]


def ours(method, tiny, prefilled) -> list[list[list[int]]]:
    layers = method.build(tiny, Inputs()).hold(prefilled)[0].layers
    return [places(layer.keys, exact) for layer, exact in zip(layers, prefilled.keys, strict=True)]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.6])
@pytest.mark.parametrize(("window", "kernel"), [(64, 5), (32, 7), (8, 1)])
def test_snapkv_keeps_the_same(kvpress, network, tiny, prefilled, ratio, window, kernel):
    press = kvpress.SnapKVPress(ratio, window, kernel)
    kept = theirs(press, network, prefilled)
    assert ours(SnapKV(1 - ratio, window=window, kernel=kernel), tiny, prefilled) == kept
    assert len(kept[0][0]) == int(T * (1 - ratio))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("sinks", [4, 1])
def test_streaming_keeps_the_same(kvpress, network, tiny, prefilled, ratio, sinks):
    """Theirs leaves keys where they stood in the text."""
    method = StreamingLLM(1 - ratio, sinks=sinks, positions="text")
    assert ours(method, tiny, prefilled) == theirs(kvpress.StreamingLLMPress(ratio, sinks), network, prefilled)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_observed_attention_is_the_global_score_per_observer(kvpress, network, tiny, prefilled, ratio):
    layers = EMS(1.0, combine="global", per_observer=True).build(tiny, Inputs()).hold(prefilled)[0].layers
    mine = [best(layer.scores(T), int(T * (1 - ratio))).tolist() for layer in layers]
    assert mine == theirs(kvpress.ObservedAttentionPress(ratio), network, prefilled)


@settings(max_examples=200, deadline=None)
@given(window=st.integers(1, 8), length=st.integers(400, 2000), share=st.floats(0, 1), layers=st.integers(1, 40))
def test_pyramid_budgets_are_theirs_and_the_window_besides(kvpress, window, length, share, layers):
    """The official code adds the window to a pyramid over C - w; theirs counts it within a pyramid of the whole budget.

    So theirs with K entries in the mean is ours with K + w, where both build a pyramid at all: theirs not if the last
    layer had fewer entries than the window (below 1280 in the mean, with its window of 64), ours not above half.
    """
    K = int(20 * window + 1 + share * (length / 2 - 20 * window - 1))
    press = kvpress.PyramidKVPress(1 - K / length, window)
    config = SimpleNamespace(num_hidden_layers=layers)
    budgets = [press.get_layer_budget(SimpleNamespace(config=config, layer_idx=n), length) for n in range(layers)]
    mine = PyramidKV(K + window, "tokens", window).budgets(K + window, length, layers)
    assert all(abs(a - window - b) <= 1 for a, b in zip(mine, budgets, strict=True))


def test_pyramid_keeps_the_same_at_the_same_budgets(kvpress, network, tiny, prefilled):
    kept, method = theirs(kvpress.PyramidKVPress(1 - 80 / T, 4), network, prefilled), PyramidKV(84, "tokens", 4)
    sizes = [len(layer[0]) for layer in kept]
    assert sizes[0] > 2 * sizes[1]
    mine = [method.layer(prefilled, n, C) for n, C in enumerate(sizes)]
    assert [places(layer.keys, prefilled.keys[n]) for n, layer in enumerate(mine)] == kept


def test_pyramid_of_theirs_is_snapkv_at_small_budgets(kvpress, network, prefilled):
    kept = theirs(kvpress.PyramidKVPress(0.75, 32), network, prefilled)
    assert [len(layer[0]) for layer in kept] == [round(T * 0.25)] * 2
    mine = PyramidKV(0.25).budgets(round(T * 0.25), T, 2)
    assert mine[0] > mine[1]
