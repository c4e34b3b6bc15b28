"""Priors of RECOMBINER (arXiv 2309.17182, section 3; official code): variational EM over a training set at once.

Learning goes down a ladder of rates: the first starts from nothing, each further one where the one above it ended, with
new networks, posteriors and prior of its own from there on.  The paper learns every rate from nothing.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony import devices
from parsimony.assets.photographs import crops
from parsimony.errors import UserError
from parsimony.methods.image.relative_entropy_coding import divergence
from parsimony.models.bayesian_inr import Layout, Level, Network, Posterior, Prior, patches_of

FACTOR = 1.5
"""By which the weight of the divergence changes a round."""
TOLERANCE = 0.2
"""Share of its target by which what a rate spends may be off."""


class Learner:
    """The variational EM: posteriors of all patches, what they share, and the prior.

    Parameters
    ----------
    images : ndarray [B, H, W, 3] uint8
        H and W are multiples of the patch.
    levels : int
        1: every patch for itself; 3: patches, groups and images.
    """

    def __init__(
        self, layout: Layout, images: np.ndarray, levels: int, mapped: bool, step: float, beta: float, seed: int
    ):
        torch.manual_seed(seed)
        self.layout, P, where = layout, layout.patch, devices.held()[0]
        self.targets = torch.from_numpy(patches_of(images, P).reshape(-1, P * P, 3)).float().to(where) / 255
        one = layout.owners(images.shape[1] // P, images.shape[2] // P, levels)
        shifts = np.arange(len(images))[:, None]
        owners = [(owner + shifts * (owner.max() + 1)).ravel() for owner in one]
        self.posterior, self.network = Posterior.initial(layout, owners), Network(layout, mapped).to(where)
        self.prior = [(torch.zeros(m.shape[1]), torch.full((m.shape[1],), 0.0212)) for m in self.posterior.means]
        self.generator, self.beta = torch.Generator(where).manual_seed(seed), beta
        parameters = [*self.posterior.parameters, *self.network.parameters()]
        self.optimiser = torch.optim.Adam(parameters, step, fused=True)

    def divergences(self) -> list[Tensor]:
        """KL divergence [members, D] in bits of every latent of each level."""
        q = zip(self.posterior.means, self.posterior.stds(), self.prior, strict=True)
        return [divergence(mean, std, *prior) for mean, std, prior in q]

    def error(self, samples: int) -> Tensor:
        """Mean squared error, summed over patches."""
        made = self.network(*self.posterior.draw(samples, self.generator))
        return (made - self.targets).square().mean((1, 2)).sum()

    def round(self, epochs: int, target: float, slack: float) -> float:
        """Some updates, then the prior in closed form and the weight of the divergence; returns bits a patch."""
        for _ in range(epochs):
            loss = self.error(1) + self.beta * sum(bits.sum() for bits in self.divergences())
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        with torch.no_grad():
            q = zip(self.posterior.means, self.posterior.stds(), strict=True)
            self.prior = [(m.mean(0), ((s**2).mean(0) + m.var(0, correction=0)).sqrt()) for m, s in q]
            spent = float(sum(bits.sum() for bits in self.divergences())) / len(self.targets)
        if spent > target:
            self.beta *= FACTOR
        elif spent < target * (1 - slack):
            self.beta /= FACTOR
        self.beta = min(max(self.beta, 1e-20), 1.0)
        return spent

    @torch.no_grad()
    def result(self, bits: int) -> Prior:
        """What is shared at this rate, with the latents of each level parted into blocks."""
        levels = []
        for std, (mean, wide), spent in zip(self.posterior.stds(), self.prior, self.divergences(), strict=True):
            levels.append(Level(mean.clone(), wide.clone(), std.mean(0), blocks(spent.mean(0).cpu().numpy(), bits)))
        return Prior(self.layout, self.network, levels, bits, self.beta)


def blocks(spent: np.ndarray, bits: int) -> Tensor:
    """Block [D] int64 of each latent: in an order shuffled with seed 0, as many as cost ``bits`` on average."""
    block, number, room = np.empty(len(spent), np.int64), -1, 0.0
    for d in np.random.default_rng(0).permutation(len(spent)):
        room -= spent[d]
        if room < 0:
            number, room = number + 1, bits - spent[d]
        block[d] = number
    return torch.from_numpy(block)


def pieces(squares: np.ndarray, count: int, side: int, seed: int) -> np.ndarray:
    """Pieces [count, side, side, 3] of squares [N, S, S, 3], at random places of one square after the other."""
    rng, room = np.random.default_rng(seed), squares.shape[1] - side
    at = rng.integers(0, room + 1, (count, 2))
    return np.stack([squares[n % len(squares), y : y + side, x : x + side] for n, (y, x) in enumerate(at)])


def learn(
    out: Path, inputs: dict[str, Path], data: list[str], patch: int, fourier: int, channels: int, latent: int, up: int,
    hidden: int, layers: int, group: int, mapped: bool, levels: int, images: int, side: int, rates: list[float],
    rounds: list[int], epochs: int, slack: float, step: float, beta: float, bits: int, floors: list[float], seed: int,
):  # fmt: skip
    """Write a prior for each rate, ``bpp_<hundredths of a bit a pixel>.safetensors``.

    Parameters
    ----------
    data : list of str
        Assets of photographs, of whose training side pieces are learnt from.
    patch, fourier, channels, latent, up, hidden, layers, group : int
        The `Layout`.
    mapped : bool
        Whether A_l is learnt, or the identity.
    images, side : int
        How many pieces, and their sides in pixels.
    rates : list of float
        Targets in bits a pixel, falling.
    rounds : list of int
        Rounds at the first rate, and at each of the others; up to twice as many, until the target is met.
    slack : float
        Share of its target that the rate may stay below without a change of weight.
    step, beta : float
        Adam's step, and the weight of the divergence that learning begins with.
    bits : int
        Bits a block.
    floors : list of float
        Least PSNR of a sample on the training patches at each rate, in dB; none: nothing is checked (a rehearsal).

    Raises
    ------
    UserError
        When a rate misses its floor, or its target by more than `TOLERANCE`.
    """
    at = Layout(patch, fourier, channels, latent, up, hidden, layers, group)
    squares = np.concatenate([crops(inputs[key], "train")[1] for key in data])
    with torch.device(devices.held()[0]):
        learner = Learner(at, pieces(squares, images, side, seed), levels, mapped, step, beta, seed)
        for step_down, rate in enumerate(rates):
            began, target, count = perf_counter(), rate * at.patch**2, rounds[step_down > 0]
            for n in range(2 * count):
                spent = learner.round(epochs, target, slack)
                if n + 1 >= count and abs(spent / target - 1) <= TOLERANCE:
                    break
            with torch.no_grad():
                psnr = -10 * float(torch.log10(learner.error(1) / len(learner.targets)))
            result = learner.result(bits)
            result.save(out / f"bpp_{round(100 * rate):03d}.safetensors")
            counts = "+".join(str(level.blocks) for level in result.levels)
            print(f"{rate} bits a pixel: {spent / at.patch**2:.3f} spent, {psnr:.2f} dB, {counts} blocks, "
                  f"beta {learner.beta:.2g}, {perf_counter() - began:.0f} s", flush=True)  # fmt: skip
            if floors and (psnr < floors[step_down] or abs(spent / target - 1) > TOLERANCE):
                raise UserError(
                    f"the prior for {rate} bits a pixel spends {spent / at.patch**2:.3f} and reaches {psnr:.2f} dB; "
                    f"it must reach {floors[step_down]}"
                )
