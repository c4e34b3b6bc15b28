"""Sentence vectors by a BERT encoder with mean pooling (the sentence-transformers recipe), from local safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


class SentenceEncoder:
    """Loads ``config.json``, ``model.safetensors`` and the tokenizer files of a folder, in float32.

    Parameters
    ----------
    folder : Path
    longest : int
        Tokens after which a text is cut (256 in the configuration of all-MiniLM-L6-v2).
    """

    def __init__(self, folder: Path, longest: int = 256):
        from transformers import AutoModel, AutoTokenizer

        self.longest = longest
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.network = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> Tensor:
        """Vectors of length 1 ([n, D] float32): the mean over the tokens of the last hidden states."""
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        mask = batch["attention_mask"][:, :, None]
        hidden = self.network(**batch).last_hidden_state
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
