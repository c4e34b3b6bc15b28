"""Networks and data sets of the hub that look, listen and learn: read right, and the same as their libraries say."""

import io

import numpy as np
import pytest
import torch
from codecs_shared import Bench
from PIL import Image

from parsimony.assets import hub_photographs, rehearsal
from parsimony.assets.photographs import crops
from parsimony.benchmarks import perception_imagenet
from parsimony.benchmarks.hub_lossless import HubLossless
from parsimony.benchmarks.hub_media import picture, recording, rows
from parsimony.benchmarks.hub_photographs import HubPhotographs
from parsimony.benchmarks.hub_translation import HubTranslation
from parsimony.benchmarks.perception import Eyes
from parsimony.benchmarks.perception_imagenet import PerceptionImageNet
from parsimony.methods.image.classic import PillowCodec
from parsimony.models.efficientnet_lite import EfficientNetLite
from parsimony.models.hub_whisper import HubWhisper
from parsimony.models.image_classifier import ImageClassifier
from parsimony.models.whisper import RATE
from parsimony.recipes import circuits


def made(folder, name: str, function, **params):
    (folder / name).mkdir()
    function(folder / name, {}, **params)
    return folder / name


def pictures(folder, name, shape, count, files, column="image"):
    params = dict(column=column, shape=shape, count=count, classes=1000, files=files)
    return made(folder, name, rehearsal.pictures, **params)


