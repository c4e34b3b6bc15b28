"""What Learn2PD and dParallel train, from the static decoder's own answers of a masked diffusion model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from parsimony import devices
from parsimony.benchmarks import hub_tasks
from parsimony.errors import UserError
from parsimony.methods.diffusion.learn2pd import BLOCK
from parsimony.models.masked import Masked
from parsimony.recipes.task_mix import END, MASK, SPECIAL, requests, run

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
    small, rng = Reader.load(inputs[model]), Random(seed + 1_000_003)
    asked = []
    for n in range(GROUPS):
        texts, _, length = requests(mix[n % len(mix)], prompts // GROUPS, rng)
        asked.append(Questions.of([small.model.encode(text) for text in texts], length, small))
    write(out, small, asked)


def answer_published(
    out: Path, inputs: dict[str, Path], model: str, data: str, mask: str, stop: list, dtype: str, task: str, rows: str,
    limit: int, prompts: int, seed: int,
):  # fmt: skip
    """The same of a model of the hub, to rows that a public data set has for training.

    Parameters
    ----------
    mask, stop, dtype
        As of `Masked.load`; what is learnt from the confidences is bound to the dtype.
    data, rows, task : str
        The set and its file with rows for training; and how one is asked, of `hub_tasks.TASKS`.
    limit : int
        Tokens of an answer.
    """
    large, asked = Reader.load(inputs[model], mask, stop, dtype), []
    for _, request in hub_tasks.requests(task, inputs[data], prompts, seed, rows):
        said = [{"role": "user", "content": request.prompt}]
        asked.append(large.model.encode(large.model.tokenizer.chat(said)))
    write(out, large, [Questions.of(asked[n::GROUPS], limit, large) for n in range(GROUPS)])


def write(out: Path, model: Reader, groups: list[Questions]) -> None:
    """Answer all groups and write them down."""
    found = {}
    for n, asked in enumerate(groups):
        asked.answers = static_answers(model, asked)
        found |= {f"{name}.{n}": tensor.int() for name, tensor in vars(asked).items()}
        print(f"group {n + 1}/{len(groups)} is answered", flush=True)
    save_file(found, out / "answers.safetensors")


def train_filter(
    out: Path, inputs: dict[str, Path], model: str, answers: str, updates: int, rate: float, floor: float, seed: int,
    mask: str = SPECIAL[MASK], stop: Sequence[str] = (SPECIAL[END],), dtype: str = "float32",
):  # fmt: skip
    """Learn2PD's filter: replay each static answer with the oracle, and learn which positions it would commit.

    In each pass of the replay the label of a position is whether its prediction (or the token that stands there) is
    that of the static answer; all masked positions with label 1 are committed, and the whole block if no prediction
    has changed.  Labels of committed positions, which are 1, stay in the loss as in the official code.  Full batch,
    AdamW, binary cross-entropy; published: 40,000 epochs.

    Parameters
    ----------
    answers : str
        What `answer` or `answer_published` has made with the same model, of these ``mask``, ``stop`` and ``dtype``.
    floor : float
        Least accuracy of the filter on records of held-out prompts.

    Raises
    ------
    UserError
        When it is below the floor.
    """
    torch.manual_seed(seed)
    reader = Reader.load(inputs[model], mask, stop, dtype)
    train, held = [], []
    for asked in answered(inputs[answers]):
        learnt = int(len(asked.prompts) * (1 - HELD_OUT))
        c, labels, whose = replay(reader, asked)
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
    network = load(inputs[model]).requires_grad_(False)
    groups, added = answered(inputs[answers]), add_lora(network, rank)
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
    """A small network of this project, for training."""
    from transformers import LlamaConfig, LlamaForCausalLM

    network = LlamaForCausalLM(LlamaConfig(**json.loads((folder / "config.json").read_text())))
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    network.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    return network.eval()


@dataclass
class Questions:
    """Prompts [n, P] padded on the left, lengths of the padding [n], and answers [n, L], all masks at first."""

    prompts: Tensor
    pads: Tensor
    answers: Tensor

    @classmethod
    def of(cls, prompts: list[Tensor], length: int, model: Reader) -> Questions:
        """Nothing is answered yet; prompts are [T] each."""
        widest = max(map(len, prompts))
        pads = torch.tensor([widest - len(ids) for ids in prompts])
        ids = torch.stack([F.pad(ids, (widest - len(ids), 0)) for ids in prompts])
        return cls(ids, pads, torch.full((len(ids), length), model.mask))

    def at(self, rows: Tensor) -> Questions:
        """Some of them."""
        return Questions(self.prompts[rows], self.pads[rows], self.answers[rows])

    def logits(self, network, answers: Tensor) -> Tensor:
        """Logits [n, L, V] of the answers' positions where they are ``answers``, of a small network in training."""
        ids = torch.cat((self.prompts, answers), 1)
        logits = run(network, ids, self.pads, causal=False, last=answers.shape[1])
        return logits.index_fill(-1, torch.tensor([MASK]), -torch.inf)


