"""Terminals of a grammar as automata over characters, and the lexings of a word that a gap may have cut.

For each terminal four languages matter: its words, their prefixes, their suffixes, and the prefixes of their suffixes
(a gap before a word may have eaten its beginning, a gap behind it its end).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

QUOTED = re.compile(r'"(\\.|[^\\\[\](){}*+?|.^$])*"')
WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


@dataclass(frozen=True, eq=False)
class Terminal:
    """A deterministic automaton without dead states.

    Attributes
    ----------
    name : str
    moves : tuple of dict of str to int
        Moves of each state by character.
    start : int
    finals : frozenset of int
    """

    name: str
    moves: tuple[dict[str, int], ...]
    start: int
    finals: frozenset[int]

    @classmethod
    def of(cls, name: str, pattern: str, characters: str, without: tuple[str, ...] = ()) -> Terminal:
        """The words of a regular expression over ``characters``, but not those of the expressions in ``without``."""
        import interegular

        machine = interegular.parse_pattern(pattern).to_fsm()
        for other in without:
            machine = machine - interegular.parse_pattern(other).to_fsm()
        machine = machine.reduce()
        live = {state for state in machine.states if machine.islive(state)}
        number = {state: n for n, state in enumerate(sorted(live, key=str))}
        moves = []
        for state in sorted(live, key=str):
            after = machine.map.get(state, {})
            keys = {character: machine.alphabet[character] for character in characters}
            moves.append({c: number[after[key]] for c, key in keys.items() if after.get(key) in live})
        finals = frozenset(number[state] for state in machine.finals if state in live)
        return cls(name, tuple(moves), number[machine.initial], finals)

    @cached_property
    def everywhere(self) -> frozenset[int]:
        """All states: somewhere inside a word."""
        return frozenset(range(len(self.moves)))

    @cached_property
    def beyond(self) -> tuple[frozenset[int], ...]:
        """States that each state can reach, itself included."""
        out = []
        for state in range(len(self.moves)):
            seen, todo = {state}, [state]
            while todo:
                new = set(self.moves[todo.pop()].values()) - seen
                seen |= new
                todo += new
            out.append(frozenset(seen))
        return tuple(out)

    def read(self, states: frozenset[int], text: str) -> frozenset[int]:
        """States in which one is behind ``text``; none, if no word of the terminal holds it there."""
        for character in text:
            states = frozenset(self.moves[state][character] for state in states if character in self.moves[state])
            if not states:
                break
        return states

    def longest(self, states: frozenset[int], text: str) -> int:
        """Length of the longest prefix of ``text`` that ends a word; -1 if there is none."""
        found = 0 if states & self.finals else -1
        for n, character in enumerate(text):
            states = self.read(states, character)
            if not states:
                return found
            if states & self.finals:
                found = n + 1
        return found

    def holds(self, pieces: tuple[str, ...], suffix: str | None) -> bool:
        """Whether a word is piece, gap, piece, gap, ..., suffix; a first piece of "" began in a gap.

        ``suffix`` None: some word goes on behind the last piece and a gap.
        """
        first, *others = pieces
        states = self.everywhere if first == "" else self.read(frozenset([self.start]), first)
        for piece in others:
            states = self.read(self._anywhere(states), piece)
        if suffix is None:
            return bool(states)
        return bool(self.read(self._anywhere(states), suffix) & self.finals)

    def _anywhere(self, states: frozenset[int]) -> frozenset[int]:
        return frozenset().union(*(self.beyond[state] for state in states))


@dataclass(frozen=True)
class Lexing:
    """One way to read a word.

    Attributes
    ----------
    terminals : tuple of str
    first, last : str or None
        Text of the first (last) terminal, where the gap before (behind) the word has cut it.
    """

    terminals: tuple[str, ...]
    first: str | None
    last: str | None


class Lexer:
    """All lexings of words; a keyword is not read as an identifier, nor a text in quotes that the grammar names as any
    text, nor may a letter follow a keyword.

    Parameters
    ----------
    patterns : dict of str to str
        Regular expressions of the terminals and of what is ignored.
    ignored : set of str
    characters : str
        All that may occur.
    """

    def __init__(self, patterns: dict[str, str], ignored: set[str], characters: str):
        self.blanks = [Terminal.of(name, patterns[name], characters) for name in sorted(ignored)]
        self.terminals = {}
        names = sorted(set(patterns) - ignored)
        fixed = {name: patterns[name] for name in names if _literal(patterns[name])}
        for name in names:
            others = () if name in fixed else tuple(fixed.values())
            self.terminals[name] = Terminal.of(name, patterns[name], characters, others)
        self._known: dict[tuple[str, bool, bool], frozenset[Lexing]] = {}

    def lex(self, word: str, gap_before: bool, gap_behind: bool) -> frozenset[Lexing]:
        """Every lexing of ``word``; a side without a gap cuts no terminal."""
        key = word, gap_before, gap_behind
        if key not in self._known:
            self._known[key] = frozenset(self._lex(*key))
        return self._known[key]

    def _lex(self, word: str, gap_before: bool, gap_behind: bool):
        todo: list[tuple[int, tuple[str, ...], str | None]] = [(0, (), None)]
        if gap_before:
            for name, terminal in self.terminals.items():
                if gap_behind and terminal.read(terminal.everywhere, word):
                    yield Lexing((name,), word, word)
                length = terminal.longest(terminal.everywhere, word)
                if length > 0 and not _torn(word, length):
                    todo.append((length, (name,), word[:length]))
        seen = set()
        while todo:
            here = at, terminals, first = todo.pop()
            if here in seen:
                continue
            seen.add(here)
            at += self._blank(word[at:])
            rest = word[at:]
            if not rest:
                yield Lexing(terminals, first, None)
                continue
            for name, terminal in self.terminals.items():
                begin = frozenset([terminal.start])
                if gap_behind and terminal.read(begin, rest):
                    yield Lexing((*terminals, name), first, rest)
                length = terminal.longest(begin, rest)
                if length > 0 and not _torn(rest, length):
                    todo.append((at + length, (*terminals, name), first))

    def _blank(self, text: str) -> int:
        """Length of what is ignored at the beginning."""
        at = 0
        while True:
            lengths = [blank.longest(frozenset([blank.start]), text[at:]) for blank in self.blanks]
            if max(lengths, default=0) <= 0:
                return at
            at += max(lengths)


def _torn(text: str, at: int) -> bool:
    """Whether a word of letters and digits goes on at ``at``."""
    return at < len(text) and text[at - 1] in WORD and text[at] in WORD


def _literal(pattern: str) -> bool:
    """Whether a regular expression is a keyword (letters, digits and underscores alone) or one text in quotes."""
    return all(letter in WORD for letter in pattern) or bool(QUOTED.fullmatch(pattern))
