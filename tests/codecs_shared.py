"""What tests of codecs share: where assets of a codec lie, and samples of many kinds.  Needs no network library."""

from pathlib import Path

import numpy as np
import pytest

from parsimony.assets.sources import SHIPPED
from parsimony.instantiate import instantiate
from parsimony.interfaces import Inputs
from parsimony.models.samples import Samples

ROOT = Path(__file__).resolve().parents[1]


def codec_assets(config) -> dict[str, Path]:
    """Folders of a codec's assets by field: as shipped, or as fetched."""
    if config.assets and "samples" not in config.assets:
        pytest.skip(f"what this codec has learnt belongs to {', '.join(config.assets)}; a rehearsal runs it")
    folders = {}
    for field, key in config.assets.get("samples", {}).items():
        found = [each / key for each in (SHIPPED, ROOT / "resources") if (each / key).is_dir()]
        if not found:
            pytest.skip(f"asset {key!r} is neither shipped nor fetched; `parsimony asset {key}` makes it")
        folders[field] = found[0]
    return folders


def setup(config, point: str) -> dict:
    """What another process needs to build a codec at an operating point."""
    params = config.params | config.points[point] | config.hasty
    assets = {field: str(folder) for field, folder in codec_assets(config).items()}
    return {"target": config.target, "params": params, "assets": assets}


def build_codec(config, point: str):
    built = instantiate(config.target, config.params | config.points[point] | config.hasty)
    return built.build(Samples(), Inputs(codec_assets(config)))


class Bench:
    """A workbench of one codec that decodes here."""

    points, lossless = ("point",), False

    def __init__(self, codec):
        self.codec = codec

    def system(self, point, dtype):
        return self.codec

    def decode(self, point, streams):
        return [self.codec.decode(stream) for stream in streams], 0.0


def samples() -> list[np.ndarray]:
    """Images, bytes and clips of sizes that codecs are for, and that they are not for; smooth, flat and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    smooth = (128 + 60 * np.sin(x / 9) + 50 * np.cos(y / 7)).astype(np.uint8)
    colour = np.stack((smooth, smooth.T, smooth[::-1]), -1)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    images = [smooth[:28, :28], noise[:28, :28, 0], np.zeros((28, 28), np.uint8), noise[:1, :7, 0], smooth[:33, :]]
    images += [colour, noise, colour[:17, :40], noise[:1, :1], np.full((64, 64, 3), 255, np.uint8)]
    clips = [(9000 * np.sin(np.arange(n) / 9)).astype(np.int16) for n in (1, 700, 8000)] + [np.zeros(3000, np.int16)]
    words = [noise.reshape(-1)[:n] for n in (1, 100, 3000)] + [np.frombuffer(b"abc" * 500, np.uint8)]
    return images + words + clips
