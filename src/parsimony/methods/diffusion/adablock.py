"""AdaBlock (Lu et al., ICLR 2026, arXiv 2509.26432): blocks that end where a delimiter is predicted."""

from __future__ import annotations

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.methods.diffusion.threshold_unmasking import AtLeast
from parsimony.models.masked import Masked


class AdaBlock:
    """Threshold decoding whose block lengths follow the text.

    The pass that begins a block looks at a window behind it: if its most confident predicted delimiter (not the
    nearest) has confidence ``tau_d`` or more, the block ends with it; else it has ``block`` positions.

    Parameters
    ----------
    tau : float
        Threshold of committing.
    block : int
        B0.
    tau_d : float
    window : {"code", "paper"}
        A quarter of the whole answer's length, as the official code has it, or of what is decided so far.
    delimiters : list of str
        Tokens; each must be in the vocabulary.
    caching : {"none", "prefix", "dual"}
    """

    def __init__(
        self,
        tau: float = 0.9,
        block: int = 16,
        tau_d: float = 0.3,
        window: str = "code",
        delimiters: tuple[str, ...] | list[str] = ("\n",),
        caching: str = "none",
    ):
        if window not in ("code", "paper"):
            raise UserError(f"adablock: window {window!r} is neither code nor paper; mend its params")
        self.tau, self.block, self.tau_d, self.window = tau, block, tau_d, window
        self.delimiters, self.caching = list(delimiters), caching

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with the threshold strategy and these blocks."""
        ids = {number for text in self.delimiters for number in model.encode(text).tolist()}
        return BlockSampler(model, AtLeast(self.tau), self.block, self.caching, size=lambda *at: self.size(ids, *at))

    def size(self, delimiters: set[int], rest: View, done: int, limit: int) -> int:
        """Length of the next block, given a view of all positions from its beginning on."""
        left = limit - done
        w = min(int(0.25 * limit) if self.window == "code" else max(1, int(0.25 * done)), left)
        places = [j for j, token in enumerate(rest.tokens[:w].tolist()) if token in delimiters]
        if places:
            j = max(places, key=lambda place: float(rest.confidence[place]))  # the first among equals
            if rest.confidence[j] >= self.tau_d:
                return j + 1
        return min(self.block, left)
