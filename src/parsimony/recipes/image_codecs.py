"""Small variational image codecs at several rates and from several seeds, trained on the photographs of packages."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cbook import get_sample_data
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor

from parsimony import devices
from parsimony.assets.photographs import crops
from parsimony.errors import UserError
from parsimony.methods.image.vae_codec import LatentCodec
from parsimony.models.image_codecs import CodecNetwork
from parsimony.models.latent_coding import ImageCodec, Tables, export
from parsimony.recipes.training import schedule


def train(
    out: Path, inputs: dict[str, Path], data: list[str], N: int, M: int, K: int, lambdas: list[float], base: int,
    seeds: int, updates: int, seed_updates: int, tuning: int, batch: int, side: int, rate: float, gain: float,
    floors: list[float], most_bits: list[float],
):  # fmt: skip
    """Train one architecture and write ``codecs.safetensors`` with networks ``rate_<r>_seed_<s>``.

    The trade-off ``base`` is trained from every seed; the others start from its first network and are tuned.

    Parameters
    ----------
    data : list of str
        Assets of photographs, of which the squares to train on are used.
    N, M, K : int
        Channels, as in `CodecNetwork`.
    lambdas : list of float
        Weight of 255^2 times the mean squared error, against bits a pixel; rate 1 is the first.
    updates, seed_updates, tuning : int
        For the first network, for that of another seed, and for another rate.
    gain : float
        By which latents are multiplied, so that rounding begins with steps of 1 / gain; see `CodecNetwork.fold`.
    floors, most_bits : list of float
        Least PSNR and most bits a pixel of each rate's real streams of a photograph that nothing is trained on.

    Raises
    ------
    UserError
        When a network is below its floor, or rates and qualities do not rise with lambda.
    """
    squares = torch.from_numpy(np.concatenate([crops(inputs[key], "train")[1] for key in data])).permute(0, 3, 1, 2)
    pictures = squares[:MOST_COMPONENTS].float() / 255
    settings, networks = dict(batch=batch, side=side, rate=rate), {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        network = CodecNetwork(N, M, K)
        network.gain = gain
        principal(network, pictures)
        steps = seed_updates if seed else updates
        networks[f"rate_{base}_seed_{seed}"] = fit(network, squares, lambdas[base - 1], steps, seed, **settings)
    for r, lagrangian in enumerate(lambdas, 1):
        if r != base:
            network = deepcopy(networks[f"rate_{base}_seed_0"])
            networks[f"rate_{r}_seed_0"] = fit(network, squares, lagrangian, tuning, 100 + r, **settings)
    arrays = {}
    for name, network in networks.items():
        network.cpu().fold()
        arrays |= export(network, name)
    if K:
        arrays |= {f"gaussians.{key}": array for key, array in Tables.of_gaussians().arrays().items()}
    names = dict.fromkeys(sorted(networks), {"N": N, "M": M, "K": K})
    save_file(arrays, out / "codecs.safetensors", {"networks": json.dumps(names)})
    found = []
    for r, (floor, most) in enumerate(zip(floors, most_bits, strict=True), 1):
        for seed in range(seeds if r == base else 1):
            name = f"rate_{r}_seed_{seed}"
            psnr, bits = quality(ImageCodec.load(out, name))
            reached = f"{name}: {psnr:.2f} dB at {bits:.3f} bits a pixel"
            print(reached, flush=True)
            if psnr < floor or bits > most:
                raise UserError(f"{reached}; it must have {floor} dB at {most} bits or less")
            found += [(psnr, bits)] if seed == 0 else []
    if not (np.diff(np.array(found), axis=0) > 0).all():
        raise UserError(f"rates and qualities of the trade-offs do not rise with lambda: {found}")


MOST_COMPONENTS = 256
"""Squares from which networks take the components that they begin with."""


@torch.no_grad()
def principal(network: CodecNetwork, x: Tensor) -> None:
    """Let each layer begin as principal components of 2 by 2 blocks of the one before it, and synthesis as the inverse.

    Thousands of updates from random weights do not reach what this linear transform of images [n, 3, H, W] does.  The
    components are those of images drawn with replacement, in random order, so that seeds begin at other places.
    """
    x = x[torch.randint(len(x), (len(x),))]
    for down, up in zip(network.g_a[::2], reversed(network.g_s[::2]), strict=True):
        mean = x.mean((0, 2, 3))
        blocks = F.pixel_unshuffle(x - mean[:, None, None], 2)  # [n, 4 C, H / 2, W / 2]
        covariance = torch.cov(blocks.transpose(0, 1).flatten(1))
        V = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : down.out_channels]  # [4 C, k]
        V = V[:, torch.randperm(V.shape[1])]
        kernels = V.T.unflatten(1, (-1, 2, 2))  # [k, C, 2, 2]
        k = len(kernels)
        # Taps 2 and 3 of five are the block itself.  Channels beyond k, of random weights, take no part yet.
        down.weight[:k] = F.pad(kernels, (2, 1, 2, 1))
        down.bias[:k] = -kernels.sum((2, 3)) @ mean
        up.weight[:k] = F.pad(kernels, (2, 1, 2, 1))
        up.bias[:] = mean
        x = F.pad(down(x)[:, :k], (0, 0, 0, 0, 0, down.out_channels - k))


def fit(network: CodecNetwork, squares: Tensor, lagrangian: float, updates: int, seed: int, batch: int, side: int,
        rate: float) -> CodecNetwork:  # fmt: skip
    """Minimise lambda 255^2 MSE + bits a pixel with Adam; the prior's quantiles are fitted by an Adam of their own."""
    rng, began = np.random.default_rng(seed), perf_counter()
    network.to(devices.held()[0])
    torch.manual_seed(seed)
    quantiles = [network.prior.quantiles]
    weights = [p for name, p in network.named_parameters() if name != "prior.quantiles"]
    optimiser = torch.optim.Adam(weights, lr=rate, betas=(0.9, 0.99))
    auxiliary = torch.optim.Adam(quantiles, lr=10 * rate)
    for n in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = rate * schedule(n, updates)
        x = drawn(squares, batch, side, rng).to(devices.held()[0])
        x_hat, bits = network(x)
        error, bits = 255**2 * (x - x_hat).square().mean(), bits / (batch * side * side)
        optimiser.zero_grad()
        (lagrangian * error + bits).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        auxiliary.zero_grad()
        network.prior.quantile_loss().backward()
        auxiliary.step()
        if (n + 1) % 250 == 0 or n + 1 == updates:
            psnr, spent = 10 * np.log10(255**2 / error.item()), perf_counter() - began
            what = f"{psnr:.2f} dB, {bits.item():.3f} bits a pixel, {spent:.0f} s"
            print(f"lambda {lagrangian}, seed {seed}, update {n + 1}/{updates}: {what}", flush=True)
    return network


def drawn(squares: Tensor, batch: int, side: int, rng: np.random.Generator) -> Tensor:
    """Windows [batch, 3, side, side] of squares [n, 3, 256, 256] uint8 with values 0 to 1, turned and mirrored."""
    windows = []
    for square in rng.integers(len(squares), size=batch):
        y, x = rng.integers(squares.shape[2] - side + 1, size=2)
        window = squares[square, :, y : y + side, x : x + side]
        window = window.flip(2) if rng.integers(2) else window
        windows.append(window.transpose(1, 2) if rng.integers(2) else window)
    return torch.stack(windows).float() / 255


def quality(codec: ImageCodec) -> tuple[float, float]:
    """PSNR and bits a pixel of a real stream of the photograph that comes with matplotlib, at half its size."""
    with Image.open(get_sample_data("grace_hopper.jpg")) as picture:
        x = np.asarray(picture.convert("RGB").reduce(2))[:256, :256]
    coder = LatentCodec(codec, [slice(0, codec.network.M)])
    data = coder.encode(x)
    error = np.mean((coder.decode(data).astype(float) - x) ** 2)
    return float(10 * np.log10(255**2 / error)), 8 * len(data) / (x.shape[0] * x.shape[1])
