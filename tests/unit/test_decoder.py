"""The decoder against transformers: every family, tied and untied, whole, in chunks, padded, as a tree."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from parsimony.errors import UserError
from parsimony.models.decoder import Decoder, DecoderConfig
from parsimony.models.packed import linear, pack

SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
VARIANTS = {
    "llama_tied": ("llama", dict(tie_word_embeddings=True)),
    "llama_untied": ("llama", dict(tie_word_embeddings=False)),
    "llama_scaled_rope": (
        "llama",
        dict(
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=10000.0,
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            )
        ),
    ),
    "mistral_window": ("mistral", dict(sliding_window=8)),
    "qwen2_tied": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen2_untied": ("qwen2", dict(tie_word_embeddings=False)),
    "qwen3": ("qwen3", dict(head_dim=16)),
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """A tiny random model of one family: (transformers model, our decoder loaded from its safetensors)."""
    kind, options = VARIANTS[request.param]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder, safe_serialization=True)
    return model, Decoder.load(folder)


def reference(model, ids, **kwargs):
    with torch.inference_mode():
        return model(ids, **kwargs).logits


@pytest.fixture
def ids():
    return torch.randint(0, 97, (1, 40), generator=torch.Generator().manual_seed(1))


def test_whole_prompt_matches_transformers(pair, ids):
    model, decoder = pair
    ours = decoder.forward(ids, decoder.cache(64))
    torch.testing.assert_close(ours, reference(model, ids), atol=TOLERANCE, rtol=0)


def test_chunks_and_single_steps_match_transformers(pair, ids):
    model, decoder = pair
    cache = decoder.cache(8)  # smaller than needed: the buffers grow
    chunked = decoder.prefill(ids[:, :30], cache, want="all", chunk=7)
    steps = [decoder.forward(ids[:, i : i + 1], cache) for i in range(30, 40)]
    torch.testing.assert_close(torch.cat([chunked, *steps], 1), reference(model, ids), atol=TOLERANCE, rtol=0)
    assert len(cache) == 40 and cache.plain


def test_left_padded_batch_matches_single_sequences(pair):
    model, decoder = pair
    rng = torch.Generator().manual_seed(2)
    lengths = [5, 17, 11]
    rows = [torch.randint(0, 97, (n,), generator=rng) for n in lengths]
    pads = torch.tensor([17 - n for n in lengths])
    # The padding id is an ordinary token that also stands inside the prompts: only lengths tell them apart.
    batch = torch.stack(
        [torch.cat((torch.full((int(p),), int(rows[0][0])), r)) for p, r in zip(pads, rows, strict=True)]
    )
    cache = decoder.cache(32, batch=3)
    prompt = decoder.prefill(batch, cache, pads=pads, want="all", chunk=6)
    more = torch.randint(0, 97, (3, 4), generator=rng)
    steps = torch.cat([decoder.forward(more[:, i : i + 1], cache) for i in range(4)], 1)
    for b, row in enumerate(rows):
        whole = reference(model, torch.cat((row, more[b]))[None])[0]
        torch.testing.assert_close(prompt[b, int(pads[b]) :], whole[: len(row)], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(steps[b], whole[len(row) :], atol=TOLERANCE, rtol=0)


def test_tree_rows_match_their_paths(pair, ids):
    model, decoder = pair
    parents = [-1, 0, 0, 1, 1, 2, 3]  # node 0 is the root
    depth, tree = [], torch.zeros(7, 7, dtype=torch.bool)
    for node, parent in enumerate(parents):
        depth.append(0 if parent < 0 else depth[parent] + 1)
        tree[node] = tree[parent] if parent >= 0 else False
        tree[node, node] = True
    nodes = torch.tensor([[3, 9, 4, 1, 7, 9, 2]])
    cache = decoder.cache(64)
    decoder.prefill(ids, cache)
    logits = decoder.forward(nodes, cache, positions=40 + torch.tensor([depth]), tree=tree)
    for node in range(7):
        path = tree[node].nonzero()[:, 0]
        whole = reference(model, torch.cat((ids, nodes[:, path]), 1))
        torch.testing.assert_close(logits[0, node], whole[0, -1], atol=TOLERANCE, rtol=0)
    path = tree[6].nonzero()[:, 0]
    cache.keep(path, start=40)
    assert cache.plain and len(cache) == 44
    after = decoder.forward(torch.tensor([[5]]), cache)
    whole = reference(model, torch.cat((ids, nodes[:, path], torch.tensor([[5]])), 1))
    torch.testing.assert_close(after[0, 0], whole[0, -1], atol=TOLERANCE, rtol=0)


def test_truncate_forgets(pair, ids):
    model, decoder = pair
    cache = decoder.cache(64)
    decoder.prefill(ids, cache)
    cache.truncate(20)
    again = decoder.forward(ids[:, 20:25], cache)
    torch.testing.assert_close(again, reference(model, ids[:, :25])[:, 20:], atol=TOLERANCE, rtol=0)


def test_attention_weights_and_hooks(pair, ids):
    model, decoder = pair
    weights, seen = [], []
    ours = decoder.forward(ids, decoder.cache(64), attention=weights, hook=lambda i, x: seen.append((i, (*x.shape,))))
    torch.testing.assert_close(ours, reference(model, ids), atol=TOLERANCE, rtol=0)
    assert [w.shape for w in weights] == [(1, 6, 40, 40)] * 3
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(1, 6, 40))
    assert seen == [(i, (1, 40, 48)) for i in range(3)]


def test_evicted_entries_are_not_seen(pair, ids):
    """Keeping a subset equals masking the rest out, which the attention weights of transformers cannot do for us:
    compare with the same network run over the full cache and an explicit tree mask."""
    _, decoder = pair
    kept = torch.tensor([0, 3, 4, 11, 12])
    full, small = decoder.cache(64), decoder.cache(64)
    decoder.prefill(ids[:, :13], full)
    decoder.prefill(ids[:, :13], small)
    small.keep(kept)
    assert not small.plain and len(small) == 5
    ours = decoder.forward(ids[:, 13:15], small, positions=torch.tensor([[13, 14]]))
    hidden = torch.full((13,), -1)
    hidden[kept] = kept
    full.positions[:, :, :13] = hidden
    full.in_order = 0
    masked = decoder.forward(ids[:, 13:15], full, positions=torch.tensor([[13, 14]]))
    torch.testing.assert_close(ours, masked, atol=TOLERANCE, rtol=0)


def test_rerotated_keys_equal_keys_computed_there(pair, ids):
    _, decoder = pair
    here, there = decoder.cache(64), decoder.cache(64)
    decoder.forward(ids[:, :6], here)
    decoder.forward(ids[:, :6], there, positions=torch.arange(10, 16)[None])
    before = there.values(0).clone()
    here.rerotate(0, torch.arange(10, 16), decoder.rope)
    torch.testing.assert_close(here.keys(0), there.keys(0), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(there.values(0), before)


def test_bidirectional_network_sees_both_ways(ids, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **SIZES)).eval()
    model.save_pretrained(tmp_path)
    decoder = Decoder.load(tmp_path, causal=False)
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 97
    first = decoder.forward(ids, decoder.cache(64))[0, 0]
    assert not torch.allclose(first, decoder.forward(changed, decoder.cache(64))[0, 0])


def test_unknown_architecture_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="'gpt2' is not one the decoder can load"):
        DecoderConfig.from_hf(json.loads('{"model_type": "gpt2"}'))


def test_vectors_stand_in_for_embeddings(tiny):
    """An id behind the vocabulary is the input vector it names: with a token's own embedding nothing changes."""
    decoder, V = tiny.decoder, tiny.decoder.config.vocabulary
    ids = torch.tensor([[5, 9, 17, 9]])
    named = torch.tensor([[5, V + 1, 17, V]])
    expected = decoder.forward(ids, decoder.cache(8))
    ours = decoder.forward(named, decoder.cache(8), vectors=decoder.embedding[[9, 9]])
    assert torch.equal(ours, expected)
    other = decoder.forward(named, decoder.cache(8), vectors=decoder.embedding[[9, 10]])
    assert torch.equal(other[:, 0], expected[:, 0]) and not torch.equal(other[:, 1], expected[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_packed_matrix_multiplies_like_a_plain_one(dtype, rows):
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(48, 40, generator=generator), torch.randn(1, rows, 40, generator=generator)
    bias = torch.randn(48, generator=generator)
    weight, x, bias = weight.to(dtype), x.to(dtype), bias.to(dtype)
    expected = x.double() @ weight.double().T + bias.double()
    error = 1e-5 if dtype == torch.float32 else 0.1 if dtype == torch.bfloat16 else 0.02
    found = linear(x, pack(weight), bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=error, rtol=0)
