"""Dream's checkpoints: the tokenizer in parts against that of transformers, and what does not belong together."""

import json

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from parsimony.assets import rehearsal
from parsimony.errors import UserError
from parsimony.methods.diffusion.static_unmasking import Static
from parsimony.models.dream import BytePairs, Dream

ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """Byte pairs of this project's own texts, and added tokens behind them."""
    folder = tmp_path_factory.mktemp("dream")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    backend.train([str(root / name) for name in ("README.md", "CHANGELOG.md")], trainer)
    backend.model.save(str(folder))
    first = backend.get_vocab_size()
    added = {first + n: {"content": token, "special": True} for n, token in enumerate(ADDED)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return folder


PIECES = [
    *ADDED,
    "the pipeline's",
    " models",
    "I'LL",
    "12345",
    "\r\n\n",
    "  \t ",
    "nai\u0308ve",
    "e\u0301",
    "日本",
    "!?…",
]


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_ids_and_texts_are_those_of_transformers(folder, text):
    theirs = _theirs(folder)
    ours = BytePairs(folder)
    assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert len(ours) == len(theirs)


_known = {}


def _theirs(folder):
    if folder not in _known:
        merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
        _known[folder] = Qwen2Tokenizer(vocab=json.loads((folder / "vocab.json").read_text()), merges=merges)
        _known[folder].add_tokens([tokenizers.AddedToken(token, special=True) for token in ADDED[1:]])
    return _known[folder]


def test_texts_come_back_and_special_tokens_are_one_token(folder):
    ours = BytePairs(folder)
    text = "<|im_start|>user\nWhat's 12 + 3?<|im_end|>\n<|mask|>"
    ids = ours.encode(text)
    assert ours.decode(ids) == text and ids[0] == ours.id("<|im_start|>") and ids[-1] == ours.id("<|mask|>")


def test_files_that_do_not_belong_together_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="vocab.json and merges.txt are no byte pairs to read"):
        BytePairs(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    wrong = {"added_tokens_decoder": {"5": {"content": "<|mask|>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=r"'<\|mask\|>' gets the number 900, .* says 5; are .* of one model"):
        BytePairs(tmp_path)


def test_a_stand_in_is_loaded_and_decoded_with_shifted_outputs(tmp_path):
    rehearsal.checkpoint(tmp_path, {}, "dream")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "Dream"
    assert not (tmp_path / "tokenizer.json").exists()
    model = Dream.load(tmp_path, "<|mask|>", ["<|im_end|>", "<|endoftext|>"], "float32", shifted=True)
    assert isinstance(model, Dream) and model.shifted
    said = model.tokenizer.chat([{"role": "user", "content": "12 + 3?"}])
    assert said.endswith("<|im_start|>assistant")
    generation = Static(per_step=2, block=8).build(model, None).generate(model.encode(said), 8, None)
    assert generation.cost.passes == 4 and not bool((generation.tokens == model.mask_id).any())
    assert generation.tokens.dtype == torch.int64
