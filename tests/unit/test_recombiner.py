"""RECOMBINER: streams of a known length that decode to what was encoded, in any process and batch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import write_tiny_prior
from hypothesis import given, settings
from hypothesis import strategies as st

from parsimony.errors import UserError
from parsimony.interfaces import Codec, Inputs
from parsimony.methods.image.recombiner import Recombiner, RecombinerCodec
from parsimony.methods.image.recombiner_encoder import Encoder, Settings, permutation, stream
from parsimony.models import exact
from parsimony.models.bayesian_inr import Layout, Network, Prior, colours, image_of, patches_of
from parsimony.recipes.recombiner_prior import Learner, blocks, pieces

SETTINGS = Settings(updates=30, fine_tune=4, samples=2, step=5e-3, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("priors")
    for levels in (1, 3):
        write_tiny_prior(folder / f"levels_{levels}.safetensors", levels)
    return folder


@pytest.fixture(scope="module", params=[1, 3])
def codec(request, folder) -> RecombinerCodec:
    return RecombinerCodec(Prior.load(folder / f"levels_{request.param}.safetensors"), SETTINGS)


def picture(H: int, W: int) -> np.ndarray:
    """A smooth colourful image."""
    y, x = np.indices((H, W)) / 16
    return np.stack([127 + 90 * np.sin(y + k * x) for k in range(3)], -1).astype(np.uint8)


def test_decoder_and_encoder_agree_on_every_latent(codec):
    image = picture(37, 50)
    data, facts = codec.encode_and_tell(image)
    indices = []
    monitored = codec.values
    try:
        codec.values = lambda level, part: indices.append(monitored(level, part)) or indices[-1]
        decoded = codec.decode(data)
    finally:
        del codec.values
    assert len(indices) == len(facts.latents)
    assert all((mine == theirs).all() for mine, theirs in zip(indices, facts.latents, strict=True))
    # The encoder's network is in single precision, so that its idea of the error differs a little.
    whole = np.pad(image, ((0, 11), (0, 14), (0, 0)), "edge")
    made = image_of(colours(codec.layout, codec.weights, *codec.latents(numbers(codec, data), 3, 4)), 4)
    assert abs(float(np.square(made - whole / 255).mean()) - facts.coded_error) < 1e-4
    assert (exact.pixels(made[:37, :50]) == decoded).all()


def numbers(codec, data: bytes) -> np.ndarray:
    """The numbers of candidates in the stream of an image of 3 by 4 patches."""
    bits = np.unpackbits(np.frombuffer(data[3:], np.uint8))[: codec.numbers(3, 4) * codec.shared.bits]
    return bits.reshape(-1, codec.shared.bits).astype(int) @ (1 << np.arange(codec.shared.bits)[::-1])


@pytest.mark.parametrize("shape", [(16, 16, 3), (1, 1, 3), (40, 70, 3), (33, 17)])
def test_the_length_follows_from_the_size_alone(codec, shape):
    rng, (H, W) = np.random.default_rng(0), shape[:2]
    flat, noise = np.full(shape, 200, np.uint8), rng.integers(0, 256, shape, dtype=np.uint8)
    rows, columns = -(-H // 16), -(-W // 16)
    members = [rows * columns, -(-rows // 2) * -(-columns // 2), 1]
    counts = [level.blocks for level in codec.shared.levels]
    bits = 6 * sum(m * c for m, c in zip(members, counts, strict=False))
    for x in (flat, noise):
        data = codec.encode(x)
        assert len(data) == 3 + -(-bits // 8)
        decoded = codec.decode(data)
        assert decoded.shape == x.shape and decoded.dtype == np.uint8


def test_other_processes_and_threads_decode_the_same(codec, folder, tmp_path):
    x = picture(48, 40)
    data = codec.encode(x)
    assert codec.encode(x) == data
    (tmp_path / "stream").write_bytes(data)
    code = (
        "import sys, pathlib, torch\n"
        "from parsimony.methods.image.recombiner import RecombinerCodec\n"
        "from parsimony.models.bayesian_inr import Prior\n"
        "torch.set_num_threads(2)\n"
        "codec = RecombinerCodec(Prior.load(pathlib.Path(sys.argv[1])), None)\n"
        "sys.stdout.buffer.write(codec.decode(pathlib.Path(sys.argv[2]).read_bytes()).tobytes())\n"
    )
    prior = folder / f"levels_{len(codec.levels)}.safetensors"
    command = [sys.executable, "-c", code, str(prior), str(tmp_path / "stream")]
    done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.stdout == codec.decode(data).tobytes()


def test_patches_decode_alone_as_in_a_batch(codec):
    rng = np.random.default_rng(0)
    h, z = rng.normal(size=(9, codec.layout.weights)), rng.normal(size=(9, codec.layout.total - codec.layout.weights))
    together = colours(codec.layout, codec.weights, h, z)
    for n in range(9):
        assert (colours(codec.layout, codec.weights, h[n : n + 1], z[n : n + 1])[0] == together[n]).all()


@pytest.mark.parametrize("mapped", [True, False])
def test_the_decoders_network_is_the_encoders(mapped):
    torch.manual_seed(1)
    layout = Layout(patch=32, fourier=8, channels=4, latent=3, up=5, hidden=6, layers=2)
    network = Network(layout, mapped)
    h, z = torch.randn(3, layout.weights) / 10, torch.randn(3, layout.total - layout.weights)
    weights = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    made = colours(layout, weights, h.double().numpy(), z.double().numpy()).reshape(3, -1, 3)
    np.testing.assert_allclose(made, network.double()(h.double(), z.double()).detach(), atol=1e-6)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_foreign_bytes_are_refused_or_decode(data):
    try:
        decoded = HYPOTHETICAL.decode(data)
    except UserError:
        return
    assert decoded.dtype == np.uint8 and decoded.size <= 3 * 16**2 * len(data) * 8


HYPOTHETICAL = None


@pytest.fixture(autouse=True, scope="module")
def _hypothetical(folder):
    global HYPOTHETICAL
    HYPOTHETICAL = RecombinerCodec(Prior.load(folder / "levels_1.safetensors"), SETTINGS)


def test_cut_streams_and_other_arrays_are_refused(codec):
    data = codec.encode(picture(20, 20))
    for wrong in (data[:-1], data + b"\0", data[:1], b"", b"\xff" * 9, b"\0\0"):
        with pytest.raises(UserError, match="no stream of this codec"):
            codec.decode(wrong)
    for x in (np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros(9, np.uint8)):
        with pytest.raises(UserError, match="RECOMBINER takes grey or colour"):
            codec.encode(x)


def test_a_point_is_built_from_its_prior(folder):
    built = Recombiner("levels_1", 30, 4, 2, 5e-3).build(None, Inputs({"priors": folder}))
    assert isinstance(built, Codec) and built.model_bytes == (folder / "levels_1.safetensors").stat().st_size
    with pytest.raises(UserError, match="no prior 'levels_2' .* there are: levels_1, levels_3"):
        Recombiner("levels_2", 30, 4, 2, 5e-3).build(None, Inputs({"priors": folder}))


def test_rows_mix_patches_and_come_apart_again():
    order = permutation(12, 40)
    assert (np.sort(order, 0) == np.arange(12)[:, None]).all() and len(np.unique(order, axis=1).T) > 30
    assert (permutation(1, 40) == 0).all() and (permutation(12, 40) == order).all()
    every = {stream(level, row, b) for level in range(3) for row in (0, 1, 300, 70000) for b in (0, 1, 400)}
    assert len(every) == 36


def test_blocks_near_their_bits_and_fit_again_to_what_was_drawn(folder):
    """More weight on blocks that are too dear brings them to their bits; with more updates the sample costs less."""
    prior = Prior.load(folder / "levels_1.safetensors")
    gaps = []
    for fine_tune in (0, 50):
        encoder = Encoder(prior, picture(16, 32), Settings(150, fine_tune, 2, 5e-3, 0))
        facts = encoder.run()
        assert len(facts.block_bits) == sum(each.size for each in encoder.indices)
        assert all((each >= 0).all() and (each < 64).all() for each in encoder.indices)
        assert max(facts.block_bits) < 1.5 * prior.bits
        gaps.append(facts.coded_error - facts.mean_error)
    assert gaps[0] > 0 and gaps[1] < 0.7 * gaps[0]


def test_weights_rise_and_fall_with_the_bits_of_their_block(folder):
    encoder = Encoder(Prior.load(folder / "levels_3.safetensors"), picture(48, 32), SETTINGS)
    for mean in encoder.posterior.means:
        mean.data[0] += 1.0
    bits, before = encoder.block_bits(), [betas.clone() for betas in encoder.betas]
    encoder.adapt()
    for b, old, new in zip(bits, before, encoder.betas, strict=True):
        assert ((new > old) == (b > 6)).all() and ((new < old) == (b <= 6 * 0.975)).all()
    total = [float(each.detach().sum()) for each in encoder.divergences()]
    assert [float(b.sum()) for b in bits] == pytest.approx(total, rel=1e-4)
    encoder.indices[0][1, 0] = 5
    weights, order = encoder.weights()[0], encoder.order[0]
    coded = np.flatnonzero(encoder.prior.levels[0].block == 0)
    assert (weights[order[1, coded], coded] == 0).all() and int((weights == 0).sum()) == len(coded)


def test_patches_and_images_are_each_others_inverse():
    image = picture(48, 32)
    cut = patches_of(image[None], 16)
    assert cut.shape == (6, 16, 16, 3) and (cut[1] == image[:16, 16:]).all() and (image_of(cut, 2) == image).all()
    owners = Layout().owners(5, 3, 3)
    assert owners[1].reshape(5, 3).tolist() == [[0, 0, 1], [0, 0, 1], [2, 2, 3], [2, 2, 3], [4, 4, 5]]
    assert (owners[0] == np.arange(15)).all() and (owners[2] == 0).all()


def test_blocks_hold_what_they_cost():
    spent = np.random.default_rng(0).gamma(0.3, 1.0, 500)
    block = blocks(spent, 8).numpy()
    costs = np.bincount(block, spent)
    assert costs.max() <= 8 and set(block) == set(range(block.max() + 1))
    assert len(costs) < 1.3 * spent.sum() / 8 + 1
    assert len(set(blocks(np.array([20.0, 1.0, 30.0]), 8).tolist())) >= 2  # those too dear stand alone


def test_learning_moves_the_prior_to_its_posteriors_and_the_rate_to_its_target():
    squares = np.stack([picture(64, 64), np.rot90(picture(64, 64))])
    layout = Layout(fourier=4, channels=2, latent=2, up=2, hidden=4, layers=1)
    learner = Learner(layout, pieces(squares, 4, 32, 0), 3, True, 5e-3, 1e-8, 0)
    assert [len(mean) for mean in learner.posterior.means] == [16, 4, 4]
    before = learner.error(0).detach()
    spent = [learner.round(20, 64.0, 0.1) for _ in range(9)]
    assert learner.error(0).detach() < 0.8 * before
    assert learner.beta == pytest.approx(1e-8 * 1.5 ** sum(s > 64 for s in spent) / 1.5 ** sum(s < 57.6 for s in spent))
    learner.beta = 1e-2
    assert learner.round(40, 64.0, 0.1) < spent[-1]
    for (mean, std), means, stds in zip(learner.prior, learner.posterior.means, learner.posterior.stds(), strict=True):
        torch.testing.assert_close(mean, means.mean(0))
        torch.testing.assert_close(std**2, (stds**2).mean(0) + means.var(0, correction=0))
    result = learner.result(8)
    assert [len(level.block) for level in result.levels] == [layout.total, layout.weights, layout.weights]
