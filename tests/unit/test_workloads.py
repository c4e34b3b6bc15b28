"""Workloads that repeat themselves: real, prefix-stable, edits of one module and questions on one database in a row."""

import ast
from itertools import groupby

import numpy as np
import pytest

from parsimony.assets import fetch
from parsimony.benchmarks.agentic_sql import ASSET, AgenticSql, databases
from parsimony.benchmarks.code_edit import NEW, OLD, CodeEdit, Edit, edits, first_block, functions, similarity
from parsimony.benchmarks.copying import copied_tokens
from parsimony.plan import make_plan


@pytest.fixture(scope="module")
def paths(root):
    plan = make_plan([], root)
    return {key: fetch(key, plan.lock, root / "resources") for key in (OLD, NEW, ASSET)}


def code(count):
    return CodeEdit("float32", timed=False, items=count, limit=96, characters=420)


def sql(count, characters=900):
    return AgenticSql("float32", timed=False, items=count, limit=64, characters=characters)


@pytest.mark.parametrize("make", [code, sql])
def test_a_smaller_choice_takes_the_first_of_each_category(make, paths):
    large, small = make(8).items(paths, 0), make(3).items(paths, 0)
    assert len({item.id for item in large}) == len(large)
    assert {item.category for item in large} == set(make(1).categories)
    for category in make(1).categories:
        mine = [item for item in large if item.category == category]
        assert len(mine) == 8
        assert [item for item in small if item.category == category] == mine[:3]
    assert make(8).items(paths, 0) == large
    assert make(8).items(paths, 1) != large


@pytest.mark.parametrize("make", [code, sql])
def test_without_the_asset_every_category_says_why(make):
    benchmark = make(2)
    assert benchmark.items({}, 0) == []
    missing = {key: f"no {key}" for keys in benchmark.categories.values() for key in keys}
    assert set(benchmark.skipped(missing)) == set(benchmark.categories)
    assert benchmark.skipped({}) == {}


def test_edits_are_changed_functions_of_a_size_and_the_instruction_tells_all_that_changes(paths):
    pool = edits(paths[OLD], paths[NEW], 420)
    before, after = functions(paths[OLD]), functions(paths[NEW])
    assert len(pool) >= 50
    for edit in pool:
        assert before[edit.file, edit.name] == edit.old != edit.new == after[edit.file, edit.name]
        assert all(ast.parse(source).body[0].name == edit.name.rpartition(".")[2] for source in (edit.old, edit.new))
        assert min(len(edit.old), len(edit.new)) >= 140 and max(len(edit.old), len(edit.new)) <= 420
        assert rebuilt(edit) == edit.new.splitlines()
        told = edit.request()
        assert all("\n".join(lines) in told for gone, come, _ in edit.hunks() for lines in (gone, come))


def rebuilt(edit: Edit) -> list[str]:
    """The new function from the old one and what the instruction tells: lines that go or come, and the line above."""
    lines, at = edit.old.splitlines(), 0
    for gone, come, above in edit.hunks():
        sought = gone or [above]
        at = next(n for n in range(at, len(lines)) if lines[n : n + len(sought)] == sought)
        at += not gone
        lines[at : at + len(gone)] = come
        at += len(come)
    return lines


def test_functions_of_one_name_in_a_module_are_left_out(tmp_path):
    (tmp_path / "m.py").write_text(
        "class A:\n    @property\n    def x(self):\n        return 1\n\n    @x.setter\n    def x(self, v):\n"
        "        pass\n\n    async def y(self):\n        return 2\n\ndef y():\n    return 3\n"
    )
    assert functions(tmp_path) == {
        ("m.py", "A.y"): "async def y(self):\n    return 2",
        ("m.py", "y"): "def y():\n    return 3",
    }


def test_edits_of_a_module_and_questions_on_a_database_stand_in_a_row(paths):
    for category, items in groupby(code(10).items(paths, 0), key=lambda item: item.category):
        modules = [item.source.split()[1] for item in items]
        assert len(list(groupby(modules))) == len(set(modules)) < len(modules), category
    schemas = [item.turns[0].split("\n\n")[1] for item in sql(8).items(paths, 0)]
    assert len(list(groupby(schemas))) == len(set(schemas)) < len(schemas) / 2


def test_the_dump_gives_20_databases_and_questions_name_what_is_there(paths):
    schemas = databases(paths[ASSET] / "spider_dev.sql")
    assert len(schemas) == 20 and sum(map(len, schemas.values())) == 81
    assert schemas["course_teach"]["course_arrange"].links == (
        ("Teacher_ID", "teacher", "Teacher_ID"),
        ("Course_ID", "course", "Course_ID"),
    )
    for tables in schemas.values():
        for table in tables.values():
            assert all(ours in table.columns and theirs in tables[other].columns for ours, other, theirs in table.links)
    items = sql(1000, 100_000).items(paths, 0)
    assert sum(item.category == "spider" for item in items) == 23
    for item in items:
        assert len(item.turns) == 3
        assert ("own question" in item.source) == (item.category != "spider")
    short = sql(1000).items(paths, 0)
    assert 60 <= len(short) < len(items) and {item.id for item in short} <= {item.id for item in items}
    assert all(len(item.turns[0].split("\n\n")[1]) <= 900 for item in short)


def test_copied_tokens_lie_in_runs_that_the_prompt_has():
    assert copied_tokens([1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5, 9]) == 5
    assert copied_tokens([1, 2, 3, 9, 4, 5, 6], [1, 2, 3, 4, 5, 6]) == 0
    assert copied_tokens([], [1, 2, 3, 4, 5]) == copied_tokens([1, 2, 3, 4], []) == 0
    answer = np.random.default_rng(0).integers(0, 50, 40).tolist()
    assert copied_tokens(answer, answer) == 40


def test_similarity_judges_the_code_and_unfinished_code_as_far_as_it_goes():
    assert first_block("Here:\n```python\na = 1\n\nb = 2\n```\nDone.\n```\nc\n```") == ("a = 1\n\nb = 2", True)
    assert first_block("```python\na = 1\nb =") == ("a = 1\nb =", False)
    assert first_block("no code") == ("no code", True)
    assert similarity([1, 2, 3], [1, 2, 3, 4, 5], whole=False) == 1
    assert similarity([1, 2, 3], [1, 2, 3, 4, 5], whole=True) == 0.75
    assert similarity([1, 2, 9, 9], [1, 2, 3, 4, 5], whole=False) == 0.5
    assert similarity([7, 8], [1, 2], whole=True) == 0
