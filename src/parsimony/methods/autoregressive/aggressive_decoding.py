"""Input-guided aggressive decoding (IAD): the draft of an encoder-decoder's output is the rest of its source.

Ge, Xia, Sun, Chen, Wei: Lossless Acceleration for Seq2seq Generation with Aggressive Decoding, 2022, arXiv 2205.10350.
"""

from __future__ import annotations

from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.autoregressive.prompt_lookup import NgramDrafter
from parsimony.methods.autoregressive.verify import Draft, VerifyLoop
from parsimony.models.seq2seq import Seq2Seq

LONGEST = 3
"""N-grams of the source that are looked up have 1 to 3 tokens (the authors' code)."""


class AggressiveDecoding:
    """Copies the source until the model disagrees, and again from where the output meets it at one place only.

    Parameters
    ----------
    draft : {"source", "lookup"}
        "source" is the published method.  "lookup" is prompt lookup with the source as the text in front (n-grams up
        to 3, 10 tokens, leftmost match): the baseline that drafts a fixed length.
    resync : bool
        Whether copying goes on after the first disagreement.
    """

    def __init__(self, draft: str = "source", resync: bool = True):
        if draft not in ("source", "lookup"):
            raise UserError(f"aggressive_decoding: draft must be 'source' or 'lookup', not {draft!r}")
        self.draft, self.resync = draft, resync

    def build(self, model: Seq2Seq, inputs: Inputs) -> VerifyLoop:
        """The shared loop with a drafter that copies."""
        if self.draft == "lookup":
            return VerifyLoop(model, NgramDrafter(10, LONGEST, model.stop_ids))
        return VerifyLoop(model, SourceDrafter(self.resync))


class SourceDrafter:
    """Drafts ``x[p:]``: the source behind the pointer p, or nothing while there is none."""

    reads_prompt = False

    def __init__(self, resync: bool = True):
        self.resync = resync

    def start(self, prompt: Tensor, token: int, logits: Tensor | None) -> None:
        self.x, self.y, self.p = prompt, [], 0
        self.ends = unique_ends(prompt.tolist())

    def propose(self, room: int) -> Draft:
        rest = self.x[len(self.x) :] if self.p is None else self.x[self.p :]
        return Draft.line(rest[: max(room, 0)])

    def observe(self, rows: Tensor, logits: Tensor, path: Tensor, gained: Tensor) -> None:
        self.y += gained.tolist()
        self.p = position(self.y, self.ends) if self.resync else None


def unique_ends(x: list[int]) -> dict[tuple[int, ...], int | None]:
    """N-gram of the source (1 to 3 tokens) -> index of the token behind it; None if it occurs more than once."""
    ends: dict[tuple[int, ...], int | None] = {}
    for m in range(1, LONGEST + 1):
        for end in range(m, len(x) + 1):
            gram = tuple(x[end - m : end])
            ends[gram] = None if gram in ends else end
    return ends


def position(y: list[int], ends: dict[tuple[int, ...], int | None]) -> int | None:
    """Where the output's tail meets the source, if at one place only: the shortest tail that decides."""
    for m in range(1, min(LONGEST, len(y)) + 1):
        gram = tuple(y[-m:])
        if gram not in ends:
            return None
        if ends[gram] is not None:
            return ends[gram]
    return None
