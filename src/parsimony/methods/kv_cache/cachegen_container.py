"""What CacheGen sends (Liu et al., SIGCOMM 2024, arXiv 2310.07240): containers of chunks, decoded in any order.

A container is a `Head`, the arrays of its scheme (`layout`), and the symbols of each layer: range coded (the length of
each layer's stream, the counts behind the tables, the streams), or without a model of them (whole bits, LZMA).

Two points differ from the official code and change no value: it stores tables as 16-bit numbers, where deflated counts
tell the same in fewer bytes; and it has a stream a channel, so that a GPU decodes them in parallel, where here the
channels of a layer follow one another in one stream, each still with its own table.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from math import prod
from typing import NamedTuple

import numpy as np

from parsimony.errors import UserError
from parsimony.methods.kv_cache import entropy_coder
from parsimony.methods.kv_cache.cachegen_codec import SCHEMES, coded_tokens, dequantise, layout

CODINGS = ("channel", "layer", "global", "profile", "fixed", "lzma")
MOST = 2**30
"""Elements of a chunk, so that a forged head cannot ask for more memory than there is."""


class Head(NamedTuple):
    """What a container begins with."""

    magic: bytes
    version: int
    scheme: int
    coding: int
    first: int  # token of the context
    whole: int  # tokens of it
    T: int
    L: int
    H: int
    d: int
    A: int
    profile: int  # checksum of its counts
    counts: int  # bytes of them in the container
    size: int  # bytes behind the head
    check: int = 0  # checksum of all else


HEAD, MARK = struct.Struct("<4sBBB 3I 4H 4I"), (b"KVCG", 2)


def container(scheme: str, arrays: dict, symbols: np.ndarray | None, coding: str, shape, first: int, whole: int,
              profile: np.ndarray | None = None) -> bytes:  # fmt: skip
    """A quantised chunk [2, L, H, T, d] whose first token is the token ``first`` of a context of ``whole`` tokens.

    ``profile`` are the counts of tables that the receiver has; `UserError` if they are of other caches.
    """
    _, L, H, T, d = shape
    parts, A, known, packed = [little(array) for array in arrays.values()], 0, 0, b""
    if symbols is None:
        coding = CODINGS[0]
    elif coding in CODINGS[:4]:
        half = int(np.abs(symbols).max(initial=0))
        if profile is None:
            counts = counted(symbols + half, coding, 2 * half + 1)
            packed = entropy_coder.pack(counts)
        else:
            coding, counts, known = "profile", profile, checksum(profile)
            if not fits(counts, L, H * d) or half > counts.shape[-1] // 2:
                raise UserError(f"cachegen: the profile's counts {counts.shape} are of another network, level or "
                                "variant; profile this one")  # fmt: skip
        A = counts.shape[-1]
        streams = [
            entropy_coder.encode(of_layer + A // 2, tables)
            for of_layer, tables in zip(symbols.reshape(2 * L, H * d, -1), tables_of(counts, L), strict=True)
        ]
        parts += [np.array([len(stream) for stream in streams], "<u4").tobytes(), packed, *streams]
    else:
        parts.append(entropy_coder.plain(symbols.reshape(2 * L, -1), coding))
    body = b"".join(parts)
    head = Head(*MARK, SCHEMES.index(scheme), CODINGS.index(coding), first, whole, T, L, H, d, A, known, len(packed),
                len(body))  # fmt: skip
    return HEAD.pack(*head._replace(check=zlib.crc32(body, zlib.crc32(HEAD.pack(*head))))) + body


def decode(data: bytes, profile: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values [L, H, T, d] float16 of containers in any order.

    Parameters
    ----------
    data : bytes
    profile : ndarray, optional
        The counts that they were encoded with, if they were.

    Raises
    ------
    UserError
        For bytes that are not whole containers of all chunks of one cache.
    """
    chunks, wholes, at = {}, set(), 0
    while at < len(data):
        head = Head(*HEAD.unpack_from(data, at)) if len(data) - at >= HEAD.size else None
        if not head or head[:2] != MARK or len(data) - at < HEAD.size + head.size:
            raise UserError(f"cachegen: byte {at} of {len(data)} begins no whole container; send the cache again")
        begin, at = at, at + HEAD.size + head.size
        body = data[begin + HEAD.size : at]
        try:
            if zlib.crc32(body, zlib.crc32(HEAD.pack(*head._replace(check=0)))) != head.check:
                raise ValueError("its checksum is another")
            with np.errstate(all="ignore"):
                chunks[head.first] = restore(head, body, profile)
        except (ValueError, IndexError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"cachegen: the container at byte {begin} is broken: {error}; send it again") from None
        wholes.add((head.whole, head.L, head.H, head.d))
    firsts, parts = sorted(chunks), [chunks[first] for first in sorted(chunks)]
    ends = np.cumsum([part.shape[3] for part in parts]).tolist()
    if len(wholes) != 1 or [*firsts, wholes.pop()[0]] != [0, *ends]:
        raise UserError(f"cachegen: chunks at tokens {firsts} are not all of one cache; send all of its chunks")
    return tuple(np.concatenate(parts, 3))


