"""N-gram tables of encyclopaedia text in a model's own tokens, for decoders that mix them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from parsimony.benchmarks.wiki_split import extracts
from parsimony.errors import UserError
from parsimony.methods.autoregressive.ngrams import NgramTables


def count(out: Path, inputs: dict[str, Path], model: str, text: str, longest: int, vocabulary: int) -> None:
    """Count the n-grams of every article that is neither for evaluation nor for development.

    Writes ``ngrams.safetensors`` (see `NgramTables.save`); takes a few seconds and nothing is random.

    Raises
    ------
    UserError
        When there are fewer than half a million tokens, or ids beyond the vocabulary.
    """
    tokenizer = Tokenizer.from_file(str(inputs[model] / "tokenizer.json"))
    texts = [extract for _, extract in extracts(inputs[text], "counting")]
    documents = [np.array(row.ids) for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    size, largest = sum(map(len, documents)), max(int(d.max()) for d in documents if len(d))
    if size < 500_000 or largest >= vocabulary:
        raise UserError(
            f"n-gram tables of {text}: {size} tokens with ids up to {largest}; at least 500,000 below {vocabulary} "
            "are needed: mend 'vocabulary' or the text"
        )
    NgramTables.count(documents, vocabulary, longest).save(out / "ngrams.safetensors")
