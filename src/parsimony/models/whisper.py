"""Whisper (Radford et al., 2022, arXiv 2212.04356) in CTranslate2's format: greedy transcripts and encoder states."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RATE = 16_000
WINDOW = 30 * RATE
"""Samples that the encoder sees at once; a clip is padded to it and may not be longer."""
DIGITS = dict(
    zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True)
)
CONTRACTIONS = {
    "can't": "can not",
    "cannot": "can not",
    "n't": " not",
    "'m": " am",
    "'re": " are",
    "'ve": " have",
    "'ll": " will",
}


@dataclass(frozen=True)
class Heard:
    """Transcript, log-mel spectrogram [80, 2 frames] and the encoder's states [frames, d] of a clip."""

    text: str
    mel: np.ndarray
    states: np.ndarray


class Whisper:
    """An English Whisper on the CPU, in 8-bit integers, one window at a time.

    Parameters
    ----------
    folder : Path
        With ``model.bin``, ``config.json``, ``vocabulary.txt`` and ``tokenizer.json``.
    """

    def __init__(self, folder: Path):
        import ctranslate2
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor

        self.view = ctranslate2.StorageView
        self.model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="int8", intra_threads=1)
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.spectrogram = WhisperFeatureExtractor(feature_size=80)
        self.prompt = [self.tokenizer.token_to_id(t) for t in ("<|startoftranscript|>", "<|notimestamps|>")]

    def hear(self, clip: np.ndarray) -> Heard:
        """What a clip (int16 [N] at 16 kHz) says; the network's input and states where the clip is."""
        if clip.dtype != np.int16 or not 0 < len(clip) <= WINDOW:
            raise ValueError(f"a clip is int16 [N] with 0 < N <= {WINDOW}, not {clip.dtype} {list(clip.shape)}")
        x = clip.astype(np.float32) / 32768
        mel = self.spectrogram(x, sampling_rate=RATE, return_tensors="np").input_features
        states = self.model.encode(self.view.from_array(np.ascontiguousarray(mel)))
        tokens = self.model.generate(states, [self.prompt], beam_size=1)[0].sequences_ids[0]
        frames = -(-len(clip) // 320)  # hop 160 at stride 2
        states = np.asarray(states, dtype=np.float32)[0, :frames]
        return Heard(self.tokenizer.decode(tokens).strip(), mel[0, :, : 2 * frames], states)


def words(text: str) -> list[str]:
    """The words of a transcript as they are compared.

    Lower case; "I'm", "you're", "I've", "I'll" and "don't" in two words, other apostrophes dropped; digits spelled one
    by one; letters alone.  What is in brackets is not spoken.
    """
    text = re.sub(r"\(.*?\)", " ", text.lower().replace("\u2019", "'"))
    for short, long in CONTRACTIONS.items():
        text = re.sub(rf"{short}\b", long, text)
    text = re.sub(r"[0-9]", lambda digit: f" {DIGITS[digit[0]]} ", text)
    return re.sub(r"[^a-z]+", " ", text.replace("'", "")).split()


def edits(found, wanted) -> int:
    """Fewest insertions, deletions and substitutions that make one sequence the other (Levenshtein)."""
    row = np.arange(len(wanted) + 1)
    for n, each in enumerate(found, 1):
        differs = np.array([each != other for other in wanted], dtype=np.int64)
        new = np.concatenate(([n], np.minimum(row[:-1] + differs, row[1:] + 1)))
        steps = np.arange(len(new))
        row = np.minimum.accumulate(new - steps) + steps  # insertions chain along the row
    return int(row[-1])