class Reader:
    """A masked model that is read and not trained."""

    def __init__(self, model: Masked):
        self.model, self.mask = model, model.mask_id

    @classmethod
    def load(cls, folder: Path, mask: str = SPECIAL[MASK], stop=(SPECIAL[END],), dtype: str = "float32") -> Reader:
        """As `Masked.load`, on the GPUs that this process holds."""
        return cls(Masked.load(folder, mask, stop, dtype, devices=devices.held()))

    def read(self, asked: Questions, answers: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        """Predictions [n, B] for a block where the answers are ``answers``, and probabilities [n, B] of what stands.

        What stands at a position is its token or, at a mask, its prediction, which is never the mask itself.
        """
        decoder, ids = self.model.decoder, torch.cat((asked.prompts, answers), 1)
        hidden = decoder.forward(ids, decoder.cache(ids.shape[1], len(ids)), pads=asked.pads, want="hidden")
        logits = decoder.logits(hidden[:, -answers.shape[1] :][:, block]).float()
        logits[..., self.mask] = -torch.inf
        probs, here = logits.softmax(-1), answers[:, block].to(logits.device)
        tokens = probs.argmax(-1).where(here == self.mask, here)
        return tokens.cpu(), probs.gather(-1, tokens[..., None])[..., 0].cpu()


def answered(folder: Path) -> list[Questions]:
    """The groups that `answer` has written."""
    found = load_file(folder / "answers.safetensors")
    names = ("prompts", "pads", "answers")
    return [Questions(*(found[f"{name}.{n}"].long() for name in names)) for n in range(GROUPS)]


def blocks(length: int) -> list[slice]:
    """The blocks of an answer."""
    return [slice(begin, min(begin + BLOCK, length)) for begin in range(0, length, BLOCK)]


@torch.no_grad()
def static_answers(model: Reader, asked: Questions) -> Tensor:
    """Answers [n, L] block by block, one token a pass, the most confident first."""
    done = []
    for rows in torch.arange(len(asked.prompts)).split(BATCH):
        mine = asked.at(rows)
        for block in blocks(mine.answers.shape[1]):
            for _ in range(block.stop - block.start):
                tokens, p = model.read(mine, mine.answers, block)
                here = mine.answers[:, block]
                best = p.where(here == model.mask, torch.tensor(-1.0)).argmax(-1, keepdim=True)
                mine.answers[:, block] = here.scatter(1, best, tokens.gather(1, best))
        done.append(mine.answers)
    return torch.cat(done)


@torch.no_grad()
def replay(model: Reader, asked: Questions) -> tuple[Tensor, Tensor, Tensor]:
    """The oracle's passes: confidences [N, 32], labels [N, 32] and the prompt [N] of each record."""
    records: list[tuple[Tensor, Tensor, Tensor]] = []
    for block in blocks(asked.answers.shape[1]):
        for at in torch.arange(len(asked.prompts)).split(BATCH):
            now = asked.answers[at].clone()
            now[:, block.start :] = model.mask
            before = torch.full_like(now[:, block], -1)
            while len(at):
                mine = asked.at(at)
                wanted, here = mine.answers[:, block], now[:, block]
                tokens, c = model.read(mine, now, block)
                right = tokens == wanted
                beyond = (0, BLOCK - wanted.shape[1])  # of a short last block
                records.append((F.pad(c, beyond), F.pad(right.float(), beyond), at))
                stuck = (tokens == before).all(1, keepdim=True)
                now[:, block] = wanted.where(right | stuck, here)
                left = (now[:, block] == model.mask).any(1)
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
