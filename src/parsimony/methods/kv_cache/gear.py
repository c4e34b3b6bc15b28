"""GEAR (Kang et al., 2024, arXiv 2403.05527 v4): X ~ Q + L + S, a quantised cache whose error is approximated too.

S keeps the extreme entries of every vector, Q is a base quantiser of the rest, and L is a matrix of low rank fitted on
what error is left, for each head by itself.  GEAR-L is the variant without S.

Where the official code and the paper differ, this follows the paper: outliers are a share of the *vector's* length (the
code takes that of a token also for channels, which keeps whole chunks exactly), codes have 2^bits levels, a chunk is
compressed once, by itself, and heads or sequences do not share factors.  L does not vanish where outliers are, so S
holds them less L there, and they come out as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.kernels import low_bit_attention
from parsimony.kernels.common import usable
from parsimony.kernels.low_bit_codes import Coded, Sparse
from parsimony.methods.kv_cache.held import HALF, Prefilled
from parsimony.methods.kv_cache.kivi import AXES, Kivi, Quantised
from parsimony.methods.kv_cache.quantise import Codes

PER = {"keys": "channel", "values": "token"}
SEED = 0


class Gear(Kivi):
    """Compresses the prompt, and then every ``gap`` decoded tokens as a chunk of its own.

    Parameters
    ----------
    key_bits, value_bits : int
    backbone : {"kivi", "kcvt"}
        Base quantiser: keys per channel and values per token, in groups of ``group`` entries, or the whole vector (a
        channel over all tokens of a chunk, a token over all channels of all heads) as one group.
    group : int
        g; of "kivi" alone.
    gap : int
        Tokens at which the streaming buffer, in half precision, is compressed; a multiple of g.
    sparse : float
        s: of each vector the round(s/2 n) largest and as many smallest of its n entries are kept.
    rank, chunk_rank : int
        r of the prompt, and of chunks of decoded tokens; 0: no L.
    exact : bool
        Whether L is the best one there is (from an SVD) rather than that of `power_iteration`.
    """

    def __init__(
        self, key_bits: int = 2, value_bits: int = 2, backbone: str = "kivi", group: int = 64, gap: int = 64,
        sparse: float = 0.02, rank: int = 4, chunk_rank: int = 2, exact: bool = False,
    ):  # fmt: skip
        if backbone not in ("kivi", "kcvt") or not 0 <= sparse <= 1 or (backbone == "kivi" and gap % group):
            raise UserError(
                f"gear: backbone {backbone!r} is not kivi or kcvt, sparse {sparse} not within 0 and 1, or gap {gap} no "
                f"multiple of group {group}; mend its params"
            )
        super().__init__(key_bits, value_bits, group if backbone == "kivi" else gap, gap)
        self.bits = {"keys": key_bits, "values": value_bits}
        self.whole, self.gap, self.sparse = backbone == "kcvt", gap, sparse
        self.rank, self.chunk_rank, self.factors = rank, chunk_rank, singular if exact else power_iteration

    def hold(self, prefilled: Prefilled) -> list[Corrected]:
        """One `Corrected` a layer."""
        return [Corrected(keys, values, self) for keys, values in zip(prefilled.keys, prefilled.values, strict=True)]


def power_iteration(E: Tensor, r: int, rounds: int = 3) -> tuple[Tensor, Tensor]:
    """Factors A [H, n, r] and P [H, d, r] of L = A P^T ~ E ([H, n, d]); each head starts from the same P."""
    H, _, d = E.shape
    P = torch.rand(d, r, generator=torch.Generator().manual_seed(SEED)).to(E.device).expand(H, -1, -1)
    for n in range(rounds):
        last = n == rounds - 1
        A = E @ (torch.linalg.qr(P).Q if last else P)
        A = torch.linalg.qr(A).Q if last else A
        P = E.mT @ A
    return A, P


def singular(E: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The factors that leave least of ``E`` in the Frobenius norm."""
    U, S, Vh = torch.linalg.svd(E, full_matrices=False)
    return U[..., :r] * S[..., None, :r], Vh.mT[..., :r]


def vectors(x: Tensor, per: str) -> Tensor:
    """The vectors of x [H, n, d] as rows: channels [H d, n], or tokens [n, H d]."""
    return x.mT.flatten(0, 1) if per == "channel" else x.transpose(0, 1).flatten(1)


def heads(rows: Tensor, per: str, H: int) -> Tensor:
    """x [H, n, d] of its `vectors`."""
    return rows.unflatten(0, (H, -1)).mT if per == "channel" else rows.unflatten(1, (H, -1)).transpose(0, 1)


def index_type(n: int) -> torch.dtype:
    """The smallest type for indices below n."""
    return torch.uint8 if n <= 2**8 else torch.int16 if n <= 2**15 else torch.int32


