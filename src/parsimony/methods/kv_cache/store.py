"""Keys and values that were moved out of the way: a file mapped into memory, whose every transfer is counted."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from torch import Tensor

from parsimony.methods.kv_cache.held import HALF


class HostStore:
    """Entries of one layer in a temporary file; what attention needs is copied back.

    The file goes when the store does.

    Parameters
    ----------
    keys, values : Tensor [H, n, d]
    room : int
        Entries that may be appended before the file has to grow.

    Attributes
    ----------
    moved : int
        Bytes copied back so far.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int = 256):
        H, self.count, d = keys.shape
        self._file = tempfile.TemporaryFile(prefix="parsimony_store_")  # noqa: SIM115 (lives as long as the store)
        self._map(H, self.count + room, d)
        self.data[0, :, : self.count] = keys.to(HALF).cpu().numpy()
        self.data[1, :, : self.count] = values.to(HALF).cpu().numpy()
        self.moved = 0

    def _map(self, H: int, capacity: int, d: int) -> None:
        self._file.truncate(2 * H * capacity * d * HALF.itemsize)
        self.data = np.memmap(self._file, np.float16, "r+", shape=(2, H, capacity, d))

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Move more entries ([H, n, d]) out."""
        n, (_, H, capacity, d) = keys.shape[1], self.data.shape
        if self.count + n > capacity:
            held = np.array(self.data[:, :, : self.count])
            self._map(H, 2 * (self.count + n), d)
            self.data[:, :, : self.count] = held
        self.data[0, :, self.count : self.count + n] = keys.to(HALF).cpu().numpy()
        self.data[1, :, self.count : self.count + n] = values.to(HALF).cpu().numpy()
        self.count += n

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of entries [H, m], other ones for each head: keys and values [H, m, d] float16."""
        rows = np.take_along_axis(self.data, indices.cpu().numpy()[None, :, :, None], 2)
        self.moved += rows.nbytes
        keys, values = torch.from_numpy(rows).to(indices.device)
        return keys, values

    def nbytes(self) -> int:
        """Bytes of what is stored (not of what is held)."""
        return 2 * self.data.shape[1] * self.count * self.data.shape[3] * HALF.itemsize
