"""What Learn2PD and dParallel train, from the static decoder's own answers of a masked diffusion model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from parsimony.benchmarks.parallel_bench.tasks import GROUPS, LENGTH, example
from parsimony.errors import UserError
from parsimony.methods.diffusion.learn2pd import BLOCK
from parsimony.recipes.parallel_tasks import MASK, run

BATCH = 64
HELD_OUT = 0.1
"""Share of the prompts (not of the records) on which floors are checked."""


def train_filter(out: Path, inputs: dict[str, Path], model: str, prompts: int, updates: int, rate: float, floor: float,
                 seed: int):  # fmt: skip
    """Learn2PD's filter: replay each static answer with the oracle, and learn which positions it would commit.

    In each pass of the replay the label of a position is whether its prediction (or the token that stands there) is
    that of the static answer; all masked positions with label 1 are committed, and the whole block if no prediction
    has changed.  Labels of committed positions, which are 1, stay in the loss as in the official code.  Full batch,
    AdamW, binary cross-entropy; published: 40,000 epochs.

    Parameters
    ----------
    floor : float
        Least accuracy of the filter on records of held-out prompts.

    Raises
    ------
    UserError
        When it is below the floor.
    """
    torch.manual_seed(seed)
    network, tokenizer = load(inputs[model])
    asked, pads = requests(tokenizer, prompts, seed)
    c, labels, whose = replay(network, asked, pads, static_answers(network, asked, pads))
    held = whose >= prompts * (1 - HELD_OUT)
    layers = nn.Linear(BLOCK, BLOCK), nn.Linear(BLOCK, BLOCK)
    gate = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    optimiser = torch.optim.AdamW(gate.parameters(), lr=rate)
    for n in range(updates):
        loss = F.binary_cross_entropy_with_logits(gate(c[~held]), labels[~held])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (n + 1) % 500 == 0:
            print(f"update {n + 1}/{updates}: loss {loss.item():.4f}", flush=True)
    right = float(((gate(c[held]) > 0) == (labels[held] > 0.5)).float().mean())
    passes = len(c) / prompts
    print(f"accuracy {right:.3f}; the oracle takes {passes:.2f} passes a prompt", flush=True)
    if right < floor:
        raise UserError(f"the filter is right on {right:.3f} of held-out labels; it must be on {floor}")
    weights = {"w1": layers[0].weight, "b1": layers[0].bias, "w2": layers[1].weight, "b2": layers[1].bias}
    weights = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(weights | {"oracle_passes": torch.tensor(passes)}, out / "filter.safetensors")


def distil(out: Path, inputs: dict[str, Path], model: str, prompts: int, updates: int, rate: float, rank: int,
           beta: float, fall: float, seed: int):  # fmt: skip
    """dParallel: LoRA on the model's own static answers with certainty forcing; writes the merged model.

    The block's tokens are masked with probability 1/2 (and 1e-3) in one view, and the others in its complement; the
    loss of each is the cross-entropy at its masks plus ``beta`` times the mean entropy of softmax(logits / 0.5) where
    the prediction is right.  LoRA on all projections of attention and MLP, no dropout, no bias.

    Parameters
    ----------
    fall : float
        Largest share of the mean entropy of right predictions that may be left on held-out answers.

    Raises
    ------
    UserError
        When more is left.
    """
    torch.manual_seed(seed)
    network, tokenizer = load(inputs[model])
    asked, pads = requests(tokenizer, prompts, seed)
    answers = static_answers(network, asked, pads)
    network.requires_grad_(False)
    added = add_lora(network, rank)
    optimiser = torch.optim.AdamW(added, lr=rate, weight_decay=0.01)
    learnt, rng = int(prompts * (1 - HELD_OUT)), np.random.default_rng(seed)
    before = certainty(network, asked[learnt:], pads[learnt:], answers[learnt:])
    for n in range(updates):
        at = torch.from_numpy(rng.choice(learnt, BATCH // 2, replace=False))
        masked = torch.from_numpy(rng.random((len(at), LENGTH))).float() < 0.5 * (1 - 1e-3) + 1e-3
        loss = sum(forced(network, asked[at], pads[at], answers[at], view, beta) for view in (masked, ~masked))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(added, 1.0)
        optimiser.step()
        if (n + 1) % 50 == 0:
            print(f"update {n + 1}/{updates}: loss {loss.item():.4f}", flush=True)
    after = certainty(network, asked[learnt:], pads[learnt:], answers[learnt:])
    print(f"mean entropy of right predictions: {before:.4f} -> {after:.4f} nats", flush=True)
    if beta and after > fall * before:
        raise UserError(
            f"certainty forcing left {after / before:.2f} of the entropy of right predictions; at most {fall} may be"
        )
    merge_lora(network)
    weights = {name: tensor.half() for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, out / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(inputs[model] / name, out / name)


def load(folder: Path):
    """The network for training and its tokenizer."""
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    network = LlamaForCausalLM(LlamaConfig(**json.loads((folder / "config.json").read_text())))
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    network.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    return network.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def requests(tokenizer, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Prompts [n, P] padded on the left and their padding [n], of all tasks in turn; not those of the benchmark."""
    rng = Random(seed + 1_000_003)
    shown = [example(list(GROUPS)[n % len(GROUPS)], rng) for n in range(count)]
    ids = [each.ids for each in tokenizer.encode_batch([each.prompt for each in shown])]
    widest = max(map(len, ids))
    pads = torch.tensor([widest - len(row) for row in ids])
    return torch.tensor([[0] * (widest - len(row)) + row for row in ids]), pads


