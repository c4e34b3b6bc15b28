"""Benchmarks of codecs, their measures, and the classic codecs' look at the header before they allocate."""

import csv
import gzip
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from parsimony import claims, rate_distortion
from parsimony.assets.photographs import cut
from parsimony.benchmarks.coding import payload
from parsimony.benchmarks.digits_lossless import DigitsLossless
from parsimony.benchmarks.photographs import Photographs, ms_ssim_db, psnr
from parsimony.benchmarks.photographs_lossless import PhotographsLossless
from parsimony.config import Check
from parsimony.errors import UserError
from parsimony.methods.image.classic import ImagecodecsCodec, PillowCodec, jpegls_size, jpegxl_size
from parsimony.methods.lossless.general import General
from parsimony.report import figures, tables
from parsimony.report import rate_distortion as rate_distortion_report
from parsimony.stats import summarise

PNG, JPEG = PillowCodec("PNG", True), PillowCodec("JPEG", False, 90)


class Desk:
    """A workbench that decodes here."""

    def __init__(self, **systems):
        self.systems, self.points = systems, tuple(systems)

    def system(self, point, dtype):
        return self.systems[point]

    def decode(self, point, streams):
        return [self.systems[point].decode(stream) for stream in streams], 0.5

    def rng(self, item):
        return np.random.default_rng(0)


class Wrong(PillowCodec):
    """Says it is lossless and is not; takes nothing but digits."""

    def encode(self, x):
        if x.shape != (28, 28):
            raise UserError("digits only")
        return super().encode(x ^ (x > 200))


def measured(benchmark, item, **systems) -> tuple[dict, dict]:
    outcome = benchmark.measure(item, Desk(**systems))
    return {(point, metric): value for point, metric, value, _ in outcome.numbers}, outcome.failures


