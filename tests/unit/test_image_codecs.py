"""Variational image codecs: tables, exact predictions, streams, and the training objective."""

import hashlib
import subprocess
import sys
from math import prod

import numpy as np
import pytest
import torch
from conftest import ROOT, write_tiny_codecs
from constriction import stream as constriction
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.image.vae_codec import VaeCodec, join, split
from parsimony.models import container
from parsimony.models.image_codecs import GDN, SCALES, CodecNetwork, FactorisedPrior, _Floor
from parsimony.models.latent_coding import FARTHEST, VALUE_STEP, Exact, ImageCodec, Tables
from parsimony.plan import make_plan
from parsimony.recipes import image_codecs as recipe

ARCHITECTURES = ("factorised", "hyperprior")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    folders = {a: write_tiny_codecs(tmp_path_factory.mktemp(a), K) for a, K in zip(ARCHITECTURES, (0, 2), strict=True)}
    return Inputs(folders)


@pytest.fixture(params=ARCHITECTURES)
def system(request, inputs):
    return VaeCodec(request.param, 3).build(None, inputs)


def images(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    for shape in shapes:  # a gradient with noise: neither flat nor white
        ramp = np.linspace(0, 160, prod(shape)).reshape(shape)
        yield (ramp + rng.integers(0, 96, shape)).astype(np.uint8)


def coded(tables, symbols, rows) -> np.ndarray:
    coder = constriction.queue.RangeEncoder()
    tables.write(coder, symbols, rows)
    return coder.get_compressed()


@st.composite
def tables_and_symbols(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    K = draw(st.integers(1, 6))
    masses = [rng.dirichlet(np.full(rng.integers(1, 40), draw(st.sampled_from([0.05, 1.0])))) for _ in range(K)]
    n = draw(st.integers(0, 60))
    far = st.integers(-FARTHEST, FARTHEST) | st.integers(-30, 30)
    symbols = np.array(draw(st.lists(far, min_size=n, max_size=n)), np.int64)
    return Tables.of_masses(masses, rng.integers(-20, 5, K)), symbols, rng.integers(0, K, n)


@given(tables_and_symbols())
@settings(max_examples=60, deadline=None)
def test_any_symbols_come_back_and_cost_what_their_tables_say(case):
    tables, symbols, rows = case
    stream = coded(tables, symbols, rows)
    decoder = constriction.queue.RangeDecoder(stream)
    assert (tables.read(decoder, rows) == symbols).all() and decoder.maybe_exhausted()
    assert 32 * len(stream) <= tables.bits(symbols, rows).sum() * 1.001 + 64
    again = Tables.of_arrays(**tables.arrays())
    assert (coded(again, symbols, rows) == stream).all()


def test_damaged_tables_are_refused():
    with pytest.raises(UserError, match="damaged"):
        Tables([np.array([2**16 - 1, 2])], np.zeros(1))


def test_gaussian_tables_are_gaussians():
    tables = Tables.of_gaussians()
    for row in (0, 20, 40, 63):
        widths, offset = tables.widths[row], tables.offsets[row]
        edges = np.arange(offset, -offset + 2) - 0.5
        masses = np.diff(norm.cdf(edges / SCALES[row].item()))
        assert (
            len(widths) == 2 * -offset + 2 and np.abs(widths[:-1] / 2**16 - masses).max() < 0.002 + len(widths) / 2**16
        )
        assert masses.sum() > 1 - 2e-9


def test_a_prior_fits_what_it_is_trained_on_and_its_tables_code_it():
    torch.manual_seed(0)
    prior, rng = FactorisedPrior(2), torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 1, 8, 64, generator=rng) * torch.tensor([1.0, 6.0])[:, None, None, None] + 3
    y = drawn.transpose(0, 1)
    weights = [p for name, p in prior.named_parameters() if name != "quantiles"]
    main, auxiliary = torch.optim.Adam(weights, 0.03), torch.optim.Adam([prior.quantiles], 0.1)
    for _ in range(200):
        for optimiser, loss in (
            (main, prior.bits(y + torch.rand(y.shape, generator=rng) - 0.5) / y.numel()),
            (auxiliary, prior.quantile_loss()),
        ):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    tables, medians = Tables.of_prior(prior)
    assert np.abs(medians - 3).max() < 1.5 and (medians / VALUE_STEP % 1 == 0).all()
    symbols = np.round(drawn.numpy().reshape(2, -1) - medians[:, None]).astype(np.int64)
    spent = tables.bits(symbols, np.arange(2)[:, None] + np.zeros_like(symbols)).mean(1)
    entropy = np.log2(np.sqrt(2 * np.pi * np.e) * np.array([1.0, 6.0]))  # of the Gaussians; rounding adds little
    assert (spent > entropy - 0.15).all() and (spent < entropy + 0.35).all()
    values = torch.arange(-400, 400).double().repeat(2, 1)
    assert torch.allclose(prior.double().likelihood(values).sum(1), torch.ones(2).double(), atol=1e-6)


def test_the_floor_lets_gradients_through_that_raise():
    x = torch.tensor([0.5, 2.0, 0.5], requires_grad=True)
    (_Floor.apply(x, 1.0) * torch.tensor([1.0, 1.0, -1.0])).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, -1.0]


