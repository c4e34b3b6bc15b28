"""What parallel decoding can reach at best (ParallelBench, section on theory): exact, by enumeration and closed form.

All is about a finite set of equally likely right answers of equal length: a table [m, n] of tokens.  Entropies in bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np


def entropy(rows: np.ndarray) -> float:
    """Entropy of the rows of a table [m, n], each row equally likely."""
    _, counts = np.unique(rows, axis=0, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def total_correlation(answers: np.ndarray) -> float:
    """C = sum of the slots' entropies minus the joint entropy, of equally likely ``answers`` [m, n]."""
    return sum(entropy(answers[:, [slot]]) for slot in range(answers.shape[1])) - entropy(answers)


def lower_bound(answers: np.ndarray, partition: Sequence[Sequence[int]]) -> float:
    """L = sum over steps of E[C(Y_S | Y_before)]: the least divergence from the data when steps draw S at once.

    Parameters
    ----------
    answers : array [m, n]
    partition : sequence of sequences of int
        Slots unmasked in each step, in order; together every slot once.
    """
    bound, before = 0.0, []
    for step in partition:
        # E[C(S | B)] = sum_i H(i | B) - H(S | B), and H(S | B) = H(S, B) - H(B).
        given = entropy(answers[:, before]) if before else 0.0
        each = sum(entropy(answers[:, [*before, slot]]) - given for slot in step)
        bound += each - (entropy(answers[:, [*before, *step]]) - given)
        before += list(step)
    return bound


def best_bound(answers: np.ndarray, steps: int) -> float:
    """L*: the least `lower_bound` over all ordered partitions into ``steps`` steps (n up to 6 or so)."""
    n = answers.shape[1]
    return min(
        lower_bound(answers, [[slot for slot in range(n) if which[slot] == step] for step in range(steps)])
        for which in itertools.product(range(steps), repeat=n)
        if len(set(which)) == steps
    )


def correlation(task: str, n: int) -> float:
    """Closed form of C for a list of n items; tasks with one answer have 0.

    Shuffle is the uniform permutation of the theory, the identity included.
    """
    if task == "replace_random":
        return (n - 1) * math.log2(n / (n - 1))
    if task == "shuffle":
        return n * math.log2(n) - math.log2(math.factorial(n))
    return 0.0


def one_step_accuracy(task: str, n: int) -> float:
    """Probability that n slots drawn at once from the ideal marginals are a right answer."""
    if task == "replace_random":
        return (1 - 1 / n) ** (n - 1)
    if task == "shuffle":
        return math.factorial(n) / n**n
    return 1.0


def greedy_accuracy(task: str, n: int, k: int) -> float:
    """Accuracy of the ideal model when a step unmasks the k most confident slots greedily, ties at random (k | n)."""
    if task == "replace_random":
        return 1.0 if k == 1 else 0.5 if k == 2 else 0.0
    if task == "shuffle":
        left = range(n, 0, -k)
        return math.prod(math.perm(m, k) / m**k for m in left)
    return 1.0


def threshold_accuracy(task: str, n: int, tau: float) -> float:
    """Accuracy of the ideal model under a confidence threshold, greedily, first confidences not equal to ``tau``."""
    if task == "replace_random":
        return float(tau > (n - 1) / n)
    if task == "shuffle":
        return float(tau > 0.5) if tau > 1 / n else float("nan")
    return 1.0
