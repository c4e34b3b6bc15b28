"""Superposed Decoding: the invariants of its paper, n-gram tables against a dictionary, and the baselines."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.benchmarks.prefix_completion import agreement, covered, judge
from parsimony.benchmarks.wiki_split import PARTS, extracts
from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive import superposed_decoding
from parsimony.methods.autoregressive.drafts import Beam, largest
from parsimony.methods.autoregressive.multi_baselines import BeamSearch, Nucleus
from parsimony.methods.autoregressive.ngrams import NgramTables
from parsimony.methods.autoregressive.superposed_decoding import SuperposedDecoder, SuperposedDecoding, superpose
from parsimony.methods.autoregressive.verify import VerifyLoop

WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)
SEEDS = st.integers(0, 10**6)


def rng(seed=0):
    return np.random.default_rng(seed)


def prompt_of(seed, length=15):
    return torch.from_numpy(rng(seed).integers(0, 300, length))


@pytest.fixture(scope="module")
def endless(tiny):
    """The tiny model, with no token that ends a text."""
    return replace(tiny, stop=())


@pytest.fixture(scope="module")
def tables(tiny):
    """Counts of what the tiny model itself says, so that its histories are seen often but not always."""
    said = [VerifyLoop(tiny).generate(prompt_of(seed), 40, rng()).tokens.numpy() for seed in range(40)]
    noise = [rng(seed).integers(0, 300, 200) for seed in range(20)]
    return NgramTables.count(said + noise, 300)


def decoder_of(tiny, tables, **params):
    chosen = SuperposedDecoding(**params)
    return SuperposedDecoder(tiny, chosen, None if chosen.mixing == "none" else tables)


class Watched(Beam):
    """A beam that remembers the drafts and scores after every step."""

    def grow(self, candidates, gains):
        parents = super().grow(candidates, gains)
        vars(self).setdefault("steps", []).append((self.tokens.clone(), self.scores.clone()))
        vars(self).setdefault("gains", []).append(gains)
        vars(self).setdefault("parents", []).append(parents)
        return parents


@contextmanager
def watching():
    """The beams of the generations made inside, in order."""
    beams = []

    def make(k, stop):
        beams.append(Watched(k, stop))
        return beams[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(superposed_decoding, "Beam", make)
        yield beams


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, length=st.integers(1, 40), limit=st.integers(1, 20))
def test_one_draft_without_ngrams_is_greedy(tiny, seed, length, limit):
    prompt = prompt_of(seed, length)
    greedy = VerifyLoop(tiny).generate(prompt, limit, rng()).tokens.tolist()
    superposed = decoder_of(tiny, None, drafts=1, mixing="none").generate_many(prompt, limit, rng())
    beam = BeamSearch(1).build(tiny, Inputs()).generate_many(prompt, limit, rng())
    assert [t.tolist() for t in superposed.tokens] == [t.tolist() for t in beam.tokens] == [greedy]


@pytest.mark.parametrize("mixing", ["geometric", "none"])
@pytest.mark.parametrize("drafts", [1, 2, 3, 5, 8])
def test_passes_are_the_generated_length_whatever_k_is(endless, tables, drafts, mixing):
    decoder = decoder_of(endless, tables, drafts=drafts, mixing=mixing)
    for seed in range(5):
        made = decoder.generate_many(prompt_of(seed), 12, rng())
        assert made.cost.passes + 1 == made.cost.rows + 1 == max(map(len, made.tokens)) == 12
        cache = endless.decoder.cache(1)
        one = 2 * len(cache.lengths) * cache.data.shape[3] * cache.data.shape[5] * cache.data.element_size()
        assert made.cost.cache_bytes == (15 + 11) * one  # one entry a step for all drafts


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, m=st.integers(1, 6), kinds=st.integers(1, 4))
def test_the_input_is_a_convex_combination(seed, m, kinds):
    """Solved for from the vector itself: weights not negative, of sum 1, and those of the softmax."""
    draw = rng(seed)
    embedding = torch.from_numpy(draw.normal(size=(kinds, 16)))
    tokens = torch.from_numpy(draw.integers(0, kinds, m))
    scores = torch.from_numpy(-draw.exponential(3, m))
    x = superpose(tokens, scores, embedding)
    weights = np.linalg.lstsq(embedding.numpy().T, x.numpy(), rcond=None)[0]
    expected = np.zeros(kinds)
    np.add.at(expected, tokens.numpy(), scores.softmax(0).numpy())
    np.testing.assert_allclose(weights, expected, atol=1e-9)
    assert weights.min() > -1e-9 and abs(weights.sum() - 1) < 1e-9
    np.testing.assert_allclose(x.numpy(), expected @ embedding.numpy(), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_drafts_that_agree_give_the_embedding_itself(tiny, dtype):
    embedding = tiny.decoder.embedding.to(dtype)
    for seed in range(50):
        scores = torch.from_numpy(-rng(seed).exponential(20, 7))
        assert torch.equal(superpose(torch.full((7,), seed), scores, embedding), embedding[seed])


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS, drafts=st.integers(1, 6), mixing=st.sampled_from(["geometric", "none"]), tau=st.sampled_from([0.06, 1])
)
def test_every_step_keeps_the_invariants(tiny, tables, seed, drafts, mixing, tau):
    with watching() as beams:
        made = decoder_of(tiny, tables, drafts=drafts, mixing=mixing, tau=tau).generate_many(prompt_of(seed), 10, rng())
    before = torch.zeros(1, dtype=torch.float64)
    for (tokens, scores), parents in zip(beams[0].steps, beams[0].parents, strict=True):
        assert len({tuple(row) for row in tokens.tolist()}) == len(tokens) <= drafts
        assert bool((scores[1:] <= scores[:-1]).all())
        assert bool((scores <= before[parents]).all())
        assert not torch.isin(tokens, torch.tensor(sorted(tiny.stop_ids))).any()
        before = scores
    assert len({tuple(t.tolist()) for t in made.tokens}) == len(made.tokens) == drafts
    assert made.scores == sorted(made.scores, reverse=True)


def test_drafts_after_the_first_step_are_the_top_k(tiny, tables):
    decoder = decoder_of(tiny, tables, drafts=4)
    for seed in range(8):
        with watching() as beams:
            decoder.generate_many(prompt_of(seed), 3, rng())
        logits = tiny.decoder.prefill(prompt_of(seed)[None], tiny.decoder.cache(16))[0, -1]
        best = [t for t in logits.topk(5).indices.tolist() if t not in tiny.stop_ids][:4]
        tokens, scores = beams[0].steps[0]
        assert tokens[:, 0].tolist() == best
        top = (logits.double() / 0.06).softmax(-1).topk(12).values
        expected = (top / top.sum()).log()
        if logits.argmax().item() not in tiny.stop_ids:
            torch.testing.assert_close(scores[0], expected[0], atol=1e-6, rtol=1e-5)
    with watching() as beams:
        for mix_first in (False, True):
            decoder_of(tiny, tables, drafts=4, mix_first=mix_first).generate_many(prompt_of(0), 1, rng())
    assert not torch.equal(beams[0].gains[0], beams[1].gains[0])


def test_a_step_follows_the_formula(tiny, tables):
    """The second step, done again with dense vectors, dictionaries of floats and no cache."""
    decoder = decoder_of(tiny, tables, drafts=3)
    for seed in range(6):
        prompt = prompt_of(seed)
        with watching() as beams:
            decoder.generate_many(prompt, 2, rng())
        (first, scores), (second, after) = beams[0].steps
        gamma = scores.softmax(0)
        x = (gamma[:, None] * tiny.decoder.embedding[first[:, 0]].double()).sum(0).float()
        ids = torch.cat((prompt, torch.tensor([300])))
        logits = tiny.decoder.forward(ids[None], tiny.decoder.cache(20), vectors=x[None])[0, -1].double()
        p = (logits / 0.06).softmax(-1)
        kept = p.topk(9).indices
        p = p / p[kept].sum()
        totals = {}
        for row, score in zip(first.tolist(), scores.tolist(), strict=True):
            history = np.array([prompt.tolist() + row])
            q = sum(
                w * tables.probabilities(history, kept.numpy(), n)[0] for n, w in zip(range(2, 7), WEIGHTS, strict=True)
            )
            for token, share in zip(kept.tolist(), q.tolist(), strict=True):
                if share > 0:
                    totals[row[0], token] = score + 0.46 * float(p[token].log()) + 0.54 * np.log(share)
                elif not q.any():
                    totals[row[0], token] = score + 0.46 * float(p[token].log()) - 200
        best = sorted((pair for pair in totals if pair[1] not in tiny.stop_ids), key=lambda pair: -totals[pair])[:3]
        assert [tuple(row) for row in second.tolist()] == best
        np.testing.assert_allclose(after.numpy(), [totals[pair] for pair in best], rtol=2e-3)


def test_a_draft_without_any_seen_ngram_is_penalised(tiny):
    with watching() as beams:
        decoder_of(tiny, NgramTables.count([], 300), drafts=2).generate_many(prompt_of(1), 4, rng())
    rises = torch.stack([scores[0] for _, scores in beams[0].steps]).diff()
    assert bool((rises <= -200).all()) and bool((rises > -300).all())


def test_resets_go_on_as_from_the_best_draft(endless, tables):
    """Behind a reset everything depends on prompt and chosen draft alone: the cache holds the draft's own entries."""
    prompt = prompt_of(4)
    decoder = decoder_of(endless, tables, drafts=3, reset=4)
    made = decoder.generate_many(prompt, 10, rng())
    fresh = decoder_of(endless, tables, drafts=3)
    text = prompt
    for length in (4, 4, 2):
        with watching() as beams:
            fresh.generate_many(text, length, rng())
        last = beams[0].tokens
        text = torch.cat((text, last[0]))
    stem = text[len(prompt) : len(prompt) + 8].tolist()
    assert {tuple(t.tolist()) for t in made.tokens} == {tuple(stem + row) for row in last.tolist()}
    assert made.cost.passes + 1 == 10 and made.cost.rows == 7 + 2 * 4


