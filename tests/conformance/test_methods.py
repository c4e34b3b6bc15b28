"""Every method of configs/method, found by discovery, keeps what its config declares; a new one needs no test."""

import json
from collections import Counter
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from codecs_shared import build_codec
from conftest import ROOT, write_tiny_drafter, write_tiny_model, write_tiny_seq2seq

from parsimony.instantiate import instantiate
from parsimony.interfaces import (
    BatchCodec,
    BatchGenerator,
    CacheEditor,
    ChannelRanker,
    CircuitCodec,
    Codec,
    ContextHolder,
    ForwardTimer,
    Guesser,
    ImageGenerator,
    Inputs,
    LanguageModel,
    MultiGenerator,
    ParallelReader,
    SampleCoder,
    Stateful,
    TextGenerator,
)
from parsimony.methods.autoregressive.ngrams import NgramTables
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.methods.kv_cache.held import prefill
from parsimony.methods.kv_cache.pie import Edit, applied
from parsimony.methods.kv_cache.streaming import Arriving
from parsimony.models.language import Language
from parsimony.plan import make_plan
from parsimony.recipes.recycling_calibration import CountingDrafter
from parsimony.records import SCHEMA

PROTOCOLS = {
    kind.__name__: kind
    for kind in (
        TextGenerator,
        LanguageModel,
        ForwardTimer,
        BatchGenerator,
        MultiGenerator,
        Guesser,
        ImageGenerator,
        ContextHolder,
        ParallelReader,
        CacheEditor,
        Codec,
        BatchCodec,
        ChannelRanker,
        CircuitCodec,
        SampleCoder,
    )
}
METHODS = make_plan([], ROOT).methods
PAIRS = [(method, point) for method, config in METHODS.items() for point in config.points]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, tiny_folder) -> Inputs:
    """What methods may ask for besides the model: small assets and a latency curve, real in form."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("calibration")
    falling = torch.arange(80, 0, -1)
    save_file({"accepted": falling, "passes": torch.tensor([200])}, folder / "acceptance.safetensors")
    seeded, acc = torch.Generator().manual_seed(0), 0.4 * 0.5 ** torch.arange(1, 11) + torch.zeros(3, 1)
    kinds = ("trained", "text", "random")
    prompts = {f"vectors.{kind}": torch.randn(3, 1, 32, generator=seeded) for kind in kinds}
    prompts |= {f"acc.{kind}": acc.clone() for kind in kinds}
    save_file(prompts, folder / "prompt_tokens.safetensors")
    heads = {"weight": torch.randn(3, 32, 32, generator=seeded) / 8, "bias": torch.zeros(3, 32)}
    save_file({name: tensor.bfloat16() for name, tensor in heads.items()}, folder / "heads.safetensors")
    corpus, text = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("text")
    answers = torch.from_numpy(np.random.default_rng(1).integers(2, 40, 400, dtype=np.int32))
    lengths = {"prompt_lengths": torch.tensor([3, 5, 1, 20]).int(), "lengths": torch.tensor([100, 50, 150, 100]).int()}
    save_file({"tokens": answers, **lengths}, corpus / "outputs.safetensors")
    (text / "summaries.json").write_text(json.dumps({"1": {"title": "One", "extract": "Long ago. " * 150}}))
    rows = []
    for dtype in ("float32", "bfloat16"):
        for count in (1, 8, 81):
            item = dict.fromkeys(SCHEMA.names, "") | {"item": f"{dtype}_{count}", "category": dtype, "status": "ok"}
            rows += [item | {"metric": "rows", "value": count}, item | {"metric": "seconds", "value": 1 + count / 20}]
    ngrams = tmp_path_factory.mktemp("ngrams")
    texts = [np.random.default_rng(seed).integers(0, 300, 400) for seed in range(20)]
    NgramTables.count(texts, 300).save(ngrams / "ngrams.safetensors")
    nat = write_tiny_seq2seq(tmp_path_factory.mktemp("nat"), causal=False, seed=1)
    drafter = write_tiny_drafter(tmp_path_factory.mktemp("drafter"))
    assets = {"calibration": folder, "prompt_tokens": folder, "ngrams": ngrams, "drafter": drafter}
    gate = tmp_path_factory.mktemp("filter")
    weights = {name: torch.randn(32, 32, generator=seeded) for name in ("w1", "w2")}
    save_file(weights | {name: torch.zeros(32) for name in ("b1", "b2")}, gate / "filter.safetensors")
    assets |= {"corpus": corpus, "text": text, "nat": nat, "filter": gate}
    assets |= {"forced": tiny_folder, "plain": tiny_folder}
    return Inputs(assets, {"latency": pd.DataFrame(rows)})


@pytest.fixture(scope="session")
def models(tiny, tiny_seq2seq, tiny_masked, tiny_image) -> dict:
    """A tiny random model of each architecture that has weights."""
    return {"decoder": tiny, "seq2seq": tiny_seq2seq, "masked": tiny_masked, "masked_image": tiny_image}


@pytest.fixture
def built(request, models, inputs):
    method, point = request.param
    return METHODS[method], build(method, point, models, inputs)


def pairs(interface: str) -> list[tuple[str, str]]:
    """Methods that declare ``interface``, with each of their operating points."""
    return [pair for pair in PAIRS if interface in METHODS[pair[0]].implements]


def every(interface: str, lossless: bool = False):
    """Run a test for every operating point of the methods that declare ``interface`` (and losslessness)."""
    chosen = [pair for pair in pairs(interface) if METHODS[pair[0]].lossless or not lossless]
    return pytest.mark.parametrize("built", chosen, indirect=True, ids="-".join)


def build(method: str, point: str, models: dict, inputs: Inputs):
    config = METHODS[method]
    if config.module:
        pytest.importorskip(config.module, reason=f"{config.module} is not installed; `make oracles` installs it")
    if config.architecture == "samples":
        return build_codec(config, point)
    built = instantiate(config.target, config.params | config.points[point])
    return built.build(models[config.architecture], inputs)


def prompts():
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(2, 300, n)) for n in (1, 7, 30, 30)]


@pytest.mark.parametrize("built", PAIRS, indirect=True, ids="-".join)
def test_satisfies_the_declared_interfaces(built):
    config, system = built
    for name in config.implements:
        assert isinstance(system, PROTOCOLS[name])


@every("TextGenerator")
def test_honours_the_limit_and_returns_costs(built, models):
    config, system = built
    before = int(models[config.architecture].decoder.begin is None)  # the first token comes from the prefill, or not
    for limit, prompt in product((0, 1, 2, 17), prompts()):
        generation = system.generate(prompt, limit, np.random.default_rng(0))
        assert generation.tokens.dtype == torch.int64 and generation.tokens.ndim == 1
        assert len(generation.tokens) <= limit
        cost = generation.cost
        assert cost.passes == len(cost.accepted_per_pass)
        assert 0 <= cost.accepted <= cost.drafted
        unmasks = config.architecture == "masked"  # commits positions behind the end too, and caches at will
        gained = sum(cost.accepted_per_pass)
        if unmasks:
            assert len(generation.tokens) <= gained <= limit
        else:
            assert gained == max(len(generation.tokens) - before, 0)
        if limit:
            assert cost.cache_bytes > 0 or unmasks
            assert min(cost.prefill_seconds, cost.draft_seconds, cost.verify_seconds) >= 0


@every("TextGenerator")
def test_the_seed_decides_everything(request, models, inputs, built):
    fresh = build(*request.node.callspec.params["built"], models, inputs)
    runs = []
    for system in (built[1], fresh):
        runs.append([system.generate(p, 12, np.random.default_rng(7)).tokens.tolist() for p in prompts()])
    assert runs[0] == runs[1]


@every("TextGenerator", lossless=True)
def test_lossless_methods_equal_their_reference(request, models, inputs, built):
    config, system = built
    points, point = METHODS[config.reference].points, request.node.callspec.params["built"][1]
    reference = build(config.reference, point if point in points else next(iter(points)), models, inputs)
    for prompt in prompts():
        expected = reference.generate(prompt, 24, np.random.default_rng(0)).tokens.tolist()
        assert system.generate(prompt, 24, np.random.default_rng(0)).tokens.tolist() == expected


@pytest.mark.parametrize("together", [None, 2])
@pytest.mark.parametrize("limit", [0, 1, 2, 9])
@every("BatchGenerator")
def test_batches_honour_the_limit_and_return_costs(built, limit, together):
    _, system = built
    assert system.generate_batch([], limit, np.random.default_rng(0)).generations == []
    batch = system.generate_batch(prompts(), limit, np.random.default_rng(0), together)
    assert len(batch.generations) == len(prompts())
    for generation in batch.generations:
        assert generation.tokens.dtype == torch.int64 and generation.tokens.ndim == 1
        assert (limit > 0) <= len(generation.tokens) <= limit
        cost = generation.cost
        assert cost.passes == len(cost.accepted_per_pass)
        assert 0 <= cost.accepted <= cost.drafted
        assert sum(cost.accepted_per_pass) == max(len(generation.tokens) - 1, 0)
        assert (cost.cache_bytes > 0) == (limit > 0)
    cost = batch.cost
    assert cost.passes == len(cost.accepted_per_pass) and 0 <= batch.grouped <= cost.passes
    assert cost.passes >= max(generation.cost.passes for generation in batch.generations)
    assert cost.passes <= sum(generation.cost.passes for generation in batch.generations)
    assert cost.rows >= sum(generation.cost.rows for generation in batch.generations)
    assert sum(cost.accepted_per_pass) == sum(max(len(g.tokens) - 1, 0) for g in batch.generations)
    times = (batch.realign_seconds, cost.prefill_seconds, cost.draft_seconds, cost.verify_seconds)
    assert min(times) >= 0 and (cost.cache_bytes > 0) == (cost.passes > 0)


@every("BatchGenerator")
def test_the_seed_decides_batches_and_nothing_is_left_behind(request, models, inputs, built):
    _, system = built
    fresh = build(*request.node.callspec.params["built"], models, inputs)
    runs = []
    for each in (system, fresh, system):
        start = each.state() if isinstance(each, Stateful) else {}
        runs.append(each.generate_batch(prompts(), 12, np.random.default_rng(7), 3))
        if isinstance(each, Stateful):
            each.restore(start)
    tokens = [[generation.tokens.tolist() for generation in run.generations] for run in runs]
    assert tokens[0] == tokens[1] == tokens[2]
    assert runs[0].cost.accepted_per_pass == runs[1].cost.accepted_per_pass == runs[2].cost.accepted_per_pass


@pytest.mark.parametrize("together", [None, 1, 3])
@every("BatchGenerator", lossless=True)
def test_lossless_batches_equal_their_reference_alone(models, inputs, built, together):
    config, system = built
    reference = build(config.reference, next(iter(METHODS[config.reference].points)), models, inputs)
    rng = np.random.default_rng(0)
    if isinstance(reference, BatchGenerator):
        expected = reference.generate_batch(prompts(), 16, rng, 1).generations
    else:
        expected = [reference.generate(prompt, 16, rng) for prompt in prompts()]
    found = system.generate_batch(prompts(), 16, rng, together).generations
    assert [f.tokens.tolist() for f in found] == [e.tokens.tolist() for e in expected]


@pytest.fixture(scope="session")
def drawn_one_by_one(models) -> dict:
    return {kind: draw(VerifyLoop(models[kind]), seed=1) for kind in ("decoder", "seq2seq", "masked")}


def draw(loop, seed: int, runs: int = 500) -> list[tuple]:
    """Second and third tokens of continuations of one prompt, sampled again and again by the same loop."""
    rng, prompt = np.random.default_rng(seed), prompts()[2]
    return [tuple(loop.generate(prompt, 3, rng, temperature=0.25).tokens.tolist()[1:]) for _ in range(runs)]


@pytest.mark.parametrize("method", [m for m, config in METHODS.items() if config.lossless and config.reference])
def test_sampling_keeps_the_distribution_of_the_target(method, models, inputs, drawn_one_by_one):
    """Chi-square against plain sampling; the state is kept, so drafters that learn propose what they saw before."""
    from scipy.stats import chi2_contingency

    system = build(method, next(iter(METHODS[method].points)), models, inputs)
    if not isinstance(system, VerifyLoop):
        pytest.skip(f"{METHODS[method].target} does not decode with the verify loop")
    samples = [drawn_one_by_one[METHODS[method].architecture], draw(system, seed=2)]
    common = [pair for pair, count in Counter(sum(samples, [])).items() if count >= 12]
    table = [[each.count(pair) for pair in common] for each in samples]
    table = [[*row, len(each) - sum(row)] for row, each in zip(table, samples, strict=True)]
    assert len(common) >= 5
    assert chi2_contingency(table).pvalue > 1e-4


@every("TextGenerator")
def test_leaves_nothing_behind_but_its_declared_state(built):
    """After going back to the saved state, everything is as it was; the output depends on nothing else."""
    _, system = built
    start = system.state() if isinstance(system, Stateful) else {}
    first = system.generate(prompts()[2], 12, np.random.default_rng(0))
    system.generate(prompts()[1], 12, np.random.default_rng(0))
    if isinstance(system, Stateful):
        system.restore(start)
    again = system.generate(prompts()[2], 12, np.random.default_rng(0))
    assert again.tokens.tolist() == first.tokens.tolist()
    assert again.cost.accepted_per_pass == first.cost.accepted_per_pass


@pytest.mark.parametrize("limit", [0, 1, 2, 17])
@every("MultiGenerator")
def test_many_drafts_honour_the_limit_and_return_costs(built, tiny, limit):
    _, system = built
    for prompt in prompts():
        drafts = system.generate_many(prompt, limit, np.random.default_rng(0))
        assert len(drafts.tokens) == len(drafts.scores) and bool(drafts.tokens) == bool(limit)
        assert drafts.scores == sorted(drafts.scores, reverse=True)
        for tokens in drafts.tokens:
            assert tokens.dtype == torch.int64 and tokens.ndim == 1 and 1 <= len(tokens) <= limit
            assert int(tokens.min()) >= 0 and int(tokens.max()) < tiny.decoder.config.vocabulary
            assert not set(tokens[:-1].tolist()) & tiny.stop_ids
            assert len(tokens) == limit or int(tokens[-1]) in tiny.stop_ids
        cost = drafts.cost
        assert 0 <= cost.passes <= cost.rows
        assert cost.passes == 0 or cost.cache_bytes > 0
        assert min(cost.prefill_seconds, cost.draft_seconds, cost.verify_seconds) >= 0


@every("MultiGenerator")
def test_the_seed_decides_every_draft_and_nothing_is_left_behind(request, models, inputs, built):
    _, first = built
    runs = []
    for system in (first, build(*request.node.callspec.params["built"], models, inputs), first):
        learnt = isinstance(system, Stateful)
        start = system.state() if learnt else {}
        many = [system.generate_many(p, 9, np.random.default_rng(7)) for p in prompts()]
        runs.append([([t.tolist() for t in d.tokens], d.scores, d.cost.passes, d.cost.rows) for d in many])
        if learnt:
            system.restore(start)
    assert runs[0] == runs[1] == runs[2]


@every("ImageGenerator")
def test_images_are_pictures_and_the_seed_decides_them(request, models, inputs, built):
    _, system = built
    classes, made = torch.tensor([3, 3, 0, 9]), []
    for each in (system, build(*request.node.callspec.params["built"], models, inputs), system):
        images, cost = each.generate_images(classes, np.random.default_rng(7))
        assert images.shape[0] == len(classes) and images.ndim == 3
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        assert 0 < cost.passes <= len(cost.accepted_per_pass) and cost.rows >= cost.passes * len(classes)
        made.append(images)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert not torch.equal(made[0][0], made[0][1])


CHUNK = 32
"""Tokens that come at once over the link of a context that comes over one."""


def contexts(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A context of so many tokens, and tokens that follow."""
    ids = torch.from_numpy(np.random.default_rng(length).integers(2, 290, length + 40))
    return ids[:length], ids[length:]


