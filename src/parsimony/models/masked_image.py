"""A masked image generator as the methods receive it: bidirectional network over codes, and the codes' decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from parsimony.models.decoder import Decoder
from parsimony.models.digit_judge import CLASSES
from parsimony.models.language import DTYPES

CODES = 64
SIDE = 7
"""Codes a row and a column of an image of 28 by 28 pixels."""
MASK = CODES
FIRST_CLASS = CODES + 1
NO_CLASS = FIRST_CLASS + CLASSES
VOCABULARY = NO_CLASS + 1


class VectorQuantiser(nn.Module):
    """VQ-VAE of 28 by 28 grey images with 7 by 7 codes (van den Oord et al., arXiv 1711.00937)."""

    def __init__(self, width: int = 64, code: int = 8):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, code, 1),
        )  # fmt: skip
        self.codebook = nn.Parameter(torch.randn(CODES, code))
        self.decoder = nn.Sequential(
            nn.Conv2d(code, width, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(width // 2, 1, 4, 2, 1),
        )  # fmt: skip

    def codes(self, z: Tensor) -> Tensor:
        """Nearest codes [B, 49] of encodings [B, c, 7, 7]."""
        flat = z.flatten(2).transpose(1, 2)
        return torch.cdist(flat, self.codebook[None].expand(len(z), -1, -1)).argmin(-1)

    def encode(self, images: Tensor) -> Tensor:
        """Codes [B, 49] of images [B, 28, 28] with values 0 to 1."""
        return self.codes(self.encoder(images[:, None]))

    def decode(self, codes: Tensor) -> Tensor:
        """Images [B, 28, 28] with values 0 to 1 of codes [B, 49]."""
        z = F.embedding(codes, self.codebook).transpose(1, 2).unflatten(2, (SIDE, SIDE))
        return self.decoder(z)[:, 0].sigmoid()


@dataclass
class MaskedImage:
    """A loaded masked image generator.

    A sequence is a class token and the image's codes, row by row; ids are codes, the mask, classes, no class.

    Attributes
    ----------
    decoder : Decoder
        Without a causal mask.
    quantiser : VectorQuantiser
    """

    decoder: Decoder
    quantiser: VectorQuantiser

    @classmethod
    def load(cls, folder: Path, dtype: str) -> MaskedImage:
        """Load the network in ``dtype`` and the codes' decoder in float32."""
        folder = Path(folder)
        quantiser = VectorQuantiser()
        quantiser.load_state_dict(load_file(folder / "quantiser.safetensors"))
        return cls(Decoder.load(folder, DTYPES[dtype], causal=False), quantiser.eval())

    @torch.no_grad()
    def images(self, codes: Tensor) -> Tensor:
        """Images [B, 28, 28] of codes [B, 49]."""
        return self.quantiser.decode(codes)
