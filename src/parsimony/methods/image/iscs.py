"""ISCS: order and group the latent channels of a trained image codec by its weights alone (arXiv 2509.16853).

Only the abstract is public; score, core and grouping are a reconstruction from it, with every term kept apart so that
each can be judged.  Channel m is written by slice W_e[m] of the last encoder layer and read through slice W_d[m] of
the first decoder layer; the variance of these weights, the size of the bias b_e[m] and the correlation of the slices
are all that is looked at.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from parsimony.errors import UserError
from parsimony.methods.image.vae_codec import LatentCodec, VaeCodec
from parsimony.models.latent_coding import ImageCodec

UNEVEN = (0.05, 0.05, 0.1, 0.2, 0.6)
"""Shares of the channels in ELIC's uneven slices: 16, 16, 32, 64 and 192 of 320 (arXiv 2203.10886)."""


@dataclass(frozen=True)
class Importance:
    """What the weights say of each channel.

    Attributes
    ----------
    v_e, v_d : ndarray [M]
        Variance of W_e[m] and of W_d[m].
    bias : ndarray [M]
        abs(b_e[m]).
    score : ndarray [M]
        s = z(log v_d) + alpha z(log v_e) + beta z(bias), z standardising across channels.
    C : ndarray [M, M]
        Cosine similarity of the flattened W_d.
    """

    v_e: np.ndarray
    v_d: np.ndarray
    bias: np.ndarray
    score: np.ndarray
    C: np.ndarray

    @classmethod
    def of(cls, codec: ImageCodec, alpha: float = 1.0, beta: float = 1.0) -> Importance:
        network, M = codec.network, codec.network.M
        W_e = network.g_a[6].weight.double().numpy().reshape(M, -1)
        W_d = network.g_s[0].weight.double().numpy().reshape(M, -1)  # transposed convolution: inputs come first
        v_e, v_d, bias = W_e.var(1), W_d.var(1), np.abs(network.g_a[6].bias.double().numpy())
        score = _standardised(np.log(v_d)) + alpha * _standardised(np.log(v_e)) + beta * _standardised(bias)
        unit = W_d / np.linalg.norm(W_d, axis=1, keepdims=True)
        return cls(v_e, v_d, bias, score, unit @ unit.T)

    @property
    def order(self) -> np.ndarray:
        """Channels by falling score, ties by index."""
        return np.argsort(-self.score, kind="stable")

    def core(self, tau: float) -> np.ndarray:
        """Salient-Core: the first channels of the order that together have the share ``tau`` of the sum of v_d."""
        share = np.cumsum(self.v_d[self.order]) / self.v_d.sum()
        return self.order[: int(np.searchsorted(share, tau)) + 1]

    def clustered(self, channels: np.ndarray, tau: float) -> np.ndarray:
        """Channels of an order such that each auxiliary one stands behind the core channel it correlates with most.

        Core channels seed clusters in their order; auxiliary ones join them in theirs.
        """
        core = [m for m in self.core(tau) if m in set(channels.tolist())]
        clusters = {seed: [seed] for seed in core}
        for m in channels:
            if m not in clusters:
                clusters[core[int(np.argmax(np.abs(self.C[m, core])))]].append(m)
        return np.array([m for cluster in clusters.values() for m in cluster])


def _standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / max(x.std(), 1e-12)


def slices(count: int, G: int, uneven: bool = False) -> list[slice]:
    """``count`` channels in ``G`` slices whose sizes differ by one at most, or in the shares of `UNEVEN`."""
    edges = np.cumsum((0, *UNEVEN)) if uneven else np.arange(G + 1) / G
    edges = np.round(edges * count).astype(int)
    return [slice(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]


class Iscs(VaeCodec):
    """A codec whose channels are reordered, grouped, and perhaps not all sent.

    Parameters
    ----------
    architecture, rate, seed
        The trained codec, as for `VaeCodec`.
    groups : int
        Slices G, a stream each.
    uneven : bool
        Slices of ELIC's sizes in place of ``groups`` equal ones.
    clustered : bool
        Auxiliary channels follow the core channel that they correlate with; else channels stand in the plain order.
    sent : int
        Slices that are sent; 0: all.
    drop : float
        Share of the channels, the last of the order, that are never sent.
    tau : float
        Share of the sum of v_d that the core has.
    alpha, beta : float
        Weights of log v_e and of the bias in the score.
    """

    def __init__(
        self, architecture: str, rate: int, seed: int = 0, groups: int = 1, uneven: bool = False,
        clustered: bool = True, sent: int = 0, drop: float = 0.0, tau: float = 0.9, alpha: float = 1.0,
        beta: float = 1.0,
    ):  # fmt: skip
        super().__init__(architecture, rate, seed)
        self.groups, self.uneven, self.grouped, self.sent = groups, uneven, clustered, sent
        self.drop, self.tau, self.alpha, self.beta = drop, tau, alpha, beta
        if not 0 <= drop < 1 or not 0 < tau <= 1 or groups < 1 or not 0 <= sent <= groups:
            found = f"drop {drop}, tau {tau}, groups {groups} and sent {sent}"
            raise UserError(f"iscs: {found} do not fit; give 0 <= drop < 1, 0 < tau <= 1 and 0 <= sent <= groups")

    def build(self, model, inputs):
        codec = self.load(inputs)
        importance = Importance.of(codec, self.alpha, self.beta)
        kept = importance.order[: codec.network.M - round(self.drop * codec.network.M)]
        first = importance.clustered(kept, self.tau) if self.grouped else kept
        P = np.concatenate((first, importance.order[len(kept) :]))
        return IscsCodec(codec, importance, P, slices(len(kept), self.groups, self.uneven), self.sent or None)


class IscsCodec(LatentCodec):
    """The permuted codec; its slices are decoded by a pool of threads.

    Attributes
    ----------
    original : ImageCodec
        The codec before the permutation P [M].
    importance : Importance
    """

    def __init__(self, codec: ImageCodec, importance: Importance, P: np.ndarray, groups: list[slice], sent: int | None):
        self.original, self.importance, self.P = codec, importance, P
        side_by_side = ThreadPoolExecutor(len(groups)).map if len(groups) > 1 else map
        super().__init__(codec.permuted(P), groups, sent, side_by_side)
