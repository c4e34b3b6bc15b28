"""Does a regular language hold a sentence of a context-free grammar?

The regular language is a finite automaton over the grammar's terminals.  The search is the bottom-up one of Mündler,
Dekoninck and Vechev (arXiv 2508.10111): it derives only what is reached, and ends with the first item that answers.
"""

from __future__ import annotations

import numba
import numpy as np

from parsimony.methods.diffusion.grammar import Automaton, Grammar

compiled = numba.njit(cache=True)

P, A, Q, LEFT, RIGHT, AHEAD, BEHIND = range(7)
"""Columns of an item (p, A, q): A derives a word that leads the automaton from p to q.  LEFT and RIGHT are the items of
its parts (-1: none); AHEAD and BEHIND go on with another item of the same A and p, and of the same A and q."""


class Intersection:
    """Sentences of a grammar in normal form that an automaton accepts.

    Parameters
    ----------
    grammar : Grammar
        In normal form.
    """

    def __init__(self, grammar: Grammar):
        self.symbols = sorted({grammar.start} | grammar.terminals | set(grammar.rules))
        self.number = {symbol: n for n, symbol in enumerate(self.symbols)}
        self.start, self.terminals = self.number[grammar.start], grammar.terminals
        rules = [
            (self.number[head], tuple(self.number[part] for part in body))
            for head, bodies in grammar.rules.items()
            for body in bodies
        ]
        self.empty = [head for head, body in rules if not body]
        self.derived = self._derivations(rules)
        self.tables = (
            self._by_part([(body[0], head, -1) for head, body in rules if len(body) == 1]),
            self._by_part([(body[0], head, body[1]) for head, body in rules if len(body) == 2]),
            self._by_part([(body[1], head, body[0]) for head, body in rules if len(body) == 2]),
            np.array(self.empty, np.int32),
            np.array(sorted(self.derived), np.int32),
        )

    def _by_part(self, rules: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Heads and other parts [rules, 2] int32 in the order of a part, and where those of each symbol begin."""
        table = np.array(sorted(rules), np.int32).reshape(-1, 3)
        return np.searchsorted(table[:, 0], np.arange(len(self.symbols) + 1)).astype(np.int32), table[:, 1:].copy()

    def _derivations(self, rules: list[tuple[int, tuple[int, ...]]]) -> dict[int, tuple[int, ...]]:
        """How each symbol derives a word, by the first way found; of terminals and empty words: ()."""
        found: dict[int, tuple[int, ...]] = dict.fromkeys([*map(self.number.get, self.terminals), *self.empty], ())
        while more := {head: body for head, body in rules if head not in found and found.keys() >= set(body)}:
            found |= more
        return found

    def holds(self, automaton: Automaton) -> bool:
        """Whether there is a sentence that is in both."""
        return self._search(automaton)[0] >= 0

    def sentence(self, automaton: Automaton) -> list[str] | None:
        """A sentence (terminals) that is in both, or None: there is none."""
        answer, items = self._search(automaton)
        return None if answer < 0 else list(self._terminals(answer, items))

    def _search(self, automaton: Automaton) -> tuple[int, np.ndarray]:
        edges = [(p, self.number[name], q) for p, name, q in automaton.edges if name in self.number]
        gaps, finals = np.zeros(automaton.states, np.bool_), np.zeros(automaton.states, np.bool_)
        gaps[list(automaton.gaps)], finals[list(automaton.finals)] = True, True
        seeds = np.array(edges, np.int32).reshape(-1, 3)
        return search(*self.tables, len(self.symbols), self.start, seeds, gaps, automaton.start, finals)

    def _terminals(self, answer: int, items: np.ndarray):
        """The terminals below an item, in order; what a gap holds has no items of its parts."""
        todo = [(int(answer), int(items[answer, A]))]
        while todo:
            item, symbol = todo.pop()
            parts = [(int(part), int(items[part, A])) for part in items[item, [LEFT, RIGHT]] if item >= 0 and part >= 0]
            parts = parts or [(-1, part) for part in self.derived[symbol]]
            if parts:
                todo += reversed(parts)
            elif symbol not in self.empty:
                yield self.symbols[symbol]


@compiled
def search(unit, left, right, empty, derived, symbols, start, seeds, gaps, begin, finals):
    """All items, until one of them says that ``start`` leads from ``begin`` to one of ``finals``.

    At a gap every symbol derives a word that stays there; nothing of that is searched.

    Returns
    -------
    answer : int
        The item that says so; -1 if none does.
    items : ndarray [N, 7] int32
    """
    states = len(gaps)
    known = np.zeros((symbols, states, states), np.bool_)
    ahead = np.full((symbols, states), -1, np.int32)
    behind = np.full((symbols, states), -1, np.int32)
    items, count = np.empty((4096, 7), np.int32), 0
    for p in range(states):
        if gaps[p]:
            for symbol in derived:
                items, count = add(items, count, known, ahead, behind, p, symbol, p, -1, -1)
    done = count  # of these nothing follows but what they are already
    for n in range(len(seeds)):
        items, count = add(items, count, known, ahead, behind, seeds[n, 0], seeds[n, 1], seeds[n, 2], -1, -1)
    for p in range(states):
        for symbol in empty:
            items, count = add(items, count, known, ahead, behind, p, symbol, p, -1, -1)
    for n in range(count):
        if items[n, A] == start and items[n, P] == begin and finals[items[n, Q]]:
            return n, items
    stack = np.arange(done, count).astype(np.int32)
    height = count - done
    while height:
        height -= 1
        item = stack[height]
        p, symbol, q = items[item, P], items[item, A], items[item, Q]
        before = count
        for n in range(unit[0][symbol], unit[0][symbol + 1]):
            items, count = add(items, count, known, ahead, behind, p, unit[1][n, 0], q, item, -1)
        for n in range(left[0][symbol], left[0][symbol + 1]):
            other = ahead[left[1][n, 1], q]
            while other >= 0:
                r = items[other, Q]
                items, count = add(items, count, known, ahead, behind, p, left[1][n, 0], r, item, other)
                other = items[other, AHEAD]
        for n in range(right[0][symbol], right[0][symbol + 1]):
            other = behind[right[1][n, 1], p]
            while other >= 0:
                r = items[other, P]
                items, count = add(items, count, known, ahead, behind, r, right[1][n, 0], q, other, item)
                other = items[other, BEHIND]
        for new in range(before, count):
            if items[new, A] == start and items[new, P] == begin and finals[items[new, Q]]:
                return new, items
        if height + count - before > len(stack):
            stack = np.concatenate((stack, np.empty(max(len(stack), count - before), np.int32)))
        for new in range(before, count):
            stack[height] = new
            height += 1
    return -1, items


@compiled
def add(items, count, known, ahead, behind, p, symbol, q, first, second):
    """The items with one more, if it is not among them."""
    if known[symbol, p, q]:
        return items, count
    known[symbol, p, q] = True
    if count == len(items):
        items = np.concatenate((items, np.empty_like(items)))
    items[count, P], items[count, A], items[count, Q] = p, symbol, q
    items[count, LEFT], items[count, RIGHT] = first, second
    items[count, AHEAD], items[count, BEHIND] = ahead[symbol, p], behind[symbol, q]
    ahead[symbol, p] = behind[symbol, q] = count
    return items, count + 1
