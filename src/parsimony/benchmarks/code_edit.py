"""Real edits of real functions: the whole new function is asked for, so the output is close to the input."""

from __future__ import annotations

import ast
import difflib
import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from parsimony.benchmarks.copying import CopyingContinuation
from parsimony.interfaces import Item, Outcome, Workbench

OLD, NEW = "django_4_2_1", "django_5_2"
FAMILIES = {"models": "django/db/models", "backends": "django/db/backends", "testing": "django/test"}
"""Reported categories: parts of the code base, by folder."""

HUNKS = 2
"""Edits that change more places are left out."""
KEPT = 0.6
"""Edits that keep fewer of the lines are left out."""


@dataclass(frozen=True)
class Edit:
    """One function in two releases.

    Attributes
    ----------
    file, name : str
        Path of the module and dotted name of the function in it.
    old, new : str
        Its source, decorators and outer indentation removed.
    """

    file: str
    name: str
    old: str
    new: str

    def hunks(self) -> list[tuple[list[str], list[str], str]]:
        """Lines that go, lines that come, and the line before them ("" at the very beginning)."""
        before, after = self.old.splitlines(), self.new.splitlines()
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        return [
            (before[a:b], after[c:d], before[a - 1] if a else "")
            for kind, a, b, c, d in matcher.get_opcodes()
            if kind != "equal"
        ]

    def request(self) -> str:
        """The prompt.  The releases say nothing about a single function, so the instruction is ours: what differs."""
        return (
            f"Copy this Python function and apply the change.\n\nFunction:\n{_block(self.old)}\n\n"
            f"Change:\n{self.change()}\n\nWrite the whole function again with the change."
        )

    def change(self) -> str:
        """The change in words, as `difflib` finds it."""
        steps = []
        for gone, come, above in self.hunks():
            if not come:
                steps.append(f"Delete\n{_block(gone)}")
            elif not gone:
                steps.append(f"Insert\n{_block(come)}\nbelow\n{_block([above])}")
            else:
                steps.append(f"Replace\n{_block(gone)}\nby\n{_block(come)}")
        return "\n\n".join(steps)


class CodeEdit(CopyingContinuation):
    """Changed functions of Django between releases 4.2.1 and 5.2; edits of one module follow one another.

    Besides what every continuation records: ``edit_similarity``, how near the code of the answer is to the function as
    it stands in the newer release (1 is equal); of an answer that the limit cuts short, as far as it goes.

    Parameters
    ----------
    characters : int
        Longer functions, before or after the edit, are left out.
    """

    categories = dict.fromkeys(FAMILIES, (OLD, NEW))

    def items(self, paths, seed: int) -> list[Item]:
        self.targets: dict[str, str] = {}
        if not {OLD, NEW} <= set(paths):
            return []
        pool, items = edits(paths[OLD], paths[NEW], self.characters), []
        for family, folder in FAMILIES.items():
            mine = [n for n, edit in enumerate(pool) if edit.file.startswith(folder)]
            modules = sorted({pool[n].file for n in mine})
            order = np.random.default_rng([seed, *family.encode()]).permutation(len(modules))
            place = {modules[at]: rank for rank, at in enumerate(order)}
            for n in sorted(mine, key=lambda n: place[pool[n].file])[: self.count]:
                edit = pool[n]
                source = f"{OLD} {edit.file} {edit.name}"
                items.append(Item(f"{family}_{n:05d}", family, (edit.request(),), source))
                self.targets[items[-1].id] = edit.new
        return items

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model = super().measure(item, bench), bench.model(self.dtype)
        target = model.encode(self.targets[item.id]).tolist()
        for point in bench.points:
            answer = torch.tensor(outcome.outputs[point, "tokens"], dtype=torch.int64)
            code, whole = first_block(model.decode(answer))
            outcome.numbers.append(
                (point, "edit_similarity", similarity(model.encode(code).tolist(), target, whole), "")
            )
        return outcome


def first_block(answer: str) -> tuple[str, bool]:
    """The first block of code in an answer (all of it, if there is no block), and whether it is finished."""
    found = re.search(r"```\w*\n(.*?)(\n```|\Z)", answer, re.S)
    return (found[1], bool(found[2])) if found else (answer, True)


def similarity(code: list[int], target: list[int], whole: bool) -> float:
    """Share of equal tokens (Ratcliff and Obershelp), 1 is equal; of unfinished code as far as it goes."""
    return difflib.SequenceMatcher(None, code, target if whole else target[: len(code)], autojunk=False).ratio()


def edits(old: Path, new: Path, characters: int) -> list[Edit]:
    """Functions that stand in both trees under the same name with small differences, in the order of the old tree."""
    before, after = functions(old), functions(new)
    found = []
    for (file, name), source in before.items():
        edit = Edit(file, name, source, after.get((file, name), source))
        if source == edit.new or not characters // 3 <= min(len(source), len(edit.new)):
            continue
        lines = source.splitlines(), edit.new.splitlines()
        kept = difflib.SequenceMatcher(None, *lines, autojunk=False).ratio()
        if max(len(source), len(edit.new)) <= characters and kept >= KEPT and len(edit.hunks()) <= HUNKS:
            found.append(edit)
    return found


def functions(folder: Path) -> dict[tuple[str, str], str]:
    """(file, dotted name) -> source of every function and method; names that a module defines twice are left out."""
    found = {}
    for path in sorted(Path(folder).rglob("*.py")):
        text, file = path.read_text(encoding="utf-8"), path.relative_to(folder).as_posix()
        named, lines = list(_named(ast.parse(text), "")), text.split("\n")
        count = Counter(name for name, _ in named)
        for name, node in named:
            if count[name] == 1:
                found[file, name] = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    return found


def _named(node: ast.AST, prefix: str):
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _named(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child


def _block(lines: str | list[str]) -> str:
    text = lines if isinstance(lines, str) else "\n".join(lines)
    return f"```python\n{text}\n```"
