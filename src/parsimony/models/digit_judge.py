"""A classifier of handwritten digits, which judges what methods make of them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

CLASSES = 10


class Judge(nn.Module):
    """A small convolutional classifier with 32 features."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, CLASSES)

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """A trained classifier, ready to look."""
        weights, network = load_file(folder / "judge.safetensors"), cls()
        network.load_state_dict({name: weights[name] for name in network.state_dict()})
        return network.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, 32] of images [B, 28, 28] with values 0 to 1."""
        return self.body(images[:, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
