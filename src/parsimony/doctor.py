"""What this machine has, and which suites and studies that allows."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections import Counter
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from parsimony import provenance, sandbox
from parsimony.errors import UserError
from parsimony.plan import Plan, find_root, make_plan

SECONDS = 3
"""How long the hub may take to answer."""
SLACK_GB = 4
"""What a GPU may lack of the memory by which it is known."""


def examine() -> int:
    """Print a line a fact, a suite and a study that cannot run whole.

    Raises
    ------
    UserError
        When a package is missing that every suite needs.
    """
    root, lacking = find_root(), []
    for fact, value in _packages(root, lacking) + _machine(root) + _tools():
        print(f"{fact:10} {value}")
    print()
    plans = {file.stem: make_plan([f"suite={file.stem}"], root) for file in sorted((root / "configs/suite").glob("*"))}
    for name, plan in plans.items():
        print(f"suite {name}: {_suite(plan)}")
        for paper in plan.papers:
            cells = [cell for cell in plan.cells.values() if paper in cell.papers]
            reasons = Counter(reason for cell in cells if (reason := _obstacle(plan, cell)))
            for reason, count in reasons.items():
                print(f"  {paper}: {count} of {len(cells)} cells without all their data or at all: {reason}")
    if lacking:
        raise UserError(f"the environment lacks {', '.join(lacking)}; run `make install`")
    return 0


def _packages(root: Path, lacking: list[str]) -> list[tuple[str, str]]:
    """Packages that are not as pinned; what is missing is added to ``lacking``."""
    pins = [line.split("==") for line in (root / "envs/requirements.txt").read_text().splitlines() if "==" in line]
    differing = []
    for name, pinned in pins:
        try:
            found = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            lacking.append(name)
            continue
        if found != pinned:
            differing.append(f"{name} {found} (pinned {pinned})")
    if not differing:
        return [("packages", f"{len(pins) - len(lacking)} of {len(pins)} as pinned")]
    return [("packages", f"results may differ in the last digits: {', '.join(differing)}")]


def _machine(root: Path) -> list[tuple[str, str]]:
    facts = [("processor", f"{provenance.processor()}, {provenance.cores()} cores")]
    memory, free = _memory(), shutil.disk_usage(root).free / 2**30
    facts.append(("memory", f"{memory:.0f} GiB{'' if memory > 6 else ': the quick suite needs 6'}"))
    facts.append(("disk", f"{free:.0f} GiB free{'' if free > 4 else ': the quick suite needs 4'}"))
    if find_spec("torch") and not _gpus():
        return [*facts, ("gpu", "none: everything runs on the processor")]
    for n, of in enumerate(_gpus()):
        facts.append(("gpu", f"{n}: {of.name}, {of.total_memory / 2**30:.0f} GiB, compute {of.major}.{of.minor}"))
    return facts


def _tools() -> list[tuple[str, str]]:
    facts = []
    for name, commands, use in (
        ("debian", ["apt-get", "dpkg-deb"], "assets of source debian"),
        ("slurm", ["sbatch", "squeue"], "--executor slurm"),
        ("latex", ["pdflatex"], "typesetting the report's tables"),
    ):
        missing = [command for command in commands if not shutil.which(command)]
        facts.append((name, f"{'no ' + missing[0] if missing else 'found'} ({use})"))
    if find_spec("triton"):
        facts.append(("triton", f"{metadata.version('triton')} (kernels; compiles for GPUs that are not here, too)"))
    else:
        facts.append(("triton", "not installed (kernels; methods use their references in torch)"))
    why = sandbox.obstacle(())
    facts.append(("sandbox", f"{why or 'bubblewrap'}{'' if why else ' (benchmarks that run generated programs)'}"))
    facts.append(("hub", f"{_hub()} (assets of source hub)"))
    return facts


def _suite(plan: Plan) -> str:
    """How much of a suite is there to do, and what it still has to fetch."""
    absent = [key for key in plan.assets if not (plan.root / "resources" / key / "manifest.json").exists()]
    size = sum(file.size or 0 for key in absent for file in plan.lock[key].files.values()) / 1e9
    whole = sum(not _obstacle(plan, cell) for cell in plan.cells.values())
    fetch = f"{len(absent)} assets to fetch or make, {size:.1f} GB" if absent else "all assets are there"
    return f"{whole} of {len(plan.cells)} cells of {len(plan.papers)} papers can run whole; {fetch}"


def _obstacle(plan: Plan, cell) -> str:
    """Why a cell cannot run, or not on all of its data; "" if it can."""
    if reason := plan.obstacle(cell.method, cell.benchmark):
        return reason
    for key in map(plan.played_by, cell.assets):
        if plan.lock[key].source == "debian" and not shutil.which("apt-get"):
            return f"asset {key!r} is a Debian package, and there is no apt-get"
        if plan.lock[key].source == "hub" and os.environ.get("HF_HUB_OFFLINE") == "1":
            return f"asset {key!r} is on the hub, and HF_HUB_OFFLINE is set"
        if not plan.lock[key].locked:
            return f"asset {key!r} is not locked yet (`parsimony lock {key}`)"
    if plan.gpu_gb and max((of.total_memory / 1e9 for of in _gpus()), default=0) < plan.gpu_gb - SLACK_GB:
        return f"it asks for a GPU of {plan.gpu_gb:g} GB"
    return ""


@cache
def _gpus() -> tuple:
    """What torch knows of each GPU."""
    if not find_spec("torch"):
        return ()
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(torch.cuda.get_device_properties(n) for n in range(count))


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "off: HF_HUB_OFFLINE is set"
    from huggingface_hub import constants

    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS):
            return f"{constants.ENDPOINT} answers"
    except urllib.error.HTTPError:
        return f"{constants.ENDPOINT} answers"
    except (OSError, ValueError):
        return f"{constants.ENDPOINT} does not answer"


def _memory() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            return int(line.split()[1]) / 2**20
    return float("inf")