@dataclass
class Block:
    """Some tokens, x [H, n, d] ~ Q + L + S.

    Attributes
    ----------
    codes : Codes
        Q.
    A, P : Tensor [H, n, r], [H, d, r] float16
    at : Tensor [vectors, 2k] of integers
        Where in each vector S is not zero.
    outliers : Tensor [vectors, 2k] float16
    """

    codes: Codes
    A: Tensor
    P: Tensor
    at: Tensor
    outliers: Tensor
    per: str

    @classmethod
    def of(cls, x: Tensor, kind: str, r: int, settings: Gear) -> Block:
        """Compress."""
        x, per, bits = x.float(), PER[kind], settings.bits[kind]
        rows, (H, n, d) = vectors(x, per), x.shape
        k = round(settings.sparse / 2 * rows.shape[1])
        at = torch.cat([rows.topk(k, 1, largest).indices for largest in (False, True)], 1)
        # The mean, not zero, which may be far outside of the channel.
        bulk = rows.scatter(1, at, rows.mean(1, keepdim=True).expand(-1, 2 * k))
        Q = (
            Codes.of(bulk, bits, 1, bulk.shape[1])
            if settings.whole
            else Codes.of(heads(bulk, per, H), bits, AXES[per], settings.group)
        )
        A, P = x.new_empty(H, n, 0), x.new_empty(H, d, 0)
        block = cls(Q, A, P, at.to(index_type(rows.shape[1])), rows.gather(1, at).to(HALF), per)
        if r:
            A, P = settings.factors(x - block.bulk(), min(r, n, d))
        block.A, block.P = A.to(HALF), P.to(HALF)
        L = vectors(block.A.float() @ block.P.float().mT, per)
        block.outliers = (rows - L).gather(1, at).to(HALF)
        return block

    def bulk(self) -> Tensor:
        """Q + S, [H, n, d]."""
        x, H = self.codes.restore(), len(self.A)
        rows = x if x.ndim == 2 else vectors(x, self.per)
        return heads(rows.scatter(1, self.at.long(), self.outliers.float()), self.per, H)

    def restore(self) -> Tensor:
        """Q + L + S, [H, n, d]."""
        return self.bulk() + self.A.float() @ self.P.float().mT

    def scores(self, q: Tensor) -> Tensor:
        """q X^T [H, R, n] of queries [H, R, d]; L stays in its factors."""
        return q @ self.bulk().to(q.dtype).mT + (q @ self.P.to(q.dtype)) @ self.A.to(q.dtype).mT

    def mixed(self, weights: Tensor) -> Tensor:
        """weights X [H, R, d] of weights [H, R, n]; L stays in its factors."""
        return weights @ self.bulk().to(weights.dtype) + (weights @ self.A.to(weights.dtype)) @ self.P.to(weights).mT

    @cached_property
    def coded(self) -> Coded:
        """The same for the kernel of a GPU: what S differs from Q by, sorted by tokens (held too, once it is made)."""
        rows, (H, n, d) = vectors(self.codes.restore(), self.per), self.codes.shape
        at, sparse = self.at.long(), None
        if at.shape[1]:
            delta, row = self.outliers.float() - rows.gather(1, at), torch.arange(len(rows), device=at.device)
            row = row[:, None].expand_as(at)
            head, token, channel = (row // d, at, row % d) if self.per == "channel" else (at // d, row, at % d)
            sparse = Sparse.of(head.flatten(), token.flatten(), channel.flatten(), delta.flatten(), H, n)
        low = (self.A.contiguous(), self.P) if self.A.shape[2] else (None, None)
        return Coded.of(self.codes, *low, sparse)

    def tensors(self) -> Iterator[Tensor]:
        """What is held."""
        if "coded" in self.__dict__ and self.coded.sparse is not None:
            yield from self.coded.sparse.tensors()
        yield from self.codes.tensors()
        yield from (self.A, self.P, self.at, self.outliers)


class Corrected(Quantised):
    """Blocks of codes with their corrections, and behind them the streaming buffer."""

    def __init__(self, keys: Tensor, values: Tensor, settings: Gear):
        self.rank = settings.rank
        super().__init__(keys, values, settings)
        self.rank = settings.chunk_rank

    def flush(self) -> None:
        """Compress what fills the buffer, keys and values alike."""
        waiting = self.rest["keys"].shape[1]
        if ready := waiting - waiting % self.settings.gap:
            for kind, rest in self.rest.items():
                self.blocks[kind].append(Block.of(rest[:, :ready], kind, self.rank, self.settings))
                self.rest[kind] = rest[:, ready:].clone()

    def attend(self, q: Tensor, position: int) -> tuple[Tensor, Tensor]:
        keys, values = (self.rest[kind].to(q.dtype) for kind in ("keys", "values"))
        s = self.settings
        if usable(q) and not s.whole and all(q.shape[-1] * bits % 8 == 0 for bits in s.bits.values()):
            pairs = zip(*self.blocks.values(), strict=True)
            parts = [low_bit_attention.attend(q, key.coded, value.coded, len(key.coded)) for key, value in pairs]
            parts += [low_bit_attention.dense(q, keys, values)] if keys.shape[1] else []
            return low_bit_attention.merged(parts), q.new_empty(*q.shape[:2], 0)  # weights are not formed
        scores = [block.scores(q) for block in self.blocks["keys"]] + [q @ keys.mT]
        weights = (torch.cat(scores, -1) / q.shape[-1] ** 0.5).softmax(-1)
        *parts, newest = weights.split([part.shape[-1] for part in scores], -1)
        y = newest @ values
        for block, part in zip(self.blocks["values"], parts, strict=True):
            y = y + block.mixed(part)
        return y, weights
