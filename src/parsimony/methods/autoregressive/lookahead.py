"""Lookahead decoding (Fu et al., ICML 2024, arXiv 2402.02057): drafts n-grams that Jacobi iteration came upon."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.verify import Draft, Tree, VerifyLoop
from parsimony.models.language import Language


class Lookahead:
    """Speculative decoding from the model's own parallel guesses of the future, as in the official package ``lade``.

    A window of W trajectories runs ahead of the text: row n of level l guesses the token l + n places behind the
    newest one, and sees level 0 up to row n and its own trajectory.  Each pass gives every trajectory a next token;
    the N tokens of each then join a pool under their first, and the oldest level falls out.  In the same pass the
    pool's n-grams under the newest token are verified: (N-1) (W+G) rows in all.  The first N - 2 passes fill the
    levels.  However many tokens a pass gains, the window moves on by one level, as in the official code; what
    its rows were guesses for then lies behind the text, which costs acceptance and not correctness.

    Where the official code and this one differ: prefill is a pass of its own, so filling begins one pass later, and
    output n-grams enter the pool as they are (the official code, with ``pool_from_prompt``, repeats the last token).

    Parameters
    ----------
    window : int
        Trajectories W.
    level : int
        Length N of an n-gram, at least 3.
    guesses : int
        N-grams G that the pool keeps for a first token, those found or confirmed last.
    pool_from_prompt : bool
        Whether the n-grams of the prompt and of the output join the pool too.
    seed : int
        Of the first guesses, drawn from the prompt's tokens afresh for each sequence.

    Raises
    ------
    UserError
        When the window or the pool is empty, or an n-gram shorter than 3.
    """

    def __init__(
        self, window: int = 7, level: int = 5, guesses: int = 7, pool_from_prompt: bool = False, seed: int = 0
    ):
        if window < 1 or level < 3 or guesses < 1:
            raise UserError(
                f"lookahead: window {window}, level {level}, guesses {guesses} do not make a window and a pool; "
                "give a window and guesses of at least 1 and a level of at least 3"
            )
        self.window, self.level, self.guesses = window, level, guesses
        self.pool_from_prompt, self.seed = pool_from_prompt, seed

    def build(self, model: Language, inputs: Inputs) -> VerifyLoop:
        """The shared loop with a lookahead drafter."""
        drafter = LookaheadDrafter(self.window, self.level, self.guesses, self.pool_from_prompt, self.seed)
        return VerifyLoop(model, drafter)


class LookaheadDrafter:
    """The window (levels of guesses) and the pool (first token -> n-gram tails, oldest first) of one sequence."""

    reads_prompt = False

    def __init__(self, window: int, level: int, guesses: int, pool_from_prompt: bool = False, seed: int = 0):
        self.W, self.N, self.G = window, level, guesses
        self.pool_from_prompt, self.seed = pool_from_prompt, seed

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        rng = np.random.default_rng(self.seed)
        self.levels = [rng.choice(prompt.numpy(), self.W + self.N - 3).tolist()]
        self.pool: dict[int, list[tuple[int, ...]]] = {}
        self.text = [*prompt.tolist(), token]
        self._pool_text(0)

    def propose(self, room: int) -> Draft:
        if room < 1:  # the last pass; nothing that it says is used
            return Draft.line(torch.empty(0, dtype=torch.int64))
        full = len(self.levels) == self.N - 1
        guesses = [tail[:room] for tail in self.pool.get(self.text[-1], [])] if full else []
        tree, ahead = shape(len(self.levels[0]), len(self.levels), len(guesses), min(self.N - 1, room))
        tokens = [token for part in (*self.levels, *guesses) for token in part]
        return Draft(torch.tensor(tokens), tree, ahead=ahead)

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        end = 1 + sum(map(len, self.levels))
        new = logits[end - len(self.levels[-1]) : end].argmax(-1).tolist()  # what the last level goes on with
        if len(self.levels) < self.N - 1:
            fresh = new if len(self.levels) == 1 else new[1:]  # level 0 has no row for the newest token
            self.levels = [level[1:] for level in self.levels] + [fresh]
        else:
            heads = [self.text[-1], *self.levels[0]]
            for head, *tail in zip(heads, *self.levels[1:], new, strict=True):
                self._pool(head, tuple(tail))
            self.levels = [self.levels[1][1:], *self.levels[2:], new]
        known = len(self.text)
        self.text += gained.tolist()
        self._pool_text(known)

    def _pool(self, head: int, tail: tuple[int, ...]) -> None:
        tails = self.pool.setdefault(head, [])
        if tail in tails:
            tails.remove(tail)
        tails.append(tail)
        del tails[: -self.G]

    def _pool_text(self, known: int) -> None:
        """Pool the n-grams of the text that end behind its first ``known`` tokens."""
        if self.pool_from_prompt:
            for end in range(max(known, self.N - 1), len(self.text)):
                head, *tail = self.text[end - self.N + 1 : end + 1]
                self._pool(head, tuple(tail))


@functools.lru_cache(maxsize=256)
def shape(first: int, levels: int, guesses: int, length: int) -> tuple[Tree, Tensor]:
    """The tree of a pass, and which of its nodes are window rows ([n] bool): level 0, 1, ..., then the n-grams.

    Parameters
    ----------
    first : int
        Rows of level 0; the other levels have one more, whose first hangs under the newest token.
    guesses, length : int
        N-grams to verify, and their tokens behind the newest one.
    """
    parents = list(range(first))  # level 0: a chain
    above = list(range(first + 1))  # the newest token and level 0
    for _ in range(levels - 1):
        begin = len(parents) + 1
        parents += above
        above = list(range(begin, len(parents) + 1))
    window = len(parents)
    for _ in range(guesses):
        begin = len(parents) + 1
        parents += [0, *range(begin, begin + length - 1)]
    return Tree.of(parents), torch.arange(len(parents)) < window
