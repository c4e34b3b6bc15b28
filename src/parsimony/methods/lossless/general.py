"""General-purpose compressors, which know nothing of images: zstd (RFC 8878) and xz (LZMA2), at their strongest."""

from __future__ import annotations

import lzma
from math import prod

import numpy as np
import pyarrow as pa

from parsimony.errors import UserError
from parsimony.models.container import KINDS, WRONG, kind, pack, unpack

MEMORY = 2**27
"""Bytes that the decoder of xz may use; its strongest preset needs half of them."""


class General:
    """Codec of anything as bytes in their order, the shape in front.

    Parameters
    ----------
    tool : {"zstd", "xz"}
    level : int
    """

    model_bytes = 0

    def __init__(self, tool: str, level: int):
        self.tool, self.level = tool, level

    def build(self, model, inputs) -> General:
        return self

    def encode(self, x: np.ndarray) -> bytes:
        kind(x, self.tool, *KINDS)
        if self.tool == "zstd":
            codec = pa.Codec("zstd", compression_level=self.level)
            return pack(x, codec.compress(x.tobytes(), asbytes=True))
        return pack(x, lzma.compress(x.tobytes(), preset=self.level | lzma.PRESET_EXTREME))

    def decode(self, data: bytes) -> np.ndarray:
        shape, payload = unpack(data)
        try:
            if self.tool == "zstd":
                values = pa.Codec("zstd").decompress(payload, decompressed_size=prod(shape), asbytes=True)
            else:
                stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
                values = stream.decompress(payload, prod(shape) + 1)
                # The end of a stream, with its checksum, is only read once there is room behind the values.
                whole = stream.eof and not stream.unused_data
                values = values if whole else b""
            return np.frombuffer(values, np.uint8).reshape(shape).copy()
        except (lzma.LZMAError, EOFError, ValueError, OSError) as error:
            raise UserError(f"{self.tool} stream of {len(data)} bytes {WRONG} ({error})") from None
