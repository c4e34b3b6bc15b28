"""LouisKV (Wu et al., ICLR 2026, arXiv 2510.11292): entries are fetched only when the direction of queries jumps.

Neighbouring steps need much the same entries, so the fetched ones are used until the next jump.  The prompt is pooled
in clusters of keys, the output in the segments between jumps.

No code is public; where the text leaves something open: clusters are spherical on centred keys (raw ones are dominated
by what all keys share), jumps are found layer by layer, the newest tokens of the prompt begin in the buffer of recent
tokens as if they were output, and a segment also ends when it is as long as what always stays in that buffer.  A
segment that leaves the buffer between two jumps stays fetched where the budget has room, at no transfer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.kernels import cluster_assignment, page_scores
from parsimony.methods.kv_cache.held import HALF, Holder, Prefilled, prefill
from parsimony.methods.kv_cache.retrieval import Retrieving, limit, means, sizes
from parsimony.models.decoder import Decoder
from parsimony.models.language import Language

UNITS = ("clusters", "pages", "tokens", "random")
ITERATIONS = 10


class LouisKV:
    """Fetches the best clusters and segments at semantic boundaries.

    Parameters
    ----------
    budget : float
        B, entries fetched at most (sinks and the buffer come on top).
    unit : {"tokens", "ratio", "bytes"}
    tau : float
        A step whose queries have a mean cosine below this with those before is a boundary; above 1 every step is one,
        at -1 only the first.  Of the model: see `calibrate`.
    stride : int
        Instead of jumps, every so many steps a boundary (0: not so).
    units : {"clusters", "pages", "tokens", "random"}
        Clusters and segments; Quest's pages with bounds of their keys (Tang et al., arXiv 2406.10774); single tokens,
        the oracle of selection, which needs all keys; clusters and segments chosen at random.
    size : int
        Mean entries of a cluster, entries of a page.
    sinks, local : int
        The first entries, and the newest ones, that always stay.
    """

    def __init__(
        self, budget: float = 512, tau: float = 0.7, stride: int = 0, units: str = "clusters", size: int = 16,
        sinks: int = 4, local: int = 32, unit: str = "tokens",
    ):  # fmt: skip
        if units not in UNITS or budget <= 0 or min(size, local) < 1 or min(stride, sinks) < 0:
            raise UserError(
                f"louiskv: units {units!r} are not one of {', '.join(UNITS)}, or budget {budget} is not above 0, "
                f"size {size} or local {local} below 1, stride {stride} or sinks {sinks} below 0; mend its params"
            )
        self.budget, self.unit, self.tau, self.stride, self.units = budget, unit, tau, stride, units
        self.size, self.sinks, self.local = size, sinks, local

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        return Holder(model, self.hold)

    def hold(self, prefilled: Prefilled) -> list[Louis]:
        """One `Louis` a layer."""
        B = limit(self.budget, self.unit, prefilled)
        return [
            Louis(keys, values, B, self, layer)
            for layer, (keys, values) in enumerate(zip(prefilled.keys, prefilled.values, strict=True))
        ]

    def described(self, keys: Tensor, labels: Tensor, count: int) -> list[Tensor]:
        """Descriptions [H, count, d] of units: the mean key, or for pages the least and greatest of every channel."""
        if self.units != "pages":
            return [means(keys, labels, count)]
        wide = labels[:, :, None].expand(keys.shape)
        empty = keys.new_zeros(keys.shape[0], count, keys.shape[2])
        return [empty.scatter_reduce(1, wide, keys, kind, include_self=False) for kind in ("amin", "amax")]


class Louis(Retrieving):
    """One layer."""

    def __init__(self, keys: Tensor, values: Tensor, B: int, settings: LouisKV, layer: int):
        s, T = settings, keys.shape[1]
        sinks = min(s.sinks, T)
        pool = keys[:, sinks : max(T - s.local, sinks)]
        labels, count = partition(pool, s, prompt=True)
        super().__init__(keys, values, labels, s.described(pool, labels, count), sinks, B)
        self.settings, self.B, self.step, self.before = s, B, 0, keys.new_zeros(0, dtype=HALF)
        self.whole = B >= T
        self.random = torch.Generator().manual_seed(layer)

    def boundary(self, q: Tensor) -> bool:
        """Whether step t begins something new."""
        s = self.settings
        if self.step == 0:
            return True
        return self.step % s.stride == 0 if s.stride else bool(similarity(self.before.to(q.dtype), q) < s.tau)

    def seen(self, q: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
        s, boundary = self.settings, self.boundary(q)
        self.before, self.step = q.to(HALF), self.step + 1
        n = self.open - 1  # the newest token begins the next segment
        if n and (boundary or n >= s.local):
            begin = self.count - 1 - n
            segment = self.keys[:, begin:-1]
            labels, count = partition(segment, s, prompt=False)
            self.close(labels[0], s.described(segment, labels, count))
        left = self.leave(s.local)
        if boundary:
            self.fetched = self.fetch(self.choose(self.scores(q), self.B))
        elif left.shape[2]:
            self.fetched = torch.cat((self.fetched, left), 2)[:, :, : self.B]
        return self.beside(self.fetched)

    def scores(self, q: Tensor) -> Tensor:
        """w_u [H, U]: the softmax over units of what each query head ([H, R, d]) scores them, their mean in a group."""
        low, high = self.index[0], self.index[-1]
        H, U, _ = low.shape
        if self.settings.units == "random":
            return torch.rand(H, U, generator=self.random).to(q.device)
        # With a mean for both bounds this is q c_u; with bounds the most that any key within them scores.
        return page_scores.scores(q, low, high, sizes(self.labels.long(), U))

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        yield self.before


def partition(keys: Tensor, settings: LouisKV, prompt: bool) -> tuple[Tensor, int]:
    """Label [H, n] of each key ([H, n, d]), and how many labels there are."""
    H, n, _ = keys.shape
    if settings.units in ("pages", "tokens"):
        size = settings.size if settings.units == "pages" else 1
        return (torch.arange(n, device=keys.device) // size).expand(H, n), -(-n // size)
    if not prompt or not n:
        return torch.zeros(H, n, dtype=torch.int64, device=keys.device), min(n, 1)
    count = -(-n // settings.size)
    return clusters(keys.float(), count), count


def clusters(keys: Tensor, count: int) -> Tensor:
    """Labels [H, n] of spherical k-means of each head's centred keys ([H, n, d]); begins from every (n / count)-th."""
    x = F.normalize(keys - keys.mean(1, keepdim=True), dim=-1)
    centres = x[:, torch.arange(count) * x.shape[1] // count]
    for _ in range(ITERATIONS):
        labels = cluster_assignment.assign(x, centres)
        new = means(x, labels, count)
        centres = F.normalize(new, dim=-1).where((sizes(labels, count) > 0)[:, :, None], centres)
    return cluster_assignment.assign(x, centres)


def similarity(before: Tensor, q: Tensor) -> Tensor:
    """r_t: cosine of the queries ([H, R, ..., d]) of two steps, the mean over all query heads."""
    return F.cosine_similarity(before, q, dim=-1).mean((0, 1))


def calibrate(decoder: Decoder, texts: Iterable[Tensor], rate: float, context: int) -> float:
    """The tau at which a share ``rate`` of steps, over all layers, are boundaries.

    Parameters
    ----------
    texts : iterable of Tensor [T] int64
        Held-out texts, longer than ``context``: the steps behind that many tokens count.
    rate : float
        0 to 1.
    """
    r = []
    for ids in texts:
        queries = prefill(decoder, ids).queries.float()
        r += [similarity(q[:, :, context - 1 : -1], q[:, :, context:]) for q in queries]
    return float(torch.cat(r).quantile(rate))
