"""A* coding of single blocks (arXiv 2201.12857), to see how many candidates an unbiased sample takes."""

from __future__ import annotations

import numpy as np

from parsimony.methods.image import relative_entropy_coding as rec


class AStarCoding:
    """Draws 2^(KL + spare) candidates, rounded to whole bits.

    Parameters
    ----------
    spare : int
        Bits beyond the divergence; 0 is what RECOMBINER's blocks have when they are full.
    """

    def __init__(self, spare: int):
        self.spare = spare

    def build(self, model, inputs) -> AStarCoding:
        return self

    def draw(self, mean, std, prior_mean, prior_std, stream: int) -> tuple[np.ndarray, int, int]:
        divergence = rec.divergence(mean, std, prior_mean, prior_std).sum()
        bits = max(round(float(divergence)) + self.spare, 0)
        index = rec.encode(mean, std, prior_mean, prior_std, bits, stream)
        return rec.decode(index, prior_mean, prior_std, stream), index, bits
