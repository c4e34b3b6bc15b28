"""Shipped masked models keep the floors of their recipes."""

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from parsimony.methods.diffusion.recap import Recap, RecapSampler
from parsimony.models.digit_judge import Judge
from parsimony.models.masked_image import CLASSES, MaskedImage
from parsimony.plan import make_plan
from parsimony.recipes import task_mix

ASSETS = ROOT / "results" / "published" / "assets"


@pytest.mark.parametrize("key", ["symbol_lists", "symbol_lists_twin", "sentences", "puzzles", "sums", "json_and_code"])
def test_tasks_with_one_right_answer_are_solved_one_token_at_a_time(key):
    params = make_plan([], ROOT).lock[key].params
    found = task_mix.accuracies(ASSETS / key, params["mix"], params["causal"], count=20)
    assert not {task: found[task] for task, floor in params["floors"].items() if found[task] < floor}
    assert min(found.values()) >= 0.9  # those with several right answers too


def test_generated_digits_show_their_class():
    import numpy as np

    weights = load_file(ASSETS / "digits_judge" / "judge.safetensors")
    judge, wanted = Judge(), torch.arange(CLASSES).repeat_interleave(10)
    judge.load_state_dict({name: weights[name] for name in judge.state_dict()})
    model = MaskedImage.load(ASSETS / "digits_maskgit", "float32")
    floor = make_plan([], ROOT).lock["digits_maskgit"].params["floor"]
    for settings in (Recap(local=0), Recap()):
        images, _ = RecapSampler(model, settings).generate_images(wanted, np.random.default_rng(0))
        assert float((judge.eval()(images).argmax(-1) == wanted).float().mean()) >= floor
