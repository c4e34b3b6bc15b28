"""What a trained image codec codes: integer tables, exactly predicted means and scales, and streams of latents.

Encoder and decoder must use the same tables to the last bit, or everything behind the first difference is lost.  All
tables are integers stored with the weights, and the network that predicts which table a latent has calculates exactly
(docs/decisions/006_exact_entropy_parameters.md).
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from constriction import stream as constriction
from safetensors import safe_open
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from parsimony.errors import UserError
from parsimony.methods.kv_cache.entropy_coder import cumulative
from parsimony.models.image_codecs import SCALES, TAIL_MASS, CodecNetwork, FactorisedPrior

FARTHEST = 2**20
"""Symbols are clipped to this, far beyond what a trained network gives."""
WEIGHT_STEP, VALUE_STEP, VALUE_LIMIT = 2.0**-12, 2.0**-8, 2.0**10
"""Grids of the exact network: |weight| < 8 and |value| <= 2^10 make products below 2^33 steps, of which float64 adds
2^20 without rounding."""


class Tables:
    """Cumulative tables of 16 bits, a row a kind of symbol; the last entry of a row stands for all other values.

    Parameters
    ----------
    widths : list of ndarray
        Probabilities of each row in 2^-16, positive integers that sum to 2^16; the last is that of the escape.
    offsets : ndarray [K] int
        Value of each row's first entry.
    """

    def __init__(self, widths: list[np.ndarray], offsets: np.ndarray):
        self.widths = [np.asarray(row, np.int64) for row in widths]
        self.offsets = np.asarray(offsets, np.int64)
        self.lengths = np.array([len(row) - 1 for row in self.widths])
        if any(row.min() < 1 or row.sum() != 2**16 for row in self.widths):
            raise UserError("the tables of an image codec are damaged: a row does not sum to 2^16; fetch them again")

    @classmethod
    def of_masses(cls, masses: list[np.ndarray], offsets: np.ndarray) -> Tables:
        """Tables of float64 probabilities a row; what they lack to one is the escape's."""
        rows = [np.append(row, max(1 - row.sum(), 0)) for row in masses]
        return cls([np.diff(cumulative(np.floor(row * 2.0**40).astype(np.int64))) for row in rows], offsets)

    @classmethod
    def of_prior(cls, prior: FactorisedPrior) -> tuple[Tables, np.ndarray]:
        """Tables of a factorised prior around its medians, and the medians [C] on the grid of exact values."""
        with torch.no_grad():
            prior = deepcopy(prior).double()
            low, middle, high = prior.quantiles.T.numpy()
            medians = np.round(middle / VALUE_STEP) * VALUE_STEP
            first = -np.ceil(np.maximum(medians - low, 0)).astype(int)
            last = np.ceil(np.maximum(high - medians, 0)).astype(int)
            steps = np.arange(first.min(), last.max() + 1)
            masses = prior.likelihood(torch.from_numpy(medians[:, None] + steps)).numpy()
        inside = (first[:, None] <= steps) & (steps <= last[:, None])
        return cls.of_masses([row[mine] for row, mine in zip(masses, inside, strict=True)], first), medians

    @classmethod
    def of_gaussians(cls) -> Tables:
        """A table around zero for each of `SCALES`."""
        masses, offsets = [], []
        for scale in SCALES.numpy():
            reach = int(np.ceil(-scale * ndtri(TAIL_MASS / 2)))
            distance = np.abs(np.arange(-reach, reach + 1))
            masses.append(ndtr((0.5 - distance) / scale) - ndtr((-0.5 - distance) / scale))
            offsets.append(-reach)
        return cls.of_masses(masses, np.array(offsets))

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored of them."""
        widths = np.concatenate(self.widths).astype(np.uint16)
        return {"widths": widths, "lengths": self.lengths.astype(np.int32), "offsets": self.offsets.astype(np.int32)}

    @classmethod
    def of_arrays(cls, widths: np.ndarray, lengths: np.ndarray, offsets: np.ndarray) -> Tables:
        return cls(np.split(widths, np.cumsum(lengths + 1)[:-1]), offsets)

    def __getitem__(self, rows: np.ndarray) -> Tables:
        return Tables([self.widths[row] for row in rows], self.offsets[rows])

    @cached_property
    def _models(self) -> list:
        weights = (row.astype(np.float64) for row in self.widths)
        return [constriction.model.Categorical(row, perfect=False, lazy=False) for row in weights]

    @cached_property
    def _costs(self) -> np.ndarray:
        """Bits [K, longest row]."""
        costs = np.full((len(self.widths), self.lengths.max() + 1), np.nan)
        for row, widths in zip(costs, self.widths, strict=True):
            row[: len(widths)] = 16 - np.log2(widths)
        return costs

    def bits(self, symbols: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Bits of each symbol with its row's table, what `write` makes of an escape included."""
        entries, beyond = self._entries(symbols, rows)
        bits = self._costs[rows, entries]
        return bits + np.where(beyond < 0, 0, np.log2(2 * LENGTHS) + _length(np.maximum(beyond, 0)) - 1)

    def _entries(self, symbols, rows) -> tuple[np.ndarray, np.ndarray]:
        """Entry of each symbol in its row, and how far beyond the row an escaped one lies (else -1)."""
        entries, length = symbols - self.offsets[rows], self.lengths[rows]
        beyond = np.where(entries < 0, -entries - 1, np.where(entries >= length, entries - length, -1))
        return np.where(beyond < 0, entries, length), beyond

    def write(self, coder: constriction.queue.RangeEncoder, symbols: np.ndarray, rows: np.ndarray) -> None:
        """Code symbols [n] with the tables ``rows`` [n]: table by table, then the escaped values.

        An escaped value is its side, the number of bits of 1 + how far it lies beyond, and these bits after the first.
        """
        entries, beyond = self._entries(symbols, rows)
        order = np.argsort(rows, kind="stable")
        for row, part in _runs(rows[order]):
            coder.encode(entries[order][part].astype(np.int32), self._models[row])
        for n in order[beyond[order] >= 0]:
            value, length = int(beyond[n]) + 1, int(_length(beyond[n]))
            side = int(symbols[n] >= self.offsets[rows[n]])
            coder.encode(np.array([side, length - 1], np.int32), UNIFORM, np.array([2, LENGTHS], np.int32))
            if length > 1:
                coder.encode(value - (1 << length - 1), constriction.model.Uniform(1 << length - 1))

    def read(self, coder: constriction.queue.RangeDecoder, rows: np.ndarray) -> np.ndarray:
        """Symbols [n] that `write` has coded with the tables ``rows`` [n]."""
        order = np.argsort(rows, kind="stable")
        entries = np.empty(len(rows), np.int64)
        for row, part in _runs(rows[order]):
            entries[order[part]] = coder.decode(self._models[row], part.stop - part.start)
        symbols = entries + self.offsets[rows]
        for n in order[entries[order] == self.lengths[rows[order]]]:
            side, length = coder.decode(UNIFORM, np.array([2, LENGTHS], np.int32)).tolist()
            rest = int(coder.decode(constriction.model.Uniform(1 << length))) if length else 0
            beyond = (1 << length) + rest - 1
            symbols[n] = symbols[n] + beyond if side else self.offsets[rows[n]] - 1 - beyond
        return symbols


