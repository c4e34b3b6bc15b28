"""Which latent channels of an image codec matter: ablation one by one, and what foretells it.

The reference is brute force: a channel is replaced by its prior mean, which is what a decoder has that never received
it, and the importance is how much the mean squared error of the reconstructions rises.  Orders by weights need nothing
else; orders by ablation, bits and variance are measured on photographs to train on, and judged on other images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from parsimony.assets.mnist import digits
from parsimony.assets.photographs import crops
from parsimony.channel_orders import KEPT, ORDERS
from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.models.latent_coding import ImageCodec

SIDE = 128
TOP = 0.25
"""Share of the channels that counts as a small core."""
DEAD_BITS = 0.001
"""Bits a latent below which its channel counts as dead."""


@dataclass
class Views:
    """A batch of images seen through a codec: its quantised latents, and what is left without some channels.

    Attributes
    ----------
    images : ndarray [B, 128, 128, 3] uint8
    y, mean : ndarray [B, M, 8, 8]
    bits, variance : ndarray [M]
        Mean bits of a latent of each channel, and variance of its values.
    """

    codec: ImageCodec
    images: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    bits: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, codec: ImageCodec, images: np.ndarray) -> Views:
        latent = codec.analyse(images)
        y = latent.symbols + latent.mean
        bits = codec.tables.bits(latent.symbols, latent.rows)
        return cls(codec, images, y, latent.mean, bits.mean((0, 2, 3)), y.var((0, 2, 3)))

    def error(self, kept: np.ndarray) -> float:
        """Sum of squared errors, in grey levels, with the channels ``kept`` (bool [M]) and means in place of others."""
        x = self.codec.synthesise(np.where(kept[:, None, None], self.y, self.mean))
        x = x[..., :SIDE, :SIDE].clip(0, 1) * 255  # a codec of stride 64 or 16 fills up nothing here
        return float(((x.transpose(0, 2, 3, 1) - self.images) ** 2).sum(dtype=np.float64))

    def ablation(self) -> np.ndarray:
        """Rise of the mean squared error [M] without each channel."""
        M = self.codec.network.M
        everything = np.ones(M, bool)
        whole = self.error(everything)
        return np.array([self.error(np.arange(M) != m) - whole for m in range(M)]) / self.images.size


class ChannelImportance:
    """Rank correlation of orders with ablation, and quality when only their first channels are kept.

    Parameters
    ----------
    items : int
        Batches of images of each set.
    images : int
        Images of 128 by 128 pixels a batch.
    sets : list of str
        "photographs" (those to measure on) and "digits" (sheets of 16 handwritten ones, which no codec has seen).
    calibration : int
        Photographs to train on from which the orders on data come.
    timed : bool
    """

    def __init__(self, items: int, images: int, sets: list[str], calibration: int, timed: bool = False):
        self.count, self.images, self.sets, self.calibration, self.timed = items, images, sets, calibration, timed
        self.known: dict[str, dict[str, np.ndarray]] = {}

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if "photographs" not in paths:
            return []
        _, test = crops(paths["photographs"], "test")
        _, train = crops(paths["photographs"], "train")
        rng = np.random.default_rng(seed)
        self.batches = {"photographs": rng.permutation(quarters(test))}
        self.train = rng.permutation(quarters(train))[: self.calibration]
        if "mnist_5k" in paths:
            self.batches["digits"] = sheets(digits(paths["mnist_5k"])[0].numpy())
        return [
            Item(f"{name}_{n}", name, (), f"{name}, images {n * self.images} and on")
            for name in self.sets
            for n in range(min(self.count, len(self.batches.get(name, ())) // self.images))
        ]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        if "photographs" in missing:  # the orders on data need them too
            return dict.fromkeys(self.sets, missing["photographs"])
        return {"digits": missing["mnist_5k"]} if "mnist_5k" in missing and "digits" in self.sets else {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, n = Outcome(), int(item.id.rsplit("_", 1)[1])
        images = self.batches[item.category][n * self.images : (n + 1) * self.images]
        for point in bench.points:
            system = bench.system(point, "float32")
            codec = system.original.to(torch.float32)
            terms = self.calibrated(point, codec) | {
                "score": system.importance.score, "v_d": system.importance.v_d, "v_e": system.importance.v_e,
                "bias": system.importance.bias, "random": bench.rng(item.id).random(codec.network.M),
            }  # fmt: skip
            views = Views.of(codec, images)
            ablation = views.ablation()
            numbers = compared(terms, ablation, views.bits)
            for name in ORDERS:
                order = np.argsort(-terms[name], kind="stable")
                for share in KEPT:
                    kept = np.zeros(len(order), bool)
                    kept[order[: round(share / 100 * len(order))]] = True
                    numbers[f"error_{name}_{share}"] = views.error(kept)
            numbers["core"] = len(system.importance.core(0.9))
            numbers |= {"channels": len(ablation), "values": images.size}
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
            outcome.outputs[point, "ablation"] = ablation.tolist()
        return outcome

    def calibrated(self, point: str, codec: ImageCodec) -> dict[str, np.ndarray]:
        """Terms that need data, from photographs to train on."""
        if point not in self.known:
            views = Views.of(codec, self.train)
            self.known[point] = {"ablation": views.ablation(), "bits": views.bits, "variance": views.variance}
        return self.known[point]


def compared(terms: dict[str, np.ndarray], ablation: np.ndarray, bits: np.ndarray) -> dict[str, float]:
    """How each of the terms [M] foretells an ablation [M], and how the ablation is spread over the channels.

    Returns
    -------
    dict of str to float
        ``rank_*``: Spearman's rank correlation; ``common_*``: how many of the first quarter by the term are in the
        first quarter by ablation; ``top``: channels in a quarter; ``top_importance`` and ``importance``: the rise of
        the error by that quarter's channels and by all, one by one; ``dead`` channels, and those of them that the
        score puts in the better half.
    """
    M = len(ablation)
    top = round(TOP * M)
    best = set(np.argsort(-ablation, kind="stable")[:top].tolist())
    numbers = {}
    for name in ORDERS:
        order = np.argsort(-terms[name], kind="stable")
        numbers[f"rank_{name}"] = spearmanr(terms[name], ablation).statistic
        numbers[f"common_{name}"] = len(best & set(order[:top].tolist()))
    dead, rises = bits < DEAD_BITS, np.maximum(ablation, 0)
    better = np.argsort(-terms["score"], kind="stable")[: M // 2]
    return numbers | {
        "top": top, "top_importance": np.sort(rises)[::-1][:top].sum(), "importance": rises.sum(),
        "dead": dead.sum(), "dead_ranked_high": dead[better].sum(),
    }  # fmt: skip


def quarters(squares: np.ndarray) -> np.ndarray:
    """Images [4 N, 128, 128, 3] of squares [N, 256, 256, 3]."""
    N = len(squares)
    return squares.reshape(N, 2, SIDE, 2, SIDE, 3).swapaxes(2, 3).reshape(4 * N, SIDE, SIDE, 3)


def sheets(images: np.ndarray) -> np.ndarray:
    """Sheets [N, 128, 128, 3] uint8 of 4 by 4 digits out of images [n, 28, 28] with values 0 to 1."""
    N, gap = len(images) // 16, (SIDE // 4 - 28) // 2
    cells = np.pad(images[: 16 * N], ((0, 0), (gap, gap), (gap, gap))).reshape(N, 4, 4, SIDE // 4, SIDE // 4)
    grey = np.round(255 * cells.swapaxes(2, 3).reshape(N, SIDE, SIDE)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)
