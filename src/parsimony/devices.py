"""GPUs of this machine: a job holds its own until its process ends, whoever else runs here."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from parsimony.errors import UserError

POLL = 5
"""Seconds between two looks for a free one."""
_held: dict[str, object] = {}
"""Open lock files by GPU: the system lets go of them when the process ends, however it ends."""


def visible() -> list[str]:
    """The GPUs that this process may use: ``CUDA_VISIBLE_DEVICES``, as schedulers set it, or all device files."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def lease(count: int, folder: Path) -> list[str]:
    """Hold ``count`` GPUs that no other process holds by a lock in ``folder``, and make no others visible.

    Waits while they are busy.  To be called before CUDA is first used; a second call returns what is held.

    Raises
    ------
    UserError
        When there are fewer on this machine.
    """
    names = visible()
    if len(names) < count:
        raise UserError(
            f"this job asks for {count} GPU{'s' * (count > 1)}, and this process sees {len(names)}; run where there "
            "are more, or go through the suite with small stand-ins: scale=rehearsal"
        )
    folder.mkdir(parents=True, exist_ok=True)
    told = False
    while len(_held) < count:
        for name in names:
            if len(_held) < count and name not in _held:
                file = open(folder / f"{socket.gethostname()}-gpu-{name}.lock", "w")  # noqa: SIM115 (held to the end)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _held[name] = file
                except BlockingIOError:
                    file.close()
        if len(_held) < count:
            if not told:
                print(f"waits for {count - len(_held)} of GPUs {', '.join(names)}", file=sys.stderr, flush=True)
            told = True
            time.sleep(POLL)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_held)
    return list(_held)


def use(count: int, folder: Path) -> list[str]:
    """`lease` GPUs that are to give the same bits at every run where they can; torch's names for them."""
    lease(count, folder)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    return held()


def held() -> list[str]:
    """Where networks of this process go: torch's names of the GPUs that it holds, or the processor."""
    return [f"cuda:{n}" for n in range(len(_held))] or ["cpu"]


@contextlib.contextmanager
def metered(names: list[str]) -> Iterator[dict[str, float]]:
    """What GPUs held and did in a block of code, known behind it; nothing without GPUs.

    ``peak_bytes`` is what tensors took of them at most, and ``seconds`` the time between the first and the last that
    the first of them had to do.
    """
    told: dict[str, float] = {}
    if not names:
        yield told
        return
    import torch

    for name in names:
        torch.cuda.reset_peak_memory_stats(name)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    yield told
    end.record()
    for name in names:
        torch.cuda.synchronize(name)
    told["peak_bytes"] = sum(map(torch.cuda.max_memory_allocated, names))
    told["seconds"] = begin.elapsed_time(end) / 1000


def summed(items: list[dict[str, float] | None], timed: bool) -> dict[str, float]:
    """The facts of a cell from those of its items: its peak, and its seconds if it is one that the clock decides."""
    items = [told for told in items if told]
    if not items:
        return {}
    facts = {"gpu_peak_bytes": max(told["peak_bytes"] for told in items)}
    return facts | ({"gpu_seconds": sum(told["seconds"] for told in items)} if timed else {})
