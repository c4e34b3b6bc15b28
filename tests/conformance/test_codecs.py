"""Every codec of configs/method, by discovery: what it took comes back elsewhere, and the rest it refuses."""

import contextlib
from functools import cache

import numpy as np
import pytest
from codecs_shared import ROOT, build_codec, samples, setup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from parsimony.elsewhere import Elsewhere
from parsimony.errors import UserError
from parsimony.models.container import KINDS
from parsimony.plan import make_plan

METHODS = {key: config for key, config in make_plan([], ROOT).methods.items() if "Codec" in config.implements}
POINTS = [(method, point) for method, config in METHODS.items() for point in config.points]
BATCHED = [pair for pair in POINTS if "BatchCodec" in METHODS[pair[0]].implements]
FIRSTS = [(method, next(iter(config.points))) for method, config in METHODS.items()]
MEMORY = 8 * 2**30
"""Address space of the decoding process; libraries reserve much that they never touch."""


@cache
def codec(method: str, point: str):
    return build_codec(METHODS[method], point)


@pytest.fixture(scope="module")
def elsewhere():
    """One process that decodes for all codecs whose assets are there."""
    codecs = {}
    for method, point in POINTS:
        with contextlib.suppress(pytest.skip.Exception):
            codecs[f"{method}-{point}"] = setup(METHODS[method], point)
    process = Elsewhere(codecs, limit=300, memory=MEMORY)
    yield process
    process.close()


def taken(system, xs: list[np.ndarray]) -> list[np.ndarray]:
    """Those that the codec does not refuse, which it must do with a sentence."""
    found = []
    for x in xs:
        try:
            system.encode(x)
            found.append(x)
        except UserError as refusal:
            assert "\n" not in str(refusal)
    return found


def same(config, x: np.ndarray, y: np.ndarray) -> None:
    assert y.dtype == np.uint8 and y.shape == x.shape
    assert not config.lossless or np.array_equal(x, y)


@pytest.mark.parametrize("pair", POINTS, ids="-".join)
def test_comes_back_in_another_process(elsewhere, pair):
    system, config = codec(*pair), METHODS[pair[0]]
    xs = taken(system, samples())
    assert xs and isinstance(system.model_bytes, int) and system.model_bytes >= 0
    kept = [x.copy() for x in xs]
    streams = [system.encode(x) for x in xs]
    for x, stream in zip(xs, streams, strict=True):
        assert isinstance(stream, bytes) and system.encode(x) == stream
        (decoded,), seconds = elsewhere.decode("-".join(pair), [stream])
        same(config, x, decoded)
        assert seconds >= 0 and np.array_equal(system.decode(stream), decoded)
    assert all(np.array_equal(x, y) for x, y in zip(xs, kept, strict=True))


@pytest.mark.parametrize("pair", FIRSTS, ids="-".join)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_size_comes_back_or_is_refused(pair, data):
    system, axes = codec(*pair), data.draw(st.sampled_from(sorted(KINDS.values())))
    shape = data.draw(st.tuples(*[st.integers(1, 40 if axes > 1 else 400)] * min(axes, 2)))
    x = data.draw(arrays(np.uint8, (*shape, 3) if axes == 3 else shape))
    for each in taken(system, [x]):
        same(METHODS[pair[0]], each, system.decode(system.encode(each)))


@pytest.mark.parametrize("pair", FIRSTS, ids="-".join)
def test_what_is_no_image_and_no_bytes_is_refused(pair):
    system = codec(*pair)
    strange = [(28, 28), np.float32], [(28, 28), np.int16], [(0,), np.uint8], [(0, 28), np.uint8], [(8, 8, 4), np.uint8]
    strange += [(2, 8, 8, 3), np.uint8], [(), np.uint8]
    for shape, dtype in strange:
        with pytest.raises(UserError):
            system.encode(np.zeros(shape, dtype))


@pytest.mark.parametrize("pair", BATCHED, ids="-".join)
def test_batches_of_any_size_have_the_same_streams(elsewhere, pair):
    system = codec(*pair)
    xs = taken(system, samples()) * 2
    alone = [system.encode(x) for x in xs]
    for size in (1, 3, len(xs)):
        parts = [xs[n : n + size] for n in range(0, len(xs), size)]
        assert [stream for part in parts for stream in system.encode_batch(part)] == alone
    shuffled = np.random.default_rng(0).permutation(len(xs))
    decoded, _ = elsewhere.decode("-".join(pair), [alone[n] for n in shuffled])
    for n, y in zip(shuffled, decoded, strict=True):
        assert np.array_equal(y, system.decode(alone[n]))
    assert system.encode_batch([]) == [] and system.decode_batch([]) == []


def corrupt(streams: list[bytes], rng: np.random.Generator) -> bytes:
    """A stream that is cut, has bits flipped, bytes replaced or another's end, or is no stream at all."""
    data = bytearray(streams[rng.integers(len(streams))])
    kind = rng.integers(6)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        return rng.bytes(int(rng.integers(0, 200)))
    if kind == 2:
        return bytes(data[: rng.integers(1, 40)]) + rng.bytes(int(rng.integers(0, 400)))
    if kind == 3:
        other = streams[rng.integers(len(streams))]
        return bytes(data[: rng.integers(len(data))]) + other[int(rng.integers(len(other))) :]
    reach = len(data) if kind == 4 else min(len(data), 40)  # headers are where sizes are
    for _ in range(rng.integers(1, 6)):
        data[rng.integers(reach)] ^= 1 << rng.integers(8)
    return bytes(data)


def survive(elsewhere, pair, count: int) -> None:
    """Corrupt streams are refused, or decode to something; crashes, hangs and other errors are `DecoderFailure`."""
    system, rng, name = codec(*pair), np.random.default_rng(0), "-".join(pair)
    streams = [system.encode(x) for x in taken(system, samples())]
    refused = 0
    for _ in range(count):
        try:
            elsewhere.decode(name, [corrupt(streams, rng)])
        except UserError as refusal:
            assert "\n" not in str(refusal)
            refused += 1
    assert refused > count / 4


@pytest.mark.parametrize("pair", FIRSTS, ids="-".join)
def test_corrupt_streams_are_refused(elsewhere, pair):
    survive(elsewhere, pair, 60)


@pytest.mark.slow
@pytest.mark.parametrize("pair", FIRSTS, ids="-".join)
def test_ten_thousand_corrupt_streams_are_refused(elsewhere, pair):
    survive(elsewhere, pair, -(-10_000 // len(FIRSTS)))
