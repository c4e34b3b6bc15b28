"""The whole pipeline on a tiny model: runs, does nothing twice, reruns what changed, takes a new method."""

import json
import re

import pytest

from parsimony import records

CELLS = {
    f"{benchmark}--smollm2_135m_instruct--{method}"
    for benchmark, method in (
        ("spec_mix", "greedy"),
        ("spec_mix", "prompt_lookup"),
        ("spec_mix", "token_recycling"),
        ("spec_mix_speed", "prompt_lookup"),
        ("spec_mix_speed", "token_recycling"),
        ("latency", "greedy"),
        ("wiki_nll", "greedy"),
    )
}


def planned(output: str) -> set[str]:
    return set(re.findall(r"^\s*(?:Job \d+: )?cell (\S+)", output, re.M))


def test_run_rerun_and_edit(project):
    project.snakemake()
    report = project.folder / "results" / "tiny" / "report"
    ledger = json.loads((report / "ledger.json").read_text())
    assert {row["paper"] for row in ledger} == set(p.stem for p in (project.folder / "configs/paper").glob("*.yaml"))
    verdicts = {row["claim"]: row["verdict"] for row in ledger}
    assert verdicts["tr_abstract_memory"] == "reproduced"
    assert len(json.loads((report / "coverage.json").read_text())) == 53
    for name in ("spec_mix", "spec_mix_speed", "latency"):
        assert list((report / "figures").glob(f"{name}*.pdf"))
    table = (report / "tables" / "spec_mix_mean_accepted_tokens.md").read_text()
    assert "skipped*" in table and "takes no data from source" in table
    assert "suite tiny takes no data" in (report / "index.html").read_text()

    assert "Nothing to be done" in project.snakemake()
    project.edit("configs/method/token_recycling.yaml", "family:", "# a comment\nfamily:")
    project.edit("src/parsimony/methods/autoregressive/token_recycling.py", "K = 8\n", "K = 8  # another comment\n")
    assert "Nothing to be done" in project.snakemake()
    project.edit("src/parsimony/methods/autoregressive/token_recycling.py", "K = 8", "K = 2 * 4")
    output = project.snakemake("--dry-run")
    assert planned(output) == {cell for cell in CELLS if cell.endswith("token_recycling")}, output

    published = project.folder / "results" / "published"
    project.edit("src/parsimony/methods/autoregressive/token_recycling.py", "K = 2 * 4", "K = 8")
    assert project.parsimony("publish")[0] == 0
    first = {path: path.read_bytes() for path in published.rglob("*") if path.is_file()}
    assert any(path.suffix == ".pdf" for path in first)
    project.snakemake("published")
    assert {path: path.read_bytes() for path in published.rglob("*") if path.is_file()} == first

    # What was skipped or not measured this time stays as it was published, and without either nothing is published.
    name = "latency--smollm2_135m_instruct--greedy.parquet"
    measured = project.folder / "results" / "tiny" / "cells" / name
    frame, facts = records.read(measured)
    rows = frame.assign(status="skipped", reason="no module").to_dict("records")
    records.publish(records.table_of(rows), measured, facts)
    for _ in range(2):
        assert project.parsimony("publish")[0] == 0
        assert {path: path.read_bytes() for path in published.rglob("*") if path.is_file()} == first
        measured.unlink(missing_ok=True)
    (published / "records" / name).unlink()
    status, output = project.parsimony("publish")
    assert status == 2 and output.count("\n") == 1 and "neither measured nor published" in output
    assert (published / "records" / name.replace("latency", "spec_mix")).exists()


def test_a_toy_method_is_one_file_and_one_row(project):
    """docs/adding_a_method.md, word for word."""
    page = (project.folder / "docs" / "adding_a_method.md").read_text()
    blocks = re.findall(r"`((?:src|configs)/\S+)`:\n\n```\w+\n(.*?)```", page, re.S)
    assert len(blocks) == 2
    for name, content in blocks:
        project.write(name, content)
    project.edit("configs/paper/token_recycling.yaml", "[greedy, prompt_lookup, token_recycling]", "[greedy, echo]")
    project.edit("configs/paper/token_recycling.yaml", "[prompt_lookup, token_recycling]", "[echo]")
    points = "    points: {prompt_lookup: [ngram_2, auto], token_recycling: [tree_80, tree_16, auto]}\n"
    project.edit("configs/paper/token_recycling.yaml", points, "")
    status, output = project.parsimony("plan", "--format", "json")
    assert status == 0 and "spec_mix--smollm2_135m_instruct--echo" in {c["id"] for c in json.loads(output)["cells"]}
    project.snakemake()
    page = (project.folder / "results/tiny/report/index.html").read_text()
    assert ">echo<" in page and "echo 4" in page
    table = (project.folder / "results/tiny/report/tables/spec_mix.csv").read_text()
    assert table.count("\necho,") == 2


@pytest.mark.parametrize("line", ["return VerifyLoop(model, EchoDrafter(self.length))"])
def test_the_conformance_suite_finds_the_toy_method(project, root, line):
    import shutil
    import subprocess
    import sys

    page = (project.folder / "docs" / "adding_a_method.md").read_text()
    for name, content in re.findall(r"`((?:src|configs)/\S+)`:\n\n```\w+\n(.*?)```", page, re.S):
        project.write(name, content)
    shutil.copytree(root / "tests", project.folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", project.folder)

    def conformance() -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance", "-k", "echo"]
        return subprocess.run(command, cwd=project.folder, env=project.environment, text=True, capture_output=True)

    good = conformance()
    assert good.returncode == 0 and "passed" in good.stdout, good.stdout
    # A method that says it is lossless and is not turns the suite red.
    broken = (
        "loop = VerifyLoop(model, EchoDrafter(self.length))\n"
        "        loop.generate = lambda p, n, r: wrong(loop, p, n, r)\n"
        "        return loop"
    )
    project.edit("src/parsimony/methods/autoregressive/echo.py", line, broken)
    path = project.folder / "src/parsimony/methods/autoregressive/echo.py"
    path.write_text(path.read_text() + "\n\ndef wrong(loop, p, n, r):\n    out = VerifyLoop.generate(loop, p, n, r)\n"
                    "    out.tokens[-1:] ^= 1\n    return out\n")  # fmt: skip
    assert "test_lossless_methods_equal_their_reference" in conformance().stdout
