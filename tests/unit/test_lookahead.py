"""Lookahead decoding against its rule in plain Python, one forward pass a row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.methods.autoregressive.budget import Budget
from parsimony.methods.autoregressive.lookahead import LookaheadDrafter, shape
from parsimony.methods.autoregressive.verify import Draft, Tree, VerifyLoop

RNG = np.random.default_rng(0)


def prompt_of(seed, length):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 300, length))


def slow(model, prompt, limit, W, N, G, from_prompt):
    """Tokens, tokens gained and rows of each pass: every row of the window read by a pass of its own."""

    def following(ids):
        return int(model.next_logits(torch.tensor(ids), torch.tensor([], dtype=torch.int64)).argmax())

    pool = []  # (head, tail), oldest first

    def add(head, tail):
        if (head, tail) in pool:
            pool.remove((head, tail))
        pool.append((head, tail))
        mine = [entry for entry in pool if entry[0] == head]
        if len(mine) > G:
            pool.remove(mine[0])

    def add_text(begin):
        for end in range(begin, len(text) + 1):
            if from_prompt and end >= N:
                add(text[end - N], tuple(text[end - N + 1 : end]))

    levels = [np.random.default_rng(0).choice(prompt.numpy(), W + N - 3).tolist()]
    text = [*prompt.tolist(), following(prompt.tolist())]
    add_text(0)
    tokens, gains, rows = [text[-1]], [], []
    while tokens[-1] != 0 and len(tokens) < limit:
        room = limit - len(tokens) - 1
        line = [text[-1], *levels[0]]  # level 0 with the newest token in front

        filled = len(levels) == N - 1
        tails = [tail[:room] for head, tail in pool if head == text[-1]] if filled and room > 0 else []
        best = []
        for tail in tails:
            right = 0
            while right < len(tail) and following(text + list(tail[:right])) == tail[right]:
                right += 1
            if right > len(best):
                best = list(tail[:right])
        rows.append(1 + sum(map(len, levels + tails)) if room > 0 else 1)
        gained = [*best, following(text + best)]

        if len(levels) == 1:
            levels = [levels[0][1:], [following(text + levels[0][: n + 1]) for n in range(len(levels[0]))]]
        else:
            last = len(levels) - 1
            own = [[levels[level][n] for level in range(1, last + 1)] for n in range(len(levels[last]))]
            new = [following(text[:-1] + line[: n + 1] + own[n]) for n in range(len(own))]
            if filled:
                for n in range(W):
                    add(line[n], (*(levels[level][n] for level in range(1, N - 1)), new[n]))
                levels = [levels[1][1:], *levels[2:], new]
            else:
                levels = [level[1:] for level in levels] + [new[1:]]

        known = len(text)
        text += gained
        add_text(known + 1)
        kept = gained[: limit - len(tokens)]
        if 0 in kept:
            kept = kept[: kept.index(0) + 1]
        tokens += kept
        gains.append(len(kept))
    return tokens, gains, rows


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 20),
    sizes=st.sampled_from([(7, 5, 7), (3, 3, 3), (1, 3, 1), (2, 6, 2), (5, 4, 7)]),
    from_prompt=st.booleans(),
)
def test_follows_the_rule(tiny, seed, length, sizes, from_prompt):
    prompt, (W, N, G) = prompt_of(seed, length), sizes
    loop = VerifyLoop(tiny, LookaheadDrafter(W, N, G, from_prompt))
    ours = loop.generate(prompt, 32, RNG)
    tokens, gains, rows = slow(tiny, prompt, 32, W, N, G, from_prompt)
    assert ours.tokens.tolist() == tokens == VerifyLoop(tiny).generate(prompt, 32, RNG).tokens.tolist()
    assert ours.cost.accepted_per_pass == gains
    assert ours.cost.rows == sum(rows)
    assert max(rows, default=1) <= (N - 1) * (W + G)
    again = loop.generate(prompt, 32, RNG)  # nothing is carried over
    assert again.cost.accepted_per_pass == gains


def test_some_pass_of_the_rule_gains_more_than_one_token(tiny):
    """So the test above can tell a wrong window from a right one."""
    runs = [VerifyLoop(tiny, LookaheadDrafter(7, 5, 7)).generate(prompt_of(n, 10), 64, RNG).cost for n in range(5)]
    assert max(max(cost.accepted_per_pass) for cost in runs) >= 4
    assert all(cost.drafted >= cost.accepted for cost in runs)


def test_the_shape_of_a_pass():
    """W = 7, N = 5, G = 7: 56 rows; row n of level l stands l + n behind the newest token and sees level 0 up to n."""
    tree, ahead = shape(6, 4, 7, 4)
    assert len(tree.parents) == (5 - 1) * (7 + 7) and int(ahead.sum()) == 27
    for level in range(1, 4):
        for n in range(7):
            row = 7 * level + n
            assert int(tree.depth[row]) == level + n
            assert set(tree.sees[row].nonzero()[:, 0].tolist()) == {*range(n + 1), *range(7 + n, row + 1, 7)}
    for guess in range(7):
        rows = range(28 + 4 * guess, 32 + 4 * guess)
        assert tree.depth[rows[0] : rows[-1] + 1].tolist() == [1, 2, 3, 4]
        assert set(tree.sees[rows[-1]].nonzero()[:, 0].tolist()) == {0, *rows}


class Rows:
    """Drafts the greedy future twice: once as rows that look ahead, once (from ``begin`` on) as a candidate."""

    reads_prompt = False

    def __init__(self, future, candidate):
        self.future, self.candidate, self.seen, self.logits = future, candidate, 1, []

    def start(self, prompt, token, logits):
        self.seen = 1

    def propose(self, room):
        right = self.future[self.seen : self.seen + 2]
        tokens = right * (2 if self.candidate else 1)
        parents = [0, 1, 0, 3][: len(tokens)] if len(right) == 2 else [0] * len(tokens)
        ahead = torch.arange(len(tokens)) < len(right)
        return Draft(torch.tensor(tokens, dtype=torch.int64), Tree.of(parents), ahead=ahead)

    def observe(self, rows, logits, path, gained):
        assert (path[1:] > 2).all() and len(logits) == len(rows)
        self.seen += len(gained)


@pytest.mark.parametrize("candidate", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_rows_that_look_ahead_are_never_accepted(tiny, candidate, temperature):
    """Their tokens are what greedy decoding says next, so only the mark keeps them out."""
    prompt = prompt_of(3, 9)
    future = VerifyLoop(tiny).generate(prompt, 24, RNG).tokens.tolist()
    loop = VerifyLoop(tiny, Rows(future, candidate))
    ours = loop.generate(prompt, 24, np.random.default_rng(1), temperature)
    if temperature == 0:
        assert ours.tokens.tolist() == future
        assert max(ours.cost.accepted_per_pass) == (3 if candidate else 1)
    if not candidate:
        assert ours.cost.drafted == ours.cost.accepted == 0
        assert set(ours.cost.accepted_per_pass) == {1}


def test_a_budget_keeps_the_marks(tiny):
    ahead = torch.tensor([True, True, False])
    draft = Draft(torch.tensor([4, 5, 6]), Tree.of([0, 0, 2]), torch.tensor([0.1, 0.9, 0.8]), ahead=ahead)
    cut = VerifyLoop(tiny, budget=Budget(np.array([1, 3]), np.array([1.0, 1.1])))._afford(draft)
    assert cut.tokens.tolist() == [5, 6] and cut.ahead.tolist() == [True, False]
