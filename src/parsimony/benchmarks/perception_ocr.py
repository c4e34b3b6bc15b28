"""Printed pages to a reader of lines: how many characters does it get wrong of a text that is known?"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from parsimony.benchmarks.perception import NETWORK, Eyes, Perception, image_likeness
from parsimony.interfaces import Item
from parsimony.models.ocr import Ocr
from parsimony.models.whisper import edits

WIDTH, HEIGHT, MARGIN = 416, 128, 12
FONTS = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")
SIZES = (12, 14, 16, 18)
LEADING = 1.4


class PerceptionOcr(Perception):
    """Passages of an encyclopaedia, printed dark on light in one of three fonts and four sizes.

    The reader knows Chinese and English and leaves out spaces, so only characters that are no space are compared.
    """

    needed = (NETWORK, "ppocr_v4", "wiki_summaries")
    category = "pages"

    def load(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.eyes, self.ocr, self.texts, items = Eyes(paths[NETWORK]), Ocr(paths["ppocr_v4"]), {}, []
        rng = np.random.default_rng(seed)
        for n, text in enumerate(passages(paths["wiki_summaries"] / "summaries.json", self.count, rng)):
            key = f"page_{n:03d}"
            self.samples[key], self.texts[key] = page(text, rng)
            items.append(Item(key, "pages", (self.texts[key],), "wiki_summaries"))
        return items

    def perceive(self, item: Item, image: np.ndarray):
        """Features of both networks of the page, and edits between what is read and what is there."""
        wanted = squeezed(self.texts[item.id])
        return *self.eyes.features(image), edits(squeezed(self.ocr.read(image)), wanted)

    def likeness(self, x: np.ndarray, y: np.ndarray, clean, seen) -> dict[str, float]:
        return image_likeness(x, y, clean[:2], seen[:2])

    def score(self, item: Item, clean, seen) -> dict[str, float]:
        characters = len(squeezed(self.texts[item.id]))
        return {"character_edits": seen[2], "character_edits_gained": seen[2] - clean[2], "characters": characters}


def squeezed(text: str) -> str:
    """A text without its spaces."""
    return "".join(text.split())


def passages(file: Path, count: int, rng: np.random.Generator) -> list[str]:
    """So many beginnings of articles that are long enough and of letters that every font has (ASCII)."""
    texts = [row["extract"] for row in json.loads(file.read_text()).values()]
    fitting = [text for text in texts if len(text) >= 400 and text.isascii() and not re.search(r"[{}\\<>]", text)]
    return [fitting[n] for n in rng.permutation(len(fitting))[:count]]


def page(text: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A page [128, 416, 3] uint8 that shows the beginning of a text, and how much of the text that is."""
    import matplotlib

    size = int(rng.choice(SIZES))
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", str(rng.choice(FONTS)))
    font = ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)
    paper, ink = (tuple(int(v) for v in rng.integers(low, high, 3)) for low, high in ((215, 256), (0, 70)))
    image = Image.new("RGB", (WIDTH, HEIGHT), paper)
    drawing, lines, words = ImageDraw.Draw(image), [], text.split()
    for n in range(int((HEIGHT - 2 * MARGIN) // (LEADING * size))):
        line = ""
        while words and font.getlength(f"{line} {words[0]}") <= WIDTH - 2 * MARGIN:
            line = f"{line} {words.pop(0)}".strip()
        drawing.text((MARGIN, MARGIN + round(n * LEADING * size)), line, fill=ink, font=font)
        lines.append(line)
    return np.asarray(image), " ".join(lines)
