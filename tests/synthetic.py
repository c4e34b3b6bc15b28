"""Records as cells write them, made up but consistent: what reports can be tested on without running a model."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from parsimony.records import COLUMNS

CATEGORIES = {  # tokens gained a pass by prompt lookup and by Token Recycling with a large tree
    "maths": (1.25, 2.1),
    "code": (1.45, 2.4),
    "summarisation": (1.75, 2.0),
    "question_answering": (1.55, 1.9),
    "multi_turn": (1.6, 2.2),
    "free_writing": (1.1, 1.8),
}
SKIPPED = {"translation": "suite quick takes no data from source debian"}
MODEL = "smollm2_135m_instruct"
LOOKUP = {"draft_tokens": 10, "max_ngram": 2}
RECYCLING = {"hot": True, "nodes": 80, "recycle_prompt": False, "tree": "static"}
METHODS = {  # method -> point -> (params, rows drafted in a pass, share of the gain of the method's best point)
    "greedy": {"greedy": ({}, 0, 0.0)},
    "prompt_lookup": {
        "ngram_2": (LOOKUP, 8, 1.0),
        "ngram_3": (LOOKUP | {"max_ngram": 3}, 7, 0.99),
        "ngram_2_short": (LOOKUP | {"draft_tokens": 5}, 4, 0.85),
    },
    "token_recycling": {
        "tree_80": (RECYCLING, 80, 1.0),
        "tree_80_cold": (RECYCLING | {"hot": False}, 80, 0.8),
        "tree_32": (RECYCLING | {"nodes": 32}, 32, 0.9),
        "tree_16": (RECYCLING | {"nodes": 16}, 16, 0.78),
        "tree_8": (RECYCLING | {"nodes": 8}, 8, 0.6),
        "chain_6": (RECYCLING | {"nodes": 6, "tree": "chain"}, 6, 0.5),
        "auto": (RECYCLING | {"nodes": "auto"}, 16, 0.78),
    },
}
SECONDS = {"float32": (0.050, 0.0007), "bfloat16": (0.028, 0.0013), "float16": (0.010, 0.0065)}  # fixed, a row
ROWS = (1, 2, 4, 8, 12, 16, 32, 64, 81)
UNITS = {"passes": "passes", "cache_bytes": "bytes", "nll": "nats", "bytes": "bytes"}
UNITLESS = ("equal", "tie", "diverged", "logit_gap")


def records(n_items: int = 42, seed: int = 0) -> pd.DataFrame:
    """Records of four benchmarks and three methods; every method's translation category is skipped with a reason.

    Parameters
    ----------
    n_items : int
        Items of ``spec_mix``, ``spec_mix_speed`` and ``wiki_nll`` each; categories take turns.
    seed : int
    """
    rng = np.random.default_rng(seed)
    rows: list[dict] = []
    names = list(CATEGORIES)
    for benchmark in ("spec_mix", "spec_mix_speed"):
        timed = benchmark == "spec_mix_speed"
        for n in range(n_items):
            category = names[n % len(names)]
            tokens, ease = int(rng.integers(40, 97)), rng.normal(1.0, 0.08)
            speed = rng.normal(1.0, 0.05)
            for method, points in METHODS.items():
                for point, (params, drafted, share) in points.items():
                    gain = (CATEGORIES[category][method == "token_recycling"] - 1.0) * share * max(ease, 0.2)
                    numbers = _generation(rng, tokens, 1.0 + gain, drafted)
                    if timed:
                        numbers |= _timing(rng, numbers, method, speed)
                    elif method != "greedy":
                        tie = rng.random() < 0.02
                        numbers |= {"equal": float(not tie), "tie": float(tie)}
                    item = f"{category}_{n // len(names):03d}"
                    rows += _rows(benchmark, method, point, params, item, category, numbers)
        for method, points in METHODS.items():
            for point, (params, _, _) in points.items():
                for category, reason in SKIPPED.items():
                    rows += _rows(benchmark, method, point, params, "", category, {"items": np.nan}, reason)
    for n in range(n_items):
        tokens = int(rng.integers(300, 512))
        numbers = {"nll": tokens * rng.normal(2.6, 0.2), "tokens": tokens, "bytes": int(tokens * rng.normal(4.4, 0.2))}
        rows += _rows("wiki_nll", "greedy", "greedy", {}, f"wiki_{n:03d}", "encyclopaedia", numbers)
    for dtype, (fixed, each) in SECONDS.items():
        for count in ROWS:
            numbers = {"rows": count, "seconds": (fixed + each * (count - 1)) * rng.normal(1.0, 0.01)}
            rows += _rows("latency", "greedy", "greedy", {}, f"{dtype}_{count}", dtype, numbers)
    return pd.DataFrame(rows, columns=COLUMNS)


def _generation(rng, tokens: int, gained: float, drafted: int) -> dict[str, float]:
    passes = tokens - 1 if drafted == 0 else int(np.ceil((tokens - 1) / (gained * rng.normal(1.0, 0.05))))
    passes = min(max(passes, 1), tokens - 1)
    counts = {"tokens": tokens, "step_tokens": tokens - 1, "passes": passes, "rows": passes * (drafted + 1)}
    return counts | {
        "drafted": passes * drafted,
        "accepted": tokens - 1 - passes,
        "cache_bytes": 46080 * (tokens + 200),
    }


def _timing(rng, numbers: dict, method: str, speed: float) -> dict[str, float]:
    fixed, each = SECONDS["bfloat16"]
    tokens, drafted = numbers["tokens"], numbers["drafted"]
    verify = (numbers["passes"] * fixed + drafted * each / 2) * speed * rng.normal(1.0, 0.02)
    draft = 0.0 if method == "greedy" else numbers["passes"] * 0.0008
    seconds = {"prefill_seconds": 0.15 * speed, "draft_seconds": draft, "verify_seconds": verify}
    times = seconds | {"seconds": sum(seconds.values())}
    if method == "greedy":
        return times
    for name, dtype in (("reference", "bfloat16"), ("fastest", "float16")):
        plain = (0.15 + tokens * SECONDS[dtype][0]) * speed * rng.normal(1.0, 0.02)
        times |= {f"{name}_seconds": plain, f"{name}_tokens": tokens}
    diverged = rng.random() < 0.1
    times |= {"diverged": float(diverged), "budget": drafted / numbers["passes"]}
    if diverged:
        times |= {"first_divergence": int(rng.integers(tokens)), "logit_gap": float(rng.exponential(0.05))}
    return times


def _rows(benchmark, method, point, params, item, category, numbers, reason="") -> list[dict]:
    common = {"suite": "quick", "cell": f"{benchmark}--{MODEL}--{method}", "model": MODEL, "benchmark": benchmark}
    common |= {"method": method, "point": point, "params": json.dumps(params, sort_keys=True), "item": item}
    common |= {"category": category, "seed": 0, "status": "skipped" if reason else "ok", "reason": reason}
    return [common | {"metric": m, "value": float(v), "unit": "" if reason else _unit(m)} for m, v in numbers.items()]


def _unit(metric: str) -> str:
    if metric in UNITLESS:
        return ""
    return "s" if metric.endswith("seconds") else UNITS.get(metric, "tokens")
