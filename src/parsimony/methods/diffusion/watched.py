"""What can be said of a decoder's passes by someone who knows the right answer: waiting, haste, locality, certainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony.methods.diffusion.caches import Exact
from parsimony.methods.diffusion.sampler import BlockSampler, View

SURE = 0.9
"""Confidence that the papers call certain: Fast-dLLM's threshold, LocalLeap's anchors."""
DISTANCES = (1, 2, 4, 8, 16)
"""Upper ends of the ranges of distance to the nearest anchor (the first is 1 alone, the second 2, then 3 to 4)."""


@dataclass
class Pass:
    """One pass: the sequence it saw ([T] int64), the answer's logits from ``begin`` on, and where the block ended."""

    x: Tensor
    begin: int
    stop: int
    logits: Tensor


class Watched(Exact):
    """Exact passes that are kept."""

    def __init__(self, model):
        super().__init__(model)
        self.passes: list[Pass] = []
        self.stop = 0

    def refresh(self, x: Tensor, begin: int) -> Tensor:
        logits = super().refresh(x, begin)
        self.passes.append(Pass(x.clone(), begin, self.stop, logits.clone()))
        return logits

    def enter(self, begin: int, stop: int) -> None:
        self.stop = self.passes[-1].stop = stop


def observe(system: BlockSampler, prompt: Tensor, truth: Tensor, rng: np.random.Generator) -> dict[str, float]:
    """Totals over the passes of one answer, each pass against the right tokens.

    ``late_passes``
        write no position that is sure (confidence `SURE`) while one behind the block is, and is right: AdaBlock's late
        decoding overhead.
    ``early_passes``
        write a wrong token that is not sure: its premature decoding error.
    ``near_<d>``, ``near_<d>_right``
        masked positions at that distance from an anchor of the same pass, itself none, and how many of their
        predictions are right: LocalLeap's premise.
    ``written``, ``excess``
        tokens written, and the sum over them of confidence less 1 if right: 0 for a calibrated model.

    Parameters
    ----------
    truth : Tensor [L] int64
    """
    network, P = Watched(system.model), len(prompt)
    after = system.unmask(network, prompt, len(truth), rng)
    found = dict.fromkeys(("late_passes", "early_passes", "written", "excess"), 0.0)
    found |= {f"near_{d}{end}": 0.0 for d in DISTANCES for end in ("", "_right")}
    states = [each.x for each in network.passes[1:]]
    states.append(torch.cat((prompt, F.pad(after.tokens, (0, len(truth) - len(after.tokens)), value=-1))))
    for one, then in zip(network.passes, states, strict=True):
        row, size = one.x[one.begin :], one.stop - one.begin
        view = View.of(one.logits, row, system.model.mask_id, 0, 0.0, rng)
        right = view.tokens == truth[one.begin - P :]
        sure = view.confidence >= SURE
        written = torch.zeros_like(sure)
        written[:size] = view.masked[:size] & (then[one.begin : one.stop] != system.model.mask_id)
        found["late_passes"] += float(not (written & sure).any() and bool((sure & right)[size:].any()))
        found["early_passes"] += float((written & ~sure & ~right).any())
        found["written"] += float(written.sum())
        found["excess"] += float((view.confidence[written] - right[written].double()).sum())
        anchors = (sure[:size]).nonzero()[:, 0]
        waiting = (view.masked & ~sure)[:size].nonzero()[:, 0]
        if len(anchors) and len(waiting):
            gaps = (waiting[:, None] - anchors).abs().amin(1)
            ranges = torch.bucketize(gaps, torch.tensor(DISTANCES))
            for n, d in enumerate(DISTANCES):
                found[f"near_{d}"] += float((ranges == n).sum())
                found[f"near_{d}_right"] += float(right[waiting][ranges == n].sum())
    return found