UNIFORM = constriction.model.Uniform()
LENGTHS = 22
"""Bits that 1 + the distance beyond a table can have."""


def _length(beyond: np.ndarray) -> np.ndarray:
    """Binary digits of 1 + beyond."""
    return np.frexp(np.asarray(beyond, np.float64) + 1)[1]


def _runs(rows: np.ndarray):
    """Each value of a sorted array with the slice in which it stands."""
    edges = np.flatnonzero(np.diff(rows, prepend=-1, append=-1))
    for a, b in zip(edges, edges[1:], strict=False):
        yield int(rows[a]), slice(int(a), int(b))


class Exact:
    """A network of convolutions and leaky rectifiers whose sums are exact in float64, whatever their order.

    Weights and values are rounded to grids so coarse that every sum of products is a float64 without rounding
    (post-training form of the integer networks of Balle et al., ICLR 2019).

    Raises
    ------
    UserError
        For weights of 8 and more.
    """

    def __init__(self, layers: nn.Sequential):
        with torch.no_grad():
            for parameter in layers.double().parameters():
                if parameter.abs().max() >= 8:
                    raise UserError("a hyper-synthesis has weights too large to calculate exactly (8 or more); retrain")
                parameter.copy_((parameter / WEIGHT_STEP).round() * WEIGHT_STEP)
        self.layers = layers

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (layer(_on_grid(x)) / VALUE_STEP).round() * VALUE_STEP
        return _on_grid(x)


