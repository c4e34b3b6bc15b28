"""The encoder-decoder: incremental decoding equals full recomputation, and the cache can be cut."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import write_tiny_seq2seq
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.methods.autoregressive.seq2seq_beam import BeamSearch
from parsimony.methods.autoregressive.verify import Tree, VerifyLoop
from parsimony.models.seq2seq import EncoderDecoder, Seq2Seq, Seq2SeqConfig
from parsimony.recipes import seq2seq as recipes

RNG = np.random.default_rng(0)


def ids(seed, length):
    return torch.from_numpy(np.random.default_rng(seed).integers(3, 300, length))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), source=st.integers(0, 20), target=st.integers(1, 20))
def test_incremental_decoding_equals_full_recomputation(tiny_seq2seq, seed, source, target):
    """In pieces of random size, with wrong tokens behind each that are cut off again."""
    network, rng = tiny_seq2seq.decoder, np.random.default_rng(seed)
    x, y = ids(seed, source), ids(seed + 1, target)
    with torch.inference_mode():
        memory = network.encode(torch.cat((x, torch.tensor([0])))[None])
        expected = network.decode(y[None], network.cross(memory))[0]
    cache = network.cache(4)
    network.prefill(x[None], cache)
    at, found = 0, []
    while at < target:
        size, wrong = int(rng.integers(1, target - at + 1)), int(rng.integers(0, 4))
        rows = torch.cat((y[at : at + size], ids(seed + 2, wrong)))
        found.append(network.forward(rows[None], cache)[0, :size])
        at += size
        cache.truncate(at)
        assert len(cache) == at
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-4, rtol=1e-4)


def test_teaching_hides_padding(tiny_seq2seq):
    network = tiny_seq2seq.decoder
    x, y = ids(0, 7), ids(1, 9)
    alone = network.teach(x[None], y[None])[0]
    padded = network.teach(torch.nn.functional.pad(x, (0, 4), value=2)[None], y[None])[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_a_drafter_sees_both_ways_and_no_padding(tmp_path):
    network = EncoderDecoder.load(write_tiny_seq2seq(tmp_path, causal=False))
    x, y = ids(0, 7), ids(1, 9)
    alone = network.teach(x[None], y[None])[0]
    padded = network.teach(x[None], torch.nn.functional.pad(y, (0, 3), value=2)[None])[0, :9]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
    changed = network.teach(x[None], torch.cat((y[:-1], torch.tensor([5])))[None])[0]
    assert not torch.allclose(changed[0], alone[0], atol=1e-4)


def test_cache_bytes_are_those_of_both_caches(tiny_seq2seq):
    network = tiny_seq2seq.decoder
    cache = network.cache(8)
    network.prefill(ids(0, 6)[None], cache)
    network.forward(ids(1, 3)[None], cache)
    layers, kinds, width, size = 2, 2, 32, 4
    assert cache.nbytes() == layers * kinds * width * size * ((6 + 1) + 3)


def test_trees_are_refused(tiny_seq2seq):
    network = tiny_seq2seq.decoder
    cache = network.cache(8)
    network.prefill(ids(0, 6)[None], cache)
    with pytest.raises(ValueError, match="chains of tokens only"):
        network.forward(ids(1, 3)[None], cache, tree=Tree.of([0, 0]).sees)


def test_next_logits_are_those_of_greedy_decoding(tiny_seq2seq):
    x = ids(3, 9)
    tokens = VerifyLoop(tiny_seq2seq).generate(x, 12, RNG).tokens
    for at in range(len(tokens)):
        assert int(tiny_seq2seq.next_logits(x, tokens[:at]).argmax()) == int(tokens[at])


def test_timed_passes_do_not_pile_up_in_the_cache(tiny_seq2seq):
    loop = VerifyLoop(tiny_seq2seq)
    seconds = loop.forward_seconds(5, 20, 3)
    assert len(seconds) == 3 and min(seconds) > 0
    assert len(loop._cache) == 5


def test_unknown_stop_tokens_and_dtypes_are_refused(tiny_seq2seq):
    with pytest.raises(UserError, match="'<stop>' is not in the vocabulary"):
        _ = Seq2Seq(tiny_seq2seq.decoder, tiny_seq2seq.folder, ("<stop>",)).stop_ids
    with pytest.raises(UserError, match="dtype 'int8'"):
        Seq2Seq.load(tiny_seq2seq.folder, ["<end>"], "int8")


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy(tiny_seq2seq, seed):
    x = ids(seed, 11)
    greedy = VerifyLoop(tiny_seq2seq).generate(x, 20, RNG).tokens.tolist()
    assert BeamSearch(tiny_seq2seq, 1, 1.0).generate(x, 20, RNG).tokens.tolist() == greedy


def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_output(tmp_path):
    """Two tokens at most of a vocabulary of 12: every output can be scored."""
    model = Seq2Seq.load(write_tiny_seq2seq(tmp_path, vocabulary=12), ["<end>"], "float32")
    x = torch.tensor([5, 6, 7])
    first = model.next_logits(x, x[:0]).log_softmax(-1)
    scores = {(0,): float(first[0])}
    for token in range(1, 12):
        second = model.next_logits(x, torch.tensor([token])).log_softmax(-1)
        scores[token, 0] = float(first[token] + second[0]) / 2
    best = max(scores, key=scores.get)
    found = BeamSearch(model, 150, 1.0).generate(x, 2, RNG)
    assert tuple(found.tokens.tolist()) == best


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 100))
def test_blocks_mask_what_follows_a_cut(lengths, block, seed):
    config = Seq2SeqConfig(20, 8, 1, 8, 1, 1)
    rng = np.random.default_rng(seed)
    rows = [[*rng.integers(3, 20, n - 1).tolist(), 0] for n in lengths]
    target = recipes._padded(rows)
    slots, masked = recipes.blocks(target, config, block, rng)
    for row, slot, mask in zip(rows, slots.tolist(), masked.tolist(), strict=True):
        cut = slot.index(config.unknown)
        assert cut < len(row) and slot[:cut] == row[:cut]
        assert [n for n, m in enumerate(mask) if m] == list(range(cut, min(cut + block, len(row))))
        assert all(token == config.unknown for token in slot[cut : cut + block])
        assert all(token == config.pad for token in slot[cut + block :])


@pytest.fixture
def articles(tmp_path):
    words = ["the", "cat", "of", "a", "town", "is", "on", "its", "hill", "and", "people", "like", "to", "see", "it"]
    rng = np.random.default_rng(0)
    texts = [" ".join(["Here", *rng.choice(words, 6)]) + "." for _ in range(60)]
    (tmp_path / "summaries.json").write_text(json.dumps({n: {"extract": text} for n, text in enumerate(texts)}))
    return {"text": tmp_path}


def test_recipes_refuse_what_is_below_their_floor(articles, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "CHECKED", 2)
    monkeypatch.setattr(recipes, "SMALL", asdict(Seq2SeqConfig(280, 16, 2, 16, 1, 1)))
    training = {"updates": 2, "batch": 8, "rate": 0.001, "dropout": 0.1, "seed": 0}
    lexicon = {"lexicon": 5, "lexicon_seed": 0}
    with pytest.raises(UserError, match="the correction model keeps"):
        recipes.correction(tmp_path, articles, "text", copied=0.9, left=0.5, **training)
    with pytest.raises(UserError, match="word error rate"):
        recipes.translation(tmp_path, articles, "text", errors=0.0, **lexicon, **training)
    drafter = tmp_path / "drafter"
    drafter.mkdir()
    with pytest.raises(UserError, match="tokens a pass"):
        inputs = articles | {"model": tmp_path}
        recipes.drafter(drafter, inputs, "text", "model", block=3, gained=12.0, **lexicon, **training)


def test_a_recipe_gives_the_same_weights_again(articles, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "CHECKED", 1)
    monkeypatch.setattr(recipes, "SMALL", asdict(Seq2SeqConfig(280, 16, 2, 16, 1, 1)))
    weights = []
    for name in ("first", "second"):
        out = tmp_path / name
        out.mkdir()
        training = {"updates": 3, "batch": 8, "rate": 0.001, "dropout": 0.1, "seed": 0}
        recipes.correction(out, articles, "text", copied=0.0, left=99.0, **training)
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
