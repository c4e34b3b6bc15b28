"""Low-bit codes that are really packed into bytes: asymmetric, in groups along one axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony.errors import UserError
from parsimony.methods.kv_cache.held import HALF


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [n] uint8 below 2^bits as bytes [ceil(n * bits / 8)], the first in the lowest bits."""
    if 8 % bits:  # such as 3 bits: bit by bit
        codes, bits = (codes[:, None] >> torch.arange(bits, dtype=torch.uint8, device=codes.device)).reshape(-1) & 1, 1
    each = 8 // bits
    codes = F.pad(codes, (0, -len(codes) % each)).view(-1, each)
    return (codes << torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` codes of packed bytes."""
    if 8 % bits:  # eight codes in as many bytes as a code has bits
        parts = F.pad(packed, (0, -len(packed) % bits)).view(-1, bits).long()
        words = (parts << torch.arange(0, 8 * bits, 8, device=packed.device)).sum(1, keepdim=True)
        shifts = torch.arange(0, 8 * bits, bits, device=packed.device)
        return ((words >> shifts) & (2**bits - 1)).to(torch.uint8).view(-1)[:count]
    return torch.index_select(_codes_of_bytes(bits, packed.device), 0, packed.int()).view(torch.uint8)[:count]


@cache
def _codes_of_bytes(bits: int, device: torch.device) -> Tensor:
    """The codes in each byte [256], side by side as one number: looking up is several times faster than shifting."""
    each = 8 // bits
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes = (torch.arange(256, dtype=torch.uint8)[:, None] >> shifts) & (2**bits - 1)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[each]
    return codes.contiguous().view(kind).view(-1).to(device)


@dataclass
class Codes:
    """A quantised tensor: x ~ code * scale + least, group by group along an axis.

    Attributes
    ----------
    packed : Tensor uint8
    scale, least : Tensor float16
        One entry a group: the shape of x with the axis cut to its groups.
    shape : torch.Size
    axis, group, bits : int
    """

    packed: Tensor
    scale: Tensor
    least: Tensor
    shape: torch.Size
    axis: int
    group: int
    bits: int

    @classmethod
    def of(cls, x: Tensor, bits: int, axis: int, group: int) -> Codes:
        """Quantise by the minimum and maximum of each group; one group if the axis is shorter than that.

        Raises
        ------
        UserError
            For bits other than 1 to 8, and when the groups do not divide the axis.
        """
        n = x.shape[axis]
        group = min(group, n)
        if not 1 <= bits <= 8 or n % group:
            raise UserError(f"codes of {bits} bits in groups of {group} along {n} entries: bits are 1 to 8, and groups "
                            "divide the axis; mend the method's params")  # fmt: skip
        parts = x.float().unflatten(axis, (n // group, group))
        low, high = parts.aminmax(dim=axis + 1)
        least, scale = low.to(HALF), ((high - low) / (2**bits - 1)).to(HALF)
        step = scale.float().where(scale > 0, torch.ones(())).unsqueeze(axis + 1)
        codes = ((parts - least.float().unsqueeze(axis + 1)) / step).round().clamp(0, 2**bits - 1)
        return cls(pack(codes.to(torch.uint8).reshape(-1), bits), scale, least, x.shape, axis, group, bits)

    def codes(self) -> Tensor:
        """The codes, uint8, in the shape of x."""
        return unpack(self.packed, self.bits, self.shape.numel()).view(self.shape)

    def restore(self) -> Tensor:
        """x as attention sees it, float32."""
        parts = self.codes().unflatten(self.axis, (-1, self.group)).float()
        scale, least = (each.float().unsqueeze(self.axis + 1) for each in (self.scale, self.least))
        return torch.addcmul(least, parts, scale).view(self.shape)

    def tensors(self) -> Iterator[Tensor]:
        """What is held."""
        yield from (self.packed, self.scale, self.least)


def joined(blocks: list[Codes], along: int) -> Codes:
    """Blocks as one along an axis that their groups do not run along; codes stay as they are."""
    one = blocks[0]
    codes = torch.cat([block.codes() for block in blocks], along)
    scale, least = (torch.cat([getattr(block, name) for block in blocks], along) for name in ("scale", "least"))
    return Codes(pack(codes.reshape(-1), one.bits), scale, least, codes.shape, one.axis, one.group, one.bits)
