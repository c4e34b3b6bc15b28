"""Functions in C++ that have to pass tests, by masked diffusion models (HumanEval-X, arXiv 2303.17568)."""

from __future__ import annotations

from uuid import uuid4

from parsimony import sandbox
from parsimony.benchmarks.code_blocks import CodeBlocks, Request

COMPILED = ["sh", "-c", "g++ -std=c++17 -o program program.cpp && cat program"]
SECONDS = 30
"""Of compiling, and of running; the published time is 40 for both."""


class HumanEvalCpp(CodeBlocks):
    """Rows of HumanEval-X in C++: is the answer, behind the declaration, a sentence of C++, does it pass the tests?

    Compiler and program run in the sandbox.  A program has passed when the last line of ``main``, behind all tests,
    says what was made up after the answer; its exit status is its own to choose.
    """

    ASSET, FILE, NAME = "humaneval_x", "cpp.jsonl", "cpp"

    def request(self, row: dict) -> Request:
        question = row["prompt"].partition("/*")[2].partition("*/")[0].strip()
        told = f"Solve this by a function in C++, in a block of code, without tests and without main:\n\n{question}"
        return Request(told, row["test"], row["declaration"])

    def grade(self, asked: Request, text: str) -> dict[str, float]:
        code = asked.block(text)
        return {"score": float(passes(code, asked.wanted)), "parses": float(self.is_sentence(code))}


def passes(code: str, tests: str) -> bool:
    """Whether a program of ``code`` and ``tests`` (whose last function is ``main``) compiles and ends its tests."""
    word = uuid4().hex
    body, brace, rest = tests.rpartition("}")
    program = f'{code}\n\n#include <cstdio>\n{body}std::fputs("{word}", stdout);\n{brace}{rest}'
    compiled = sandbox.run(COMPILED, {"program.cpp": program.encode()}, SECONDS)
    if compiled.status != 0:
        return False
    ran = sandbox.run(["./program"], {"program": compiled.output}, SECONDS)
    return ran.status == 0 and ran.output.endswith(word.encode())
