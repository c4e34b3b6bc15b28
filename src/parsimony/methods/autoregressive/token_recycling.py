"""Token Recycling (Luo et al., ACL 2025, arXiv 2408.08696): drafts from the top-k lists that decoding throws away."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.budget import Budget
from parsimony.methods.autoregressive.verify import Draft, Tree, VerifyLoop
from parsimony.models.language import Language

K = 8
"""Candidates stored per token; the official code fixes it as well."""

CHILDREN = (
    (8,),
    (8, 4, 3, 2, 1, 1, 1, 1),
    (8, 3, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0),
    (5, 2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0),
    (3, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0),
    (2, 0, 0, 1, 0, 0, 0, 0),
)
"""The static tree "2.2.2": children of each node, level by level in breadth-first order; 80 nodes, depth 6."""


class TokenRecycling:
    """Speculative decoding from an adjacency matrix of the newest top-8 lists.

    ``A[x]`` holds the 8 most probable successors of token x as the target last saw them.  A fixed tree is filled from
    the newest token by following these lists, verified in one pass, and every row of the pass then overwrites the
    list of its token, accepted or not; where a token stands at several nodes, the last in breadth-first order wins
    (the official scatter leaves that open).  As in the official code, prompts are not recycled by default, and ``A``
    persists over the whole benchmark ("hot"), so the order of the items matters.

    Parameters
    ----------
    tree : {"static", "chain"}
        The published tree, or a chain of first candidates.
    nodes : int or "auto"
        Size of the tree. Smaller trees keep the nodes most often accepted on the calibration prompts;
        "auto" keeps as many as maximise expected tokens per second on this machine's latency curve.
    hot : bool
        Whether ``A`` survives from item to item.
    recycle_prompt : bool
        Whether the prompt's own top-8 lists fill ``A`` first (as the independent port does on a cold start).
    """

    def __init__(self, tree="static", nodes: int | str = 80, hot: bool = True, recycle_prompt: bool = False):
        self.tree, self.nodes, self.hot, self.recycle_prompt = tree, nodes, hot, recycle_prompt

    def build(self, model: Language, inputs: Inputs) -> VerifyLoop:
        """The shared loop with a recycling drafter."""
        parents, ranks = static_tree() if self.tree == "static" else ([*range(6)], [0] * 6)
        if self.nodes != len(parents) and self.tree == "static":
            calibration = load_file(inputs.assets["calibration"] / "acceptance.safetensors")
            acceptance = (calibration["accepted"] / calibration["passes"]).numpy()
            order = np.argsort(
                -acceptance, kind="stable"
            )  # a parent is accepted whenever its child is, and comes first
            size = self.nodes
            if size == "auto":
                size = Budget.measured(inputs, model).size(acceptance[order])
            if size == 0:
                return VerifyLoop(model)  # no tree pays here, so nothing is drafted and nothing need be recycled
            parents, ranks = subtree(parents, ranks, sorted(order[:size].tolist()))
        elif self.tree == "chain":
            parents, ranks = parents[: self.nodes], ranks[: self.nodes]
        vocabulary = model.decoder.config.vocabulary
        return VerifyLoop(model, RecyclingDrafter(vocabulary, Tree.of(parents), ranks, self.hot, self.recycle_prompt))


class RecyclingDrafter:
    """Fills a tree of fixed shape from the matrix ``A`` [V, 8] (int32; 1.5 MiB for 49,152 tokens)."""

    def __init__(self, vocabulary: int, tree: Tree, ranks: list[int], hot: bool = True, reads_prompt: bool = False):
        self.A = torch.zeros(vocabulary, K, dtype=torch.int32)
        self.tree, self.hot, self.reads_prompt = tree, hot, reads_prompt
        self.rows = torch.zeros(len(tree.parents), dtype=torch.int64)
        rank = torch.tensor([0, *ranks])
        levels = [(tree.depth == depth).nonzero()[:, 0] for depth in range(1, int(tree.depth.max()) + 1)]
        self.levels = [(level, tree.parents[level], rank[level]) for level in levels]

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        if not self.hot:
            self.A.zero_()
        if logits is not None:
            self._recycle(prompt, logits)
        self.rows[0] = token

    def propose(self, room: int) -> Draft:
        for level, parents, ranks in self.levels:
            self.rows[level] = self.A[self.rows[parents], ranks].long()
        return Draft(self.rows[1:].clone(), self.tree)

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        self._recycle(rows, logits)
        self.rows[0] = gained[-1]

    def state(self) -> dict[str, Tensor]:
        return {"A": self.A.clone()} if self.hot else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.A = state["A"].clone() if state else torch.zeros_like(self.A)

    def _recycle(self, rows: Tensor, logits: Tensor) -> None:
        tokens, place = torch.unique(rows, return_inverse=True)
        last = torch.zeros_like(tokens).scatter_reduce(0, place, torch.arange(len(rows)), "amax", include_self=False)
        self.A[tokens] = top(logits[last]).int().cpu()


def static_tree() -> tuple[list[int], list[int]]:
    """Parents (row 0 is the root) and child ranks of the 80 nodes of the published tree, breadth-first."""
    parents, ranks, level = [], [], [0]
    for counts in CHILDREN:
        begin = len(parents) + 1
        for parent, count in zip(level, counts, strict=True):
            parents += [parent] * count
            ranks += range(count)
        level = range(begin, len(parents) + 1)
    return parents, ranks


def subtree(parents: list[int], ranks: list[int], nodes: list[int]) -> tuple[list[int], list[int]]:
    """The tree of the given nodes (0-based, ascending, closed under parents), renumbered."""
    row = {0: 0} | {node + 1: n + 1 for n, node in enumerate(nodes)}
    return [row[parents[node]] for node in nodes], [ranks[node] for node in nodes]


def top(logits: Tensor, k: int = K, block: int = 64) -> Tensor:
    """Indices of the ``k`` largest of each row of ``logits`` ([n, V] -> [n, k]), largest first.

    The k largest lie in the k blocks with the largest maxima, so only those are sorted; `torch.topk` over 81 rows of
    49,152 logits would cost as much as a layer.
    """
    n, V = logits.shape
    if 4 * k * block > V:
        return logits.topk(k, -1).indices
    x = F.pad(logits, (0, -V % block), value=-torch.inf).view(n, -1, block)
    blocks = x.amax(-1).topk(k, -1).indices  # [n, k]
    candidates = x.gather(1, blocks[:, :, None].expand(-1, -1, block)).view(n, -1)
    best = candidates.topk(k, -1).indices
    return blocks.gather(1, best // block) * block + best % block
