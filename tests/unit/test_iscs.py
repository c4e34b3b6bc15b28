"""ISCS: importance from weights, permutation that changes nothing, slices, and the benchmark of channel importance."""

import numpy as np
import pandas as pd
import pytest
from conftest import write_tiny_codecs
from scipy.stats import rankdata

from parsimony import stats
from parsimony.benchmarks.channel_importance import ChannelImportance, Views, compared, quarters, sheets
from parsimony.channel_orders import KEPT, ORDERS
from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.image.iscs import Importance, Iscs, slices
from parsimony.methods.image.vae_codec import VaeCodec, split
from parsimony.models import container
from parsimony.models.latent_coding import ImageCodec
from parsimony.plan import make_plan
from parsimony.report import channels

ARCHITECTURES = ("factorised", "hyperprior")
M = 10


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return Inputs(
        {a: write_tiny_codecs(tmp_path_factory.mktemp(a), K) for a, K in zip(ARCHITECTURES, (0, 2), strict=True)}
    )


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param


def codec_of(architecture, inputs) -> ImageCodec:
    return ImageCodec.load(inputs.assets[architecture], "rate_3_seed_0")


def picture(height=70, width=90, seed=0):
    ramp = np.linspace(0, 160, height * width * 3).reshape(height, width, 3)
    return (ramp + np.random.default_rng(seed).integers(0, 96, ramp.shape)).astype(np.uint8)


def test_a_permutation_changes_neither_images_nor_bits(architecture, inputs):
    codec = codec_of(architecture, inputs)
    P = np.random.default_rng(1).permutation(M)
    other = codec.permuted(P)
    before, after = codec.analyse(picture()[None]), other.analyse(picture()[None])
    assert (after.symbols == before.symbols[:, P]).all() and (after.rows < 64).all()
    assert np.abs(after.mean - before.mean[:, P]).max() == 0
    assert other.tables.bits(after.symbols, after.rows).sum() == pytest.approx(
        codec.tables.bits(before.symbols, before.rows).sum(), rel=1e-9
    )
    difference = codec.synthesise(before.symbols + before.mean) - other.synthesise(after.symbols + after.mean)
    assert np.abs(difference).max() < 1e-9
    back = other.permuted(np.argsort(P)).network.state_dict()
    assert all((back[key] == tensor).all() for key, tensor in codec.network.state_dict().items())


def test_importance_depends_on_weights_alone(architecture, inputs):
    codec = codec_of(architecture, inputs)
    importance = Importance.of(codec)
    codec.analyse(picture()[None])
    assert (Importance.of(codec).order == importance.order).all()
    P = np.random.default_rng(2).permutation(M)
    assert (P[Importance.of(codec.permuted(P)).order] == importance.order).all()
    W_d = codec.network.g_s[0].weight.numpy()
    assert importance.v_d[3] == pytest.approx(W_d[3].var()) and importance.C[2, 2] == pytest.approx(1)
    pair = W_d[1].ravel() @ W_d[4].ravel() / np.linalg.norm(W_d[1]) / np.linalg.norm(W_d[4])
    assert importance.C[1, 4] == pytest.approx(pair)
    terms = [np.log(importance.v_d), np.log(importance.v_e), importance.bias]
    score = sum((t - t.mean()) / t.std() for t in terms)
    assert np.allclose(importance.score, score) and (np.diff(importance.score[importance.order]) <= 0).all()


def test_ties_are_broken_by_index():
    same = np.ones(4)
    assert Importance(same, same, same, same, np.eye(4)).order.tolist() == [0, 1, 2, 3]


def test_the_core_has_its_share_and_no_channel_more(architecture, inputs):
    importance = Importance.of(codec_of(architecture, inputs))
    total = importance.v_d.sum()
    for tau in (0.1, 0.5, 0.9, 1.0):
        core = importance.core(tau)
        assert importance.v_d[core].sum() >= tau * total - 1e-9 and importance.v_d[core[:-1]].sum() < tau * total
    assert len(importance.core(1.0)) == M


@pytest.mark.parametrize("tau", [0.2, 0.6, 1.0])
def test_auxiliary_channels_stand_behind_the_core_channel_they_resemble(architecture, inputs, tau):
    importance = Importance.of(codec_of(architecture, inputs))
    core, laid = importance.core(tau).tolist(), importance.clustered(importance.order, tau).tolist()
    assert sorted(laid) == list(range(M))
    assert [m for m in laid if m in core] == core
    seed = None
    for m in laid:
        if m in core:
            seed = m
        else:
            assert abs(importance.C[m, seed]) == np.abs(importance.C[m, core]).max()


