"""All tasks of ParallelBench under one roof: a request, a right answer, and a grade."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from parsimony.benchmarks.parallel_bench import lists, puzzles, writing
from parsimony.benchmarks.unmasked import filled

LENGTH = 32
"""Tokens of an answer, filled up with the end token (as published for the Waiting Line)."""
WIDTHS = {"printed": 48, "names": 24, "letters": 16, "writing": 20, "latin_square": 8, "sudoku": 24}
"""Pieces to which requests are filled up: lists by their form, texts alike, puzzles by their task."""
GROUPS = {
    **dict.fromkeys(lists.SEEDS, "waiting_line"),
    **dict.fromkeys(writing.TASKS, "text_writing"),
    "latin_square": "puzzle",
    "sudoku": "puzzle",
}
"""Task -> group; the order of the report."""
CERTAIN = (*lists.CERTAIN, "sudoku")
"""Tasks with one right answer (total correlation 0)."""


@dataclass(frozen=True)
class Example:
    """A request and one of its right answers.

    Attributes
    ----------
    request : Query, Request, Latin or Sudoku
    answer : str
    """

    request: object
    answer: str

    @property
    def prompt(self) -> str:
        """The request as text."""
        return filled(self.request.prompt, WIDTHS[self.request.form])


def example(task: str, rng: Random, form: str = "printed") -> Example:
    """A random example of a task; every right answer is equally likely."""
    if task in lists.SEEDS:
        query = lists.query(task, rng, rng.choice((3, 4, 5, 6)), form)
        answer = query.answers()[0] if task in lists.CERTAIN else _any(query, rng)
        return Example(query, lists.shown(answer, form))
    if task in writing.TASKS:
        request = writing.request(task, rng)
    else:
        request = puzzles.latin(rng) if task == "latin_square" else puzzles.sudoku(rng)
    return Example(request, request.answer(rng))


def _any(query: lists.Query, rng: Random) -> tuple[str, ...]:
    """A random right answer; permutations are not enumerated for it."""
    if query.task != "shuffle":
        return rng.choice(query.answers())
    order = list(query.items)
    while tuple(order) == query.items:
        rng.shuffle(order)
    return tuple(order)


def examples(task: str, count: int, form: str = "printed") -> list[Example]:
    """``count`` test examples from the task's seed, the same on every machine."""
    if task in lists.SEEDS:
        rng = Random(lists.SEEDS[task] + 1)
        return [Example(query, lists.shown(_any(query, rng), form)) for query in lists.queries(task, count, form=form)]
    seeds = writing.SEEDS | {"latin_square": puzzles.LATIN_SEED, "sudoku": puzzles.SUDOKU_SEED}
    rng = Random(seeds[task])
    return [example(task, rng) for _ in range(count)]


def grade(example: Example, text: str, strict: bool = False) -> float:
    """Score of an answer, 0 or 1; loose or strict where the published graders know both."""
    request = example.request
    return lists.score(request, text, strict) if isinstance(request, lists.Query) else request.score(text)
