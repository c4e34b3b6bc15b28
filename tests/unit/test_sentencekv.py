"""SentenceKV: sentences, pruning, what each step sees, and that a budget of everything is the full cache."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.eviction import SnapKV
from parsimony.methods.kv_cache.full import Full
from parsimony.methods.kv_cache.held import prefill
from parsimony.methods.kv_cache.retrieval import means
from parsimony.methods.kv_cache.sentencekv import SentenceKV, sentence_ends, sentences

T, STEPS = 120, 40


@pytest.fixture(scope="module")
def ends(tiny):
    return sentence_ends(tiny.tokenizer)


@pytest.fixture(scope="module")
def ids(ends):
    """Random tokens; about every eighth ends a sentence."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(100, 290, T + STEPS))
    at = torch.from_numpy(rng.random(T + STEPS) < 1 / 8)
    at[-3] = True  # the context does not end with a sentence, the output does nearly
    return ids.masked_fill(at, int(ends[0]))


@pytest.fixture(scope="module")
def prefilled(tiny, ids):
    return prefill(tiny.decoder, ids[:T])


def held(method, prefilled, model):
    return method.build(model, Inputs()).hold(prefilled)[0]


@pytest.mark.parametrize("units", ["sentences", "chunks"])
@pytest.mark.parametrize("first", ["all", "query"])
def test_a_budget_of_everything_is_the_full_cache(tiny, ids, prefilled, units, first):
    context = held(SentenceKV(T + STEPS, 1, units, first=first), prefilled, tiny)
    torch.testing.assert_close(context.extend(ids[T:]), held(Full(), prefilled, tiny).extend(ids[T:]))


def test_marks_are_single_tokens_of_the_tokenizer(tiny, ends):
    letters = map(tiny.tokenizer.id, ".!?")
    assert set(letters) <= set(ends.tolist()) and int(tiny.encode("a")[0]) not in ends.tolist()