@pytest.mark.parametrize("count", [4, 10, 37, 40, 192])
@pytest.mark.parametrize("G", [1, 3, 5, 10])
def test_slices_are_disjoint_and_together_everything(count, G):
    for uneven in (False, True):
        parts = slices(count, G, uneven)
        assert [n for part in parts for n in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in slices(count, G)]
    assert len(sizes) == G and max(sizes) - min(sizes) <= 1
    assert [part.stop - part.start for part in slices(320, 5, True)] == [16, 16, 32, 64, 192]


@pytest.mark.parametrize("G", [1, 5, 10])
def test_slices_decode_to_the_image_of_one_stream_for_a_few_bytes_each(architecture, inputs, G):
    x = picture()
    plain = VaeCodec(architecture, 3).build(None, inputs)
    sliced = Iscs(architecture, 3, groups=G).build(None, inputs)
    one, many = plain.encode(x), sliced.encode(x)
    assert (sliced.decode(many) == plain.decode(one)).all()
    assert len(split(container.unpack(many, checksum=True)[1])) == G and len(many) - len(one) <= 8 * G
    assert sliced.model_bytes == plain.model_bytes


def test_all_slices_are_the_whole_image_and_fewer_are_filled_with_means(architecture, inputs):
    x, G = picture(), 5
    whole = Iscs(architecture, 3, groups=G, clustered=False).build(None, inputs)
    stream = whole.encode(x)
    for sent in range(1, G + 1):
        some = Iscs(architecture, 3, groups=G, clustered=False, sent=sent).build(None, inputs)
        part = some.encode(x)
        assert len(part) <= len(stream) and (some.decode(part) == whole.decode(part)).all()
        latent = whole.codec.analyse(x[None])
        first = np.arange(M) < whole.groups[sent - 1].stop
        y = np.where(first[:, None, None], latent.symbols, 0) + latent.mean
        shown = np.round(whole.codec.synthesise(y)[0].clip(0, 1) * 255).transpose(1, 2, 0)[: x.shape[0], : x.shape[1]]
        assert (some.decode(part) == shown).all()
    assert part == stream


def test_dropped_channels_are_the_last_of_the_order(architecture, inputs):
    x = picture()
    lighter = Iscs(architecture, 3, drop=0.3).build(None, inputs)
    assert set(lighter.P[7:]) == set(lighter.importance.order[-3:])
    latent = lighter.codec.analyse(x[None])
    y = np.where((np.arange(M) < 7)[:, None, None], latent.symbols, 0) + latent.mean
    shown = np.round(lighter.codec.synthesise(y)[0].clip(0, 1) * 255).transpose(1, 2, 0)[: x.shape[0], : x.shape[1]]
    assert (lighter.decode(lighter.encode(x)) == shown).all()


def test_settings_that_do_not_fit_are_refused():
    for wrong in ({"drop": 1.0}, {"tau": 0.0}, {"groups": 0}, {"groups": 5, "sent": 6}):
        with pytest.raises(UserError, match="do not fit"):
            Iscs("factorised", 3, **wrong)


def test_streams_of_more_slices_than_the_codec_has_are_refused(inputs):
    stream = Iscs("factorised", 3, groups=5).build(None, inputs).encode(picture())
    with pytest.raises(UserError, match="no stream of this codec"):
        VaeCodec("factorised", 3).build(None, inputs).decode(stream)


def test_the_shipped_codec_gets_better_slice_by_slice(root):
    plan = make_plan([], root)
    row = plan.methods["iscs"].assets["samples"]["factorised"]
    if plan.lock[row].source != "shipped":
        pytest.skip(f"{row} is not shipped")
    assets = Inputs({"factorised": root / "results" / "published" / "assets" / row})
    system = Iscs("factorised", 3, groups=10, clustered=False).build(None, assets)
    views = Views.of(system.codec, np.stack([picture(128, 128, seed) for seed in range(3)]))
    channels = np.arange(views.y.shape[1])
    errors = [views.error(channels < part.stop) for part in system.groups]
    levels = -10 * np.log10(np.array(errors))
    assert levels[-1] == levels.max() and (np.diff(levels) > -0.5).all()


