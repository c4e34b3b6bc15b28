"""The journal of a running cell: one shard an item, so that a killed job goes on where it stopped.

A shard's key is a hash of the cell's version, its item, the seed and the shard before it: whatever determines the
numbers determines the name.  Shards appear by atomic rename and carry a hash of their content; a shard that does not
agree with it counts as missing.  What systems learn from item to item is saved in front of the shard that it follows.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from pathlib import Path

from parsimony.fingerprint import combine
from parsimony.records import atomic


class Journal:
    """Shards of one cell in ``folder``.

    Parameters
    ----------
    folder : Path
    version : str
        Version of the cell (code, configuration, assets).
    items : list of str
        Item ids in order.
    """

    def __init__(self, folder: Path, version: str, items: list[str], seed: int):
        self.folder, self.keys = Path(folder), []
        key = version
        for item in items:
            key = combine([key, item, seed])
            self.keys.append(key)

    def done(self) -> list[dict]:
        """Contents of the shards of the leading items; ends at the first that is missing or damaged."""
        shards = []
        for n in range(len(self.keys)):
            shard = self._read(n)
            if shard is None:
                break
            shards.append(shard)
        return shards

    def write(self, n: int, shard: dict, state: dict) -> None:
        """Append the shard of item ``n`` and the state of the systems behind it (tensors by name; may be empty)."""
        if state:
            from safetensors.torch import save

            with atomic(self._state(n)) as partial:
                partial.write_bytes(save(state))
        payload = json.dumps(shard)
        with atomic(self._shard(n)) as partial:
            partial.write_text(hashlib.sha256(payload.encode()).hexdigest() + "\n" + payload)
        if n >= 2:
            self._state(n - 2).unlink(missing_ok=True)

    def state(self, n: int) -> dict | None:
        """State of the systems behind item ``n``, or None if it was not kept or is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self._state(n).read_bytes())
        except (FileNotFoundError, SafetensorError):
            return None

    def remove(self) -> None:
        """The cell is published: its journal is no longer needed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _shard(self, n: int) -> Path:
        return self.folder / f"{n:05d}_{self.keys[n]}.json"

    def _state(self, n: int) -> Path:
        return self.folder / f"{n:05d}_{self.keys[n]}.safetensors"

    def _read(self, n: int) -> dict | None:
        try:
            digest, payload = self._shard(n).read_text().split("\n", 1)
        except (FileNotFoundError, ValueError, UnicodeDecodeError):
            return None
        return json.loads(payload) if hashlib.sha256(payload.encode()).hexdigest() == digest else None


@contextlib.contextmanager
def alone(path: Path):
    """Hold a lock file: of two runs of the same cell, the second waits and finds the work done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