def block_logits(network, asked: Tensor, pads: Tensor, block: Tensor) -> Tensor:
    """Logits [B, 32, V] of the answers' positions; the mask token's are -inf."""
    logits = run(network, torch.cat((asked, block), 1), pads, causal=False)[:, asked.shape[1] :]
    return logits.index_fill(-1, torch.tensor([MASK]), -torch.inf)


@torch.no_grad()
def static_answers(network, asked: Tensor, pads: Tensor) -> Tensor:
    """Answers [n, 32], one token a pass, the most confident first."""
    done = []
    for prompts, padding in zip(asked.split(BATCH), pads.split(BATCH), strict=True):
        block = torch.full((len(prompts), LENGTH), MASK)
        for _ in range(LENGTH):
            p, tokens = block_logits(network, prompts, padding, block).softmax(-1).max(-1)
            best = p.where(block == MASK, torch.tensor(-1.0)).argmax(-1, keepdim=True)
            block = block.scatter(1, best, tokens.gather(1, best))
        done.append(block)
    return torch.cat(done)


@torch.no_grad()
def replay(network, asked: Tensor, pads: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The oracle's passes: confidences [N, 32], labels [N, 32] and the prompt [N] of each record."""
    records: list[tuple[Tensor, Tensor, Tensor]] = []
    numbers = torch.arange(len(asked))
    for at in numbers.split(BATCH):
        prompts, padding, wanted = asked[at], pads[at], answers[at]
        block, before = torch.full_like(wanted, MASK), torch.full_like(wanted, -1)
        while len(at):
            probs = block_logits(network, prompts, padding, block).softmax(-1)
            tokens = probs.argmax(-1).where(block == MASK, block)
            c = probs.gather(-1, tokens[..., None])[..., 0]
            right = tokens == wanted
            records.append((c, right.float(), at))
            stuck = (tokens == before).all(1, keepdim=True)
            block = wanted.where(right | stuck, block)
            left = (block == MASK).any(1)
            at, prompts, padding, wanted = at[left], prompts[left], padding[left], wanted[left]
            block, before = block[left], tokens[left]
    return tuple(torch.cat(part) for part in zip(*records, strict=True))


def forced(network, asked: Tensor, pads: Tensor, answers: Tensor, masked: Tensor, beta: float) -> Tensor:
    """Cross-entropy at the masks and ``beta`` times the entropy at temperature 1/2 of right predictions there."""
    block = answers.where(~masked, torch.tensor(MASK))
    logits = run(network, torch.cat((asked, block), 1), pads, causal=False)[:, asked.shape[1] :][masked]
    labels = answers[masked]
    p = (logits / 0.5).softmax(-1)
    H = -(p * (p + 1e-12).log()).sum(-1)
    right = logits.argmax(-1) == labels
    return F.cross_entropy(logits, labels) + beta * (H * right).sum() / right.sum().clamp(min=1)


@torch.no_grad()
def certainty(network, asked: Tensor, pads: Tensor, answers: Tensor) -> float:
    """Mean entropy (nats) of right predictions where all is masked."""
    block = torch.full_like(answers, MASK)
    logits = run(network, torch.cat((asked, block), 1), pads, causal=False)[:, asked.shape[1] :]
    p = logits.softmax(-1)
    H, right = -(p * (p + 1e-12).log()).sum(-1), logits.argmax(-1) == answers
    return float((H * right).sum() / right.sum())


class LoRA(nn.Module):
    """``W x + B (A x)``, B = 0 at first; rank and alpha are equal, so that the product is not scaled."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.A), self.B)


def add_lora(network, rank: int) -> list[nn.Parameter]:
    """Put `LoRA` around every projection of every layer; returns what is trained."""
    added = []
    for layer in network.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    wrapped = LoRA(module, rank)
                    setattr(part, name, wrapped)
                    added += [wrapped.A, wrapped.B]
    return added


@torch.no_grad()
def merge_lora(network) -> None:
    """Take the `LoRA` away again, its product added to the weights."""
    for layer in network.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, LoRA):
                    module.base.weight += module.B @ module.A
                    setattr(part, name, module.base)
