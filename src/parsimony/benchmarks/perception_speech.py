"""Spoken prompts and sentences to Whisper tiny.en: how many words does it get wrong of what is known to be said?"""

from __future__ import annotations

import gzip
import io
import re
import wave
from pathlib import Path

import numpy as np

from parsimony.benchmarks.perception import Perception
from parsimony.interfaces import Item
from parsimony.models.whisper import RATE, Heard, Whisper, edits, words

KINDS = {"prompts": ("asterisk_prompts", "asterisk_transcripts"), "book": ("librivox_clips",)}


class PerceptionSpeech(Perception):
    """Telephone prompts of one speaker, which were coded once before (G.722), and sentences of an audio book."""

    needed = ("whisper_tiny_en",)
    category = "speech"

    def load(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.whisper, self.texts, found = Whisper(paths["whisper_tiny_en"]), {}, []
        for kind, (asset, *more) in KINDS.items():
            if {asset, *more} <= set(paths):
                clips = book(paths[asset]) if kind == "book" else prompts(paths[asset], paths[more[0]])
                for n, (key, (clip, text)) in enumerate(clips.items()):
                    self.samples[key], self.texts[key] = clip, text
                    found.append((n, Item(key, kind, (text,), asset)))
        return [item for _, item in sorted(found, key=lambda pair: pair[0])]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        lacking = {kind: [missing[key] for key in assets if key in missing] for kind, assets in KINDS.items()}
        return super().skipped(missing) | {kind: reasons[0] for kind, reasons in lacking.items() if reasons}

    def perceive(self, item: Item, clip: np.ndarray) -> Heard:
        return self.whisper.hear(clip)

    def likeness(self, x: np.ndarray, y: np.ndarray, clean: Heard, seen: Heard) -> dict[str, float]:
        """Energies of clip and error; distances of log-mel spectrograms, and of Whisper's own states of them."""
        first, second = x.astype(np.float64), y.astype(np.float64)
        lengths = np.linalg.norm(clean.states, axis=1) * np.linalg.norm(seen.states, axis=1)
        cosine = (clean.states * seen.states).sum(1) / lengths
        return {
            "signal_energy": (first**2).sum(),
            "error_energy": max(((first - second) ** 2).sum(), 1.0),
            "mel_distance": np.abs(clean.mel - seen.mel).mean(),
            "state_distance": max(1 - cosine.mean(), 0.0),
        }

    def score(self, item: Item, clean: Heard, seen: Heard) -> dict[str, float]:
        wanted = words(self.texts[item.id])
        wrong, before = (edits(words(each.text), wanted) for each in (seen, clean))
        return {"word_edits": wrong, "word_edits_gained": wrong - before, "reference_words": len(wanted)}


def prompts(folder: Path, transcripts: Path) -> dict[str, tuple[np.ndarray, str]]:
    """Clips [N] int16 and what they say, by name, in the order of the list of transcripts."""
    clips = {}
    with gzip.open(transcripts / "core-sounds-en.txt.gz", "rt", errors="replace") as lines:
        for line in lines:
            name, _, text = line.partition(":")
            file = folder / f"{name.strip()}.g722"
            if file.exists():
                clips[name.strip().replace("-", "_")] = g722(file), text.strip()
    return clips


def book(folder: Path) -> dict[str, tuple[np.ndarray, str]]:
    """Clips [N] int16 and what they say, by name."""
    clips = {}
    for text, name in re.findall(r"<s>(.*)</s> \((.*)\)", (folder / "transcription").read_text()):
        with wave.open(str(folder / f"{name}.wav")) as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                raise ValueError(f"{file} is not mono, 16 kHz, 16 bit")
            clips[f"book_{name[-4:]}"] = np.frombuffer(file.readframes(file.getnframes()), "<i2"), text.strip()
    return clips


def g722(file: Path) -> np.ndarray:
    """Samples [N] int16 of a bare G.722 stream."""
    import av

    with av.open(io.BytesIO(file.read_bytes()), format="g722") as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
