"""Key-value cache with the surgery that decoding and compression methods need."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony.kernels import tree_attention
from parsimony.kernels.common import usable

TREE = 128
"""New tokens at a time up to which a GPU's attention meets their mask alone."""


class KVCache:
    """Static key and value buffers of a decoder, entry by entry addressable.

    Entry ``j`` of layer ``l`` holds the rotated key and the value of one token, and the position that token had.
    Padding entries have position -1: masks follow from positions, never from token ids.

    Parameters
    ----------
    layers, batch, heads, capacity, width : int
        Number of layers, sequences, key-value heads, entries a layer, and head width.

    Attributes
    ----------
    data : Tensor [2, layers, batch, heads, capacity, width]
        Keys and values.
    positions : Tensor [layers, batch, capacity] int64
        Position of each entry, -1 for padding.
    lengths : list of int
        Entries in use, per layer (equal until a method evicts from single layers).
    """

    def __init__(self, layers, batch, heads, capacity, width, dtype=torch.float32, device="cpu"):
        self.data = torch.zeros(2, layers, batch, heads, capacity, width, dtype=dtype, device=device)
        self.positions = torch.full((layers, batch, capacity), -1, dtype=torch.int64, device=device)
        self.lengths = [0] * layers
        self.capacity = capacity
        self.in_order = 0
        """How many leading entries are known to stand at positions 0, 1, 2, ... in every layer and sequence."""

    def __len__(self) -> int:
        """Entries of the longest layer."""
        return max(self.lengths)

    @property
    def uniform(self) -> bool:
        """Whether all layers hold equally many entries."""
        return min(self.lengths) == max(self.lengths)

    @property
    def plain(self) -> bool:
        """No padding, no eviction, no reordering: entry j is position j everywhere, so no mask is needed for it."""
        return self.uniform and self.in_order == self.lengths[0]

    def clear(self) -> None:
        """Forget everything."""
        self.lengths = [0] * len(self.lengths)
        self.in_order = 0

    @torch.inference_mode(False)  # buffers that grow inside a pass must stay writable outside it
    def reserve(self, count: int) -> None:
        """Make room for ``count`` more entries in every layer, growing the buffers if they are too small."""
        needed = len(self) + count
        if needed <= self.capacity:
            return
        capacity = max(needed, self.capacity * 3 // 2)
        data = self.data.new_zeros(*self.data.shape[:4], capacity, self.data.shape[5])
        positions = self.positions.new_full((*self.positions.shape[:2], capacity), -1)
        data[:, :, :, :, : self.capacity] = self.data
        positions[:, :, : self.capacity] = self.positions
        self.data, self.positions, self.capacity = data, positions, capacity

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put T new entries ([B, H, T, d] each) behind those of ``layer``; returns all its keys and values."""
        start = self.lengths[layer]
        stop = start + keys.shape[2]
        buffers = self.data[:, layer]
        buffers[0, :, :, start:stop] = keys
        buffers[1, :, :, start:stop] = values
        self.lengths[layer] = stop
        return buffers[0, :, :, :stop], buffers[1, :, :, :stop]

    def attend(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Write T new entries; the queries ([B, H, R * T, d]) see all there are. Caches of methods may do more."""
        return attend(q, *self.write(layer, keys, values), mask, keys.shape[2])

    def note_positions(self, positions: Tensor) -> None:
        """Store the positions ([B, T]) of the T entries about to be written to every layer."""
        count = positions.shape[1]
        if self.uniform:
            self.positions[:, :, len(self) : len(self) + count] = positions
        else:
            for layer, start in enumerate(self.lengths):
                self.positions[layer, :, start : start + count] = positions

    def keys(self, layer: int) -> Tensor:
        """Keys of a layer, [B, H, L, d] (a view)."""
        return self.data[0, layer, :, :, : self.lengths[layer]]

    def values(self, layer: int) -> Tensor:
        """Values of a layer, [B, H, L, d] (a view)."""
        return self.data[1, layer, :, :, : self.lengths[layer]]

    def keep(self, indices: Tensor, layer: int | None = None, start: int = 0) -> None:
        """Keep entries ``start + indices`` in that order, and everything before ``start``; drop the rest.

        Parameters
        ----------
        indices : Tensor [n] or [B, n] int64
            The same entries for every sequence, or other ones for each.
        layer : int, optional
            Only in this layer (a per-layer budget); all layers if not given.
        """
        layers = range(len(self.lengths)) if layer is None else [layer]
        count, there = indices.shape[-1], indices.to(self.data.device)
        for part in [slice(None)] if layer is None and self.uniform else [slice(i, i + 1) for i in layers]:
            length = self.lengths[part][0]
            if count and not 0 <= int(indices.min()) <= int(indices.max()) < length - start:
                raise IndexError(f"keep: an index is outside the {length - start} entries behind {start}")
            data = self.data[:, part, :, :, start:length]
            positions = self.positions[part, :, start:length]
            if there.ndim == 1:
                kept, where = data.index_select(4, there), positions.index_select(2, there)
            else:
                each = there[None, :, :].expand(data.shape[1], -1, -1)
                where = positions.gather(2, each)
                wide = each[None, :, :, None, :, None].expand(2, -1, -1, data.shape[3], -1, data.shape[5])
                kept = data.gather(4, wide)
            self.data[:, part, :, :, start : start + count] = kept
            self.positions[part, :, start : start + count] = where
        for i in layers:
            self.lengths[i] = start + count
        moved = self.positions[:, :, start : start + count]
        expected = torch.arange(start, start + count, device=moved.device)
        self.in_order = min(self.in_order, start)
        if self.in_order == start and self.uniform and bool((moved == expected).all()):
            self.in_order = start + count

    def align(self, parts: list[tuple[KVCache, int, int, int] | None], width: int) -> None:
        """Become the batch of some rows of other caches, right-aligned behind padding: one copy of what is kept.

        Parameters
        ----------
        parts : list of (KVCache, int, int, int)
            For each sequence: a cache whose layers are equally long, a row of it, and which entries of that row
            (from, up to) are kept. None: this row of the batch is as it should be already.
        width : int
            Entries of the new batch, not fewer than any part has.
        """
        whole, in_order = True, self.in_order
        self.clear()
        self.reserve(width)
        for row, part in enumerate(parts):
            if part is None:
                whole = whole and in_order >= width
                continue
            source, at, begin, stop = part
            pad = width - (stop - begin)
            self.data[:, :, row, :, :pad] = 0
            self.positions[:, row, :pad] = -1
            self.place(row, pad, source, at, begin, stop)
            whole = whole and pad == begin == 0 and source.in_order >= stop
        self.lengths = [width] * len(self.lengths)
        self.in_order = width if whole else 0

    def place(self, row: int, start: int, source: KVCache, at: int, begin: int, stop: int) -> None:
        """Copy entries ``begin`` up to ``stop`` of row ``at`` of ``source`` to entries from ``start`` on of ``row``.

        The lengths stay as they are: entries beyond them come into use when they are set (`align`, `extend`).
        """
        end = start + stop - begin
        self.data[:, :, row, :, start:end] = source.data[:, :, at, :, begin:stop]
        self.positions[:, row, start:end] = source.positions[:, at, begin:stop]

    def extend(self, source: KVCache, at: int, begin: int, stop: int) -> None:
        """Put entries ``begin`` up to ``stop`` of row ``at`` of ``source`` behind those of this (batch 1) cache."""
        length, count = len(self), stop - begin
        self.reserve(count)
        self.place(0, length, source, at, begin, stop)
        self.lengths = [length + count] * len(self.lengths)
        new = self.positions[:, 0, length : length + count]
        if self.in_order == length and bool((new == torch.arange(length, length + count, device=new.device)).all()):
            self.in_order = length + count

    def truncate(self, length: int, layer: int | None = None) -> None:
        """Drop all entries from ``length`` on (in every layer, or in one)."""
        for i in range(len(self.lengths)) if layer is None else [layer]:
            self.lengths[i] = min(self.lengths[i], length)
        self.in_order = min(self.in_order, length)

    def select(self, sequences: Tensor) -> None:
        """Become the batch of these sequences ([n] int64) in that order; one may be taken several times."""
        sequences = sequences.to(self.data.device)
        self.data = self.data.index_select(2, sequences)
        self.positions = self.positions.index_select(1, sequences)

    def rerotate(self, layer: int, positions: Tensor, rope) -> None:
        """Move the keys of a layer to new ``positions`` ([B, L] or [L]) by rotating each by the difference.

        ``rope(x, positions)`` rotates [B, H, L, d] by positions [B, L]; rotations compose, so the values stay valid.
        """
        length = self.lengths[layer]
        old = self.positions[layer, :, :length]
        new = torch.broadcast_to(positions, old.shape)
        self.data[0, layer, :, :, :length] = rope(self.keys(layer), torch.where(old < 0, 0, new - old))
        self.positions[layer, :, :length] = torch.where(old < 0, old, new)
        self.in_order = 0

    def nbytes(self) -> int:
        """Bytes of the live entries (keys and values; buffers kept in reserve do not count)."""
        _, _, batch, heads, _, width = self.data.shape
        return 2 * sum(self.lengths) * batch * heads * width * self.data.element_size()


def attend(q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None, new: int = 0) -> Tensor:
    """Attention [B, H, T, d]; float16 on a CPU is summed in float32, which takes a half to a quarter of the time.

    A mask [T, S] hides none but the ``new`` newest entries (others have more dimensions): on a GPU a kernel needs no
    more of it than that.
    """
    if mask is not None and mask.ndim == 2 and 0 < new <= TREE and usable(q):
        return tree_attention.attend(q, K, V, mask[:, -new:])
    if q.dtype == torch.float16 and q.device.type == "cpu":
        q, K, V, mask = q.float(), K.float(), V.float(), None if mask is None else mask.float()
        return F.scaled_dot_product_attention(q, K, V, attn_mask=mask).half()
    return F.scaled_dot_product_attention(q, K, V, attn_mask=mask)
