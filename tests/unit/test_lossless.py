"""rANS, the causal network in whole numbers, and the plain models beside circuits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.lossless.causal_pixels import CausalPixelsCoder
from parsimony.methods.lossless.chow_liu import ChowLiu
from parsimony.methods.lossless.order_1 import Order1
from parsimony.models import rans
from parsimony.models.causal_pixels import CausalPixels, IntegerPixels

SIDE = 7


@st.composite
def coded(draw):
    """Symbols [S, n] and the weights [S, n, A] that they are coded with, some of them zero."""
    S, n, A = draw(st.integers(1, 4)), draw(st.integers(0, 40)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.integers(0, 1 << draw(st.integers(1, 34)), (S, n, A)) * rng.integers(0, 2, (S, n, A))
    weights[..., 0] += 1
    return rng.integers(0, A, (S, n)), weights


@settings(max_examples=60, deadline=None)
@given(coded())
def test_symbols_come_back_at_the_price_of_their_intervals(case):
    symbols, weights = case
    tables = rans.cumulative(weights)
    assert (np.diff(tables) > 0).all() and (tables[..., 0] == 0).all() and (tables[..., -1] == 1 << 24).all()
    low, high = (np.take_along_axis(tables, symbols[..., None] + n, 2)[..., 0] for n in (0, 1))
    data = rans.encode(low, high)
    streams = rans.Streams(data)
    found = [streams.take(tables[:, k]) for k in range(symbols.shape[1])]
    streams.finish("test")
    assert np.array_equal(np.array(found).reshape(symbols.T.shape), symbols.T)
    price = -np.log2((high - low) / 2.0**24).sum(1)
    bits = np.array([8 * len(each) for each in data])
    # The state and a byte not full, and what its low digits cost where symbols are rare; the card allows 64 bits.
    assert (bits >= price + 24 - 4).all() and (bits <= price + 64).all()


def test_what_is_no_stream_is_refused():
    for data in (b"", b"\x01", bytes(9), b"\xff" * 4 + bytes(5)):
        with pytest.raises(UserError, match="no stream"):
            rans.unpack(data)
    streams = rans.Streams([(1 << 25).to_bytes(4, "little")])
    with pytest.raises(UserError, match="test: a stream was not made with these tables"):
        streams.finish("test")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(0)
    folder, network = tmp_path_factory.mktemp("network"), CausalPixels(SIDE, 2, 24)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(3)
    save_tensors(network.integers(), folder / "pixels.safetensors")
    return network, CausalPixelsCoder().build(None, Inputs({"network": folder}))


def digits(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8) * rng.integers(0, 2, (count, SIDE, SIDE), np.uint8)


def test_the_network_codes_with_what_it_was_trained_to_say(network):
    trained, codec = network
    framed = codec._framed(torch.from_numpy(digits(5)))
    inputs = codec.network.inputs(framed, codec.row, codec.column).flatten(0, 1)
    tables = codec.network.tables(inputs)
    expected = trained(inputs).double().softmax(1).detach().numpy()
    np.testing.assert_allclose(np.diff(tables) / 2.0**24, expected, atol=2e-2 * expected.max())
    with torch.no_grad():
        double = IntegerPixels(trained.integers())
        double.weights, double.biases = [w.double() for w in double.weights], [b.double() for b in double.biases]
    assert np.array_equal(double.tables(inputs.double()), tables)  # float32 lost nothing


def test_a_pixel_depends_on_those_before_it_alone(network):
    _, codec = network
    x = torch.from_numpy(digits(1))
    changed = x.clone()
    changed[0, 3, 4:] += 1
    changed[0, 4:] += 1
    first, second = (codec.network.inputs(codec._framed(each), codec.row, codec.column)[0] for each in (x, changed))
    same = (first == second).all(1)
    assert same[: 3 * SIDE + 5].all() and not same[3 * SIDE + 5 :].all()


def test_streams_of_the_network_do_not_depend_on_batch_or_threads(network):
    _, codec = network
    xs, threads = list(digits(19)), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        streams = codec.encode_batch(xs)
        assert np.array_equal(codec.decode_batch(streams), xs)
        torch.set_num_threads(1)
        assert [codec.encode(x) for x in xs] == streams
        assert np.array_equal(codec.decode(streams[4]), xs[4])
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(UserError, match="causal_pixels: uint8"):
        codec.encode(np.zeros((3, 3), np.uint8))


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.integers(1, 200), st.tuples(st.integers(1, 9), st.integers(1, 9)),
                 st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
       .flatmap(lambda shape: arrays.arrays(np.uint8, shape)))  # fmt: skip
def test_order_1_gives_anything_back(x):
    codec = Order1()
    found = codec.decode(codec.encode(x))
    assert found.shape == x.shape and np.array_equal(found, x)


def test_order_1_learns():
    x = np.tile(np.arange(8, dtype=np.uint8), 1000)
    assert len(Order1().encode(x)) < 400


def test_a_tree_of_pairs_codes_what_it_counted_and_anything_else(tmp_path):
    x = np.random.default_rng(0).integers(0, 4, (300, 6)).astype(np.int64)
    x[:, 1:] = np.where(np.random.default_rng(1).random((300, 5)) < 0.9, x[:, :1], x[:, 1:])
    parent, variable = np.array([0, 0, 0, 1, 1, 2], np.int32), np.array([3, 1, 0, 5, 2, 4], np.int32)
    nodes = x[:, variable]
    above = nodes[:, parent]
    above[:, 0] = 0
    keys, counts = np.unique((np.arange(6) * 256 + above) * 256 + nodes, return_counts=True)
    held = {"keys": keys.astype(np.int32), "counts": counts.astype(np.uint16), "parent": parent, "variable": variable}
    save_file(held | {"shape": np.array([2, 3], np.int32)}, tmp_path / "pairs.safetensors")
    codec = ChowLiu().build(None, Inputs({"pairs": tmp_path}))
    images = [
        *x.astype(np.uint8).reshape(-1, 2, 3)[:20],
        *np.random.default_rng(2).integers(0, 256, (20, 2, 3), np.uint8),
    ]
    streams = codec.encode_batch(images)
    assert np.array_equal(codec.decode_batch(streams), images) and codec.encode(images[3]) == streams[3]
    counted, other = (8 * np.mean([len(s) for s in part]) - 28 for part in (streams[:20], streams[20:]))
    assert counted < 6 * 1.5 < 6 * 8 < other
