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
from parsimony.methods.diffusion.terminals import Lexer

PLAIN = frozenset(map(chr, (10, *range(32, 127))))
DEAR = 1000
"""How many plain bytes are added to a text rather than one that is not."""


@dataclass(frozen=True)
class Partial:
    """Words and gaps.

    Attributes
    ----------
    words : tuple of str
        Runs of decided bytes (`token_bytes`), none empty.
    gap_before, gap_behind : bool
        Whether there is a gap in front of the first and behind the last word; between words there always is one.
    """

    words: tuple[str, ...]
    gap_before: bool
    gap_behind: bool

    @classmethod
    def of(cls, pieces: list[str | None], ended: bool) -> Partial:
        """From the pieces of a text, None where nothing is decided; ``ended``: nothing follows the last piece."""
        words, gap, pieces = [], True, [piece for piece in pieces if piece != ""]
        for piece in pieces:
            if piece is None:
                gap = True
            elif gap:
                words.append(piece)
                gap = False
            else:
                words[-1] += piece
        before = bool(pieces) and pieces[0] is None
        behind = not ended or bool(pieces) and pieces[-1] is None
        return cls(tuple(words), before, behind)


def automaton(partial: Partial, lexer: Lexer) -> Automaton:
    """Every sequence of terminals that a filling of the gaps can have.

    State i stands behind word i; the places inside of a word have states of their own.  A terminal that a gap has cut
    is open: the state in front of it and the pieces of it that are known.  The word that completes it adds an edge from
    there, if some word of the terminal has these pieces in this order.
    """
    edges: set[tuple[int, str, int]] = set()
    k = len(partial.words)
    states, empty, gaps = k + 1, [], {k} if partial.gap_behind or not k else set()
    opens: dict[str, set[tuple[int, tuple[str, ...]]]] = {}
    for i, word in enumerate(partial.words, 1):
        before, behind = i > 1 or partial.gap_before, i < k or partial.gap_behind
        if before:
            gaps.add(i - 1)
            for name in lexer.terminals:  # it may begin inside of the gap
                opens.setdefault(name, set()).add((i - 1, ("",)))
        lexed = lexer.lex(word, before, behind)
        places = {lexed.begin, *(to for _, _, to in lexed.whole), *(to for _, _, to in lexed.tails)} - {len(word)}
        number = {at: states + n for n, at in enumerate(sorted(places))} | {len(word): i}
        states += len(places)
        empty.append((i - 1, number[lexed.begin]))
        edges |= {(number[at], name, number[to]) for at, name, to in lexed.whole}
        left: dict[str, set[tuple[int, tuple[str, ...]]]] = {}
        for name, text, to in lexed.tails:
            holds = lexer.terminals[name].holds
            whole = {start for start, pieces in opens.get(name, ()) if pieces == ("",) or holds(pieces, text)}
            edges |= {(start, name, number[to]) for start in whole}
        for name in lexed.inside:
            holds = lexer.terminals[name].holds
            on = {(start, (*pieces, word)) for start, pieces in opens.get(name, ()) if holds((*pieces, word), None)}
            left.setdefault(name, set()).update(on)
        for at, name, text in lexed.heads:
            left.setdefault(name, set()).add((number[at], (text,)))
        edges |= {(start, name, i) for name, found in left.items() for start, _ in found}  # the gap completes it
        opens = left
    return _trimmed(edges, empty, gaps, k, list(lexer.terminals))


def _trimmed(edges, empty: list[tuple[int, int]], gaps: set[int], final: int, names: list[str]) -> Automaton:
    """The same without empty moves, and without states that no way from 0 to ``final`` passes."""
    ahead, behind = defaultdict(set), defaultdict(set)
    for p, name, q in edges:
        ahead[p].add((name, q))
    finals = {final}
    for start, stop in reversed(empty):
        ahead[start] |= ahead[stop] | ({(name, stop) for name in names} if stop in gaps else set())
        finals |= {start} if stop in finals else set()
    for p, moves in ahead.items():
        for _, q in moves:
            behind[q].add(p)
    live = _reached({0}, {p: {q for _, q in moves} for p, moves in ahead.items()}) & _reached(finals, behind)
    number = {state: n for n, state in enumerate(sorted(live | {0}))}
    kept = [(number[p], name, number[q]) for p in live for name, q in ahead.get(p, ()) if q in live]
    return Automaton(
        sorted(kept),
        len(number),
        0,
        frozenset(number[state] for state in finals & live),
        frozenset(number[state] for state in gaps & live),
    )


def _reached(begin: set[int], ahead: dict[int, set[int]]) -> set[int]:
    """All states that some of ``begin`` lead to, themselves included."""
    seen, todo = set(begin), list(begin)
    while todo:
        new = ahead.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


def written(partial: Partial, terminals: list[str], lexer: Lexer) -> str | None:
    """A text with these terminals that fills the partial one, with as few added bytes as can be, `PLAIN` if they can.

    A shortest path over (terminals done, state in the next one or -1 between two, characters of the words used,
    whether the last character is one of ``lexer.joined``: then the next terminal must not begin with one).
    """
    fixed, bounds, total = "".join(partial.words), set(), 0
    for n, word in enumerate(partial.words):
        if n or partial.gap_before:
            bounds.add(total)
        total += len(word)
    if partial.gap_behind or not partial.words:
        bounds.add(total)
    machines = [lexer.terminals[name] for name in terminals]
    blanks = " \n" if lexer.blanks else ""
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
            steps += [(done, -1, blank) for blank in blanks]
            if done < len(machines):
                first = machines[done].moves[machines[done].start]
                steps += [(done, after, c) for c, after in first.items() if not (word and c in lexer.joined)]
        else:
            steps += [(done, after, c) for c, after in machines[done].moves[state].items()]
            if state in machines[done].finals:
                relax((done + 1, -1, used, word), here, "", cost)
        for after_done, after, c in steps:
            if used < len(fixed) and fixed[used] == c:
                relax((after_done, after, used + 1, c in lexer.joined), here, c, cost)
            if used in bounds:
                relax((after_done, after, used, c in lexer.joined), here, c, cost + (1 if c in PLAIN else DEAR))
    return None


def _trace(state, origin) -> str:
    out = []
    while state in origin:
        state, character = origin[state]
        out.append(character)
    return "".join(reversed(out))
