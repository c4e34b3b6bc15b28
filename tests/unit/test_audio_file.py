"""Audio codecs give back as many samples as they got, in place, and their bytes are theirs alone."""

import numpy as np
import pytest
from scipy.signal import correlate

from parsimony.errors import UserError
from parsimony.methods.audio.audio_file import HEAD, AudioFile, checksum, delay

RATE = 16_000
LOSSY = [("mp3", 16), ("opus", 6), ("opus", 16), ("aac", 16)]
EVERY = [("flac", 0), *LOSSY]


def clip(length: int, seed: int = 0) -> np.ndarray:
    """Something like a voice: harmonics of a pitch that moves, in syllables, and a little noise."""
    rng, t = np.random.default_rng(seed), np.arange(length) / RATE
    pitch = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 1.3 * t)) / RATE
    voice = sum(np.sin(n * pitch + rng.uniform(0, 6)) / n for n in range(1, 25))
    loud = 0.1 + np.clip(np.sin(2 * np.pi * 3 * t + rng.uniform(0, 6)), 0, None)
    return (3000 * voice * loud + rng.normal(0, 20, length)).round().clip(-32768, 32767).astype(np.int16)


@pytest.mark.parametrize(("kind", "kbps"), EVERY)
@pytest.mark.parametrize("length", [1, 37, 1024, 16_000, 41_111])
def test_lengths_stay(kind, kbps, length):
    codec, x = AudioFile(kind, kbps, RATE), clip(length)
    y = codec.decode(codec.encode(x))
    assert y.dtype == np.int16 and y.shape == x.shape


@pytest.mark.parametrize(("kind", "kbps"), LOSSY)
def test_samples_stay_in_their_place(kind, kbps):
    codec, x = AudioFile(kind, kbps, RATE), clip(3 * RATE, 1)
    y = codec.decode(codec.encode(x)).astype(float)
    assert np.argmax(correlate(y, x.astype(float))) == len(x) - 1
    assert ((y - x) ** 2).sum() < 0.5 * (x.astype(float) ** 2).sum()


def test_the_lowest_opus_is_late_and_told_so():
    data = AudioFile("opus", 8, RATE).encode(clip(3 * RATE))
    assert HEAD.unpack_from(data)[1] > 0


def test_flac_is_exact_and_a_rate_is_bits_of_the_file():
    codec = AudioFile("flac", 0, RATE)
    noise = np.random.default_rng(0).integers(-32768, 32768, 3000, np.int16)
    for x in (clip(RATE), np.full(5000, -32768, np.int16), noise):
        assert np.array_equal(codec.decode(codec.encode(x)), x)
    sizes = [len(AudioFile("mp3", kbps, RATE).encode(clip(5 * RATE))) for kbps in (8, 16, 32)]
    assert sizes == sorted(sizes) and 16_000 * 5 / 8 < sizes[1] < 1.2 * 16_000 * 5 / 8


@pytest.mark.parametrize(("kind", "kbps"), EVERY)
def test_a_clip_has_one_stream(kind, kbps):
    x = clip(RATE)
    assert AudioFile(kind, kbps, RATE).encode(x) == AudioFile(kind, kbps, RATE).encode(x)


def test_a_delay_is_found():
    x = clip(RATE)
    for late in (0, 1, 17):
        assert delay(x, np.concatenate((np.zeros(late), x))) == late


@pytest.mark.parametrize(("kind", "kbps"), EVERY)
def test_files_that_hold_something_else_are_refused(kind, kbps):
    """With a checksum that is right, too; other damage is what the checksum is for."""
    codec = AudioFile(kind, kbps, RATE)
    file = codec.encode(clip(30_000))[HEAD.size :]
    for length, data in ((10**9, file), (30_000, file[:300]), (0, file), (10, b"\0" * 900), (10, b"RIFF")):
        with pytest.raises(UserError, match="damaged or no stream"):
            codec.decode(HEAD.pack(length, 0, checksum(length, 0, data)) + data)


def test_what_is_no_clip_is_refused():
    for x in (np.zeros(0, np.int16), np.zeros((2, 3), np.int16), np.zeros(9, np.uint8)):
        with pytest.raises(UserError, match="int16"):
            AudioFile("mp3", 16, RATE).encode(x)
    with pytest.raises(UserError, match="no kind 'wma'"):
        AudioFile("wma", 16, RATE)
