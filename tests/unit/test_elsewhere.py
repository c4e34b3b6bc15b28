"""The process that decodes: what it gives back, and what is said when it crashes, hangs or is asked for too much."""

import numpy as np
import pytest

from parsimony.elsewhere import DecoderFailure, Elsewhere
from parsimony.errors import UserError
from parsimony.methods.lossless.general import General
from parsimony.models.container import kind, pack, unpack

XZ = {"target": "parsimony.methods.lossless.general.General", "params": {"tool": "xz", "level": 1}, "assets": {}}


def process(**codecs) -> Elsewhere:
    return Elsewhere(codecs, limit=300)


def test_failures_are_told_apart_and_the_next_call_starts_anew():
    broken = XZ | {"params": {"tool": "xz", "levels": 1}}
    elsewhere, codec, x = process(xz=XZ, broken=broken), General("xz", 1), np.arange(200, dtype=np.uint8)
    streams = [codec.encode(x[:n]) for n in (200, 7)]
    decoded, seconds = elsewhere.decode("xz", streams)
    assert [y.tolist() for y in decoded] == [x.tolist(), x[:7].tolist()] and seconds > 0
    with pytest.raises(UserError, match="did you mean 'level'"):
        elsewhere.decode("broken", streams)
    with pytest.raises(UserError, match="xz stream of .* is damaged"):
        elsewhere.decode("xz", [streams[0][:-9]])
    with pytest.raises(DecoderFailure, match="'none': decoding raised KeyError"):
        elsewhere.decode("none", streams)
    elsewhere.process.kill()
    with pytest.raises(DecoderFailure, match="the decoding process ended with status -9 on 2 streams"):
        elsewhere.decode("xz", streams)
    assert np.array_equal(elsewhere.decode("xz", streams)[0][0], x)
    elsewhere.limit = 0.0
    with pytest.raises(DecoderFailure, match="took more than 0 s"):
        elsewhere.decode("xz", [codec.encode(np.zeros(10**6, np.uint8))])
    elsewhere.close()


@pytest.mark.parametrize("shape", [(1,), (127,), (128,), (28, 28), (1, 20000), (300, 1, 3)])
@pytest.mark.parametrize("checksum", [False, True])
def test_headers_are_as_short_as_documented_and_tell_the_shape(shape, checksum):
    header = pack(np.zeros(shape, np.uint8), b"", checksum)
    assert unpack(header + b"", checksum) == (shape, b"")
    assert len(header) == 1 + sum(1 + (n > 127) + (n > 2**14 - 1) for n in shape[:2]) + 4 * checksum


def test_a_checksum_finds_every_flipped_bit_and_sizes_are_bounded():
    data = pack(np.zeros((3, 5), np.uint8), b"payload", checksum=True)
    for bit in range(8 * len(data)):
        wrong = (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")
        with pytest.raises(UserError):
            unpack(wrong, checksum=True)
    for header in (b"", b"\2\1", b"\2\0\1", b"\4\1\1", b"\1\x80\x80\x80\x80\1", b"\3\xff\xff\x7f\xff\xff\x7f"):
        with pytest.raises(UserError, match="is damaged"):
            unpack(header)
    with pytest.raises(UserError, match="of shape \\[8193, 4096\\]"):
        kind(np.zeros((2**13 + 1, 2**12), np.uint8), "it", "grey")
