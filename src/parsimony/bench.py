"""How fast the parts are: the decoder against transformers and against the memory of this machine, the suffix tree."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np
import torch

from parsimony import provenance
from parsimony.assets import load_path
from parsimony.benchmarks.prompts import wiki_texts
from parsimony.methods.autoregressive.suffix_tree import SuffixTree
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


def bench_suffix(plan: Plan, tokens: int = 1_000_000, queries: int = 2000) -> dict:
    """Costs of a suffix tree of published depth (64) over ``tokens`` tokens of encyclopaedia articles.

    The first articles are inserted whole, one sequence each; the last tenth token by token, as decoding would.  Then
    drafts of at most 16 tokens behind random places, one half in articles that are in the tree, one half in others.

    Returns
    -------
    dict
        Microseconds an appended token (whole texts, token by token), a speculation (median and 99th percentile, lines
        and trees) and a speculated token, all with the time of the Python call, and bytes of the tree.
    """
    from transformers import AutoTokenizer

    config = next(iter(plan.models[key] for key in plan.suite.models))
    model, articles = (
        load_path(asset, plan.lock, plan.root / "resources") for asset in (config.asset, "wiki_summaries")
    )
    tokenizer, rng = AutoTokenizer.from_pretrained(model, local_files_only=True), np.random.default_rng(0)
    texts = [np.array(tokenizer(item.turns[0])["input_ids"], np.int32) for item in wiki_texts(articles, 10**6, 1, 0)]
    ends = np.cumsum([len(text) for text in texts])
    known, whole = (int(np.searchsorted(ends, share * min(tokens, 0.9 * ends[-1]))) for share in (1, 0.9))
    tree = SuffixTree(64)
    tree.extend(-1, texts[-1][:2]), tree.speculate([1, 2], 1), tree.speculate([1, 2], 1, tree=True)  # compiles
    tree = SuffixTree(64)
    began = perf_counter()
    for key in range(whole):
        tree.extend(key, texts[key])
    bulk, inserted = perf_counter() - began, tree.live
    began = perf_counter()
    for key in range(whole, known):
        for at in range(len(texts[key])):
            tree.extend(key, texts[key][at : at + 1])
    single = (perf_counter() - began) / max(tree.live - inserted, 1)

    result = {
        "tokens": tree.live,
        "sequences": len(tree),
        "append_microseconds": 1e6 * bulk / inserted,
        "append_one_microseconds": 1e6 * single,
        "bytes": tree.nbytes,
    }
    for shape in ("linear", "tree"):
        seconds, drafted = [], 0
        for n in range(queries):
            text = texts[int(rng.integers(*((0, known) if n % 2 else (known, len(texts)))))]
            context = text[: int(rng.integers(1, len(text) + 1))]
            began = perf_counter()
            draft = tree.speculate(context, 16, tree=shape == "tree")
            seconds.append(perf_counter() - began)
            drafted += len(draft.tokens)
        result |= {
            f"{shape}_median_microseconds": 1e6 * median(seconds),
            f"{shape}_p99_microseconds": 1e6 * float(np.quantile(seconds, 0.99)),
            f"{shape}_microseconds_per_token": 1e6 * sum(seconds) / max(drafted, 1),
        }
    return result


def suffix_text(result: dict) -> str:
    """The result of `bench_suffix` for people."""
    lines = [
        f"suffix tree of depth 64, {result['tokens']:,} tokens in {result['sequences']:,} sequences, "
        f"{result['bytes'] / 1e6:.0f} MB ({result['bytes'] / result['tokens']:.0f} bytes a token)",
        f"append       {result['append_microseconds']:6.2f} us a token in whole texts, "
        f"{result['append_one_microseconds']:.2f} us token by token",
    ]
    lines += [
        f"{shape + ' draft':12} {result[f'{shape}_median_microseconds']:6.1f} us median, "
        f"{result[f'{shape}_p99_microseconds']:.1f} us at the 99th percentile, "
        f"{result[f'{shape}_microseconds_per_token']:.2f} us a speculated token"
        for shape in ("linear", "tree")
    ]
    return "\n".join(lines)


def decoder_text(result: dict) -> str:
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
