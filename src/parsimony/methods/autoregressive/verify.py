"""The one draft-verify loop: a drafter proposes, the target verifies in one pass, accepts, keeps the cache, counts.

Plain greedy decoding is this loop with a drafter that proposes nothing.  Output is the target's greedy output
whatever the drafts are; only their cost differs.  The rows of one pass are the root (the newest token, not in the
cache yet) and the draft nodes behind it; node j is right if its parent's argmax is its token.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony.interfaces import Cost, Generation, Stateful
from parsimony.methods.autoregressive.budget import Budget
from parsimony.models.language import Language


@dataclass(frozen=True, eq=False)
class Tree:
    """Shape of a draft: row 0 is the root, row j > 0 hangs under row ``parents[j] < j``; breadth-first order.

    Attributes
    ----------
    parents, depth : Tensor [n + 1] int64
    sees : Tensor [n + 1, n + 1] bool
        ``sees[i, j]``: j is i or an ancestor of i.
    chain : bool
        Every node hangs under the one before it, so the ordinary causal mask serves.
    """

    parents: Tensor
    depth: Tensor
    sees: Tensor
    chain: bool

    @classmethod
    def of(cls, parents: list[int]) -> Tree:
        """Build from the parents of the n draft nodes (rows 1..n)."""
        parents = [0, *parents]
        n = len(parents)
        depth, sees = np.zeros(n, np.int64), np.eye(n, dtype=bool)
        for j in range(1, n):
            if not 0 <= parents[j] < j:
                raise ValueError(f"node {j} must hang under an earlier one, not under {parents[j]}")
            depth[j] = depth[parents[j]] + 1
            sees[j] |= sees[parents[j]]
        chain = all(parents[j] == j - 1 for j in range(1, n))
        return cls(torch.tensor(parents), torch.from_numpy(depth), torch.from_numpy(sees), chain)

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def line(n: int) -> Tree:
        """A chain of n draft nodes."""
        return Tree.of(list(range(n)))

    def subset(self, rows: Tensor) -> Tree:
        """The tree of some rows (ascending, row 0 first, closed under parents), renumbered."""
        if self.chain:
            return Tree.line(len(rows) - 1)
        parents = torch.searchsorted(rows, self.parents[rows])
        chain = bool((parents[1:] == torch.arange(len(rows) - 1)).all())
        return Tree(parents, self.depth[rows], self.sees[rows][:, rows], chain)


@dataclass(frozen=True, eq=False)
class Draft:
    """Draft tokens and the tree in which they stand.

    Attributes
    ----------
    tokens : Tensor [n] int64
        Token of each node; n may be 0.
    tree : Tree
        Of n nodes.
    odds : Tensor [n] float, optional
        The drafter's estimate of the probability that each node is accepted, never above that of its parent; a
        `Budget` verifies the likeliest nodes only.
    q : Tensor [n, V], optional
        Of a chain that was drawn at random: the distribution each token was drawn from.
    ahead : Tensor [n] bool, optional
        Rows that can never be accepted, nor what hangs under them; `Drafter.observe` gets their logits.
    """

    tokens: Tensor
    tree: Tree
    odds: Tensor | None = None
    q: Tensor | None = None
    ahead: Tensor | None = None

    @classmethod
    def line(cls, tokens: Tensor, odds: Tensor | None = None) -> Draft:
        """A chain."""
        return cls(tokens, Tree.line(len(tokens)), odds)


class Drafter(Protocol):
    """What a speculative method supplies; everything else is shared.

    A drafter with learnt input vectors has them as ``vectors`` [m, D]; draft tokens V, V + 1, ... stand for them.
    They are rows of the pass that can never be accepted, and whose logits `observe` gets as well.  The last pass is
    not observed; a drafter that wants the whole output has a method ``finish(tokens)``, called with it ([n] int64).
    """

    reads_prompt: bool
    """Whether `start` wants the logits of the prompt (they cost one head product a prompt token)."""

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        """A new sequence begins: its prompt [T] int64, the newest token, the prompt's logits [T, V].

        The newest token is the first generated one, or the one with which an encoder-decoder's output begins.
        """
        ...

    def propose(self, room: int) -> Draft:
        """Draft behind the newest token; levels beyond ``room`` cannot be used."""
        ...

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        """A pass is over: its rows [n+1], their logits [n+1, V], the accepted rows, and the tokens gained.

        A budget may have verified fewer rows than were drafted.
        """
        ...


def longest(rows: Tensor, choice: Tensor, tree: Tree) -> Tensor:
    """Rows of the longest right path ([depth + 1], root first; the first in breadth-first order among equals).

    Parameters
    ----------
    rows : Tensor [n + 1] int64
        Token of each row.
    choice : Tensor [n + 1] int64
        The target's next token behind each row.
    """
    right = choice[tree.parents] == rows
    right[0] = True
    whole = ~(tree.sees & ~right).any(1)  # every ancestor is right
    best = torch.where(whole, tree.depth, -1).argmax()
    return tree.sees[best].nonzero()[:, 0]


def sampled(rows: Tensor, logits: Tensor, draft: Draft, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Accepted rows ([m], root first) and the m tokens gained, distributed as if drawn from the target one by one.

    Tokens that were not drawn at random (``draft.q`` is None): one draw from the target at each row decides, and the
    path goes on while a child carries the drawn token.  A chain drawn from q: its token x is kept with probability
    min(1, p(x) / q(x)), else one is drawn from max(p - q, 0), normalised (Leviathan et al. 2023, arXiv 2211.17192,
    algorithm 1).

    Parameters
    ----------
    rows : Tensor [n + 1] int64
    logits : Tensor [n + 1, V]
        Divided by the temperature already.
    """
    parents, path, gained = draft.tree.parents.tolist(), [0], []
    while True:
        at = path[-1]
        p = logits[at].double().softmax(-1).cpu().numpy()
        children = [j for j in range(at + 1, len(parents)) if parents[j] == at]
        if draft.q is None or not children:
            token = int(rng.choice(len(p), p=p))
            node = next((j for j in children if int(rows[j]) == token), None)
        else:
            (node,), q = children, draft.q[at].double().cpu().numpy()
            token = int(rows[node])
            if rng.random() * q[token] >= p[token]:
                rest = np.maximum(p - q, 0)
                node, token = None, int(rng.choice(len(p), p=rest / rest.sum()))
        gained.append(token)
        if node is None:
            return torch.tensor(path), torch.tensor(gained)
        path.append(node)


