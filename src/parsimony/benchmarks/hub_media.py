"""Rows, pictures and recordings in the files of public data sets."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def rows(file: Path, columns: list[str] | None = None) -> Iterator[dict]:
    """Rows of a Parquet file, of which no more is read than is asked for (None: all columns), or of lines of JSON."""
    if file.suffix != ".parquet":
        with open(file, encoding="utf-8") as lines:
            yield from map(json.loads, lines)
        return
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as table:
        for batch in table.iter_batches(64, columns=columns):
            yield from batch.to_pylist()


def picture(cell: dict, mode: str = "RGB") -> np.ndarray:
    """The image [H, W, 3] (or [H, W] in mode "L") uint8 of a cell of `datasets`' kind ``Image``."""
    from PIL import Image

    with Image.open(io.BytesIO(cell["bytes"])) as image:
        return np.asarray(image.convert(mode))


def recording(cell: dict, rate: int) -> np.ndarray:
    """The samples [N] int16 of a cell of `datasets`' kind ``Audio``.

    Raises
    ------
    ValueError
        For another rate, or more channels than one.
    """
    import av

    with av.open(io.BytesIO(cell["bytes"])) as container:
        stream = container.streams.audio[0]
        if (stream.rate, stream.channels) != (rate, 1):
            raise ValueError(f"{cell['path']} is not mono at {rate} Hz")
        to_int16 = av.AudioResampler(format="s16", layout="mono", rate=rate)
        frames = [each for frame in container.decode(stream) for each in to_int16.resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in frames])