@pytest.fixture
def mnist(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.concatenate((rng.integers(0, 256, (1200, 784)), rng.integers(0, 10, (1200, 1))), 1)
    with gzip.open(tmp_path / "mnist_5k.csv.gz", "wt") as file:
        csv.writer(file).writerows(rows.tolist())
    return {"mnist_5k": tmp_path}


def test_digits_are_streams_of_their_own_and_one_sheet(mnist):
    benchmark = DigitsLossless("uint8", False, items=3, each=20)
    items = benchmark.items(mnist, 0)
    assert [item.id for item in items] == ["digits_000", "digits_001", "digits_002", "sheet", "noise"]
    numbers, failures = measured(benchmark, items[1], png=PNG, wrong=Wrong("PNG", True))
    assert numbers["png", "values"] == 20 * 784 and numbers["png", "exact_items"] == numbers["png", "streams"] == 20
    assert numbers["png", "bits"] == 8 * sum(len(PNG.encode(x)) for x in benchmark.images[20:40])
    assert numbers["wrong", "exact_items"] == 0 and list(failures) == [("wrong", "exact_items")]
    assert "differs in" in failures["wrong", "exact_items"]
    numbers, _ = measured(benchmark, items[3], png=PNG, wrong=Wrong("PNG", True))
    assert numbers["png", "sheet_values"] == 50 * 784 and {point for point, _ in numbers} == {"png"}
    sheet = benchmark.samples(items[3], Desk())[0]
    assert np.array_equal(sheet[28:56, 56:84], benchmark.images[27])
    numbers, _ = measured(benchmark, items[4], png=PNG)
    assert numbers["png", "noise_bits"] > 8 * numbers["png", "noise_values"]
    with pytest.raises(UserError, match="more than 1000 digits held out"):
        DigitsLossless("uint8", False, items=30, each=40)


def test_photographs_are_kept_apart_by_their_past(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    for file in ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "ihc.png"):
        Image.fromarray(picture[..., 0] if file == "camera.png" else picture).save(tmp_path / file)
    benchmark = PhotographsLossless("uint8", False, side=32)
    items = benchmark.items({"skimage_samples": tmp_path}, 0)
    assert [item.category for item in items] == 5 * ["no_trace"] + 4 * ["was_jpeg"]
    grey = next(item for item in items if "camera" in item.id)
    assert np.array_equal(benchmark.picture(grey), picture[4:36, 9:41, 0])
    numbers, failures = measured(benchmark, items[0], xz=General("xz", 1))
    assert numbers["xz", "exact_items"] == 1 and not failures and numbers["xz", "values"] == 3 * numbers["xz", "pixels"]
    assert list(benchmark.skipped({"libjxl_photographs": "not served"})) == ["debian"]


def test_squares_come_in_turn_and_a_wrong_shape_fails(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("a", (520, 260, 3)), ("b", (260, 260, 3))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / f"{name}.png")
    cut(tmp_path, {"here": tmp_path}, ["here/a.png", "here/b.png"], ["here/a.png"], [])
    benchmark = Photographs("uint8", False, items=2, side=256)
    items = benchmark.items({"photographs": tmp_path}, 0)
    assert [item.id for item in items] == ["a_0_0", "b_0_0"]

    class Turned(PillowCodec):
        def decode(self, data):
            return super().decode(data)[:-1]

    numbers, failures = measured(benchmark, items[0], jpeg=JPEG, turned=Turned("JPEG", False, 90))
    assert 10 < numbers["jpeg", "psnr"] < 60 and numbers["jpeg", "decoded_items"] == 1
    assert ("turned", "psnr") not in numbers and list(failures) == [("turned", "decoded_items")]


def test_pieces_of_squares_have_no_ms_ssim(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (260, 260, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    cut(tmp_path, {"here": tmp_path}, ["here/a.png"], ["here/a.png"], [])
    benchmark = Photographs("uint8", False, items=2, side=32)
    (item,) = benchmark.items({"photographs": tmp_path}, 0)
    piece, square = benchmark.squares[item.id], picture[2:258, 2:258]
    at = np.argwhere((square[:225, :225] == piece[0, 0]).all(-1))
    assert piece.shape == (32, 32, 3) and any((square[y : y + 32, x : x + 32] == piece).all() for y, x in at)
    numbers, failures = measured(benchmark, item, jpeg=JPEG)
    assert numbers["jpeg", "pixels"] == 1024 and ("jpeg", "ms_ssim_db") not in numbers and not failures
    assert 0 < numbers["jpeg", "payload_bits"] < numbers["jpeg", "bits"]


@pytest.mark.parametrize(
    "codec", [PillowCodec(f, False, q) for f, q in (("JPEG", 80), ("WEBP", 80), ("AVIF", 80), ("JPEG2000", 5))],
    ids=lambda codec: codec.format,
)  # fmt: skip
def test_payloads_are_files_without_what_is_the_same_for_all_pictures(codec):
    """Of a flat picture little is left; of noise almost everything."""
    flat, noise = np.full((64, 64, 3), 90, np.uint8), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    files = [codec.encode(x) for x in (flat, noise)]
    payloads = [payload(file) for file in files]
    assert 0 < payloads[0] < 0.75 * len(files[0]) and 0 < len(files[1]) - payloads[1] < 900
    assert payload(b"anything else") == 13


def test_measures_have_their_known_values():
    y, x = np.mgrid[:256, :256]
    image = np.stack((x, y, (x + y) // 2), -1).astype(np.uint8) // 2 + 60
    assert psnr(image, image + 1) == pytest.approx(48.1308, abs=1e-3)
    assert psnr(image, image) > 100 and ms_ssim_db(image, image) == pytest.approx(100)
    rng = np.random.default_rng(0)
    noisy = [np.clip(image + rng.normal(0, s, image.shape), 0, 255).astype(np.uint8) for s in (2, 8, 30)]
    values = [ms_ssim_db(image, each) for each in noisy]
    assert values == sorted(values, reverse=True) and 0 < values[-1] < values[0] < 100


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (256, 256), (30, 36), (1, 600), (900, 1600), (257, 7), (40, 32)])
def test_headers_tell_the_size(size):
    flat = np.full(size, 9, np.uint8)
    assert jpegls_size(ImagecodecsCodec("JPEG-LS").encode(flat)) == size
    assert jpegxl_size(ImagecodecsCodec("JPEG XL", effort=1).encode(flat)) == size


def test_no_decoder_believes_a_header_that_asks_for_gigabytes():
    flat = np.full((16, 16, 3), 9, np.uint8)
    png = bytearray(PNG.encode(flat))
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    jpeg = bytearray(JPEG.encode(flat))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    ls = bytearray(ImagecodecsCodec("JPEG-LS").encode(flat))
    at = ls.index(b"\xff\xf7") + 5
    ls[at : at + 4] = b"\xff\xff\xff\xff"
    ls[-4:] = zlib.crc32(ls[:-4]).to_bytes(4, "little")
    xl = b"\xff\x0a" + (0b001 << 33 | (2**30 - 1) << 3 | 0b11 << 1).to_bytes(5, "little") + bytes(40)
    assert jpegxl_size(xl) == (2**30, 2**30)
    xl_codec, ls_codec = ImagecodecsCodec("JPEG XL"), ImagecodecsCodec("JPEG-LS")
    for codec, data in ((PNG, png), (JPEG, jpeg), (ls_codec, ls), (xl_codec, xl)):
        with pytest.raises(UserError, match="is damaged"):
            codec.decode(bytes(data))


def records(rates: dict[str, float]) -> pd.DataFrame:
    """Records of codecs whose curves are one curve but for a factor of their rate."""
    rows = []
    for method, factor in rates.items():
        for n, quality in enumerate((28.0, 31.0, 34.0, 37.0, 40.0)):
            for item in ("one", "two"):
                common = {"suite": "s", "cell": "c", "model": "samples", "benchmark": "photographs", "method": method}
                common |= {"point": f"q_{n}", "params": "{}", "item": item, "category": "a", "seed": 0, "unit": ""}
                numbers = {"bits": factor * 1000 * 2**n, "pixels": 4000, "psnr": quality, "ms_ssim_db": quality / 2}
                rows += [common | {"metric": k, "value": v, "status": "ok", "reason": ""} for k, v in numbers.items()]
    return pd.DataFrame(rows)


def test_curves_are_compared_with_the_anchor_in_table_and_figure(tmp_path):
    frame = records({"jpeg": 1.0, "webp": 0.5, "avif": 2.0})
    summary = summarise(frame)
    found = summary[summary["quantity"] == "bd_rate_psnr"].set_index("method")["value"]
    assert found.to_dict() == pytest.approx({"webp": -50, "avif": 100})
    context = {"methods": {key: ["avif", "jpeg", "webp"] for key in ("avif", "jpeg", "webp")}, "references": set()}
    context |= {
        "titles": {},
        "columns": {"photographs": ["bits_per_pixel", "psnr"]},
        "conditions": {"all": "", "photographs": ""},
        "papers": {},
    }
    made = tables.write_tables(summary, frame, tmp_path, context)
    text = next(path for path in made if path.stem == "photographs_bd_rate").with_suffix(".md").read_text()
    assert "| webp | 5 | -50.0 % [28.0, 40.0 dB] | -50.0 % [14.0, 20.0 dB] |" in text and "PCHIP" in text
    assert "curve" not in (tmp_path / "photographs.md").read_text()
    drawn = [path.stem for path in figures.write_figures(summary, frame, tmp_path, context)]
    assert "photographs_rate_distortion" in drawn
    data = pd.read_csv(tmp_path / "photographs_rate_distortion.csv")
    assert len(data) == 2 * 3 * 5 and set(data["quality"]) == {"psnr", "ms_ssim_db"}


def test_curves_that_cannot_be_compared_have_no_value_and_say_why():
    rate, quality = np.array([1, 2, 4, 8.0]), np.array([30, 33, 32, 39.0])
    with pytest.raises(UserError, match="rises with the rate"):
        rate_distortion.bd_rate(rate, np.sort(quality), rate, quality)
    frame = records({"jpeg": 1.0, "webp": 0.5})
    few = frame[(frame["method"] == "jpeg") | frame["point"].isin(["q_0", "q_1", "q_2"])]
    assert "bd_rate_psnr" not in set(summarise(few)["quantity"])
    worse = frame.copy()
    worse.loc[(frame["method"] == "webp") & (frame["point"] == "q_3") & (frame["metric"] == "psnr"), "value"] = 20.0
    summary = summarise(worse)
    [row] = summary[summary["quantity"] == "bd_rate_psnr"].to_dict("records")
    assert np.isnan(row["value"]) and "rises with the rate" in row["reason"]
    assert "rises with the rate" in rate_distortion_report.table(summary)[1][0][2]
    left = {"quantity": "bd_rate_psnr", "method": "webp", "benchmark": "photographs"}
    check = Check.model_validate({"left": left, "relation": "<", "right": 0})
    assert claims.undefined(check, summary).startswith("webp has no bd_rate_psnr: a BD-rate needs")
    assert not claims.undefined(check, summarise(frame)) and not claims.undefined(check, summarise(few))