def test_gdn_is_its_formula():
    torch.manual_seed(0)
    for inverse in (False, True):
        gdn, x = GDN(3, inverse), torch.randn(2, 3, 4, 5)
        gdn.gamma.data.uniform_(0, 0.7)
        beta, gamma = gdn.beta**2 - GDN.OFFSET, gdn.gamma**2 - GDN.OFFSET
        norm_ = torch.sqrt(beta[:, None, None] + torch.einsum("ij,bjhw->bihw", gamma, x**2))
        assert torch.allclose(gdn(x), x * norm_ if inverse else x / norm_, atol=1e-6)


def test_predictions_are_exact_whatever_the_order_of_sums(inputs):
    codec = ImageCodec.load(inputs.assets["hyperprior"], "rate_3_seed_0")
    z = torch.from_numpy(np.random.default_rng(0).integers(-40, 41, (3, 2, 3, 2)) + codec.medians[:, None, None])
    together = codec.predict(z)
    assert torch.equal(together, torch.cat([codec.predict(each) for each in z.split(1)]))
    layers = CodecNetwork(4, 10, 2).h_s
    layers.load_state_dict(codec.network.h_s.state_dict())
    layers[0].weight.data = layers[0].weight.data.flip(0)  # the same sums backwards
    assert torch.equal(together, Exact(layers)(z.flip(1)))
    # in integers, with numpy: the last layer on what goes into it
    x = z
    for layer in codec.predict.layers[:-1]:
        x = (layer(x.clamp(-1024, 1024)) / VALUE_STEP).round() * VALUE_STEP
    assert x.abs().max() <= 1024
    last = codec.predict.layers[-1]
    values, weights = (x * 2**8).numpy().astype(np.int64), (last.weight * 2**12).numpy().astype(np.int64)
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    sums = (
        np.einsum("bihwkl,oikl->bohw", windows, weights) + (last.bias * 2**20).numpy().astype(np.int64)[:, None, None]
    )
    assert (np.round(sums / 2**12) / 2**8 == together.numpy()).all()


def test_weights_too_large_to_be_exact_are_refused():
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    layers[0].weight.data.fill_(9.0)
    with pytest.raises(UserError, match="too large"):
        Exact(layers)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (16, 16, 3), (65, 130, 3), (64, 128), (33, 7)])
def test_streams_hold_everything(system, shape):
    (x,) = images(shape)
    stream = system.encode(x)
    shown = system.decode(stream)
    assert shown.shape == x.shape and shown.dtype == np.uint8
    latent = system.codec.analyse((x if x.ndim == 3 else np.stack((x,) * 3, -1))[None])
    assert np.abs(latent.symbols).max() > 0
    direct = system.codec.synthesise(latent.symbols + latent.mean)[0, :, : shape[0], : shape[1]]
    direct = np.round(direct.clip(0, 1) * 255).transpose(1, 2, 0)
    assert (shown == (direct if x.ndim == 3 else np.round(direct.mean(-1)))).all()
    bits = system.codec.tables.bits(latent.symbols, latent.rows).sum()
    if latent.z is not None:
        bits += system.codec.prior.bits(latent.z, np.arange(2)[:, None, None] + np.zeros_like(latent.z)).sum()
    assert 0.999 * bits - 8 < 8 * len(stream) <= 1.001 * bits + 8 * (10 + 8)


