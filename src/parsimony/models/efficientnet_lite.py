"""EfficientNet-Lite0: an ImageNet classifier (Liu, 2020; EfficientNet: Tan and Le, 2019, arXiv 1905.11946).

The Lite form of B0 leaves out squeeze-and-excitation and takes ReLU6 for swish, and neither stem nor head is scaled.
Its features also serve as a deep similarity, `feature_distance`, in the manner of LPIPS (Zhang et al., 2018, arXiv
1801.03924) but without weights learnt from people's judgements, so it is not LPIPS and must not be called so.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SIDE = 224
CLASSES = 1000
STAGES = ((1, 16, 1, 1, 3), (2, 24, 2, 6, 3), (2, 40, 2, 6, 5), (3, 80, 2, 6, 3), (3, 112, 1, 6, 5), (4, 192, 2, 6, 5),
          (1, 320, 1, 6, 3))  # fmt: skip
"""Blocks, channels, stride of the first block, expansion and kernel of each stage."""
TAPS = (0, 1, 2, 4, 6)
"""Stages whose outputs are features: the last of each resolution."""


class Block(nn.Module):
    """Inverted residual: expand 1 by 1, depthwise k by k, project 1 by 1 without an activation."""

    def __init__(self, inside: int, out: int, stride: int, expansion: int, kernel: int):
        super().__init__()
        wide = inside * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(inside, wide, 1, bias=False), _norm(wide)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = nn.Conv2d(wide, out, 1, bias=False), _norm(out)
        self.expands, self.adds = expansion > 1, stride == 1 and inside == out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """The network; parameters are named as in the checkpoint.

    Images are [B, 3, H, W] with values 0 to 255, of any size for `features`.
    """

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), _norm(32)
        self._blocks, self.ends, width = nn.ModuleList(), [], 32
        for blocks, out, stride, expansion, kernel in STAGES:
            for n in range(blocks):
                self._blocks.append(Block(width, out, stride if n == 0 else 1, expansion, kernel))
                width = out
            self.ends.append(len(self._blocks) - 1)
        self._conv_head, self._bn1 = nn.Conv2d(width, 1280, 1, bias=False), _norm(1280)
        self._fc = nn.Linear(1280, CLASSES)

    @classmethod
    def load(cls, folder: Path) -> EfficientNetLite:
        """The network of an asset that `convert` made, ready to classify."""
        network = cls()
        network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        return network.eval().requires_grad_(False)

    @classmethod
    def random(cls, seed: int = 0) -> EfficientNetLite:
        """The network with random weights (He et al., 2015): what its form alone tells of images."""
        network, generator = cls(), torch.Generator().manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        return network.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Outputs [B, c, h, w] of the stages of `TAPS`."""
        x = F.relu6(self._bn0(self._conv_stem((images - 127) / 128)))
        found, taps = [], {self.ends[n] for n in TAPS}
        for n, block in enumerate(self._blocks):
            x = block(x)
            if n in taps:
                found.append(x)
        return found

    def head(self, last: Tensor) -> Tensor:
        """Logits [B, 1000] from the last of the features."""
        return self._fc(F.relu6(self._bn1(self._conv_head(last))).mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)[-1])


def feature_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Distance [B] of images' features: squared difference of unit vectors, mean over places, then over stages.

    0 for equal images; 4 at most, for features that oppose each other everywhere.
    """
    each = [(_unit(x) - _unit(y)).square().sum(1).mean((1, 2)) for x, y in zip(first, second, strict=True)]
    return torch.stack(each).mean(0)


def convert(out: Path, inputs: dict[str, Path], checkpoint: str) -> None:
    """The package's checkpoint as safetensors."""
    (file,) = inputs[checkpoint].glob("*.pth")
    weights = torch.load(file, map_location="cpu", weights_only=True)
    network = EfficientNetLite()
    network.load_state_dict(weights)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, out / "model.safetensors")


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
