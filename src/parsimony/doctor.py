"""What this machine has, and what that allows."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from parsimony import provenance
from parsimony.errors import UserError
from parsimony.plan import find_root


def examine() -> int:
    """Print a line a fact; returns 1 if something is missing that the quick suite needs."""
    root, sound = find_root(), True
    pins = [line.split("==") for line in (root / "envs/requirements.txt").read_text().splitlines() if "==" in line]
    for name, pinned in pins:
        try:
            found = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            print(f"missing   {name}=={pinned}: run `make install`")
            sound = False
            continue
        if found != pinned:
            print(f"differs   {name} {found}, pinned {pinned}: results may differ in the last digits")
    print(f"processor {provenance.processor()}, {provenance.cores()} cores")
    free = shutil.disk_usage(root).free / 2**30
    print(f"disk      {free:.0f} GiB free{'' if free > 4 else ': the quick suite needs 4'}")
    memory = _memory()
    print(f"memory    {memory:.0f} GiB{'' if memory > 6 else ': the quick suite needs 6'}")
    try:
        import torch

        print(f"device    {torch.cuda.get_device_name() if torch.cuda.is_available() else 'processor only'}")
    except ModuleNotFoundError:
        sound = False
    for tool, use in (("apt-get", "assets of source debian"), ("sbatch", "the slurm profile"), ("pip", "downloads")):
        there = shutil.which(tool) or (tool == "pip" and _has_pip())
        print(f"{'found' if there else 'no':9} {tool} ({use})")
    if not sound:
        raise UserError("the environment is incomplete, see above; run `make install`")
    return 0


def _has_pip() -> bool:
    try:
        return bool(metadata.version("pip"))
    except metadata.PackageNotFoundError:
        return False


def _memory() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            return int(line.split()[1]) / 2**20
    return float("inf")
