"""A partly decided text as an automaton over terminals: what its gaps may still become.

The text is words w_1, ..., w_k with gaps between them, each of which any string of any length may fill.  State i stands
behind word i; a gap is a loop with every terminal.  Mündler, Dekoninck and Vechev, arXiv 2508.10111.
"""

from __future__ import annotations

import heapq
import sys
from collections import defaultdict
from dataclasses import dataclass

from parsimony.methods.diffusion.grammar import Automaton
from parsimony.methods.diffusion.terminals import WORD, Lexer


@dataclass(frozen=True)
class Partial:
    """Words and gaps.

    Attributes
    ----------
    words : tuple of str
        Runs of decided characters, none empty.
    gap_before, gap_behind : bool
        Whether there is a gap in front of the first and behind the last word; between words there always is one.
    """

    words: tuple[str, ...]
    gap_before: bool
    gap_behind: bool

    @classmethod
    def of(cls, pieces: list[str | None], ended: bool) -> Partial:
        """From the pieces of a text, None where nothing is decided; ``ended``: nothing follows the last piece."""
        words, gaps, open_ = [], [], True
        for piece in pieces:
            if piece is None:
                open_ = True
            elif open_:
                words.append(piece)
                gaps.append(open_ and bool(gaps or pieces[0] is None))
                open_ = False
            else:
                words[-1] += piece
        before = bool(pieces) and pieces[0] is None
        behind = not ended or bool(pieces) and pieces[-1] is None
        return cls(tuple(words), before, behind)


def automaton(partial: Partial, lexer: Lexer) -> Automaton:
    """Every sequence of terminals that a filling of the gaps can have.

    A terminal that a gap has cut is open: the state in front of it and the pieces of it that are known.  The word that
    completes it adds an edge from there, if some word of the terminal has these pieces in this order.
    """
    edges: set[tuple[int, str, int]] = set()
    empty: set[tuple[int, int]] = set()
    k = len(partial.words)
    states = k + 1
    opens: set[tuple[str, int, tuple[str, ...]]] = set()
    names = list(lexer.terminals)
    for i, word in enumerate(partial.words, 1):
        before = i > 1 or partial.gap_before
        behind = i < k or partial.gap_behind
        if before:
            edges |= {(i - 1, name, i - 1) for name in names}
            opens |= {(name, i - 1, ("",)) for name in names}  # it may begin inside of the gap
        left: set[tuple[str, int, tuple[str, ...]]] = set()
        for lexing in lexer.lex(word, before, behind):
            terminals = list(lexing.terminals)
            if not terminals:
                empty.add((i - 1, i))  # blanks alone; what is open goes on being so only through a gap
                continue
            begins = [i - 1]
            if lexing.first is not None:
                name = terminals.pop(0)
                mine = [(start, pieces) for other, start, pieces in opens if other == name]
                if not terminals and lexing.last is not None:  # a middle piece
                    for start, pieces in mine:
                        if lexer.terminals[name].holds((*pieces, word), None):
                            left.add((name, start, (*pieces, word)))
                            edges.add((start, name, i))
                    continue
                begins = [start for start, pieces in mine if lexer.terminals[name].holds(pieces, lexing.first)]
                if not begins:
                    continue
                target = states if terminals else i
                states += bool(terminals)
                edges |= {(start, name, target) for start in begins}
                begins = [target]
            for n, name in enumerate(terminals):
                last = n == len(terminals) - 1
                target = i if last else states
                states += not last
                edges |= {(start, name, target) for start in begins}
                if last and lexing.last is not None:
                    left |= {(name, start, (lexing.last,)) for start in begins}
                begins = [target]
        opens = left
    if partial.gap_behind or not k:
        edges |= {(k, name, k) for name in names}
    return _without_empty(edges, empty, states, k)


def _without_empty(edges, empty, states: int, final: int) -> Automaton:
    """The same without empty moves, which lead from a state to the next word's."""
    ahead = defaultdict(set)
    for state in range(states):
        ahead[state] = {state}
    for start, stop in sorted(empty, reverse=True):
        ahead[start] |= ahead[stop]
    out = {
        (p, name, q) for state, p_all in ahead.items() for p in [state] for s in p_all for name, q in _from(edges, s)
    }
    finals = frozenset(state for state in range(states) if final in ahead[state])
    return Automaton(sorted(out), states, 0, finals)


def _from(edges, state: int):
    return [(name, q) for p, name, q in edges if p == state]


def written(partial: Partial, terminals: list[str], lexer: Lexer, characters: str) -> str | None:
    """A text with these terminals that fills the partial one, with as few added characters as can be.

    A shortest path over (terminals done, state in the next one or -1 between two, characters of the words used,
    whether the last character is one of `WORD`: then the next terminal must not go on with one).
    """
    fixed, bounds, total = "".join(partial.words), set(), 0
    for n, word in enumerate(partial.words):
        if n or partial.gap_before:
            bounds.add(total)
        total += len(word)
    if partial.gap_behind or not partial.words:
        bounds.add(total)
    machines = [lexer.terminals[name] for name in terminals]
    begin = 0, -1, 0, False
    best, queue, origin = {begin: 0}, [(0, begin)], {}

    def relax(there, here, character: str, cost: int) -> None:
        if cost < best.get(there, sys.maxsize):
            best[there], origin[there] = cost, (here, character)
            heapq.heappush(queue, (cost, there))

    while queue:
        cost, here = heapq.heappop(queue)
        done, state, used, word = here
        if (done, state, used) == (len(machines), -1, len(fixed)):
            return _trace(here, origin)
        if cost > best[here]:
            continue
        steps: list[tuple[int, int, str]] = []
        if state == -1:
            steps += [(done, -1, blank) for blank in " \n" if blank in characters]
            if done < len(machines):
                first = machines[done].moves[machines[done].start]
                steps += [(done, after, c) for c, after in first.items() if not (word and c in WORD)]
        else:
            steps += [(done, after, c) for c, after in machines[done].moves[state].items()]
            if state in machines[done].finals:
                relax((done + 1, -1, used, word), here, "", cost)
        for after_done, after, c in steps:
            if used < len(fixed) and fixed[used] == c:
                relax((after_done, after, used + 1, c in WORD), here, c, cost)
            if used in bounds:
                relax((after_done, after, used, c in WORD), here, c, cost + 1)
    return None


def _trace(state, origin) -> str:
    out = []
    while state in origin:
        state, character = origin[state]
        out.append(character)
    return "".join(reversed(out))
