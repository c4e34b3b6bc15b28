"""Grammars, automata of partial texts, and emptiness, against brute force."""

import itertools
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.methods.diffusion.cfg_constrained import Language
from parsimony.methods.diffusion.grammar import Automaton, Grammar, read
from parsimony.methods.diffusion.intersection import Intersection
from parsimony.methods.diffusion.partial import Partial

GRAMMARS = {
    "brackets": Grammar("s", {"s": [(), ("a", "s", "b", "s")]}),
    "lists": Grammar("s", {"s": [("a", "l", "b")], "l": [("x",), ("x", "c", "l"), ("s", "c", "l"), ("s",)]}),
    "unit": Grammar("s", {"s": [("t",), ("t", "c", "s")], "t": [("u",), ()], "u": [("a", "b", "a"), ("a", "b", "b")]}),
}


@cache
def sentences(name: str, longest: int) -> frozenset[tuple[str, ...]]:
    """All sentences of a grammar up to a length, by repeated substitution."""
    grammar = GRAMMARS[name]
    words: dict[str, set] = {head: set() for head in grammar.rules}
    while True:
        before = {head: len(found) for head, found in words.items()}
        for head, bodies in grammar.rules.items():
            for body in bodies:
                parts = [words.get(s, {(s,)}) for s in body]
                for combined in itertools.product(*parts):
                    word = tuple(itertools.chain.from_iterable(combined))
                    if len(word) <= longest:
                        words[head].add(word)
        if before == {head: len(found) for head, found in words.items()}:
            return frozenset(words[grammar.start])


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_normal_form_has_the_same_sentences_in_short_bodies(name):
    grammar = GRAMMARS[name]
    normal = grammar.normal()
    assert all(len(body) <= 2 for bodies in normal.rules.values() for body in bodies)
    assert normal.size() <= 4 * grammar.size() and normal.terminals == grammar.terminals
    test = Intersection(normal)
    for length in range(5):
        for word in itertools.product(sorted(grammar.terminals), repeat=length):
            edges = [(n, symbol, n + 1) for n, symbol in enumerate(word)]
            found = test.sentence(Automaton(edges, length + 1, 0, frozenset([length])))
            assert (found == list(word)) if word in sentences(name, 4) else found is None


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(GRAMMARS)))
def test_emptiness_is_what_enumeration_says(data, name):
    """On random automata; only sentences of up to six terminals are looked at, so longer ones may exist besides."""
    terminals = sorted(GRAMMARS[name].terminals)
    states = data.draw(st.integers(1, 4))
    state = st.integers(0, states - 1)
    edges = data.draw(st.lists(st.tuples(state, st.sampled_from(terminals), state), max_size=8, unique=True))
    gaps = data.draw(st.sets(state, max_size=2))
    finals = data.draw(st.frozensets(state, max_size=2))
    machine = Automaton(edges, states, 0, finals, frozenset(gaps))
    edges = edges + [(p, terminal, p) for p in gaps for terminal in terminals]

    def accepted(word) -> bool:
        here = {0}
        for symbol in word:
            here = {q for p, s, q in edges if s == symbol and p in here}
        return bool(here & finals)

    test = Intersection(GRAMMARS[name].normal())
    found = test.sentence(machine)
    assert test.holds(machine) == (found is not None)
    if any(accepted(word) for word in sentences(name, 6)):
        assert found is not None
    if found is not None:
        assert accepted(found) and (len(found) > 6 or tuple(found) in sentences(name, 6))


JSON_TEXTS = ['{"a": 1}', '{"a": [true, -2.5], "b c": {"d": null}}', "{}", '{"x":{"y":[]}}']
CODE_TEXTS = [
    "int f(int a, int b) { int c = a + 2 * b; while (c < 10) { c = c + 1; } return c; }",
    "int main() { if (index == 0) { return 1; } else { return (2 - x) / 3; } }",
]
TEXTS = [("json", text) for text in JSON_TEXTS] + [("code", text) for text in CODE_TEXTS]


@cache
def language(name: str) -> Language:
    return Language.named(name)


def parses(name: str, text: str) -> bool:
    from lark import Lark
    from lark.exceptions import LarkError

    try:
        Lark(language(name).text, parser="earley", lexer="basic").parse(text)
    except LarkError:
        return False
    return True


@settings(max_examples=120, deadline=None)
@given(data=st.data(), which=st.sampled_from(TEXTS))
def test_a_sentence_with_holes_can_be_completed(data, which):
    """Whatever is cut out, tokens and all: the rest can become a sentence, and its completion is one around it."""
    name, text = which
    holes = data.draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(1, 6)), max_size=4))
    kept = [True] * len(text)
    for at, length in holes:
        kept[at : at + length] = [False] * len(kept[at : at + length])
    pieces = [letter if keep else None for letter, keep in zip(text, kept, strict=True)]
    partial = Partial.of(pieces, ended=True)
    assert language(name).possible(partial)
    completed = language(name).completed(partial)
    assert parses(name, completed)
    at = 0
    for word in partial.words:
        at = completed.index(word, at) + len(word)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), which=st.sampled_from(TEXTS))
def test_without_gaps_the_test_is_a_parser(data, which):
    name, text = which
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from('{}[]():;,"=+a1 <'))
    changed = text[:at] + letter + text[at + data.draw(st.integers(0, 1)) :]
    partial = Partial.of(list(changed), ended=True)
    assert language(name).possible(partial) == parses(name, changed)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("json", ['{"a"', None, "}}"]),  # fits
        ("json", [None, "tru", None]),
        ("code", [None, "while (", None, "< 3)", None]),
    ],
)
def test_texts_that_can_still_become_something(name, pieces):
    assert language(name).possible(Partial.of(pieces, ended=False))


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("json", ["]", None]),
        ("json", [None, "}]", None, "{[}"]),
        ("json", ["{", None, "1.2.3", None]),
        ("json", ["{1", None]),
        ("code", ["int f() { int int =", None]),  # without the sign it may become a longer name
        ("code", [None, "returns 1", None, "; } }"]),
        ("code", ["int f(", None, "{{", None]),
    ],
)
def test_texts_that_cannot(name, pieces):
    assert not language(name).possible(Partial.of(pieces, ended=False))


def test_grammars_are_read_with_their_terminals():
    grammar, patterns, ignored = read(Language.named("json").text)
    assert ignored == {"BLANK"} and {"STRING", "NUMBER"} <= set(patterns)
    assert grammar.terminals == set(patterns) - ignored
