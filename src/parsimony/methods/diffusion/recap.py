"""ReCAP (Liu et al., 2025, arXiv 2505.19089): full steps of a masked image generator, cheap local ones in between.

full step   all tokens in one pass; the n most confident masks become the group's targets; n_1 of them are drawn
local step  the targets alone in one pass over the keys and values of all others; the next n_2 of them are drawn

The discrete generator (MaskGIT); the continuous one (MAR) needs a diffusion head and is not built here.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Cost, Inputs
from parsimony.models.masked_image import CODES, FIRST_CLASS, MASK, NO_CLASS, SIDE, MaskedImage

N = SIDE * SIDE


class Recap:
    """MaskGIT's sampler, with local steps.

    Parameters
    ----------
    steps : int
        T.
    full_first : int
        P: full steps before the first group of a full and ``local`` local ones; with P >= T, or no local steps, this
        is the generator's own sampler.
    local : int
    temperature : float
        s, towards which the sampling temperature falls from 1.
    choice : float
        Gumbel temperature of the confidence, which falls to 0.
    guidance : float
        Weight of the classifier-free guidance at the last step, to which it grows linearly; 0 for none.
    """

    def __init__(
        self,
        steps: int = 16,
        full_first: int = 8,
        local: int = 1,
        temperature: float = 0.65,
        choice: float = 5.5,
        guidance: float = 0.0,
    ):
        if steps > N:
            raise UserError(f"recap: {steps} steps are more than the {N} codes of an image; mend its params")
        self.steps, self.full_first, self.local = steps, full_first, local
        self.temperature, self.choice, self.guidance = temperature, choice, guidance

    def build(self, model: MaskedImage, inputs: Inputs) -> RecapSampler:
        """The sampler."""
        return RecapSampler(model, self)

    def schedule(self) -> list[int]:
        """Codes that each step decides: the mask ratio is 1 - (t / T)^2.5; no step is empty."""
        left = [int(N * (1 - (t / self.steps) ** 2.5)) for t in range(self.steps + 1)]
        counts = [before - after for before, after in zip(left, left[1:], strict=False)]
        for t in range(self.steps):
            while counts[t] < 1:  # early steps decide few: what they lack comes from the largest, late ones
                counts[counts.index(max(counts))] -= 1
                counts[t] += 1
        return counts

    def heat(self, t: int) -> float:
        """Sampling temperature of a step."""
        return self.temperature + (1 - (t / max(self.steps - 1, 1)) ** 0.5) * (1 - self.temperature)

    def groups(self) -> list[list[int]]:
        """Steps that share a full pass, in order."""
        grouped = [[t] for t in range(min(self.full_first, self.steps))]
        rest = list(range(len(grouped), self.steps))
        return grouped + [rest[at : at + 1 + self.local] for at in range(0, len(rest), 1 + self.local)]


@dataclass
class State:
    """Codes [B, 49] with masks, the classes' ids [B], and what it cost so far."""

    x: Tensor
    classes: Tensor
    cost: Cost


class RecapSampler:
    """Generates images of given classes, all of them together."""

    def __init__(self, model: MaskedImage, settings: Recap):
        self.model, self.settings = model, settings

    def generate_images(self, classes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Cost]:
        """Images [B, 28, 28] of ``classes`` ([B], 0 to 9), and their cost; passes over a part count as passes too."""
        s, counts, groups = self.settings, self.settings.schedule(), self.settings.groups()
        state = State(torch.full((len(classes), N), MASK), classes + FIRST_CLASS, Cost())
        for g, group in enumerate(groups):
            n = sum(counts[t] for t in group)
            cache = self.model.decoder.cache(N + 1, len(classes) * (2 if s.guidance else 1))
            logits = self.run(state, torch.arange(N).expand(len(classes), -1), cache, group[0])  # [B, 49, V]
            token = draw(logits, s.heat(group[0]), rng)
            sure = logits.log_softmax(-1).gather(-1, token[..., None])[..., 0]
            sure = sure + s.choice * (1 - (g + 1) / len(groups)) * gumbel(sure.shape, rng)
            sure = sure.where(state.x == MASK, torch.tensor(-torch.inf))
            targets = sure.argsort(dim=-1, descending=True, stable=True)[:, :n]  # [B, n], chosen once
            here, done = logits.gather(1, targets[..., None].expand(-1, -1, logits.shape[-1])), 0
            for k, t in enumerate(group):
                if k == 1:
                    cache.keep(self.others(targets, cache.data.shape[2]))
                if k:
                    kept = len(cache)
                    here = self.run(state, targets, cache, t)
                    cache.truncate(kept)
                now = slice(done, done + counts[t])
                state.x.scatter_(1, targets[:, now], draw(here[:, now], s.heat(t), rng))
                done += counts[t]
                state.cost.accepted_per_pass.append(counts[t])
        return self.model.images(state.x), state.cost

    def run(self, state: State, places: Tensor, cache, t: int) -> Tensor:
        """Logits [B, n, codes] at ``places`` ([B, n]); their keys and values, and the class token's, join the cache."""
        s, began = self.settings, perf_counter()
        ids = torch.cat((state.classes[:, None], state.x.gather(1, places)), 1)
        positions = torch.cat((torch.zeros(len(ids), 1, dtype=torch.int64), places + 1), 1)
        if s.guidance:
            free = ids.clone()
            free[:, 0] = NO_CLASS
            ids, positions = torch.cat((ids, free)), positions.repeat(2, 1)
        logits = self.model.decoder.forward(ids, cache, positions=positions)[:, 1:, :CODES].float()
        if s.guidance:
            given, free = logits.chunk(2)
            logits = given + s.guidance * (t + 1) / s.steps * (given - free)
        state.cost.passes += 1
        state.cost.rows += ids.numel()
        state.cost.verify_seconds += perf_counter() - began
        return logits

    @staticmethod
    def others(targets: Tensor, rows: int) -> Tensor:
        """Cache entries [rows, 49 - n] of the codes that are no targets; the class token, entry 0, is recomputed."""
        rest = torch.ones(len(targets), N, dtype=torch.bool).scatter(1, targets, False)
        return (rest.nonzero()[:, 1].view(len(targets), -1) + 1).repeat(rows // len(targets), 1)


def gumbel(shape, rng: np.random.Generator) -> Tensor:
    """Standard Gumbel noise, float32."""
    return -(-torch.from_numpy(rng.random(tuple(shape))).clamp(1e-12, 1 - 1e-12).log()).log().float()


def draw(logits: Tensor, heat: float, rng: np.random.Generator) -> Tensor:
    """Tokens [...] drawn from softmax(logits [..., V] / heat)."""
    return (logits / heat + gumbel(logits.shape, rng)).argmax(-1)
