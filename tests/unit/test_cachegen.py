"""CacheGen: the entropy coder, the containers, what another process decodes of them, and the streaming controller."""

import hashlib
import itertools
import math
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.methods.kv_cache import cachegen, entropy_coder
from parsimony.methods.kv_cache.cachegen import CacheGen, decode_elsewhere
from parsimony.methods.kv_cache.cachegen_codec import levels_of
from parsimony.methods.kv_cache.cachegen_container import HEAD, Head, decode
from parsimony.methods.kv_cache.full import Full
from parsimony.methods.kv_cache.h2o import H2O
from parsimony.methods.kv_cache.held import prefill
from parsimony.methods.kv_cache.quantise import Codes
from parsimony.methods.kv_cache.streaming import deliver, trace

ALL = {
    "level_2": {}, "level_1": {"level": 1}, "level_3": {"level": 3}, "level_70b": {"level": "70b"},
    "layer": {"coding": "layer"}, "global": {"coding": "global"}, "paper": {"variant": "paper"},
    "paper_global_3": {"variant": "paper", "coding": "global", "level": 3}, "int8": {"level": "int8"},
    "int4": {"level": "int4"}, "raw": {"variant": "raw"}, "late": {"late": True}, "fixed": {"coding": "fixed"},
    "lzma": {"coding": "lzma"}, "paper_fixed": {"variant": "paper", "coding": "fixed"},
}  # fmt: skip


