"""ADED, later Adaptix (Liu et al., AAAI 2025, arXiv 2407.12021): drafts by tree search in an adaptive trigram table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive import trigrams
from parsimony.methods.autoregressive.budget import Budget
from parsimony.methods.autoregressive.verify import Draft, Tree, VerifyLoop
from parsimony.models.language import Language
from parsimony.recipes import own_outputs

SUCCESSORS = 12
"""Kept of each bigram of the corpus when it is loaded."""

RECENT, STEP, MOST = 16, 0.04, 3.0
"""Online update: trigrams of the last 16 tokens gain 0.04 a step, up to 3.0; weights are not normalised again."""

ITERATIONS, STATES, PREFIXES = 150, 4, 24
"""Search: 150 iterations, 4 states deep with the root, and the 24 prefixes visited most make the draft."""

FALLBACK = 100
"""The single token that is drafted where the table knows nothing; any would do."""

LONG_ARTICLE = 1200
"""Lead sections longer than this are in no prompt of a benchmark: the unrelated text."""

SHARES, DEPTH = 10, STATES
"""Classes of a node's share of its bigram's weights, and the deepest node, by which odds are learnt."""


class Aded:
    """Speculative decoding from a trigram table that keeps learning what the target emits.

    Each step raises the trigrams of the last 16 tokens, so a trigram gains up to 14 times while the window slides over
    it (as in the official code); searches behind the newest bigram; takes the 24 best prefixes, each extended by its
    most probable next token; and merges them into a tree.  The table persists from prompt to prompt, so the order of
    the items matters.  Read where the paper leaves it open: the empty prefix is none of the 24, single tokens are
    dropped after the extension, and of the longest paths the one visited least is removed first.

    Parameters
    ----------
    corpus : {"own", "text", "none"}
        Where the table begins: the model's own answers to other prompts, unrelated encyclopaedia text, or empty.
    update : bool
        Whether the table learns online.
    search : {"monte_carlo", "beam"}
        The published search, or the most probable prefixes by the product of their weights.
    published_value : bool
        Score rollouts as the official code does, which looks a wrong token up (see `trigrams.monte_carlo`).
    nodes : int
        Largest draft, the root apart.
    tree_budget : {"all", "auto"}
        "auto" verifies as much of a draft as pays on this machine, given how often nodes of that depth and share of
        their bigram's weights have been right so far (our addition; the counts persist from prompt to prompt).
    seed : int
        Of the rollouts, drawn afresh for each sequence.

    Raises
    ------
    UserError
        For a corpus or a search of another name.
    """

    def __init__(
        self,
        corpus: str = "own",
        update: bool = True,
        search: str = "monte_carlo",
        published_value: bool = False,
        nodes: int = 64,
        tree_budget: str = "all",
        seed: int = 0,
    ):
        if corpus not in ("own", "text", "none") or search not in ("monte_carlo", "beam"):
            raise UserError(
                f"aded: corpus {corpus!r} must be own, text or none, and search {search!r} monte_carlo or beam"
            )
        self.corpus, self.update, self.search, self.published_value = corpus, update, search, published_value
        self.nodes, self.tree_budget, self.seed = nodes, tree_budget, seed

    def build(self, model: Language, inputs: Inputs) -> VerifyLoop:
        """The shared loop with a trigram drafter."""
        texts = []
        if self.corpus == "own":
            # Trigrams that end in a generated token.
            texts = [torch.cat((prompt[-2:], answer)) for prompt, answer in own_outputs.read(inputs.assets["corpus"])]
        elif self.corpus == "text":
            texts = [model.encode(text) for text in unrelated(inputs.assets["text"])]
        table = trigrams.counted([text.numpy() for text in texts], SUCCESSORS)
        auto = self.tree_budget == "auto"
        drafter = TrigramDrafter(table, self.update, self.search, self.published_value, self.nodes, self.seed, auto)
        return VerifyLoop(model, drafter, Budget.measured(inputs, model) if auto else None)


def unrelated(folder: Path) -> list[str]:
    """Long lead sections of encyclopaedia articles."""
    articles = json.loads((folder / "summaries.json").read_text(encoding="utf-8")).values()
    return [article["extract"] for article in articles if len(article["extract"]) > LONG_ARTICLE]


class TrigramDrafter:
    """Searches the table behind the newest bigram."""

    reads_prompt = False

    def __init__(
        self,
        table: trigrams.Trigrams,
        update: bool = True,
        search: str = "monte_carlo",
        published_value: bool = False,
        nodes: int = 64,
        seed: int = 0,
        learns: bool = False,
    ):
        self.table, self.update, self.search, self.published_value = table, update, search, published_value
        self.nodes, self.seed = nodes, seed
        self.counts = np.zeros((DEPTH, SHARES, 2)) if learns else None  # tried, right
        self._begin = self.state()

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.recent = np.append(prompt[-RECENT:].numpy(), token)[-RECENT:]

    def propose(self, room: int) -> Draft:
        if self.update:
            self.table = trigrams.raised(self.table, self.recent, STEP, MOST)
        paths = [path[:room] for path in self._paths()] if room > 0 else []
        rows = trie(paths, self.nodes) or ([(FALLBACK,)] if room > 0 else [])
        at = {(): 0} | {path: n + 1 for n, path in enumerate(rows)}
        tree = Tree.of([at[path[:-1]] for path in rows])
        tokens = torch.tensor([path[-1] for path in rows], dtype=torch.int64)
        return Draft(tokens, tree, self._odds(rows, at) if self.counts is not None else None)

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        gained = gained.numpy()
        if self.counts is not None:
            for (*before, token), depth, share in self.judged:
                if depth < len(gained) and before == gained[:depth].tolist():
                    self.counts[depth, share] += 1.0, gained[depth] == token
        self.recent = np.append(self.recent, gained)[-RECENT:]

    def state(self) -> dict[str, Tensor]:
        columns = dict(zip(("bigram", "token", "weight"), trigrams.contents(self.table), strict=True))
        columns |= {} if self.counts is None else {"counts": self.counts}
        return {name: torch.from_numpy(column.copy()) for name, column in columns.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        columns = {name: column.numpy().copy() for name, column in (state or self._begin).items()}
        self.counts = columns.pop("counts", None)
        self.table = trigrams.make(**columns)

    def _paths(self) -> list[tuple[int, ...]]:
        """The best prefixes, best first, each extended by its most probable next token; single tokens dropped."""
        u, v = self.recent[-2:].tolist()
        if self.search == "beam":
            parent, token, score = trigrams.beam(self.table, u, v, PREFIXES, STATES)
        else:
            uniforms = self.rng.random((ITERATIONS, STATES))
            parent, token, score = trigrams.monte_carlo(self.table, u, v, uniforms, self.published_value)
        paths = []
        for node in (np.argsort(-score[1:], kind="stable")[:PREFIXES] + 1).tolist():
            path = []
            while node:
                path.append(int(token[node]))
                node = parent[node]
            path.reverse()
            more = trigrams.likeliest(self.table, *(v, *path)[-2:])
            paths.append((*path, more) if more >= 0 else tuple(path))
        return [path for path in dict.fromkeys(paths) if len(path) > 1]

    def _odds(self, rows: list[tuple[int, ...]], at: dict[tuple[int, ...], int]) -> Tensor:
        """Probability that each node is accepted: how often its like was right, times that of its parent."""
        u, v = self.recent[-2:].tolist()
        odds, self.judged = np.ones(len(rows) + 1), []
        for path in rows:
            share = trigrams.share(self.table, *(u, v, *path)[-3:])
            kind = len(path) - 1, min(int(share * SHARES), SHARES - 1)
            tried, right = self.counts[kind]
            odds[at[path]] = odds[at[path[:-1]]] * (right + 1) / (tried + 2)
            self.judged.append((path, *kind))
        return torch.from_numpy(odds[1:])


def trie(paths: list[tuple[int, ...]], nodes: int) -> list[tuple[int, ...]]:
    """Prefix of each node of the tree of some paths, parents first, cut to at most ``nodes``.

    While the distinct tokens of all paths, counted path by path, exceed ``nodes``, the longest path goes (the last of
    several); a path that repeats a token counts for less than its nodes, so the shortest prefixes win in the end.
    """
    paths = list(paths)
    while sum(len(set(path)) for path in paths) > nodes:
        longest = max(map(len, paths))
        paths.pop(max(n for n, path in enumerate(paths) if len(path) == longest))
    prefixes = {path[:n] for path in paths for n in range(1, len(path) + 1)}
    return sorted(prefixes, key=lambda prefix: (len(prefix), prefix))[:nodes]
