"""Answers in blocks of code: grammars of SMILES and C++ against RDKit and g++, and what answers are worth."""

import json
import shutil
import subprocess
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from parsimony import sandbox
from parsimony.assets import rehearsal
from parsimony.benchmarks import humaneval_cpp
from parsimony.benchmarks.code_blocks import Request
from parsimony.benchmarks.humaneval_cpp import HumanEvalCpp, passes
from parsimony.benchmarks.json_mode import JsonMode
from parsimony.benchmarks.molecules import Molecules, canonical
from parsimony.methods.diffusion.cfg_constrained import CfgConstrained, Language, opened
from parsimony.methods.diffusion.partial import Partial
from parsimony.models.masked import Masked
from parsimony.models.token_bytes import as_bytes, as_text, token_as_bytes
from parsimony.models.tokenizer import Tokenizer

SMALL = {"dtype": "float32", "timed": False, "items": 2, "limit": 24}
MOLECULES = [
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "O=C(O)/C=C/C(=O)O", "[Na+].[Cl-]",
    "c1ccc2[nH]ccc2c1", "[13CH4]", "C1CC2CCC1CC2", "[Fe+2]", "FC(F)(Br)C#N", "OS(=O)(=O)O", "[cH-]1cccc1", "[2H]O[2H]",
]  # fmt: skip
FUNCTIONS = [
    'int f(vector<int> a, string s){\n    int n = 0, m[3] = {1, 2, 3};\n    for (int i = 0; i < (int)a.size(); i++)\n'
    '        if (a[i] > m[0] && !(s[i] == \'x\')) n += a[i] >> 1; else { n--; continue; }\n    return n;\n}\n',
    "// sorts\nvector<vector<int>> f(map<string, vector<int>> &m){\n    vector<vector<int>> r;\n"
    "    for (auto &p : m) { r.push_back(p.second); }\n"
    "    sort(r.begin(), r.end(), [](const vector<int> &x, const vector<int> &y) { return x[0] < y[0]; });\n"
    "    return r;\n}\n",
    "unsigned long long f(long long *p, double d = 1.5e-3){\n    /* by\n    hand */\n"
    "    while (*p != 0) { *p = *p / 10; }\n"
    "    switch (*p) { case 0: return 1; default: break; }\n    do { d *= 2.0; } while (d < 1);\n"
    "    return d > 1 ? static_cast<int>(d) : 0x1F;\n}\nint g(){ return (1 + 2) * -3; }\n",
    'string f(int n){\n    string out = "";\n    if (n < 0) return "a \\"b\\"" + to_string(n);\n'
    "    std::pair<int, int> q = {1, 2};\n    int x = max(n, 3) % 2, y(4);\n    out += char('a' + x);\n"
    "    return out + string(y, '-');\n}\n",
]  # fmt: skip
BEGUN = "".join(f"#include<{name}>\n" for name in ("algorithm", "vector", "string", "map")) + "using namespace std;\n"
no_compiler = pytest.mark.skipif(bool(sandbox.obstacle(("g++",))), reason=sandbox.obstacle(("g++",)) or "-")


@cache
def language(name: str) -> Language:
    return Language.named(name)


def is_sentence(name: str, text: str) -> bool:
    return language(name).possible(Partial.of([text], ended=True))


def with_holes(data, text: str) -> Partial:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), min_size=2, max_size=6)))
    parts = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return Partial.of([None if data.draw(st.booleans()) else part for part in parts], ended=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), molecule=st.sampled_from(MOLECULES), seed=st.integers(1, 1000))
def test_every_way_to_write_a_molecule_is_a_sentence_whole_and_with_gaps(data, molecule, seed):
    (text,) = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(molecule), 1, seed)
    assert is_sentence("smiles", text) and is_sentence("smiles", f"{text}\n```\n")
    assert Molecules(**SMALL).grade(Request("", molecule), f"{text}\n```\nIt is that.") == {"score": 1, "parses": 1}
    completed = language("smiles").completed(with_holes(data, text))
    assert is_sentence("smiles", completed)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), molecule=st.sampled_from(MOLECULES))
