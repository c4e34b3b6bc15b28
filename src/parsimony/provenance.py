"""Where a number comes from: the facts that the measuring process writes beside its records."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

VECTORS = {"avx512_bf16": "AVX-512 and bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""Instructions on which the speed of matrix products hangs, widest first: names of processors may hide them."""
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "safetensors", "pillow", "imagecodecs", "constriction")


def facts(root: Path, plan_cell, dtype: str, timed: bool, gpu: bool = False) -> dict:
    """Provenance of a cell: no clock time, so that the same measurement gives the same bytes.

    ``determinism`` is "bit-equal rerun" where nothing but the seed decides the numbers, and "seeded" where the clock
    is among them.
    """
    lock = root / "configs" / "assets.lock.yaml"
    return {
        "code_version": plan_cell.code,
        "version": plan_cell.version,
        "commit": commit(root),
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest()[:16],
        "device": graphics() if gpu else processor(),
        "cores": threads(timed),
        "dtype": dtype,
        "batch": 1,
        "determinism": "seeded" if timed else "bit-equal rerun",
        "libraries": {
            name: metadata.version(name) for name in LIBRARIES if next(metadata.Distribution.discover(name=name), 0)
        },
        "python": platform.python_version(),
        "system": platform.system(),
    }


def commit(root: Path) -> str:
    """The commit of the project's folder, with a mark if files differ from it; "unknown" outside git."""
    try:
        run = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor(file: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the system gives it, and the widest vectors it computes with."""
    known = {}
    try:
        for line in file.read_text().splitlines():
            key, _, value = line.partition(":")
            known.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    name = known.get("model name") or platform.processor() or platform.machine()
    vectors = [label for flag, label in VECTORS.items() if flag in known.get("flags", "").split()]
    return f"{name} with {vectors[0]}" if vectors else name


def graphics() -> str:
    """The name of the GPU that this process runs on."""
    import torch

    return torch.cuda.get_device_name()


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(timed: bool) -> int:
    """Threads of a cell: all cores where the clock decides, else one, and other cells run beside it."""
    return cores() if timed else 1
