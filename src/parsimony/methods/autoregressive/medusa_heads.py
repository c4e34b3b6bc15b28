"""Medusa-style heads (Cai et al., ICML 2024, arXiv 2401.10774): what prompt tokens are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.token_recycling import top
from parsimony.models.language import Language


class Heads(torch.nn.Module):
    """One residual layer a distance under the model's own output matrix: hidden states [K, D] -> [K, m, D].

    ``h + SiLU(W h + b)`` is the published head's layer; its output matrix, which Medusa trains as well, stays the
    model's own (m * V * D numbers would be as many as the model has).

    Parameters
    ----------
    weight : Tensor [m, D, D]
    bias : Tensor [m, D]
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[:, None] + F.silu(torch.einsum("mij,kj->kmi", self.weight, hidden) + self.bias)


class MedusaHeads:
    """Heads trained beside the prompt tokens, on the same positions and with the same loss; they guess, no more.

    Parameters
    ----------
    ranks : int
        Guesses R that are read from one head.
    """

    def __init__(self, ranks: int = 10):
        self.ranks = ranks

    def build(self, model: Language, inputs: Inputs) -> HeadGuesser:
        """The frozen model with its heads.

        Raises
        ------
        UserError
            When the heads are not as wide as the model.
        """
        found = load_file(inputs.assets["prompt_tokens"] / "heads.safetensors")
        width = found["bias"].shape[1]
        if width != model.decoder.config.hidden:
            raise UserError(
                f"heads of width {width} do not fit a model of width {model.decoder.config.hidden}: name the asset "
                "that was trained for it under 'assets' of configs/method/medusa_heads.yaml"
            )
        weight, bias = (found[name].to(model.decoder.device, model.decoder.dtype) for name in ("weight", "bias"))
        return HeadGuesser(model, Heads(weight, bias), self.ranks)


class HeadGuesser:
    """Guesses tokens from the hidden state of the last real one."""

    def __init__(self, model: Language, heads: Heads, ranks: int):
        self.model, self.heads, self.ranks = model, heads, ranks

    @property
    def trained(self) -> list[Tensor]:
        """Everything that was trained."""
        return list(self.heads.parameters())

    @torch.inference_mode()
    def guess(self, ids: Tensor, cuts: Tensor) -> Tensor:
        """Ranked guesses [K, m, R] of the tokens 2, 3, ..., m + 1 steps behind each of K prefixes of ``ids``."""
        decoder = self.model.decoder
        hidden = decoder.prefill(ids[None], decoder.cache(len(ids)), want="hidden")[0, cuts - 1]
        ahead = self.heads(hidden)  # [K, m, D]
        return top(decoder.logits(ahead.flatten(0, 1)), self.ranks).view(*ahead.shape[:2], -1)