def cache(L=5, H=2, T=43, d=4, seed=0):
    """Keys and values [L, H, T, d] whose channels and layers differ in offset and spread."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, L, H, T, d)) * rng.uniform(0.1, 3, (2, L, H, 1, d)) + rng.normal(size=(2, L, H, 1, d))
    return x.astype(np.float32)


def error(method, x) -> float:
    return float(np.square(np.stack(decode(method.encode(*x))) - x).mean())


def symbols_of(method, x):
    """Symbols [2, L, C, n] around 0."""
    return method.scheme.quantise(x)[1]


# The entropy coder.


@given(K=st.integers(1, 5), rows=st.integers(1, 3), n=st.integers(0, 60), A=st.integers(1, 60), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_streams_decode_whatever_the_tables_had_counted(K, rows, n, A, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 1000, (K, A)) * (rng.random((K, A)) < 0.5)  # many symbols are never counted
    symbols = rng.integers(0, A, (K * rows, n))
    tables = entropy_coder.cumulative(counts)
    decoded = entropy_coder.decode(entropy_coder.encode(symbols, tables), tables, rows * n)
    assert np.array_equal(decoded.reshape(K * rows, n), symbols)
    assert A > 1 or entropy_coder.encode(symbols, tables) == b""


@given(counts=st.lists(st.one_of(st.just(0), st.integers(0, 2**32 - 1)), min_size=1, max_size=300))
@settings(max_examples=80, deadline=None)
def test_tables_are_integers_and_strictly_increasing(counts):
    A, total = len(counts), sum(counts)
    table = entropy_coder.cumulative(np.array(counts))
    assert table.dtype == np.int64 and table[0] == 0 and table[-1] == 2**16 and (np.diff(table) > 0).all()
    expected = [(2**16 - A) * sum(counts[:i]) // max(total, 1) + i for i in range(A)]
    assert table[:-1].tolist() == expected
    packed = entropy_coder.pack(np.array(counts))
    assert entropy_coder.unpack(packed, (A,)).tolist() == counts


@given(A=st.integers(2, 40), n=st.integers(1, 400), sharp=st.floats(0.05, 5), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_streams_are_as_short_as_their_tables_allow(A, n, sharp, seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(A, sharp))
    symbols, other = rng.choice(A, (3, n), p=p), rng.choice(A, 50, p=p)
    tables = entropy_coder.cumulative(np.bincount(other, minlength=A)[None].repeat(3, 0))
    chance = np.diff(tables)[np.arange(3)[:, None], symbols] / 2**16
    ideal = -np.log2(chance).sum()
    bits = 8 * len(entropy_coder.encode(symbols, tables))
    assert ideal - 32 <= bits <= ideal * 1.001 + 16 + 32  # two bytes and a word to end with


def test_a_few_lines_of_integers_decode_a_stream():
    """So the coder's model is exactly the documented one; and the bytes are the same for ever."""
    counts, symbols = np.arange(18).reshape(2, 9) * 7 % 50, np.arange(140).reshape(2, 70) ** 2 // 3 % 9
    tables = entropy_coder.cumulative(counts)
    stream = entropy_coder.encode(symbols, tables)
    words = iter([*struct.unpack(f"<{len(stream) // 4}I", stream), *[0] * 3])
    low, span, point, decoded = 0, 2**64 - 1, next(words) << 32 | next(words), []
    for k, _ in itertools.product(range(2), range(70)):
        wide = [int(entry) * (2**24 - 9) // 2**16 + i for i, entry in enumerate(tables[k])]
        scale = span >> 24
        s = max(i for i in range(9) if wide[i] <= (point - low) % 2**64 // scale)
        low, span = (low + scale * wide[s]) % 2**64, scale * (wide[s + 1] - wide[s])
        if span < 2**32:
            low, span, point = (low << 32) % 2**64, span << 32, (point << 32) % 2**64 | next(words)
        decoded.append(s)
    assert decoded == symbols.ravel().tolist()
    assert hashlib.sha256(stream).hexdigest().startswith("eebfa479be89de1e")


def test_the_entropy_coder_refuses_what_it_cannot_code():
    tables = entropy_coder.cumulative(np.array([[5, 1, 2]]))
    stream = entropy_coder.encode(np.arange(300).reshape(1, -1) % 3, tables)
    for symbols in ([[3]], [[-1]]):
        with pytest.raises(UserError, match="are not all of 0 to 2"):
            entropy_coder.encode(np.array(symbols), tables)
    for broken in (stream[:-1], stream + bytes(range(8)), stream[:2]):
        with pytest.raises(UserError, match="does not fit"):
            entropy_coder.decode(broken, tables, 300)
    with pytest.raises(UserError, match="does not fit"):
        entropy_coder.decode(b"1234", entropy_coder.cumulative(np.array([[7]])), 3)
    for counts in (np.zeros((1, 0), int), np.array([[-1, 2]]), np.array([[2**47, 1]]), np.zeros((1, 2**16), int)):
        with pytest.raises(UserError, match="make no table"):
            entropy_coder.cumulative(counts)


# Quantisers, each written once more from the paper or the official code.


@pytest.mark.parametrize(
    "level, keys, values",
    [
        (1, [16] * 20 + [12] * 12, [16] * 2 + [12] * 30),
        (2, [32] * 10 + [16] * 22, [32] * 2 + [16] * 30),
        (3, [32] * 32, [32] * 32),
        ("70b", [32] * 40 + [16] * 40, [32] * 20 + [16] * 60),
    ],
)
def test_a_level_is_the_official_table_and_decodes_to_the_quantised_cache(level, keys, values):
    L = len(keys)
    x = cache(L, 2, 11, 3)
    decoded = decode(CacheGen(level).encode(*x))
    for kind, bins in enumerate((keys, values)):
        for layer in range(L):
            M = bins[layer] // 2 - 1
            for t in range(11):
                token = x[kind, layer, :, t]
                m = np.float32(np.float16(np.abs(token).max()))
                expected = np.round(token * (M / m)) * (m / M)
                np.testing.assert_array_equal(decoded[kind][layer, :, t], expected.astype(np.float16))
                assert np.abs(decoded[kind][layer, :, t] - token).max() <= m / (2 * M) * 1.001 + m * 2**-11


@pytest.mark.parametrize("L, early, first", [(30, 9, 2), (24, 8, 2), (8, 3, 1), (2, 1, 1), (1, 1, 1)])
def test_level_tables_follow_the_depth(L, early, first):
    keys, values = levels_of(2, L)
    assert keys.tolist() == [15] * early + [7] * (L - early) and values.tolist() == [15] * first + [7] * (L - first)


@pytest.mark.parametrize("level, factor", [(1, 2.0), (2, 1.0), (3, 0.5)])
def test_the_papers_variant_codes_differences_from_anchors(level, factor):
    x = cache(7, 2, 43, 4)
    decoded = np.stack(decode(CacheGen(level, "paper").encode(*x))).astype(np.float32)
    for kind, layer in itertools.product(range(2), range(7)):
        y, found = x[kind, layer].swapaxes(0, 1).reshape(43, 8), decoded[kind, layer].swapaxes(0, 1).reshape(43, 8)
        anchors, differences = {}, {}
        for t in range(43):
            if t % 10 == 0:
                m = np.float32(np.float16(np.abs(y[t]).max()))
                anchors[t] = np.round(y[t] * 127 / m) * m / 127
                np.testing.assert_allclose(found[t], anchors[t], rtol=1e-3)
                assert np.abs(found[t] - y[t]).max() <= m / 254 * 1.001 + m * 2**-11
            else:
                differences[t] = y[t] - anchors[t - t % 10]
        deviation = np.sqrt(np.square(list(differences.values())).mean())
        width = factor * (0.5, 1.0, 1.5)[3 * layer // 7] * deviation
        for t, difference in differences.items():
            steps = (found[t] - anchors[t - t % 10]) / width
            assert np.abs(steps - np.round(steps)).max() < 0.05
            assert np.abs(found[t] - anchors[t - t % 10] - difference).max() <= width / 2 + 0.01


def test_plain_quantisation_is_by_the_token():
    x = cache(3, 2, 9, 8)
    m = np.abs(x).max((2, 4), keepdims=True).astype(np.float16).astype(np.float32)
    expected = np.round(x * (127 / m)) * (m / 127)
    np.testing.assert_array_equal(np.stack(decode(CacheGen("int8").encode(*x))), expected.astype(np.float16))
    codes = Codes.of(torch.from_numpy(x), 4, 4, 8)
    found = np.stack(decode(CacheGen("int4").encode(*x)))
    np.testing.assert_array_equal(found, codes.restore().half().numpy())
    assert len(CacheGen("int8").encode(*x)) == HEAD.size + x.size + 2 * 2 * 3 * 9
    assert len(CacheGen("int4").encode(*x)) == HEAD.size + sum(t.numel() * t.element_size() for t in codes.tensors())


def test_more_bins_are_more_bytes_and_less_error():
    x = cache(12, 2, 200, 8)
    for variant in ("released", "paper"):
        methods = [CacheGen(level, variant) for level in (1, 2, 3)]
        sizes, errors = [len(m.encode(*x)) for m in methods], [error(m, x) for m in methods]
        assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True) and len({*sizes, *errors}) == 6
    sizes = [len(CacheGen(level).encode(*x)) for level in (1, 3, "int4", "int8")]
    assert sizes == sorted(sizes) and sizes[-1] < x.size * 2


def entropy(rows) -> float:
    """Bits of symbols when each row has its own empirical distribution."""
    bits = 0.0
    for row in rows:
        p = np.unique(row, return_counts=True)[1] / len(row)
        bits -= len(row) * (p * np.log2(p)).sum()
    return bits


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_a_table_for_each_channel_says_more_than_one_for_a_layer_or_for_all(variant):
    x = cache(6, 2, 400, 8, seed=3)
    symbols = symbols_of(CacheGen(2, variant), x)
    ideal = {
        "channel": entropy(symbols.reshape(-1, symbols.shape[-1])),
        "layer": entropy(symbols.reshape(12, -1)),
        "global": entropy(symbols.reshape(2, -1)),
    }
    assert ideal["channel"] < ideal["layer"] < ideal["global"]
    for tables, bits in ideal.items():
        data = CacheGen(2, variant, tables).encode(*x)
        head = Head(*HEAD.unpack_from(data))
        T, G, C = 400, 40, 16
        arrays = 12 + 2 * 12 * T if variant == "released" else 4 * 12 + 2 * 12 * G + 12 * G * C
        streams = head.size - arrays - 4 * 12 - head.counts
        assert bits / 8 <= streams <= bits / 8 * 1.01 + 12 * 6
        assert len(data) == HEAD.size + head.size
        counted = {"channel": 12 * C, "layer": 12, "global": 2}[tables] * head.A
        half = int(np.abs(symbols).max())
        assert 2 * half + 1 == head.A and head.counts < 4 * counted + 20
        assert np.array_equal(decode(data), decode(CacheGen(2, variant).encode(*x)))


def test_the_raw_variant_has_the_papers_widths_and_no_anchors():
    x = cache(6, 2, 43, 4)
    arrays, symbols = CacheGen(2, "raw").scheme.quantise(x)
    other, _ = CacheGen(2, "paper").scheme.quantise(x)
    assert list(arrays) == ["width"] and np.array_equal(arrays["width"], other["width"])
    found = np.stack(decode(CacheGen(2, "raw").encode(*x)))
    width = arrays["width"][:, :, None, None, None]
    assert (np.abs(found - x) <= width / 2 + 0.01).all()
    assert symbols.shape == (2, 6, 8, 43)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_late_precision_is_early_precision_turned_round(variant):
    x = cache(9, 2, 60, 4)
    early, late = (CacheGen(2, variant, late=late) for late in (False, True))
    if variant == "released":
        assert np.array_equal(levels_of(2, 9, True), levels_of(2, 9)[:, ::-1])
    fixed = [len(CacheGen(2, variant, "fixed", late).encode(*x)) for late in (False, True)]
    assert variant == "paper" or fixed[0] == fixed[1]
    assert np.array_equal(decode(late.encode(*x[:, ::-1])), np.stack(decode(early.encode(*x)))[:, ::-1])


def test_without_tables_symbols_take_whole_bits_and_decode_to_the_same():
    x = cache(6, 2, 200, 8)
    expected = decode(CacheGen(2).encode(*x))
    sizes = {coding: len(CacheGen(2, coding=coding).encode(*x)) for coding in ("channel", "fixed", "lzma")}
    bits = np.where(levels_of(2, 6) == 15, 5, 4).sum() * 16 * 200
    assert sizes["fixed"] == HEAD.size + 12 + 2 * 12 * 200 + 12 + bits // 8
    assert sizes["channel"] < min(sizes["fixed"], sizes["lzma"])
    for coding in ("fixed", "lzma"):
        assert np.array_equal(decode(CacheGen(2, coding=coding).encode(*x)), expected)


# Containers.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 10, 3), (3, 2, 43, 4)])
def test_containers_say_all_and_come_in_any_order(name, shape):
    x = cache(*shape)
    method, short = CacheGen(**ALL[name]), CacheGen(**ALL[name], chunk=20)
    keys, values = decode(method.encode(*x))
    assert keys.shape == values.shape == shape and keys.dtype == values.dtype == np.float16
    assert method.encode(*x) == CacheGen(**ALL[name]).encode(*x)
    chunks = short.chunks(*x)
    assert len(chunks) == -(-shape[2] // 20)
    expected = [np.stack(decode(method.encode(*x[:, :, :, t : t + 20]))) for t in range(0, shape[2], 20)]
    for order in itertools.permutations(chunks):
        assert np.array_equal(np.stack(decode(b"".join(order))), np.concatenate(expected, 3))
    assert np.array_equal(decode(b"".join(chunks + chunks[:1])), decode(b"".join(chunks)))


def test_a_mixture_of_levels_decodes_and_a_missing_chunk_is_noticed():
    x = cache(T=60)
    at = {name: CacheGen(**ALL[name], chunk=20).chunks(*x) for name in ("level_1", "level_3", "int4", "paper")}
    mixed = np.stack(decode(at["level_1"][2] + at["int4"][0] + at["paper"][1]))
    for chunk, name in enumerate(("int4", "paper", "level_1")):
        part = slice(20 * chunk, 20 * chunk + 20)
        assert np.array_equal(mixed[:, :, :, part], np.stack(decode(b"".join(at[name])))[:, :, :, part])
    for parts in (at["int4"][:1] + at["int4"][2:], at["int4"][1:], at["int4"][:2], []):
        with pytest.raises(UserError, match="not all of one cache"):
            decode(b"".join(parts))
    with pytest.raises(UserError, match="not all of one cache"):
        decode(at["int4"][0] + b"".join(CacheGen("int4", chunk=20).chunks(*cache(L=4, T=60))[1:]))


def test_constant_zero_and_extreme_caches():
    for name in ALL:
        method = CacheGen(**ALL[name])
        zero = np.zeros((2, 2, 1, 12, 4), np.float32)
        with np.errstate(divide="raise", invalid="raise"):
            assert not np.stack(decode(method.encode(*zero))).any()
        for value in (65504.0, -65504.0, 1e-7, 0.25):
            found = np.stack(decode(method.encode(*(zero + np.float32(value)))))
            np.testing.assert_allclose(found.astype(np.float32), value, rtol=0.01, atol=1e-7)
        for bad in (np.nan, np.inf, 1e6):
            with pytest.raises(UserError, match="half precision"):
                method.encode(*(zero + np.float32(bad)))
        with pytest.raises(UserError, match="empty"):
            method.encode(*zero[:, :, :, :0])


def broken(data: bytes) -> str:
    """The sentence that decoding fails with, or nothing if it gives finite numbers."""
    try:
        keys, values = decode(data)
    except UserError as caught:
        message = str(caught)
        assert message.startswith(("cachegen: ", "entropy coder: ")) and "\n" not in message and "; " in message
        return message
    assert np.isfinite(keys).all() and np.isfinite(values).all()
    return ""


@pytest.mark.parametrize("name", ["level_2", "global", "paper", "int8", "int4", "raw", "fixed", "lzma"])
def test_broken_containers_are_refused_in_a_sentence(name):
    rng = np.random.default_rng(1)
    data = CacheGen(**ALL[name], chunk=7).encode(*cache(2, 1, 11, 3))
    assert not broken(data)
    for length in range(len(data)):
        assert broken(data[:length])
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        assert broken(bytes(changed))
    for _ in range(100):
        assert broken(rng.bytes(int(rng.integers(1, 300))))
        assert broken(data[:44] + rng.bytes(100)) and broken(data + rng.bytes(3))


def forged(head: Head, body: bytes) -> bytes:
    """A container with a checksum that is right."""
    head = head._replace(size=len(body), check=0)
    return HEAD.pack(*head._replace(check=zlib.crc32(body, zlib.crc32(HEAD.pack(*head))))) + body


@pytest.mark.parametrize("name", ["level_2", "layer", "global", "paper", "int8", "int4", "raw", "fixed", "lzma"])
def test_forged_containers_with_good_checksums_do_not_crash(name):
    rng = np.random.default_rng(2)
    data = CacheGen(**ALL[name]).encode(*cache(2, 1, 11, 3))
    refused = 0
    for trial in range(400):
        changed = bytearray(data)
        for at in rng.integers(5 if trial % 2 else HEAD.size, len(data), rng.integers(1, 4)):
            changed[at] = int(rng.integers(256))
        body = bytes(changed[HEAD.size :])
        if rng.random() < 0.2:
            body = body[: int(rng.integers(len(body)))]
        refused += bool(broken(forged(Head(*HEAD.unpack_from(changed)), body)))
    assert refused > 50
    head, body = Head(*HEAD.unpack_from(data)), data[HEAD.size :]
    assert not broken(forged(head, body))
    assert "shape" in broken(forged(head._replace(T=2**31, H=2**15, d=2**15), body))
    assert any(part in broken(forged(head, body + b"1234")) for part in ("bytes ", "compressed symbols"))
    for field in ("scheme", "coding", "T", "L", "H", "d", "A", "counts"):
        broken(forged(head._replace(**{field: 0}), body))
        broken(forged(head._replace(**{field: 9}), body))


# Tables of other contexts.


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("tables", ["channel", "layer", "global"])
def test_profiled_tables_are_not_sent(tmp_path, variant, tables):
    x, others = cache(seed=0, T=90), [tuple(cache(seed=n, T=80)) for n in (0, 1, 2)]
    sent = CacheGen(2, variant, tables)
    counts = sent.profiled(others)
    symbols = np.concatenate([symbols_of(sent, np.stack(other)) for other in others], 3)
    assert counts.sum() == symbols.size and counts.shape[3] == {"released": 31, "paper": 255}[variant]
    half, where = counts.shape[3] // 2, {"channel": symbols[1, 3, 5], "layer": symbols[1, 3], "global": symbols[1]}
    one = counts[1, 0 if tables == "global" else 3, 5 if tables == "channel" else 0]
    assert one.tolist() == np.bincount(where[tables].ravel() + half, minlength=len(one)).tolist()
    np.save(tmp_path / "profile.npy", counts)
    method = CacheGen(2, variant, profile=tmp_path / "profile.npy")
    data = method.encode(*x)
    assert Head(*HEAD.unpack_from(data)).counts == 0
    assert np.array_equal(decode(data, counts), decode(sent.encode(*x)))
    decoded, _ = decode_elsewhere(data, tmp_path / "profile.npy")
    assert np.array_equal(decoded, decode(data, counts))
    changed = counts.copy()
    changed[0, 0, 0, 0] += 1
    for other in (None, changed):
        with pytest.raises(UserError, match="another profile"):
            decode(data, other)


def test_profiles_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "profile.npy"
    with pytest.raises(UserError, match="has no counts"):
        CacheGen(profile=path)
    for content, why in (((2, 1, 1, 30), "uint32"), ((2, 1, 31), "uint32"), (np.zeros((2, 1, 1, 31)), "float64"),
                         (np.array([{}], object), "allow_pickle")):  # fmt: skip
        np.save(path, np.zeros(content, np.uint32) if isinstance(content, tuple) else content)
        with pytest.raises(UserError, match=f"has no counts .*{why}"):
            CacheGen(profile=path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="has no counts"):
        CacheGen(profile=path)
    np.save(path, CacheGen(1).profiled([tuple(cache())]))
    for method in (CacheGen(3, profile=path), CacheGen(1, profile=path)):
        with pytest.raises(UserError, match="another network, level or variant"):
            method.encode(*cache(H=2 if method.scheme.level == 3 else 3))


# The method.

T = 50


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(2, 290, T + 20))


@pytest.fixture(scope="module")
def prefilled(tiny, ids):
    return prefill(tiny.decoder, ids[:T])


@pytest.mark.parametrize("name", ["level_2", "paper", "int8", "int4"])
def test_what_is_held_is_what_another_process_decoded(tiny, prefilled, name):
    from parsimony.interfaces import Inputs

    method = CacheGen(**ALL[name], chunk=32)
    context, seconds = method.build(tiny, Inputs()).hold(prefilled)
    data = method.encode(prefilled.keys.numpy(), prefilled.values.numpy())
    for held, keys, values in zip(context.layers, *decode(data), strict=True):
        assert held.keys.dtype == torch.float16
        assert np.array_equal(held.keys, keys) and np.array_equal(held.values, values)
    numbers = context.layers[0].numbers
    assert numbers["transport_bytes"] == len(data) < prefilled.nbytes == context.nbytes()
    assert 0 < numbers["encode_seconds"] < seconds and 0 < numbers["decode_seconds"] < seconds


def test_h2o_drops_tokens_before_the_rest_is_sent(tiny, ids, prefilled):
    from parsimony.interfaces import Inputs

    context = CacheGen("int8", h2o=0.5).build(tiny, Inputs()).hold(prefilled)[0]
    dropped = H2O(0.5).build(tiny, Inputs()).hold(prefilled)[0]
    keys, values = (np.stack([getattr(h, kind).float().numpy() for h in dropped.layers]) for kind in ("keys", "values"))
    data = CacheGen("int8").encode(keys, values)
    sums = sum(held.sums.nbytes for held in dropped.layers)
    assert context.layers[0].numbers["transport_bytes"] == len(data) + sums
    assert np.array_equal(np.stack([held.keys for held in context.layers]), decode(data)[0])
    assert [held.count for held in context.layers] == [T // 2] * 2
    context.extend(ids[T:])
    assert [held.count for held in context.layers] == [T // 2] * 2


def test_energies_of_values_and_differences_are_told(tiny, prefilled):
    numbers = CacheGen(variant="paper").hold(prefilled)[0].numbers
    x = np.stack((prefilled.keys.numpy(), prefilled.values.numpy()))
    assert math.isclose(numbers["value_energy"], np.square(x).mean(), rel_tol=1e-4)
    t = np.arange(T) % 10 > 0
    near = x[:, :, :, ::10].repeat(10, 3)[:, :, :, :T]
    assert math.isclose(numbers["difference_energy"], np.square(x - near)[:, :, :, t].mean(), rel_tol=0.02)


def test_eight_bits_go_on_as_the_full_cache_does(tiny, ids, prefilled):
    from parsimony.interfaces import Inputs

    full = Full().build(tiny, Inputs()).hold(prefilled)[0].extend(ids[T:])
    errors = []
    for level in ("int8", 3, 1):
        context = CacheGen(level).build(tiny, Inputs()).hold(prefilled)[0]
        errors.append(float((context.extend(ids[T:]) - full).abs().mean()))
    assert errors[0] < 0.05 and errors == sorted(errors)
    rng = np.random.default_rng(0)
    answer = CacheGen("int8").build(tiny, Inputs()).generate(ids[:T], 5, rng)
    assert len(answer.tokens) == 5


def test_a_failing_process_fails(monkeypatch, prefilled, tmp_path):
    method = CacheGen()
    monkeypatch.setattr(method, "encode", lambda keys, values: b"not a container")
    with pytest.raises(UserError, match="begins no whole container"):
        method.hold(prefilled)
    good = CacheGen().encode(*cache())
    monkeypatch.setenv("PYTHONPATH", "")
    assert decode_elsewhere(good)[0].shape == (2, 5, 2, 43, 4)
    (tmp_path / "late").write_text(f"#!/bin/sh\n{sys.executable} $@\nexit 3\n")  # fails behind a whole answer
    (tmp_path / "late").chmod(0o755)
    for command in ("/bin/false", "/bin/true", tmp_path / "late"):  # the second says nothing where arrays should be
        monkeypatch.setattr(cachegen.sys, "executable", str(command))
        with pytest.raises(UserError, match="decoding process failed"):
            decode_elsewhere(good)


def test_the_decoding_process_needs_no_torch(root):
    code = "import sys, parsimony.methods.kv_cache.cachegen; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(root / "src")}).returncode == 0
    command = [sys.executable, "-m", "parsimony.methods.kv_cache.cachegen", "encode"]
    done = subprocess.run(command, env={"PYTHONPATH": str(root / "src")}, capture_output=True, text=True)
    assert done.returncode and done.stderr.startswith("usage: ")


def test_points_of_the_config_can_be_built(root):
    row = yaml.safe_load((root / "configs/method/cachegen.yaml").read_text())
    methods = {key: CacheGen(**row["params"] | point) for key, point in row["points"].items()}
    assert list(methods)[0] == "level_2" and len(methods) == 13
    assert len({m.encode(*cache(T=100)) for m in methods.values()}) == 12


@pytest.mark.parametrize(
    "params",
    [{"level": 4}, {"level": "int3"}, {"variant": "new"}, {"coding": "token"}, {"coding": "profile"}, {"h2o": 1.5},
     {"chunk": 0}, {"level": "70b", "variant": "paper"}],
)  # fmt: skip
def test_unknown_parameters_are_refused(params):
    with pytest.raises(UserError, match="mend its params"):
        CacheGen(**params)


# The controller.

LEVELS = ("level_3", "level_2", "level_1")
contexts = st.integers(1, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.tuples(*[st.integers(10**6, 3 * 10**8)] * 3), min_size=n, max_size=n),
        st.lists(st.floats(0.1, 10), min_size=n, max_size=n),
        st.floats(0.05, 3),
    )
)


def sizes_of(rows) -> dict:
    """Sizes by level, the best first and no smaller than the next."""
    return {level: [sorted(row, reverse=True)[n] for row in rows] for n, level in enumerate(LEVELS)}


@given(contexts)
@settings(max_examples=100, deadline=None)
def test_the_official_rule(context):
    rows, bandwidths, slo = context
    sizes = sizes_of(rows)
    found = deliver(sizes, bandwidths, slo)
    total, levels = 0.0, []
    for chunk, bw in enumerate(bandwidths):  # as the official code says it
        for level in LEVELS:
            if sizes[level][chunk] / 1e9 * 8 / bw < slo / len(bandwidths):
                total, levels = total + sizes[level][chunk] / 1e9 * 8 / bw, [*levels, level]
                break
        else:
            total, levels = total + 0.2, [*levels, "text"]
    assert list(found.levels) == levels and math.isclose(found.first_token_seconds, total, rel_tol=1e-9)
    assert found.met == (found.first_token_seconds <= slo)
    for chunk, level in enumerate(levels):  # nothing that misses its slot while something smaller would not
        times = {form: sizes[form][chunk] * 8e-9 / bandwidths[chunk] for form in LEVELS} | {"text": 0.2}
        if times[level] >= slo / len(bandwidths):
            assert level == "text" and all(times[form] >= slo / len(bandwidths) for form in LEVELS)
    fixed = deliver(sizes, bandwidths, slo, None)
    assert fixed.levels == tuple("level_1" if level == "text" else level for level in levels)
    if slo / len(bandwidths) >= 0.2:
        assert found.met or math.isclose(found.first_token_seconds, slo)


@given(contexts, st.floats(1, 4), st.sampled_from(["slots", "budget"]))
@settings(max_examples=100, deadline=None)
def test_more_bandwidth_is_never_slower_at_a_fixed_level_and_never_worse_for_the_controller(context, faster, rule):
    rows, bandwidths, slo = context
    sizes, fast = sizes_of(rows), [faster * bw for bw in bandwidths]
    for level in LEVELS:
        one = {level: sizes[level]}
        slow, quick = (deliver(one, link, slo, None, rule) for link in (bandwidths, fast))
        assert set(slow.levels) == set(quick.levels) == {level}
        expected = sum(size * 8e-9 / bw for size, bw in zip(sizes[level], bandwidths, strict=True))
        assert math.isclose(slow.first_token_seconds, expected, rel_tol=1e-9)
        assert quick.first_token_seconds <= slow.first_token_seconds
    ranks = {"text": 3} | {level: n for n, level in enumerate(LEVELS)}
    slow, quick = (deliver(sizes, link, slo) for link in (bandwidths, fast))
    assert all(ranks[b] <= ranks[a] for a, b in zip(slow.levels, quick.levels, strict=True))


@given(contexts, st.floats(0.01, 0.5), st.sampled_from(["slots", "budget"]))
@settings(max_examples=40, deadline=None)
def test_text_alone_takes_what_computing_takes(context, recompute, rule):
    _, bandwidths, slo = context
    found = deliver({}, bandwidths, slo, recompute, rule)
    assert set(found.levels) == {"text"}
    assert math.isclose(found.first_token_seconds, recompute * len(bandwidths))


def pipeline(transfers, works) -> float:
    """When the last of some jobs is done: the link and the processor take them in turn, each one at a time."""
    ends = [max(sum(transfers[: k + 1]) + sum(works[k:n]) for k in range(n)) for n in range(1, len(works) + 1)]
    return ends[-1]


@given(contexts, st.floats(0, 0.2), st.one_of(st.none(), st.floats(0.1, 10)), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_papers_rule_decides_from_the_last_throughput_and_what_is_left(context, decoding, prior, text):
    rows, bandwidths, slo = context
    N, sizes = len(rows), sizes_of(rows)
    work = {"text": 0.15} | {level: decoding * (n + 1) for n, level in enumerate(LEVELS)}
    size = {"text": [text] * N} | sizes
    found = deliver(sizes, bandwidths, slo, 0.15, "budget", {k: work[k] for k in LEVELS}, text, prior)
    transfers, works = [], []
    for chunk, level in enumerate(found.levels):
        expected = bandwidths[chunk - 1] if chunk else prior
        if expected is None:
            assert level == "level_2"
        else:
            ends = {
                form: pipeline(
                    transfers + [size[form][c] * 8e-9 / expected for c in range(chunk, N)],
                    works + [work[form]] * (N - chunk),
                )
                for form in ("text", *LEVELS)
            }
            if abs(min(abs(end - slo) for end in ends.values())) < 1e-9:
                return  # too close to call
            fitting = [form for form in ends if ends[form] <= slo]
            if fitting:
                assert level == fitting[0]
            else:
                assert math.isclose(ends[level], min(ends.values()), rel_tol=1e-9)
        transfers.append(size[level][chunk] * 8e-9 / bandwidths[chunk])
        works.append(work[level])
    assert math.isclose(found.first_token_seconds, pipeline(transfers, works), rel_tol=1e-9)


@given(contexts, st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_the_papers_rule_is_in_time_where_one_form_would_be_and_the_bandwidth_stays(context, bandwidth):
    rows, _, slo = context
    sizes, steady = sizes_of(rows), [bandwidth] * len(rows)
    alone = [deliver({level: sizes[level]}, steady, slo, None, "budget") for level in LEVELS]
    found = deliver(sizes, steady, slo, 0.2, "budget", prior=bandwidth)
    if any(one.first_token_seconds <= slo * (1 - 1e-9) for one in alone) or 0.2 * len(rows) <= slo * (1 - 1e-9):
        assert found.first_token_seconds <= slo * (1 + 1e-9)


def test_decoding_overlaps_with_the_next_transfer():
    one = {"level_1": [125_000_000] * 3}  # 1 Gb each
    for seconds, expected in ((0.0, 3.0), (0.5, 3.5), (2.0, 7.0)):
        found = deliver(one, [1.0] * 3, 9, None, "budget", {"level_1": seconds})
        assert math.isclose(found.first_token_seconds, expected)


def test_the_controller_is_in_time_where_no_fixed_level_is():
    """With real containers, as many of them as a large network would have, over traces like the official ones."""
    x, sizes = cache(12, 2, 600, 8), {}
    for level in (3, 2, 1):
        sizes[f"level_{level}"] = [5000 * len(chunk) for chunk in CacheGen(level, chunk=100).chunks(*x)]
    traces = [trace(6, seed) for seed in range(60)]
    late = {level: sum(not deliver({level: of_level}, bw, 1.5, None).met for bw in traces)
            for level, of_level in sizes.items()}  # fmt: skip
    assert not any(not deliver(sizes, bw, 1.5).met for bw in traces)
    assert 0 < late["level_1"] <= late["level_2"] <= late["level_3"]
    assert {level for bw in traces for level in deliver(sizes, bw, 1.5).levels} == {*sizes, "text"}


def test_traces_are_seeded_and_uniform():
    bandwidths = trace(4000, 7)
    assert np.array_equal(bandwidths, trace(4000, 7)) and not np.array_equal(bandwidths, trace(4000, 8))
    assert 0.1 <= bandwidths.min() < 0.2 and 9.9 < bandwidths.max() <= 10 and abs(bandwidths.mean() - 5.05) < 0.15


@pytest.mark.parametrize(
    "arguments, says",
    [
        (({"a": [1]}, [1.0], 1.0, 0.2, "greedy"), "greedy"),
        (({"a": [1, 2]}, [1.0], 1.0), "mend the arguments"),
        (({}, [], 1.0), "0 chunks"),
        (({}, [1.0], 1.0, None), "neither"),
        (({"text": [1]}, [1.0], 1.0), "called text"),
        (({"a": [0]}, [1.0], 1.0), "above 0"),
        (({"a": [1]}, [0.0], 1.0), "above 0"),
        (({"a": [1]}, [float("nan")], 1.0), "above 0"),
        (({"a": [1]}, [1.0], -1.0), "above 0"),
        (({"a": [1]}, [1.0], 1.0, -0.2), "above 0"),
        (({"a": [1]}, [1.0], 1.0, 0.2, "budget", {"a": -1.0}), "above 0"),
        (({"a": [1]}, [1.0], 1.0, 0.2, "budget", None, 0.0, 0.0), "above 0"),
    ],
)
def test_what_cannot_be_delivered_is_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        deliver(*arguments)