def test_ngrams_alone_run_no_network(tiny, tables):
    decoder = decoder_of(tiny, tables, drafts=3, mixing="ngram")
    made = decoder.generate_many(prompt_of(0), 6, rng())
    assert made.cost.passes == made.cost.cache_bytes == 0
    prompt = prompt_of(0).tolist()
    shares = tables.distribution(np.array([prompt[-5:]]), WEIGHTS)[0]
    one = decoder_of(tiny, tables, drafts=3, mixing="ngram").generate_many(prompt_of(0), 1, rng())
    assert shares[one.tokens[0]].item() == shares.max() > 0
    few = NgramTables.count([np.array([5, 7, 7, 9]), np.array([7, 9])], 300)
    behind_unseen = decoder_of(tiny, few, drafts=1, mixing="ngram").generate_many(torch.tensor([100]), 2, rng())
    assert behind_unseen.tokens[0].tolist() == [7, 9]  # the most frequent token, then what mostly follows it


def test_an_ended_draft_is_kept_and_nothing_grows_behind_it():
    beam = Beam(2, frozenset({0}))
    beam.grow(torch.tensor([[5, 0, 7, 8]]), torch.tensor([[-0.1, -0.2, -3.0, -4.0]]).double())
    assert beam.tokens.tolist() == [[5], [7]]
    assert [tokens.tolist() for _, tokens in beam.finished] == [[0]]
    parents = beam.grow(torch.tensor([[1, 0], [2, 3]]), torch.tensor([[-1.0, -2.0], [-5.0, -torch.inf]]).double())
    assert parents.tolist() == [0, 1] and beam.tokens.tolist() == [[5, 1], [7, 2]]
    assert not beam.done
    tokens, means = beam.ranking()
    assert [t.tolist() for t in tokens] == [[0], [5, 1]]
    assert means == pytest.approx([-0.2, -0.55])
    beam.grow(torch.tensor([[0], [4]]), torch.tensor([[-0.1], [-0.1]]).double())
    assert beam.done  # two ended, both better than what goes on


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, n=st.integers(1, 20), levels=st.integers(1, 40))
def test_largest_takes_the_first_of_equals(seed, n, levels):
    logits = torch.from_numpy(rng(seed).integers(0, levels, (3, 50))).float()
    ours = largest(logits, n)
    for row, mine in zip(logits, ours[:, 0].tolist(), strict=True):
        if int((row == row.max()).sum()) <= n:
            assert mine == int(row.argmax())
    expected = logits.sort(dim=-1, descending=True, stable=True).values[:, :n]
    assert torch.equal(logits.gather(1, ours), expected)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="keep at least 6"):
        SuperposedDecoding(drafts=3, kept=5)
    with pytest.raises(UserError, match="'geom' is not one of"):
        SuperposedDecoding(mixing="geom")


