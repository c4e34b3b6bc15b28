"""A copy of the whole project whose model is tiny and whose data are a few real-shaped rows; nothing is mocked."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from copy import copy
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from parsimony import records

WORDS = "A baker sells {} loaves and {} rolls a day. How many pieces does the bakery sell in {} days?"


class Project:
    """The copy at ``folder``, with suite ``tiny`` as its default."""

    def __init__(self, folder: Path, root: Path, tiny: Path):
        self.folder = folder
        for name in ("src", "configs", "workflow", "envs", "docs"):
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copy(root / "Snakefile", folder)
        assets = folder / "results" / "published" / "assets"
        shutil.copytree(tiny, assets / "smollm2_135m_instruct")
        for key, name in (("gsm8k_sample", "gsm8k.jsonl"), ("smollm2_recycling_calibration", "acceptance.safetensors")):
            (assets / key).mkdir()
            path = assets / key / name
            if name.endswith("jsonl"):
                rows = [{"prompt": WORDS.format(n + 3, 2 * n + 5, n % 7 + 2)} for n in range(40)]
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            else:
                save_file({"accepted": torch.arange(80, 0, -1), "passes": torch.tensor([200])}, path)
        self.edit_lock(assets)
        self.write("configs/suite/tiny.yaml", {
            "title": "A tiny model on a few rows", "papers": ["token_recycling"], "models": ["smollm2_135m_instruct"],
            "sources": ["shipped"],
            "points": {"prompt_lookup": ["ngram_2", "auto"], "token_recycling": ["tree_80", "tree_8", "auto"]},
            "params": {"spec_mix": {"items": 6, "limit": 8}, "spec_mix_speed": {"items": 2, "limit": 6},
                       "latency": {"dtypes": ["float32", "bfloat16"], "rows": [1, 8, 81], "repeats": 1}},
        })  # fmt: skip
        config = folder / "configs" / "config.yaml"
        config.write_text(config.read_text().replace("suite: quick", "suite: tiny"))

    def copied(self, folder: Path) -> "Project":
        """A copy of the copy as it is now, in a folder that is there and empty."""
        other = copy(self)
        other.folder = shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return other

    def edit_lock(self, assets: Path) -> None:
        path = self.folder / "configs" / "assets.lock.yaml"
        lock = yaml.safe_load(path.read_text())
        for folder in assets.iterdir():
            files = {
                f.name: {"size": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()}
                for f in sorted(folder.iterdir())
            }
            lock[folder.name] = {"source": "shipped", "revision": "1", "licence": "Apache-2.0", "origin": "test"}
            lock[folder.name]["files"] = files
        path.write_text(yaml.safe_dump(lock))

    def write(self, name: str, content) -> Path:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    @property
    def environment(self) -> dict:
        there = {"PYTHONPATH": str(self.folder / "src"), "PARSIMONY_ROOT": str(self.folder), "OMP_NUM_THREADS": "1"}
        return os.environ | there

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "parsimony.cli", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def parsimony(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of a command."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def records(self, cell: str):
        """Records of a measured cell."""
        return records.read(self.folder / "results" / "tiny" / "cells" / f"{cell}.parquet")[0]

    def snakemake(self, *arguments: str) -> str:
        """Output of a snakemake run that succeeds."""
        command = [sys.executable, "-m", "snakemake", "--cores", "all", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr
