"""Variable trees of hidden Chow-Liu trees: which units there are, in which order to code, what to evaluate when.

Units come in vectors of M, one a node of the variable tree (Liu et al., arXiv 2111.11632, section 3), numbered so that
the number tells the kind: input nodes 0..D-1 (f_i(x_i, .)), messages D..2D-2 (A_c times the vector below, for hidden
variable c = n - D + 1) and products of two vectors 2D-1..3D-3.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Vtree:
    """A binary variable tree.

    Attributes
    ----------
    parent : ndarray [D]
        Of the hidden tree; parent[i] < i, and 0 for the root.
    first, second, above, sibling : ndarray [3D - 2]
        Nodes around each node, -1 where there is none; a message has one child, and the first of two is the larger.
    order : ndarray [D]
        Coding order of the inputs: depth first, larger child first.
    """

    parent: np.ndarray
    first: np.ndarray
    second: np.ndarray
    above: np.ndarray
    sibling: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, parent: np.ndarray) -> Vtree:
        """That of a hidden tree; the operands at each hidden variable are multiplied in pairs, the smallest first."""
        D = len(parent)
        first, second, above, sibling = (np.full(3 * D - 2, -1, np.int64) for _ in range(4))
        operands: list[list[tuple[int, int]]] = [[(1, i)] for i in range(D)]  # (variables below, node)
        product = 2 * D - 1
        for i in range(D - 1, -1, -1):
            heap = operands[i]
            heapq.heapify(heap)
            while len(heap) > 1:
                (m, b), (n, a) = heapq.heappop(heap), heapq.heappop(heap)
                first[product], second[product] = a, b
                above[[a, b]], sibling[a], sibling[b] = product, b, a
                heapq.heappush(heap, (m + n, product))
                product += 1
            size, top = heap[0]
            if i:
                message = D - 1 + i
                first[message], above[top] = top, message
                operands[parent[i]].append((size, message))
        order, todo = [], [top]
        while todo:
            node = todo.pop()
            if node < D:
                order.append(node)
            todo += [child for child in (second[node], first[node]) if child >= 0]
        return cls(np.asarray(parent), first, second, above, sibling, np.array(order))

    @property
    def root(self) -> int:
        return int(np.flatnonzero(self.above < 0)[0])

    def bottom_up(self) -> list[int]:
        """All nodes, each behind its children."""
        nodes = [self.root]
        for node in nodes:
            nodes += [child for child in (self.first[node], self.second[node]) if child >= 0]
        return nodes[::-1]

    def edges(self, M: int) -> np.ndarray:
        """Edges [3D - 2] of the circuit into the units of each node; their sum and M for the prior are its size |p|."""
        D = len(self.order)
        return np.repeat([M, M * M, 2 * M], [D, D - 1, D - 1])


@dataclass(frozen=True)
class Schedule:
    """What is evaluated at each of D steps: ``down[down_at[k] : down_at[k + 1]]`` first, then, with x_k known, ``up``.

    A vector going up is a marginal of what is known below it.  One going down, from w at the lowest node over all that
    was coded to the input of x_k, is how the marginal of everything known depends on the vector at its node: what an
    input f(x_k, .) has to be multiplied with for P(x_1..x_k).
    """

    down: np.ndarray
    down_at: np.ndarray
    up: np.ndarray
    up_at: np.ndarray

    def evaluations(self, vtree: Vtree, M: int) -> int:
        """Edges evaluated for all conditionals of one sample."""
        edges = vtree.edges(M)
        through = np.where(vtree.above < 2 * len(vtree.order) - 1, M * M, M)  # a message, or an edge of each product
        return int(through[self.down].sum() + edges[self.up].sum())


def schedule(vtree: Vtree, mode: str) -> Schedule:
    """Evaluation in one of three modes, which give the same numbers bit by bit.

    naive
        Everything, for each variable.
    path
        The nodes between x_k and the lowest node over all variables coded so far, as in the paper (theorem 1).
    once
        A vector going down when its node is entered, one going up when its last variable is known: an order that is
        depth first needs each but once.
    """
    D, above = len(vtree.order), vtree.above
    last = np.zeros(len(above), int)  # step at which all variables below are known
    last[vtree.order] = np.arange(D)
    everything = np.array(vtree.bottom_up())
    for node in everything:
        for child in (vtree.first[node], vtree.second[node]):
            last[node] = max(last[node], last[child] if child >= 0 else 0)
    spine, entered = _line(vtree.order[0], above), set()
    down, up = [], []
    for k, leaf in enumerate(vtree.order):
        line = _line(leaf, above)
        reach = next(n for n, node in enumerate(line) if node in spine)
        if mode == "naive":
            down.append(everything[-2::-1])
            up.append(everything)
            continue
        below = line[:reach][::-1]
        finished = [node for node in line if last[node] <= k]
        down.append(below if mode == "path" else [node for node in below if node not in entered])
        # Behind the last variable of a node, the message above has to be there for the next step.
        up.append(line[: max(reach + 1, len(finished))] if mode == "path" else finished)
        entered.update(below)
    sizes = [np.cumsum([0, *map(len, lists)]) for lists in (down, up)]
    flat = [np.concatenate([np.array(nodes, np.int64) for nodes in lists]) for lists in (down, up)]
    return Schedule(flat[0], sizes[0], flat[1], sizes[1])


def _line(node: int, above: np.ndarray) -> list[int]:
    """A node and all above it."""
    line = []
    while node >= 0:
        line.append(int(node))
        node = above[node]
    return line
