"""A language model as the methods receive it: network, tokenizer and roles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.models.decoder import Decoder
from parsimony.models.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Language:
    """A loaded language model.

    Attributes
    ----------
    decoder : Decoder
    folder : Path
        Where the weights, the configuration and the tokenizer lie.
    stop : tuple of str
        Tokens that end a generated turn. The same id may also stand inside a prompt (SmolLM2 ends every turn with
        its end-of-sequence token), so only generated positions are ever searched for it.
    """

    decoder: Decoder
    folder: Path
    stop: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path, stop, dtype: str, devices="cpu") -> Language:
        """Load weights in ``dtype`` ("float32", "bfloat16" or "float16"); ``devices`` as of `Decoder`."""
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        return cls(Decoder.load(folder, DTYPES[dtype], devices), Path(folder), tuple(stop))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(map(self.tokenizer.id, self.stop))

    def chat(self, messages: list[dict]) -> Tensor:
        """Token ids ([T] int64) of a conversation up to where the assistant begins to speak."""
        return self.encode(self.tokenizer.chat(messages))

    def encode(self, text: str) -> Tensor:
        """Token ids ([T] int64) of a text as it stands, without special tokens."""
        return torch.tensor(self.tokenizer.encode(text), dtype=torch.int64)

    def next_logits(self, prompt: Tensor, answer: Tensor) -> Tensor:
        """Logits [V] behind a prompt ([T] int64) and the beginning of its continuation."""
        ids = torch.cat((prompt, answer))
        return self.decoder.prefill(ids[None], self.decoder.cache(len(ids)))[0, -1]

    def decode(self, ids: Tensor) -> str:
        """The text of generated ids, without the tokens that end a turn."""
        return self.tokenizer.decode(ids.tolist(), special=False)
