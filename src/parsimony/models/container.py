"""What codecs of our own put around their payload: the shape, and a checksum where a codec cannot tell damage itself.

A header is one byte for the kind and one to four bytes a length (seven bits a byte, lowest first): 3 bytes for a
digit of 28 by 28, 5 for a photograph.  The checksum, a CRC-32, is 4 more.  Files of classic codecs need neither.
"""

from __future__ import annotations

import zlib
from math import prod

import numpy as np

from parsimony.errors import UserError

LARGEST = 2**25
"""Values of an item, at most: no stream makes a decoder allocate more."""
KINDS = {"bytes": 1, "grey": 2, "colour": 3}
"""What samples can be, and how many axes they have: [N], [H, W] or [H, W, 3]."""
WRONG = "is damaged or no stream of this codec; encode it again"


def kind(x: np.ndarray, codec: str, *taken: str) -> str:
    """The kind of samples.

    Raises
    ------
    UserError
        When they are not uint8, empty, too large, or of a kind that is not among those ``taken`` by ``codec``.
    """
    found = next((k for k, axes in KINDS.items() if x.ndim == axes and (k != "colour" or x.shape[2] == 3)), None)
    if x.dtype != np.uint8 or found not in taken or not 0 < x.size <= LARGEST:
        raise UserError(f"{codec} takes {' or '.join(taken)} of 1 to {LARGEST} uint8 values, not {x.dtype} "
                        f"of shape {list(x.shape)}; convert or cut it")  # fmt: skip
    return found


def pack(x: np.ndarray, payload: bytes, checksum: bool = False) -> bytes:
    """Header of samples ``x`` and what a codec made of them."""
    lengths = x.shape[:2]
    header = bytes([x.ndim]) + b"".join(_number(length) for length in lengths)
    return header + (zlib.crc32(header + payload).to_bytes(4, "little") if checksum else b"") + payload


def unpack(data: bytes, checksum: bool = False) -> tuple[tuple[int, ...], bytes]:
    """Shape and payload of a stream.

    Raises
    ------
    UserError
        When the header makes no sense, its item would be larger than `LARGEST`, or the checksum differs.
    """
    axes, at, lengths = data[0] if data else 0, 1, []
    for _ in range(min(axes, 2)):
        length = shift = 0
        while True:
            if at >= len(data) or shift > 21:
                raise UserError(f"header of {data[:8].hex()!r} {WRONG}")
            length |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                break
        lengths.append(length)
    shape = (*lengths, 3) if axes == 3 else tuple(lengths)
    if axes not in KINDS.values() or not 0 < prod(shape) <= LARGEST:
        raise UserError(f"header of {data[:8].hex()!r} {WRONG}")
    if not checksum:
        return shape, data[at:]
    header, found, payload = data[:at], data[at : at + 4], data[at + 4 :]
    if zlib.crc32(header + payload).to_bytes(4, "little") != found:
        raise UserError(f"stream of {len(data)} bytes {WRONG}")
    return shape, payload


def _number(n: int) -> bytes:
    """A number, seven bits a byte, lowest first; the high bit says that more follow."""
    out = []
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])
