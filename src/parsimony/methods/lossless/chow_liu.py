"""Baseline: the Chow-Liu tree itself (Chow and Liu, 1968), every pixel given one other."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import load_file

from parsimony.errors import UserError
from parsimony.models import rans

VALUES = 256
TOGETHER = 16
"""Images whose tables are there at once, 2 MB each."""


class ChowLiu:
    """Codes images of the size that its pairs of pixels were counted in.

    Parameters
    ----------
    prior : int
        How many samples the distribution of the pixel alone weighs, beside those in which the other had this value.
    pseudocount : int
        Samples spread over all values in the distribution of the pixel alone.
    """

    def __init__(self, prior: int = 8, pseudocount: int = 8):
        self.prior, self.pseudocount = prior, pseudocount

    def build(self, model, inputs) -> ChowLiuCodec:
        return ChowLiuCodec(inputs.assets["pairs"] / "pairs.safetensors", self.prior, self.pseudocount)


class ChowLiuCodec:
    """The tree from its file; frequencies are integers throughout."""

    def __init__(self, file, prior: int, pseudocount: int):
        stored = load_file(file)
        self.model_bytes = file.stat().st_size
        self.shape, self.variable = tuple(stored["shape"].tolist()), stored["variable"]
        self.parent = stored["parent"]
        self.counts = np.zeros((len(self.parent), VALUES, VALUES), np.uint16)  # [node, value above, value]
        self.counts.reshape(-1)[stored["keys"]] = stored["counts"]
        alone = self.counts.sum(1, dtype=np.int64)
        total = VALUES * (alone.sum(1, keepdims=True) + pseudocount)
        self.base = (prior << 16) * (VALUES * alone + pseudocount) // total

    def encode(self, x: np.ndarray) -> bytes:
        return self.encode_batch([x])[0]

    def decode(self, data: bytes) -> np.ndarray:
        return self.decode_batch([data])[0]

    def encode_batch(self, xs: list[np.ndarray]) -> list[bytes]:
        for x in xs:
            if x.dtype != np.uint8 or x.shape != self.shape:
                raise UserError(f"chow_liu: {x.dtype} {list(x.shape)} is not uint8 {list(self.shape)}, as counted")
        streams = []
        for begin in range(0, len(xs), TOGETHER):
            samples = np.stack(xs[begin : begin + TOGETHER]).reshape(-1, len(self.variable))[:, self.variable]
            tables = self._tables(np.arange(len(self.parent)), self._above(samples))
            bounds = (np.take_along_axis(tables, samples[..., None].astype(int) + n, 2)[..., 0] for n in (0, 1))
            streams += rans.encode(*bounds)
        return streams

    def decode_batch(self, data: list[bytes]) -> list[np.ndarray]:
        streams = rans.Streams(data)
        samples = np.zeros((len(data), len(self.variable)), np.uint8)
        for node in range(len(self.parent)):
            above = samples[:, self.parent[node]] if node else np.zeros(len(data), np.uint8)
            samples[:, node] = streams.take(self._tables(node, above))
        streams.finish("chow_liu")
        images = np.empty_like(samples)
        images[:, self.variable] = samples
        return list(images.reshape(-1, *self.shape))

    def _above(self, samples: np.ndarray) -> np.ndarray:
        """The value above each node; the root's pairs were counted with 0."""
        above = samples[:, self.parent]
        above[:, 0] = 0
        return above

    def _tables(self, node, above: np.ndarray) -> np.ndarray:
        """Cumulative frequencies [..., 257] of a node's values given the value ``above`` it."""
        return rans.cumulative((self.counts[node, above].astype(np.int64) << 16) + self.base[node])
