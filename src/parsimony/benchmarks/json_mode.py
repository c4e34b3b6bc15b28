"""Data extraction into JSON under a schema, by masked diffusion models (arXiv 2508.10111)."""

from __future__ import annotations

import json

from parsimony.benchmarks.code_blocks import CodeBlocks, Request


class JsonMode(CodeBlocks):
    """Rows of JSON-mode-eval-extended: does the answer follow the schema, is it the object that is wanted?"""

    ASSET, FILE, NAME = "json_mode_eval", "test.parquet", "json"

    def request(self, row: dict) -> Request:
        told = f"Answer in JSON that follows this schema:\n<schema>\n{row['schema']}\n</schema>\n\n{row['input']}"
        return Request(told, (json.loads(row["schema"]), json.loads(row["output"])))

    def grade(self, asked: Request, text: str) -> dict[str, float]:
        from jsonschema import ValidationError, validate

        schema, wanted = asked.wanted
        try:
            found = json.loads(asked.block(text))
            validate(found, schema)
        except (ValueError, ValidationError):
            return {"score": 0.0, "parses": 0.0}
        return {"score": float(found == wanted), "parses": 1.0}
