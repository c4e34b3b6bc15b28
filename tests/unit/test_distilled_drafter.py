"""The recipe of the distilled drafter: it trains what the decoder runs, it learns, and its floor holds."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from parsimony.errors import UserError
from parsimony.methods.autoregressive.draft_model import DraftNetwork
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.recipes.distilled_drafter import Answers, Network, agreement, distil, frequent, train

SIZE = {"layers": 2, "heads": 4, "kv_heads": 2, "mlp": 24}


def talks_of(tiny, count):
    rng = np.random.default_rng(0)
    prompts = [torch.from_numpy(rng.integers(2, 300, 6)) for _ in range(count)]
    return [(prompt, VerifyLoop(tiny).generate(prompt, 14, rng).tokens) for prompt in prompts]


@pytest.fixture(scope="module")
def sources(tiny, tiny_folder, tmp_path_factory):
    """A tiny target, twenty of its own answers, and a short encyclopaedia."""
    folder = tmp_path_factory.mktemp("sources")
    talks = talks_of(tiny, 20)
    whole = [torch.cat(pair) for pair in talks]
    columns = {"tokens": torch.cat(whole), "prompt_lengths": torch.full((20,), 6)}
    columns["lengths"] = torch.tensor(list(map(len, whole)))
    save_file({name: column.int() for name, column in columns.items()}, folder / "outputs.safetensors")
    articles = {str(n): {"title": f"river {n}", "extract": f"River {n} flows to the sea. " * 4} for n in range(30)}
    (folder / "summaries.json").write_text(json.dumps(articles))
    return {"model": tiny_folder, "outputs": folder, "text": folder}


PARAMS = dict(model="model", outputs="outputs", text="text", stop=["<|im_end|>"], layers=2, heads=4, kv_heads=2, mlp=24,
              head_tokens=250, length=20, batch=8, text_share=0.25, rate=3e-3, seed=0)  # fmt: skip


def test_the_same_seed_ships_the_same_drafter_above_its_floor(sources, tiny, tmp_path):
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        distil(tmp_path / name, sources, **PARAMS, steps=8, floor=0.0)
        made.append([(tmp_path / name / file).read_bytes() for file in ("drafter.safetensors", "config.json")])
    assert made[0] == made[1]
    network = DraftNetwork.distilled(tiny.decoder, tmp_path / "first")
    assert len(network.tokens) == 250 and set(tiny.stop_ids) <= set(network.tokens.tolist())
    with pytest.raises(UserError, match="of the target's tokens; the floor is 1.01"):
        distil(tmp_path, sources, **PARAMS, steps=1, floor=1.01)


def test_what_is_trained_is_what_the_decoder_runs(tiny, tmp_path):
    torch.manual_seed(0)
    tokens = torch.arange(0, 300, 2)
    network = Network(tiny.decoder.embedding, tokens, tiny.decoder.norm, tiny.decoder.config, SIZE)
    for weight in network.weights.values():
        weight.data = weight.bfloat16().float()  # as it is shipped
    network.save(tmp_path, {})
    theirs = DraftNetwork.distilled(tiny.decoder, tmp_path)
    ids = torch.randint(0, 300, (1, 25), generator=torch.Generator().manual_seed(0))
    logits = theirs.decoder.forward(ids, theirs.decoder.cache(25))
    ours = network.log_odds(network.hidden(ids))
    torch.testing.assert_close(logits.log_softmax(-1), ours, atol=1e-4, rtol=0)
    assert torch.equal(theirs.best(logits), tokens[ours.argmax(-1)])


def test_it_learns_the_targets_answers(tiny):
    torch.manual_seed(0)
    talks = talks_of(tiny, 8)
    tokens = frequent([answer for _, answer in talks], 250, tiny.stop_ids, 300)
    network = Network(tiny.decoder.embedding, tokens, tiny.decoder.norm, tiny.decoder.config, SIZE)
    answers = Answers(tiny.decoder, talks, tokens, 20)
    learnt = answers.chosen >= 0
    assert learnt.sum() == sum(len(answer) for _, answer in talks) and (answers.chosen[:, :5] == -1).all()
    written = [
        token for (_, answer), row in zip(talks, answers.chosen, strict=True) for token in row[row >= 0].tolist()
    ]
    assert written == [token for _, answer in talks for token in answer.tolist()]
    before = agreement(network, answers)
    train(network, answers, torch.arange(300), 20, 8, 60, 0.0, 3e-3, np.random.default_rng(0))
    assert before < 0.2 and agreement(network, answers) > 0.5
