"""A MaskGIT-style generator of handwritten digits and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from parsimony.assets.mnist import HELD_OUT, digits
from parsimony.errors import UserError
from parsimony.models.digit_judge import CLASSES, Judge
from parsimony.models.masked_image import (
    CODES,
    FIRST_CLASS,
    MASK,
    NO_CLASS,
    SIDE,
    VOCABULARY,
    MaskedImage,
    VectorQuantiser,
)
from parsimony.recipes.training import fit, step

BATCH = 128


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
        step(network, loss, 2e-3, n, updates, optimiser)
        used += torch.bincount(codes.flatten(), minlength=CODES)
        if n % 50 == 49 and n < updates // 2:
            dead = (used == 0).nonzero()[:, 0]
            flat = z.detach().transpose(0, 1).flatten(1).T
            with torch.no_grad():
                network.codebook[dead] = flat[torch.from_numpy(rng.integers(0, len(flat), len(dead)))]
            used.zero_()
    with torch.no_grad():
        codes = network.eval().encode(images[-HELD_OUT:])
        seen = Judge.load(inputs[judge])(network.decode(codes)).argmax(-1)
    right = float((seen == classes[-HELD_OUT:]).float().mean())
    print(f"judge right on {right:.3f} of reconstructions; {len(codes.unique())} codes used", flush=True)
    if right < floor:
        raise UserError(f"the judge is right on {right:.3f} of the reconstructed digits; it must be on {floor}")
    save_file(network.state_dict(), out / "quantiser.safetensors")


def generate(
    out: Path, inputs: dict[str, Path], data: str, quantiser: str, judge: str, hidden: int, layers: int, heads: int,
    updates: int, batch: int, rate: float, floor: float, seed: int,
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
    everything = torch.zeros(1, 1, SIDE**2 + 1, SIDE**2 + 1)

    def loss() -> Tensor:
        at = torch.from_numpy(rng.integers(0, len(images) - HELD_OUT, batch))
        shown = codes[at]
        share = np.cos(np.pi / 2 * (rng.permutation(batch) + rng.random(batch)) / batch)
        masked = torch.from_numpy(rng.random(shown.shape) < share[:, None])
        masked[:, int(rng.integers(SIDE**2))] = True
        free = torch.from_numpy(rng.random(batch) < 0.1)
        named = torch.where(free, NO_CLASS, classes[at] + FIRST_CLASS)
        ids = torch.cat((named[:, None], shown.where(~masked, torch.tensor(MASK))), 1)
        logits = network(input_ids=ids, attention_mask=everything, use_cache=False).logits[:, 1:, :CODES]
        return F.cross_entropy(logits[masked], shown[masked], label_smoothing=0.05)

    fit(network, loss, updates, rate)
    weights = {name: tensor.half() for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, out / "model.safetensors")
    save_file(coder.state_dict(), out / "quantiser.safetensors")
    (out / "config.json").write_text(json.dumps(config.to_dict(), indent=1, default=str) + "\n")
    wanted = torch.arange(CLASSES).repeat_interleave(20)
    made, _ = RecapSampler(MaskedImage.load(out, "float32"), Recap(local=0)).generate_images(wanted, rng)
    with torch.no_grad():
        right = float((Judge.load(inputs[judge])(made).argmax(-1) == wanted).float().mean())
    print(f"the judge sees the class in {right:.3f} of generated digits", flush=True)
    if right < floor:
        raise UserError(f"the judge sees the class in {right:.3f} of generated digits; it must in {floor}")