def test_what_is_no_sentence_of_smiles_is_no_molecule(data, molecule):
    at = data.draw(st.integers(0, len(molecule) - 1))
    changed = molecule[:at] + data.draw(st.text("C()[]=1+@H.", max_size=2)) + molecule[at + 1 :]
    if not is_sentence("smiles", changed):
        assert canonical(changed) is None or changed.startswith(("=", "."))  # which RDKit reads


def test_molecules_that_differ_are_not_the_same():
    score = lambda wanted, text: Molecules(**SMALL).grade(Request("", wanted), text)  # noqa: E731
    assert score("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O") == {"score": 0, "parses": 1}
    assert score("CCO", "C1CO") == {"score": 0, "parses": 1}  # a sentence, but the ring stays open
    assert score("CCO", "CC(O") == score("CCO", "") == {"score": 0, "parses": 0}


@no_compiler
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_that_compile_are_sentences_but_not_without_one_of_their_brackets(function):
    assert is_sentence("cpp", BEGUN + function) and is_sentence("cpp", f"{BEGUN}{function}```")
    command = ["g++", "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    assert subprocess.run(command, input=BEGUN + function, text=True, capture_output=True).returncode == 0
    for n, letter in enumerate(function):
        if letter in "(){}[]" and function[n - 1] != "'":
            assert not is_sentence("cpp", BEGUN + function[:n] + function[n + 1 :])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), function=st.sampled_from(FUNCTIONS))
def test_functions_with_holes_can_be_completed(data, function):
    partial = with_holes(data, function)
    assert language("cpp").possible(partial)
    completed = language("cpp").completed(partial)
    assert is_sentence("cpp", completed)
    at = 0
    for word in partial.words:
        at = completed.index(word, at) + len(word)


@pytest.mark.parametrize(
    ("pieces", "possible"),
    [
        (["int f(){ return 1", None], True),
        (["int f(){ return 1; }", None, "// wh", None], True),
        (["int f(){ vector<vector<int", None, ">> a; }"], True),
        (["int f(){ ret = 1; }}", None], False),
        (["int f(int int", None, "){ }"], True),  # as the beginning of a longer name
        (["int f(){ if (x", None, "; }", None, ") {"], True),
        (["int f(){ return )", None], False),
        (["int f(){ s = 'abcde", None], False),
        (["int f(){\treturn 1; // \xc3", None, "\xa9t\xc3\xa9\n}"], True),  # an accent is two bytes
    ],
)
def test_functions_that_are_begun(pieces, possible):
    assert language("cpp").possible(Partial.of(pieces, ended=False)) == possible


