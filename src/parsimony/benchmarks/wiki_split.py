"""Encyclopaedia articles in three parts: what one is tuned or counted on is never what is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

PARTS = ("evaluation", "development", "counting")
EVERY = 20
"""One article in so many is for evaluation, one for development; the rest is for counting and training."""


def extracts(path: Path, part: str) -> list[tuple[int, str]]:
    """Row number and lead section of the articles of one part of asset ``wiki_summaries``.

    The parts take turns row by row.  Articles on neighbouring subjects may still share phrases.
    """
    articles = json.loads((path / "summaries.json").read_text(encoding="utf-8")).values()
    return [(n, article["extract"]) for n, article in enumerate(articles) if PARTS[min(n % EVERY, 2)] == part]
