"""ParallelBench's puzzles: a Latin square of one's own choice, and a sudoku with one solution."""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass
from functools import cache
from random import Random

SIDE = 4
SYMBOLS = string.ascii_uppercase + string.digits
LATIN_SEED = 51291  # as published
SUDOKU_SEED = 40404
GIVEN = 12
"""Digits that a sudoku shows (as in the first release)."""


@dataclass(frozen=True)
class Latin:
    """Fill a square so that every row and every column holds each of four symbols."""

    symbols: str
    form = "latin_square"

    @property
    def prompt(self) -> str:
        """The request."""
        return f"latin_square|{self.symbols}|"

    def score(self, text: str) -> float:
        """1 for any Latin square: of the lines whose cells are the symbols, the first four count."""
        lines = [line.strip().split(",") for line in text.splitlines()]
        rows = [line for line in lines if len(line) == SIDE and set(line) == set(self.symbols)][:SIDE]
        return float(len(rows) == SIDE and all(set(column) == set(self.symbols) for column in zip(*rows, strict=True)))

    def answer(self, rng: Random) -> str:
        """A square: cyclic, rows and columns shuffled, as the published example."""
        square = [self.symbols[at:] + self.symbols[:at] for at in range(SIDE)]
        rng.shuffle(square)
        columns = list(zip(*square, strict=True))
        rng.shuffle(columns)
        return "\n".join(",".join(row) for row in zip(*columns, strict=True))


@dataclass(frozen=True)
class Sudoku:
    """Complete a grid of 4 by 4 digits; 0 is blank."""

    given: str
    solution: str
    form = "sudoku"

    @property
    def prompt(self) -> str:
        """The request."""
        return f"sudoku|{rows(self.given)}|"

    def score(self, text: str) -> float:
        """1 for the digit rows of the solution."""
        found = [line.strip() for line in text.splitlines() if line.strip().isdigit()]
        return float("\n".join(found) == rows(self.solution))

    def answer(self, rng: Random) -> str:
        """The solution."""
        return rows(self.solution)


def rows(grid: str) -> str:
    """16 digits as four lines."""
    return "\n".join(grid[at : at + SIDE] for at in range(0, SIDE * SIDE, SIDE))


def latin(rng: Random) -> Latin:
    """Four distinct symbols."""
    return Latin("".join(rng.sample(SYMBOLS, SIDE)))


def sudoku(rng: Random) -> Sudoku:
    """A grid of which `GIVEN` digits are shown and that one solution completes."""
    while True:
        solution = rng.choice(grids())
        shown = set(rng.sample(range(SIDE * SIDE), GIVEN))
        given = "".join(digit if at in shown else "0" for at, digit in enumerate(solution))
        if sum(all(g in ("0", s) for g, s in zip(given, grid, strict=True)) for grid in grids()) == 1:
            return Sudoku(given, solution)


@cache
def grids() -> list[str]:
    """All 288 completed grids: rows, columns and the four boxes hold each digit once."""
    lines = list(itertools.permutations("1234"))
    found = []
    for grid in itertools.product(lines, repeat=SIDE):
        columns = all(len(set(column)) == SIDE for column in zip(*grid, strict=True))
        boxes = ({grid[r][c], grid[r][c + 1], grid[r + 1][c], grid[r + 1][c + 1]} for r in (0, 2) for c in (0, 2))
        if columns and all(len(box) == SIDE for box in boxes):
            found.append("".join("".join(line) for line in grid))
    return found
