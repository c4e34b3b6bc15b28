"""The lock file: reading its rows, and writing into them what a recipe or the hub turned out to hold."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import yaml

from parsimony.config import Asset, parse
from parsimony.errors import UserError, nearest
from parsimony.rows import read_rows


def read_lock(path: Path) -> dict[str, Asset]:
    """All rows of a lock file.

    Raises
    ------
    UserError
        Naming the row and the key that is wrong.
    """
    try:
        rows = read_rows(Path(path)) or {}
    except FileNotFoundError:
        raise UserError(f"there is no lock file {path}; run inside a checkout, or `git checkout -- {path}`") from None
    if not isinstance(rows, dict):
        raise UserError(f"{path} must map asset keys to rows, not hold a {type(rows).__name__}")
    lock = {key: parse(Asset, row, f"configs/{Path(path).name}, asset {key!r}") for key, row in rows.items()}
    for key, asset in lock.items():
        for needed in asset.inputs:
            if needed not in lock:
                raise UserError(f"{path}, asset {key!r}: no asset {needed!r}{nearest(needed, lock)}")
    return lock


def write_row(path: Path, key: str, files: dict[str, dict], revision: str | None = None) -> None:
    """Put ``{"size": ..., "sha256": ...}`` of each file, and a revision, into a row; every other character stays.

    The file is replaced at once; of two that write at the same time, the second sees what the first wrote.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        text = path.read_text()
        row = _value(yaml.compose(text, Loader=yaml.SafeLoader), key)
        edits = []
        if revision is not None:
            old = _value(row, "revision")
            edits.append((old.start_mark.index, old.end_mark.index, f'"{revision}"'))
        for name, facts in files.items():
            edits += _edits(text, _value(_value(row, "files"), name), facts)
        for begin, end, new in sorted(edits, reverse=True):
            text = text[:begin] + new + text[end:]
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        os.close(folder)


def _edits(text: str, node: yaml.MappingNode, facts: dict) -> list[tuple[int, int, str]]:
    """(begin, end, new text) for each fact: in place of its old value, or behind the last key of the mapping."""
    edits, added = [], []
    for field, fact in facts.items():
        old = _value(node, field)
        if old is None:
            added.append(f"{field}: {fact}")
        else:
            edits.append((old.start_mark.index, old.end_mark.index, str(fact)))
    if added and node.flow_style:
        at = node.end_mark.index - 1
        edits.append((at, at, (", " if node.value else "") + ", ".join(added)))
    elif added:
        indent = "\n" + " " * node.start_mark.column
        at = text.find("\n", node.value[-1][1].end_mark.index)
        at = len(text) if at < 0 else at
        edits.append((at, at, indent + indent.join(added)))
    return edits


def _value(mapping: yaml.MappingNode, key: str) -> yaml.Node | None:
    return next((value for name, value in mapping.value if name.value == key), None)
