"""The plan: fast, closed, and clear about what is wrong."""

import shutil
import subprocess
import sys

import pytest
import yaml

from parsimony import fingerprint
from parsimony.config import Paper, Suite, parse, schemas
from parsimony.errors import UserError
from parsimony.instantiate import instantiate
from parsimony.plan import make_plan, read_papers
from parsimony.rows import read_rows


@pytest.fixture
def copy(root, tmp_path):
    """The configuration in a folder of its own, to be broken."""
    shutil.copytree(root / "configs", tmp_path / "configs")
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_quick_suite_has_the_spine(root):
    plan = make_plan([], root)
    assert plan.name == "quick"
    assert "spec_mix--smollm2_135m_instruct--token_recycling" in plan.cells
    needs = plan.cells["spec_mix--smollm2_135m_instruct--token_recycling"].needs
    assert set(needs) == {f"{b}--smollm2_135m_instruct--greedy" for b in ("latency", "spec_mix")}
    assert all(plan.lock[key].source in ("package", "generated", "shipped") for key in plan.assets)
    order = list(plan.cells)
    assert all(order.index(need) < order.index(key) for key, cell in plan.cells.items() for need in cell.needs)


def test_planning_imports_neither_torch_nor_transformers(root):
    code = "import sys; from parsimony.cli import main; main(['plan']); "
    code += "print([m in sys.modules for m in ('torch', 'transformers')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[False, False]\n")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["suite=quik"], ["configs/suite/quik.yaml", "did you mean 'quick'"]),
        (["method.token_recycling.params.hott=1"], ["token_recycling.yaml", "'hott'", "did you mean 'hot'"]),
        (["methd.greedy.lossless=true"], ["methd"]),
        (["method.tokn_recycling.params.hot=1"], ["no method 'tokn_recycling'", "did you mean 'token_recycling'"]),
        (["suite.pers=[]"], ["'pers'", "did you mean 'peers'"]),
    ],
)
def test_a_wrong_override_names_the_nearest(root, overrides, words):
    with pytest.raises(UserError) as error:
        make_plan(overrides, root)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("method/token_recycling.yaml", "lossless:", "losless:", ["token_recycling.yaml", "mean 'lossless'"]),
        ("method/token_recycling.yaml", "{nodes: 32}", "{node: 32}", ["'node'", "did you mean 'nodes'"]),
        ("method/greedy.yaml", "parsimony.methods", "os.methods", ["greedy.yaml", "outside 'parsimony.'"]),
        ("method/greedy.yaml", "greedy.Greedy", "greedy.Gredy", ["greedy.yaml", "not defined"]),
        ("suite/quick.yaml", "[ngram_2,", "[ngram_22,", ["suite/quick.yaml", "did you mean 'ngram_2'"]),
        ("suite/quick.yaml", "spec_mix: {items: 1", "spec_mix: {itms: 1", ["suite/quick.yaml", "did you mean 'items'"]),
        ("paper/token_recycling.yaml", "benchmarks: [spec_mix_speed]", "benchmarks: [wiki_nll]",
         ["paper/token_recycling.yaml", "'prompt_lookup' does not fit benchmark 'wiki_nll'", "needs LanguageModel"]),
        ("paper/token_recycling.yaml", "[greedy, prompt_lookup,", "[greedy, promt_lookup,", ["'prompt_lookup'"]),
        ("assets.lock.yaml", "licence: MIT", "license: MIT", ["assets.lock.yaml", "did you mean 'licence'"]),
    ],
)  # fmt: skip
def test_a_wrong_file_gives_one_sentence(copy, file, old, new, words):
    edit(copy / "configs" / file, old, new)
    with pytest.raises(UserError) as error:
        make_plan([], copy)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_an_override_changes_a_value_and_may_add_a_row(root):
    row = [
        "_target_=parsimony.methods.autoregressive.greedy.Greedy",
        "family=image",
        "implements=[Codec]",
        "points={a: {}}",
    ]
    added = [f"+method.again.{part}" for part in row]
    plan = make_plan(["method.token_recycling.params.hot=false", "suite.papers=[token_recycling]", *added], root)
    assert plan.methods["token_recycling"].params["hot"] is False and plan.methods["again"].points == {"a": {}}
    assert list(plan.methods) == sorted(plan.methods)


def test_rows_are_read_as_hydra_reads_them(root, tmp_path):
    from omegaconf import OmegaConf

    files = [file for group in ("method", "benchmark", "model", "suite", "paper") for file in
             (root / "configs" / group).glob("*.yaml")]  # fmt: skip
    assert all(read_rows(file) == OmegaConf.to_container(OmegaConf.load(file)) for file in files)
    file = tmp_path / "row.yaml"
    file.write_text("{a: 1e-7, b: -2E+3, c: 1.5e3, d: 1e, e: 'x'}")
    assert read_rows(file) == {"a": 1e-7, "b": -2000.0, "c": 1500.0, "d": "1e", "e": "x"}
    file.write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(UserError, match="row.yaml is not YAML: key 'c' stands twice"):
        read_rows(file)
    file.write_text("? [a, b]\n: 1\n")
    with pytest.raises(UserError, match="not YAML: while constructing a mapping"):
        read_rows(file)
    file.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="not YAML: could not determine a constructor"):
        read_rows(file)


