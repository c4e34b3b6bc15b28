"""Suites of the published scale: what they plan, what stands in for models and data, and what is refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from parsimony.assets import rehearsal
from parsimony.errors import UserError
from parsimony.models.language import Language
from parsimony.plan import make_plan
from parsimony.resources import ask, minutes, weights_gb


@pytest.fixture(scope="module")
def cluster(root):
    return make_plan(["suite=cluster"], root)


@pytest.fixture(scope="module")
def rehearsed(root):
    return make_plan(["suite=cluster", "scale=rehearsal"], root)


def test_a_rehearsal_goes_through_the_same_cells_with_nothing_from_the_hub(cluster, rehearsed):
    assert list(cluster.cells) == list(rehearsed.cells) and rehearsed.name == "cluster_rehearsal"
    assert {key: cell.points for key, cell in cluster.cells.items()} == {
        key: cell.points for key, cell in rehearsed.cells.items()
    }
    assert not [key for key in rehearsed.assets if rehearsed.lock[key].source == "hub"]
    assert all(cluster.cells[key].version != rehearsed.cells[key].version for key in cluster.cells)


def test_every_paper_of_the_suite_has_cells(cluster):
    assert all(cluster.cells_of(paper) for paper in cluster.papers)


def test_weights_that_are_not_locked_are_planned_by_their_parameters(cluster, rehearsed):
    cell = "long_bench--llama_3_1_8b_instruct--full_cache"
    assert weights_gb(cluster, cell) == pytest.approx(16.06)
    assert ask(cluster, cell)["gpu"] == 1
    assert weights_gb(rehearsed, cell) < 0.01 and ask(rehearsed, cell)["gpu"] == 0


def test_other_suites_and_scales_are_refused(root):
    with pytest.raises(UserError, match="scale=rehearsal does not fit configs/suite/local.yaml, which is of scale"):
        make_plan(["suite=local", "scale=rehearsal"], root)
    with pytest.raises(UserError, match="scale=published does not fit configs/suite/cluster.yaml"):
        make_plan(["suite=cluster", "scale=published"], root)


def test_a_paper_without_a_study_of_the_scale_is_refused(root):
    with pytest.raises(UserError, match=r"configs/paper/recap.yaml: no study is of the scale 'published'"):
        make_plan(["suite=cluster", "suite.papers=[recap]"], root)


def test_an_asset_of_the_hub_without_a_stand_in_is_refused(root):
    from parsimony.assets.lock import read_lock

    plan = make_plan(["suite=cluster", "scale=rehearsal"], root)
    lock = read_lock(root / "configs/assets.lock.yaml")
    plan.lock["gsm8k"] = lock["gsm8k"].model_copy(update={"rehearsal": None})
    with pytest.raises(UserError, match="asset 'gsm8k' has no stand-in for a rehearsal"):
        plan.played_by("gsm8k")


def test_points_of_more_tokens_a_pass_ask_for_less_time(cluster):
    free, bound = (f"humaneval_cpp--llada_8b_instruct--{method}" for method in ("unconstrained", "cfg_constrained"))
    assert [len(cluster.cells[key].points) for key in (free, bound)] == [4, 5]
    passes = 1 / 8 + 1 / 4 + 1 / 2 + 1, 2 * (1 / 8 + 1 / 8 + 1 / 4 + 1 / 2 + 1)  # constrained ones beside free ones
    took = [minutes(cluster, key) - 1 for key in (free, bound)]
    assert took[1] / took[0] == pytest.approx(passes[1] / passes[0])


@pytest.mark.parametrize("family", rehearsal.FAMILIES)
def test_stand_ins_are_read_by_transformers_alike(family, tmp_path):
    rehearsal.checkpoint(tmp_path, {}, family)
    kind, turn, special = rehearsal.FAMILIES[family]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    if kind in ("llada", "Dream"):
        return  # by tests of masked models; transformers has no such class
    model = Language.load(tmp_path, special[1:2], "float32")
    text = "Hälloho, 3 worlds!"
    assert model.decode(model.encode(text)).strip() == text
    said = [{"role": "user", "content": text}]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = model.chat(said)
    assert ids.tolist() == theirs.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    network = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        expected = network(ids[None]).logits[0, -1]
    assert torch.allclose(model.next_logits(ids, ids[:0]), expected, atol=1e-4)


def test_unknown_families_and_data_sets_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no family 'gpt' to rehearse with; valid: llama_3"):
        rehearsal.checkpoint(tmp_path, {}, "gpt")
    with pytest.raises(UserError, match="there are no rows of 'squad' to rehearse with"):
        rehearsal.rows(tmp_path, {}, "squad", [])


def test_a_rehearsal_is_not_published(rehearsed, tmp_path):
    from parsimony.report import publish

    with pytest.raises(UserError, match="a rehearsal measures nothing: its records are not published"):
        publish(rehearsed, tmp_path)