def test_any_text_is_decoded_freely_under_a_grammar_of_all_texts(tmp_path):
    rehearsal.checkpoint(tmp_path, {}, "llada")
    model = Masked.load(tmp_path, "<|mdm_mask|>", ["<|eot_id|>"], "float32")
    free = CfgConstrained(per_step=4, temperature=1.0, constrain=False).build(model, None)
    bound = CfgConstrained(per_step=4, temperature=1.0, complete=True).build(model, None)
    anything = Language("start: ANY?\nANY: /[\\x00-\\xff]+/")
    bound.language = lambda prompt: anything
    for seed in range(3):
        outputs = [each.generate(model.encode("Say"), 48, np.random.default_rng(seed)) for each in (free, bound)]
        assert outputs[0].tokens.tolist() == outputs[1].tokens.tolist() and bound.resamples == 0
        assert outputs[0].cost.passes == outputs[1].cost.passes


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_tokens_are_the_bytes_of_their_text(text, tokenizer):
    assert "".join(token_as_bytes(tokenizer, number) for number in tokenizer.encode(text)) == as_bytes(text)
    assert as_text(as_bytes(text)) == text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of bytes: most characters are several tokens."""
    folder = tmp_path_factory.mktemp("llada")
    rehearsal.checkpoint(folder, {}, "llada")
    return Tokenizer(folder)


TESTS = "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert (add(1) == 3);\n    assert (add(5) == 7);\n}\n"


@no_compiler
def test_a_program_passes_by_its_tests_alone(monkeypatch):
    assert passes("int add(int x){ return x + 2; }", TESTS)
    assert not passes("int add(int x){ return 3; }", TESTS)
    assert not passes("int add(int x){ return x + 2 }", TESTS)
    assert not passes("#include<stdlib.h>\nint add(int x){ exit(0); }", TESTS)
    assert not passes('#include<stdio.h>\nint add(int x){ puts("passed"); fflush(stdout); _Exit(0); }', TESTS)
    assert not passes("#define assert(x)\nint add(int x){ return 0; }\n#define NDEBUG", TESTS)
    monkeypatch.setattr(humaneval_cpp, "SECONDS", 3)
    assert not passes("int add(int x){ while (true) x = x + 1; return x; }", TESTS)
    monkeypatch.setattr(humaneval_cpp, "COMPILED", ["sh", "-c", "exit 1"])
    assert not passes("int add(int x){ return x + 2; }", TESTS)


def test_a_prompt_that_opens_a_block_names_its_grammar_and_begins_its_text():
    assert opened("Write it.\n```cpp\nint f(){\n") == ("cpp", "int f(){\n")
    assert opened("Not so:\n```cpp\nint f();\n```\nBut:\n") == opened("none") == ("", "")
    assert Language.asked_for("Write it.\n```cpp\nint f(){\n").text == language("cpp").text
    assert Language.asked_for("Write it.\n```smiles\n").text == language("smiles").text
    assert Language.asked_for("Write it.\n```python\n") is None


@pytest.mark.parametrize("kind", [JsonMode, Molecules, HumanEvalCpp])
def test_answers_of_a_random_model_are_completed_to_sentences(kind, tmp_path):
    """The whole way: rows of the data set's form, chat template, grammar, completion, grade."""
    benchmark = kind(**SMALL)
    rehearsal.rows(tmp_path, {}, benchmark.ASSET.removesuffix("_eval") if kind is JsonMode else benchmark.ASSET,
                   [benchmark.FILE])  # fmt: skip
    rehearsal.checkpoint(tmp_path, {}, "llada")
    model = Masked.load(tmp_path, "<|mdm_mask|>", ["<|eot_id|>"], "float32")
    assert benchmark.items({}, 0) == [] and set(benchmark.skipped({benchmark.ASSET: "why"}).values()) == {"why"}
    items = benchmark.items({benchmark.ASSET: tmp_path}, 0)
    assert len(items) == 2
    sampler = CfgConstrained(per_step=4, complete=True).build(model, None)
    for item in items:
        asked = benchmark.asked[item.id]
        prompt = benchmark.encoded(asked, model)
        assert model.tokenizer.decode(prompt.tolist()).endswith(f"```{benchmark.NAME}\n{asked.begun}")
        generation = sampler.generate(prompt, 120, np.random.default_rng(0))
        assert len(generation.tokens) <= 120
        grades = benchmark.grade(asked, model.decode(generation.tokens))
        assert grades["parses"] == 1, model.decode(generation.tokens)


@no_compiler
def test_the_canonical_answers_of_the_rehearsal_pass(tmp_path):
    rehearsal.rows(tmp_path, {}, "humaneval_x", ["cpp.jsonl"])
    benchmark = HumanEvalCpp(**SMALL)
    for line in (tmp_path / "cpp.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert benchmark.grade(benchmark.request(row), row["canonical_solution"]) == {"score": 1, "parses": 1}


def test_a_cell_without_a_sandbox_is_skipped_with_the_reason(root, monkeypatch, tmp_path):
    from parsimony.plan import make_plan

    with_one = make_plan(["suite=cluster", "scale=rehearsal"], root)
    cell = next(cell for cell in with_one.cells.values() if cell.benchmark == "humaneval_cpp")
    (tmp_path / "git").symlink_to(shutil.which("git"))
    why = with_one.obstacle(cell.method, cell.benchmark)
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.obstacle.cache_clear()
    try:
        without = make_plan(["suite=cluster", "scale=rehearsal"], root)
        assert "no command 'bwrap' for generated programs" in without.obstacle(cell.method, cell.benchmark)
        assert without.cells[cell.id].version != cell.version or why
    finally:
        sandbox.obstacle.cache_clear()
