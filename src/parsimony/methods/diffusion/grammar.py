"""Context-free grammars and finite automata over their terminals (see `intersection` for the two together).

The normal form is that of Mündler, Dekoninck and Vechev (arXiv 2508.10111): bodies of at most two symbols that share
what they can, empty and unit rules kept, since removing them may square the grammar.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

Rules = dict[str, list[tuple[str, ...]]]


@dataclass(frozen=True)
class Automaton:
    """Finite automaton over terminals, without empty moves.

    Attributes
    ----------
    edges : list of (state, terminal, state)
    states : int
    start : int
    finals : frozenset of int
    gaps : frozenset of int
        States that every terminal leads back to.
    """

    edges: list[tuple[int, str, int]]
    states: int
    start: int
    finals: frozenset[int]
    gaps: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Grammar:
    """A grammar: everything that has rules is a nonterminal, everything else a terminal."""

    start: str
    rules: Rules

    @property
    def terminals(self) -> set[str]:
        """Symbols without rules."""
        return {symbol for bodies in self.rules.values() for body in bodies for symbol in body} - set(self.rules)

    def size(self) -> int:
        """Symbols in all bodies, and one a rule."""
        return sum(1 + len(body) for bodies in self.rules.values() for body in bodies)

    def normal(self) -> Grammar:
        """The same language with bodies of at most two symbols, terminals in bodies of one; linear in size."""
        rules = {head: list(dict.fromkeys(bodies)) for head, bodies in self.rules.items()}
        start = self._fresh(rules, "start")
        rules[start] = [(self.start,)]
        rules = _useful(rules, start)
        rules = _inlined(rules, start)
        rules = self._factored(rules)
        rules = self._paired(rules)
        rules = self._isolated(rules)
        return Grammar(start, self._binary(rules))

    @staticmethod
    def _fresh(rules: Rules, name: str) -> str:
        n = 0
        while f"{name}'{n}" in rules:
            n += 1
        return f"{name}'{n}"

    def _factored(self, rules: Rules) -> Rules:
        """Alternatives that begin with the same symbol share it: A -> x y | x z becomes A -> x B, B -> y | z."""
        todo = list(rules)
        while todo:
            head = todo.pop()
            first: dict[str, list] = defaultdict(list)
            for body in rules[head]:
                first[body[0] if len(body) > 1 else ""].append(body)
            for symbol, bodies in first.items():
                if symbol and len(bodies) > 1:
                    rest = self._fresh(rules, head)
                    rules[rest] = [body[1:] for body in bodies]
                    rules[head] = [body for body in rules[head] if body not in bodies] + [(symbol, rest)]
                    todo.append(rest)
        return rules

    def _paired(self, rules: Rules) -> Rules:
        """The pair of neighbours that most bodies of three and more symbols share becomes a symbol, again and again."""
        while True:
            pairs = Counter(
                pair
                for bodies in rules.values()
                for body in bodies
                if len(body) > 2
                for pair in set(zip(body, body[1:], strict=False))
            )
            if not pairs or pairs.most_common(1)[0][1] < 2:
                return rules
            pair = min((p for p, n in pairs.items() if n == max(pairs.values())))
            name = self._fresh(rules, "pair")
            for head, bodies in rules.items():
                rules[head] = [_substituted(body, pair, name) if len(body) > 2 else body for body in bodies]
            rules[name] = [pair]

    def _isolated(self, rules: Rules) -> Rules:
        """Terminals in bodies of two and more get a nonterminal of their own."""
        own: dict[str, str] = {}
        for head in list(rules):
            bodies = []
            for body in rules[head]:
                if len(body) > 1:
                    for symbol in body:
                        if symbol not in rules and symbol not in own:
                            own[symbol] = f"<{symbol}>"
                    body = tuple(own.get(symbol, symbol) for symbol in body)
                bodies.append(body)
            rules[head] = bodies
        return rules | {name: [(symbol,)] for symbol, name in own.items()}

    def _binary(self, rules: Rules) -> Rules:
        """Long bodies become chains; equal suffixes share theirs."""
        suffixes: dict[tuple[str, ...], str] = {}

        def short(body: tuple[str, ...]) -> tuple[str, ...]:
            if len(body) <= 2:
                return body
            rest = body[1:]
            if rest not in suffixes:
                suffixes[rest] = self._fresh(rules, "rest")
                rules[suffixes[rest]] = []  # the name is taken
                rules[suffixes[rest]] = [short(rest)]
            return body[0], suffixes[rest]

        for head in list(rules):
            rules[head] = [short(body) for body in rules[head]]
        return rules


def _useful(rules: Rules, start: str) -> Rules:
    """Only what derives a word and is reached."""
    derives: set[str] = set()
    while True:
        more = {
            head
            for head, bodies in rules.items()
            if head not in derives and any(all(s in derives or s not in rules for s in body) for body in bodies)
        }
        if not more:
            break
        derives |= more
    rules = {
        head: [body for body in bodies if all(s in derives or s not in rules for s in body)]
        for head, bodies in rules.items()
        if head in derives
    }
    reached, todo = {start}, [start]
    while todo:
        for body in rules.get(todo.pop(), ()):
            new = {symbol for symbol in body if symbol in rules} - reached
            reached |= new
            todo += new
    return {head: bodies for head, bodies in rules.items() if head in reached}


def _inlined(rules: Rules, start: str) -> Rules:
    """Nonterminals with one rule that are used once, and not by themselves, give way to their body."""
    while True:
        uses = Counter(symbol for bodies in rules.values() for body in bodies for symbol in body)
        once = [
            head
            for head, bodies in rules.items()
            if head != start and uses[head] == 1 and len(bodies) == 1 and head not in bodies[0]
        ]
        if not once:
            return rules
        name = once[0]
        (inside,) = rules.pop(name)
        for head, bodies in rules.items():
            rules[head] = [
                tuple(s for symbol in body for s in (inside if symbol == name else (symbol,))) for body in bodies
            ]


def _substituted(body: tuple[str, ...], pair: tuple[str, str], name: str) -> tuple[str, ...]:
    out: list[str] = []
    at = 0
    while at < len(body):
        if body[at : at + 2] == pair:
            out.append(name)
            at += 2
        else:
            out.append(body[at])
            at += 1
    return tuple(out)


def read(text: str) -> tuple[Grammar, dict[str, str], set[str]]:
    """A grammar in lark's notation: rules, regular expressions of the terminals, and the terminals between others.

    Returns
    -------
    grammar : Grammar
    patterns : dict of str to str
    ignored : set of str
        Named by ``%ignore``; not in the grammar.
    """
    from lark import Lark

    parsed = Lark(text, parser="earley", lexer="basic", maybe_placeholders=False)
    rules: Rules = defaultdict(list)
    for rule in parsed.rules:
        rules[str(rule.origin.name)].append(tuple(str(symbol.name) for symbol in rule.expansion))
    patterns = {terminal.name: terminal.pattern.to_regexp() for terminal in parsed.terminals}
    return Grammar("start", dict(rules)), patterns, set(map(str, parsed.ignore_tokens))
