"""How fast the decoder is: against transformers on the same weights, and against the memory of this machine."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np
import torch

from parsimony import provenance
from parsimony.assets import load_path
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.models.language import Language
from parsimony.plan import Plan

PROMPT = "Explain in a few paragraphs how the tides of the sea come about and why they differ from place to place."


def bench_decoder(plan: Plan, rounds: int = 5, tokens: int = 64) -> dict:
    """Tokens per second of our bfloat16 greedy loop and of ``transformers.generate``, interleaved in one process.

    Returns
    -------
    dict
        Medians over the rounds of both rates and of their ratio, the bytes of weights that one token reads, the copy
        bandwidth measured here, and the fraction of it that the decode steps reach.
    """
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(provenance.cores())
    config = next(iter(plan.models[key] for key in plan.suite.models))
    folder = load_path(config.asset, plan.lock, plan.root / "resources")
    model = Language.load(folder, config.params["stop"], "bfloat16")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()
    theirs.generation_config.pad_token_id = theirs.generation_config.eos_token_id
    prompt, loop = model.chat([{"role": "user", "content": PROMPT}]), VerifyLoop(model)

    def ours() -> tuple[int, float, float]:
        began = perf_counter()
        generation = loop.generate(prompt, tokens, np.random.default_rng(0))
        return len(generation.tokens), perf_counter() - began, generation.cost.verify_seconds

    def reference() -> tuple[int, float]:
        began = perf_counter()
        with torch.inference_mode():
            out = theirs.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=tokens,
                                  do_sample=False)  # fmt: skip
        return out.shape[1] - len(prompt), perf_counter() - began

    ours(), reference()
    pairs = [(ours(), reference()) for _ in range(rounds)]
    weights = sum(weight.nbytes for weight in _weights(model.decoder))
    step = median(seconds / max(count - 1, 1) for (count, _, seconds), _ in pairs)
    bandwidth = copy_bandwidth()
    return {
        "model": plan.suite.models[0],
        "dtype": "bfloat16",
        "cores": torch.get_num_threads(),
        "tokens_per_second": median(n / s for (n, s, _), _ in pairs),
        "transformers_tokens_per_second": median(n / s for _, (n, s) in pairs),
        "ratio": median((n / s) / (m / t) for (n, s, _), (m, t) in pairs),
        "milliseconds_per_step": 1e3 * step,
        "weight_bytes_per_step": weights,
        "copy_bandwidth": bandwidth,
        "fraction_of_copy_bandwidth": weights / step / bandwidth,
    }


def copy_bandwidth(megabytes: int = 256, rounds: int = 7) -> float:
    """Bytes per second that a large tensor copy reads and writes here (the best of several)."""
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    times = []
    for _ in range(rounds):
        began = perf_counter()
        target.copy_(source)
        times.append(perf_counter() - began)
    return 2 * source.nbytes / min(times)


def as_text(result: dict) -> str:
    """The result of `bench_decoder` for people."""
    return (
        f"{result['model']}, {result['dtype']}, {result['cores']} cores, greedy\n"
        f"parsimony     {result['tokens_per_second']:6.1f} tokens/s\n"
        f"transformers  {result['transformers_tokens_per_second']:6.1f} tokens/s\n"
        f"ratio         {result['ratio']:6.2f}\n"
        f"one step reads {result['weight_bytes_per_step'] / 1e6:.0f} MB of weights in "
        f"{result['milliseconds_per_step']:.1f} ms: {result['fraction_of_copy_bandwidth']:.0%} of the copy bandwidth "
        f"of {result['copy_bandwidth'] / 1e9:.0f} GB/s, the ceiling of one-row decoding"
    )


def _weights(decoder):
    yield decoder.head
    for layer in decoder.layers:
        yield from (layer.qkv, layer.o, layer.gate_up, layer.down)
