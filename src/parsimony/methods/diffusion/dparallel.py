"""dParallel (Chen et al., ICLR 2026, arXiv 2509.26488): a model made certain by distillation, an entropy threshold."""

from __future__ import annotations

from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked


class DParallel:
    """Commits every position whose entropy is at most ``tau``, and always the least entropic one.

    Parameters
    ----------
    tau : float
        In nats, of the whole distribution.
    weights : {"forced", "plain", "base"}
        Distilled with certainty forcing, with cross-entropy alone, or not at all (assets ``forced`` and ``plain``).
    block : int or None
    """

    def __init__(self, tau: float = 0.5, weights: str = "forced", block: int | None = 32):
        if weights not in ("forced", "plain", "base"):
            raise UserError(f"dparallel: weights {weights!r} are not one of forced, plain, base; mend its params")
        self.tau, self.weights, self.block = tau, weights, block

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler on the distilled weights."""
        if self.weights != "base":
            dtype = str(model.decoder.dtype).removeprefix("torch.")
            model = Masked.load(
                inputs.assets[self.weights], model.mask, model.stop, dtype, model.shifted, model.decoder.devices
            )
        return BlockSampler(model, LowEntropy(self.tau), self.block)


class LowEntropy:
    """The strategy."""

    def __init__(self, tau: float):
        self.tau = tau

    def begin(self, size: int) -> None:
        pass

    def commit(self, view: View) -> Tensor:
        return (view.entropy <= self.tau) | view.best(-view.entropy, 1)
