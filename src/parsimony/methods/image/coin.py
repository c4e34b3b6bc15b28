"""COIN (Dupont et al., arXiv 2103.03123): an image is the weights of a small network that was fitted to it.

A perceptron with sine activations maps a pixel's place to its colour.  The paper sends the weights as 16-bit floats;
here they are quantised uniformly, layer by layer, and entropy coded, which serves networks of few weights better.
Nothing is shared, so that all that a decoder needs is in the stream; its arithmetic has a fixed order.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from parsimony.errors import UserError
from parsimony.methods.kv_cache.entropy_coder import cumulative, decode, encode
from parsimony.models import exact
from parsimony.models.container import WRONG, kind, pack, unpack

FREQUENCY = 30.0
"""w0 of the activation sin(w0 x)."""
PIXELS = 2**20
"""Largest image: a short stream could ask for any."""
STEPS = 8
"""Sizes of quantisation steps an octave."""


class Coin:
    """The codec at one size of network.

    Parameters
    ----------
    hidden, layers : int
        Width and number of the hidden layers.
    bits : int
        Weights are integers from -(2^(bits - 1) - 1) to as much above zero, times a step of their layer.
    updates : int
    step : float
        Adam's step.
    seed : int
        Of the weights that fitting begins with.
    """

    def __init__(self, hidden: int, layers: int, bits: int, updates: int, step: float, seed: int = 0):
        self.widths, self.bits = [2, *[hidden] * layers, 3], bits
        self.updates, self.step, self.seed = updates, step, seed

    def build(self, model, inputs) -> CoinCodec:
        return CoinCodec(self)


class CoinCodec:
    """Encodes images [H, W] or [H, W, 3]."""

    model_bytes = 0

    def __init__(self, settings: Coin):
        self.settings, self.sizes = settings, list(zip(settings.widths[:-1], settings.widths[1:], strict=True))
        self.most = 2 ** (settings.bits - 1) - 1

    def encode(self, x: np.ndarray) -> bytes:
        kind(x, "COIN", "grey", "colour")
        if x.shape[0] * x.shape[1] > PIXELS:
            raise UserError(f"COIN takes images of up to {PIXELS} pixels, not {list(x.shape)}; cut it")
        body = [self.quantised(layer) for layer in self.fitted(x.reshape(*x.shape[:2], -1))]
        symbols = np.concatenate([layer for _, layer in body])
        return pack(x, bytes(size for size, _ in body) + self.coded(symbols))

    def decode(self, data: bytes) -> np.ndarray:
        shape, rest = unpack(data)
        if len(shape) == 1 or shape[0] * shape[1] > PIXELS or len(rest) <= len(self.sizes):
            raise UserError(f"stream of {len(data)} bytes {WRONG}")
        steps = [size_of(byte) for byte in rest[: len(self.sizes)]]
        symbols = self.read(rest[len(self.sizes) :]).astype(np.float64)
        layers, first = [], 0
        for step, (inputs, outputs) in zip(steps, self.sizes, strict=True):
            part = symbols[first : first + outputs * (inputs + 1)] * step
            layers.append((part[outputs:].reshape(inputs, outputs), part[:outputs]))
            first += len(part)
        places = coordinates(*shape[:2])
        rows = [exact.sine_network(places[n : n + 4096], layers, FREQUENCY) for n in range(0, len(places), 4096)]
        image = np.concatenate([exact.pixels(0.5 + row) for row in rows]).reshape(*shape[:2], 3)
        return image[..., 0] if len(shape) == 2 else image

    def fitted(self, x: np.ndarray) -> list[np.ndarray]:
        """Biases and weights [outputs * (inputs + 1)] of each layer, fitted to an image [H, W, 1 or 3]."""
        places = torch.from_numpy(coordinates(*x.shape[:2])).float()
        colours = torch.from_numpy(np.broadcast_to(x, (*x.shape[:2], 3)).reshape(-1, 3).copy()).float() / 255
        generator, layers = torch.Generator().manual_seed(self.settings.seed), []
        for n, (inputs, outputs) in enumerate(self.sizes):  # initialised as in SIREN (Sitzmann et al.)
            bound = math.sqrt(6 / inputs) / FREQUENCY if n else 1 / inputs
            layers.append((torch.rand(inputs + 1, outputs, generator=generator) * 2 - 1) * bound)
        layers = [layer.requires_grad_() for layer in layers]
        optimiser, least, best = torch.optim.Adam(layers, self.settings.step, fused=True), math.inf, layers
        with torch.enable_grad():
            for _ in range(self.settings.updates):
                made = places
                for n, layer in enumerate(layers):
                    made = torch.addmm(layer[0], made, layer[1:])
                    made = torch.sin(FREQUENCY * made) if n < len(layers) - 1 else 0.5 + made
                loss = (made - colours).square().mean()
                if float(loss.detach()) < least:  # the best of all updates is sent, as in the paper
                    least, best = float(loss.detach()), [layer.detach().clone() for layer in layers]
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return [layer.detach().double().numpy().ravel() for layer in best]

    def quantised(self, layer: np.ndarray) -> tuple[int, np.ndarray]:
        """The byte of a layer's step, the least that no weight exceeds, and the weights' integers."""
        least = np.abs(layer).max() / (self.most + 0.5)
        byte = next((b for b in range(256) if size_of(b) >= least), 255)
        return byte, np.rint(layer / size_of(byte)).clip(-self.most, self.most).astype(np.int64)

    def coded(self, symbols: np.ndarray) -> bytes:
        """Integers by the shortest of several range codes, or in ``bits`` bits each; the first byte tells which."""
        plain = (symbols[:, None] + self.most >> np.arange(self.settings.bits)) & 1
        options = [bytes([0]) + np.packbits(plain.astype(np.uint8)).tobytes()]
        for decay in range(8, 256, 8):
            # A decoder puts back the zeros that the coder's last word ends with.
            options.append(bytes([decay]) + encode((symbols + self.most)[None], self.table(decay)).rstrip(b"\0"))
        return min(options, key=len)

    def read(self, data: bytes) -> np.ndarray:
        """The integers of `coded`."""
        count = sum(outputs * (inputs + 1) for inputs, outputs in self.sizes)
        decay, body, bits = data[0], data[1:], self.settings.bits
        if decay:
            if len(body) > 4 * count + 8:
                raise UserError(f"stream of {len(data)} bytes {WRONG}")
            return decode(body + bytes(-len(body) % 4), self.table(decay), count)[0].astype(np.int64) - self.most
        if len(body) != -(-count * bits // 8):
            raise UserError(f"stream of {len(data)} bytes {WRONG}")
        read = np.unpackbits(np.frombuffer(body, np.uint8), count=count * bits).reshape(count, bits)
        return (read.astype(np.int64) << np.arange(bits)).sum(1) - self.most

    def table(self, decay: int) -> np.ndarray:
        """A table [1, A + 1] of integers, whose probabilities fall by decay / 256 with each step away from zero."""
        falling = [(decay**n << 40) >> 8 * n for n in range(self.most + 1)]
        return cumulative(np.array([[*falling[:0:-1], *falling]], np.int64))


def size_of(byte: int) -> float:
    """Quantisation step of a byte, from 2^-29 up in eighths of its octave; exact."""
    return math.ldexp(STEPS + byte % STEPS, byte // STEPS - 32)


def coordinates(H: int, W: int) -> np.ndarray:
    """Centres [H * W, 2] float64 of pixels in (-1, 1), row by row."""
    y, x = ((2 * np.arange(length) + 1) / length - 1 for length in (H, W))
    return np.stack([axis.ravel() for axis in np.meshgrid(y, x, indexing="ij")], 1)