documents = st.lists(st.lists(st.integers(0, 6), max_size=25), max_size=6)


@settings(max_examples=150, deadline=None)
@given(texts=documents, histories=st.lists(st.lists(st.integers(0, 7), min_size=5, max_size=5), min_size=1, max_size=5))
def test_tables_equal_a_dictionary(texts, histories, tmp_path_factory):
    file = tmp_path_factory.mktemp("ngrams") / "ngrams.safetensors"
    NgramTables.count([np.array(text, dtype=np.int64) for text in texts], 8).save(file)
    tables = NgramTables.load(file)
    followed = Counter(
        (tuple(text[i : i + n - 1]), text[i + n - 1])
        for text in texts
        for n in range(2, 7)
        for i in range(len(text) - n + 1)
    )
    totals = Counter()
    for (history, _), count in followed.items():
        totals[history] += count
    tokens, rows = np.arange(8), np.array(histories)

    def share(history, token):
        return followed[history, token] / totals[history] if totals[history] else 0.0

    mixed = np.zeros((len(rows), 8))
    for n, weight in zip(range(2, 7), WEIGHTS, strict=True):
        expected = np.array([[share(tuple(row[-(n - 1) :]), token) for token in tokens] for row in histories])
        np.testing.assert_allclose(tables.probabilities(rows, tokens, n), expected)
        mixed += weight * expected
    np.testing.assert_allclose(tables.mixture(rows, tokens, WEIGHTS), mixed)
    np.testing.assert_allclose(tables.distribution(rows, WEIGHTS), mixed)
    short = sum(w * tables.probabilities(rows, tokens, n) for n, w in ((2, WEIGHTS[0]), (3, WEIGHTS[1])))
    np.testing.assert_allclose(tables.mixture(rows[:, -2:], tokens, WEIGHTS), short)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, length=st.integers(1, 30), limit=st.integers(1, 12))
