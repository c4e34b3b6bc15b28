"""The corpus of own outputs: batched greedy answers are the single ones, floors hold, no benchmark has the subjects."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from parsimony.errors import UserError
from parsimony.methods.autoregressive.verify import VerifyLoop
from parsimony.plan import read_lock
from parsimony.recipes import own_outputs


def prompts():
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(2, 300, n)) for n in (1, 9, 30, 4)]


def test_a_batch_answers_as_each_prompt_alone(tiny):
    answers, nats = own_outputs.answer(tiny, prompts(), 24)
    alone = [VerifyLoop(tiny).generate(prompt, 24, np.random.default_rng(0)).tokens for prompt in prompts()]
    assert [answer.tolist() for answer in answers] == [tokens.tolist() for tokens in alone]
    loop = VerifyLoop(tiny)
    each = [loop.nll(torch.cat(pair))[len(pair[0]) - 1 :].sum() for pair in zip(prompts(), alone, strict=True)]
    assert nats == pytest.approx(float(sum(each)), rel=1e-4)


def test_answers_end_behind_the_turn(tiny):
    free, _ = own_outputs.answer(tiny, prompts(), 24)
    stop = int(free[1][5])
    bounded = type(tiny)(tiny.decoder, tiny.folder, tiny.stop)
    bounded.__dict__["stop_ids"] = frozenset({stop})
    answers, _ = own_outputs.answer(bounded, prompts(), 24)
    for answer, whole in zip(answers, free, strict=True):
        end = whole.tolist().index(stop) + 1 if stop in whole else 24
        assert answer.tolist() == whole[:end].tolist()


def test_the_recipe_writes_what_it_read_and_refuses_below_its_floors(tiny_folder, tmp_path):
    articles = {n: {"title": f"subject {n}", "extract": "x" * (100 + 300 * (n % 2))} for n in range(40)}
    (tmp_path / "summaries.json").write_text(json.dumps(articles))
    inputs = {"model": tiny_folder, "text": tmp_path}
    given = {"model": "model", "text": "text", "stop": ["<|im_end|>"], "prompts": 6, "limit": 12, "batch": 4, "seed": 0}
    own_outputs.write(tmp_path, inputs, **given, floors=[0, 0, 100])
    pairs = own_outputs.read(tmp_path)
    assert len(pairs) == 6 and all(1 <= len(answer) <= 12 for _, answer in pairs)
    for n, floors in enumerate(([13, 0, 100], [0, 1.1, 100], [0, 0, 0.01])):
        with pytest.raises(UserError, match="does not answer its prompts"):
            own_outputs.write(tmp_path, inputs, **given | {"seed": n}, floors=floors)


def test_the_shipped_corpus_meets_the_floors(root):
    row = read_lock(root)["smollm2_own_outputs"]
    folder = root / "results" / "published" / "assets" / "smollm2_own_outputs"
    length, distinct, nll = row.params["floors"]
    pairs = own_outputs.read(folder)
    answers = [tuple(answer.tolist()) for _, answer in pairs]
    assert len(pairs) == row.params["prompts"]
    assert sum(map(len, answers)) / len(answers) >= length
    assert len(set(answers)) / len(answers) >= distinct
    assert max(map(len, answers)) <= row.params["limit"]
    with safe_open(folder / "outputs.safetensors", "pt") as file:
        assert float(file.metadata()["mean_nll"]) <= nll
