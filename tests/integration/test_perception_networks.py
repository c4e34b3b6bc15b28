"""The real networks that look, read and listen: right on originals, in place, and less right on ruins."""

import numpy as np
import pytest

from parsimony.assets import Unavailable, load_path
from parsimony.assets.sources import fetch_all
from parsimony.benchmarks.perception import as_seen, tensor
from parsimony.benchmarks.perception_images import LABELS, views
from parsimony.benchmarks.perception_ocr import PerceptionOcr, squeezed
from parsimony.benchmarks.perception_speech import PerceptionSpeech
from parsimony.methods.audio.audio_file import AudioFile
from parsimony.models.efficientnet_lite import EfficientNetLite
from parsimony.models.whisper import edits, words
from parsimony.plan import make_plan


@pytest.fixture(scope="module")
def fetched(root):
    def folders(*keys):
        lock, found = make_plan([], root).lock, {}
        for key in keys:
            fetch_all(key, lock, root / "resources")
            try:
                found[key] = load_path(key, lock, root / "resources")
            except Unavailable as reason:
                pytest.skip(str(reason))
        return found

    return folders


@pytest.mark.parametrize("asset", ["skimage_samples", "opencv_labelled"])
def test_the_classifier_knows_the_labelled_photographs(fetched, asset):
    paths = fetched("efficientnet_lite0", asset)
    network = EfficientNetLite.load(paths["efficientnet_lite0"])
    for name, labels in LABELS.items():
        if name.startswith(asset):
            logits = network(tensor(as_seen(views(paths[asset] / name.split("/")[1])[0])))
            assert int(logits.argmax()) in labels and float(logits.softmax(-1).max()) > 0.3


def test_the_reader_reads_clean_pages_and_not_flat_ones(fetched):
    benchmark = PerceptionOcr("uint8", False, 5)
    wrong = total = 0
    for item in benchmark.items(fetched(*benchmark.needed), 0):
        text = squeezed(benchmark.texts[item.id])
        wrong, total = wrong + benchmark.perceive(item, benchmark.samples[item.id])[2], total + len(text)
        flat = np.full_like(benchmark.samples[item.id], 200)
        assert benchmark.ocr.read(flat) == ""
    assert wrong < 0.05 * total


def test_whisper_hears_prompts_and_not_silence(fetched):
    keys = ("whisper_tiny_en", "asterisk_prompts", "asterisk_transcripts", "librivox_clips")
    benchmark = PerceptionSpeech("int16", False, 6)
    wrong = total = 0
    for item in benchmark.items(fetched(*keys), 0):
        heard, wanted = benchmark.perceive(item, benchmark.samples[item.id]), words(benchmark.texts[item.id])
        wrong, total = wrong + edits(words(heard.text), wanted), total + len(wanted)
        assert heard.mel.shape == (80, 2 * len(heard.states)) and heard.states.shape[1] == 384
    assert wrong < 0.2 * total
    silence = benchmark.whisper.hear(np.zeros(16_000, np.int16))
    assert len(words(silence.text)) < 4
    clip = benchmark.samples[item.id]
    flac = AudioFile("flac", 0, 16_000)
    again = benchmark.perceive(item, flac.decode(flac.encode(clip)))
    assert again.text == heard.text and np.array_equal(again.states, heard.states)
