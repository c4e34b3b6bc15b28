"""Context-free grammars made for one question: does a regular language hold a sentence of it?

The regular language is a finite automaton over the grammar's terminals.  Normal form and algorithm are those of
Mündler, Dekoninck and Vechev (arXiv 2508.10111): bodies of at most two symbols that share what they can, empty and unit
rules kept (removing them may square the grammar), and a bottom-up search that derives only what is reached.
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
    """

    edges: list[tuple[int, str, int]]
    states: int
    start: int
    finals: frozenset[int]


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
        self.start = self.number[grammar.start]
        self.empty = [self.number[head] for head, bodies in grammar.rules.items() if () in bodies]
        self.unit: list[list[int]] = [[] for _ in self.symbols]  # [B]: every A with A -> B
        self.left: list[list[tuple[int, int]]] = [[] for _ in self.symbols]  # [B]: every (A, C) with A -> B C
        self.right: list[list[tuple[int, int]]] = [[] for _ in self.symbols]  # [C]: every (A, B) with A -> B C
        rules = [
            (self.number[head], [self.number[part] for part in body])
            for head, bodies in grammar.rules.items()
            for body in bodies
        ]
        for head, parts in rules:
            if len(parts) == 1:
                self.unit[parts[0]].append(head)
            elif len(parts) == 2:
                self.left[parts[0]].append((head, parts[1]))
                self.right[parts[1]].append((head, parts[0]))
        self.terminals = grammar.terminals
        self.anything = self._derivations(rules)

    def _derivations(self, rules: list[tuple[int, list[int]]]) -> dict[int, tuple[int, ...]]:
        """How each symbol derives a word, by the first way found; of terminals and empty words: ()."""
        found: dict[int, tuple[int, ...]] = dict.fromkeys([*map(self.number.get, self.terminals), *self.empty], ())
        while more := {head: tuple(body) for head, body in rules if head not in found and found.keys() >= set(body)}:
            found |= more
        return found

    def sentence(self, automaton: Automaton) -> list[str] | None:
        """A sentence (terminals) that is in both, or None: there is none.

        Item (p, A, q): A derives a word that leads the automaton from p to q.  The search ends with the first item
        that answers the question.  Sets of states are integers, a bit a state.  At a state with loops of all
        terminals (a gap) everything derives a word that stays there, and nothing of it has to be searched.
        """
        why: dict[tuple[int, int, int], tuple] = {}
        ahead = [[0] * automaton.states for _ in self.symbols]  # [A][p]: every q
        behind = [[0] * automaton.states for _ in self.symbols]  # [A][q]: every p
        stack: list[tuple[int, int, int]] = []

        def add(p: int, symbol: int, q: int, *parts) -> None:
            ahead[symbol][p] |= 1 << q
            behind[symbol][q] |= 1 << p
            why[p, symbol, q] = parts
            stack.append((p, symbol, q))

        loops = defaultdict(set)
        for p, terminal, q in automaton.edges:
            if p == q:
                loops[p].add(terminal)
        gaps = {p for p, terminals in loops.items() if terminals >= self.terminals}
        for p in gaps:
            for symbol in self.anything:
                ahead[symbol][p] = behind[symbol][p] = 1 << p
        for p, terminal, q in automaton.edges:
            if terminal in self.number and not (p == q and p in gaps):
                add(p, self.number[terminal], q)
        for p in set(range(automaton.states)) - gaps:
            for head in self.empty:
                add(p, head, p)
        begin, ends = automaton.start, sum(1 << q for q in automaton.finals)
        while not ahead[self.start][begin] & ends:
            if not stack:
                return None
            item = p, symbol, q = stack.pop()
            for head in self.unit[symbol]:
                if not ahead[head][p] >> q & 1:
                    add(p, head, q, item)
            for head, other in self.left[symbol]:
                if new := ahead[other][q] & ~ahead[head][p]:
                    for r in _bits(new):
                        add(p, head, r, item, (q, other, r))
            for head, other in self.right[symbol]:
                if new := behind[other][p] & ~behind[head][q]:
                    for r in _bits(new):
                        add(r, head, q, (r, other, p), item)
        end = next(_bits(ahead[self.start][begin] & ends))
        return list(self._terminals((begin, self.start, end), why))

    def _terminals(self, item, why):
        """The terminals below an item, in order."""
        todo = [item]
        while todo:
            item = p, symbol, _ = todo.pop()
            parts = why[item] if item in why else [(p, part, p) for part in self.anything[symbol]]
            if parts:
                todo += reversed(parts)
            elif symbol not in self.empty:
                yield self.symbols[symbol]


def _bits(states: int):
    """The places of the ones, from the lowest on."""
    while states:
        yield (states & -states).bit_length() - 1
        states &= states - 1


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
