"""Classic image codecs behind one interface, each file as its library writes it: their rate is the file's length.

PNG, JPEG, WebP, AVIF and JPEG 2000 come with Pillow; JPEG-LS and JPEG XL with imagecodecs.  Every decoder looks at the
size in the header first, so that damaged bytes cannot make it fill gigabytes.
"""

from __future__ import annotations

import io
import zlib

import imagecodecs
import numpy as np
from PIL import Image

from parsimony.errors import UserError
from parsimony.models.container import LARGEST, WRONG, kind

GREY = b"\0"
"""Stands behind a WebP file of a grey image (WebP knows colour only): one byte that is not of the library."""
CHECK = 4
"""Bytes of a CRC-32 behind a JPEG-LS file, whose decoder may spend seconds on a damaged one of a few hundred bytes."""


class PillowCodec:
    """A format of Pillow.

    Parameters
    ----------
    format : {"PNG", "JPEG", "WEBP", "AVIF", "JPEG2000"}
    lossless : bool
    quality : float, optional
        0 to 100; for JPEG 2000 how many times smaller the file shall be than the samples.
    """

    model_bytes = 0

    def __init__(self, format: str, lossless: bool, quality: float | None = None):
        self.format = format
        self.kinds = ("colour",) if format == "AVIF" else ("grey", "colour")
        self.options = {
            ("PNG", True): {"optimize": True},
            ("JPEG", False): {"quality": quality, "optimize": True},  # 4:2:0
            ("WEBP", True): {"lossless": True, "quality": 80, "method": 4},
            ("WEBP", False): {"quality": quality, "method": 4},
            ("AVIF", False): {"quality": quality, "speed": 6, "max_threads": 1},  # 4:2:0, libaom
            ("JPEG2000", True): {"no_jp2": True, "mct": 1},
            ("JPEG2000", False): {"no_jp2": True, "mct": 1, "irreversible": True, "quality_layers": [quality]},
        }[format, lossless]

    def build(self, model, inputs) -> PillowCodec:
        return self

    def encode(self, x: np.ndarray) -> bytes:
        grey = kind(x, self.format, *self.kinds) == "grey"
        file, image = io.BytesIO(), Image.fromarray(x)
        try:
            (image.convert("RGB") if grey and self.format == "WEBP" else image).save(file, self.format, **self.options)
        except (OSError, ValueError) as error:  # such as more rows than the format can number
            raise UserError(f"{self.format} does not take shape {list(x.shape)} ({error}); cut it") from None
        return file.getvalue() + (GREY if grey and self.format == "WEBP" else b"")

    def decode(self, data: bytes) -> np.ndarray:
        grey = self.format == "WEBP" and len(data) == int.from_bytes(data[4:8], "little") + 9 and data[-1:] == GREY
        try:
            with Image.open(io.BytesIO(data), formats=[self.format]) as image:
                if image.width * image.height * len(image.getbands()) > LARGEST:
                    raise ValueError(f"{image.width} by {image.height} pixels")
                x = np.array(image)
        except Exception as error:  # plugins raise whatever their parsing hits: OSError, SyntaxError, struct.error ...
            raise UserError(f"{self.format} file of {len(data)} bytes {WRONG} ({type(error).__name__})") from None
        return _checked(x[..., 1] if grey and x.ndim == 3 else x, data)


class ImagecodecsCodec:
    """A format of imagecodecs.

    Parameters
    ----------
    format : {"JPEG-LS", "JPEG XL"}
    distance : float
        Butteraugli distance of JPEG XL; 0 is lossless.
    effort : int
        Of JPEG XL, 1 to 9.
    """

    model_bytes = 0

    def __init__(self, format: str, distance: float = 0.0, effort: int = 7):
        self.format, self.distance, self.effort = format, distance, effort

    def build(self, model, inputs) -> ImagecodecsCodec:
        return self

    def encode(self, x: np.ndarray) -> bytes:
        kind(x, self.format, "grey", "colour")
        x = np.ascontiguousarray(x)
        try:
            if self.format == "JPEG-LS":
                file = imagecodecs.jpegls_encode(x)
                return file + zlib.crc32(file).to_bytes(CHECK, "little")
            how = {"lossless": True} if self.distance == 0 else {"distance": self.distance, "lossless": False}
            return imagecodecs.jpegxl_encode(x, effort=self.effort, usecontainer=False, numthreads=1, **how)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{self.format} does not take shape {list(x.shape)} ({error}); cut it") from None

    def decode(self, data: bytes) -> np.ndarray:
        ls = self.format == "JPEG-LS"
        try:
            height, width = (jpegls_size if ls else jpegxl_size)(data)
            if not 0 < 3 * height * width <= 3 * LARGEST:
                raise ValueError(f"{width} by {height} pixels")
            if ls and zlib.crc32(data[:-CHECK]) != int.from_bytes(data[-CHECK:], "little"):
                raise ValueError("wrong checksum")
            x = imagecodecs.jpegls_decode(data[:-CHECK]) if ls else imagecodecs.jpegxl_decode(data, numthreads=1)
        except Exception as error:  # errors of the libraries, each of a type of its own
            raise UserError(f"{self.format} file of {len(data)} bytes {WRONG} ({error})") from None
        return _checked(x, data)


def jpegls_size(data: bytes) -> tuple[int, int]:
    """Height and width in the frame header of a JPEG-LS file (ITU-T T.87, C.2.2); raises ValueError without one."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 9 <= len(data):
        if data[at + 1] == 0xF7:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("no frame header")


def jpegxl_size(data: bytes) -> tuple[int, int]:
    """Height and width of a bare JPEG XL codestream (ISO/IEC 18181-1, size header); raises ValueError for others."""
    if data[:2] != b"\xff\x0a":
        raise ValueError("no codestream")
    bits, at = int.from_bytes(data[2:16], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> at - count & (1 << count) - 1

    def length(small: int) -> int:
        return 8 * (take(5) + 1) if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1)
    height = length(small)
    over, under = ((0, 0), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[take(3)]
    return height, height * over // under if over else length(small)


def _checked(x: np.ndarray, data: bytes) -> np.ndarray:
    """What a library decoded, if it is an image of ours."""
    if x.dtype != np.uint8 or not (x.ndim == 2 or x.ndim == 3 and x.shape[2] == 3):
        raise UserError(f"file of {len(data)} bytes {WRONG} (it holds {x.dtype} of shape {list(x.shape)})")
    return x
