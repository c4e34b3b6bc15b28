"""A draft network of two narrow layers, distilled from its target in minutes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from parsimony.errors import UserError
from parsimony.models.language import Language
from parsimony.recipes import own_outputs

SOFT = 16
"""Probable tokens of the target that are kept as the goal at each position."""


def distil(
    out: Path,
    inputs: dict[str, Path],
    model: str,
    outputs: str,
    text: str,
    stop: list,
    layers: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    head_tokens: int,
    length: int,
    batch: int,
    steps: int,
    text_share: float,
    rate: float,
    floor: float,
    seed: int,
):
    """Train a small Llama under the target's frozen embedding, whose rows are its head as well.

    The goal is the cross-entropy to the target's distribution on the target's own answers, and to the next token on
    articles of an encyclopaedia that no benchmark reads; the head knows the ``head_tokens`` tokens that are most
    frequent there, because the full vocabulary would cost several times as much as all the layers.

    Writes ``drafter.safetensors`` (bfloat16 matrices by their Hugging Face names, ``tokens`` [head_tokens] int32: the
    token of each row of the head) and ``config.json``.

    Parameters
    ----------
    layers, heads, kv_heads, mlp : int
        Size; heads are as wide as the target's.
    length, batch, steps : int
        Rows of ``length`` tokens, ``batch`` of them a step.
    text_share : float
        Share of the rows of a step that are articles.
    rate : float
        Largest learning rate (AdamW, warm-up over 5 % of the steps, then a cosine to zero).
    floor : float
        Least share of the target's own tokens, in answers held out, that the network must guess.

    Raises
    ------
    UserError
        When it guesses fewer.
    """
    language = Language.load(inputs[model], stop, "float32")
    target, rng = language.decoder, np.random.default_rng(seed)
    torch.manual_seed(seed)
    talks = own_outputs.read(inputs[outputs])
    held = len(talks) // 10
    articles = json.loads((inputs[text] / "summaries.json").read_text(encoding="utf-8")).values()
    unread = [a["extract"] for a in articles if len(a["extract"]) < own_outputs.BENCHMARK_CHARACTERS]
    prose = language.encode("\n\n".join(unread))
    texts = [*(answer for _, answer in talks[held:]), prose]
    tokens = frequent(texts, head_tokens, language.stop_ids, target.config.vocabulary)

    size = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "mlp": mlp}
    network = Network(target.embedding, tokens, target.norm, target.config, size)
    learn, test = (Answers(target, part, tokens, length) for part in (talks[held:], talks[:held]))
    train(network, learn, prose, length, batch, steps, text_share, rate, rng)
    found = agreement(network, test)
    if found < floor:
        raise UserError(f"the drafter guesses {found:.3f} of the target's tokens; the floor is {floor}")
    network.save(out, {"agreement": f"{found:.4f}"})


def frequent(texts: list[Tensor], count: int, always: frozenset[int], vocabulary: int) -> Tensor:
    """The ``count`` tokens that occur most often in ``texts``, ascending; those in ``always`` are among them."""
    counts = torch.cat(texts).bincount(minlength=vocabulary)
    counts[list(always)] = counts.sum()
    return counts.argsort(descending=True, stable=True)[:count].sort().values


class Network:
    """A Llama in trainable form; weights by their Hugging Face names."""

    def __init__(self, embedding: Tensor, tokens: Tensor, norm: Tensor, config, size: dict):
        self.embedding, self.head, self.config, self.size = embedding, embedding[tokens], config, size
        self.tokens = tokens
        D, d = config.hidden, config.width
        H, G, M = size["heads"] * d, size["kv_heads"] * d, size["mlp"]
        shapes = {
            "self_attn.q_proj": (H, D), "self_attn.k_proj": (G, D), "self_attn.v_proj": (G, D),
            "self_attn.o_proj": (D, H), "mlp.gate_proj": (M, D), "mlp.up_proj": (M, D), "mlp.down_proj": (D, M),
        }  # fmt: skip
        self.weights = {"model.norm.weight": norm.clone()}
        for i in range(size["layers"]):
            for name in ("input_layernorm", "post_attention_layernorm"):
                self.weights[f"model.layers.{i}.{name}.weight"] = torch.ones(D, device=embedding.device)
            for name, shape in shapes.items():
                weight = torch.randn(shape, device=embedding.device) / math.sqrt(shape[1])
                self.weights[f"model.layers.{i}.{name}.weight"] = weight
        for weight in self.weights.values():
            weight.requires_grad_()

    def save(self, out: Path, facts: dict[str, str]) -> None:
        """Write weights (bfloat16) and ``config.json`` in the form in which `DraftNetwork.distilled` reads them."""
        weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in self.weights.items()}
        save_file(weights | {"tokens": self.tokens.int()}, out / "drafter.safetensors", facts)
        c, s = self.config, self.size
        config = {
            "model_type": "llama",
            "num_hidden_layers": s["layers"],
            "hidden_size": c.hidden,
            "intermediate_size": s["mlp"],
            "num_attention_heads": s["heads"],
            "num_key_value_heads": s["kv_heads"],
            "head_dim": c.width,
            "vocab_size": c.vocabulary,
            "rms_norm_eps": c.epsilon,
            "rope_theta": c.rope_theta,
            "tie_word_embeddings": False,
        }
        (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    def hidden(self, ids: Tensor) -> Tensor:
        """Final hidden states [B, T, D] of ``ids`` [B, T]."""
        c, (B, T), d = self.config, ids.shape, self.config.width
        inverse, _ = c.frequencies()
        angles = (torch.arange(T)[:, None] * inverse.repeat(2)).to(self.embedding.device)
        cos, sin = angles.cos(), angles.sin()

        def rotate(x: Tensor) -> Tensor:
            return x * cos + torch.cat((-x[..., d // 2 :], x[..., : d // 2]), -1) * sin

        x = F.embedding(ids, self.embedding)
        for i in range(self.size["layers"]):
            w = {name.split(".", 3)[3]: t for name, t in self.weights.items() if name.startswith(f"model.layers.{i}.")}
            h = F.rms_norm(x, (c.hidden,), w["input_layernorm.weight"], c.epsilon)
            q, k, v = (
                F.linear(h, w[f"self_attn.{name}_proj.weight"]).view(B, T, -1, d).transpose(1, 2) for name in "qkv"
            )
            shared = self.size["heads"] // self.size["kv_heads"]
            k, v = (each.repeat_interleave(shared, 1) for each in (rotate(k), v))
            y = F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
            x = x + F.linear(y.transpose(1, 2).reshape(B, T, -1), w["self_attn.o_proj.weight"])
            h = F.rms_norm(x, (c.hidden,), w["post_attention_layernorm.weight"], c.epsilon)
            gate, up = F.linear(h, w["mlp.gate_proj.weight"]), F.linear(h, w["mlp.up_proj.weight"])
            x = x + F.linear(F.silu(gate) * up, w["mlp.down_proj.weight"])
        return F.rms_norm(x, (c.hidden,), self.weights["model.norm.weight"], c.epsilon)

    def log_odds(self, hidden: Tensor) -> Tensor:
        """Log-probabilities [..., U] of the tokens of the head."""
        return F.linear(hidden, self.head).log_softmax(-1)


class Answers:
    """Conversations cut to one length, and what the target makes of each position.

    Attributes
    ----------
    ids : Tensor [n, length] int64
    goal, weight : Tensor [n, length, SOFT]
        Rows of the head that the target finds most probable next, and their probabilities (sum 1; all 0 where nothing
        is learnt: behind the end, and where the next token is still the prompt's).
    chosen : Tensor [n, length] int64
        The target's greedy token, which the answer has there; -1 where nothing is learnt.
    """

    def __init__(self, target, talks: list[tuple[Tensor, Tensor]], tokens: Tensor, length: int):
        n, head = len(talks), target.embedding[tokens]
        self.ids = torch.zeros(n, length, dtype=torch.int64)
        self.goal = torch.zeros(n, length, SOFT, dtype=torch.int64)
        self.weight = torch.zeros(n, length, SOFT)
        self.chosen = torch.full((n, length), -1)
        for row, (prompt, answer) in enumerate(talks):
            ids = torch.cat((prompt, answer))[:length]
            begin, end = len(prompt) - 1, len(ids) - 1
            self.ids[row, : len(ids)] = ids
            if end <= begin:
                continue
            hidden = target.prefill(ids[None], target.cache(len(ids)), want="hidden")[0, begin:end]
            best = F.linear(hidden, head).softmax(-1).topk(SOFT, -1)
            self.goal[row, begin:end] = best.indices
            self.weight[row, begin:end] = best.values / best.values.sum(-1, keepdim=True)
            self.chosen[row, begin:end] = ids[begin + 1 :]


def train(network: Network, answers: Answers, prose: Tensor, length, batch, steps, text_share, rate, rng) -> None:
    """Minimise the cross-entropy over rows of answers and of prose."""
    parameters = list(network.weights.values())
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    warm = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda n: min((n + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * n / steps))
    )
    row_of = torch.full((network.config.vocabulary,), -1, device=network.head.device)
    row_of[network.tokens] = torch.arange(len(network.tokens), device=network.head.device)
    for _ in range(steps):
        count = int(rng.binomial(batch, text_share))
        at = torch.from_numpy(rng.integers(0, len(answers.ids), batch - count))
        begin = torch.from_numpy(rng.integers(0, len(prose) - length - 1, count))
        text = prose[begin[:, None] + torch.arange(length + 1)]
        hidden = network.hidden(torch.cat((answers.ids[at], text[:, :-1])))
        weight = answers.weight[at]
        learnt = weight.sum(-1) > 0
        next_row = row_of[text[:, 1:]]
        known = next_row >= 0
        soft = network.log_odds(hidden[: batch - count][learnt]).gather(1, answers.goal[at][learnt])
        hard = network.log_odds(hidden[batch - count :][known]).gather(1, next_row[known][:, None])
        loss = -((soft * weight[learnt]).sum() + hard.sum()) / max(len(soft) + len(hard), 1)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()


@torch.inference_mode()
def agreement(network: Network, answers: Answers) -> float:
    """Share of the target's greedy tokens that are the network's as well."""
    right = total = 0
    for ids, chosen in zip(answers.ids.split(8), answers.chosen.split(8), strict=True):
        learnt = chosen >= 0
        best = network.tokens[network.log_odds(network.hidden(ids)[learnt]).argmax(-1)]
        right, total = right + int((best == chosen[learnt]).sum()), total + int(learnt.sum())
    return right / total
