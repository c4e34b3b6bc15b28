"""Hidden Chow-Liu trees: deep mixtures whose every marginal is exact (arXiv 2111.11632, 2106.02264).

Each variable X_i in {0..K-1} hangs on a hidden Z_i with M states; the Z follow a tree learnt from data:
p(x) = sum_z prior(z_0) prod_c A_c(z_parent, z_c) prod_i f_i(x_i, z_i).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor, nn

from parsimony.models.rans import cumulative

CHUNK = 64
"""Variables whose joint histograms with all others are held at once."""


def mutual_information(x: np.ndarray, K: int, bins: int = 32, soft: bool = True) -> np.ndarray:
    """Mutual information [D, D] in nats between the columns of ``x`` ([N, D] integers below ``K``).

    Values are scaled to [0, 1] and belong to ``bins`` bins; if ``soft``, to all of them, with weights that fall off as
    a Gaussian of width half a bin (pyjuice's estimate), else to the one they lie in.
    """
    N, D = x.shape
    scaled = np.arange(K) / max(K - 1, 1)
    centres = (np.arange(bins) + 0.5) / bins
    if soft:
        weights = np.exp(-0.5 * ((scaled[:, None] - centres) * bins / 0.5) ** 2)
        weights /= weights.sum(1, keepdims=True)
    else:
        weights = np.eye(bins)[np.minimum((scaled * bins).astype(int), bins - 1)]
    shares = torch.from_numpy(weights.astype(np.float32))[torch.from_numpy(x.astype(np.int64))].view(N, D * bins)
    alone = shares.mean(0).double().view(D, bins)
    entropy = -torch.special.xlogy(alone, alone).sum(1)
    information = np.zeros((D, D))
    for begin in range(0, D, CHUNK):
        here = shares[:, begin * bins : (begin + CHUNK) * bins]
        joint = (here.T @ shares[:, begin * bins :]).div_(N)  # the others before it were looked at already
        terms = torch.special.xlogy(joint, joint).view(-1, bins, D - begin, bins)
        found = entropy[begin : begin + CHUNK, None] + entropy[begin:] + terms.sum((1, 3), dtype=torch.float64)
        information[begin : begin + CHUNK, begin:] = found
        information[begin:, begin : begin + CHUNK] = found.T
    return information.clip(0)


def chow_liu(information: np.ndarray) -> np.ndarray:
    """Edges [D - 1, 2] of the spanning tree with the largest total mutual information."""
    costs = information.max() + 1.0 - information  # positive: a zero would be no edge
    tree = minimum_spanning_tree(np.triu(costs, 1)).tocoo()
    return np.stack((tree.row, tree.col), 1)


def rooted(edges: np.ndarray, D: int, balanced: bool = True) -> np.ndarray:
    """Parent [D] of each variable, -1 for the root.

    The root of a tree is its centroid, without which no part has more than half of the variables.  If ``balanced``,
    the centroid of each part left becomes a child, and so on: the depth is at most log2(D), but an edge may join
    variables that were not neighbours.  Else the edges stay as they are.
    """
    neighbours: list[set[int]] = [set() for _ in range(D)]
    for i, j in edges.tolist():
        neighbours[i].add(j)
        neighbours[j].add(i)
    parent = np.full(D, -1)
    parts = [(0, -1)]
    while parts:
        start, above = parts.pop()
        root, towards = _centroid(start, neighbours)
        parent[root] = above
        if not balanced:
            parent[list(towards)] = list(towards.values())
            break
        for other in neighbours[root]:
            neighbours[other].discard(root)
            parts.append((other, root))
    return parent


def _centroid(start: int, neighbours: list[set[int]]) -> tuple[int, dict[int, int]]:
    """The centroid of the part that ``start`` is in, and the neighbour towards it of each other node of the part."""
    order, before = _walk(start, neighbours)
    size = dict.fromkeys(order, 1)
    for node in order[:0:-1]:
        size[before[node]] += size[node]
    largest = {node: len(order) - size[node] for node in order}
    for node in order[1:]:
        largest[before[node]] = max(largest[before[node]], size[node])
    centroid = min(order, key=lambda node: (largest[node], node))
    return centroid, _walk(centroid, neighbours)[1]


def _walk(start: int, neighbours: list[set[int]]) -> tuple[list[int], dict[int, int]]:
    order, before = [start], {}
    for node in order:
        for other in sorted(neighbours[node]):
            if other != before.get(node):
                before[other] = node
                order.append(other)
    return order, before


class HiddenChowLiuTree(nn.Module):
    """The circuit as tensors; nodes are numbered breadth first, the root is node 0.

    Attributes
    ----------
    variable : Tensor [D]
        Column of the data that each node's X is.
    parent : Tensor [D]
        Node above each node; 0 for the root.
    prior : Tensor [M]
    transitions : Tensor [D - 1, M, M]
        A of nodes 1, 2, ...; rows (states of the parent) sum to 1.
    leaves : Tensor [D, K, M]
        f; columns sum to 1 over the K values.
    """

    def __init__(self, parents: np.ndarray, M: int, K: int, seed: int = 0):
        super().__init__()
        D, root = len(parents), int(np.flatnonzero(parents < 0)[0])
        rng = torch.Generator().manual_seed(seed)
        below: list[list[int]] = [[] for _ in range(D)]
        for node in np.flatnonzero(parents >= 0).tolist():
            below[parents[node]].append(node)
        variable, parent, depth = [root], [0], [0]
        for n, node in enumerate(variable):
            variable += below[node]
            parent += [n] * len(below[node])
            depth += [depth[n] + 1] * len(below[node])
        self.levels = np.searchsorted(depth, np.arange(depth[-1] + 2)).tolist()  # where each begins
        self.register_buffer("variable", torch.tensor(variable))
        self.register_buffer("parent", torch.tensor(parent))
        self.prior = nn.Parameter(self._random(rng, M, dim=0))
        self.transitions = nn.Parameter(self._random(rng, D - 1, M, M, dim=2))
        self.leaves = nn.Parameter(self._random(rng, D, K, M, dim=1))

    @staticmethod
    def _random(rng, *shape, dim) -> Tensor:
        return F.normalize(torch.rand(shape, generator=rng) + 0.5, p=1, dim=dim)

    def forward(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """log p(x) [B] in nats of ``x`` ([B, D] int64); variables that are not ``known`` ([D] bool) are summed out."""
        return self._evaluate(x, *(p.log() for p in self.parameters()), known)

    def _evaluate(self, x: Tensor, prior: Tensor, transitions: Tensor, leaves: Tensor, known=None) -> Tensor:
        """The upward pass, a level of the tree at once, by logarithms of the parameters."""
        D, K, M = leaves.shape
        at = x[:, self.variable] + K * torch.arange(D)
        u = F.embedding(at.T, leaves.view(D * K, M))  # [D, B, M]
        if known is not None:
            u = torch.where(known[self.variable, None, None], u, 0.0)
        above = 0
        for upper, begin, end in zip(self.levels[-3::-1], self.levels[-2:0:-1], self.levels[:1:-1], strict=True):
            v = u[begin:end] + above
            most = v.detach().amax(-1, keepdim=True)
            A = transitions[begin - 1 : end - 1].exp()
            sums = torch.bmm((v - most).exp(), A.transpose(1, 2))
            message = sums.clamp_min(torch.finfo(sums.dtype).tiny).log() + most  # an impossible state has no gradient
            above = v.new_zeros(begin - upper, *v.shape[1:]).index_add(0, self.parent[begin:end] - upper, message)
        return (u[0] + above + prior).logsumexp(-1).view(-1)

    def tables(self) -> dict[str, np.ndarray]:
        """What a file holds: the tree, and every distribution as bytes."""
        tree = {"parent": self.parent.numpy().astype(np.int32), "variable": self.variable.numpy().astype(np.int32)}
        return tree | {name: stored(p.detach().numpy()) for name, p in self.named_parameters()}

    def flows(self, batches: Iterable[Tensor]) -> tuple[dict[str, Tensor], float]:
        """Expected counts of each parameter, d log p / d log theta, and log p in nats, summed over all batches."""
        total, logs = 0.0, [p.detach().log().requires_grad_() for p in self.parameters()]
        for x in batches:
            found = self._evaluate(x, *logs).sum()
            found.backward()
            total += found.item()
        return {name: log.grad for (name, _), log in zip(self.named_parameters(), logs, strict=True)}, total

    @torch.no_grad()
    def maximise(self, flows: dict[str, Tensor], pseudocount: float, step: float) -> None:
        """Move each distribution by ``step`` towards the normalised flows, ``pseudocount`` spread over its entries."""
        for (name, p), dim in zip(self.named_parameters(), (0, 2, 1), strict=True):
            counts = flows[name] + pseudocount / p.shape[dim]
            total = counts.sum(dim, keepdim=True)
            aim = torch.where(total > 0, counts / total, p)
            p.lerp_(aim, step)


WEIGHTS = np.array([isqrt(isqrt(isqrt((1 << 8 * 30) >> q))) for q in range(256)], np.int64)
"""floor(2^(30 - q / 8)) of each stored byte q, by integers alone; the same on any machine."""


def stored(p: np.ndarray) -> np.ndarray:
    """Probabilities as bytes q, with 2^(-q / 8) within 4.5 % of each."""
    return np.clip(np.rint(-8 * np.log2(np.maximum(p, 1e-30))), 0, 255).astype(np.uint8)


def tables(q: np.ndarray, axis: int) -> np.ndarray:
    """Cumulative tables from 0 to 2^24 of stored distributions along ``axis``."""
    return cumulative(WEIGHTS[q], axis)


def shifted_colours(x: np.ndarray) -> np.ndarray:
    """Red and blue less green, modulo 256, in images [..., 3] uint8."""
    shift = x[..., 1:2] * np.array([1, 0, 1], np.uint8)
    return x - shift


def plain_colours(x: np.ndarray) -> np.ndarray:
    """The images of `shifted_colours`."""
    shift = x[..., 1:2] * np.array([1, 0, 1], np.uint8)
    return x + shift
