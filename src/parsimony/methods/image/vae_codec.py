"""A variational image codec as it stands: one stream of its latents, prior by prior.

The stream of an image is a header (shape, number of streams and their lengths), and the streams, the first of which
begins with the hyper-latent if there is one.  The sum at the end makes a damaged file fail instead of showing noise.
"""

from __future__ import annotations

import zlib

import numpy as np
from constriction import stream as constriction

from parsimony.errors import UserError
from parsimony.models.latent_coding import ImageCodec, pixels

MOST_PIXELS = 2**20
"""Larger images are to be cut in tiles; a header that asks for more is refused before anything is allocated."""


class VaeCodec:
    """Factorised-prior or mean-scale hyperprior codec (see `models.image_codecs`).

    Parameters
    ----------
    architecture : {"factorised", "hyperprior"}
    rate : int
        Which of the trained trade-offs, 1 (fewest bits) to 4.
    seed : int
        Seed of the training.
    """

    def __init__(self, architecture: str, rate: int, seed: int = 0):
        self.architecture, self.name = architecture, f"rate_{rate}_seed_{seed}"

    def load(self, inputs) -> ImageCodec:
        return ImageCodec.load(inputs.assets[self.architecture], self.name)

    def build(self, model, inputs):
        codec = self.load(inputs)
        return LatentCodec(codec, [slice(0, codec.network.M)])


class LatentCodec:
    """Codes latents in groups of channels, a stream each.

    Parameters
    ----------
    codec : ImageCodec
    groups : list of slice
        Channels of each stream, in order; channels in none of them are filled with their mean.
    sent : int, optional
        Only so many groups are written.
    map_groups : callable, optional
        Maps a function over groups, perhaps side by side.
    """

    def __init__(self, codec: ImageCodec, groups: list[slice], sent: int | None = None, map_groups=map):
        self.codec, self.groups, self.map = codec, groups, map_groups
        self.sent = len(groups) if sent is None else sent
        self.model_bytes = codec.stored_bytes

    def encode(self, x: np.ndarray) -> bytes:
        if x.dtype != np.uint8 or x.ndim not in (2, 3) or x.shape[2:] not in ((), (3,)) or not x.size:
            raise UserError(f"an image must be uint8 [H, W] or [H, W, 3] and not empty, not {x.dtype} {list(x.shape)}")
        self._filled(x.shape)
        latent = self.codec.analyse((np.stack((x,) * 3, -1) if x.ndim == 2 else x)[None])
        streams = []
        for n, group in enumerate(self.groups[: self.sent]):
            coder = constriction.queue.RangeEncoder()
            if n == 0 and latent.z is not None:
                self.codec.prior.write(coder, latent.z.ravel(), _hyper_rows(latent.z.shape))
            self.codec.tables.write(coder, latent.symbols[0, group].ravel(), latent.rows[0, group].ravel())
            streams.append(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))
        return pack(x.shape, streams)

    def decode(self, data: bytes) -> np.ndarray:
        """The image of a stream; groups that are not in it are filled with their means.

        Raises
        ------
        UserError
            For bytes that are damaged, not whole, or of another codec.
        """
        shape, streams = unpack(data)
        if len(streams) > len(self.groups):
            raise UserError(
                f"an image stream has {len(streams)} groups, its codec {len(self.groups)}: not its own codec"
            )
        coders = [constriction.queue.RangeDecoder(_words(stream)) for stream in streams]
        H, W = self._filled(shape)
        try:
            z = None
            if K := self.codec.network.K:
                z_shape = (1, K, H // 64, W // 64)
                z = self.codec.prior.read(coders[0], _hyper_rows(z_shape)).reshape(z_shape)
            mean, rows = self.codec.context(z, (1, H, W))
            y = mean[0].copy()

            def fill(group, coder):
                y[group] += self.codec.tables.read(coder, rows[0, group].ravel()).reshape(y[group].shape)

            list(self.map(fill, self.groups, coders))
            whole = all(coder.maybe_exhausted() for coder in coders)
        except AssertionError:  # how constriction refuses a stream
            whole = False
        if not whole:
            raise UserError("an image stream does not fit its codec; decode it with the codec that made it")
        image = pixels(self.codec.synthesise(y[None]))[0, : shape[0], : shape[1]]
        return image if len(shape) == 3 else np.round(image.mean(-1)).astype(np.uint8)

    def _filled(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Sides of an image filled up for the network; UserError if they are too large."""
        stride = self.codec.network.stride
        H, W = (-(-side // stride) * stride for side in shape[:2])
        if H * W > MOST_PIXELS or max(shape) >= 2**16:
            raise UserError(f"an image of {shape[0]} x {shape[1]} pixels is too large for this codec; cut it in tiles")
        return H, W


def _hyper_rows(shape: tuple[int, ...]) -> np.ndarray:
    """Table of each hyper-latent of a shape [1, K, h, w]: that of its channel."""
    return np.repeat(np.arange(shape[1]), shape[2] * shape[3])


def pack(shape: tuple[int, ...], streams: list[bytes]) -> bytes:
    """Image shape and streams in one: sides, number of streams and colour, lengths of all but the last, a sum."""
    kind = 2 * len(streams) + (len(shape) == 3)
    head = shape[0].to_bytes(2, "little") + shape[1].to_bytes(2, "little") + bytes([kind])
    body = head + b"".join(_varint(len(stream)) for stream in streams[:-1]) + b"".join(streams)
    return body + zlib.crc32(body).to_bytes(4, "little")[:3]


def unpack(data: bytes) -> tuple[tuple[int, ...], list[bytes]]:
    """Shape and streams of `pack`.

    Raises
    ------
    UserError
        For bytes that are not whole.
    """
    body = data[:-3]
    if len(body) < 5 or zlib.crc32(body).to_bytes(4, "little")[:3] != data[-3:]:
        raise UserError("an image stream is damaged or not whole; encode the image again")
    H, W, kind = int.from_bytes(body[:2], "little"), int.from_bytes(body[2:4], "little"), body[4]
    count, at, lengths = kind // 2, 5, []
    for _ in range(count - 1):
        length = shift = 0
        while at < len(body):
            length |= (body[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if body[at - 1] < 128:
                break
        lengths.append(length)
    if not count or not H * W or at + sum(lengths) > len(body):
        raise UserError("an image stream has an impossible header; encode the image again")
    edges = np.cumsum([at, *lengths]).tolist() + [len(body)]
    return (H, W, 3)[: 2 + kind % 2], [body[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def _varint(n: int) -> bytes:
    """An integer in groups of seven bits, lowest first."""
    out = b""
    while n >= 128:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def _words(stream: bytes) -> np.ndarray:
    """Words of a coder whose last zero bytes were not written."""
    return np.frombuffer(stream + b"\0" * (-len(stream) % 4), "<u4").astype(np.uint32)
