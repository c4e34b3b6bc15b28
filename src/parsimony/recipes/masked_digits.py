"""A MaskGIT-style generator of handwritten digits, its tokenizer, and a classifier that judges what it makes."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from parsimony.benchmarks.digits import Judge
from parsimony.errors import UserError
from parsimony.models.masked_image import (
    CLASSES,
    CODES,
    FIRST_CLASS,
    MASK,
    NO_CLASS,
    SIDE,
    VOCABULARY,
    MaskedImage,
    VectorQuantiser,
)
from parsimony.recipes.task_mix import schedule

HELD_OUT = 1000
"""Digits on which floors are checked; the file is shuffled first, its order is by class."""
BATCH = 128


def digits(folder: Path) -> tuple[Tensor, Tensor]:
    """Images [5000, 28, 28] with values 0 to 1 and their classes, shuffled; the last `HELD_OUT` are not trained on."""
    with gzip.open(folder / "mnist_5k.csv.gz", "rt") as file:
        table = np.array([[int(float(cell)) for cell in row] for row in csv.reader(file)])
    table = table[np.random.default_rng(0).permutation(len(table))]
    return torch.from_numpy(table[:, :-1]).float().view(-1, 28, 28) / 255, torch.from_numpy(table[:, -1])


def judge(out: Path, inputs: dict[str, Path], data: str, updates: int, floor: float, seed: int):
    """Train the judge; writes it with mean and covariance of its features of the digits held out.

    Raises
    ------
    UserError
        When it is right on less than ``floor`` of them.
    """
    images, classes = digits(inputs[data])
    network = judge_of(images[:-HELD_OUT], classes[:-HELD_OUT], updates, seed)
    with torch.no_grad():
        features = network.eval().features(images[-HELD_OUT:])
        right = float((network.head(features).argmax(-1) == classes[-HELD_OUT:]).float().mean())
    print(f"right on {right:.3f} of the digits held out", flush=True)
    if right < floor:
        raise UserError(f"the judge is right on {right:.3f} of the digits held out; it must be on {floor}")
    about = {"mean": features.mean(0), "covariance": torch.cov(features.T)}
    save_file({**network.state_dict(), **about}, out / "judge.safetensors")


def judge_of(images: Tensor, classes: Tensor, updates: int, seed: int) -> Judge:
    """A judge trained on images [N, 28, 28], moved by up to two pixels, and their classes [N]."""
    torch.manual_seed(seed)
    network, rng = Judge(), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for n in range(updates):
        at = torch.from_numpy(rng.integers(0, len(images), BATCH))
        moved = images[at].roll(tuple(int(m) for m in rng.integers(-2, 3, 2)), (1, 2))
        step(optimiser, F.cross_entropy(network(moved), classes[at]), 2e-3, n, updates)
    return network


def quantise(out: Path, inputs: dict[str, Path], data: str, judge: str, updates: int, floor: float, seed: int):
    """Train the tokenizer (VQ-VAE with a codebook moved by its own loss; unused codes are given encodings at hand).

    Raises
    ------
    UserError
        When the judge is right on less than ``floor`` of the reconstructed digits held out.
    """
    torch.manual_seed(seed)
    images, classes = digits(inputs[data])
    network, rng = VectorQuantiser(), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    used = torch.zeros(CODES)
    for n in range(updates):
        x = images[torch.from_numpy(rng.integers(0, len(images) - HELD_OUT, BATCH))]
        z = network.encoder(x[:, None])
        codes = network.codes(z)
        quantised = F.embedding(codes, network.codebook).transpose(1, 2).unflatten(2, (SIDE, SIDE))
        through = z + (quantised - z).detach()
        loss = F.binary_cross_entropy_with_logits(network.decoder(through)[:, 0], x)
        loss = loss + F.mse_loss(quantised, z.detach()) + 0.25 * F.mse_loss(z, quantised.detach())
        step(optimiser, loss, 2e-3, n, updates)
        used += torch.bincount(codes.flatten(), minlength=CODES)
        if n % 50 == 49 and n < updates // 2:
            dead = (used == 0).nonzero()[:, 0]
            flat = z.detach().transpose(0, 1).flatten(1).T
            with torch.no_grad():
                network.codebook[dead] = flat[torch.from_numpy(rng.integers(0, len(flat), len(dead)))]
            used.zero_()
    weights = load_file(inputs[judge] / "judge.safetensors")
    judging = Judge()
    judging.load_state_dict({name: weights[name] for name in judging.state_dict()})
    with torch.no_grad():
        codes = network.eval().encode(images[-HELD_OUT:])
        seen = judging.eval()(network.decode(codes)).argmax(-1)
    right = float((seen == classes[-HELD_OUT:]).float().mean())
    print(f"judge right on {right:.3f} of reconstructions; {len(codes.unique())} codes used", flush=True)
    if right < floor:
        raise UserError(f"the judge is right on {right:.3f} of the reconstructed digits; it must be on {floor}")
    save_file(network.state_dict(), out / "quantiser.safetensors")


def generate(
    out: Path, inputs: dict[str, Path], data: str, quantiser: str, judge: str, hidden: int, layers: int, heads: int,
    updates: int, rate: float, floor: float, seed: int,
):  # fmt: skip
    """Train the masked transformer: a share cos(pi u / 2) of the codes is masked, u ~ U(0, 1), and predicted.

    One image in ten is trained without its class, for classifier-free guidance.

    Raises
    ------
    UserError
        When the judge sees the class in less than ``floor`` of generated digits (16 full steps).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from parsimony.methods.diffusion.recap import Recap, RecapSampler

    torch.manual_seed(seed)
    images, classes = digits(inputs[data])
    coder, rng = VectorQuantiser(), np.random.default_rng(seed)
    coder.load_state_dict(load_file(inputs[quantiser] / "quantiser.safetensors"))
    with torch.no_grad():
        codes = coder.eval().encode(images)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=8 * hidden // 3 // 16 * 16,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=64,
        tie_word_embeddings=True, rope_theta=100.0,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.03)
    everything = torch.zeros(1, 1, SIDE**2 + 1, SIDE**2 + 1)
    for n in range(updates):
        at = torch.from_numpy(rng.integers(0, len(images) - HELD_OUT, BATCH))
        shown = codes[at]
        share = np.cos(np.pi / 2 * (rng.permutation(BATCH) + rng.random(BATCH)) / BATCH)
        masked = torch.from_numpy(rng.random(shown.shape) < share[:, None])
        masked[:, int(rng.integers(SIDE**2))] = True
        free = torch.from_numpy(rng.random(BATCH) < 0.1)
        named = torch.where(free, NO_CLASS, classes[at] + FIRST_CLASS)
        ids = torch.cat((named[:, None], shown.where(~masked, torch.tensor(MASK))), 1)
        logits = network(input_ids=ids, attention_mask=everything, use_cache=False).logits[:, 1:, :CODES]
        loss = F.cross_entropy(logits[masked], shown[masked], label_smoothing=0.05)
        step(optimiser, loss, rate, n, updates)
        if (n + 1) % 100 == 0:
            print(f"update {n + 1}/{updates}: loss {loss.item():.4f}", flush=True)
    weights = {name: tensor.half() for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, out / "model.safetensors")
    save_file(coder.state_dict(), out / "quantiser.safetensors")
    (out / "config.json").write_text(json.dumps(config.to_dict(), indent=1, default=str) + "\n")
    stored = load_file(inputs[judge] / "judge.safetensors")
    judging = Judge()
    judging.load_state_dict({name: stored[name] for name in judging.state_dict()})
    wanted = torch.arange(CLASSES).repeat_interleave(20)
    made, _ = RecapSampler(MaskedImage.load(out, "float32"), Recap(local=0)).generate_images(wanted, rng)
    with torch.no_grad():
        right = float((judging.eval()(made).argmax(-1) == wanted).float().mean())
    print(f"the judge sees the class in {right:.3f} of generated digits", flush=True)
    if right < floor:
        raise UserError(f"the judge sees the class in {right:.3f} of generated digits; it must in {floor}")


def step(optimiser, loss: Tensor, rate: float, n: int, updates: int) -> None:
    """One update with a warm-up and a cosine."""
    for group in optimiser.param_groups:
        group["lr"] = rate * schedule(n, updates)
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
    optimiser.step()
