"""`parsimony reproduce` and `parsimony debug` on a tiny model: a paper, an item, and unfit requests."""

import re
import subprocess
import sys

import pytest

CELL = "spec_mix--smollm2_135m_instruct--token_recycling"


@pytest.fixture
def measured(project):
    """The project with one paper's study measured by the command that is tested."""
    status, output = project.parsimony("reproduce", "token_recycling", "suite=tiny")
    assert status == 0, output
    return project, output


def test_reproduce_measures_the_study_and_prints_its_claims_then_debug_cuts_an_item(measured):
    project, output = measured
    rows = [line for line in output.splitlines() if line.startswith("| token_recycling ")]
    assert any("tr_abstract_memory" in row and "reproduced" in row for row in rows)
    assert not re.search(r"^\| (?!token_recycling|paper|-)", output, re.M)
    assert not (project.folder / "results/tiny/report").exists()

    frame = project.records(CELL)
    item = sorted(set(frame["item"]) - {""})[2]
    status, output = project.parsimony("debug", CELL, item, "suite=tiny")
    assert status == 0, output
    (folder,) = (project.folder / "debug").iterdir()
    moved = folder.rename(project.folder.parent / "elsewhere")
    (project.folder / "resources").rename(project.folder / "gone")
    done = subprocess.run([sys.executable, "reproduce.py"], cwd=moved, env={"PATH": ""}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    counts = [line for line in lines if line[1] in ("passes", "step_tokens", "accepted", "drafted", "tokens")]
    assert {line[0] for line in counts} == {"tree_80", "tree_8", "auto"}
    # Whatever is counted is counted the same again, and it was recorded.
    assert all(now == before for _, _, now, before, *_ in counts)


def test_what_cannot_be_cut_is_one_sentence(project):
    status, output = project.parsimony("debug", CELL, "gsm8k_sample_0", "suite=tiny")
    assert status == 2 and output.count("\n") == 1 and "is not fetched" in output
    status, output = project.parsimony("reproduce", "token_recyclin", "suite=tiny")
    assert status == 2 and output.count("\n") == 1 and "did you mean 'token_recycling'" in output
    status, output = project.parsimony("reproduce", "gear", "suite=tiny")
    assert status == 2 and output.count("\n") == 1 and "suite 'tiny' does not name it" in output


def test_doctor_says_what_each_suite_can_run(project):
    status, output = project.parsimony("doctor")
    assert status == 0, output
    for fact in ("packages", "processor", "memory", "disk", "gpu", "triton", "slurm", "sandbox", "latex", "hub"):
        assert re.search(rf"^{fact} ", output, re.M), fact
    assert re.search(r"^suite tiny: \d+ of \d+ cells of 1 papers can run whole", output, re.M)
    project.edit("configs/method/token_recycling.yaml", "family:", "module: nowhere\nfamily:")
    _, output = project.parsimony("doctor")
    assert re.search(r"^  token_recycling: \d+ of \d+ cells .*'nowhere' is not installed", output, re.M)
