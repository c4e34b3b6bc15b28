"""CacheGen (Liu et al., SIGCOMM 2024, arXiv 2310.07240): a codec for the cache of a context that is sent.

    data = CacheGen(level=2).encode(keys, values)
    keys, values = decode(data)

The cache is cut into chunks of tokens.  Each becomes a container that is decoded by itself, in any order: a `Head`, the
arrays of its scheme (`layout`), and where symbols are coded, the length of each layer's stream, the counts behind the
tables, and the streams.

Two points differ from the official code and change no value: it stores tables as 16-bit numbers, where deflated counts
tell the same in fewer bytes; and it has a stream a channel, so that a GPU decodes them in parallel, where here the
channels of a layer follow one another in one stream, each still with its own table.

Decoding imports no torch, so that ``python -m parsimony.methods.kv_cache.cachegen decode`` starts fast.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from parsimony.errors import UserError
from parsimony.methods.kv_cache import entropy_coder

if TYPE_CHECKING:
    from parsimony.interfaces import Inputs
    from parsimony.methods.kv_cache.held import Held, Holder, Prefilled
    from parsimony.models.language import Language

SCHEMES = ("released", "paper", "int8", "int4")
TABLES = ("channel", "layer", "global", "profile")
MOST = 2**30
"""Elements of a chunk, so that a forged head cannot ask for more memory than there is."""

BINS = {
    1: (((10 / 32, 16), (20 / 32, 16), (1, 12)), ((2 / 32, 16), (1, 12))),
    2: (((10 / 32, 32), (1, 16)), ((2 / 32, 32), (1, 16))),
    3: (((1, 32),), ((1, 32),)),
    "70b": (((20 / 80, 32), (40 / 80, 32), (1, 16)), ((20 / 80, 32), (1, 16))),
}
"""Levels of the official code: bins of keys and of values in the layers below a share of the depth.  1, 2 and 3 are
published for 32 layers, "70b" for 80."""

WIDTHS, GROUP = (0.5, 1.0, 1.5), 10
"""The paper's bin widths in the first, middle and last third of the layers, and tokens that share an anchor."""

FACTORS = {1: 2.0, 2: 1.0, 3: 0.5}
"""What a level multiplies the paper's widths by; the paper's own are level 2."""


class Head(NamedTuple):
    """What a container begins with."""

    magic: bytes
    version: int
    scheme: int
    tables: int
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


HEAD, MARK = struct.Struct("<4sBBB 3I 4H 4I"), (b"KVCG", 1)


