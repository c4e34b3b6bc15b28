"""A model's own greedy answers to prompts that no benchmark uses: the corpus of drafters that learn from the target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from parsimony import devices
from parsimony.errors import UserError
from parsimony.models.language import Language

REQUESTS = (
    "Tell me about {}.",
    "Write a Python class that describes {}, with an example of its use.",
    "List ten facts about {}.",
    "Write a short story in which {} plays a part.",
    "Make up a word problem about {} and solve it step by step.",
    "Write a letter to a friend about {}.",
    "Write a Python function that asks three questions about {} and counts the right answers.",
    "Explain step by step how to prepare a talk about {}.",
)

BENCHMARK_CHARACTERS = 300
"""Shorter lead sections than this are left alone by every benchmark that reads the encyclopaedia."""


def write(
    out: Path,
    inputs: dict[str, Path],
    model: str,
    text: str,
    stop: list,
    prompts: int,
    limit: int,
    batch: int,
    floors: list,
    seed: int,
):
    """Answer requests about subjects of encyclopaedia articles, greedily, in float32 and in batches.

    Disjoint from the benchmarks: only subjects are used whose lead section has fewer than 300 characters, and no
    benchmark takes so short an article; the requests are worded unlike those of the benchmarks.

    Writes ``outputs.safetensors``, all int32: ``tokens`` (prompt 0, answer 0, prompt 1, ... in one row),
    ``prompt_lengths`` [n] and ``lengths`` [n] (prompt and answer together).  An answer ends with the token that ends
    the turn, unless ``limit`` came first.

    Parameters
    ----------
    floors : list of float
        Least mean answer length (tokens), least share of distinct answers, largest mean NLL (nats a token).

    Raises
    ------
    UserError
        When the answers miss one of the ``floors``: a corpus of stubs, of one answer, or of noise.
    """
    language = Language.load(inputs[model], stop, "float32", devices.held())
    articles = json.loads((inputs[text] / "summaries.json").read_text(encoding="utf-8")).values()
    subjects = sorted(a["title"] for a in articles if len(a["extract"]) < BENCHMARK_CHARACTERS)
    chosen = np.random.default_rng(seed).choice(len(subjects), prompts, replace=False)
    requests = [REQUESTS[n % len(REQUESTS)].format(subjects[at]) for n, at in enumerate(chosen)]
    asked = [language.chat([{"role": "user", "content": request}]) for request in requests]
    answers, nats = [], 0.0
    for begin in range(0, prompts, batch):
        part, nll = answer(language, asked[begin : begin + batch], limit)
        answers, nats = answers + part, nats + nll

    total = sum(map(len, answers))
    length, distinct = total / prompts, len({tuple(a.tolist()) for a in answers}) / prompts
    if length < floors[0] or distinct < floors[1] or nats / total > floors[2]:
        raise UserError(
            f"own outputs: mean length {length:.1f}, distinct {distinct:.2f}, NLL {nats / total:.2f}; the floors are "
            f"at least {floors[0]}, at least {floors[1]}, at most {floors[2]}: the model does not answer its prompts"
        )
    whole = [torch.cat(pair) for pair in zip(asked, answers, strict=True)]
    columns = {
        "tokens": torch.cat(whole),
        "prompt_lengths": torch.tensor(list(map(len, asked))),
        "lengths": torch.tensor(list(map(len, whole))),
    }
    facts = {"answer_tokens": total, "mean_nll": f"{nats / total:.3f}", "distinct": f"{distinct:.3f}"}
    metadata = {name: str(value) for name, value in facts.items()}
    save_file({name: column.int() for name, column in columns.items()}, out / "outputs.safetensors", metadata)


def answer(language: Language, prompts: list[Tensor], limit: int) -> tuple[list[Tensor], float]:
    """Greedy answers (at most ``limit`` tokens each) to prompts of any lengths, padded on the left, in one batch.

    Returns
    -------
    tuple (list of Tensor [T_i] int64, float)
        The answers, and the sum of their negative log-likelihoods in nats.
    """
    decoder, stop = language.decoder, torch.tensor(sorted(language.stop_ids))
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    pads = longest - lengths
    ids = torch.stack([torch.nn.functional.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
    cache = decoder.cache(longest + limit, len(prompts))
    logits = decoder.prefill(ids, cache, pads=pads)[:, -1].cpu()
    steps, live, nats = [], [], torch.zeros(len(prompts))
    going = torch.ones(len(prompts), dtype=torch.bool)
    while going.any() and len(steps) < limit:
        token = logits.argmax(-1)
        nats -= torch.where(going, logits.float().log_softmax(-1).gather(1, token[:, None])[:, 0], 0)
        steps.append(token)
        live.append(going)
        going = going & ~torch.isin(token, stop)
        if going.any() and len(steps) < limit:
            logits = decoder.forward(token[:, None], cache)[:, -1].cpu()
    table, written = torch.stack(steps, 1), torch.stack(live, 1).sum(1)
    return [row[:n] for row, n in zip(table, written.tolist(), strict=True)], float(nats.sum())


def read(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Prompt and answer ([T] int64 each) of every conversation in ``outputs.safetensors``."""
    columns = load_file(folder / "outputs.safetensors")
    whole = columns["tokens"].long().split(columns["lengths"].tolist())
    return [(ids[:n], ids[n:]) for ids, n in zip(whole, columns["prompt_lengths"].tolist(), strict=True)]
