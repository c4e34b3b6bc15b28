"""Texts as strings of bytes: a character below 256 for every byte of UTF-8.

A token may hold a part of a character only; as bytes the tokens of a text can be joined, cut, and read one by one.
"""

from __future__ import annotations

from functools import cache

from parsimony.models.tokenizer import Tokenizer


def as_bytes(text: str) -> str:
    """A text as the string of its bytes."""
    return text.encode().decode("latin-1")


def as_text(written: str) -> str:
    """The text of a string of bytes; bytes that are no text become U+FFFD."""
    return written.encode("latin-1").decode(errors="replace")


def token_as_bytes(tokenizer: Tokenizer, number: int) -> str:
    """What a token stands for; where the vocabulary is not of bytes, what it decodes to alone."""
    backend = tokenizer.backend
    if type(backend.decoder).__name__ != "ByteLevel" or number in backend.get_added_tokens_decoder():
        return as_bytes(tokenizer.decode([number]))
    return "".join(map(_letters().get, backend.id_to_token(number) or ""))


@cache
def _letters() -> dict[str, str]:
    """Letters by which byte-level vocabularies write bytes: printable ones stand for themselves."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [n for n in range(256) if n not in printable]
    return {chr(n): chr(n) for n in printable} | {chr(256 + n): chr(byte) for n, byte in enumerate(others)}