class CacheGen:
    """Sends the cache as bytes to another process, and holds in half precision what that decodes.

    The first layer's `Held` tells what that took: ``transport_bytes``, ``encode_seconds``, and ``decode_seconds``,
    the other process's own time from bytes to arrays.

    Parameters
    ----------
    level : {1, 2, 3, "70b", "int8", "int4"}
        A level of the codec, or plain quantisation without entropy coding: 8 bits by each token's maximum, or 4 bits
        between minimum and maximum of each token and head.
    variant : {"released", "paper"}
        "released" is the official code: symbol round(x M / m_t) with m_t the maximum of a token in a layer and
        M = bins / 2 - 1.  "paper": the first of each 10 tokens is an anchor in 8 bits, of the others their difference
        from it is coded.  Interpretations there: bin widths are relative to the deviation (root mean square) of a
        layer's differences, which are from the anchor as decoded; symbols stay within 127 bins from 0; levels 1 and 3
        have bins twice and half as wide.
    tables : {"channel", "layer", "global"}
        What has a table of its own: a channel in a layer, a layer, or all layers; keys and values always.
    chunk : int
        Tokens in a container; 1500 as in the official code's streaming.
    profile : path, optional
        An npy file of the counts of other contexts, as `profiled` returns them, that sender and receiver have.  Tables
        are those and none are sent; ``tables`` is then what the profile has.

    Raises
    ------
    UserError
        For parameters that are none of these, and a profile that cannot be read.
    """

    def __init__(self, level: int | str = 2, variant: str = "released", tables: str = "channel", chunk: int = 1500,
                 profile: str | Path | None = None):  # fmt: skip
        levels = {"released": (*BINS, "int8", "int4"), "paper": (*FACTORS, "int8", "int4")}
        if level not in levels.get(variant, ()) or tables not in TABLES[:3] or chunk < 1:
            raise UserError(f"cachegen: level {level!r} of variant {variant!r} with tables {tables!r} and chunks of "
                            f"{chunk} is not one there is; mend its params")  # fmt: skip
        self.level, self.tables, self.chunk, self.profile = level, tables, chunk, profile
        self.scheme = level if level in SCHEMES else variant
        self.counts = None if profile is None else load_profile(profile)

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        from parsimony.methods.kv_cache.held import Holder

        return Holder(model, self.hold)

    def hold(self, prefilled: Prefilled) -> list[Held]:
        """What arrives, one `Held` a layer."""
        import torch

        from parsimony.methods.kv_cache.held import Held

        keys, values = (x.float().cpu().numpy() for x in (prefilled.keys, prefilled.values))
        began = perf_counter()
        data = self.encode(keys, values)
        encode_seconds = perf_counter() - began
        decoded, decode_seconds = decode_elsewhere(data, self.profile)
        layers = [Held(*layer) for layer in zip(*torch.from_numpy(decoded), strict=True)]
        layers[0].transport_bytes = len(data)
        layers[0].encode_seconds, layers[0].decode_seconds = encode_seconds, decode_seconds
        return layers

    def encode(self, keys: np.ndarray, values: np.ndarray) -> bytes:
        """A cache, keys and values [L, H, T, d], as bytes; raises what `chunks` does."""
        return b"".join(self.chunks(keys, values))

    def chunks(self, keys: np.ndarray, values: np.ndarray) -> list[bytes]:
        """The container of each chunk of a cache, keys and values [L, H, T, d].

        Raises
        ------
        UserError
            For an empty cache, chunks of more than `MOST` elements, what half precision has no number for, and a
            profile that is not of such caches.
        """
        x = np.stack((keys, values)).astype(np.float32)  # [2, L, H, T, d]
        T = x.shape[3]
        if not 0 < x.size // max(T, 1) * min(T, self.chunk) <= MOST:
            raise UserError(f"cachegen: chunks of {self.chunk} tokens are empty or too large; mend its params")
        if not np.abs(x).max() <= np.finfo(np.float16).max:
            raise UserError("cachegen: half precision has no number for some key or value; mend the model's dtype")
        return [self.container(x[:, :, :, t : t + self.chunk], t, T) for t in range(0, T, self.chunk)]

    def profiled(self, contexts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Counts [2, L or 1, C or 1, A] uint32 of keys and values of several contexts, to be tables of others."""
        A = 255 if self.scheme == "paper" else 2 * int(levels_of(self.level, len(contexts[0][0])).max()) + 1
        parts = [self.quantise(np.stack(context).astype(np.float32))[1] + A // 2 for context in contexts]
        return sum(counted(symbols, self.tables, A) for symbols in parts).astype(np.uint32)

    def quantise(self, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Arrays of a chunk [2, L, H, T, d], and its symbols [2, L, C, n] int16 around 0 if they are to be coded."""
        _, L, H, T, d = x.shape
        if self.scheme == "int4":
            import torch

            from parsimony.methods.kv_cache.quantise import Codes

            codes = Codes.of(torch.from_numpy(x), 4, 4, d)
            return {name: getattr(codes, name).numpy() for name in ("packed", "scale", "least")}, None
        x = x.swapaxes(2, 3).reshape(2, L, T, H * d)
        if self.scheme == "int8":
            codes, m = by_maximum(x, 127)
            return {"m": m, "codes": codes}, None
        if self.scheme == "released":
            M = levels_of(self.level, L)
            symbols, m = by_maximum(x, M[:, :, None, None])
            return {"M": M, "m": m}, symbols.swapaxes(2, 3).astype(np.int16)
        anchors, m = by_maximum(x[:, :, ::GROUP], 127)
        delta = (x - restored(anchors, m, 127).repeat(GROUP, 2)[:, :, :T])[:, :, np.arange(T) % GROUP > 0]
        deviation = np.sqrt((delta**2).sum((2, 3)) / max(delta[0, 0].size, 1))  # [2, L]
        thirds = np.array(WIDTHS, np.float32)[3 * np.arange(L) // L]
        width = (FACTORS[self.level] * thirds * deviation).astype(np.float32)
        symbols = np.rint(delta / np.where(width > 0, width, 1)[:, :, None, None]).clip(-127, 127)
        return {"width": width, "m": m, "anchors": anchors}, symbols.swapaxes(2, 3).astype(np.int16)

    def container(self, x: np.ndarray, first: int, whole: int) -> bytes:
        """A chunk [2, L, H, T, d] whose first token is the token ``first`` of a context of ``whole`` tokens."""
        _, L, H, T, d = x.shape
        arrays, symbols = self.quantise(x)
        parts, (kind, A, known, packed) = [little(array) for array in arrays.values()], (0, 0, 0, b"")
        if symbols is not None:
            half = int(np.abs(symbols).max(initial=0))
            if self.counts is None:
                kind, counts = TABLES.index(self.tables), counted(symbols + half, self.tables, 2 * half + 1)
                packed = entropy_coder.pack(counts)
            else:
                kind, counts, known = TABLES.index("profile"), self.counts, checksum(self.counts)
                if not fits(counts, L, H * d) or half > counts.shape[-1] // 2:
                    raise UserError(f"cachegen: the profile's counts {counts.shape} are of another network, level or "
                                    "variant; profile this one")  # fmt: skip
            A = counts.shape[-1]
            streams = [
                entropy_coder.encode(of_layer + A // 2, tables)
                for of_layer, tables in zip(symbols.reshape(2 * L, H * d, -1), tables_of(counts, L), strict=True)
            ]
            parts += [np.array([len(stream) for stream in streams], "<u4").tobytes(), packed, *streams]
        body = b"".join(parts)
        scheme = SCHEMES.index(self.scheme)
        head = Head(*MARK, scheme, kind, first, whole, T, L, H, d, A, known, len(packed), len(body))
        return HEAD.pack(*head._replace(check=zlib.crc32(body, zlib.crc32(HEAD.pack(*head))))) + body


def levels_of(level: int | str, L: int) -> np.ndarray:
    """M [2, L] uint8 of keys and values, the shares of the depth rounded to whole layers, at least one."""
    M = np.empty((2, L), np.uint8)
    for row, shares in zip(M, BINS[level], strict=True):
        for share, bins in reversed(shares):
            row[: max(int(share * L + 0.5), 1)] = bins // 2 - 1
    return M


def by_maximum(x: np.ndarray, M: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols int8 from -M to M of tokens [..., C], and each token's maximum [..., 1] float16."""
    m = np.abs(x).max(-1, keepdims=True).astype(np.float16)
    scale = M / np.where(m > 0, m, np.inf).astype(np.float32)
    return np.rint(x * scale).clip(-np.int32(M), M).astype(np.int8), m


def restored(symbols: np.ndarray, m: np.ndarray, M: np.ndarray | int) -> np.ndarray:
    """Tokens [..., C] float32 of `by_maximum`."""
    return symbols * (m.astype(np.float32) / M)


def counted(symbols: np.ndarray, tables: str, A: int) -> np.ndarray:
    """How often each of A symbols is there [2, L or 1, C or 1, A], of symbols [2, L, C, n]."""
    _, L, C, n = symbols.shape
    rows = np.arange(C)[:, None] * A
    counts = [np.bincount((rows + of_layer).ravel(), minlength=C * A) for of_layer in symbols.reshape(2 * L, C, n)]
    return np.reshape(counts, (2, L, C, A)).sum({"channel": (), "layer": 2, "global": (1, 2)}[tables], keepdims=True)


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


def load_profile(path: str | Path) -> np.ndarray:
    """Counts as `CacheGen.profiled` returned them and `numpy.save` wrote them; `UserError` if the file has none."""
    try:
        counts = np.load(path, allow_pickle=False)
        if counts.dtype != np.uint32 or counts.ndim != 4 or len(counts) != 2 or counts.shape[3] not in range(1, 256, 2):
            raise ValueError(f"it has {counts.dtype} {counts.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cachegen: profile {path} has no counts ({error}); mend its params") from None
    return counts


def layout(scheme: str, L: int, H: int, T: int, d: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of a scheme's arrays, as they lie in a container."""
    C, G = H * d, -(-T // GROUP)
    return {
        "released": {"M": ("u1", (2, L)), "m": ("<f2", (2, L, T, 1))},
        "paper": {"width": ("<f4", (2, L)), "m": ("<f2", (2, L, G, 1)), "anchors": ("i1", (2, L, G, C))},
        "int8": {"m": ("<f2", (2, L, T, 1)), "codes": ("i1", (2, L, T, C))},
        "int4": {"packed": ("u1", (L, H, T, d)), "scale": ("<f2", (2, L, H, T, 1)), "least": ("<f2", (2, L, H, T, 1))},
    }[scheme]


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
        except (ValueError, IndexError, zlib.error) as error:
            raise UserError(f"cachegen: the container at byte {begin} is broken: {error}; send it again") from None
        wholes.add((head.whole, head.L, head.H, head.d))
    firsts, parts = sorted(chunks), [chunks[first] for first in sorted(chunks)]
    ends = np.cumsum([part.shape[3] for part in parts]).tolist()
    if len(wholes) != 1 or [*firsts, wholes.pop()[0]] != [0, *ends]:
        raise UserError(f"cachegen: chunks at tokens {firsts} are not all of one cache; send all of its chunks")
    return tuple(np.concatenate(parts, 3))


def restore(head: Head, body: bytes, profile: np.ndarray | None) -> np.ndarray:
    """A chunk [2, L, H, T, d] float16; raises ValueError, IndexError or zlib.error when its parts do not agree."""
    scheme, T, L, H, d = SCHEMES[head.scheme], head.T, head.L, head.H, head.d
    if not 0 < 2 * L * H * T * d <= MOST:
        raise ValueError(f"a shape {L, H, T, d}")
    arrays, at = {}, 0
    for name, (dtype, shape) in layout(scheme, L, H, T, d).items():
        arrays[name] = np.frombuffer(body, dtype, prod(shape), at).reshape(shape)
        at += arrays[name].nbytes
    if scheme in ("released", "paper"):
        symbols, at = restore_symbols(head, body, at, T if scheme == "released" else T - -(-T // GROUP), profile)
    if at != len(body):
        raise ValueError(f"{len(body)} bytes instead of {at}")
    if scheme == "int4":
        codes = np.stack((arrays["packed"] & 15, arrays["packed"] >> 4), -1).reshape(2, L, H, T, d)
        x = arrays["least"].astype(np.float32) + codes * arrays["scale"].astype(np.float32)
    else:
        if scheme == "int8":
            x = restored(arrays["codes"], arrays["m"], 127)
        elif scheme == "released":
            x = restored(symbols, arrays["m"], arrays["M"][:, :, None, None])
        else:
            x = restored(arrays["anchors"], arrays["m"], 127).repeat(GROUP, 2)[:, :, :T]
            x[:, :, np.arange(T) % GROUP > 0] += symbols * arrays["width"][:, :, None, None]
        x = x.reshape(2, L, T, H, d).swapaxes(2, 3)
    if not np.isfinite(x).all():
        raise ValueError("values that are no numbers")
    return x.clip(-np.finfo(np.float16).max, np.finfo(np.float16).max).astype(np.float16)


def restore_symbols(head: Head, body: bytes, at: int, n: int, profile: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Symbols [2, L, n, C] int16 around 0, from byte ``at`` on, and where they end; raises as `restore` does."""
    L, C, A, kind = head.L, head.H * head.d, head.A, TABLES[head.tables]
    lengths = np.frombuffer(body, "<u4", 2 * L, at).tolist()
    at += 8 * L
    if kind == "profile":
        if profile is None or checksum(profile) != head.profile or not fits(profile, L, C) or profile.shape[3] != A:
            raise ValueError("another profile made it")
        counts = profile
    else:
        shape = (2, 1 if kind == "global" else L, C if kind == "channel" else 1, A)
        counts = entropy_coder.unpack(body[at : at + head.counts], shape)
    at += head.counts
    symbols = np.empty((2 * L, C, n), np.int16)
    for of_layer, tables, length in zip(symbols, tables_of(counts, L), lengths, strict=True):
        coded = entropy_coder.decode(body[at : at + length], tables, C // len(tables) * n)
        of_layer[:] = coded.reshape(C, n).astype(np.int16) - A // 2
        at += length
    return symbols.reshape(2, L, C, n).swapaxes(2, 3), at


def decode_elsewhere(data: bytes, profile: str | Path | None = None) -> tuple[np.ndarray, float]:
    """What a process that gets the bytes alone decodes: [2, L, H, T, d] float16, and the seconds that decoding took.

    Raises
    ------
    UserError
        If the process fails.
    """
    search = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "parsimony.methods.kv_cache.cachegen", "decode", *([profile] if profile else [])]
    done = subprocess.run(command, input=data, capture_output=True, env=os.environ | {"PYTHONPATH": search})
    out = io.BytesIO(done.stdout)
    try:
        if done.returncode:
            raise ValueError
        return np.load(out, allow_pickle=False), float(np.load(out, allow_pickle=False))
    except (ValueError, EOFError):
        said = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise UserError(f"cachegen: the decoding process failed with status {done.returncode}: {said}") from None


def main(arguments: list[str]) -> None:
    """``decode [PROFILE]``: containers from standard input, two npy arrays to standard output (cache, seconds)."""
    if arguments[:1] != ["decode"] or len(arguments) > 2:
        sys.exit("usage: python -m parsimony.methods.kv_cache.cachegen decode [PROFILE] < containers > arrays")
    data, out = sys.stdin.buffer.read(), io.BytesIO()
    try:
        profile = load_profile(arguments[1]) if len(arguments) == 2 else None
        began = perf_counter()
        decoded = np.stack(decode(data, profile))
        seconds = perf_counter() - began
    except UserError as error:
        sys.exit(str(error))
    np.save(out, decoded)
    np.save(out, seconds)
    sys.stdout.buffer.write(out.getbuffer())


if __name__ == "__main__":
    main(sys.argv[1:])
