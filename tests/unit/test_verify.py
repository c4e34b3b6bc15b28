"""The draft-verify loop gives the greedy output whatever the drafts are, and counts what they cost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.methods.autoregressive import verify
from parsimony.methods.autoregressive.budget import Budget, RunningOdds
from parsimony.methods.autoregressive.prompt_lookup import NgramDrafter
from parsimony.methods.autoregressive.token_recycling import RecyclingDrafter, static_tree, subtree, top
from parsimony.methods.autoregressive.verify import Draft, Tree, VerifyLoop, longest

RNG = np.random.default_rng(0)


def parents(draw_from, n):
    return [int(draw_from.integers(0, j + 1)) for j in range(n)]


class RandomDrafter:
    """Random trees: half of the tokens are what greedy decoding will say at that depth, the others are noise."""

    reads_prompt = False

    def __init__(self, future, rng, vocabulary):
        self.future, self.rng, self.vocabulary, self.seen = future, rng, vocabulary, 0

    def start(self, prompt, token, logits):
        self.seen = 1

    def propose(self, room):
        tree = Tree.of(parents(self.rng, int(self.rng.integers(0, 12))))
        tokens = self.rng.integers(0, self.vocabulary, len(tree.parents) - 1)
        for j, depth in enumerate(tree.depth[1:].tolist()):
            at = self.seen + depth - 1
            if self.rng.random() < 0.5 and at < len(self.future):
                tokens[j] = self.future[at]
        return Draft(torch.from_numpy(tokens), tree)

    def observe(self, rows, logits, path, gained):
        self.seen += len(gained)


def prompt_of(seed, length, vocabulary=300):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, vocabulary, length))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 40), limit=st.integers(0, 24))
def test_any_draft_gives_the_greedy_output(tiny, seed, length, limit):
    prompt = prompt_of(seed, length)
    greedy = VerifyLoop(tiny).generate(prompt, limit, RNG)
    drafter = RandomDrafter(greedy.tokens.tolist(), np.random.default_rng(seed), 300)
    ours = VerifyLoop(tiny, drafter).generate(prompt, limit, RNG)
    assert ours.tokens.tolist() == greedy.tokens.tolist()
    assert len(ours.tokens) <= limit
    cost = ours.cost
    assert sum(cost.accepted_per_pass) == max(len(ours.tokens) - 1, 0)
    assert cost.passes == len(cost.accepted_per_pass) and cost.rows == cost.passes + cost.drafted
    assert greedy.cost.accepted_per_pass == [1] * max(len(greedy.tokens) - 1, 0)
    assert greedy.cost.drafted == greedy.cost.accepted == 0


def test_a_verifier_wrong_by_one_token_is_caught(tiny, monkeypatch):
    """The property above can fail: accept one row too many and the output changes."""

    def generous(rows, choice, tree):
        path = longest(rows, choice, tree)
        below = [j for j in range(1, len(rows)) if tree.parents[j] == path[-1]]
        return torch.cat((path, torch.tensor(below[:1]))) if below else path

    different = 0
    for seed in range(10):
        prompt = prompt_of(seed, 12)
        greedy = VerifyLoop(tiny).generate(prompt, 16, RNG).tokens.tolist()
        monkeypatch.setattr(verify, "longest", generous)
        drafter = RandomDrafter(greedy, np.random.default_rng(seed), 300)
        different += VerifyLoop(tiny, drafter).generate(prompt, 16, RNG).tokens.tolist() != greedy
        monkeypatch.undo()
    assert different >= 8


@given(seed=st.integers(0, 10**6), n=st.integers(0, 30))
def test_longest_is_the_deepest_right_path(seed, n):
    rng = np.random.default_rng(seed)
    tree = Tree.of(parents(rng, n))
    rows = torch.from_numpy(rng.integers(0, 3, n + 1))
    choice = torch.from_numpy(rng.integers(0, 3, n + 1))
    right = [True] + [False] * n
    for j in range(1, n + 1):
        p = int(tree.parents[j])
        right[j] = right[p] and choice[p] == rows[j]
    best = max(range(n + 1), key=lambda j: (int(tree.depth[j]) if right[j] else -1, -j))
    assert longest(rows, choice, tree).tolist() == tree.sees[best].nonzero()[:, 0].tolist()
    assert right[best]


def test_a_stop_token_inside_the_prompt_does_not_stop(tiny):
    prompt = torch.tensor([1, 50, 0, 1, 60, 0, 1])  # token 0 ends turns, and stands in the prompt
    assert len(VerifyLoop(tiny).generate(prompt, 12, RNG).tokens) > 1


def test_generation_ends_behind_the_first_stop_token(tiny):
    prompt = prompt_of(3, 9)
    free = VerifyLoop(tiny).generate(prompt, 20, RNG).tokens.tolist()
    stop = free[7]
    bounded = type(tiny)(tiny.decoder, tiny.folder, tiny.stop)
    bounded.__dict__["stop_ids"] = frozenset({stop})
    expected = free[: free.index(stop) + 1]
    for drafter in (None, RandomDrafter(free, np.random.default_rng(0), 300)):
        assert VerifyLoop(bounded, drafter).generate(prompt, 20, RNG).tokens.tolist() == expected


def test_tree_refuses_a_child_before_its_parent():
    with pytest.raises(ValueError, match="must hang under an earlier one"):
        Tree.of([0, 3])


def test_the_published_tree():
    """80 nodes; 8, 21, 25, 15, 8, 3 a level; each mask row has depth + 1 ones; ranks 0..c-1 under each node."""
    up, ranks = static_tree()
    tree = Tree.of(up)
    assert torch.bincount(tree.depth).tolist() == [1, 8, 21, 25, 15, 8, 3]
    assert (tree.sees.sum(1) == tree.depth + 1).all()
    for node in range(81):
        mine = [rank for parent, rank in zip(up, ranks, strict=True) if parent == node]
        assert mine == list(range(len(mine)))


def test_subtree_keeps_paths():
    up, ranks = static_tree()
    assert subtree(up, ranks, [0, 1, 8, 29]) == ([0, 0, 1, 3], [0, 1, 0, 0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_recycling_is_lossless_from_any_matrix(tiny, seed):
    prompt = prompt_of(seed, 15)
    up, ranks = static_tree()
    drafter = RecyclingDrafter(300, Tree.of(up), ranks)
    drafter.A = torch.from_numpy(np.random.default_rng(seed).integers(0, 300, (300, 8), dtype=np.int32))
    greedy = VerifyLoop(tiny).generate(prompt, 24, RNG).tokens.tolist()
    ours = VerifyLoop(tiny, drafter).generate(prompt, 24, RNG)
    assert ours.tokens.tolist() == greedy
    assert max(ours.cost.accepted_per_pass, default=1) <= 7
    assert ours.cost.rows == 81 * ours.cost.passes


def test_matrix_holds_the_last_top_8_of_each_token_and_zeros_elsewhere():
    tree = Tree.of([0, 0, 1])
    drafter = RecyclingDrafter(50, tree, [0, 1, 0])
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([7, 9, 7, 9])
    drafter.observe(rows, logits, torch.tensor([0]), torch.tensor([3]))
    assert drafter.A[7].tolist() == logits[2].topk(8).indices.tolist()
    assert drafter.A[9].tolist() == logits[3].topk(8).indices.tolist()
    untouched = [t for t in range(50) if t not in (7, 9)]
    assert not drafter.A[untouched].any()
    assert drafter.A.nbytes == 50 * 8 * 4


def test_hot_matrix_helps_the_second_time_and_cold_forgets(tiny):
    prompt = prompt_of(5, 20)
    up, ranks = static_tree()
    for hot in (True, False):
        loop = VerifyLoop(tiny, RecyclingDrafter(300, Tree.of(up), ranks, hot=hot))
        first, second = (loop.generate(prompt, 40, RNG).cost.passes for _ in range(2))
        assert second < first if hot else second == first


def test_state_survives_a_round_trip(tiny):
    up, ranks = static_tree()
    loop = VerifyLoop(tiny, RecyclingDrafter(300, Tree.of(up), ranks))
    loop.generate(prompt_of(1, 20), 30, RNG)
    saved = loop.state()
    after = loop.generate(prompt_of(2, 20), 30, RNG).cost.accepted_per_pass
    fresh = VerifyLoop(tiny, RecyclingDrafter(300, Tree.of(up), ranks))
    fresh.restore(saved)
    assert fresh.generate(prompt_of(2, 20), 30, RNG).cost.accepted_per_pass == after
    fresh.restore({})
    assert not fresh.drafter.A.any()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), vocabulary=st.integers(2048, 5000))
def test_blockwise_top_equals_topk(seed, n, vocabulary):
    logits = torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(top(logits), logits.topk(8, -1).indices)


@settings(max_examples=200, deadline=None)
@given(
    context=st.lists(st.integers(0, 5), min_size=2, max_size=40),
    draft_tokens=st.integers(1, 12),
    max_ngram=st.integers(1, 4),
)
def test_prompt_lookup_drafts_what_transformers_drafts(context, draft_tokens, max_ngram):
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    theirs = PromptLookupCandidateGenerator(torch.tensor([5]), draft_tokens, max_ngram, max_length=10_000)
    ids, _ = theirs.get_candidates(torch.tensor([context]))
    drafter = NgramDrafter(draft_tokens, max_ngram, frozenset({5}))
    drafter.start(torch.tensor(context[:-1]), context[-1], None)
    assert drafter.propose(1000).tokens.tolist() == ids[0, len(context) :].tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 40), limit=st.integers(0, 24))
def test_a_budget_changes_the_cost_alone(tiny, seed, length, limit):
    """Odds cut trees to any shape closed under parents; the output stays greedy, and no pass is larger than allowed."""
    prompt, rng = prompt_of(seed, length), np.random.default_rng(seed)
    greedy = VerifyLoop(tiny).generate(prompt, limit, RNG)
    drafter = RandomDrafter(greedy.tokens.tolist(), rng, 300)
    plain = drafter.propose

    def with_odds(room):
        draft = plain(room)
        odds = torch.from_numpy(rng.random(len(draft.tokens)))
        for j, parent in enumerate(draft.tree.parents[1:].tolist()):
            if parent:
                odds[j] = min(odds[j], odds[parent - 1])
        return Draft(draft.tokens, draft.tree, odds)

    drafter.propose = with_odds
    rows = int(rng.integers(1, 8))
    ours = VerifyLoop(tiny, drafter, Budget(np.array([1, rows]), np.array([1.0, 1.0]))).generate(prompt, limit, RNG)
    assert ours.tokens.tolist() == greedy.tokens.tolist()
    assert ours.cost.rows <= rows * ours.cost.passes


@given(seed=st.integers(0, 10**6), n=st.integers(0, 20))
def test_subset_is_the_tree_of_the_rows_kept(seed, n):
    rng = np.random.default_rng(seed)
    up = parents(rng, n)
    tree, kept = Tree.of(up), [0]
    for j in range(1, n + 1):
        if up[j - 1] in kept and rng.random() < 0.6:
            kept.append(j)
    ours, expected = tree.subset(torch.tensor(kept)), Tree.of([kept.index(up[j - 1]) for j in kept[1:]])
    for field in ("parents", "depth", "sees"):
        assert torch.equal(getattr(ours, field), getattr(expected, field))
    assert ours.chain == expected.chain


def test_budget_weighs_odds_against_the_curve():
    free, steep = Budget(np.array([1, 9]), np.array([1.0, 1.0])), Budget(np.array([1, 9]), np.array([1.0, 9.0]))
    odds = np.array([0.9, 0.8, 0.05])
    assert free.size(odds) == 3 and steep.size(odds) == 0
    step = Budget(np.array([1, 2, 3, 4]), np.array([1.0, 1.2, 1.4, 2.5]))
    assert step.size(odds) == 2  # 2.7 / 1.4 beats 1.9 / 1.2 and 2.75 / 2.5
    assert free.size(np.ones(100)) == 8  # never more rows than were measured


def test_running_odds_judge_what_was_never_verified():
    running = RunningOdds(2, 4)
    running.propose(1, torch.tensor([7, 8, 9, 5]))
    running.observe([7])
    running.observe([8, 1])
    assert running.counts[1].tolist() == [[1, 1], [1, 1], [1, 0], [0, 0]]
    assert not running.counts[0].any()
    assert running.odds(1, 4).tolist() == pytest.approx([2 / 3, 4 / 9, 4 / 27, 2 / 27])
    running.propose(0, torch.tensor([3]))
    running.start()
    running.observe([3])
    assert not running.counts[0].any()


@pytest.mark.parametrize("n", [1, 3])
def test_a_sampled_chain_keeps_the_distribution_of_the_target(n):
    """Leviathan et al., theorem 1: whatever drafts were drawn from, each token has the target's distribution."""
    from scipy.stats import chisquare

    rng, V, runs = np.random.default_rng(n), 6, 4000
    logits = torch.from_numpy(rng.normal(0, 1.5, (n + 1, V)))
    q = torch.from_numpy(rng.dirichlet(np.full(V, 0.4), n))
    counts = np.zeros((n + 1, V))
    for _ in range(runs):
        tokens = torch.tensor([int(rng.choice(V, p=row)) for row in q.numpy()])
        rows = torch.cat((torch.tensor([0]), tokens))
        path, gained = verify.sampled(rows, logits, Draft(tokens, Tree.line(n), q=q), rng)
        assert gained[:-1].tolist() == rows[path][1:].tolist()
        for at, token in enumerate(gained.tolist()):
            counts[at, token] += 1
    for at in range(n + 1):
        if (total := counts[at].sum()) >= 200:
            assert chisquare(counts[at], total * logits[at].softmax(-1).numpy()).pvalue > 1e-4
    drafts_kept = runs * q[0].numpy() / q[0].sum().item()  # the check can fail: what keeping every draft would give
    assert chisquare(counts[0], drafts_kept).pvalue < 1e-6


def test_a_sampled_tree_keeps_the_distribution_of_the_target():
    from scipy.stats import chisquare

    rng, V = np.random.default_rng(5), 6
    tree = Tree.of([0, 0, 1])
    rows, logits = torch.tensor([0, 4, 2, 3]), torch.from_numpy(rng.normal(0, 1.5, (4, V)))
    gains = [verify.sampled(rows, logits, Draft(rows[1:], tree), rng)[1].tolist() for _ in range(4000)]
    first = np.bincount([gained[0] for gained in gains], minlength=V)
    assert chisquare(first, 4000 * logits[0].softmax(-1).numpy()).pvalue > 1e-4
    second = np.bincount([gained[1] for gained in gains if gained[0] == 4], minlength=V)
    assert chisquare(second, second.sum() * logits[1].softmax(-1).numpy()).pvalue > 1e-4
