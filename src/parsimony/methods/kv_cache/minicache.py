"""MiniCache (Liu et al., NeurIPS 2024, arXiv 2405.14366): pairs of adjacent deep layers share their directions.

Of the states of two layers one unit vector a token and head is held, between the two on the sphere, and each layer's
own length; the few tokens whose directions differ most stay as they are.  Keys and values are merged separately.

No official code is known; the threshold of retention is the paper's, the fixed share that of a re-implementation
(Zefan-Cai/KVCache-Factory).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.held import HALF, Held, Holder, Prefilled
from parsimony.methods.kv_cache.kivi import Kivi, Quantised
from parsimony.models.language import Language

SMALL = 1e-4
"""Sine of an angle below which interpolation is linear."""


class MiniCache:
    """Merges the layers (S, S + 1), (S + 2, S + 3), ... up to the top.

    Parameters
    ----------
    start : int, optional
        S, from the top if negative; half of the layers if not given.
    pairs : int, optional
        At most this many pairs; all there are if not given.
    merge : {"slerp", "linear"}
        "linear" holds (1 - t) x^{l-1} + t x^l for both layers and no lengths: the mean, or with t = 0 layer l-1.
    t : float
        Where between the lower (0) and the upper layer (1) the shared direction is.
    retain : {"threshold", "share"}
        Which token's angles d (of a head) are too large: d > d_max - gamma (d_max - d_min) over the prompt, or a share
        gamma of its tokens.  Decoded tokens are held to the angle that this came to.
    gamma : float
        0: no token is retained.
    bits : int, optional
        Directions, and layers that are not merged, are in codes of KIVI; half precision if not given.
    group, residual : int
        Of these codes.
    """

    def __init__(
        self, start: int | None = None, pairs: int | None = None, merge: str = "slerp", t: float = 0.6,
        retain: str = "threshold", gamma: float = 0.05, bits: int | None = None, group: int = 32, residual: int = 32,
    ):  # fmt: skip
        if merge not in ("slerp", "linear") or retain not in ("threshold", "share") or not 0 <= min(t, gamma) <= 1 \
                or max(t, gamma) > 1:  # fmt: skip
            raise UserError(
                f"minicache: merge {merge!r} is not slerp or linear, retain {retain!r} not threshold or share, or t "
                f"{t}, gamma {gamma} not within 0 and 1; mend its params"
            )
        self.start, self.pairs, self.merge, self.t, self.retain, self.gamma = start, pairs, merge, t, retain, gamma
        self.codes = None if bits is None else Kivi(bits, bits, group, residual)

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        return Holder(model, self.hold)

    def merged(self, L: int) -> list[int]:
        """The lower layer of every pair."""
        S = L // 2 if self.start is None else self.start % L
        return list(range(S, L - 1, 2))[: self.pairs]

    def hold(self, prefilled: Prefilled) -> list[Held]:
        """One `Merged` for a layer of a pair, and for another what holds all of it."""
        layers: list[Held] = []
        lower = self.merged(len(prefilled.keys))
        for n, states in enumerate(zip(prefilled.keys, prefilled.values, strict=True)):
            if n - 1 in lower:
                continue
            if n in lower:
                pair = Pair(torch.stack((prefilled.keys[n : n + 2], prefilled.values[n : n + 2])), self)
                layers += [Merged(pair, 0), Merged(pair, 1)]
            else:
                layers.append(self.store(*states))
        return layers

    def store(self, keys: Tensor, values: Tensor) -> Held:
        """What holds keys and values, or their directions ([H, n, d] each)."""
        return Held(keys, values) if self.codes is None else Quantised(keys, values, self.codes)

    def limit(self, d: Tensor) -> Tensor:
        """The angle [..., 1] beyond which a token is retained, from the angles [..., n] of a prompt."""
        n = d.shape[-1]
        kept = math.ceil(self.gamma * n)
        if not self.gamma:
            return torch.full_like(d[..., :1], torch.inf)
        if self.retain == "threshold":
            least, most = d.aminmax(dim=-1, keepdim=True)
            return most - self.gamma * (most - least)
        return d.sort(-1, descending=True).values[..., kept, None] if kept < n else torch.full_like(d[..., :1], -1)


def angles(x: Tensor, y: Tensor) -> Tensor:
    """Angles Omega [...] between vectors [..., d]."""
    return (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(-1).clamp(-1, 1).acos()


def slerp(x: Tensor, y: Tensor, t: float) -> Tensor:
    """Unit vectors e [..., d] at a part t of the way on the sphere from x to y (Section 3.2)."""
    omega = angles(x, y)[..., None]
    small = omega.sin() < SMALL
    sine = omega.sin().where(~small, torch.ones(()))
    from_x = (((1 - t) * omega).sin() / sine).where(~small, torch.tensor(1 - t))
    from_y = ((t * omega).sin() / sine).where(~small, torch.tensor(t))
    return F.normalize(from_x * F.normalize(x, dim=-1) + from_y * F.normalize(y, dim=-1), dim=-1)


class Pair:
    """What two layers share.

    Parameters
    ----------
    x : Tensor [2, 2, H, n, d]
        Keys and values of the lower and of the upper layer.

    Attributes
    ----------
    directions : Held
        e of the keys and of the values.
    lengths : Held or None
        [H, n, 2]: of both layers.
    retained : list of (Tensor [m] int32, Tensor [2, m, d] float16)
        Of the keys and of the values: token * H + head, and the vectors of both layers.
    new : Tensor [m, 2, H, d] float16
        Keys and values of the token being decoded, of the m layers that are through: exact until both are.
    """

    def __init__(self, x: Tensor, settings: MiniCache):
        H, _, d = x.shape[2:]
        self.settings, self.new = settings, x.new_empty(0, 2, H, d, dtype=HALF)
        self.limit = settings.limit(angles(x[:, 0], x[:, 1]))  # [2, H, 1]
        e, lengths = self.parts(x)
        self.directions = settings.store(*e)
        self.lengths = None if lengths is None else Held(*lengths)
        nothing = x.new_empty(0, dtype=torch.int32), x.new_empty(2, 0, d, dtype=HALF)
        self.retained = [nothing, nothing]
        self.retain(x, 0)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Directions [2, H, n, d] and lengths [2, H, n, 2]."""
        x, s = x.float(), self.settings
        if s.merge == "linear":
            return torch.lerp(x[:, 0], x[:, 1], s.t), None
        return slerp(x[:, 0], x[:, 1], s.t), x.norm(dim=-1).movedim(1, -1)

    def retain(self, x: Tensor, first: int) -> None:
        """Keep those of the tokens from ``first`` on whose directions differ too much."""
        apart = angles(x[:, 0].float(), x[:, 1].float()) > self.limit  # [2, H, n]
        for kind, (at, rows) in enumerate(self.retained):
            token, head = apart[kind].T.nonzero(as_tuple=True)
            if len(token):
                found = ((token + first) * x.shape[2] + head).to(torch.int32)
                self.retained[kind] = torch.cat((at, found)), torch.cat((rows, x[kind][:, head, token].to(HALF)), 1)

    def settle(self, count: int) -> None:
        """Merge the token being decoded, the one at ``count``."""
        x = self.new.transpose(0, 1)[..., None, :]  # [2, 2, H, 1, d]
        e, lengths = self.parts(x)
        self.directions.append(*e[:, :, 0])
        if lengths is not None:
            self.lengths.append(*lengths[:, :, 0])
        self.retain(x, count)
        self.new = self.new[:0].clone()

    def tensors(self) -> Iterator[Tensor]:
        """What is held for both layers."""
        yield self.limit
        yield from self.directions.tensors()
        if self.lengths is not None:
            yield from self.lengths.tensors()
        for at, rows in self.retained:
            yield from (at, rows)
        yield self.new