def test_batched_nucleus_draws_what_sequential_draws(tiny, seed, length, limit):
    prompt = prompt_of(seed, length)
    made = [Nucleus(3, batched=b).build(tiny, Inputs()).generate_many(prompt, limit, rng(seed)) for b in (False, True)]
    assert [t.tolist() for t in made[0].tokens] == [t.tolist() for t in made[1].tokens]
    assert made[0].cost.rows == made[0].cost.passes == made[1].cost.rows
    assert made[1].cost.passes + 1 == max(map(len, made[1].tokens))


def test_nucleus_has_the_distribution_it_declares(tiny):
    """Chi-square of the first token against the nucleus computed by hand; nothing outside it is ever drawn."""
    from scipy.stats import chisquare

    prompt = prompt_of(3)
    logits = tiny.decoder.prefill(prompt[None], tiny.decoder.cache(16))[0, -1].double()
    p = (logits / 0.6).softmax(-1).numpy()
    order = np.argsort(-p)
    nucleus = order[: int(np.searchsorted(np.cumsum(p[order]), 0.9)) + 1]
    assert 1 < len(nucleus) < 300
    sampler = Nucleus(drafts=1500).build(tiny, Inputs())
    drawn = Counter(int(t[0]) for t in sampler.generate_many(prompt, 1, rng(5)).tokens)
    assert set(drawn) <= set(nucleus.tolist())
    expected = p[nucleus] / p[nucleus].sum() * 1500
    seen = np.array([drawn[int(token)] for token in nucleus])
    often = int((expected >= 5).sum()) - 1  # the last bin takes all rarer tokens

    def binned(counts):
        return np.append(counts[:often], counts[often:].sum())

    assert chisquare(binned(seen), binned(expected)).pvalue > 1e-4