def restore(head: Head, body: bytes, profile: np.ndarray | None) -> np.ndarray:
    """A chunk [2, L, H, T, d] float16; raises what `decode` catches when its parts do not agree."""
    scheme, shape, C = SCHEMES[head.scheme], (2, head.L, head.H, head.T, head.d), head.H * head.d
    if not 0 < prod(shape) <= MOST:
        raise ValueError(f"a shape {shape[1:]}")
    arrays, symbols, at = {}, None, 0
    for name, (dtype, size) in layout(scheme, *shape[1:]).items():
        arrays[name] = np.frombuffer(body, dtype, prod(size), at).reshape(size)
        at += arrays[name].nbytes
    if scheme not in ("int8", "int4"):
        n, coding = coded_tokens(scheme, head.T), CODINGS[head.coding]
        if coding in CODINGS[:4]:
            symbols, at = from_streams(head, body, at, n, profile)
        else:
            symbols, at = entropy_coder.from_plain(body[at:], coding, 2 * head.L, C * n), len(body)
        symbols = symbols.reshape(2, head.L, C, n)
    if at != len(body):
        raise ValueError(f"{len(body)} bytes instead of {at}")
    x = dequantise(scheme, arrays, symbols, shape)
    if not np.isfinite(x).all():
        raise ValueError("values that are no numbers")
    return x.clip(-np.finfo(np.float16).max, np.finfo(np.float16).max).astype(np.float16)


def from_streams(head: Head, body: bytes, at: int, n: int, profile: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Symbols [2 L, C, n] int16 around 0, from byte ``at`` on, and where they end; raises as `restore` does."""
    L, C, A, coding = head.L, head.H * head.d, head.A, CODINGS[head.coding]
    lengths = np.frombuffer(body, "<u4", 2 * L, at).tolist()
    at += 8 * L
    if coding == "profile":
        if profile is None or checksum(profile) != head.profile or not fits(profile, L, C) or profile.shape[3] != A:
            raise ValueError("another profile made it")
        counts = profile
    else:
        shape = (2, 1 if coding == "global" else L, C if coding == "channel" else 1, A)
        counts = entropy_coder.unpack(body[at : at + head.counts], shape)
    at += head.counts
    symbols = np.empty((2 * L, C, n), np.int16)
    for of_layer, tables, length in zip(symbols, tables_of(counts, L), lengths, strict=True):
        coded = entropy_coder.decode(body[at : at + length], tables, C // len(tables) * n)
        of_layer[:] = coded.reshape(C, n).astype(np.int16) - A // 2
        at += length
    return symbols, at


def counted(symbols: np.ndarray, coding: str, A: int) -> np.ndarray:
    """How often each of A symbols is there [2, L or 1, C or 1, A], of symbols [2, L, C, n]."""
    _, L, C, n = symbols.shape
    rows = np.arange(C)[:, None] * A
    counts = [np.bincount((rows + of_layer).ravel(), minlength=C * A) for of_layer in symbols.reshape(2 * L, C, n)]
    return np.reshape(counts, (2, L, C, A)).sum({"channel": (), "layer": 2, "global": (1, 2)}[coding], keepdims=True)


def tables_of(counts: np.ndarray, L: int) -> np.ndarray:
    """Tables [2 L, C or 1, A + 1] of counts."""
    tables = entropy_coder.cumulative(counts)
    return np.broadcast_to(tables, (2, L, *tables.shape[2:])).reshape(2 * L, *tables.shape[2:])


def fits(counts: np.ndarray, L: int, C: int) -> bool:
    """Whether counts are those of L layers and C channels."""
    return counts.shape[1:3] in {(L, C), (L, 1), (1, 1)}


def checksum(counts: np.ndarray) -> int:
    """What tells one profile from another."""
    return zlib.crc32(little(counts), zlib.crc32(repr(counts.shape).encode()))


def little(x: np.ndarray) -> bytes:
    """An array's bytes, the lowest first."""
    return x.astype(x.dtype.newbyteorder("<")).tobytes()
