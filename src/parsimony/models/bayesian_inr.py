"""Bayesian implicit neural representations of image patches (RECOMBINER, arXiv 2309.17182, section 3; official code).

A patch of P x P pixels is a network from coordinates to colours.  What is particular to the patch are latents with
Gaussian posteriors: h_l [n_l] for each layer l, whose weights are h_l A_l, and a small grid z that a convolutional
network spreads over the pixels.  The matrices A_l, that network and the priors are shared by all patches.  In images
of many patches h is a sum of the patch's own, one of its group's and one of the image's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from parsimony.errors import UserError
from parsimony.models import exact

FREQUENCY = 30.0
"""w0 of the activation sin(w0 x)."""
CELL = 16
"""Pixels a side that a cell of the latent grid stands for: the network up-samples by 4, 2 and 2."""
LEAK = 0.01


@dataclass(frozen=True)
class Layout:
    """Sizes of a patch's network.

    Attributes
    ----------
    patch : int
        P, pixels a side; a multiple of `CELL`.
    fourier : int
        Fourier features, a multiple of 4: cosine and sine along each axis at 1, 2, 4, ... half-waves a patch.
    channels : int
        Positional channels that the up-sampling network makes of the latent grid.
    latent, up : int
        Channels of the latent grid, and of the up-sampling network behind its first convolution.
    hidden, layers : int
        Width and number of the hidden layers.
    group : int
        Patches a side of a group, the second level of the hierarchy.
    """

    patch: int = 16
    fourier: int = 8
    channels: int = 8
    latent: int = 16
    up: int = 8
    hidden: int = 16
    layers: int = 2
    group: int = 2

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer."""
        widths = [self.fourier + self.channels, *[self.hidden] * self.layers, 3]
        return list(zip(widths[:-1], widths[1:], strict=True))

    @property
    def counts(self) -> list[int]:
        """n_l = outputs * (inputs + 1)."""
        return [outputs * (inputs + 1) for inputs, outputs in self.sizes]

    @property
    def weights(self) -> int:
        """Length n of h."""
        return sum(self.counts)

    @property
    def total(self) -> int:
        """Length n + Z of a patch's latents: h, then the grid."""
        return self.weights + self.latent * (self.patch // CELL) ** 2

    def features(self) -> np.ndarray:
        """Fourier features [P^2, fourier] float64 of the pixels' centres, which lie in (-1, 1)."""
        centres = (2 * np.arange(self.patch) + 1) / self.patch - 1
        y, x = (axis.ravel() for axis in np.meshgrid(centres, centres, indexing="ij"))
        turns = [np.pi * 2.0**k * axis for k in range(self.fourier // 4) for axis in (y, x)]
        return np.stack([exact.sine(t + shift) for t in turns for shift in (np.pi / 2, 0.0)], 1)

    def owners(self, rows: int, columns: int, levels: int) -> list[np.ndarray]:
        """For each level, which of its members each of rows * columns patches belongs to, in reading order."""
        r, c = (axis.ravel() for axis in np.indices((rows, columns)))
        across = -(-columns // self.group)
        every = [np.arange(rows * columns), r // self.group * across + c // self.group, 0 * r]
        return every[:levels]


class Network(nn.Module):
    """What patches share: the matrices A_l (None: the identity) and the up-sampling network."""

    def __init__(self, layout: Layout, mapped: bool = True):
        super().__init__()
        self.layout = layout
        maps = [torch.empty(n, n).uniform_(-1 / n, 1 / n) for n in layout.counts] if mapped else []
        self.maps = nn.ParameterList(maps)
        shapes = [(layout.latent, layout.up, 5), (layout.up, layout.up, 3), (layout.up, layout.channels, 3)]
        self.up = nn.ModuleList(nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in shapes)
        self.register_buffer("features", torch.from_numpy(layout.features()).float(), persistent=False)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Colours [B, P^2, 3] of latents h [B, n] and z [B, Z]."""
        at, B = self.layout, len(h)
        x = z.view(B, at.latent, at.patch // CELL, -1)
        for n, convolution in enumerate(self.up):
            x = convolution(F.interpolate(x, scale_factor=2 if n else 4))
            x = F.leaky_relu(x, LEAK) if n < 2 else x
        x = torch.cat((self.features.expand(B, -1, -1), x.flatten(2).transpose(1, 2)), 2)
        for n, (part, size) in enumerate(zip(h.split(at.counts, 1), at.sizes, strict=True)):
            flat = part @ self.maps[n] if self.maps else part
            x = torch.baddbmm(flat[:, None, : size[1]], x, flat[:, size[1] :].view(B, *size))
            x = torch.sin(FREQUENCY * x) if n < at.layers else x
        return x


def colours(layout: Layout, shared: dict[str, np.ndarray], h: np.ndarray, z: np.ndarray) -> np.ndarray:
    """What `Network.forward` computes, in float64 and in a fixed order, so that every decoder agrees.

    Parameters
    ----------
    shared : dict
        State of the network as float64 arrays.
    h : ndarray [R, n] float64
    z : ndarray [R, Z] float64

    Returns
    -------
    ndarray [R, P, P, 3] float64
    """
    R, P = len(h), layout.patch
    x = z.reshape(R, layout.latent, P // CELL, P // CELL)
    for n in range(3):
        x = x.repeat(2 if n else 4, 2).repeat(2 if n else 4, 3)
        x = exact.convolve(x, shared[f"up.{n}.weight"], shared[f"up.{n}.bias"])
        x = np.where(x < 0, LEAK * x, x) if n < 2 else x
    features = np.broadcast_to(layout.features(), (R, P * P, layout.fourier))
    x = np.concatenate((features, x.reshape(R, -1, P * P).transpose(0, 2, 1)), 2)
    layers, first = [], 0
    for n, (inputs, outputs) in enumerate(layout.sizes):
        count = layout.counts[n]
        flat = h[:, first : first + count]
        if f"maps.{n}" in shared:
            flat = exact.affine(flat, shared[f"maps.{n}"], np.zeros(count))
        layers.append((flat[:, outputs:].reshape(R, inputs, outputs), flat[:, :outputs]))
        first += count
    return exact.sine_network(x, layers, FREQUENCY).reshape(R, P, P, 3)


class Posterior:
    """Diagonal Gaussians over the latents of the patches of one or many images, level by level.

    Attributes
    ----------
    means, rhos : list of Tensor [members of the level, D]
        The standard deviation is softplus(rho) / 6.
    owners : list of Tensor [R] int64
        Which member of each level a patch belongs to.
    held : list of Tensor [members, D]
        Values that are coded already; NaN where there is none yet.
    """

    def __init__(self, layout: Layout, means: list[Tensor], stds: list[Tensor], owners: list[np.ndarray]):
        self.layout = layout
        self.means = [mean.clone().requires_grad_() for mean in means]
        self.rhos = [torch.expm1(6 * std.double()).log().float().requires_grad_() for std in stds]
        self.owners = [torch.from_numpy(owner) for owner in owners]
        self.held = [torch.full_like(mean, torch.nan, requires_grad=False) for mean in means]

    @classmethod
    def initial(cls, layout: Layout, owners: list[np.ndarray]) -> Posterior:
        """As learning begins: weights uniform within sqrt(6 / 32) / 30, grids 0.1 N(0, 1), rho -4."""
        bound, means = (6 / 32) ** 0.5 / 30, []
        for level, owner in enumerate(owners):
            means.append(torch.empty(owner.max() + 1, layout.weights).uniform_(-bound, bound))
            if level == 0:
                means[0] = torch.cat((means[0], 0.1 * torch.randn(len(owner), layout.total - layout.weights)), 1)
        spread = F.softplus(torch.tensor(-4.0)) / 6
        return cls(layout, means, [torch.full_like(mean, spread) for mean in means], owners)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.means, *self.rhos]

    def stds(self) -> list[Tensor]:
        return [F.softplus(rho) / 6 for rho in self.rhos]

    def draw(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sampled h [samples * R, n] and z [samples * R, Z]; values that are held stay; no samples: the mean."""
        for level, (mean, std) in enumerate(zip(self.means, self.stds(), strict=True)):
            noise = torch.randn(max(samples, 1), *mean.shape, generator=generator)
            values = mean + std * noise if samples else mean[None]
            held = self.held[level]
            values = torch.where(held.isnan(), values, held)
            if level == 0:
                latents = values.flatten(0, 1)
            else:
                sums = latents[:, : self.layout.weights] + values[:, self.owners[level]].flatten(0, 1)
                latents = torch.cat((sums, latents[:, self.layout.weights :]), 1)
        return latents.split([self.layout.weights, self.layout.total - self.layout.weights], 1)


@dataclass
class Level:
    """The prior over the latents of one level and how they are parted into blocks.

    Attributes
    ----------
    mean, std : Tensor [D] float32
    spread : Tensor [D] float32
        Standard deviation of posteriors, averaged over the training set: where an encoder begins.
    block : Tensor [D] int64
        Block of each latent.
    """

    mean: Tensor
    std: Tensor
    spread: Tensor
    block: Tensor

    @property
    def blocks(self) -> int:
        return int(self.block.max()) + 1


@dataclass
class Prior:
    """Everything that encoder and decoder share at one rate.

    Attributes
    ----------
    levels : list of Level
        Of patches; or of patches, groups of patches and images.
    bits : int
        Bits a block.
    beta : float
        Weight of the KL divergence (in bits) at the end of learning: where an encoder begins.
    nbytes : int
        Size of the file.
    """

    layout: Layout
    network: Network
    levels: list[Level]
    bits: int
    beta: float
    nbytes: int = 0

    def save(self, path: Path) -> None:
        """Write everything, what patches share in half precision."""
        tensors = {f"network.{name}": tensor.half() for name, tensor in self.network.state_dict().items()}
        for n, level in enumerate(self.levels):
            tensors |= {f"level.{n}.{name}": tensor for name, tensor in vars(level).items()}
            tensors[f"level.{n}.block"] = level.block.short()
        facts = {name: getattr(self, name) for name in ("bits", "beta")} | {"layout": asdict(self.layout)}
        save_file(tensors, path, {"prior": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> Prior:
        """Read a prior.

        Raises
        ------
        UserError
            When the file is not there.
        """
        from safetensors import safe_open

        if not path.is_file():
            names = ", ".join(sorted(each.stem for each in path.parent.glob("*.safetensors")))
            raise UserError(f"no prior {path.stem!r} in {path.parent}; there are: {names}")
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["prior"])
        layout = Layout(**facts.pop("layout"))
        network = Network(layout, mapped="network.maps.0" in tensors)
        state = {name.removeprefix("network."): t.float() for name, t in tensors.items() if name.startswith("network.")}
        network.load_state_dict(state)
        levels, n = [], 0
        while f"level.{n}.mean" in tensors:
            level = Level(**{name: tensors[f"level.{n}.{name}"] for name in Level.__dataclass_fields__})
            levels.append(level)
            level.block = level.block.long()
            n += 1
        return cls(layout, network.requires_grad_(False), levels, **facts, nbytes=path.stat().st_size)


def patches_of(images: np.ndarray, patch: int) -> np.ndarray:
    """Patches [B * R, P, P, 3], in reading order, of images [B, H, W, 3] whose sides are multiples of P."""
    B, H, W, C = images.shape
    split = images.reshape(B, H // patch, patch, W // patch, patch, C)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(-1, patch, patch, C)


def image_of(patches: np.ndarray, columns: int) -> np.ndarray:
    """The image [H, W, 3] of its patches [R, P, P, 3]."""
    R, P, _, C = patches.shape
    return patches.reshape(R // columns, columns, P, P, C).swapaxes(1, 2).reshape(R // columns * P, columns * P, C)
