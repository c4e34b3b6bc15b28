"""RECOMBINER (He et al., arXiv 2309.17182, sections 3 and 4; official code): a sample of a Bayesian network is sent.

Encoding fits Gaussian posteriors over the latents of every patch's network, then codes block after block of latents
with relative entropy coding and fits the rest again to what was drawn.  How many bits a block costs is fixed, and so
is the length of a stream: it follows from the image's size alone.
"""

from __future__ import annotations

import numpy as np
import torch

from parsimony.errors import UserError
from parsimony.methods.image import relative_entropy_coding as rec
from parsimony.methods.image.recombiner_encoder import Encoder, Facts, Settings, permutation, stream
from parsimony.models import exact
from parsimony.models.bayesian_inr import Prior, colours, image_of
from parsimony.models.container import WRONG, kind, pack, unpack

SLAB = 64
"""Patches that are evaluated at once when decoding."""


class Recombiner:
    """The codec at one rate.

    Parameters
    ----------
    rate : str
        Name of a prior in the asset ``priors``: of patches for themselves, or of patches, groups and images.
    updates : int
        Before the first block is coded.
    fine_tune : int
        Updates behind each block of patches, half as many behind each of groups and images; 0: none, all blocks are
        coded as they were fitted at first.
    samples : int
        Of the weights, an update.
    step : float
        Adam's step.
    seed : int
        Of the noise in updates; a decoder does without.
    """

    def __init__(self, rate: str, updates: int, fine_tune: int, samples: int, step: float, seed: int = 0):
        self.rate, self.settings = rate, Settings(updates, fine_tune, samples, step, seed)

    def build(self, model, inputs) -> RecombinerCodec:
        return RecombinerCodec(Prior.load(inputs.assets["priors"] / f"{self.rate}.safetensors"), self.settings)


class RecombinerCodec:
    """Encodes images [H, W] or [H, W, 3] of any size: they are filled up to whole patches."""

    def __init__(self, prior: Prior, settings: Settings):
        self.shared, self.settings, self.model_bytes = prior, settings, prior.nbytes
        self.layout = prior.layout
        self.weights = {name: tensor.double().numpy() for name, tensor in prior.network.state_dict().items()}
        self.levels = [
            (level.mean.double().numpy(), level.std.double().numpy(), level.block.numpy()) for level in prior.levels
        ]

    def encode(self, x: np.ndarray) -> bytes:
        return self.encode_and_tell(x)[0]

    def encode_and_tell(self, x: np.ndarray) -> tuple[bytes, Facts]:
        """The stream of an image, and `Facts`."""
        grey = kind(x, "RECOMBINER", "grey", "colour") == "grey"
        H, W, P = *x.shape[:2], self.layout.patch
        rows, columns = -(-H // P), -(-W // P)
        coloured = np.broadcast_to(x[..., None], (H, W, 3)) if grey else x
        whole = np.pad(coloured, ((0, rows * P - H), (0, columns * P - W), (0, 0)), "edge")
        encoder = Encoder(self.shared, whole, self.settings)
        with torch.enable_grad():
            facts = encoder.run()
        indices = np.concatenate([level.ravel() for level in encoder.indices])
        bits = (indices[:, None] >> np.arange(self.shared.bits - 1, -1, -1)) & 1
        return pack(x, np.packbits(bits.astype(np.uint8)).tobytes()), facts

    def decode(self, data: bytes) -> np.ndarray:
        shape, rest = unpack(data)
        P, bits = self.layout.patch, self.shared.bits
        rows, columns = (-(-length // P) for length in (*shape, 1)[:2])
        # Looked at before anything is allocated: the size asked for must be that of the stream.
        numbers = self.numbers(rows, columns)
        if len(shape) == 1 or len(rest) != -(-numbers * bits // 8):
            raise UserError(f"stream of {len(data)} bytes {WRONG}")
        read = np.unpackbits(np.frombuffer(rest, np.uint8), count=numbers * bits).reshape(numbers, bits)
        indices = read.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
        h, z = self.latents(indices, rows, columns)
        made = [colours(self.layout, self.weights, h[n : n + SLAB], z[n : n + SLAB]) for n in range(0, len(h), SLAB)]
        image = image_of(np.concatenate(made), columns)[: shape[0], : shape[1]]
        return exact.pixels((image[..., 0] + image[..., 1] + image[..., 2]) / 3 if len(shape) == 2 else image)

    def numbers(self, rows: int, columns: int) -> int:
        """Blocks in the stream of rows * columns patches."""
        g = self.layout.group
        members = [rows * columns, -(-rows // g) * -(-columns // g), 1][: len(self.levels)]
        return sum(m * level.blocks for m, level in zip(members, self.shared.levels, strict=True))

    def latents(self, indices: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """h [R, n] and z [R, Z] float64 that the numbers of candidates stand for."""
        n, first, every = self.layout.weights, 0, []
        owners = self.layout.owners(rows, columns, len(self.levels))
        for level, owner in enumerate(owners):
            shape = (owner.max() + 1, self.shared.levels[level].blocks)
            every.append(self.values(level, indices[first : first + shape[0] * shape[1]].reshape(shape)))
            first += shape[0] * shape[1]
        h = sum(values[owner, :n] for values, owner in zip(every, owners, strict=True))
        return h, every[0][:, n:]

    def values(self, level: int, indices: np.ndarray) -> np.ndarray:
        """Latents [members, D] of a level from the numbers [members, blocks] of its candidates."""
        mean, std, block = self.levels[level]
        values, order = np.empty((len(indices), len(mean))), permutation(len(indices), len(mean))
        for b in range(indices.shape[1]):
            of = np.flatnonzero(block == b)
            for row, index in enumerate(indices[:, b]):
                values[order[row, of], of] = rec.decode(int(index), mean[of], std[of], stream(level, row, b))
        return values