def _on_grid(x: Tensor) -> Tensor:
    return x.clamp(-VALUE_LIMIT, VALUE_LIMIT)


@dataclass(frozen=True)
class Latent:
    """What is coded of a batch of images: y^ = symbols + mean.

    Attributes
    ----------
    z : ndarray [B, K, h/4, w/4] int64, or None
        Symbols of the hyper-latent.
    symbols, rows : ndarray [B, M, h, w] int64
        Symbols of the latent and the table of each.
    mean : ndarray [B, M, h, w]
        Mean (or median) of each latent, known to the decoder without its symbol.
    """

    z: np.ndarray | None
    symbols: np.ndarray
    rows: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class ImageCodec:
    """A trained network with its tables.

    Attributes
    ----------
    network : CodecNetwork
        Its h_s only calculates exactly as ``predict``.
    prior : Tables
        Of the hyper-latent, else of the latent.
    medians : ndarray [K or M]
    gaussians : Tables or None
    predict : Exact or None
        Hyper-synthesis.
    stored_bytes : int
        Bytes of everything that encoder and decoder must have.
    """

    network: CodecNetwork
    prior: Tables
    medians: np.ndarray
    gaussians: Tables | None
    predict: Exact | None
    stored_bytes: int

    @classmethod
    def load(cls, folder: Path, name: str, dtype: torch.dtype = torch.float64) -> ImageCodec:
        """The network ``name`` of an asset.

        Raises
        ------
        UserError
            When the asset has no network of this name.
        """
        with safe_open(Path(folder) / "codecs.safetensors", framework="np") as file:
            names = json.loads(file.metadata()["networks"])
            if name not in names:
                raise UserError(f"{folder} has no codec {name!r}; valid: {', '.join(sorted(names))}")
            wanted = [key for key in file.keys() if key.startswith((f"{name}.", "gaussians."))]  # noqa: SIM118
            arrays = {key.removeprefix(f"{name}."): file.get_tensor(key) for key in wanted}
        return cls.of_arrays(arrays, dtype, **names[name])

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], dtype: torch.dtype, N: int, M: int, K: int) -> ImageCodec:
        stored = sum(array.nbytes for array in arrays.values())
        state = {k: torch.from_numpy(a.astype(np.float32)) for k, a in arrays.items() if k.startswith(("g_", "h_"))}
        network = _bare(N, M, K, state, dtype)
        made = {part: Tables.of_arrays(**{key: arrays[f"{part}.{key}"] for key in ("widths", "lengths", "offsets")})
                for part in ("prior", "gaussians")[: 1 + bool(K)]}  # fmt: skip
        predict = Exact(network.h_s) if K else None
        return cls(network, made["prior"], arrays["medians"], made.get("gaussians"), predict, stored)

    @property
    def tables(self) -> Tables:
        """Those of the latent y."""
        return self.gaussians or self.prior

    @property
    def dtype(self) -> torch.dtype:
        return self.network.g_s[0].weight.dtype

    @torch.no_grad()
    def analyse(self, images: np.ndarray) -> Latent:
        """Latent of images [B, H, W, 3] uint8; sides are filled up with the last row and column."""
        x = torch.tensor(np.ascontiguousarray(images))  # a copy, since some arrays are read-only
        x = x.permute(0, 3, 1, 2).to(self.dtype) / 255
        H, W = (-(-side // self.network.stride) * self.network.stride for side in x.shape[2:])
        x = F.pad(x, (0, W - x.shape[3], 0, H - x.shape[2]), mode="replicate")
        y = self.network.g_a(x)
        z = None
        if self.network.K:
            z = self.network.h_a(y).double().numpy()
            z = _rounded(z - self.medians[:, None, None])
        mean, rows = self.context(z, (len(y), H, W))
        return Latent(z, _rounded(y.double().numpy() - mean), rows, mean)

    def context(self, z: np.ndarray | None, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Means and tables [B, M, h, w] of the latents of images filled up to ``shape`` (B, H, W)."""
        B, H, W = shape
        full = (B, self.network.M, H // 16, W // 16)
        if z is None:
            rows = np.broadcast_to(np.arange(self.network.M)[:, None, None], full)
            return np.broadcast_to(self.medians[:, None, None], full), rows
        scale, mean = self.predict(torch.from_numpy(z + self.medians[:, None, None])).chunk(2, 1)
        rows = np.searchsorted(SCALES.numpy()[:-1], scale.numpy())  # the first that is not smaller, else the last
        return mean.numpy(), rows

    @torch.no_grad()
    def synthesise(self, y: np.ndarray) -> np.ndarray:
        """Images [B, 3, H, W] of latents [B, M, h, w], values nominally 0 to 1 and not rounded."""
        return self.network.g_s(torch.from_numpy(np.ascontiguousarray(y)).to(self.dtype)).numpy()

    def permuted(self, P: np.ndarray) -> ImageCodec:
        """The same codec with latent channel n in place n of ``P``: everything that has a latent axis is permuted."""
        state, at = dict(self.network.state_dict()), torch.from_numpy(P)
        state["g_a.6.weight"], state["g_a.6.bias"] = state["g_a.6.weight"][at], state["g_a.6.bias"][at]
        state["g_s.0.weight"] = state["g_s.0.weight"][at]  # a transposed convolution has its inputs first
        if not self.network.K:
            return replace(self._with(state, self.dtype), prior=self.prior[P], medians=self.medians[P])
        outputs = torch.cat((at, at + self.network.M))  # all scales, then all means
        state["h_a.0.weight"] = state["h_a.0.weight"][:, at]
        state["h_s.4.weight"], state["h_s.4.bias"] = state["h_s.4.weight"][outputs], state["h_s.4.bias"][outputs]
        return self._with(state, self.dtype)

    def to(self, dtype: torch.dtype) -> ImageCodec:
        """The same codec whose transforms calculate in ``dtype``; its predictions stay exact."""
        return self._with(self.network.state_dict(), dtype)

    def _with(self, state: dict[str, Tensor], dtype: torch.dtype) -> ImageCodec:
        network = _bare(self.network.N, self.network.M, self.network.K, state, dtype)
        return replace(self, network=network, predict=Exact(network.h_s) if network.K else None)


def _bare(N: int, M: int, K: int, state: dict[str, Tensor], dtype: torch.dtype) -> CodecNetwork:
    """A network without its prior, of which only tables are left."""
    network = CodecNetwork(N, M, K)
    del network.prior
    network.load_state_dict(state)
    return network.to(dtype).eval().requires_grad_(False)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), -FARTHEST, FARTHEST).astype(np.int64)


def pixels(x: np.ndarray) -> np.ndarray:
    """Images [B, H, W, 3] uint8 of values [B, 3, H, W] nominally 0 to 1."""
    return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def export(network: CodecNetwork, name: str) -> dict[str, np.ndarray]:
    """Arrays of a trained network under ``name``: weights in half precision, and the tables of its prior."""
    state = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith("prior.")}
    tables, medians = Tables.of_prior(network.prior)
    arrays = {key: tensor.half().numpy() for key, tensor in state.items()}
    arrays |= {f"prior.{key}": array for key, array in tables.arrays().items()} | {"medians": medians}
    return {f"{name}.{key}": array for key, array in arrays.items()}
