"""A JSON schema as a context-free grammar in lark's notation, for constrained decoding (arXiv 2508.10111).

What the grammar says of a schema: types, properties in the schema's order (others are not allowed, optional ones may be
left out), items of lists, constants, alternatives and references.  What it leaves to whoever checks the answer: bounds
of numbers and lengths, patterns and formats of strings.
"""

from __future__ import annotations

import json

from parsimony.errors import UserError
from parsimony.models.token_bytes import as_bytes

COMMON = r"""
?any: anything | list | string | number | "true" | "false" | "null"
anything: "{" (string ":" any ("," string ":" any)*)? "}"
list: "[" (any ("," any)*)? "]"
?number: integer | FRACTION
STRING: /"([^"\\\x00-\x1f`]|\\(["\\\/bfnrt]|u[0-9a-fA-F]{4}))*"/
INTEGER: /-?(0|[1-9][0-9]*)/
FRACTION: /-?(0|[1-9][0-9]*)(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)/
BLANK: /[ \t\n]+/
%ignore BLANK
"""
"""Back-ticks are kept out of strings, because they end the block of code that an answer stands in."""
SIMPLE = {"string": "string", "integer": "integer", "number": "number", "null": '"null"', "object": "anything",
          "array": "list"}  # fmt: skip


def grammar(schema: dict) -> str:
    """The grammar of a schema's instances, behind which a block of code may end.

    Raises
    ------
    UserError
        For a reference that leads nowhere, and what is no schema.
    """
    return _Writer(schema).text()


class _Writer:
    """Rules that are written so far."""

    def __init__(self, schema: dict):
        self.schema, self.rules, self.named = schema, [], {}
        self.told: dict[str, None] = {}
        """Texts that the schema names, each a terminal of its own and none of STRING or INTEGER any more."""

    def text(self) -> str:
        start = f'start: {self.referred("#")} "```"?'
        strings = ["STRING", *(text for text in self.told if text[1:3] == '\\"')]
        integers = ["INTEGER", *(text for text in self.told if text.strip('"').isdigit())]
        shared = [f"?string: {' | '.join(strings)}", f"?integer: {' | '.join(integers)}"]
        return "\n".join([start, *self.rules, *shared]) + COMMON

    def literal(self, value) -> str:
        """A JSON value as it is written."""
        text = as_bytes(json.dumps(value, ensure_ascii=False)).replace("\\", "\\\\").replace('"', '\\"')
        self.told[f'"{text}"'] = None
        return f'"{text}"'

    def rule(self, body: str) -> str:
        """The name of a new rule."""
        self.rules.append(f"r{len(self.rules)}: {body}")
        return f"r{len(self.rules) - 1}"

    def value(self, schema) -> str:
        """What stands in a rule for an instance of ``schema``."""
        if schema is True or schema == {}:
            return "any"
        if not isinstance(schema, dict):
            raise UserError(f"json_schema: {schema!r} is no schema")
        if "$ref" in schema:
            return self.referred(schema["$ref"])
        for key in ("enum", "const"):
            if key in schema:
                chosen = schema[key] if key == "enum" else [schema[key]]
                return self.rule(" | ".join(map(self.literal, chosen)))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self.rule(" | ".join(self.value(each) for each in schema[key]))
        if "allOf" in schema:
            return self.value(merged([{k: v for k, v in schema.items() if k != "allOf"}, *schema["allOf"]]))
        kind = schema.get("type", "object" if "properties" in schema else "array" if "items" in schema else None)
        if isinstance(kind, list):
            return self.rule(" | ".join(self.value(schema | {"type": each}) for each in kind))
        if kind == "object" and schema.get("properties"):
            return self.object(schema["properties"], set(schema.get("required", ())))
        if kind == "array" and "items" in schema:
            item = self.value(schema["items"])
            many = f'{item} ("," {item})*'
            return self.rule(f'"[" {many} "]"' if schema.get("minItems") else f'"[" ({many})? "]"')
        if kind == "boolean":
            return self.rule('"true" | "false"')
        return SIMPLE.get(kind, "any")

    def object(self, properties: dict, required: set[str]) -> str:
        """Pairs in order; ``rest[first]`` is all that may follow, with or without a pair in front of it."""
        rest = {True: "", False: ""}
        for name, schema in reversed(properties.items()):
            pair = f'{self.literal(name)} ":" {self.value(schema)} {rest[False]}'
            skipped = {first: f" | {after}" for first, after in rest.items()} if name not in required else {}
            rest = {first: self.rule(f'{"" if first else chr(34) + "," + chr(34)} {pair}{skipped.get(first, "")}')
                    for first in (True, False)}  # fmt: skip
        return self.rule(f'"{{" {rest[True]} "}}"')

    def referred(self, path: str) -> str:
        """The rule of a reference into the schema itself."""
        if path not in self.named:
            found = self.schema
            for part in path.removeprefix("#").strip("/").split("/"):
                if part and part not in found:
                    raise UserError(f"json_schema: the reference {path!r} leads nowhere in the schema")
                found = found[part] if part else found
            self.named[path] = f"named{len(self.named)}"  # before its body: it may contain itself
            self.rules.append(f"{self.named[path]}: {self.value(found)}")
        return self.named[path]


def merged(schemas: list[dict]) -> dict:
    """One schema of several that hold together: properties and what is required are joined."""
    out: dict = {}
    for each in schemas:
        properties = out.get("properties", {}) | each.get("properties", {})
        required = [*out.get("required", ()), *each.get("required", ())]
        out |= each | ({"properties": properties, "required": required} if properties else {})
    return out
