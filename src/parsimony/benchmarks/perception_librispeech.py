"""Read English of LibriSpeech to Whisper medium and tiny: how many words does each get wrong (arXiv 2401.07957)?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parsimony.benchmarks.hub_media import recording, rows
from parsimony.benchmarks.perception_speech import PerceptionSpeech
from parsimony.interfaces import Item
from parsimony.models.hub_whisper import HubWhisper
from parsimony.models.whisper import RATE, WINDOW, Heard, edits, words

LISTENERS = {"": "whisper_medium", "_small": "whisper_tiny"}
"""Suffix of metrics -> asset."""
CLIPS = "librispeech_test_clean"


class PerceptionLibriSpeech(PerceptionSpeech):
    """The first utterances of test-clean that fit into the window of 30 s."""

    needed = (*LISTENERS.values(), CLIPS)

    def load(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.listeners = {suffix: HubWhisper(paths[asset]) for suffix, asset in LISTENERS.items()}
        self.texts, found = {}, []
        for n, row in enumerate(rows(paths[CLIPS] / "test.parquet", ["audio", "text"])):
            if len(found) == self.count:
                break
            clip = recording(row["audio"], RATE)
            if len(clip) <= WINDOW:
                key = f"row_{n:05d}"
                self.samples[key], self.texts[key] = clip, row["text"]
                found.append(Item(key, "speech", (row["text"],), f"{CLIPS} row {n}"))
        return found

    def perceive(self, item: Item, clip: np.ndarray) -> dict[str, Heard]:
        return {suffix: listener.hear(clip) for suffix, listener in self.listeners.items()}

    def likeness(self, x: np.ndarray, y: np.ndarray, clean, seen) -> dict[str, float]:
        return super().likeness(x, y, clean[""], seen[""])

    def score(self, item: Item, clean, seen) -> dict[str, float]:
        wanted, numbers = words(self.texts[item.id]), {}
        for suffix in LISTENERS:
            wrong, before = (edits(words(heard[suffix].text), wanted) for heard in (seen, clean))
            numbers |= {f"word_edits{suffix}": wrong, f"word_edits_gained{suffix}": wrong - before}
        return numbers | {"reference_words": len(wanted)}
