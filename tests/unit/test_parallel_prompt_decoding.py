"""Parallel Prompt Decoding: trees, prompt rows and training keep what the paper's algorithm promises."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer

from parsimony.errors import UserError
from parsimony.methods.autoregressive.medusa_heads import Heads
from parsimony.methods.autoregressive.parallel_prompt_decoding import PromptDrafter
from parsimony.methods.autoregressive.prompt_tree import allot, bare, candidates, dynamic, static, stationary
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.plan import read_lock
from parsimony.recipes import prompt_tokens
from parsimony.recipes.prompt_tokens import Real, Rollout, ahead, distance, fit, guesses, initial

RNG = np.random.default_rng(0)
PUBLISHED = (0.483, 0.143, 0.074, 0.045, 0.031, 0.022, 0.017, 0.013, 0.009, 0.008)
ACC = (PUBLISHED, tuple(0.6 * a for a in PUBLISHED), tuple(0.4 * a for a in PUBLISHED))
"""The first row is that of Vicuna-7B (the repository's calibration); the others fall as ours do."""


def table(seed: int, m: int = 3, ranks: int = 10) -> np.ndarray:
    """Random accuracies that sum to less than one, falling with the rank."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.dirichlet(np.ones(ranks + 1), m)[:, :ranks])[:, ::-1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 3), nodes=st.integers(1, 60))
def test_candidates_are_the_likeliest_and_closed_under_prefixes(seed, depth, nodes):
    acc = table(seed)
    found = candidates(acc, depth, nodes)
    assert found.paths[0] == () and all(path[:-1] in found.paths for path in found.paths[1:])
    everything = [p for d in range(1, depth + 1) for p in itertools.product(range(10), repeat=d)]
    score = {path: float(np.prod([acc[i, r] for i, r in enumerate(path)])) for path in everything}
    best = sorted(score.values(), reverse=True)[:nodes]
    assert sorted((score[path] for path in found.paths[1:]), reverse=True) == pytest.approx(best)
    assert [found.paths[parent] for parent in found.parents] == [path[:-1] for path in found.paths[1:]]
    # The last accepted node is some node, and the expected gain is the mean depth plus the bonus token.
    assert found.last.sum() == pytest.approx(1) and found.last.min() >= -1e-12
    gain = sum(p * (len(path) + 1) for p, path in zip(found.last, found.paths, strict=True))
    assert gain == pytest.approx(found.score.sum())


def test_candidates_stay_closed_where_guesses_never_hit():
    assert candidates(np.zeros((3, 10)), 3, 12).paths[1:] == [(r,) for r in range(10)] + [(0, 0), (0, 1)]
    sure = np.zeros((3, 10))
    sure[:, 0] = 1
    assert candidates(sure, 3, 3).paths == [(), (0,), (0, 0), (0, 0, 0)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), nodes=st.integers(1, 20), m=st.integers(1, 4))
def test_allotment_removes_the_cheapest_prompt_token_one_by_one(seed, nodes, m):
    rng = np.random.default_rng(seed)
    last, f = rng.dirichlet(np.ones(nodes)), 1 + np.cumsum(rng.random(m))
    for budget in range(nodes, nodes * m + 1):
        counts = np.full(nodes, m)
        while counts.sum() > budget:
            loss = [last[k] * (f[n - 1] - f[n - 2]) if n > 1 else np.inf for k, n in enumerate(counts)]
            counts[int(np.argmin(loss))] -= 1
        assert allot(last, f, budget).tolist() == counts.tolist()


@pytest.mark.parametrize("e", [1, 2])
@pytest.mark.parametrize("limit", [5, 8, 16, 31, 60])
def test_forests_keep_the_limit_and_their_states(limit, e):
    forest = dynamic(ACC, limit, e)
    assert forest.transitions.sum(1) == pytest.approx(1)
    assert forest.stationary.sum() == pytest.approx(1)
    assert forest.stationary @ forest.transitions == pytest.approx(forest.stationary, abs=1e-6)
    assert set(forest.trees) == {1, 2, 3}
    for s, tree in forest.trees.items():
        counts = [len(rows) for rows in tree.prompts]
        assert len(tree.tree.parents) - 1 == len(tree.slots) + e * sum(counts) <= limit
        assert 1 <= min(counts) <= max(counts) <= 3
        assert int(tree.slots.max()) < 10 * s  # no guesses but those of the state's own prompt tokens
        # A prompt row stands as far behind its node as its number says, and sees the node's path and its own chain.
        N = len(tree.slots)
        for node, rows in enumerate(tree.prompts):
            for i, j in itertools.product(range(len(rows)), range(e)):
                row = int(rows[i, j])
                assert tree.tree.depth[row] == tree.tree.depth[node] + i + 1
                assert int(tree.vectors[row - N - 1]) == i * e + j
                sees = set(tree.tree.sees[row].nonzero()[:, 0].tolist())
                assert sees == set(tree.tree.sees[node].nonzero()[:, 0].tolist()) | set(rows[: i + 1, j].tolist())
        assert not tree.tree.sees[: N + 1, N + 1 :].any()  # no real token sees a prompt row
    if limit == 60 and e == 1:
        assert len(forest.trees[1].slots) == 10  # as published


def test_expected_tokens_grow_with_the_limit():
    expected = [dynamic(ACC, limit).expected for limit in range(3, 64, 4)]
    assert all(b >= 0.99 * a for a, b in itertools.pairwise(expected))  # state 1 stops growing at 10 candidates
    assert expected[-1] > 1.2 * expected[0]
    assert all(dynamic(ACC, n).expected >= static(ACC, n).expected - 1e-9 for n in (8, 16, 32))


def test_static_trees_carry_all_prompt_tokens_everywhere():
    forest = static(ACC, 16)
    (tree,) = forest.trees.values()
    assert set(forest.trees) == {3} and len(tree.slots) == 3
    assert [len(rows) for rows in tree.prompts] == [3] * 4 and len(tree.tree.parents) <= 17
    assert forest.expected == pytest.approx(1 + sum(sorted((*ACC[0], ACC[0][0] * ACC[1][0]), reverse=True)[:3]))


@pytest.mark.parametrize(("grow", "limit"), [(dynamic, 2), (static, 6)])
def test_a_limit_without_room_is_refused(grow, limit):
    with pytest.raises(UserError, match="limit of at least"):
        grow(ACC, limit)


def test_the_long_run_depends_on_the_start_only_where_it_must():
    cycle = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert stationary(cycle) == pytest.approx([1 / 3] * 3)
    assert stationary(np.eye(3)) == pytest.approx([0, 0, 1])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 40),
    limit=st.integers(0, 24),
    rows=st.sampled_from([3, 8, 16, 32]),
    e=st.sampled_from([1, 2]),
    kind=st.sampled_from([dynamic, static]),
)
def test_any_vectors_give_the_greedy_output(tiny, seed, length, limit, rows, e, kind):
    rows = max(rows, 1 + 2 * e * (3 if kind is static else 1))
    prompt = torch.from_numpy(np.random.default_rng(seed).integers(0, 300, length))
    greedy = VerifyLoop(tiny).generate(prompt, limit, RNG)
    vectors = torch.randn(3, e, 32, generator=torch.Generator().manual_seed(seed))
    drafter = PromptDrafter(vectors, kind(ACC, rows, e), 300, 10)
    loop, before = VerifyLoop(tiny, drafter), []
    watched = drafter.observe

    def observe(seen, logits, path, gained):
        assert len(seen) <= max(rows, 3 * e) + 1
        assert len(loop._cache) == length + sum(before) + len(gained)
        before.append(len(gained))
        assert loop._cache.plain  # exactly the accepted tokens, at positions 0, 1, 2, ...
        watched(seen, logits, path, gained)

    drafter.observe = observe
    ours = loop.generate(prompt, limit, RNG)
    assert ours.tokens.tolist() == greedy.tokens.tolist()
    assert ours.cost.rows <= (max(rows, 3 * e) + 1) * ours.cost.passes


def test_good_guesses_are_accepted(tiny):
    """With guesses that are the future, several tokens are gained a pass: prompt rows are read where they should be."""
    prompt = torch.from_numpy(np.random.default_rng(4).integers(0, 300, 12))
    greedy = VerifyLoop(tiny).generate(prompt, 40, RNG).tokens
    drafter = PromptDrafter(torch.randn(3, 1, 32), dynamic(ACC, 60), 300, 10)
    done, counts = [1], []
    blind = drafter.observe

    def observe(rows, logits, path, gained):
        blind(rows, logits, path, gained)
        done.append(done[-1] + len(gained))
        counts.append(len(drafter.guesses))
        future = greedy[done[-1] : done[-1] + len(drafter.guesses)]
        drafter.guesses[: len(future), 0] = future

    drafter.observe = observe
    ours = VerifyLoop(tiny, drafter).generate(prompt, 40, RNG)
    assert ours.tokens.tolist() == greedy.tolist()
    assert ours.cost.accepted_per_pass[0] == 1  # the first pass drafts prompt rows alone
    gained = ours.cost.accepted_per_pass[1:-1]
    assert all(1 < n <= 1 + s for n, s in zip(gained, counts, strict=False)) and max(gained) == 4


@pytest.mark.parametrize("e", [1, 2])
def test_prompt_rows_never_change_the_logits_of_real_tokens(tiny, e):
    decoder, ids = tiny.decoder, torch.arange(5, 25)
    tree = dynamic(ACC, 24, e).trees[3]
    N = len(tree.slots)
    rows = torch.cat((torch.tensor([7]), torch.arange(40, 40 + N)))
    vectors = 5 * torch.randn(3 * e, 32, generator=torch.Generator().manual_seed(0))
    logits = []
    for drafted, shape in (
        (torch.cat((rows, 300 + tree.vectors)), tree.tree.sees),
        (rows, tree.tree.sees[: N + 1, : N + 1]),
    ):
        cache = decoder.cache(100)
        decoder.prefill(ids[None], cache)
        where = (20 + tree.tree.depth[: len(drafted)])[None]
        logits.append(decoder.forward(drafted[None], cache, positions=where, tree=shape, vectors=vectors)[0])
    torch.testing.assert_close(logits[0][: N + 1], logits[1], atol=1e-4, rtol=0)
    assert (logits[0][N + 1 :].std(0) > 0).any()


@pytest.fixture(scope="module")
def net(tiny_folder):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def rollouts(tiny):
    out = []
    for seed in range(12):
        prompt = torch.from_numpy(np.random.default_rng(seed).integers(2, 300, 8))
        answer = VerifyLoop(tiny).generate(prompt, 40, RNG).tokens
        if len(answer) > 6:
            out.append(Rollout(torch.cat((prompt, answer)), len(prompt)))
    assert len(out) >= 6
    return out


@pytest.mark.parametrize("e", [1, 2])
def test_cut_points_of_one_pass_do_not_see_each_other(net, tiny, rollouts, e):
    """Each cut point gets what the decoder, and a sequence of its own, give its prompt rows."""
    vectors = torch.randn(3, e, 32, generator=torch.Generator().manual_seed(1))
    ids, cuts = rollouts[0].ids, torch.tensor([9, 12, 20])
    ours = guesses(net, Real.read(net, ids), vectors, cuts)
    for k, L in enumerate(cuts.tolist()):
        tree = bare(3, 10, e)
        cache = tiny.decoder.cache(100)
        tiny.decoder.prefill(ids[None, : L - 1], cache, want="none")
        rows = torch.cat((ids[L - 1 : L], 300 + tree.vectors))
        theirs = tiny.decoder.forward(
            rows[None], cache, positions=(L - 1 + tree.tree.depth)[None], tree=tree.tree.sees,
            vectors=vectors.flatten(0, 1),
        )[0]  # fmt: skip
        torch.testing.assert_close(ours[k], theirs[tree.prompts[0]].mean(1), atol=1e-4, rtol=0)


def test_the_teacher_is_the_greedy_answer_itself(net, rollouts):
    rollout = rollouts[0]
    at = rollout.cuts(3, 8, np.random.default_rng(0))
    assert at.min() >= rollout.begin and at.max() + 3 < len(rollout.ids)
    real = Real.read(net, rollout.ids)
    said = net.lm_head(real.hidden[ahead(at, 3)]).argmax(-1)
    assert torch.equal(said, rollout.ids[ahead(at, 3) + 1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_loss_is_a_divergence(seed):
    a, b = torch.randn(2, 4, 3, 20, generator=torch.Generator().manual_seed(seed)) * 3
    assert distance(a, b, 0.8) >= 0
    assert float(distance(a, a, 0.8)) == pytest.approx(0, abs=1e-6)
    first = (a[:, 0].softmax(-1) * (a[:, 0].log_softmax(-1) - b[:, 0].log_softmax(-1))).sum(-1).mean()
    assert float(distance(a[:, :1], b[:, :1], 0.8)) == pytest.approx(float(first), rel=1e-4)


def test_training_moves_the_vectors_alone_and_the_loss_falls(net, rollouts, monkeypatch):
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    trained = []
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda groups: trained.append(groups) or adam(groups))
    start = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(2)) * 0.2
    vectors, losses = fit(net, start, rollouts, cuts=6, epochs=12, lr=3e-2, decay=0.8, seed=0)
    assert sum(p.numel() for group in trained[0] for p in group["params"]) == 3 * 1 * 32  # m * e * d
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())
    assert min(losses) >= 0 and not torch.equal(vectors, start)
    n = len(rollouts)
    assert np.mean(losses[-n:]) < 0.9 * np.mean(losses[:n])
    acc, nats = prompt_tokens.calibrate(net, {"text": start, "trained": vectors}, rollouts, 12, 0.8, 0)
    assert nats["trained"] < 0.9 * nats["text"]
    for tables in acc.values():
        assert tables.shape == (3, 10) and (tables >= 0).all() and (tables.sum(1) <= 1 + 1e-6).all()


def test_heads_begin_as_the_identity_and_learn_beside_the_vectors(net, rollouts):
    heads = Heads(torch.zeros(3, 32, 32), torch.zeros(3, 32))
    hidden = torch.randn(5, 32)
    assert torch.equal(heads(hidden), hidden[:, None].expand(5, 3, 32))
    start = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(2)) * 0.2
    alone, _ = fit(net, start, rollouts[:3], cuts=6, epochs=1, lr=3e-2, decay=0.8, seed=0)
    beside, _ = fit(net, start, rollouts[:3], cuts=6, epochs=1, lr=3e-2, decay=0.8, seed=0, heads=heads)
    assert torch.equal(alone, beside)  # they share positions, nothing else
    untouched = Heads(torch.zeros(3, 32, 32), torch.zeros(3, 32))
    _, before = prompt_tokens.calibrate(net, {"trained": beside}, rollouts[:3], 12, 0.8, 0, untouched)
    acc, after = prompt_tokens.calibrate(net, {"trained": beside}, rollouts[:3], 12, 0.8, 0, heads)
    assert set(acc) == {"trained", "heads"} and after["heads"] < before["heads"]


def test_the_shipped_vectors_are_above_the_recipe_s_floors(root):
    row = read_lock(root)["smollm2_prompt_tokens"]
    if row.source != "shipped":
        pytest.skip("the vectors are not shipped; training them takes minutes")
    shipped = load_file(root / "results/published/assets/smollm2_prompt_tokens/prompt_tokens.safetensors")
    gain, left = row.params["floors"]
    acc = {kind: shipped[f"acc.{kind}"] for kind in ("trained", "text", "random", "heads")}
    assert acc["trained"][0, 0] >= gain + max(acc["text"][0, 0], acc["random"][0, 0])
    before, after = shipped["held_out_loss"].tolist()
    assert 0 <= after <= left * before
    m, e, D = shipped["vectors.trained"].shape
    assert (m, e, D) == (row.params["prompts"], row.params["ensemble"], 576)
    loss = shipped["loss"]
    assert loss.min() >= 0 and loss[-16:].mean() < 0.75 * loss[:16].mean()


def test_vectors_begin_as_the_words_of_the_published_text(net, tiny):
    begin = initial(net, AutoTokenizer.from_pretrained(tiny.folder), 3, 2)
    ids = tiny.encode("Next 2 word Next 3 word Next 4 word")[:6]
    assert torch.equal(begin.flatten(0, 1), net.get_input_embeddings().weight[ids]) and begin.shape == (3, 2, 32)
