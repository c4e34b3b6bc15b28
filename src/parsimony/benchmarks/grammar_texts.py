"""Texts with a grammar: JSON objects and small functions, asked for shortly and graded by what they do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from random import Random

from parsimony.benchmarks.unmasked import Forms, filled
from parsimony.interfaces import Workbench

LENGTH = 64
"""Tokens of an answer, filled up with the end token."""
CHARACTERS = 95
"""Longer objects are not asked for."""
KEYS = [
    "age", "name", "size", "color", "kind", "city", "year", "code", "rank", "unit", "depth", "width", "score", "price",
    "count", "level", "label", "owner", "speed", "mass",
]  # fmt: skip
WORDS = ["red", "blue", "tom", "ann", "iron", "wood", "rome", "oslo", "fast", "slow", "north", "south"]
OPERATORS = {"add": "+", "take": "-", "times": "*"}
FORMS = ("json", "code")
SEED = 61000


@dataclass(frozen=True)
class Request:
    """A specification and what it asks for.

    Attributes
    ----------
    form : {"json", "code"}
    prompt : str
    answer : str
    wanted : dict, or tuple of (argument, result)
    """

    form: str
    prompt: str
    answer: str
    wanted: object

    def parses(self, text: str) -> bool:
        """Whether the text is a sentence of the form's grammar."""
        return tree(self.form, text) is not None

    def score(self, text: str) -> float:
        """1 if the text does what is asked: the same object, or the same results on all arguments."""
        parsed = tree(self.form, text)
        if parsed is None:
            return 0.0
        if self.form == "json":
            return float(json.loads(text) == self.wanted)
        return float(all(call(parsed, argument) == result for argument, result in self.wanted))


def request(form: str, rng: Random) -> Request:
    """A random request of a form."""
    return _object(rng) if form == "json" else _function(rng)


def requests(form: str, count: int) -> list[Request]:
    """``count`` test requests, the same on every machine."""
    rng = Random(SEED + FORMS.index(form))
    return [request(form, rng) for _ in range(count)]


def _object(rng: Random) -> Request:
    """Keys with a word, a number or a list of numbers each, one of them perhaps in an object of its own."""
    keys = rng.sample(KEYS, rng.randint(2, 4))
    values = [
        rng.choice((rng.choice(WORDS), rng.randint(0, 99), [rng.randint(0, 9) for _ in range(rng.randint(1, 3))]))
        for _ in keys
    ]
    wanted: dict = dict(zip(keys, values, strict=True))
    if len(keys) > 2 and rng.random() < 0.5:
        inner = keys[-1]
        wanted = {key: wanted[key] for key in keys[:-2]} | {keys[-2]: {inner: wanted[inner]}}
    answer = json.dumps(wanted)
    if len(answer) > CHARACTERS:
        return _object(rng)
    return Request("json", filled(f"json|{_told(wanted)}|", 32), answer, wanted)


def _told(wanted: dict) -> str:
    """An object without its quotes and brackets."""
    parts = []
    for key, value in wanted.items():
        if isinstance(value, dict):
            parts.append(f"{key} has {_told(value)}")
        else:
            parts.append(f"{key} {' '.join(map(str, value)) + ' list' if isinstance(value, list) else value}")
    return ", ".join(parts)


def _function(rng: Random) -> Request:
    """A function of one number: an operation, a repeated one, or a bound."""
    name, k = rng.choice(WORDS), rng.randint(2, 9)
    kind, word = rng.choice(("plain", "repeat", "bound")), rng.choice(sorted(OPERATORS))
    sign, step = OPERATORS[word], rng.randint(2, 9)
    apply = {"+": lambda x: x + step, "-": lambda x: x - step, "*": lambda x: x * step}[sign]
    if kind == "plain":
        body, told = f"return x {sign} {step};", f"{word} {step}"
        results = apply
    elif kind == "repeat":
        body = f"int i = 0; while (i < {k}) {{ x = x {sign} {step}; i = i + 1; }} return x;"
        told = f"{word} {step} repeat {k}"

        def results(x: int) -> int:
            for _ in range(k):
                x = apply(x)
            return x
    else:
        body, told = f"if (x < {k}) {{ return x; }} else {{ return {k}; }}", f"bound {k}"
        results = lambda x: min(x, k)  # noqa: E731
    answer = f"int {name}(int x) {{ {body} }}"
    return Request("code", filled(f"code|{name} {told}|", 32), answer, tuple((x, results(x)) for x in (0, 1, 4, 11)))


@cache
def _parser(form: str):
    from lark import Lark

    from parsimony.methods.diffusion.cfg_constrained import Language

    return Lark(Language.named(form).text, parser="earley", lexer="basic")


def tree(form: str, text: str):
    """The parse of a text, or None."""
    from lark.exceptions import LarkError

    try:
        return _parser(form).parse(text)
    except LarkError:
        return None


STEPS = 10_000
"""Statements after which a function is taken not to end."""


class _Returned(Exception):
    """The value of a return statement."""


def call(function, argument: int) -> int | None:
    """Result of a parsed function of one number in an interpreter that can do nothing else; None if it has none."""
    names = {}
    steps = [STEPS]
    parameters = [node for node in function.children if getattr(node, "data", "") == "parameter"]
    for parameter in parameters:
        names[str(parameter.children[0])] = argument
    try:
        _run(function.children[-1], names, steps)
    except _Returned as returned:
        return returned.args[0]
    except (KeyError, ZeroDivisionError, OverflowError):
        return None
    return None


def _run(block, names: dict, steps: list[int]) -> None:
    for statement in block.children:
        steps[0] -= 1
        if steps[0] < 0:
            raise OverflowError
        kind, parts = statement.data, statement.children
        if kind in ("declaration", "assignment"):
            names[str(parts[0])] = _value(parts[1], names)
        elif kind == "leave":
            raise _Returned(_value(parts[0], names))
        elif kind == "branch":
            if _holds(parts[0], names):
                _run(parts[1], names, steps)
            elif len(parts) > 2:
                _run(parts[2], names, steps)
        else:
            while _holds(parts[0], names):
                steps[0] -= 1
                if steps[0] < 0:
                    raise OverflowError
                _run(parts[1], names, steps)


def _holds(condition, names: dict) -> bool:
    left, how, right = condition.children
    a, b = _value(left, names), _value(right, names)
    return {"<": a < b, ">": a > b, "==": a == b, "!=": a != b}[str(how)]


def _value(node, names: dict) -> int:
    if not hasattr(node, "data"):
        return int(node) if node.type == "NUMBER" else names[str(node)]
    total = _value(node.children[0], names)
    for sign, part in zip(node.children[1::2], node.children[2::2], strict=True):
        other = _value(part, names)
        if abs(total) > 10**12:
            raise OverflowError
        if sign == "/":
            total = abs(total) // abs(other) * (1 if (total < 0) == (other < 0) else -1)  # towards zero, as in C
        else:
            total = {"+": total + other, "-": total - other, "*": total * other}[str(sign)]
    return total


class GrammarTexts(Forms):
    """JSON objects and small functions: do answers parse, do they do what is asked, what do checks cost?"""

    FORMS, LENGTH = FORMS, LENGTH

    def drawn(self, form: str, count: int) -> list[Request]:
        return requests(form, count)

    def grade(self, asked: Request, text: str) -> dict[str, float]:
        return {"score": asked.score(text), "parses": float(asked.parses(text))}

    def beside(self, asked: Request, system, model, bench: Workbench, item: str) -> dict[str, float]:
        if not hasattr(system, "resamples"):
            return {}
        return {"resamples": system.resamples, "check_seconds": system.check_seconds}
