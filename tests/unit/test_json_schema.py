"""JSON schemas as grammars: what follows the schema is a sentence, what does not is none, and gaps can be filled."""

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError, validate

from parsimony.benchmarks.code_blocks import Request
from parsimony.benchmarks.json_mode import JsonMode
from parsimony.errors import UserError
from parsimony.methods.diffusion.cfg_constrained import Language
from parsimony.methods.diffusion.json_schema import grammar
from parsimony.methods.diffusion.partial import Partial
from parsimony.models.token_bytes import as_bytes, as_text

NAMES = ("name", "age", "a b", "né")
SIMPLE = {
    "string": st.text("ab cé日", max_size=4),
    "integer": st.integers(-20, 20),
    "number": st.sampled_from([0, 1.5, -3.25, 2e-7]),
    "boolean": st.booleans(),
    "null": st.none(),
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["name", "b", 3]},
        "friends": {"type": "array", "items": {"$ref": "#"}},
        "age": {"type": ["integer", "null"]},
    },
    "required": ["name"],
}


@st.composite
def schemas(draw, depth: int = 2):
    """A schema and a strategy for what follows it."""
    kind = draw(st.sampled_from([*SIMPLE, "enum", *(["object", "array", "anyOf"] if depth else [])]))
    if kind in SIMPLE:
        return {"type": kind}, SIMPLE[kind]
    if kind == "enum":
        chosen = draw(st.lists(st.one_of(st.text("abé", max_size=2), st.integers(0, 9)), min_size=1, max_size=3))
        return {"enum": chosen}, st.sampled_from(chosen)
    if kind == "array":
        items, inside = draw(schemas(depth - 1))
        return {"type": "array", "items": items}, st.lists(inside, max_size=2)
    if kind == "anyOf":
        parts = [draw(schemas(depth - 1)) for _ in range(2)]
        return {"anyOf": [schema for schema, _ in parts]}, st.one_of(*(inside for _, inside in parts))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    parts = {name: draw(schemas(depth - 1)) for name in names}
    required = [name for name in names if draw(st.booleans())]
    inside = st.fixed_dictionaries(
        {name: parts[name][1] for name in names if name in required},
        optional={name: parts[name][1] for name in names if name not in required},
    ).map(lambda found: {name: found[name] for name in names if name in found})
    schema = {"type": "object", "properties": {name: part for name, (part, _) in parts.items()}, "required": required}
    return schema, inside


@cache
def language(text: str) -> Language:
    return Language(grammar(json.loads(text)))


def possible(schema: dict, *pieces: str | None) -> bool:
    return language(json.dumps(schema)).possible(Partial.of(list(pieces), ended=True))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), pair=schemas())
def test_what_follows_a_schema_is_a_sentence_whole_and_with_gaps(data, pair):
    schema, instances = pair
    text = as_bytes(json.dumps(data.draw(instances), indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=False))
    assert possible(schema, text) and possible(schema, f"{text}\n```")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=4)))
    pieces = [text[: cuts[0]] or None, None]
    for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        keep = data.draw(st.booleans())
        pieces.append(text[begin:end] if keep and end > begin else None)
    assert possible(schema, *pieces)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), pair=schemas(), other=schemas())
def test_completions_follow_the_schema_and_what_does_not_follow_is_no_sentence(data, pair, other):
    schema, _ = pair
    completed = language(json.dumps(schema)).completed(Partial.of([None], ended=True))
    validate(json.loads(as_text(completed).partition("```")[0]), schema)
    stranger = data.draw(other[1])
    try:
        validate(stranger, schema)
    except ValidationError:
        assert not possible(schema, as_bytes(json.dumps(stranger, ensure_ascii=False)))


def test_a_constant_in_another_script_is_completed():
    schema = json.dumps({"type": "object", "properties": {"né": {"const": "日本"}}, "required": ["né"]})
    completed = language(schema).completed(Partial.of(['{"n\xc3', None], ended=False))
    assert json.loads(as_text(completed)) == {"né": "日本"}


def test_a_schema_that_contains_itself():
    friend = {"name": "b", "kind": 3, "friends": [{"name": "name", "age": None}]}
    assert possible(PERSON, json.dumps({"name": "a", "friends": [friend, friend]}))
    assert not possible(PERSON, json.dumps({"name": "a", "friends": [{"kind": 3}]}))
    assert not possible(PERSON, json.dumps({"age": 3, "name": "a"}))  # properties stand in the schema's order
    assert not possible(PERSON, json.dumps({"name": "a", "other": 3}))
    assert possible(PERSON, '{"na', None, '": "a", "fri', None, "}]}")
    assert not possible(PERSON, '{"na', None, '": "a", "age": tr', None)


def test_all_of_joins_what_it_holds_and_wrong_schemas_are_refused():
    both = {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                      {"properties": {"b": {"const": "x"}}, "required": ["b"]}]}  # fmt: skip
    assert possible(both, '{"a": 1, "b": "x"}') and not possible(both, '{"a": 1}')
    with pytest.raises(UserError, match="the reference '#/nowhere' leads nowhere in the schema"):
        grammar({"properties": {"a": {"$ref": "#/nowhere"}}})
    with pytest.raises(UserError, match="3 is no schema"):
        grammar({"properties": {"a": 3}})


def test_a_prompt_asks_for_a_grammar_by_name_or_by_schema():
    assert Language.asked_for("json|x 3|").text == Language.named("json").text
    assert Language.asked_for('Say it.\n<schema>\n{"type": "null"}\n</schema>\n').text == grammar({"type": "null"})
    assert Language.asked_for("What is | to you?") is None


def test_answers_are_read_up_to_the_end_of_the_code():
    benchmark, asked = JsonMode("float32", False, 1, 8), Request("", (PERSON, {"name": "a"}))
    assert benchmark.grade(asked, '{"name": "a"}\n```\nThat is all.') == {"score": 1, "parses": 1}
    assert benchmark.grade(asked, '{"name": "b"}') == {"score": 0, "parses": 1}
    assert benchmark.grade(asked, '{"name": 3}') == benchmark.grade(asked, "none") == {"score": 0, "parses": 0}