class VerifyLoop:
    """A text generator that decodes with any drafter, greedily or at a temperature.

    Parameters
    ----------
    model : Language or Seq2Seq
        Of a `Seq2Seq`, which takes no trees, the prompt is the source.
    drafter : Drafter or None
        None proposes nothing: plain greedy decoding.
    budget : Budget or None
        Cuts drafts that come with odds to the size that pays on this machine; None verifies all that is drafted.
    """

    def __init__(self, model: Language, drafter: Drafter | None = None, budget: Budget | None = None):
        self.model, self.drafter, self.budget = model, drafter, budget
        self._cache = None

    def generate(
        self, prompt_ids: Tensor, limit: int, rng: np.random.Generator, temperature: float = 0.0
    ) -> Generation:
        """Continuation of ``prompt_ids`` by at most ``limit`` tokens; greedy at temperature 0, ``rng`` is not drawn.

        The first token comes from the prefill; `Cost.passes` and `Cost.accepted_per_pass` count what follows it.  (An
        encoder-decoder's prefill is its encoder; all tokens come from passes, the first of them over ``begin``.)  At
        a temperature above 0 the output has the target's distribution whatever is drafted; a drafter that has a
        method ``sample(temperature, rng)`` is told, so that it can draw its tokens too (`Draft.q`).
        """
        decoder, stop = self.model.decoder, self.model.stop_ids
        cost, began = Cost(), perf_counter()
        if limit < 1:
            return Generation(torch.empty(0, dtype=torch.int64), cost)
        cache = self._empty_cache(len(prompt_ids) + limit + 128)
        reads = self.drafter is not None and self.drafter.reads_prompt
        logits = decoder.prefill(prompt_ids[None], cache, want="all" if reads else "last")
        nothing = Draft.line(torch.empty(0, dtype=torch.int64))
        tokens, newest = [], decoder.begin
        if newest is None:
            newest = int(self._accept(torch.zeros(1), logits[0, -1:], nothing, temperature, rng)[1])
            tokens = [newest]
        if temperature and hasattr(self.drafter, "sample"):
            self.drafter.sample(temperature, rng)
        if self.drafter is not None:
            self.drafter.start(prompt_ids, newest, logits[0] if reads else None)
        cost.prefill_seconds = perf_counter() - began
        vectors = getattr(self.drafter, "vectors", None)

        over = bool(tokens) and (newest in stop or limit == 1)
        while not over:
            began = perf_counter()
            room = limit - len(tokens) - 1  # the bonus token takes the last place
            draft = nothing if self.drafter is None else self.drafter.propose(room)
            if self.budget is not None:
                draft = self._afford(draft)
            tree = draft.tree
            drafted, length = perf_counter(), len(cache)
            rows = torch.cat((torch.tensor([newest]), draft.tokens))
            where = None if tree.chain else (length + tree.depth)[None]
            mask = None if tree.chain else tree.sees
            logits = decoder.forward(rows[None], cache, positions=where, tree=mask, vectors=vectors)[0]
            judged = rows
            if draft.ahead is not None:
                judged = rows.masked_fill(F.pad(draft.ahead, (1, 0)), -1)  # no token's id
            path, gained = self._accept(judged, logits, draft, temperature, rng)
            if tree.chain:
                cache.truncate(length + len(path))
            else:
                cache.keep(path, start=length)
            new = until(gained.tolist(), stop, limit - len(tokens))
            tokens += new
            newest = tokens[-1]
            over = newest in stop or len(tokens) >= limit
            cost.passes += 1
            cost.rows += len(rows)
            cost.drafted += int(((judged[1:] >= 0) & (judged[1:] < decoder.config.vocabulary)).sum())
            cost.accepted += min(len(new), len(path) - 1)
            cost.accepted_per_pass.append(len(new))
            verified = perf_counter()
            if self.drafter is not None and not over:
                self.drafter.observe(rows, logits, path, gained)
            cost.draft_seconds += drafted - began + perf_counter() - verified
            cost.verify_seconds += verified - drafted
        began = perf_counter()
        if hasattr(self.drafter, "finish"):
            self.drafter.finish(torch.tensor(tokens))
        cost.draft_seconds += perf_counter() - began
        cost.cache_bytes = cache.nbytes()
        return Generation(torch.tensor(tokens), cost)

    @staticmethod
    def _accept(rows, logits, draft: Draft, temperature: float, rng) -> tuple[Tensor, Tensor]:
        """Accepted rows, root first, and the tokens gained: those of the rows behind it, then the bonus token."""
        if temperature:
            return sampled(rows, logits / temperature, draft, rng)
        choice = logits.argmax(-1).cpu()  # tokens, trees and drafters are on the processor
        path = longest(rows, choice, draft.tree)
        return path, choice[path]

    def nll(self, ids: Tensor) -> Tensor:
        """Negative log-likelihood in nats of ``ids[1:]`` ([T-1] float64), of the same network and cache."""
        cache = self._empty_cache(len(ids))
        hidden = self.model.decoder.prefill(ids[None, :-1], cache, want="hidden")[0]
        pieces = []
        for h, target in zip(hidden.split(64), ids[1:].split(64), strict=True):  # [64, V] logits at a time
            logits = self.model.decoder.logits(h).double()
            pieces.append(torch.logsumexp(logits, -1) - logits.gather(-1, target[:, None].to(h.device))[:, 0])
        return torch.cat(pieces).cpu()

    def forward_seconds(self, rows: int, context: int, repeats: int) -> list[float]:
        """Seconds of passes over ``rows`` tokens behind ``context`` cached ones, logits and argmax included.

        One pass more than ``repeats`` is made; the first warms up and is not returned.
        """
        decoder = self.model.decoder
        cache = self._empty_cache(context + rows)
        ids = torch.arange(context + rows)[None] % decoder.config.vocabulary
        decoder.prefill(ids[:, :context], cache, want="none")
        seconds, length = [], len(cache)
        for _ in range(repeats + 1):
            cache.truncate(length)
            began = perf_counter()
            decoder.forward(ids[:, context:], cache)[0].argmax(-1).cpu()  # waits for a GPU
            seconds.append(perf_counter() - began)
        return seconds[1:]

    def state(self) -> dict[str, Tensor]:
        """What the drafter has learnt, if it carries anything from sequence to sequence."""
        return self.drafter.state() if isinstance(self.drafter, Stateful) else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a saved `state`; an empty one is that of a new drafter."""
        if isinstance(self.drafter, Stateful):
            self.drafter.restore(state)

    def _afford(self, draft: Draft) -> Draft:
        """The nodes of ``draft`` that are worth their share of the pass."""
        if draft.odds is None or not len(draft.tokens):
            return draft
        order = draft.odds.argsort(descending=True, stable=True)  # no node before its parent
        nodes = order[: self.budget.size(draft.odds[order].numpy())].sort().values
        tree = draft.tree.subset(torch.cat((torch.zeros(1, dtype=torch.int64), nodes + 1)))
        q, ahead = (None if each is None else each[nodes] for each in (draft.q, draft.ahead))
        return Draft(draft.tokens[nodes], tree, draft.odds[nodes], q, ahead)

    def _empty_cache(self, capacity: int):
        if self._cache is None:
            self._cache = self.model.decoder.cache(capacity)
        self._cache.clear()
        self._cache.reserve(capacity)
        return self._cache


def until(tokens: list[int], stop: frozenset[int], limit: int) -> list[int]:
    """The first ``limit`` tokens, cut behind the first that ends the turn."""
    for n, token in enumerate(tokens[:limit]):
        if token in stop:
            return tokens[: n + 1]
    return tokens[:limit]
