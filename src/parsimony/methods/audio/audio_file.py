"""Classic audio codecs (MP3, Opus, AAC, FLAC) through FFmpeg's libraries: what a file of their kind makes of a clip.

A stream is the number of samples (4 bytes), what is left of the codec's delay (1 byte), a checksum (4 bytes, since
these decoders play whatever they can of damaged files) and the file with its container; all of it counts.  A decoder
takes delays out again, so that sample n of a decoded clip is sample n of the clip.  MP3 and Ogg files say what to drop
at their beginning; an ADTS file of AAC does not, but FFmpeg's own encoder always puts one frame of silence first.
Opus decodes at 48 kHz whatever it was given and is resampled back; at its lowest rates it codes at 12 kHz inside and
comes out 0.1 ms late, which costs 2 to 4 dB of signal to noise.  So the encoder decodes what it made, looks where that
correlates best with the clip, and tells the decoder.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import av
import numpy as np
from scipy.signal import correlate, correlation_lags, resample_poly

from parsimony.errors import UserError
from parsimony.models.container import LARGEST, WRONG

HEAD = struct.Struct("<IbI")
LATEST = 64
"""Samples by which a file may be late after all that is known of it."""
CHUNK = 1024
SHORTEST = 4 * CHUNK
"""Shorter clips are coded with silence behind them: FFmpeg does not open files of AAC that hold a frame or two."""
SLACK = 4 * 1152
"""Samples by which a file may be longer or shorter than what it says: a few frames of the coarsest codec."""


@dataclass(frozen=True)
class Format:
    """What FFmpeg calls the container and the encoder, the rate of its decoder and the samples that it puts first.

    Attributes
    ----------
    container, encoder : str
    layout : str
        Of the samples that the encoder takes: "s16" or "flt", packed or planar.
    decoded_rate : int
        In Hz; 0: that of the clip.
    priming : int
        Samples to drop that the file itself does not speak of.
    """

    container: str
    encoder: str
    layout: str
    decoded_rate: int = 0
    priming: int = 0


FORMATS = {
    "mp3": Format("mp3", "libmp3lame", "s16p"),
    "opus": Format("ogg", "libopus", "s16", decoded_rate=48_000),
    "aac": Format("adts", "aac", "fltp", priming=1024),
    "flac": Format("flac", "flac", "s16"),
}


class AudioFile:
    """A codec of mono clips, int16 [N].

    Parameters
    ----------
    kind : {"mp3", "opus", "aac", "flac"}
    kbps : int
        Bits a second, in thousands, that the encoder aims at; 0 for a lossless one.
    rate : int
        Samples a second of the clips.
    """

    model_bytes = 0

    def __init__(self, kind: str, kbps: int, rate: int):
        if kind not in FORMATS:
            raise UserError(f"audio_file: no kind {kind!r}; valid: {', '.join(FORMATS)}")
        self.kind, self.kbps, self.rate, self.format = kind, kbps, rate, FORMATS[kind]

    def build(self, model, inputs):
        return self

    def encode(self, x: np.ndarray) -> bytes:
        if x.dtype != np.int16 or x.ndim != 1 or not 0 < len(x) <= LARGEST:
            raise UserError(
                f"{self.kind} takes clips int16 [N] of 1 to {LARGEST} samples, not {x.dtype} {list(x.shape)}"
            )
        file, padded = io.BytesIO(), np.pad(x, (0, max(0, SHORTEST - len(x))))
        # Otherwise Ogg files begin with a random number.
        with av.open(file, "w", format=self.format.container, options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream(self.format.encoder, rate=self.rate)
            stream.codec_context.layout, stream.codec_context.format = "mono", self.format.layout
            if self.kbps:
                stream.codec_context.bit_rate = 1000 * self.kbps
            stream.codec_context.thread_count = 1
            for at in range(0, len(padded), CHUNK):
                part = padded[None, at : at + CHUNK]
                if self.format.layout == "fltp":
                    part = part.astype(np.float32) / 32768
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), self.format.layout, "mono")
                frame.sample_rate, frame.pts = self.rate, at
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        late = delay(x, self._samples(file.getvalue(), len(padded))) if self.kbps else 0
        data = file.getvalue()
        return HEAD.pack(len(x), late, checksum(len(x), late, data)) + data

    def decode(self, data: bytes) -> np.ndarray:
        if len(data) <= HEAD.size:
            raise UserError(f"{self.kind} stream of {len(data)} bytes {WRONG}")
        length, late, expected = HEAD.unpack_from(data)
        file = data[HEAD.size :]
        if checksum(length, late, file) != expected:
            raise UserError(f"{self.kind} stream of {len(data)} bytes {WRONG}")
        try:
            found = self._samples(file, length)
        except (av.error.FFmpegError, ValueError) as error:
            raise UserError(f"{self.kind} stream of {len(data)} bytes {WRONG} ({error})") from None
        if not 0 < length <= len(found) + SLACK or not 0 <= late < len(found):
            raise UserError(f"{self.kind} stream of {len(found)} samples {WRONG} (it says {length}, {late} late)")
        found = found[late : late + length]
        return np.pad(found, (0, length - len(found))).round().clip(-32768, 32767).astype(np.int16)

    def _samples(self, file: bytes, length: int) -> np.ndarray:
        """Samples of a file at the rate of the clip, float64 in units of an int16; not many more than ``length``."""
        rate = self.format.decoded_rate or self.rate
        parts, count, most = [], 0, (max(length, SHORTEST) + SLACK) * rate // self.rate
        with av.open(io.BytesIO(file), format=self.format.container) as container:
            for frame in container.decode(audio=0):
                if frame.sample_rate != rate or frame.layout.nb_channels != 1:
                    raise ValueError(f"{frame.layout.nb_channels} channels at {frame.sample_rate} Hz")
                part = frame.to_ndarray()[0]
                parts.append(part.astype(np.float64) * (32768 if part.dtype.kind == "f" else 1))
                if (count := count + len(part)) > most:
                    break
        if not parts:
            raise ValueError("it holds no samples")
        found = np.concatenate(parts)[self.format.priming :]
        return found if rate == self.rate else resample_poly(found, self.rate, rate)


def checksum(length: int, late: int, file: bytes) -> int:
    """CRC-32 of a stream's header and file."""
    return zlib.crc32(HEAD.pack(length, late, 0) + file)


def delay(x: np.ndarray, y: np.ndarray) -> int:
    """Samples by which ``y`` comes after ``x``: where the two correlate best, between 0 and `LATEST`."""
    lags = correlation_lags(len(y), len(x))
    within = (lags >= 0) & (lags <= LATEST)
    return int(lags[within][correlate(y, x.astype(np.float64))[within].argmax()])
