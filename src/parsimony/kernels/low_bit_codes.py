"""Low-bit codes as the attention kernel reads them: packed rows, affine groups, a low-rank and a sparse correction.

    x [H, n, d] ~ code * scale + least  (+ A P^T)  (+ single entries)

Bytes hold 8 / bits codes of neighbouring channels.  The kernel takes them plane by plane: plane s is the s-th code of
every byte, so a tile [tokens, bytes] is loaded once and shifted, and the sum over channels is one sum a plane (see
docs/decisions/009_codes_by_planes.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 32
"""Tokens of a tile of `Sparse`; blocks of tokens that the kernel takes are whole tiles."""
RANK = 16
"""Greatest rank: the least width of a product on tensor cores."""


@dataclass(frozen=True)
class Sparse:
    """Single entries, sorted by head and tile of tokens, so that a block of tokens finds its own in one range.

    Attributes
    ----------
    offsets : Tensor [H tiles + 1] int32
        Where the entries of each head's tiles begin.
    token, channel : Tensor [m] uint8
        Token modulo 256, and channel, of each entry.
    delta : Tensor [m] float16
        What is added there.
    """

    offsets: Tensor
    token: Tensor
    channel: Tensor
    delta: Tensor

    @classmethod
    def of(cls, head: Tensor, token: Tensor, channel: Tensor, delta: Tensor, H: int, n: int) -> Sparse:
        """From entries ([m] each) in any order."""
        tiles = -(-n // TILE)
        if head.is_meta:
            offsets = head.new_empty(H * tiles + 1, dtype=torch.int32)
            return cls(offsets, token.to(torch.uint8), channel.to(torch.uint8), delta.half())
        place, order = (head * tiles + token // TILE).sort(stable=True)
        offsets = torch.searchsorted(place, torch.arange(H * tiles + 1, device=place.device)).int()
        token, channel, delta = (each[order] for each in (token, channel, delta))
        return cls(offsets, (token % 256).to(torch.uint8), channel.to(torch.uint8), delta.half())

    def add_to(self, x: Tensor) -> Tensor:
        """x [H, n, d] with the entries added."""
        H, n, d = x.shape
        tiles = -(-n // TILE)
        count = torch.arange(len(self.delta), device=x.device)
        place = torch.searchsorted(self.offsets.long(), count, right=True) - 1
        token = place % tiles // (256 // TILE) * 256 + self.token.long()
        return x.index_put((place // tiles, token, self.channel.long()), self.delta.to(x.dtype), accumulate=True)

    def tensors(self) -> Iterator[Tensor]:
        """What is held."""
        yield from (self.offsets, self.token, self.channel, self.delta)


@dataclass(frozen=True)
class Coded:
    """Keys or values of one layer.

    Attributes
    ----------
    packed : Tensor [H, n, d bits / 8] uint8
    scale, least : Tensor [H, n / tokens, d / channels] float16
    bits, tokens, channels : int
        A group is so many tokens (then of one channel), or so many channels (then of one token).
    A, P : Tensor [H, n, r], [H, d, r], optional
    sparse : Sparse, optional
    """

    packed: Tensor
    scale: Tensor
    least: Tensor
    bits: int
    tokens: int
    channels: int
    A: Tensor | None = None
    P: Tensor | None = None
    sparse: Sparse | None = None

    @classmethod
    def of(cls, codes, A: Tensor | None = None, P: Tensor | None = None, sparse: Sparse | None = None) -> Coded:
        """From `methods.kv_cache.quantise.Codes` of x [H, n, d] whose rows are whole bytes."""
        H, n, d = codes.shape
        tokens, channels = (codes.group, 1) if codes.axis == 1 else (1, codes.group)
        packed = codes.packed.view(H, n, d * codes.bits // 8)
        return cls(packed, codes.scale, codes.least, codes.bits, tokens, channels, A, P, sparse)

    def __len__(self) -> int:
        """n."""
        return self.packed.shape[1]

    @property
    def width(self) -> int:
        """d."""
        return self.packed.shape[2] * 8 // self.bits

    @property
    def rank(self) -> int:
        """r, or 0 without a low-rank part."""
        return 0 if self.A is None else self.A.shape[2]

    @property
    def planes(self) -> int:
        """Codes of a byte, where that leaves 16 bytes a row for a product; else 1, and each code loads its byte."""
        each = 8 // self.bits
        return each if each <= 4 and self.width // each >= 16 else 1

    def fits(self) -> bool:
        """Whether the kernel takes it."""
        whole = self.tokens % TILE == 0 if self.channels == 1 else self.channels % self.planes == 0
        return self.bits in (2, 4, 8) and whole and self.rank <= RANK and self.width <= 256

    def rest(self, begin: int) -> Tensor:
        """x [H, n - begin, d] float32 from a token on; without corrections."""
        cut = begin // self.tokens
        scale, least = self.scale[:, cut:], self.least[:, cut:]
        behind = Coded(self.packed[:, cut * self.tokens :], scale, least, self.bits, self.tokens, self.channels)
        return behind.restore()[:, begin - cut * self.tokens :]

    def restore(self) -> Tensor:
        """x [H, n, d] float32."""
        shifts = torch.arange(0, 8, self.bits, dtype=torch.uint8, device=self.packed.device)
        codes = ((self.packed[..., None] >> shifts) & (2**self.bits - 1)).flatten(2).float()
        scale, least = (
            each.float().repeat_interleave(self.tokens, 1).repeat_interleave(self.channels, 2)
            for each in (self.scale, self.least)
        )
        x = torch.addcmul(least, codes, scale)
        if self.A is not None:
            x = x + self.A.float() @ self.P.float().mT
        return x if self.sparse is None else self.sparse.add_to(x)

    def tensors(self) -> Iterator[Tensor]:
        """What is held."""
        yield from (self.packed, self.scale, self.least)
        yield from (each for each in (self.A, self.P) if each is not None)
        if self.sparse is not None:
            yield from self.sparse.tensors()


@triton.jit
def packed_tile(packed, t, j, inside, D: tl.constexpr, BITS: tl.constexpr, PLANES: tl.constexpr):
    """Bytes of tokens t [N]: [N, J] int32, each once; or with one plane the byte of each channel j."""
    PER: tl.constexpr = 8 // BITS
    if PLANES == 1:  # noqa: SIM108
        column = j // PER
    else:
        column = j
    return tl.load(packed + t[:, None] * (D // PER) + column[None, :], mask=inside, other=0).to(tl.int32)


@triton.jit
def plane(tile, j, S: tl.constexpr, BITS: tl.constexpr, PLANES: tl.constexpr):
    """Codes [N, J] int32 of channels PLANES j + S."""
    MASK: tl.constexpr = (1 << BITS) - 1
    if PLANES == 1:  # noqa: SIM108
        codes = (tile >> ((j % (8 // BITS)) * BITS)[None, :]) & MASK
    else:
        codes = (tile >> (S * BITS)) & MASK
    return codes