SCRIPT = """
import hashlib, sys
import numpy as np, torch
torch.set_num_threads(int(sys.argv[4]))
from pathlib import Path
from parsimony.interfaces import Inputs
from parsimony.methods.image.vae_codec import VaeCodec
system = VaeCodec(sys.argv[1], 3).build(None, Inputs({sys.argv[1]: Path(sys.argv[2])}))
x = np.load(sys.argv[3])
data = system.encode(x)
print(hashlib.sha256(data).hexdigest(), hashlib.sha256(system.decode(data).tobytes()).hexdigest())
"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_another_process_with_more_threads_makes_the_same_bytes(architecture, inputs, tmp_path):
    (x,) = images((150, 200, 3))
    np.save(tmp_path / "x.npy", x)
    system = VaeCodec(architecture, 3).build(None, inputs)
    stream = system.encode(x)
    expected = [hashlib.sha256(part).hexdigest() for part in (stream, system.decode(stream).tobytes())]
    command = [sys.executable, "-c", SCRIPT, architecture, str(inputs.assets[architecture]), str(tmp_path / "x.npy")]
    done = subprocess.run([*command, "3"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_batches_change_nothing(system):
    xs = np.stack(list(images(*[(64, 128, 3)] * 4)))
    together = system.codec.analyse(xs)
    for n, x in enumerate(xs):
        alone = system.codec.analyse(x[None])
        assert (alone.symbols[0] == together.symbols[n]).all() and (alone.rows[0] == together.rows[n]).all()
        assert (alone.mean[0] == together.mean[n]).all()


def test_damaged_streams_and_foreign_samples_are_refused(system):
    (x,) = images((40, 70, 3))
    stream = system.encode(x)
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(stream)
        damaged[rng.integers(len(stream))] ^= 1 << rng.integers(8)
        with pytest.raises(UserError):
            system.decode(bytes(damaged))
    for bad in (b"", b"abc", stream[:-1], stream + b"\0", stream[: len(stream) // 2]):
        with pytest.raises(UserError):
            system.decode(bad)
    with pytest.raises(UserError, match="too large"):
        system.decode(container.pack(np.broadcast_to(np.uint8(0), (1100, 1100)), join([b""]), checksum=True))
    for bad in (x.astype(np.int16), x[:0], x[..., :2], x[0, 0], np.zeros((1100, 1100), np.uint8)):
        with pytest.raises(UserError):
            system.encode(bad)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=12), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_streams_are_told_apart_and_cut_ones_noticed(streams, cut):
    assert split(join(streams)) == streams
    assert all(split(join(streams)[:n]) != streams for n in range(min(cut, len(join(streams)))))
    assert split(b"") == split(b"\0abc") == split(b"\2") == []


def test_an_unknown_network_is_named(inputs):
    with pytest.raises(UserError, match=r"no codec 'rate_9_seed_0'; valid: rate_1_seed_0"):
        VaeCodec("factorised", 9).build(None, inputs)


@pytest.mark.parametrize("K", [0, 2])
def test_training_lowers_its_objective_and_the_seed_decides(K):
    squares = torch.from_numpy(np.stack(list(images(*[(256, 256, 3)] * 2)))).permute(0, 3, 1, 2)
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        network = CodecNetwork(4, 6, K)
        x = recipe.drawn(squares, 4, 64, np.random.default_rng(9))
        before = objective(network, x)
        recipe.fit(network, squares, 0.025, 25, seed=1, batch=2, side=64, rate=3e-3)
        ends.append(objective(network, x))
        assert ends[-1] < before
    assert ends[0] == ends[1]


@torch.no_grad()
def test_a_network_begins_as_principal_components_whose_inverse_is_its_synthesis():
    squares = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = CodecNetwork(48, 192)  # as many channels as two layers of blocks have values
    recipe.principal(network, squares)
    down, up = network.g_a[::2], list(network.g_s[::2])
    made = up[3](up[2](down[1](down[0](squares))))
    assert torch.allclose(made, squares, atol=1e-4)
    parts = down[0](squares)[:, :12].transpose(0, 1).flatten(1)
    covariance = torch.cov(parts)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.05 * covariance.max()  # of other draws of images


@torch.no_grad()
def test_folding_the_gain_changes_no_image_and_no_rate():
    network, x = CodecNetwork(4, 6), torch.rand(2, 3, 32, 32)
    network.gain = 16.0
    torch.manual_seed(0)
    x_hat, rate = network(x)
    network.fold()
    torch.manual_seed(0)
    folded, folded_rate = network(x)
    assert network.gain == 1 and torch.allclose(folded, x_hat, atol=1e-5) and torch.allclose(folded_rate, rate)


@torch.no_grad()
def objective(network, x) -> float:
    torch.manual_seed(5)
    x_hat, bits = network(x)
    return float(0.025 * 255**2 * (x - x_hat).square().mean() + bits / (x.numel() / 3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_shipped_codecs_keep_the_floors_of_their_recipe(architecture):
    key = f"image_codecs_{architecture}"
    row = make_plan([], ROOT).lock[key]
    if row.source != "shipped":
        pytest.skip(f"{key} is not shipped; its recipe checks its floors")
    rates = list(zip(row.params["floors"], row.params["most_bits"], strict=True))
    for r, (floor, most) in enumerate(rates, 1):
        codec = ImageCodec.load(ROOT / "results" / "published" / "assets" / key, f"rate_{r}_seed_0")
        psnr, bits = recipe.quality(codec)
        assert psnr >= floor and bits <= most
