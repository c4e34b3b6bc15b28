"""A variational image codec as it stands: one stream of its latents, prior by prior.

The stream of an image is a header with a checksum, the number of streams and their lengths, and the streams, the first
of which begins with the hyper-latent if there is one.  Without the checksum a damaged stream would show noise.
"""

from __future__ import annotations

import numpy as np
from constriction import stream as constriction

from parsimony.errors import UserError
from parsimony.models import container
from parsimony.models.latent_coding import ImageCodec, pixels

NAME = "a variational codec"
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
        container.kind(x, NAME, "grey", "colour")
        self._filled(x.shape)
        latent = self.codec.analyse((np.stack((x,) * 3, -1) if x.ndim == 2 else x)[None])
        streams = []
        for n, group in enumerate(self.groups[: self.sent]):
            coder = constriction.queue.RangeEncoder()
            if n == 0 and latent.z is not None:
                self.codec.prior.write(coder, latent.z.ravel(), _hyper_rows(latent.z.shape))
            self.codec.tables.write(coder, latent.symbols[0, group].ravel(), latent.rows[0, group].ravel())
            streams.append(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))
        return container.pack(x, join(streams), checksum=True)

    def decode(self, data: bytes) -> np.ndarray:
        """The image of a stream; groups that are not in it are filled with their means.

        Raises
        ------
        UserError
            For bytes that are damaged, not whole, or of another codec.
        """
        shape, payload = container.unpack(data, checksum=True)
        streams = split(payload)
        if len(shape) == 1 or not 0 < len(streams) <= len(self.groups):
            raise UserError(f"stream of {len(data)} bytes {container.WRONG}")
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
            raise UserError(f"stream of {len(data)} bytes {container.WRONG}")
        image = pixels(self.codec.synthesise(y[None]))[0, : shape[0], : shape[1]]
        return image if len(shape) == 3 else np.round(image.mean(-1)).astype(np.uint8)

    def _filled(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Sides of an image filled up for the network; UserError if they are too large."""
        stride = self.codec.network.stride
        H, W = (-(-side // stride) * stride for side in shape[:2])
        if H * W > MOST_PIXELS:
            raise UserError(f"an image of {shape[0]} by {shape[1]} pixels is too large for {NAME}; cut it in tiles")
        return H, W


def _hyper_rows(shape: tuple[int, ...]) -> np.ndarray:
    """Table of each hyper-latent of a shape [1, K, h, w]: that of its channel."""
    return np.repeat(np.arange(shape[1]), shape[2] * shape[3])


def join(streams: list[bytes]) -> bytes:
    """Streams in one: how many (1 byte), the lengths of all but the last (3 bytes each), and they themselves."""
    return (
        bytes([len(streams)]) + b"".join(len(each).to_bytes(3, "little") for each in streams[:-1]) + b"".join(streams)
    )


def split(payload: bytes) -> list[bytes]:
    """The streams of `join`; none if the payload is not one."""
    count = payload[0] if payload else 0
    at = max(3 * count - 2, 0)
    lengths = [int.from_bytes(payload[n : n + 3], "little") for n in range(1, at, 3)]
    edges = [*np.cumsum([at, *lengths]).tolist(), len(payload)]
    return [payload[a:b] for a, b in zip(edges, edges[1:], strict=False)] if count and edges[-2] <= edges[-1] else []


def _words(stream: bytes) -> np.ndarray:
    """Words of a coder whose last zero bytes were not written."""
    return np.frombuffer(stream + b"\0" * (-len(stream) % 4), "<u4").astype(np.uint32)