def test_what_is_made_of_excluded_sources_is_excluded(root):
    quick, local = make_plan([], root), make_plan(["suite=local"], root)
    cell = "photographs--samples--jpeg"
    assert quick.lock["photographs_debian"].source == "generated"
    assert quick.cells[cell].assets == ("photographs",)
    assert quick.excluded("photographs_debian") == ["debian"] and not local.excluded("photographs_debian")
    assert local.cells[cell].assets == ("photographs", "photographs_debian")


def test_a_comment_changes_no_version_and_a_value_does(copy):
    before = make_plan([], copy).cells
    file = copy / "configs" / "method" / "token_recycling.yaml"
    file.write_text("# a comment\n" + file.read_text())
    assert make_plan([], copy).cells == before
    edit(file, "hot: true", "hot: false")
    after = make_plan([], copy).cells
    changed = {cell.method for key, cell in after.items() if cell.version != before[key].version}
    assert changed == {"token_recycling"}


def test_what_tests_do_in_haste_changes_no_version(copy):
    before = make_plan([], copy).cells
    edit(copy / "configs/method/greedy.yaml", "points:", "hasty: {}\npoints:")
    edit(copy / "configs/method/token_recycling.yaml", "points:", "hasty: {hot: false}\npoints:")
    assert {key: cell.version for key, cell in make_plan([], copy).cells.items()} == {
        key: cell.version for key, cell in before.items()
    }
    edit(copy / "configs/method/greedy.yaml", "hasty: {}", "hasty: {haste: 1}")
    with pytest.raises(UserError, match="hasty: 'haste' is not among the params"):
        make_plan([], copy)


def test_codecs_are_bound_to_a_model_without_an_asset(copy):
    groups = {
        "method/same.yaml": "family: image\nimplements: [Codec]\nlossless: true\npoints: {same: {}}\n",
        "benchmark/round_trip.yaml": "needs: Codec\ntitle: Round trip\n",
    }
    for file, text in groups.items():
        target = "_target_: parsimony.models.samples.Samples\narchitecture: samples\n"
        (copy / "configs" / file).write_text(target + text)
    paper = copy / "configs/paper/iscs.yaml"
    study = "study: [{models: [samples], methods: [same], benchmarks: [round_trip]}]\n"
    paper.write_text(paper.read_text().split("\nstudy:")[0] + "\n" + study)
    suite = ["suite.papers=[iscs]", "suite.benchmarks=[round_trip]"]
    cell = make_plan(suite, copy).cells["round_trip--samples--same"]
    assert cell.assets == () and cell.needs == ()
    edit(paper, "methods: [same]", "methods: [greedy]")
    with pytest.raises(UserError, match="method 'greedy' is for models of architecture 'decoder' and does not fit"):
        make_plan(suite, copy)


def test_code_versions_ignore_what_does_nothing_and_follow_imports(tmp_path, monkeypatch):
    package = tmp_path / "parsimony"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from parsimony.b import f\n\ndef g():\n    return f()\n")
    (package / "b.py").write_text("def f():\n    return 1\n")
    monkeypatch.setattr(fingerprint, "SOURCE", tmp_path)

    def version():
        fingerprint._reads.cache_clear()
        return fingerprint.code_version("parsimony.a.g")

    first = version()
    (package / "b.py").write_text('def f():\n    """Say one."""\n    # always\n    return 1\n')
    assert version() == first
    (package / "b.py").write_text("class Says(Protocol):\n    def f(self): ...\n\n\ndef f():\n    return 1\n")
    assert version() == first
    (package / "b.py").write_text("def f():\n    return 2\n")
    assert version() != first
    fingerprint._reads.cache_clear()


def test_all_53_papers_are_there_with_claims(root):
    papers = read_papers(root)
    assert len(papers) == 53
    ids = [claim.id for paper in papers.values() for claim in paper.claims]
    assert len(ids) == len(set(ids))


def test_a_paper_without_study_says_why(root):
    paper = yaml.safe_load((root / "configs/paper/hnerv.yaml").read_text())
    del paper["pending"]
    with pytest.raises(UserError, match="either a 'study' or"):
        parse(Paper, paper, "configs/paper/hnerv.yaml")


def test_every_suite_plans(root):
    for file in (root / "configs" / "suite").glob("*.yaml"):
        assert parse(Suite, yaml.safe_load(file.read_text()), str(file)).title
        assert make_plan([f"suite={file.stem}"], root).cells


def test_pins_are_the_same_everywhere(root):
    pins = [line for line in (root / "envs/requirements.txt").read_text().splitlines() if "==" in line]
    conda = yaml.safe_load((root / "envs/parsimony.yaml").read_text())["dependencies"][-1]["pip"]
    apptainer = [w for w in (root / "envs/apptainer.def").read_text().split() if "==" in w]
    assert pins == conda == apptainer
    assert pins[0].startswith("torch==")


def test_schemas_are_those_of_the_typed_config_and_closed(root):
    import json

    files = {path.name: path.read_text() for path in (root / "workflow/schemas").glob("*.json")}
    assert files == schemas(), "run `parsimony schemas`"
    assert all(json.loads(text)["additionalProperties"] is False for text in files.values())


@pytest.mark.parametrize("suite", ["quick", "local", "cluster"])
def test_every_benchmark_and_point_of_a_suite_can_be_built(suite, root):
    """A parameter that the class does not have would stop a run halfway."""
    plan = make_plan([f"suite={suite}"], root)
    for key in {cell.benchmark for cell in plan.cells.values()}:
        instantiate(plan.benchmarks[key].target, plan.params(key))
    for key, point in {(cell.method, point) for cell in plan.cells.values() for point in cell.points}:
        method = plan.methods[key]
        instantiate(method.target, method.params | method.points[point])
