"""Real sentences with synthetic counterparts: corrupted ones to correct, and a made-up language to translate into.

Both are pure functions of the text and a seed.  What models learn from and what benchmarks ask comes from different
articles.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

HELD_OUT = 10
"""One article in so many is held out for benchmarks and quality floors."""

ARTICLES = ("a", "an", "the")
DROPPABLE = {
    "a", "an", "the", "of", "in", "on", "at", "to", "for", "from", "by", "with", "and", "or", "is", "are", "was",
    "were", "be", "been", "as", "that", "it", "its",
}  # fmt: skip
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def sentences(path: Path) -> tuple[list[str], list[str]]:
    """English sentences of 5 to 24 words of encyclopaedia lead sections: (to learn from, held out)."""
    articles = json.loads((path / "summaries.json").read_text(encoding="utf-8")).values()
    parts: tuple[list[str], list[str]] = [], []
    for n, article in enumerate(articles):
        for text in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(article["extract"].split())):
            if 5 <= len(text.split()) <= 24 and text.isascii() and text[0].isupper() and text[-1] == ".":
                parts[n % HELD_OUT == 0].append(text)
    held = set(parts[1])
    return [text for text in parts[0] if text not in held], list(dict.fromkeys(parts[1]))


def corrupt(text: str, rate: float, rng: np.random.Generator) -> str:
    """``text`` with synthetic errors: each word is picked with probability ``rate`` and damaged in one of five ways.

    A function word is dropped, a word is doubled, two words change places, an article is replaced by another, or a
    plural ending is added or removed; a way that does not fit the word leaves it as it is.
    """
    words, out, n = text.split(), [], 0
    while n < len(words):
        word = words[n]
        n += 1
        kind = rng.integers(5) if rng.random() < rate else -1
        if kind == 0 and word.lower() in DROPPABLE:
            continue
        if kind == 1:
            out.append(word)
        elif kind == 2 and n < len(words):
            out.append(words[n])
            n += 1
        elif kind == 3 and word.lower() in ARTICLES:
            word = str(rng.choice([other for other in ARTICLES if other != word.lower()]))
        elif kind == 4 and word.isalpha() and len(word) > 3:
            word = word[:-1] if word.endswith("s") else word + "s"
        out.append(word)
    return " ".join(out)


class Lexicon:
    """A made-up target language: words of a lexicon are replaced, and some change places with the word behind them.

    Parameters
    ----------
    texts : list of str
        Sentences whose most frequent words form the lexicon; other words stay as they are, as names do.
    size : int
    seed : int
        Draws the words of the target language (1 to 3 syllables) and which of them move (one in four).
    """

    def __init__(self, texts: list[str], size: int, seed: int):
        counts = Counter(word for text in texts for word in re.findall(r"\b[a-z]+\b", text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))[:size]
        rng, made = np.random.default_rng(seed), dict.fromkeys(ranked, "")
        for word in ranked:
            while not made[word] or list(made.values()).count(made[word]) > 1:
                made[word] = "".join(rng.choice(SYLLABLES, int(rng.integers(1, 4))))
        self.words = made
        self.moving = {word for word in ranked if rng.random() < 0.25}

    def translate(self, text: str) -> str:
        """The sentence in the target language."""
        words, out, n = text.split(), [], 0
        while n < len(words):
            if words[n].lower() in self.moving and n + 1 < len(words) and words[n + 1][-1].isalnum():
                out += [self._word(words[n + 1]), self._word(words[n])]
                n += 2
            else:
                out.append(self._word(words[n]))
                n += 1
        return " ".join(out)

    def _word(self, word: str) -> str:
        core = word.rstrip(".,;:")
        made = self.words.get(core.lower())
        if made is None:
            return word
        return (made.capitalize() if core[0].isupper() else made) + word[len(core) :]


def word_edits(ours: str, wanted: str) -> int:
    """Fewest insertions, deletions and replacements of words that turn one text into the other (Levenshtein)."""
    a, b = ours.split(), wanted.split()
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]
