"""Dream's checkpoints as the methods receive them: masked models grown from Qwen2 (Ye et al., 2025)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from parsimony.errors import UserError
from parsimony.models.masked import Masked
from parsimony.models.tokenizer import Tokenizer

CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Qwen2's expression: within what it matches pairs are merged."""


class Dream(Masked):
    """A masked model whose outputs are shifted and whose tokenizer is published in parts."""

    @cached_property
    def tokenizer(self) -> BytePairs:
        return BytePairs(self.folder)


class BytePairs(Tokenizer):
    """Qwen2's tokenizer from ``vocab.json``, ``merges.txt`` and the added tokens in ``tokenizer_config.json``.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    UserError
        Where a file is missing or unreadable, or an added token would not get the number that is written there.
    """

    def __init__(self, folder: Path):
        from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        self.folder = Path(folder)
        vocabulary, merges = self.folder / "vocab.json", self.folder / "merges.txt"
        try:
            self.backend = Backend(models.BPE.from_file(str(vocabulary), str(merges)))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{vocabulary} and merges.txt are no byte pairs to read: {error}") from None
        self.backend.normalizer = normalizers.NFC()
        self.backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(CUT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        self.backend.decoder = decoders.ByteLevel()
        added = {int(number): token for number, token in self._settings.get("added_tokens_decoder", {}).items()}
        for number, token in sorted(added.items()):
            self.backend.add_tokens([AddedToken(**token)])
            if (found := self.backend.token_to_id(token["content"])) != number:
                raise UserError(
                    f"{self.folder}: token {token['content']!r} gets the number {found}, and tokenizer_config.json "
                    f"says {number}; are vocab.json and tokenizer_config.json of one model?"
                )
