"""Prompt tokens of Parallel Prompt Decoding, trained by self-distillation on the frozen model's own greedy answers."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from parsimony import devices
from parsimony.errors import UserError
from parsimony.methods.autoregressive.medusa_heads import Heads
from parsimony.methods.autoregressive.prompt_tree import behind
from parsimony.recipes.own_outputs import read

RANKS = 10
"""Guesses of one prompt token whose accuracies are calibrated."""
KEPT = 256
"""Conversations whose keys and values are kept from epoch to epoch: 7 MB each of SmolLM2, 50 of an 8B model."""


@dataclass(frozen=True)
class Rollout:
    """A prompt with the model's greedy answer, as one sequence.

    Attributes
    ----------
    ids : Tensor [T] int64
    begin : int
        Length of the prompt.
    """

    ids: Tensor
    begin: int

    def cuts(self, m: int, count: int, rng: np.random.Generator) -> Tensor:
        """At most ``count`` different lengths [K] of a real prefix behind which m + 1 tokens of the answer follow."""
        possible = np.arange(self.begin, len(self.ids) - m)
        return torch.from_numpy(np.sort(rng.choice(possible, min(count, len(possible)), replace=False)))


def train(
    out: Path,
    inputs: dict[str, Path],
    model: str,
    outputs: str,
    prompts: int,
    ensemble: int,
    cuts: int,
    epochs: int,
    held_out: int,
    lr: float,
    decay: float,
    floors: list,
    seed: int,
):
    """Train m = ``prompts`` tokens of e = ``ensemble`` vectors; everything else stays frozen.

    One step is one conversation with up to ``cuts`` cut points, Adam, learning rate ``lr`` falling to 0 along a
    cosine, no warm-up, no weight decay.  A Medusa-style head a distance is trained beside them on the same cut points
    and the same loss: the published residual layer ``h + SiLU(W h + b)`` under the model's own output matrix.

    Writes ``prompt_tokens.safetensors``: ``vectors.<kind>`` [m, e, D] and ``acc.<kind>`` [m, 10] (frequency with which
    the guess of each rank is right on ``held_out`` conversations) for the kinds ``trained``, ``text`` (the
    initialisation) and ``random`` (normal, of the embedding's spread), ``acc.heads`` [m, 10], ``loss`` [steps] and
    ``held_out_loss`` [2], before and after; and ``heads.safetensors`` (bfloat16) with the heads themselves.

    Parameters
    ----------
    floors : list of float
        Least advantage of the trained over both untrained kinds in top-1 accuracy of prompt 1, and largest share of
        the initial loss that may be left on held-out conversations.

    Raises
    ------
    UserError
        When the trained vectors miss one of the ``floors``.
    """
    from transformers import AutoTokenizer, LlamaForCausalLM

    torch.manual_seed(seed)
    net = LlamaForCausalLM.from_pretrained(inputs[model], dtype=torch.float32).eval().requires_grad_(False)
    net.to(devices.held()[0])
    tokenizer = AutoTokenizer.from_pretrained(inputs[model], local_files_only=True)
    rollouts = [Rollout(torch.cat(pair), len(pair[0])) for pair in read(inputs[outputs])]
    rollouts = [rollout for rollout in rollouts if len(rollout.ids) - rollout.begin > prompts]
    order = np.random.default_rng(seed).permutation(len(rollouts)).tolist()
    test, rest = [[rollouts[n] for n in part] for part in (order[:held_out], order[held_out:])]

    text = initial(net, tokenizer, prompts, ensemble)
    kinds = {"text": text, "random": torch.randn_like(text) * net.get_input_embeddings().weight.std()}
    width = text.shape[-1]
    heads = Heads(torch.zeros(prompts, width, width), torch.zeros(prompts, width)).to(text.device)
    kinds["trained"], loss = fit(net, text, rest, cuts, epochs, lr, decay, seed, heads)
    acc, nats = calibrate(net, kinds, test, 2 * cuts, decay, seed, heads)

    gain = float(acc["trained"][0, 0] - max(acc["text"][0, 0], acc["random"][0, 0]))
    left = nats["trained"] / nats["text"]
    if gain < floors[0] or left > floors[1]:
        raise UserError(
            f"prompt tokens: top-1 accuracy of prompt 1 rose by {gain:.3f} (floor {floors[0]}), held-out loss fell to "
            f"{left:.2f} of the initial one (at most {floors[1]}): they have not learnt to guess"
        )
    columns = {f"vectors.{kind}": vectors.contiguous() for kind, vectors in kinds.items()}
    columns |= {f"acc.{kind}": table for kind, table in acc.items()}
    columns |= {"loss": torch.tensor(loss), "held_out_loss": torch.tensor([nats["text"], nats["trained"]])}
    save_file({name: column.cpu() for name, column in columns.items()}, out / "prompt_tokens.safetensors")
    weights = {name: weight.bfloat16().cpu() for name, weight in heads.state_dict().items()}
    save_file(weights, out / "heads.safetensors")


def initial(net, tokenizer, m: int, e: int) -> Tensor:
    """Embeddings [m, e, D] of "Next 2 word Next 3 word ...", repeated or cut to m * e tokens as PEFT does."""
    text = " ".join(f"Next {i + 2} word" for i in range(m))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = (ids * math.ceil(m * e / len(ids)))[: m * e]
    return net.get_input_embeddings().weight[ids].view(m, e, -1).clone()


def fit(net, vectors: Tensor, rollouts: list[Rollout], cuts: int, epochs: int, lr: float, decay: float, seed: int,
        heads: Heads | None = None) -> tuple[Tensor, list[float]]:  # fmt: skip
    """Train ``vectors`` [m, e, D] (and ``heads``, if there are any) and return them with the loss of every step."""
    vectors = vectors.clone().requires_grad_()
    rng = np.random.default_rng([seed, 1])
    groups = [{"params": [vectors], "lr": lr}]
    if heads is not None:
        groups.append({"params": list(heads.parameters()), "lr": lr / 10})  # matrices; 1e-2 is for embeddings
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(rollouts))
    losses, real_of = [], functools.lru_cache(KEPT)(lambda n: Real.read(net, rollouts[n].ids))
    for _ in range(epochs):
        for n in rng.permutation(len(rollouts)).tolist():
            at, real = rollouts[n].cuts(len(vectors), cuts, rng), real_of(n)
            teacher = net.lm_head(real.hidden[ahead(at, len(vectors))])
            loss = distance(teacher, guesses(net, real, vectors, at), decay)
            total = loss if heads is None else loss + distance(teacher, net.lm_head(heads(real.hidden[at - 1])), decay)
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
    return vectors.detach(), losses


@torch.no_grad()
def calibrate(net, kinds: dict[str, Tensor], rollouts: list[Rollout], cuts: int, decay: float, seed: int,
              heads: Heads | None = None) -> tuple[dict[str, Tensor], dict[str, float]]:  # fmt: skip
    """Accuracies [m, 10] by distance and rank, and the mean loss, of each kind of vectors (and of the heads).

    A guess is right if it is the token that the model emits there; rank r counts its r-th guess alone.
    """
    rng = np.random.default_rng([seed, 2])
    right = {kind: 0 for kind in (*kinds, *(["heads"] if heads is not None else []))}
    nats, total = dict.fromkeys(right, 0.0), 0
    m = len(next(iter(kinds.values())))
    for rollout in rollouts:
        at = rollout.cuts(m, cuts, rng)
        real = Real.read(net, rollout.ids)
        where = ahead(at, m)
        teacher, said = net.lm_head(real.hidden[where]), rollout.ids[where + 1].to(net.device)
        for kind in right:
            logits = net.lm_head(heads(real.hidden[at - 1])) if kind == "heads" else None
            logits = guesses(net, real, kinds[kind], at) if logits is None else logits
            hits = logits.topk(RANKS, -1).indices == said[:, :, None]  # [K, m, 10]
            right[kind] = right[kind] + hits.sum(0)
            nats[kind] += distance(teacher, logits, decay).item() * len(at)
        total += len(at)
    return {k: hits.float() / total for k, hits in right.items()}, {k: x / total for k, x in nats.items()}


@dataclass(frozen=True)
class Real:
    """A pass over the real tokens alone: their keys and values per layer, and their final hidden states [T, D]."""

    layers: list[tuple[Tensor, Tensor]]
    hidden: Tensor

    @classmethod
    @torch.no_grad()
    def read(cls, net, ids: Tensor) -> Real:
        """Run the real tokens: no prompt vector is seen by them, so nothing of this depends on the vectors."""
        from transformers import DynamicCache

        cache = DynamicCache()
        hidden = net.model(input_ids=ids[None].to(net.device), past_key_values=cache, use_cache=True).last_hidden_state[
            0
        ]
        return cls([(layer.keys, layer.values) for layer in cache.layers], hidden)


def guesses(net, real: Real, vectors: Tensor, cuts: Tensor) -> Tensor:
    """Logits [K, m, V] of the prompt tokens behind each of K cut points of one sequence, all in one pass.

    Parameters
    ----------
    vectors : Tensor [m, e, D]
    cuts : Tensor [K] int64
        Lengths of the real prefixes; positions and masks are those of `behind`, and the logits of the e vectors of a
        prompt token are averaged.
    """
    from transformers import DynamicCache

    m, e, _ = vectors.shape
    which, where, seen = (each.to(net.device) for each in behind(cuts, m, e, len(real.hidden)))
    mask = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)[None, None]
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(real.layers):
        cache.update(keys, values, layer)
    rows = vectors.flatten(0, 1)[which][None]
    hidden = net.model(
        inputs_embeds=rows, attention_mask=mask, position_ids=where[None], past_key_values=cache, use_cache=True
    ).last_hidden_state[0]
    return net.lm_head(hidden).view(len(cuts), m, e, -1).mean(2)


def ahead(cuts: Tensor, m: int) -> Tensor:
    """Positions [K, m] of the real tokens whose logits say what prompts 1..m should: L, L + 1, ..."""
    return cuts[:, None] + torch.arange(m)


def distance(teacher: Tensor, student: Tensor, decay: float) -> Tensor:
    """Mean over cut points of (1/m) sum_i decay^(i-1) KL(teacher_i || student_i), in nats; logits are [K, m, V]."""
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    nats = (p.exp() * (p - q)).sum(-1)  # [K, m]
    return (nats * decay ** torch.arange(nats.shape[1], device=nats.device)).mean()