class Merged(Held):
    """One of the two layers of a pair: ``place`` 0 for the lower, 1 for the upper one."""

    def __init__(self, pair: Pair, place: int):
        self.pair, self.place = pair, place

    def append(self, key: Tensor, value: Tensor) -> None:
        self.pair.new = torch.cat((self.pair.new, torch.stack((key, value))[None].to(HALF)))

    def watch(self, q: Tensor, weights: Tensor) -> None:
        if self.place == 1:
            self.pair.settle(weights.shape[-1] - 1)

    def directions(self, q: Tensor, position: int) -> list[tuple[Tensor, Tensor]]:
        """Of the keys and of the values: directions [H, n, d] and lengths [H, n, 1]."""
        e = [each.to(q.dtype) for each in self.pair.directions.seen(q, position)[:2]]
        if (held := self.pair.lengths) is None:
            return [(each, each.new_ones(1, 1, 1)) for each in e]
        return [(e[0], held.keys[..., self.place, None].to(q)), (e[1], held.values[..., self.place, None].to(q))]

    def retained(self, kind: int, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads [m], tokens [m] and vectors [m, d] of what is not merged, of the keys (0) or of the values (1)."""
        at, rows = self.pair.retained[kind]
        return at % len(q), at // len(q), rows[self.place].to(q.dtype)

    def newest(self, q: Tensor) -> Tensor:
        """Keys and values [2, H, m, d] of the m <= 1 tokens that wait for the upper layer."""
        return self.pair.new[self.place : self.place + 1].permute(1, 2, 0, 3).to(q.dtype)

    def seen(self, q: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor | None]:
        out = []
        for kind, (e, length) in enumerate(self.directions(q, position)):
            x = e * length
            head, token, rows = self.retained(kind, q)
            x[head, token] = rows
            out.append(torch.cat((x, self.newest(q)[kind]), 1))
        return *out, None

    def attend(self, q: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Attention that restores no vector: a length scales the score of its direction, or its probability."""
        (e_k, k), (e_v, v) = self.directions(q, position)
        keys, values = self.newest(q)
        scores = q @ e_k.mT * k.mT  # [H, R, n]
        head, token, rows = self.retained(0, q)
        scores[head, :, token] = (q[head] @ rows[..., None])[..., 0]
        weights = (torch.cat((scores, q @ keys.mT), -1) / q.shape[-1] ** 0.5).softmax(-1)
        merged, last = weights.split([scores.shape[-1], keys.shape[1]], -1)
        head, token, rows = self.retained(1, q)
        alone = merged[head, :, token]  # [m, R]
        scaled = merged * v.mT
        scaled[head, :, token] = 0
        y = scaled @ e_v + last @ values
        return y.index_add(0, head, alone[..., None] * rows[:, None]), weights

    def tensors(self) -> Iterator[Tensor]:
        """Both layers' tensors, of the lower layer: each is held once."""
        if self.place == 0:
            yield from self.pair.tensors()
