"""COIN: small networks as streams, quantised and entropy coded, that any process decodes to the same image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.methods.image.coin import Coin, CoinCodec, size_of


def codec(**changed) -> CoinCodec:
    return Coin(**({"hidden": 4, "layers": 2, "bits": 5, "updates": 60, "step": 5e-3} | changed)).build(None, None)


def picture(H: int, W: int) -> np.ndarray:
    y, x = np.indices((H, W)) / 16
    return np.stack([127 + 90 * np.sin(y + k * x) for k in range(3)], -1).astype(np.uint8)


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    return -10 * np.log10(np.square((x.astype(float) - y) / 255).mean())


def test_sizes_of_steps_grow_by_at_most_an_eighth():
    sizes = np.array([size_of(byte) for byte in range(256)])
    assert sizes[0] == 2.0**-29 and ((sizes[1:] / sizes[:-1] > 1) & (sizes[1:] / sizes[:-1] <= 1.125)).all()
    assert sizes[-1] == 7.5


@given(st.integers(2, 8), st.floats(0.1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_every_set_of_weights_comes_back(bits, spread, seed):
    c = codec(bits=bits)
    count = sum(outputs * (inputs + 1) for inputs, outputs in c.sizes)
    symbols = np.rint(np.random.default_rng(seed).normal(0, spread, count)).clip(-c.most, c.most).astype(np.int64)
    data = c.coded(symbols)
    assert (c.read(data) == symbols).all()
    assert len(data) <= 1 + -(-count * bits // 8)


def test_quantisation_is_within_half_a_step():
    c, layer = codec(bits=6), np.random.default_rng(0).normal(0, 0.3, 50)
    byte, integers = c.quantised(layer)
    assert np.abs(integers).max() <= 31 and np.abs(integers * size_of(byte) - layer).max() <= size_of(byte) / 2
    assert size_of(byte) <= np.abs(layer).max() / 31.5 * 1.125 * 1.001


def test_more_weights_and_more_bits_are_better():
    image = picture(24, 32)
    coarse, fine = codec(bits=4, updates=400), codec(hidden=10, bits=8, updates=400)
    data = [c.encode(image) for c in (coarse, fine)]
    assert len(data[0]) < len(data[1])
    found = [psnr(image, c.decode(d)) for c, d in zip((coarse, fine), data, strict=True)]
    assert found[0] < found[1] and found[1] > 25
    assert (codec(hidden=10, bits=8, updates=400).decode(data[1]) == fine.decode(data[1])).all()


@pytest.mark.parametrize("shape", [(16, 16, 3), (1, 1, 3), (9, 40)])
def test_shapes_come_back_and_the_seed_decides(shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = codec().encode(x)
    assert codec().encode(x) == data
    assert codec().decode(data).shape == shape and codec().model_bytes == 0


@given(st.binary(max_size=60))
@settings(max_examples=80, deadline=None)
def test_foreign_bytes_are_refused_or_decode_to_an_image(data):
    try:
        decoded = codec().decode(b"\3\20\20" + data)
    except UserError:
        return
    assert decoded.shape == (16, 16, 3) and decoded.dtype == np.uint8


def test_what_is_no_image_or_too_large_is_refused():
    for x in (np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8), np.zeros(9, np.uint8), np.zeros((2000, 2000), np.uint8)):
        with pytest.raises(UserError, match="COIN takes"):
            codec().encode(x)
    for data in (b"", b"\3", b"\3\20\20", b"\3\xff\xff\x7f\x7f" + bytes(60), b"\1\20" + bytes(60)):
        with pytest.raises(UserError, match="no stream of this codec"):
            codec().decode(data)
