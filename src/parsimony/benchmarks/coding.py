"""What benchmarks of codecs share: encode here, decode elsewhere, count bytes and seconds, compare."""

from __future__ import annotations

import struct
from time import perf_counter

import numpy as np

from parsimony.elsewhere import DecoderFailure
from parsimony.errors import UserError
from parsimony.interfaces import BatchCodec, Workbench


def coded(
    bench: Workbench, point: str, dtype: str, xs: list[np.ndarray]
) -> tuple[list[np.ndarray], dict[str, float], str]:
    """Items through a codec and back.

    Returns
    -------
    list of ndarray
        What another process decoded; empty if it did not.
    dict
        ``bits`` of all streams, ``payload_bits`` of what is coded in them (see `payload`), ``values`` and
        ``megabytes`` of all items, ``encode_seconds``, ``decode_seconds`` and ``codec_bytes``, which both sides have
        beforehand.
    str
        Why nothing was decoded, or nothing.
    """
    system = bench.system(point, dtype)
    began = perf_counter()
    if isinstance(system, BatchCodec) and len(xs) > 1:
        streams = system.encode_batch(xs)
    else:
        streams = [system.encode(x) for x in xs]
    numbers = {"encode_seconds": perf_counter() - began, "bits": 8.0 * sum(map(len, streams))}
    numbers["payload_bits"] = 8.0 * sum(map(payload, streams))
    values = sum(x.size for x in xs)
    numbers |= {"values": values, "megabytes": values / 1e6, "codec_bytes": system.model_bytes}
    try:
        decoded, numbers["decode_seconds"] = bench.decode(point, streams)
    except (UserError, DecoderFailure) as error:
        return [], numbers, str(error)
    return decoded, numbers, ""


def payload(stream: bytes) -> int:
    """Bytes of the coded picture itself in a JPEG, WebP, AVIF or JPEG 2000 file; of any other stream all.

    They leave out what else a file tells (signature, tables, sizes): small pictures would cost classic codecs so much
    if both sides knew that beforehand, as they know the networks of learnt ones.
    """
    if stream[:2] == b"\xff\xd8":  # JPEG: behind the header of the last scan, up to the end marker
        at = stream.rindex(b"\xff\xda") + 2
        return len(stream) - 2 - at - struct.unpack_from(">H", stream, at)[0]
    if stream[:4] == b"RIFF":
        return struct.unpack_from("<I", stream, stream.index(b"VP8") + 4)[0]
    if stream[4:8] == b"ftyp":  # AVIF
        return struct.unpack_from(">I", stream, stream.index(b"mdat") - 4)[0] - 8
    if stream[:4] == b"\xff\x4f\xff\x51":  # a JPEG 2000 codestream: from the start of data to the end marker
        return len(stream) - 2 - stream.index(b"\xff\x93") - 2
    return len(stream)


def unequal(xs: list[np.ndarray], decoded: list[np.ndarray]) -> str:
    """What is wrong where every value must come back, or nothing."""
    for n, (x, y) in enumerate(zip(xs, decoded, strict=True)):
        if x.shape != y.shape:
            return f"image {n} has shape {list(y.shape)} instead of {list(x.shape)}"
        if wrong := int((x != y).sum()):
            return f"image {n} differs in {wrong} of {x.size} values"
    return ""