@given(ids=st.lists(st.integers(0, 5), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_sentences_partition_the_prompt(ids):
    ids, ends = torch.tensor(ids), torch.tensor([0, 3])
    found = sentences(ids, ends)
    assert found[0] == 0 and (found.diff() >= 0).all() and (found.diff() <= 1).all()
    assert torch.equal(found.diff() == 1, torch.isin(ids[:-1], ends))


@pytest.mark.parametrize("factor", [1, 1.5, 2])
def test_pruning_is_snapkv_to_the_semantic_budget(tiny, ids, prefilled, ends, factor):
    method = SentenceKV(48, factor)
    sentence = sentences(ids[:T], ends)
    snap = held(SnapKV(int(48 * factor), "tokens", 32, 7, "max"), prefilled, tiny)
    for n, layer in enumerate(snap.layers):
        keys, values, labels = method.pruned(prefilled, n, sentence, 48)
        assert labels.shape == (2, int(48 * factor)) and torch.equal(labels, labels.sort(1).values)
        assert torch.equal(keys.half(), layer.keys) and torch.equal(values.half(), layer.values)
    # Entries carry the sentence of the place that they come from.
    places = (keys[0][:, None] == prefilled.keys[1][0][None]).all(-1).float().argmax(1)
    assert torch.equal(labels[0], sentence[places])


def test_every_kept_token_is_in_one_sentence_whose_mean_key_is_stored(prefilled, ids, ends):
    method, sentence = SentenceKV(64, 1.5), sentences(ids[:T], ends)
    for n, layer in enumerate(method.hold(prefilled, ends)):
        keys, _, labels = method.pruned(prefilled, n, sentence, 64)
        always, H = 8, 2
        assert layer.labels.shape == (H, 96 - 2 * always) and layer.count == always
        assert torch.equal(layer.labels.long(), labels[:, always:-always])
        assert torch.equal(layer.closed[0], labels[0, -always:])
        torch.testing.assert_close(layer.index[0].float(), means(keys, labels, int(sentence[-1]) + 1).half().float())


@pytest.mark.parametrize("first", ["all", "query"])
@pytest.mark.parametrize("units", ["sentences", "chunks"])
def test_steps_attend_to_the_budget_and_always_to_both_ends(tiny, ids, prefilled, first, units):
    method = SentenceKV(48, 2, units, first=first)
    context, exact = held(method, prefilled, tiny), held(Full(), prefilled, tiny)
    whole, layer, full = 96, context.layers[0], exact.layers[0]
    sinks, seen = layer.sinks.clone(), []
    layer.seen = lambda q, position, seen=seen, run=layer.seen: seen.append(run(q, position)) or seen[-1]
    beginning, since = True, 0
    for n, token in enumerate(ids[T:]):
        context.extend(token[None])
        exact.extend(token[None])
        keys, since = seen[-1][0], since + 1
        if beginning and first == "all":
            assert keys.shape[1] == whole + n + 1
        else:
            assert keys.shape[1] <= max(48, 6 + layer.count)
        assert torch.equal(keys[:, :6], sinks[0]) and layer.sinks.shape[2] == 6
        newest = max(6, since)  # of the first layer, whose keys do not depend on what was seen
        torch.testing.assert_close(keys[:, -newest:], full.keys[:, -newest:])
        beginning = layer.queries == 0
        since = 0 if beginning else since
        assert layer.labels.shape[1] + 6 + layer.count == whole + n + 1


def test_an_output_sentence_becomes_a_unit_with_its_mean_key(tiny, ids, prefilled, ends):
    context = held(SentenceKV(48, 2), prefilled, tiny)
    layer, before = context.layers[0], int(sentences(ids[:T], ends)[-1]) + 1
    exact = held(Full(), prefilled, tiny)
    context.extend(ids[T:])
    exact.extend(ids[T:])
    output = sentences(ids[T:], ends)
    closed = int(torch.isin(ids[T:], ends).sum())
    assert layer.index[0].shape[1] == before + closed
    keys = exact.layers[0].keys[:, T:]
    for n in range(closed):
        torch.testing.assert_close(layer.index[0][:, before + n].float(), keys[:, output == n].float().mean(1),
                                   atol=2e-3, rtol=2e-3)  # fmt: skip
    assert layer.queries == STEPS - 1 - int(torch.isin(ids[T:], ends).nonzero()[-1])


def test_sentences_are_chosen_by_the_mean_query_of_the_output_sentence(prefilled, ends):
    last, mean = (SentenceKV(40, 2, query=kind).hold(prefilled, ends)[1] for kind in ("last", "mean"))
    g, queries = torch.Generator().manual_seed(0), []
    for _ in range(4):
        queries.append(torch.randn(2, 2, 8, generator=g))
        for layer in (last, mean):
            layer.append(torch.zeros(2, 8), torch.zeros(2, 8))
            layer.seen(queries[-1], 0)
    for layer, q in ((last, queries[-1]), (mean, torch.stack(queries).mean(0))):
        scores = torch.einsum("hud,hrd->hu", layer.index[0].float(), q)
        room = 40 - 5 - layer.count
        keys = torch.from_numpy(layer.store.data[0])
        chosen = layer.choose(scores, room)
        assert layer.fetched.shape[2] == room
        assert torch.equal(layer.fetched[0], keys.gather(1, chosen[:, :, None].expand(-1, -1, 8)))


def test_one_sentence_alone_gives_its_first_tokens(prefilled):
    layer = SentenceKV(40, 2, first="query").hold(prefilled, torch.tensor([999]))[0]
    layer.append(torch.zeros(2, 8), torch.zeros(2, 8))
    layer.seen(torch.randn(2, 2, 8), 0)
    room = 40 - 5 - layer.count
    assert torch.equal(layer.fetched[0], torch.from_numpy(layer.store.data[0, :, :room]))


def test_chunks_are_as_long_as_sentences_on_average(prefilled, ids, ends):
    layer = SentenceKV(T, 1, "chunks").hold(prefilled, ends)[0]
    count = int(sentences(ids[:T], ends)[-1]) + 1
    assert layer.chunk == round(T / count) and abs(layer.index[0].shape[1] - count) <= 2


def test_what_is_held_leaves_the_pool_out_and_transfers_are_counted(tiny, ids, prefilled):
    small, large = (held(SentenceKV(40, factor), prefilled, tiny) for factor in (1, 3))
    assert small.nbytes() < large.nbytes() < small.nbytes() + 0.3 * prefilled.nbytes
    large.extend(ids[T : T + 1])
    layer = large.layers[0]
    assert layer.retrievals == 1 and layer.moved == 2 * 2 * (120 - 10) * 8 * 2  # the first step sees everything


def test_wrong_settings_are_refused():
    for wrong in ({"budget": 0}, {"factor": 0.5}, {"units": "words"}, {"query": "best"}, {"first": "none"}):
        with pytest.raises(UserError, match="sentencekv"):
            SentenceKV(**wrong)