def test_ablation_is_brute_force(architecture, inputs):
    codec = codec_of(architecture, inputs)
    views = Views.of(codec, np.stack([picture(128, 128, seed) for seed in range(2)]))
    ablation = views.ablation()
    y = views.y.copy()
    y[:, 4] = views.mean[:, 4]
    rises = [
        ((codec.synthesise(each).clip(0, 1) * 255 - views.images.transpose(0, 3, 1, 2)) ** 2).mean()
        for each in (views.y, y)
    ]
    assert ablation[4] == pytest.approx(rises[1] - rises[0], rel=1e-6)


def test_what_is_compared():
    rng = np.random.default_rng(0)
    ablation = rng.random(40)
    terms = {name: rng.random(40) for name in ORDERS} | {"score": ablation**3, "bits": -ablation}
    bits = np.where(np.arange(40) < 4, 0.0, 1.0)
    found = compared(terms, ablation, bits)
    assert found["rank_score"] == pytest.approx(1) and found["rank_bits"] == pytest.approx(-1)
    by_hand = np.corrcoef(rankdata(terms["v_e"]), rankdata(ablation))[0, 1]
    assert found["rank_v_e"] == pytest.approx(by_hand)
    assert found["common_score"] == found["top"] == 10 and found["common_bits"] == 0
    assert found["top_importance"] == pytest.approx(np.sort(ablation)[-10:].sum())
    assert found["dead"] == 4
    assert found["dead_ranked_high"] == (np.argsort(-ablation)[:20] < 4).sum()


def test_images_are_cut_and_laid_out_without_loss():
    squares = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    cut = quarters(squares)
    assert (cut[1] == squares[0, :128, 128:]).all() and (cut[6] == squares[1, 128:, :128]).all()
    digits = np.random.default_rng(0).random((33, 28, 28))
    laid = sheets(digits)
    assert laid.shape == (2, 128, 128, 3) and (laid[..., 0] == laid[..., 2]).all()
    assert (laid[1, 34:62, 2:30, 0] == np.round(255 * digits[20])).all()


def test_the_benchmark_measures_every_order(architecture, inputs):
    class Bench:
        points = ("one", "two")

        def system(self, point, dtype):
            return Iscs(architecture, 3, seed=self.points.index(point)).build(None, inputs)

        def rng(self, item):
            return np.random.default_rng(3)

    benchmark = ChannelImportance(2, 2, ["photographs"], 3)
    benchmark.batches = {"photographs": np.stack([picture(128, 128, seed) for seed in range(4)])}
    benchmark.train = np.stack([picture(128, 128, seed) for seed in range(7, 10)])
    items = [item(f"photographs_{n}") for n in range(2)]
    outcomes = [benchmark.measure(each, Bench()) for each in items]
    found = {(point, name): value for point, name, value, _ in outcomes[0].numbers}
    for point in Bench.points:
        assert found[point, "error_score_100"] == pytest.approx(found[point, "error_random_100"], rel=1e-6)
        assert found[point, "rank_ablation"] > 0.5  # the same channels matter in pictures of one kind
        assert found[point, "channels"] == M and found[point, "values"] == 2 * 128 * 128 * 3
        assert len(outcomes[0].outputs[point, "ablation"]) == M
    assert outcomes[0].numbers != outcomes[1].numbers
    common = {"model": "samples", "benchmark": "channel_importance", "method": "iscs", "status": "ok", "reason": ""}
    rows = [
        common | {"item": each.id, "category": each.category, "point": point, "metric": metric, "value": value}
        for each, outcome in zip(items, outcomes, strict=True)
        for point, metric, value, _ in outcome.numbers
    ]
    summary = stats.summarise(pd.DataFrame(rows))
    figure, data = channels.draw(summary)
    assert len(figure.axes) == 2 and len(data) == 2 * len(ORDERS) * (1 + len(KEPT))  # photographs, of two networks
    at = summary.set_index(["point", "category", "quantity"])["value"]
    both = [
        value
        for outcome in outcomes
        for p, metric, value, _ in outcome.numbers
        if (p, metric) == ("one", "error_bits_25")
    ]
    assert at["one", "photographs", "psnr_bits_25"] == pytest.approx(
        10 * np.log10(255**2 * 4 * 128 * 128 * 3 / sum(both))
    )
    assert channels.draw(summary[summary["quantity"] == "core_share"]) is None
    assert benchmark.skipped({"photographs": "gone"}) == {"photographs": "gone"}


def item(id):
    from parsimony.interfaces import Item

    return Item(id, id.rsplit("_", 1)[0])
