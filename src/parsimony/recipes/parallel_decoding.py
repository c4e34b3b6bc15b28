"""What Learn2PD and dParallel train, from the static decoder's own answers of a masked diffusion model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from parsimony.errors import UserError
from parsimony.methods.diffusion.learn2pd import BLOCK
from parsimony.recipes.task_mix import MASK, left_padded, requests, run

GROUPS = 4
"""Groups of questions; answers of a group have one length."""
BATCH = 64
HELD_OUT = 0.1
"""Share of the prompts (not of the records) on which floors are checked."""
CERTAIN = 0.02
"""Nats, mean entropy of a model that leaves nothing to force."""


def answer(out: Path, inputs: dict[str, Path], model: str, mix: list[str], prompts: int, seed: int):
    """Static answers, one token a pass, to requests that no benchmark makes; writes ``answers.safetensors``.

    Parameters
    ----------
    mix : list of str
        What the requests are of (`task_mix.KINDS`).
    """
    network, tokenizer = load(inputs[model])
    found = {}
    for n, asked in enumerate(questions(tokenizer, mix, prompts, seed)):
        asked.answers = static_answers(network, asked)
        found |= {f"{name}.{n}": tensor.int() for name, tensor in vars(asked).items()}
    save_file(found, out / "answers.safetensors")


def train_filter(
    out: Path, inputs: dict[str, Path], model: str, answers: str, updates: int, rate: float, floor: float, seed: int
):
    """Learn2PD's filter: replay each static answer with the oracle, and learn which positions it would commit.

    In each pass of the replay the label of a position is whether its prediction (or the token that stands there) is
    that of the static answer; all masked positions with label 1 are committed, and the whole block if no prediction
    has changed.  Labels of committed positions, which are 1, stay in the loss as in the official code.  Full batch,
    AdamW, binary cross-entropy; published: 40,000 epochs.

    Parameters
    ----------
    answers : str
        What `answer` has made with the same model.
    floor : float
        Least accuracy of the filter on records of held-out prompts.

    Raises
    ------
    UserError
        When it is below the floor.
    """
    torch.manual_seed(seed)
    network, _ = load(inputs[model])
    train, held = [], []
    for asked in answered(inputs[answers]):
        learnt = int(len(asked.prompts) * (1 - HELD_OUT))
        c, labels, whose = replay(network, asked)
        train.append((c[whose < learnt], labels[whose < learnt]))
        held.append((c[whose >= learnt], labels[whose >= learnt]))
    c, labels = (torch.cat(part) for part in zip(*train, strict=True))
    held_c, held_labels = (torch.cat(part) for part in zip(*held, strict=True))
    layers = nn.Linear(BLOCK, BLOCK), nn.Linear(BLOCK, BLOCK)
    gate = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    optimiser = torch.optim.AdamW(gate.parameters(), lr=rate)
    for n in range(updates):
        loss = F.binary_cross_entropy_with_logits(gate(c), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if (n + 1) % 500 == 0:
            print(f"update {n + 1}/{updates}: loss {loss.item():.4f}", flush=True)
    right = float(((gate(held_c) > 0) == (held_labels > 0.5)).float().mean())
    print(f"{len(c)} records; {right:.3f} of the labels held out are right", flush=True)
    if right < floor:
        raise UserError(f"the filter is right on {right:.3f} of held-out labels; it must be on {floor}")
    weights = {"w1": layers[0].weight, "b1": layers[0].bias, "w2": layers[1].weight, "b2": layers[1].bias}
    weights = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(weights, out / "filter.safetensors")


def distil(
    out: Path, inputs: dict[str, Path], model: str, answers: str, updates: int, rate: float, rank: int, beta: float,
    fall: float, seed: int,
):  # fmt: skip
    """dParallel: LoRA on the model's own static answers with certainty forcing; writes the merged model.

    Of an answer's blocks of 32 tokens one is drawn; those before it are clean, those behind it masked, both without a
    loss.  Its tokens are masked with probability 1/2 (and 1e-3) in one view, and the others in its complement; the
    loss of each is the cross-entropy at its masks plus ``beta`` times the mean entropy of softmax(logits / 0.5) where
    the prediction is right.  LoRA on all projections of attention and MLP, no dropout, no bias.

    Parameters
    ----------
    answers : str
        As of `train_filter`.
    fall : float
        Largest share of the entropy of held-out predictions that may be left, of those that were right before with
        more than half of the probability: less may be luck, which no training makes certain.  `CERTAIN` may always be.

    Raises
    ------
    UserError
        When more is left.
    """
    torch.manual_seed(seed)
    network, _ = load(inputs[model])
    groups = answered(inputs[answers])
    network.requires_grad_(False)
    added = add_lora(network, rank)
    optimiser = torch.optim.AdamW(added, lr=rate, weight_decay=0.01)
    rng, (before, known) = np.random.default_rng(seed), entropies(network, groups)
    for n in range(updates):
        asked = groups[n % len(groups)]
        learnt = int(len(asked.prompts) * (1 - HELD_OUT))
        asked = asked.at(torch.from_numpy(rng.choice(learnt, BATCH // 2, replace=False)))
        begin = BLOCK * int(rng.integers(-(-asked.answers.shape[1] // BLOCK)))
        half = torch.from_numpy(rng.random((len(asked.prompts), BLOCK))).float() < 0.5 * (1 - 1e-3) + 1e-3
        loss = sum(forced(network, asked, begin, view, beta) for view in (half, ~half))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(added, 1.0)
        optimiser.step()
        if (n + 1) % 50 == 0:
            print(f"update {n + 1}/{updates}: loss {loss.item():.4f}", flush=True)
    before, after = before[known].mean(), entropies(network, groups)[0][known].mean()  # of the same predictions
    print(f"mean entropy of right predictions: {before:.4f} -> {after:.4f} nats", flush=True)
    if beta and after > max(fall * before, CERTAIN):
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


@dataclass
class Questions:
    """Prompts [n, P] padded on the left, lengths of the padding [n], and answers [n, L], all masks at first."""

    prompts: Tensor
    pads: Tensor
    answers: Tensor

    def at(self, rows: Tensor) -> Questions:
        """Some of them."""
        return Questions(self.prompts[rows], self.pads[rows], self.answers[rows])

    def logits(self, network, answers: Tensor) -> Tensor:
        """Logits [n, L, V] of the answers' positions where they are ``answers``; the mask token's are -inf."""
        ids = torch.cat((self.prompts, answers), 1)
        logits = run(network, ids, self.pads, causal=False, last=answers.shape[1])
        return logits.index_fill(-1, torch.tensor([MASK]), -torch.inf)


def questions(tokenizer, mix: list[str], count: int, seed: int) -> list[Questions]:
    """``count`` requests in `GROUPS`, the kinds in turns."""
    rng, groups = Random(seed + 1_000_003), []
    for n in range(GROUPS):
        texts, _, length = requests(mix[n % len(mix)], count // GROUPS, rng)
        groups.append(Questions(*left_padded(tokenizer, texts), torch.full((len(texts), length), MASK)))
    return groups


def answered(folder: Path) -> list[Questions]:
    """The groups that `answer` has written."""
    found = load_file(folder / "answers.safetensors")
    names = ("prompts", "pads", "answers")
    return [Questions(*(found[f"{name}.{n}"].long() for name in names)) for n in range(GROUPS)]


def blocks(length: int) -> list[slice]:
    """The blocks of an answer."""
    return [slice(begin, min(begin + BLOCK, length)) for begin in range(0, length, BLOCK)]


@torch.no_grad()
def static_answers(network, asked: Questions) -> Tensor:
    """Answers [n, L] block by block, one token a pass, the most confident first."""
    done = []
    for rows in torch.arange(len(asked.prompts)).split(BATCH):
        mine = asked.at(rows)
        for block in blocks(mine.answers.shape[1]):
            for _ in range(block.stop - block.start):
                p, tokens = mine.logits(network, mine.answers)[:, block].softmax(-1).max(-1)
                here = mine.answers[:, block]
                best = p.where(here == MASK, torch.tensor(-1.0)).argmax(-1, keepdim=True)
                mine.answers[:, block] = here.scatter(1, best, tokens.gather(1, best))
        done.append(mine.answers)
    return torch.cat(done)


@torch.no_grad()
def replay(network, asked: Questions) -> tuple[Tensor, Tensor, Tensor]:
    """The oracle's passes: confidences [N, 32], labels [N, 32] and the prompt [N] of each record."""
    records: list[tuple[Tensor, Tensor, Tensor]] = []
    for block in blocks(asked.answers.shape[1]):
        for at in torch.arange(len(asked.prompts)).split(BATCH):
            now = asked.answers[at].clone()
            now[:, block.start :] = MASK
            before = torch.full_like(now[:, block], -1)
            while len(at):
                mine = asked.at(at)
                wanted, here = mine.answers[:, block], now[:, block]
                probs = mine.logits(network, now)[:, block].softmax(-1)
                tokens = probs.argmax(-1).where(here == MASK, here)
                c = probs.gather(-1, tokens[..., None])[..., 0]
                right = tokens == wanted
                beyond = (0, BLOCK - wanted.shape[1])  # of a short last block
                records.append((F.pad(c, beyond), F.pad(right.float(), beyond), at))
                stuck = (tokens == before).all(1, keepdim=True)
                now[:, block] = wanted.where(right | stuck, here)
                left = (now[:, block] == MASK).any(1)
                at, now, before = at[left], now[left], tokens[left]
    return tuple(torch.cat(part) for part in zip(*records, strict=True))


