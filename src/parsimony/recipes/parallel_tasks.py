"""A masked diffusion model and its autoregressive twin on ParallelBench's tasks: same size, same data, minutes each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from parsimony.benchmarks.parallel_bench import lists
from parsimony.benchmarks.parallel_bench.tasks import GROUPS, LENGTH, example, examples, grade
from parsimony.errors import UserError

SPECIAL = ["<mask>", "<end>", "<unknown>"]
MASK, END = 0, 1
PIECES = r""" ?[A-Z][a-z]+| ?[a-z_]+|[A-Z]|[0-9]|", "|\["|"\]|\n| |."""
"""What one token is: a word (with the blank in front), a letter, a digit, a mark of a list."""
SMALLEST = 1e-3
"""A token is masked with probability (1 - SMALLEST) t + SMALLEST (LLaDA)."""


def train(
    out: Path, inputs: dict[str, Path], causal: bool, hidden: int, layers: int, heads: int, updates: int, batch: int,
    rate: float, floor: float, seed: int,
):  # fmt: skip
    """Train on all tasks at once and write ``config.json`` (Llama's), weights (float16) and ``tokenizer.json``.

    Masked: t ~ U(0, 1) a row, every token of the answer is masked with a probability that grows with it, and the loss
    is the cross-entropy over masked tokens divided by that probability and the answer's length (LLaDA, arXiv
    2502.09992).  Causal: next-token prediction of the answer.

    Parameters
    ----------
    floor : float
        Least exact accuracy, one token at a time, on every list task with one right answer.

    Raises
    ------
    UserError
        When the model is below the floor.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[END], unk_token=SPECIAL[2])
    fast.save_pretrained(out)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=hidden, intermediate_size=8 * hidden // 3 // 16 * 16,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=128,
        tie_word_embeddings=True, rope_theta=10000.0,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    fit(network, batches(tokenizer, batch, seed), causal, updates, rate, seed)
    weights = {name: tensor.half() for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config.to_dict(), indent=1, default=str) + "\n")
    found = accuracies(out, causal)
    print(", ".join(f"{task} {value:.2f}" for task, value in found.items()), flush=True)
    worst = min(lists.CERTAIN, key=found.get)
    if found[worst] < floor:
        raise UserError(
            f"the model solves {found[worst]:.2f} of {worst!r} one token at a time; it must solve {floor}: train it "
            "with more updates"
        )


def word_tokenizer():
    """One token a word, letter, digit or mark; decoding puts the pieces together again."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(PIECES), "isolated")
    pieces, rng = set(), Random(0)
    for _ in range(300):
        for task in GROUPS:
            for symbols in (False, True):
                shown = example(task, rng, symbols)
                pieces |= {piece for piece, _ in splitter.pre_tokenize_str(shown.prompt + shown.answer)}
    pieces |= {f"{blank}{name}" for blank in ("", " ") for name in (*lists.FIRST, *lists.LAST)}
    vocabulary = {piece: n for n, piece in enumerate([*SPECIAL, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[2]))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def batches(tokenizer, size: int, seed: int):
    """Prompts [B, P] padded on the left, lengths of the padding [B], and answers [B, L], for ever.

    Every fourth batch is of symbol lists, whose answers have no end: they are as long as the masks.
    """
    rng, n = Random(seed), 0
    lettered = sorted(lists.SEEDS)
    while True:
        if n % 4 == 3:
            length = rng.choice((3, 4, 5, 6))
            drawn = []
            while len(drawn) < size:
                one = example(rng.choice(lettered), rng, symbols=True)
                drawn += [one] if len(one.answer) == length else []
        else:
            drawn, length = [example(rng.choice(list(GROUPS)), rng) for _ in range(size)], LENGTH
        prompts = [each.ids for each in tokenizer.encode_batch([each.prompt for each in drawn])]
        answers = [each.ids for each in tokenizer.encode_batch([each.answer for each in drawn])]
        widest = max(map(len, prompts))
        pads = torch.tensor([widest - len(ids) for ids in prompts])
        yield (
            torch.tensor([[END] * (widest - len(ids)) + ids for ids in prompts]),
            pads,
            torch.tensor([ids + [END] * (length - len(ids)) for ids in answers]),
        )
        n += 1


def fit(network, batches, causal: bool, updates: int, rate: float, seed: int) -> None:
    """AdamW with a warm-up and a cosine; one line of progress every 100 updates."""
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    network.train()
    for n, (prompts, pads, answers) in zip(range(updates), batches, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (n + 1) / 50) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * n / updates))
        loss = (next_token if causal else unmasking)(network, prompts, pads, answers, rng)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if (n + 1) % 100 == 0:
            print(f"update {n + 1}/{updates}: loss {loss.item():.4f}", flush=True)
    network.eval()


def unmasking(network, prompts: Tensor, pads: Tensor, answers: Tensor, rng) -> Tensor:
    """Loss of a masked diffusion model: cross-entropy over p at masked answer tokens, by the answers' size."""
    B, L = answers.shape
    t = torch.from_numpy(rng.random(B)).float()
    p = ((1 - SMALLEST) * t + SMALLEST)[:, None].expand(B, L)
    masked = torch.from_numpy(rng.random((B, L))).float() < p
    ids = torch.cat((prompts, answers.where(~masked, torch.tensor(MASK))), 1)
    logits = run(network, ids, pads, causal=False)[:, prompts.shape[1] :]
    nats = F.cross_entropy(logits[masked], answers[masked], reduction="none")
    return (nats / p[masked]).sum() / (B * L)


def next_token(network, prompts: Tensor, pads: Tensor, answers: Tensor, rng) -> Tensor:
    """Loss of the autoregressive twin: cross-entropy of the answer up to its first end."""
    ids = torch.cat((prompts, answers), 1)
    logits = run(network, ids, pads, causal=True)[:, prompts.shape[1] - 1 : -1]
    ended = F.pad((answers == END).long().cumsum(1)[:, :-1], (1, 0)) > 0
    return F.cross_entropy(logits[~ended], answers[~ended])


def run(network, ids: Tensor, pads: Tensor, causal: bool) -> Tensor:
    """Logits [B, T, V] of ids [B, T] whose first ``pads`` are padding."""
    T = ids.shape[1]
    at = torch.arange(T)
    seen = (at[None] >= pads[:, None])[:, None, None].expand(-1, 1, T, T)
    if causal:
        seen = seen & torch.ones(T, T, dtype=torch.bool).tril()
    seen = seen | torch.eye(T, dtype=torch.bool)  # a padding row sees itself
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    positions = (at[None] - pads[:, None]).clamp(min=0)
    return network(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def accuracies(folder: Path, causal: bool, count: int = 20) -> dict[str, float]:
    """Exact accuracy of each task, one token at a time, on test examples."""
    from parsimony.methods.autoregressive.verify import VerifyLoop
    from parsimony.methods.diffusion.sampler import BlockSampler
    from parsimony.methods.diffusion.static_unmasking import TopK
    from parsimony.models.decoder import Decoder
    from parsimony.models.masked import Masked

    model = Masked.load(folder, SPECIAL[MASK], SPECIAL[END : END + 1], "float32")
    if causal:
        model.decoder = Decoder.load(folder)
    system = VerifyLoop(model) if causal else BlockSampler(model, TopK("low_confidence", 1))
    rng, found = np.random.default_rng(0), {}
    for task in GROUPS:
        shown = examples(task, count)
        texts = [model.decode(system.generate(model.encode(each.prompt), LENGTH, rng).tokens) for each in shown]
        found[task] = float(np.mean([grade(each, text) for each, text in zip(shown, texts, strict=True)]))
    return found
