"""Terminals of a grammar as automata over bytes (characters below 256), and the lexings of a word that a gap may have
cut.

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
    def of(cls, name: str, pattern: str, without: str = "") -> Terminal:
        """The words of a regular expression, but not those of the expression ``without``."""
        import interegular

        machine = interegular.parse_pattern(pattern).to_fsm()
        if without:
            machine = machine - interegular.parse_pattern(without).to_fsm()
        machine = machine.reduce()
        live = {state for state in machine.states if machine.islive(state)}
        number = {state: n for n, state in enumerate(sorted(live, key=str))}
        moves = []
        for state in sorted(live, key=str):
            after = machine.map.get(state, {})
            keys = {character: machine.alphabet[character] for character in map(chr, range(256))}
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

    def begins(self, text: str, at: int) -> tuple[int, bool]:
        """Where the longest word that begins at ``at`` ends (-1: none does), and whether one may go on at the end."""
        state, found = self.start, at if self.start in self.finals else -1
        for n in range(at, len(text)):
            if text[n] not in self.moves[state]:
                return found, False
            state = self.moves[state][text[n]]
            if state in self.finals:
                found = n + 1
        return found, True

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
class Lexed:
    """All ways to read a word, as a graph: what is read from one place in it to another.

    Blanks belong to the terminal in front of them, so a place is never in front of a blank.

    Attributes
    ----------
    begin : int
        The place behind leading blanks; the word's length if it is blank.
    whole : tuple of (int, str, int)
        Terminals between two places.
    tails : tuple of (str, str, int)
        Terminals that the gap before the word has cut: what is left of each, and the place behind it.
    heads : tuple of (int, str, str)
        Terminals that the gap behind the word may cut: the place, and what is there of each.
    inside : tuple of str
        Terminals that may have the whole word in them, cut on both sides.
    """

    begin: int
    whole: tuple[tuple[int, str, int], ...]
    tails: tuple[tuple[str, str, int], ...]
    heads: tuple[tuple[int, str, str], ...]
    inside: tuple[str, ...]


class Lexer:
    """All lexings of words; a keyword is not read as an identifier, nor a text in quotes that the grammar names as any
    text, nor may a letter follow a keyword, unless the grammar has no blanks to part them.

    Parameters
    ----------
    patterns : dict of str to str
        Regular expressions of the terminals and of what is ignored.
    ignored : set of str

    Attributes
    ----------
    joined : frozenset of str
        Characters of which two side by side belong to one terminal.
    starting, within : dict of str to list of str
        Terminals that begin with a character, and those that have it anywhere.
    """

    def __init__(self, patterns: dict[str, str], ignored: set[str]):
        self.blanks = [Terminal.of(name, patterns[name]) for name in sorted(ignored)]
        self.joined = WORD if ignored else frozenset()
        self.terminals = {}
        names = sorted(set(patterns) - ignored)
        fixed = {name: re.sub(r"\\(.)", r"\1", patterns[name]) for name in names if _literal(patterns[name])}
        for name in names:
            taken = [other for other, text in fixed.items() if name not in fixed and re.fullmatch(patterns[name], text)]
            without = "|".join(patterns[other] for other in taken)
            self.terminals[name] = Terminal.of(name, patterns[name], without)
        self.starting: dict[str, list[str]] = {chr(n): [] for n in range(256)}
        self.within: dict[str, list[str]] = {chr(n): [] for n in range(256)}
        for name, terminal in self.terminals.items():
            for letter in terminal.moves[terminal.start]:
                self.starting[letter].append(name)
            for letter in set().union(*terminal.moves):
                self.within[letter].append(name)
        self._known: dict[tuple[str, bool, bool], Lexed] = {}

    def lex(self, word: str, gap_before: bool, gap_behind: bool) -> Lexed:
        """The lexings of ``word``; a side without a gap cuts no terminal."""
        key = word, gap_before, gap_behind
        if key not in self._known:
            self._known[key] = self._lex(*key)
        return self._known[key]

    def _lex(self, word: str, gap_before: bool, gap_behind: bool) -> Lexed:
        begin = self._behind_blanks(word, 0)
        whole, tails, heads, inside = [], [], [], []
        if gap_before:
            for name in self.within[word[0]]:
                terminal = self.terminals[name]
                if gap_behind and terminal.read(terminal.everywhere, word):
                    inside.append(name)
                length = terminal.longest(terminal.everywhere, word)
                if length > 0 and not self._torn(word, length):
                    tails.append((name, word[:length], self._behind_blanks(word, length)))
        places, seen = [begin, *(place for _, _, place in tails)], {len(word)}
        while places:
            at = places.pop()
            if at in seen:
                continue
            seen.add(at)
            for name in self.starting[word[at]]:
                end, goes_on = self.terminals[name].begins(word, at)
                if gap_behind and goes_on:
                    heads.append((at, name, word[at:]))
                if end > at and not self._torn(word, end):
                    place = self._behind_blanks(word, end)
                    whole.append((at, name, place))
                    places.append(place)
        return Lexed(begin, tuple(whole), tuple(tails), tuple(heads), tuple(inside))

    def _behind_blanks(self, text: str, at: int) -> int:
        """The place behind what is ignored at ``at``."""
        while (end := max((blank.begins(text, at)[0] for blank in self.blanks), default=-1)) > at:
            at = end
        return at

    def _torn(self, text: str, at: int) -> bool:
        """Whether a word of letters and digits goes on at ``at``."""
        return at < len(text) and text[at - 1] in self.joined and text[at] in self.joined


def _literal(pattern: str) -> bool:
    """Whether a regular expression is a keyword (letters, digits and underscores alone) or one text in quotes."""
    return all(letter in WORD for letter in pattern) or bool(QUOTED.fullmatch(pattern))