def test_pictures_and_recordings_come_back_as_they_were(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    assert np.array_equal(picture({"bytes": file.getvalue()}), image)
    assert picture({"bytes": file.getvalue()}, "L").shape == (5, 7)
    folder = made(tmp_path, "speech", rehearsal.recordings, count=2, files=["a.parquet"])
    first, second = rows(folder / "a.parquet", ["audio", "text"])
    clip = recording(second["audio"], RATE)
    assert clip.dtype == np.int16 and np.array_equal(clip, (8000 * np.sin(np.arange(16_000) / 10)).astype(np.int16))
    assert first["text"] == "TONE NUMBER 0"
    with pytest.raises(ValueError, match="is not mono at 8000 Hz"):
        recording(first["audio"], 8000)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_classifier_sees_what_its_preprocessing_says(kind, tmp_path):
    classifier = ImageClassifier(made(tmp_path, kind, rehearsal.classifier, kind=kind))
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    said = classifier.classify(image)
    assert said.shape == (1000,) and said.dtype == torch.float64 and float(said.exp().sum()) == pytest.approx(1)
    picture = Image.fromarray(image)
    if kind == "vit":  # the whole picture, bilinear
        seen, mean, std = picture.resize((224, 224), Image.Resampling.BILINEAR), 0.5, 0.5
    else:  # the middle of one whose shorter side is 256
        resized = picture.resize((341, 256), Image.Resampling.BICUBIC)
        seen = resized.crop((58, 16, 282, 240))
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = torch.from_numpy((np.asarray(seen) / 255 - mean) / std).float().permute(2, 0, 1)[None]
    expected = classifier.network(pixel_values=pixels).logits[0].double().log_softmax(-1)
    torch.testing.assert_close(said, expected, atol=1e-3, rtol=1e-3)


def test_whisper_says_the_likeliest_token_behind_those_before(tmp_path):
    whisper = HubWhisper(made(tmp_path, "whisper", rehearsal.listener))
    whisper.network.proj_out.weight.mul_(30)  # random weights are otherwise undecided
    clip = (8000 * np.sin(np.arange(9000) / 5)).astype(np.int16)
    heard = whisper.hear(clip)
    assert heard.mel.shape == (80, 58) and heard.states.shape == (29, 32)
    mel = whisper.spectrogram(clip / np.float32(32768), sampling_rate=RATE, return_tensors="pt").input_features
    ids, found = list(whisper.prompt), []
    while len(found) < 16:
        logits = whisper.network(input_features=mel, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        logits[[*whisper.never, *([] if found else whisper.not_first)]] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == whisper.end:
            break
        found.append(ids[-1])
    assert heard.text == whisper.tokenizer.decode(found).strip()
    with pytest.raises(ValueError, match="a clip is int16"):
        whisper.hear(clip.astype(np.float32))


def test_imagenet_through_a_lossless_codec_changes_no_answer(tmp_path, monkeypatch):
    class Random(Eyes):
        def __init__(self, folder):
            self.trained = self.random = EfficientNetLite.random()

    monkeypatch.setattr(perception_imagenet, "Eyes", Random)
    paths = {
        "efficientnet_lite0": tmp_path,
        "vit_base_16": made(tmp_path, "vit", rehearsal.classifier, kind="vit"),
        "resnet_18": made(tmp_path, "resnet", rehearsal.classifier, kind="resnet"),
        "imagenet_validation": pictures(tmp_path, "imagenet", [60, 80, 3], 3, ["validation.parquet"]),
    }
    benchmark = PerceptionImageNet("uint8", False, 2)
    first, _ = benchmark.items(paths, 0)
    found = {m: v for _, m, v, _ in benchmark.measure(first, Bench(PillowCodec("PNG", True))).numbers}
    assert found["right_gained"] == found["right_gained_small"] == found["feature_distance"] == found["kl"] == 0
    assert found["agrees"] == found["labelled"] == 1 and found["pixels"] == 60 * 80
    lossy = {m: v for _, m, v, _ in benchmark.measure(first, Bench(PillowCodec("JPEG", False, 5))).numbers}
    assert lossy["feature_distance"] > 0 and lossy["kl"] > 0 and lossy["bits"] < found["bits"]
    assert benchmark.items({}, 0) == [] and benchmark.skipped({"resnet_18": "gone"}) == {"imagenet": "gone"}


def test_data_sets_become_items_and_squares(tmp_path):
    digits = pictures(tmp_path, "digits", [28, 28], 9, ["train.parquet", "test.parquet"])
    lossless = HubLossless("uint8", True, "mnist", 2, 3)
    names = [item.id for item in lossless.items({"mnist": digits}, 0)]
    assert names == ["digits_000", "digits_001", "sheet", "noise"] and lossless.images.shape == (6, 28, 28)
    assert lossless.items({}, 0) == [] and lossless.skipped({"mnist": "gone"}) == {"mnist": "gone"}
    large = pictures(tmp_path, "large", [70, 100, 3], 3, ["a.parquet"])
    photographs = HubPhotographs("uint8", False, "kodak", "a.parquet", "image", 2, 70)
    assert len(photographs.items({"kodak": large}, 0)) == 2
    assert {x.shape for x in photographs.squares.values()} == {(70, 100, 3)}
    (tmp_path / "cut").mkdir()
    params = dict(column="image", train=["large/a.parquet"], test=["large/a.parquet"], side=32, most=7, seed=0)
    hub_photographs.cut(tmp_path / "cut", {"large": large}, **params)
    names, squares = crops(tmp_path / "cut", "test")
    assert squares.shape == (3 * 2 * 3, 32, 32, 3) and len(crops(tmp_path / "cut", "train")[0]) == 7
    assert (
        np.array_equal(squares[4], photographs.squares["row_00000"][32:64, 32:64]) and names[4] == "large_a_000000_1_1"
    )


def test_a_circuit_learns_from_a_data_set(tmp_path):
    data = pictures(tmp_path, "digits", [4, 4], 90, ["train.parquet", "test.parquet"])
    circuits.of_data_set(
        tmp_path, {"mnist": data}, "mnist", 2, 1, 1.0, 12.0, 0, bins=4, batch=20, fold=10, structure=50
    )
    assert (tmp_path / "circuit.safetensors").exists()


def test_translations_are_asked_by_length(tmp_path):
    folder = made(tmp_path, "wmt", rehearsal.rows, data="wmt14", files=["test.parquet"])
    benchmark = HubTranslation("float32", False, 4, 20, "wmt14_en_de", "en", "de")
    items = benchmark.items({"wmt14_en_de": folder}, 0)
    assert len(items) == 4 and {item.category for item in items} == {"words_01_15"}
    first = items[0]
    assert " wohnt in " in benchmark.wanted[first.id] and first.turns[0].split()[0] in benchmark.wanted[first.id]
    exact = {name: value for name, value, _ in benchmark.score(first, benchmark.wanted[first.id])}
    assert exact["exact_match"] == 1 and exact["word_edits"] == 0 and exact["source_edits"] > 0
    assert set(benchmark.skipped({"wmt14_en_de": "gone"}).values()) == {"gone"}
