"""What codecs are bound to: samples alone, so that one benchmark takes classic, neural and circuit codecs alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Samples:
    """The neutral model: no weights.  What a codec was trained on or with comes to it through its own assets."""

    @classmethod
    def load(cls, folder: None, dtype: str) -> Samples:
        """There is nothing to load: ``folder`` is None, and ``dtype`` that of the samples."""
        return cls()
