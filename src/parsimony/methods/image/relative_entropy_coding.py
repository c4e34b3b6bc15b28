"""Relative entropy coding: a sample of q is told by its number among samples of p that both sides can draw.

Depth-limited, global-bound A* coding (Flamich, Markou and Hernandez-Lobato, arXiv 2201.12857), as RECOMBINER uses it
(arXiv 2309.17182, section 2; official code).  The candidates come from a counter-based generator (Philox 4x64-10) and
a table of normal quantiles, not from scrambled Sobol points and an inverse of the normal distribution, which differ
between versions of their libraries.  Candidate i is at counter i, so that a decoder draws it alone.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache

import numpy as np
from scipy.special import ndtri

from parsimony.errors import UserError

SEED = 42
SLAB = 4096
"""Candidates drawn at once; the memory that coding takes follows from it."""
FROM_WORD = 16
"""Normals from one counter of the generator: four words of 64 bits, 16 bits for each."""
TABLE_SHA256 = "809d53a690a2d233677f367a9db7179fcb2c6867fd11b55b3275f750a55d52d6"


@cache
def quantiles() -> np.ndarray:
    """Normal quantiles of (k + 1/2) / 2^16 [65536] float64, rounded to multiples of 2^-20.

    Raises
    ------
    UserError
        Where this machine's quantiles are other ones: nothing that was coded elsewhere could be decoded.
    """
    table = np.rint(ndtri((np.arange(2**16) + 0.5) / 2**16) * 2**20) / 2**20
    if hashlib.sha256(table.astype("<f8").tobytes()).hexdigest() != TABLE_SHA256:
        raise UserError("relative entropy coding: the normal quantiles of this SciPy are not those that streams are "
                        "coded with; install the version that envs/requirements.txt names")  # fmt: skip
    return table


def candidates(stream: int, d: int, first: int, count: int) -> np.ndarray:
    """Standard normal candidates ``first`` to ``first + count - 1`` [count, d] float64 of a stream of numbers."""
    counters = -(-d // FROM_WORD)
    generator = np.random.Philox(key=SEED + (stream << 64), counter=first * counters)
    words = generator.random_raw(4 * count * counters).astype("<u8")
    return quantiles()[words.view("<u2").reshape(count, -1)[:, :d]]


def gumbels(stream: int, count: int) -> np.ndarray:
    """Largest, second largest, ... arrival [count] of a Gumbel process: -ln of the arrivals of a Poisson process.

    Only an encoder needs them.
    """
    generator = np.random.Generator(np.random.Philox(key=SEED + 1 + (stream << 64)))
    return -np.log(np.cumsum(generator.standard_exponential(count)))


def encode(mean, std, prior_mean, prior_std, bits: int, stream: int) -> int:
    """Number of the candidate that stands for a sample of q = N(mean, std^2) among 2^bits samples of p.

    It is the argmax over i of log q(z_i) / p(z_i) + G_i.  G falls, so that the search ends as soon as not even the
    largest possible ratio could make up for it.

    Parameters
    ----------
    mean, std, prior_mean, prior_std : ndarray [d] float64
    bits : int
        What the number will cost.
    stream : int
        Which numbers both sides draw; another one for each block of a message.

    Returns
    -------
    int
        From 0 to 2^bits - 1.
    """
    d, N, best, chosen = len(mean), 2**bits, -math.inf, 0
    arrivals, bound = gumbels(stream, N), largest_ratio(mean, std, prior_mean, prior_std)
    # log q / p at prior_mean + prior_std * s is a parabola in s.
    away, ratio = (prior_mean - mean) / std, prior_std / std
    constant, linear, square = (np.log(ratio) - away**2 / 2).sum(), -away * ratio, (1 - ratio**2) / 2
    for first in range(0, N, SLAB):
        s = candidates(stream, d, first, min(SLAB, N - first))
        scores = constant + s @ linear + (s * s) @ square + arrivals[first : first + len(s)]
        at = int(scores.argmax())
        if scores[at] > best:
            best, chosen = scores[at], first + at
        if first + SLAB < N and best >= bound + arrivals[first + SLAB]:
            break
    return chosen


def largest_ratio(mean, std, prior_mean, prior_std) -> float:
    """Supremum of log q(z) / p(z) in nats; infinite where q is as wide as p without being p."""
    same = (std == prior_std) & (mean == prior_mean)
    gap = prior_std**2 - std**2
    if (gap[~same] <= 0).any():
        return math.inf
    mean, std, prior_mean, prior_std, gap = (x[~same] for x in (mean, std, prior_mean, prior_std, gap))
    return float((np.log(prior_std / std) + (mean - prior_mean) ** 2 / (2 * gap)).sum())


def decode(index: int, prior_mean, prior_std, stream: int) -> np.ndarray:
    """The sample [d] float64 that an index stands for: a product and a sum, the same on every machine."""
    return prior_mean + prior_std * candidates(stream, len(prior_mean), index, 1)[0]


def divergence(mean, std, prior_mean, prior_std):
    """KL(q || p) in bits, element by element; takes arrays and tensors, all of one kind."""
    log = np.log if isinstance(std, np.ndarray) else lambda x: x.log()
    away = (std**2 + (mean - prior_mean) ** 2) / (2 * prior_std**2)
    return (log(prior_std / std) + away - 0.5) / math.log(2)
