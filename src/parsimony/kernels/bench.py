"""`make gpu-check`: every kernel on this GPU, checked, then timed against its reference and against the roofline.

    python -m parsimony.kernels.bench --out results/published/gpu

writes ``<device>.json`` and ``<device>.md``.  First what the device does at best is measured: bytes copied a second,
and multiplications a second of square matrices in each type.  A kernel's bound is the longer of its bytes at the one
rate and its operations at the other.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from parsimony.errors import UserError
from parsimony.kernels.common import NAMES, Case, tiles
from parsimony.kernels.table import as_markdown

SEEDS = 24
"""Irregular shapes that each kernel is checked on before it is timed."""
RUNS = 30
SIDE = 8192
"""Of the matrices whose product measures the rate of multiplication."""


def clocked(run: Callable[[], object], runs: int = RUNS) -> list[float]:
    """Sorted seconds of single runs, each from a cold second-level cache; the first two runs do not count."""
    cold = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    events = []
    for _ in range(runs + 2):
        cold.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        events.append((begin, end))
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) / 1e3 for begin, end in events[2:])


def rates() -> dict[str, float]:
    """Bytes a second of a copy, and operations a second of a product in each type, at best on this device.

    In float32 a product is what kernels take too, three in tf32, where that is faster than one in float32.
    """
    x = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    found = {"copy": 2 * x.numel() / clocked(lambda: y.copy_(x))[0]}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a = torch.randn(SIDE, SIDE, device="cuda", dtype=dtype)
        found[str(dtype)[6:]] = 2 * SIDE**3 / clocked(lambda a=a: a @ a, 10)[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    thrice = 2 * SIDE**3 / clocked(lambda: a @ a, 10)[0] / 3
    torch.set_float32_matmul_precision(before)
    return found | {"float32": max(found["float32"], thrice)}


def bound(case: Case, best: dict[str, float]) -> float:
    """Seconds that this device needs at least, by its own best rates."""
    return max(case.bytes / best["copy"], case.operations / best[str(case.dtype)[6:]])


def checked(module, device: str, seeds: int) -> dict:
    """Errors of a module's kernel on irregular shapes.

    Raises
    ------
    UserError
        If one is beyond its tolerance, with the shape.
    """
    worst = 0.0
    for seed in range(seeds):
        case = module.check(seed, device)
        error = case.error()
        if not error <= case.tolerance:
            name = module.__name__.rpartition(".")[2]
            raise UserError(
                f"{name} is wrong on {device}: seed {seed} ({case.name}) differs by {error:.2g}, {case.tolerance:g} is "
                "allowed; do not use it there, and report the device and the versions of torch and triton"
            )
        worst = max(worst, error / case.tolerance)
    return {"shapes": seeds, "worst_share_of_tolerance": worst}


def timed(case: Case, best: dict[str, float], compile_seconds: float) -> dict:
    """One row of the result: the kernel's time, the others', the bound, and the error at this shape."""
    error = case.error()
    if not error <= case.tolerance:
        raise UserError(f"the kernel is wrong at {case.name}: it differs by {error:.2g}, allowed is {case.tolerance:g}")
    spread = clocked(case.ours)
    others = {"reference": case.reference} | {name: run for name, run in case.rivals.items() if run is not None}
    row = {
        "case": case.name,
        "bytes": case.bytes,
        "operations": case.operations,
        "error": error,
        "seconds": statistics.median(spread),
        "tenth": spread[len(spread) // 10],
        "nine_tenths": spread[-1 - len(spread) // 10],
        "bound": bound(case, best),
        "others": {name: statistics.median(clocked(run, 10)) for name, run in others.items()},
    }
    if compile_seconds > 0:
        row["others"] |= compiled(case, compile_seconds)
    return row


def compiled(case: Case, limit: float) -> dict[str, float]:
    """Seconds of the reference as torch compiles it; nothing if that fails or takes longer than ``limit`` seconds."""
    began = time.perf_counter()
    try:
        run = torch.compile(case.reference, dynamic=False)
        run()
        torch.cuda.synchronize()
    except Exception as error:  # whatever the compiler cannot do: the row then says less, and why
        print(f"  torch.compile: {type(error).__name__}, left out")
        return {}
    if time.perf_counter() - began > limit:
        return {}
    return {"reference, compiled": statistics.median(clocked(run, 10))}


def tuned(module, index: int) -> dict:
    """The fastest tiles of a module for one of its cases, by trying all of its ``CHOICES``."""
    names, best = list(module.CHOICES), {}
    for values in itertools.product(*module.CHOICES.values()):
        chosen = dict(zip(names, values, strict=True))
        with tiles(module, **chosen):
            try:
                case = module.cases("cuda")[index]
                if not case.error() <= case.tolerance:
                    print(f"  {chosen}: wrong")
                    continue
                seconds = statistics.median(clocked(case.ours, 10))
            except Exception as error:  # tiles that do not fit the device
                print(f"  {chosen}: {type(error).__name__}")
                continue
        if not best or seconds < best["seconds"]:
            best = {"tiles": chosen, "seconds": seconds}
    return best


def measure(names: tuple[str, ...], tune: bool, compile_seconds: float) -> dict:
    """The whole result."""
    import triton

    properties, best = torch.cuda.get_device_properties(0), rates()
    result = {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "rates": best,
        "kernels": {},
    }
    for name in names:
        module = importlib.import_module(f"parsimony.kernels.{name}")
        print(name, flush=True)
        entry = checked(module, "cuda", SEEDS) | {"tiles": dict(module.TILES), "cases": []}
        for index, case in enumerate(module.cases("cuda")):
            row = timed(case, best, compile_seconds)
            if tune:
                row["tuned"] = tuned(module, index)
            print(f"  {row['case']}: {row['seconds'] * 1e6:.1f} us, bound {row['bound'] * 1e6:.1f} us", flush=True)
            entry["cases"].append(row)
        result["kernels"][name] = entry
    return result


def rehearse(names: tuple[str, ...]) -> None:
    """Checks alone, small ones, in Triton's interpreter: what can go wrong without a GPU goes wrong here."""
    for name in names:
        module = importlib.import_module(f"parsimony.kernels.{name}")
        found = checked(module, "cpu", 3)
        for case in module.cases("cpu", small=True):
            if not case.error() <= case.tolerance:
                raise UserError(f"{name} is wrong at {case.name} in the interpreter")
        share = found["worst_share_of_tolerance"]
        print(f"{name}: interpreted on the processor, largest error {share:.0%} of its tolerance; nothing timed")


def run(options: argparse.Namespace) -> None:
    """Check, time and write; or rehearse.

    Raises
    ------
    UserError
        Without a CUDA device, for an unknown kernel, or if a kernel is wrong.
    """
    import triton

    names = tuple(options.kernel or NAMES)
    if wrong := [name for name in names if name not in NAMES]:
        raise UserError(f"there is no kernel {wrong[0]!r}; choose from {', '.join(NAMES)}")
    if options.rehearse:
        if not triton.knobs.runtime.interpret:
            raise UserError("a rehearsal interprets kernels: set TRITON_INTERPRET=1")
        return rehearse(names)
    if not torch.cuda.is_available():
        raise UserError(
            "gpu-check needs a CUDA device, and torch sees none; run it on a machine with one, or with --rehearse and "
            "TRITON_INTERPRET=1 for the checks alone"
        )
    result = measure(names, options.tune, options.compile_seconds)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / re.sub(r"[^a-z0-9]+", "_", result["device"].lower()).strip("_")
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(as_markdown(result))
    print(f"{stem}.json, {stem}.md")
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run by itself; what a user can mend is one sentence and exit status 2."""
    from parsimony.cli import main as command

    return command(["gpu-check", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    raise SystemExit(main())
