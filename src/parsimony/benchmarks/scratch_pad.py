"""Last digits worked out step by step: short answers in a long window, whose lines are what belongs together.

Steps do not commute, so a small network cannot foresee the last digit; it has to write down the ones before.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch.nn.functional as F

from parsimony.benchmarks.unmasked import Forms, filled
from parsimony.interfaces import Workbench
from parsimony.methods.diffusion.sampler import BlockSampler
from parsimony.methods.diffusion.watched import observe

LENGTH = 96
"""Tokens of an answer, filled up with the end token; those of a calculation are 11 to 44."""
FORMS = ("lines", "wrapped")
WIDTH = 7
"""Tokens of a line of wrapped text, whose breaks mean nothing."""
STEPS = [f"{sign}{n}" for sign in "+-" for n in range(1, 6)] + ["*3", "*7", "*9"] * 3
"""What a step may be; half of them multiply, and only by what keeps all digits apart."""
SEED = 62000


@dataclass(frozen=True)
class Calculation:
    """A digit and what is done to it, line by line; only last digits are kept.

    Attributes
    ----------
    form : {"lines", "wrapped"}
        Whether a line ends with its steps, or after `WIDTH` tokens.
    start : int
    steps : tuple of tuple of str
        The steps of each line, such as ``+3`` or ``*7``.
    """

    form: str
    start: int
    steps: tuple[tuple[str, ...], ...]

    @property
    def prompt(self) -> str:
        """The request."""
        return filled(f"{self.form}|{self.start}|" + "|".join(map("".join, self.steps)) + "|", 24)

    @property
    def answer(self) -> str:
        """All lines; each begins with the result of the one before, and says every result."""
        lines, value = [], self.start
        for steps in self.steps:
            line = str(value)
            for step in steps:
                value = after(value, step)
                line += f"{step}={value}"
            lines.append(line)
        if self.form == "lines":
            return "\n".join(lines)
        text = ";".join(lines)
        return "\n".join(text[at : at + WIDTH] for at in range(0, len(text), WIDTH))

    def score(self, text: str) -> float:
        """1 if there are as many results as steps, and the last one is right."""
        results = text.replace("\n", "").split("=")
        return float(
            len(results) == 1 + sum(map(len, self.steps)) and results[-1] == self.answer.rpartition("=")[2].strip()
        )


def after(value: int, step: str) -> int:
    """Last digit behind one step."""
    n = int(step[1:])
    return {"+": value + n, "-": value - n, "*": value * n}[step[0]] % 10


def request(form: str, rng: Random) -> Calculation:
    """A random calculation of 2 to 4 lines with one or two steps each."""
    lines = tuple(tuple(rng.choices(STEPS, k=rng.randint(1, 2))) for _ in range(rng.randint(2, 4)))
    return Calculation(form, rng.randint(0, 9), lines)


def requests(form: str, count: int) -> list[Calculation]:
    """``count`` test requests, the same on every machine."""
    rng = Random(SEED + FORMS.index(form))
    return [request(form, rng) for _ in range(count)]


class ScratchPad(Forms):
    """Calculations in lines, and such ones wrapped at a fixed width as a control.

    Of decoders without a cache and an early stop it also says what `observe` does, in a second run that is not timed.
    """

    FORMS, LENGTH = FORMS, LENGTH

    def drawn(self, form: str, count: int) -> list[Calculation]:
        return requests(form, count)

    def grade(self, asked: Calculation, text: str) -> dict[str, float]:
        return {"score": asked.score(text), "exact_match": float(text == asked.answer)}

    def beside(self, asked: Calculation, system, model, bench: Workbench, item: str) -> dict[str, float]:
        if self.timed or type(system) is not BlockSampler or (system.caching, system.stop) != ("none", "never"):
            return {}
        answer = model.encode(asked.answer)
        truth = F.pad(answer, (0, LENGTH - len(answer)), value=min(model.stop_ids))
        return observe(system, model.encode(asked.prompt), truth, bench.rng(item))
