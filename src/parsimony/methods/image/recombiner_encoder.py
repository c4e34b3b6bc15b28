"""The encoder of RECOMBINER (arXiv 2309.17182, sections 2 and 3): posteriors that become a stream block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parsimony.methods.image import relative_entropy_coding as rec
from parsimony.models.bayesian_inr import Posterior, Prior, patches_of

EVERY = 10
"""Updates between adaptations of the blocks' weights."""
FACTOR = 1.05
SLACK = 0.025
"""Share of its bits that a block may leave before its weight falls."""
LARGEST = 1e4


@dataclass(frozen=True)
class Settings:
    """How an encoder fits; see `Recombiner`."""

    updates: int
    fine_tune: int
    samples: int
    step: float
    seed: int


@dataclass
class Facts:
    """What an encoder saw that its stream does not tell.

    Attributes
    ----------
    latents : list of ndarray [members, D] float64
        The sample that was sent.
    block_bits : list of float
        KL divergence of each block just before it was coded.
    mean_error, coded_error : float
        Mean squared errors with values 0 to 1, before rounding: of the posterior mean before coding, and of what was
        sent.
    """

    latents: list[np.ndarray]
    block_bits: list[float]
    mean_error: float
    coded_error: float


class Encoder:
    """Posteriors of one image [H, W, 3], whose sides are whole patches, on their way into a stream.

    Attributes
    ----------
    indices : list of ndarray [members, blocks] int64
        For each level and row; -1 where a block is not coded yet.  Row r holds, of latent d, that of the member
        `permutation`[r, d], so that a block mixes patches and its bits are those of average ones.
    """

    def __init__(self, prior: Prior, image: np.ndarray, settings: Settings):
        self.prior, self.settings = prior, settings
        P, levels = prior.layout.patch, prior.levels
        targets = patches_of(image[None], P).reshape(-1, P * P, 3)
        self.targets = torch.from_numpy(targets).float() / 255
        owners = prior.layout.owners(image.shape[0] // P, image.shape[1] // P, len(levels))
        members = [owner.max() + 1 for owner in owners]
        wide = [[t.expand(m, -1) for m, t in zip(members, each, strict=True)]
                for each in ([level.mean for level in levels], [level.spread for level in levels])]  # fmt: skip
        self.posterior = Posterior(prior.layout, *wide, owners)
        self.order = [permutation(m, len(level.mean)) for m, level in zip(members, levels, strict=True)]
        self.indices = [np.full((m, level.blocks), -1) for m, level in zip(members, levels, strict=True)]
        self.betas = [torch.full((m, level.blocks), prior.beta) for m, level in zip(members, levels, strict=True)]
        self.generator = torch.Generator().manual_seed(settings.seed)

    def run(self) -> Facts:
        """Fit, then code everything, images before groups before patches."""
        self.fit(self.settings.updates)
        mean_error = self.mean_error()
        sent = [np.empty(mean.shape) for mean in self.posterior.means]
        spent = []
        for level in reversed(range(len(sent))):
            updates = self.settings.fine_tune // (2 if level else 1)
            for left in reversed(range(self.prior.levels[level].blocks)):
                spent += self.code(level, sent[level])
                last = level == left == 0
                self.fit(0 if last else updates)
        return Facts(sent, spent, mean_error, self.mean_error())

    def code(self, level: int, sent: np.ndarray) -> list[float]:
        """Code the dearest block that is left of each row of a level; returns their bits."""
        prior, posterior, bits = self.prior.levels[level], self.posterior, self.block_bits()[level].numpy()
        mean, std, held = posterior.means[level], posterior.stds()[level], posterior.held[level]
        q = [t.detach().double().numpy() for t in (mean, std)]
        p = [t.double().numpy() for t in (prior.mean, prior.std)]
        chosen = np.where(self.indices[level] < 0, bits, -1).argmax(1)
        for row, b in enumerate(chosen):
            of = np.flatnonzero(prior.block.numpy() == b)
            at, here, number = (self.order[level][row, of], of), [x[of] for x in p], stream(level, row, b)
            index = rec.encode(q[0][at], q[1][at], *here, self.prior.bits, number)
            sent[at] = rec.decode(index, *here, number)
            held[at] = torch.from_numpy(sent[at]).float()
            self.indices[level][row, b] = index
        return bits[np.arange(len(chosen)), chosen].tolist()

    def fit(self, steps: int) -> None:
        """Updates of all that is not coded yet; every `EVERY` of them, blocks too dear weigh more, others less."""
        parameters = self.posterior.parameters
        optimiser = torch.optim.Adam(parameters, self.settings.step, fused=True)
        for n in range(steps):
            if n % EVERY == 0:
                self.adapt()
                weights = self.weights()
            rate = sum((w * bits).sum() for w, bits in zip(weights, self.divergences(), strict=True))
            loss = self.error(self.settings.samples) + rate
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def error(self, samples: int) -> Tensor:
        """Mean squared error over pixels, colours and samples, summed over patches; no samples: of the mean."""
        made = self.prior.network(*self.posterior.draw(samples, self.generator))
        return (made.view(max(samples, 1), *self.targets.shape) - self.targets).square().mean((0, 2, 3)).sum()

    @torch.no_grad()
    def mean_error(self) -> float:
        """Mean squared error of an image of the posterior mean, with what is coded in its place."""
        return float(self.error(0)) / len(self.targets)

    def divergences(self) -> list[Tensor]:
        """KL divergence [members, D] in bits of every latent of each level."""
        posterior = self.posterior
        every = zip(posterior.means, posterior.stds(), self.prior.levels, strict=True)
        return [rec.divergence(mean, std, level.mean, level.std) for mean, std, level in every]

    @torch.no_grad()
    def block_bits(self) -> list[Tensor]:
        """KL divergence [members, blocks] in bits of the blocks of each row."""
        every = zip(self.divergences(), self.order, self.prior.levels, strict=True)
        return [
            torch.zeros(len(bits), level.blocks).index_add_(1, level.block, bits.gather(0, torch.from_numpy(order)))
            for bits, order, level in every
        ]

    def adapt(self) -> None:
        """Let blocks above their bits weigh more, and those that leave some of them less."""
        most = self.prior.bits
        for betas, bits in zip(self.betas, self.block_bits(), strict=True):
            factor = torch.where(bits > most, FACTOR, torch.where(bits <= most * (1 - SLACK), 1 / FACTOR, 1.0))
            betas.mul_(factor).clamp_(0, LARGEST)

    def weights(self) -> list[Tensor]:
        """Weight [members, D] of the divergence of every latent; 0 for those that are coded."""
        made = []
        for betas, indices, order, level in zip(self.betas, self.indices, self.order, self.prior.levels, strict=True):
            rows = torch.where(torch.from_numpy(indices) < 0, betas, 0.0)[:, level.block]
            made.append(torch.zeros(rows.shape).scatter_(0, torch.from_numpy(order), rows))
        return made


def permutation(members: int, latents: int) -> np.ndarray:
    """A permutation of the members for each latent [members, latents], the same for every image of as many."""
    keys = np.random.Philox(key=rec.SEED).random_raw(members * latents)
    return np.argsort(keys.reshape(members, latents), 0, kind="stable")


def stream(level: int, row: int, block: int) -> int:
    """Which stream of random numbers a block's candidates come from."""
    return level << 56 | row << 16 | int(block)
