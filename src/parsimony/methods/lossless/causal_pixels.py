"""The neural baseline: a causal network gives the distribution of each pixel, rANS codes it.

Encoding evaluates all pixels of all images at once; decoding one pixel of all images after the other, with the pixels
around it alone, so that neither side does more than it must.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file

from parsimony.errors import UserError
from parsimony.models import rans
from parsimony.models.causal_pixels import IntegerPixels

TOGETHER = 16
"""Images whose pixels are evaluated at once: their tables take 25 MB."""


class CausalPixelsCoder:
    """Codes square grey images of the size it was trained for."""

    def build(self, model, inputs) -> CausalPixelsCodec:
        return CausalPixelsCodec(inputs.assets["network"] / "pixels.safetensors")


class CausalPixelsCodec:
    """The network from its file."""

    def __init__(self, file):
        self.network = IntegerPixels(load_file(file))
        self.model_bytes = file.stat().st_size
        side = self.network.side
        self.shape = (side, side)
        self.row, self.column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)

    def encode(self, x: np.ndarray) -> bytes:
        return self.encode_batch([x])[0]

    def decode(self, data: bytes) -> np.ndarray:
        return self.decode_batch([data])[0]

    def encode_batch(self, xs: list[np.ndarray]) -> list[bytes]:
        for x in xs:
            if x.dtype != np.uint8 or x.shape != self.shape:
                raise UserError(f"causal_pixels: {x.dtype} {list(x.shape)} is not uint8 {list(self.shape)}")
        streams = []
        for begin in range(0, len(xs), TOGETHER):
            images = np.stack(xs[begin : begin + TOGETHER])
            framed = self._framed(torch.from_numpy(images))
            tables = self.network.tables(self.network.inputs(framed, self.row, self.column).flatten(0, 1))
            values, every = images.reshape(-1).astype(int), np.arange(images.size)
            bounds = (tables[every, values + step].reshape(len(images), -1) for step in (0, 1))
            streams += rans.encode(*bounds)
        return streams

    def decode_batch(self, data: list[bytes]) -> list[np.ndarray]:
        streams = rans.Streams(data)
        framed = self.network.framed(len(data))
        top, left = self.network.reach, self.network.reach
        for row, column in zip(self.row, self.column, strict=True):
            inputs = self.network.inputs(framed, row[None], column[None])[:, 0]
            framed[:, top + row, left + column] = torch.from_numpy(streams.take(self.network.tables(inputs))).float()
        streams.finish("causal_pixels")
        side = self.network.side
        return list(framed[:, top:, left : left + side].to(torch.uint8).numpy().copy())

    def _framed(self, images: torch.Tensor) -> torch.Tensor:
        framed = self.network.framed(len(images))
        framed[:, self.network.reach :, self.network.reach : -self.network.reach] = images
        return framed