@pytest.mark.parametrize("beams", [2, 4])
def test_beam_search_equals_one_without_cache(tiny, beams):
    """All beams and their probabilities, against beam search written as plainly as can be."""
    for seed in range(4):
        prompt, limit = prompt_of(seed).tolist(), 6
        alive, ended = [(0.0, [])], []
        for _ in range(limit):
            grown = []
            for score, draft in alive:
                logits = tiny.decoder.prefill(torch.tensor([prompt + draft]), tiny.decoder.cache(32))[0, -1]
                log_p = logits.double().log_softmax(-1)
                grown += [(score + float(log_p[t]), [*draft, t]) for t in range(300)]
            grown = sorted(grown, key=lambda pair: -pair[0])[: 2 * beams]
            ended += [pair for pair in grown[:beams] if pair[1][-1] in tiny.stop_ids]
            ended = sorted(ended, key=lambda pair: -pair[0])[:beams]
            alive = [pair for pair in grown if pair[1][-1] not in tiny.stop_ids][:beams]
            if len(ended) == beams and ended[-1][0] >= alive[0][0]:
                break
        best = sorted(alive + ended, key=lambda pair: -pair[0] / len(pair[1]))[:beams]
        made = BeamSearch(beams).build(tiny, Inputs()).generate_many(torch.tensor(prompt), limit, rng())
        assert [t.tolist() for t in made.tokens] == [draft for _, draft in best]
        np.testing.assert_allclose(made.scores, [score / len(draft) for score, draft in best], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, k=st.integers(1, 4))
def test_coverage_grows_with_drafts_and_falls_with_tokens(seed, k):
    draw = rng(seed)
    truth = torch.from_numpy(draw.integers(0, 2, 10))
    drafts = [torch.from_numpy(draw.integers(0, 2, int(draw.integers(1, 11)))) for _ in range(k)]
    found = covered(drafts, truth)
    for m in (1, 2, 3):
        row = [found[f"hit_{m}_at_{j}"][0] for j in range(1, 4)]
        assert row == sorted(row)
        assert row == [
            float(any(d[:m].tolist() == truth[:m].tolist() for d in drafts[:j])) for j in range(1, len(row) + 1)
        ]
    for j in range(1, 4):
        assert found[f"hit_1_at_{j}"] >= found[f"hit_2_at_{j}"] >= found[f"hit_3_at_{j}"]
    assert found["agreement"][0] == max(agreement(draft, truth) for draft in drafts)


def test_the_judge_runs_each_draft_exactly(tiny):
    prompt = prompt_of(2)
    drafts = [prompt_of(11, 6), prompt_of(12, 4), prompt_of(13, 6)]
    numbers, cosines = judge(tiny, prompt, drafts)
    loop = VerifyLoop(tiny)
    exact = [float(loop.nll(torch.cat((prompt, draft)))[len(prompt) - 1 :].sum()) for draft in drafts]
    for n, (draft, nll) in enumerate(zip(drafts, exact, strict=True), 1):
        assert numbers[f"draft_{n}_nll"][0] == pytest.approx(nll, abs=1e-4)
        assert numbers[f"draft_{n}_tokens"][0] == len(draft)
    assert numbers["nll"][0] == pytest.approx(sum(exact), abs=1e-4)
    best = min(range(3), key=lambda n: exact[n] / len(drafts[n]))
    assert numbers["best_nll"][0] == pytest.approx(exact[best], abs=1e-4)
    assert len(cosines) == 4 and all(-1 <= c <= 1 + 1e-6 for c in cosines)


def test_the_network_is_linear_where_the_drafts_agree(tiny):
    """Drafts with one token each step in common mix to themselves; so do drafts of which one has all the weight."""
    draft = prompt_of(5, 5)
    _, cosines = judge(tiny, prompt_of(2), [draft, draft.clone()])
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_the_parts_of_the_encyclopaedia_share_no_article(root):
    from parsimony.assets import fetch
    from parsimony.plan import make_plan

    path = fetch("wiki_summaries", make_plan([], root).lock, root / "resources")
    rows = {part: extracts(path, part) for part in PARTS}
    numbers = [{n for n, _ in rows[part]} for part in PARTS]
    texts = [{text for _, text in rows[part]} for part in PARTS]
    assert len(set.union(*numbers)) == sum(map(len, numbers)) == 10033
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert min(map(len, numbers)) > 500


def test_too_little_text_is_refused(tiny_folder, tmp_path):
    import json

    from parsimony.recipes.ngram_tables import count

    (tmp_path / "summaries.json").write_text(json.dumps({str(n): {"extract": "Some words."} for n in range(40)}))
    inputs = {"model": tiny_folder, "text": tmp_path}
    with pytest.raises(UserError, match="at least 500,000"):
        count(tmp_path, inputs, model="model", text="text", longest=6, vocabulary=300)