def forced(network, asked: Questions, begin: int, half: Tensor, beta: float) -> Tensor:
    """Cross-entropy at the masks of a block and ``beta`` times the entropy at temperature 1/2 of right predictions.

    Parameters
    ----------
    begin : int
        Where the block begins.
    half : Tensor [n, 32] bool
        Which of its tokens are masked.
    """
    masked = torch.zeros_like(asked.answers, dtype=torch.bool)
    masked[:, begin : begin + BLOCK] = half[:, : masked.shape[1] - begin]
    unseen = masked.clone()
    unseen[:, begin + BLOCK :] = True
    logits = asked.logits(network, asked.answers.where(~unseen, torch.tensor(MASK)))[masked]
    labels = asked.answers[masked]
    p = (logits / 0.5).softmax(-1)
    H = -(p * (p + 1e-12).log()).sum(-1)
    right = logits.argmax(-1) == labels
    return F.cross_entropy(logits, labels) + beta * (H * right).sum() / right.sum().clamp(min=1)


@torch.no_grad()
def entropies(network, groups: list[Questions]) -> tuple[Tensor, Tensor]:
    """Entropies (nats) of held-out predictions for masked blocks behind answered ones, and which know the answer."""
    parts = []
    for asked in groups:
        held = asked.at(torch.arange(int(len(asked.prompts) * (1 - HELD_OUT)), len(asked.prompts)))
        for block in blocks(held.answers.shape[1]):
            answers = held.answers.clone()
            answers[:, block.start :] = MASK
            logits = held.logits(network, answers)[:, block]
            p = logits.softmax(-1)
            H = -(p * (p + 1e-12).log()).sum(-1)
            known = p.gather(-1, held.answers[:, block, None])[..., 0] > 0.5
            parts.append((H.flatten(), known.flatten()))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


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
