"""Positional Integrity Encoding (He et al., ICLR 2025, arXiv 2407.03157): edit a cached context by rotating its keys.

    cached tokens 0 .. n-1, keys k_p = R(p) W h_p; tokens i .. j-1 are replaced by m others: delta = m - (j - i)
    prefix 0 .. i-1     stays
    new tokens          one pass behind the prefix, at positions i .. i+m-1
    suffix p >= j       k'_(p+delta) = R(delta) k_p, values as they are

No code was released; this follows the paper's derivation.  Several edits go left to right, and what stands behind the
e-th is rotated once by the shift of all edits up to it, from the exact keys, so that roundings do not add up.  The
logits behind the context come from running its last token again (one row), unless an edit has just made it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.held import Context, Held, Prefilled, prefill
from parsimony.models.clock import now
from parsimony.models.decoder import Decoder
from parsimony.models.kv_cache import KVCache
from parsimony.models.language import Language

UPDATES = ("rotate", "conflict", "stale", "prefix", "recompute")


@dataclass(frozen=True)
class Edit:
    """Tokens ``begin`` .. ``end`` - 1 of the old context are replaced by others.

    Attributes
    ----------
    begin, end : int
        i and j, counted in the old context; equal for an insertion.
    ids : Tensor [m] int64
        The new tokens; none for a deletion.
    """

    begin: int
    end: int
    ids: Tensor

    @property
    def shift(self) -> int:
        """delta = m - (j - i)."""
        return len(self.ids) - (self.end - self.begin)


def edits_between(old: Tensor, new: Tensor) -> list[Edit]:
    """Edits, left to right, that make ``new`` of ``old`` ([n] int64 each).

    They come from the difference of token ids, for an edit of the text may change the tokens beside it.
    """
    codes = difflib.SequenceMatcher(None, old.tolist(), new.tolist(), autojunk=False).get_opcodes()
    return [Edit(i, j, new[a:b]) for tag, i, j, a, b in codes if tag != "equal"]


def applied(old: Tensor, edits: list[Edit]) -> Tensor:
    """The edited context's tokens.

    Raises
    ------
    UserError
        For edits that overlap, are not in order or lie outside the context, and when nothing is left of it.
    """
    parts, at = [], 0
    for edit in edits:
        if not at <= edit.begin <= edit.end <= len(old):
            raise UserError(
                f"edit of tokens {edit.begin} to {edit.end} does not fit behind token {at} of a context of {len(old)}; "
                "give edits from left to right, in tokens of the old context"
            )
        parts += [old[at : edit.begin], edit.ids]
        at = edit.end
    new = torch.cat([*parts, old[at:]])
    if not len(new):
        raise UserError("an edited context needs at least one token; keep one, or prefill the new text instead")
    return new


class PIE:
    """Brings a cached context up to date.

    Parameters
    ----------
    update : {"rotate", "conflict", "stale", "prefix", "recompute"}
        "rotate" is PIE; "conflict" ("conflict fast encoding") leaves the suffix's keys as they are; "stale" ignores
        the edits; "prefix" runs everything from the first edit on, and "recompute" the whole context, both exactly.
    """

    def __init__(self, update: str = "rotate"):
        if update not in UPDATES:
            raise UserError(f"pie: update {update!r} is not one of {', '.join(UPDATES)}; mend its params")
        self.update = update

    def build(self, model: Language, inputs: Inputs) -> Editor:
        """The system."""
        return Editor(model, self)

    def edited(self, decoder: Decoder, prefilled: Prefilled, edits: list[Edit]) -> tuple[Prefilled, int]:
        """The edited context as `Prefilled` (without queries), and how many rows (tokens) the network ran for it."""
        new = applied(prefilled.ids, edits)
        if self.update == "stale" or not edits:
            return prefilled, 0
        if self.update == "recompute":
            return prefill(decoder, new), len(new)
        if self.update == "prefix":
            edits = [Edit(edits[0].begin, len(prefilled), new[edits[0].begin :])]
        cache, rows, at, shift, logits = decoder.cache(len(new)), 0, 0, 0, None
        for edit in edits:
            self.put(decoder, cache, prefilled, at, edit.begin, shift)
            if len(edit.ids):
                logits = decoder.prefill(edit.ids[None], cache)[0, -1]
            rows, at, shift = rows + len(edit.ids), edit.end, shift + edit.shift
        self.put(decoder, cache, prefilled, at, len(prefilled), shift)
        if at < len(prefilled) or not len(edits[-1].ids):  # the last token is an old one: run it again
            cache.truncate(len(new) - 1)
            logits, rows = decoder.prefill(new[None, -1:], cache)[0, -1], rows + 1
        keys, values = cache.data[:, :, 0, :, : len(new)]
        return Prefilled(new, keys, values, prefilled.queries[:, :, :, :0], logits), rows

    def put(self, decoder: Decoder, cache: KVCache, old: Prefilled, begin: int, end: int, shift: int) -> None:
        """Put the old tokens ``begin`` .. ``end`` - 1 behind those of the cache, their keys rotated by ``shift``."""
        first, count = len(cache), end - begin
        keys, values = old.keys[:, :, begin:end], old.values[:, :, begin:end]  # [L, H, count, d]
        if shift and self.update == "rotate":
            keys = decoder.rope(keys, torch.full((1, 1), shift, device=keys.device))
        cache.note_positions(torch.arange(first, first + count, device=keys.device)[None])
        for layer in range(len(keys)):
            cache.write(layer, keys[layer, None], values[layer, None])
        cache.in_order = first + count


class Editor:
    """The system: a context that follows its text."""

    def __init__(self, model: Language, method: PIE):
        self.decoder, self.method = model.decoder, method

    def edit(self, prefilled: Prefilled, edits: list[Edit]) -> tuple[Context, float, int]:
        """The context after the edits, the seconds that it took, and the rows (tokens) run for it."""
        began = now(self.decoder.device)
        with torch.inference_mode():
            new, rows = self.method.edited(self.decoder, prefilled, edits)
            layers = [Held(*layer) for layer in zip(new.keys, new.values, strict=True)]
        seconds = now(self.decoder.device) - began
        return Context(self.decoder, layers, len(new), new.logits), seconds, rows
