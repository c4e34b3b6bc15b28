"""ParallelBench's Waiting Line: ten operations on a queue of people, and their graders (Kang et al., arXiv 2510.04767).

A person is a first name, a blank and a last name.  A list comes in one of three `FORMS`: printed as published,
``["A B", "C D"]``; the names alone, ``A BC D``, two tokens an item; or single letters instead of names, one token an
item, which is the setting of the paper's theory.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

FIRST = [
    "Ada", "Ben", "Cara", "Dan", "Ella", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kira", "Liam",
    "Mona", "Nick", "Olga", "Paul", "Rosa", "Sam", "Tina", "Umar", "Vera", "Will", "Yara", "Zoe",
]  # fmt: skip
LAST = [
    "Abel", "Beck", "Cole", "Diaz", "Egan", "Ford", "Gray", "Hill", "Ivers", "Jones", "Khan", "Lopez",
    "Moss", "Nash", "Owens", "Park", "Quinn", "Reed", "Stone", "Tran", "Usher", "Voss", "Wood", "York",
]  # fmt: skip
FORMS = ("printed", "names", "letters")
SEEDS = {
    "copy": 31940, "insert_index": 49875, "insert_random": 25751, "remove_index": 46066, "remove_random": 47444,
    "replace_index": 32235, "replace_random": 49003, "reverse": 31383, "shuffle": 30142, "sort": 48898,
}  # fmt: skip
"""Seed of each task's generator as published."""


@dataclass(frozen=True)
class Query:
    """One item: what is asked.

    Attributes
    ----------
    task : str
    items : tuple of str
        The queue.
    new : str
        Name to insert or to substitute; "" where there is none.
    index : int
        Place, from 0; -1 where there is none.
    form : str
        One of `FORMS`.
    """

    task: str
    items: tuple[str, ...]
    new: str = ""
    index: int = -1
    form: str = "printed"

    @property
    def prompt(self) -> str:
        """The request as the models of this project read it: task, list, operands."""
        extra = [] if self.index < 0 else [str(self.index)]
        extra += [self.new] if self.new else []
        return "".join(f"{part}|" for part in (self.task, shown(self.items, self.form), *extra))

    def answers(self) -> list[tuple[str, ...]]:
        """Every right answer."""
        return list(ANSWERS[self.task](self))


def shown(items, form: str) -> str:
    """A list as text."""
    return "[" + ", ".join(f'"{item}"' for item in items) + "]" if form == "printed" else "".join(items)


def _replaced(query: Query, at: int) -> tuple[str, ...]:
    return (*query.items[:at], query.new, *query.items[at + 1 :])


def _inserted(query: Query, at: int) -> tuple[str, ...]:
    return (*query.items[:at], query.new, *query.items[at:])


def _removed(query: Query, at: int) -> tuple[str, ...]:
    return (*query.items[:at], *query.items[at + 1 :])


def _places(query: Query) -> range:
    return range(len(query.items))


ANSWERS: dict[str, Callable[[Query], object]] = {
    "copy": lambda q: [q.items],
    "reverse": lambda q: [q.items[::-1]],
    "sort": lambda q: [tuple(sorted(q.items))],  # by the whole string, as the published labels
    "insert_index": lambda q: [_inserted(q, q.index)],
    "remove_index": lambda q: [_removed(q, q.index)],
    "replace_index": lambda q: [_replaced(q, q.index)],
    "insert_random": lambda q: (_inserted(q, at) for at in range(len(q.items) + 1)),
    "remove_random": lambda q: (_removed(q, at) for at in _places(q)),
    "replace_random": lambda q: (_replaced(q, at) for at in _places(q)),
    "shuffle": lambda q: (p for p in itertools.permutations(q.items) if p != q.items),
}
"""Task -> all right answers of a query.  One answer: total correlation 0; several: above 0."""

CERTAIN = ("copy", "reverse", "sort", "insert_index", "remove_index", "replace_index")


def query(task: str, rng: Random, length: int, form: str = "printed") -> Query:
    """A random query on a list of ``length`` distinct items; the new item is never in the list.

    No two first names are equal: with only 24 of them, that is what the published lists of many names are like.
    """
    first = rng.sample(string.ascii_uppercase if form == "letters" else FIRST, length + 1)
    drawn = first if form == "letters" else [f"{name} {rng.choice(LAST)}" for name in first]
    items, new = tuple(drawn[:length]), drawn[length]
    index = -1
    if task.endswith("_index"):
        index = rng.randint(0, length if task == "insert_index" else length - 1)
    return Query(task, items, new if task.startswith(("insert", "replace")) else "", index, form)


def queries(task: str, count: int, lengths=(3, 4, 5, 6), form: str = "printed") -> list[Query]:
    """``count`` test queries, equally many of each length, from the task's published seed."""
    rng, made = Random(SEEDS[task]), []
    while len(made) < count:
        made.append(query(task, rng, lengths[len(made) % len(lengths)], form))
    return made


def read(text: str, strict: bool = False) -> list[str] | None:
    """The list in an answer.

    Loose: what stands behind the last ``[`` up to the next ``]``, split at commas, without quotes and blanks.  Strict:
    both brackets, items split at ``", "``, each in double quotes with none inside.  None: there is no list.
    """
    begin = text.rfind("[")
    end = text.find("]", begin + 1)
    if begin < 0 and strict or end < 0 and strict:
        return None
    inner = text[begin + 1 : end if end >= 0 else None]
    if not strict:
        return [item.strip(" '\"\n") for item in inner.split(",")]
    items = inner.split(", ")
    if not all(len(item) > 2 and item[0] == item[-1] == '"' and '"' not in item[1:-1] for item in items):
        return None
    return [item[1:-1] for item in items]


def right(query: Query, found: list[str] | None) -> bool:
    """Whether a list answers the query; the rules of the published graders."""
    if found is None:
        return False
    items, found = list(query.items), list(found)
    if query.task in CERTAIN:
        return found == list(query.answers()[0])
    if query.task == "insert_random":
        return found.count(query.new) == 1 and [item for item in found if item != query.new] == items
    if query.task == "remove_random":
        return len(found) == len(items) - 1 and any(found == items[:at] + items[at + 1 :] for at in range(len(items)))
    if query.task == "replace_random":
        changed = [new for old, new in zip(items, found, strict=False) if old != new]
        return len(found) == len(items) and changed == [query.new]
    return Counter(found) == Counter(items) and found != items


def score(query: Query, text: str, strict: bool = False) -> float:
    """1 for a right answer, else 0; only a printed list is read loosely or strictly."""
    if query.form == "printed":
        return float(right(query, read(text, strict)))
    found = list(text) if query.form == "letters" else re.findall("[A-Z][a-z]+ [A-Z][a-z]+", text)
    return float(right(query, found if "".join(found) == text else None))
