"""Cells that are killed, doubled or fed damaged files: nothing is lost, nothing is computed twice."""

import random
import signal
import time
from collections import Counter

import pytest
from project import Project

from parsimony import records

CELL = "spec_mix--smollm2_135m_instruct--token_recycling"
NEEDS = ("latency--smollm2_135m_instruct--greedy", "spec_mix--smollm2_135m_instruct--greedy")
ASSETS = ("smollm2_135m_instruct", "gsm8k_sample", "smollm2_recycling_calibration")


@pytest.fixture(scope="module")
def prepared(root, tiny_folder, tmp_path_factory):
    """A project in which everything that the cell needs is there."""
    project = Project(tmp_path_factory.mktemp("prepared"), root, tiny_folder)
    for asset in ASSETS:
        assert project.parsimony("asset", asset)[0] == 0
    for cell in NEEDS:
        assert project.parsimony("cell", cell)[0] == 0
    return project


@pytest.fixture
def ready(prepared, tmp_path):
    return prepared.copied(tmp_path)


def published(project):
    folder = project.folder / "results" / "tiny"
    return [(folder / kind / f"{CELL}.parquet") for kind in ("cells", "outputs")]


def measured(output: str) -> list[str]:
    return [line.split()[2].rstrip(",") for line in output.splitlines() if line.startswith(CELL)]


def test_killed_anywhere_the_cell_ends_with_the_same_bytes(ready):
    status, output = ready.parsimony("cell", CELL)
    assert status == 0 and len(measured(output)) == 6
    whole = [path.read_bytes() for path in published(ready)]
    for path in published(ready):
        path.unlink()
    rng, seen, kills = random.Random(0), Counter(), 0
    for _ in range(12):
        process = ready.start("cell", CELL)
        stop_after, lines = rng.randint(0, 2), []
        if kills < 5:
            for line in process.stdout:
                lines.append(line)
                if len(measured("".join(lines))) > stop_after:
                    break
            time.sleep(rng.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            kills += 1
        lines += process.communicate()[0].splitlines(keepends=True)
        seen.update(measured("".join(lines)))
        if process.returncode == 0:
            break
    assert kills >= 2
    assert [path.read_bytes() for path in published(ready)] == whole
    # A shard is announced behind its rename, so a kill in between hides a line but never repeats one.
    assert max(seen.values()) == 1
    assert not (ready.folder / "results/tiny/journal" / CELL).exists()


def test_two_runs_at_once_measure_once(ready):
    runs = [ready.start("cell", CELL) for _ in range(2)]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sorted(len(measured(output)) for output in outputs) == [0, 6]


def test_a_corrupt_asset_is_one_sentence(ready):
    path = ready.folder / "resources" / "smollm2_135m_instruct" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    status, output = ready.parsimony("cell", CELL)
    assert status == 2
    assert output.count("\n") == 1 and "asset 'smollm2_135m_instruct'" in output and "SHA-256" in output
    assert f"rm -r {path.parent}" in output


def test_a_damaged_reference_cell_is_one_sentence(ready):
    path = ready.folder / "results/tiny/cells" / f"{NEEDS[1]}.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    status, output = ready.parsimony("cell", CELL)
    assert status == 2 and output.count("\n") == 1 and "truncated" in output and NEEDS[1] in output


def test_a_missing_package_is_one_sentence(ready):
    ready.write("src/tokenizers.py", "raise ModuleNotFoundError('gone', name='tokenizers')\n")
    ready.write("src/transformers.py", "import tokenizers\n")
    status, output = ready.parsimony("cell", CELL)
    assert status == 2, output
    assert output.count("\n") == 1 and "package 'tokenizers' is missing" in output and "make install" in output


def test_without_its_module_a_method_is_skipped_until_the_module_is_there(ready):
    ready.edit("configs/method/token_recycling.yaml", "family:", "module: nowhere\nfamily:")
    status, output = ready.parsimony("cell", CELL)
    assert status == 0 and not measured(output)
    frame, _ = records.read(published(ready)[0])
    assert set(frame["status"]) == {"skipped"} and frame["reason"].str.contains("'nowhere' is not installed").any()
    ready.write("src/nowhere.py", "")
    assert ready.parsimony("cell", CELL)[0] == 0
    assert "ok" in set(records.read(published(ready)[0])[0]["status"])


def test_a_misspelt_cell_names_the_nearest(project):
    status, output = project.parsimony("cell", CELL.replace("recycling", "recycing"))
    assert status == 2 and output.count("\n") == 1 and f"did you mean {CELL!r}" in output