def arriving(decoder, ids) -> Arriving:
    """A prefilled context, that comes over a fast link, for methods that care."""
    links = np.ones((1, -(-len(ids) // CHUNK)))
    return Arriving(**vars(prefill(decoder, ids)), chunk=CHUNK, links=links, slo=100.0, recompute=0.1, text_bytes=90.0)


def run(context, ids) -> torch.Tensor:
    with torch.inference_mode():
        return context.extend(ids)


@pytest.mark.parametrize("length", [1, 2, 7, 70])
@every("ContextHolder")
def test_a_held_context_goes_on_from_where_it_was(built, models, length):
    config, system = built
    ids, following = contexts(length)
    prefilled = arriving(models[config.architecture].decoder, ids)
    context, seconds = system.hold(prefilled)
    assert seconds >= 0 and len(context) == length and context.nbytes() > 0
    assert context.logits.shape == prefilled.logits.shape and bool(context.logits.isfinite().all())
    for n, token in enumerate(following):
        logits = run(context, token[None])
        assert len(context) == length + n + 1  # positions go on, whatever is held
        assert torch.equal(logits[-1], context.logits) and bool(logits.isfinite().all())
    assert run(context, following[:0]).shape == (0, len(context.logits)) and len(context) == length + 40
    assert context.upkeep_seconds >= 0


@pytest.fixture(scope="session")
def wide(tmp_path_factory) -> Language:
    """A tiny random model whose heads are as wide as real ones: scales and low ranks pay off from some width on."""
    return Language.load(write_tiny_model(tmp_path_factory.mktemp("wide"), width=64), ["<|im_end|>"], "float32")


@pytest.mark.parametrize("length", [300, 400])  # windows, sinks and summaries of a fixed size weigh little from here on
@pytest.mark.parametrize("pair", pairs("ContextHolder"), ids="-".join)
def test_no_more_is_held_than_the_full_cache(wide, inputs, pair, length):
    system = build(*pair, {"decoder": wide}, inputs)
    ids, following = contexts(length)
    prefilled = arriving(wide.decoder, ids)
    context, _ = system.hold(prefilled)
    if context.layers[0].whole:
        pytest.skip("its budget has room for the whole context")
    for n in range(len(following) + 1):
        assert context.nbytes() <= prefilled.nbytes * (length + n) / length
        run(context, following[n : n + 1])


@every("ContextHolder")
def test_two_holds_of_one_context_are_independent(built, models):
    """Nor is what both come from changed by either."""
    config, system = built
    ids, following = contexts(70)
    prefilled = arriving(models[config.architecture].decoder, ids)
    before = [x.clone() for x in (prefilled.keys, prefilled.values, prefilled.queries, prefilled.logits)]
    first, second = (system.hold(prefilled)[0] for _ in range(2))
    held = second.nbytes()
    found = run(first, following)
    assert second.nbytes() == held and len(second) == 70
    assert torch.equal(run(second, following), found) and first.nbytes() == second.nbytes()
    run(second, following.flip(0))
    assert torch.equal(run(system.hold(prefilled)[0], following), found)
    after = (prefilled.keys, prefilled.values, prefilled.queries, prefilled.logits)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@every("ContextHolder")
def test_tokens_at_once_and_one_by_one_are_the_same(built, models):
    config, system = built
    ids, following = contexts(70)
    prefilled = arriving(models[config.architecture].decoder, ids)
    one, many = (system.hold(prefilled)[0] for _ in range(2))
    expected = torch.cat([run(one, token[None]) for token in following])
    assert torch.equal(torch.cat([run(many, part) for part in following.split((1, 0, 17, 22))]), expected)
    assert one.nbytes() == many.nbytes() and len(one) == len(many)


@every("ParallelReader")
def test_what_was_read_goes_on_and_depends_on_nothing_else(request, models, inputs, built):
    config, system = built
    fresh = build(*request.node.callspec.params["built"], models, inputs)
    prefix, texts = contexts(9)[0], [contexts(n)[0] for n in (5, 21, 12)]
    following, kept, runs = contexts(40)[1], [text.clone() for text in texts], []
    for each in (system, fresh, system):
        context, seconds = each.read(prefix, texts)
        start, held = len(context), context.nbytes()
        assert seconds >= 0 and len(prefix) <= start <= len(prefix) + sum(map(len, texts)) and held > 0
        together = run(context, following)
        assert len(context) == start + len(following) and context.nbytes() >= held
        assert together.shape[0] == len(following) and bool(together.isfinite().all())
        runs.append(together)
        one, _ = each.read(prefix, texts)
        single = torch.cat([run(one, token[None]) for token in following])
        torch.testing.assert_close(single, together, atol=2e-2, rtol=2e-2)  # held in half precision
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert all(torch.equal(*pair) for pair in zip(texts, kept, strict=True))


@every("ParallelReader")
def test_a_single_context_or_none_can_be_read(built, models):
    _, system = built
    prefix, following = contexts(9)[0], contexts(40)[1]
    for texts in ([], [contexts(5)[0]], [contexts(5)[0], contexts(5)[0][:0]]):
        context, _ = system.read(prefix, texts)
        assert bool(run(context, following).isfinite().all())


EDITS = {
    "none": [],
    "insertion": [Edit(20, 20, torch.tensor([5, 6, 7]))],
    "deletion": [Edit(11, 19, torch.tensor([], dtype=torch.int64))],
    "replacement": [Edit(3, 6, torch.tensor([9]))],
    "at_the_end": [Edit(68, 70, torch.tensor([4, 4]))],
    "two": [Edit(0, 1, torch.tensor([8, 8])), Edit(40, 44, torch.tensor([3]))],
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
@every("CacheEditor")
def test_an_edited_context_goes_on_and_the_old_one_stays(built, models, edits):
    config, system = built
    decoder = models[config.architecture].decoder
    ids, following = contexts(70)
    prefilled, lengths = prefill(decoder, ids), {len(ids), len(applied(ids, edits))}
    before, runs = [x.clone() for x in (prefilled.ids, prefilled.keys, prefilled.values, prefilled.logits)], []
    for _ in range(2):
        context, seconds, rows = system.edit(prefilled, edits)
        start = len(context)
        assert seconds >= 0 and start in lengths and 0 <= rows <= start
        runs.append(run(context, following))
        assert len(context) == start + len(following) and bool(runs[-1].isfinite().all())
    assert torch.equal(*runs)
    after = (prefilled.ids, prefilled.keys, prefilled.values, prefilled.logits)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    if not edits:
        exact = decoder.forward(torch.cat((ids, following))[None], decoder.cache(128))[0, 70:]
        torch.testing.assert_close(runs[0], exact, atol=2e-2, rtol=2e-2)


@every("SampleCoder")
def test_samples_follow_from_the_arguments_and_their_numbers_fit_their_bits(request, models, inputs, built):
    _, system = built
    fresh, rng = build(*request.node.callspec.params["built"], models, inputs), np.random.default_rng(0)
    for d in (1, 7):
        mean, std, zeros, ones = rng.normal(size=d) / d, np.full(d, 0.5), np.zeros(d), np.ones(d)
        for stream in range(4):
            sample, number, bits = system.draw(mean, std, zeros, ones, stream)
            again, same, _ = fresh.draw(mean, std, zeros, ones, stream)
            assert sample.shape == (d,) and sample.dtype == np.float64 and (sample == again).all()
            assert 0 <= number == same < 2**bits


@every("LanguageModel")
def test_nll_matches_the_decoder(built, tiny):
    _, system = built
    ids = prompts()[2]
    logits = tiny.decoder.forward(ids[None], tiny.decoder.cache(64))[0].double()
    expected = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    torch.testing.assert_close(system.nll(ids), expected, atol=1e-5, rtol=0)


@every("Guesser")
def test_guesses_look_at_their_prefix_alone(built):
    _, system = built
    ids, cuts = prompts()[2], torch.tensor([3, 9, 20])
    whole = system.guess(ids, cuts)
    assert whole.shape[0] == 3 and len(set(whole[0, 0].tolist())) == whole.shape[2]
    for k, length in enumerate(cuts.tolist()):
        other = torch.cat((ids[:length], ids[length:].flip(0)))
        assert torch.equal(system.guess(other, cuts[k : k + 1])[0], whole[k])
    assert sum(tensor.numel() for tensor in system.trained) > 0


def test_calibration_counts_what_was_accepted(tiny):
    from parsimony.methods.autoregressive.token_recycling import static_tree
    from parsimony.methods.autoregressive.verify import Tree, VerifyLoop

    parents, ranks = static_tree()
    drafter = CountingDrafter(300, Tree.of(parents), ranks)
    loop = VerifyLoop(tiny, drafter)
    gained = [loop.generate(p, 40, np.random.default_rng(0)).cost for p in prompts() * 2]
    # The pass that ends a sequence is not observed.
    assert drafter.passes == sum(max(cost.passes - 1, 0) for cost in gained)
    assert int(drafter.accepted.sum()) <= sum(cost.accepted for cost in gained)
