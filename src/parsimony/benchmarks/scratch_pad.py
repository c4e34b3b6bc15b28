"""Sums worked out line by line: short answers in a long window, whose lines are what belongs together."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from parsimony.benchmarks.unmasked import Unmasked, filled

LENGTH = 96
"""Tokens of an answer, filled up with the end token; those of a sum are 10 to 45."""
FORMS = ("lines", "wrapped")
WIDTH = 7
"""Tokens of a line of wrapped text, whose breaks mean nothing."""
LARGEST = 19
SEED = 62000


@dataclass(frozen=True)
class Sum:
    """A number and what is added to it, line by line.

    Attributes
    ----------
    form : {"lines", "wrapped"}
        Whether a line ends with each intermediate result, or after `WIDTH` tokens.
    start : int
    terms : tuple of tuple of int
        What each line adds, in order; no result leaves 0 to `LARGEST`.
    """

    form: str
    start: int
    terms: tuple[tuple[int, ...], ...]

    @property
    def prompt(self) -> str:
        """The request."""
        return filled(f"{self.form}|{self.start}|" + "|".join(map(_added, self.terms)) + "|", 32)

    @property
    def answer(self) -> str:
        """All lines; each begins with the result of the one before."""
        lines, value = [], self.start
        for terms in self.terms:
            lines.append(f"{value}{_added(terms)}={value + sum(terms)}")
            value += sum(terms)
        if self.form == "lines":
            return "\n".join(lines)
        text = ";".join(lines)
        return "\n".join(text[at : at + WIDTH] for at in range(0, len(text), WIDTH))

    def score(self, text: str) -> float:
        """1 if there are as many results as lines, and the last one is right."""
        last = text.replace("\n", "").rpartition("=")[2]
        return float(text.count("=") == len(self.terms) and last == str(self.start + sum(map(sum, self.terms))))


def _added(terms: tuple[int, ...]) -> str:
    return "".join(f"{term:+d}" for term in terms)


def request(form: str, rng: Random) -> Sum:
    """A random sum of 2 to 5 lines with one or two terms each."""
    value = start = rng.randint(0, LARGEST)
    lines = []
    for _ in range(rng.randint(2, 5)):
        terms: list[int] = []
        for _ in range(rng.randint(1, 2)):
            term = rng.choice([t for t in range(-9, 10) if t and 0 <= value + t <= LARGEST])
            terms.append(term)
            value += term
        lines.append(tuple(terms))
    return Sum(form, start, tuple(lines))


def requests(form: str, count: int) -> list[Sum]:
    """``count`` test requests, the same on every machine."""
    rng = Random(SEED + FORMS.index(form))
    return [request(form, rng) for _ in range(count)]


class ScratchPad(Unmasked):
    """Sums in lines, and the same sums wrapped at a fixed width as a control.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        A form.
    """

    def __init__(self, dtype: str, timed: bool, items: int):
        self.dtype, self.timed, self.count = dtype, timed, items

    def requests(self):
        for form in FORMS:
            yield from ((form, one) for one in requests(form, self.count))

    def length(self, asked: Sum, model) -> int:
        return LENGTH

    def grade(self, asked: Sum, text: str) -> dict[str, float]:
        return {"score": asked.score(text), "exact_match": float(text == asked.answer)}
