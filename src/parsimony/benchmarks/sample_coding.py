"""Samples of Gaussians that are told by numbers: are they those of the Gaussian, and what do they cost?"""

from __future__ import annotations

import math
from pathlib import Path
from time import perf_counter

import numpy as np

from parsimony.interfaces import Item, Outcome, Workbench


class SampleCoding:
    """Gaussians q of 3 to 8 bits of divergence from N(0, 1), in one dimension or as blocks of many.

    All means lie on the positive side, so that samples which are too close to p show as a shift towards zero.  In a
    block the bits are spread evenly over the dimensions.

    Parameters
    ----------
    timed : bool
    items : int
        Gaussians for each number of bits and dimensions.
    draws : int
        Samples of each.
    bits : list of int
    dimensions : list of int
    """

    def __init__(self, timed: bool, items: int, draws: int, bits: list[int], dimensions: list[int]):
        self.timed, self.count, self.draws, self.bits, self.dimensions = timed, items, draws, bits, dimensions

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        return [
            Item(f"d{d}_{bits}_bits_{n:02d}", f"{bits}_bits" if d == 1 else f"{bits}_bits_in_{d}", (), "generated")
            for d in self.dimensions
            for bits in self.bits
            for n in range(self.count)
        ]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, (d, bits, *_) = Outcome(), item.id[1:].split("_")
        d, bits = int(d), int(bits)
        mean, std = gaussian(bits, d, bench.rng(item.id))
        zeros, ones, first = np.zeros(d), np.ones(d), int(bench.rng(item.id).integers(2**40)) << 8
        for point in bench.points:
            system, began = bench.system(point, "float64"), perf_counter()
            drawn = [system.draw(mean, std, zeros, ones, first + n) for n in range(self.draws)]
            seconds = perf_counter() - began
            away = (np.array([sample for sample, *_ in drawn]) - mean) / std
            numbers = {
                "draws": self.draws,
                "values": self.draws * d,
                "shift": -float((away * np.sign(mean)).sum()),
                "squares": float((away**2).sum()),
                "bits_beyond": float(sum(sent for *_, sent in drawn)) - bits * self.draws,
                "index_beyond": sum(math.log2(1 + index) for _, index, _ in drawn) - bits * self.draws,
                "seconds": seconds,
            }
            outcome.numbers += [(point, metric, value, "") for metric, value in numbers.items()]
        return outcome


def gaussian(bits: float, d: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [d] with ``bits`` of KL divergence from N(0, 1), an equal share a dimension.

    With m and s it is (m^2 + s^2 - 1) / 2 - ln s nats: s is drawn, at least as large as leaves m^2 positive, and m
    follows.
    """
    nats = bits * math.log(2) / d
    std = np.empty(d)
    for n in range(d):
        low = 1.0
        while (low**2 - 1) / 2 - math.log(low) < nats * 0.9:
            low *= 0.99
        std[n] = rng.uniform(low / 0.99, 0.9) if low / 0.99 < 0.9 else low / 0.99
    return np.sqrt(2 * (nats + np.log(std)) + 1 - std**2), std
