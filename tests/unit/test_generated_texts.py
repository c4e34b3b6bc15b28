"""Calculations, JSON objects and small functions: requests, graders, and what is measured beside an answer."""

from random import Random

import numpy as np
import pytest
import torch

from parsimony.benchmarks import grammar_texts, scratch_pad
from parsimony.benchmarks.scratch_pad import Calculation, ScratchPad
from parsimony.interfaces import Cost, Generation
from parsimony.recipes import task_mix


@pytest.mark.parametrize("module", [grammar_texts, scratch_pad])
def test_right_answers_score_and_spoilt_ones_do_not(module):
    rng = Random(1)
    for form in module.FORMS:
        asked = module.requests(form, 40)
        assert asked == module.requests(form, 40) and len({each.prompt for each in asked}) > 35
        for one in asked:
            assert one.score(one.answer) == 1 and one.score("") == 0
            at = rng.randrange(len(one.answer))
            assert one.score(one.answer[:at]) == 0


def test_last_digits_are_worked_out_step_by_step():
    asked = Calculation("lines", 3, (("+3", "*7"), ("-5",)))
    assert asked.prompt.rstrip("|") == "lines|3|+3*7|-5" and asked.answer == "3+3=6*7=2\n2-5=7"
    assert asked.score("3+3=6*7=2\n2-5=8") == 0 and asked.score("nonsense=7") == 0
    wrapped = Calculation("wrapped", 3, (("+3", "*7"), ("-5",)))
    assert wrapped.answer == "3+3=6*7\n=2;2-5=\n7" and wrapped.score("3+3=6*7=2;2-5=7") == 1


@pytest.mark.parametrize(
    ("form", "text", "parses"),
    [
        ("json", '{"a": [1, 2], "b": {"c": "x y"}}', True),
        ("json", '{"a": 1,}', False),
        ("json", '{"a": 01}', False),
        ("code", "int f(int x) { return x + 2 * 3; }", True),
        ("code", "int f(int x) { return x + ; }", False),
        ("code", "int int(int x) { return x; }", False),
    ],
)
def test_grammars_say_what_parses(form, text, parses):
    assert (grammar_texts.tree(form, text) is not None) == parses


@pytest.mark.parametrize(
    ("body", "argument", "result"),
    [
        ("return x + 2 * 3;", 1, 7),
        ("if (x < 4) { return x; } else { return 4; }", 9, 4),
        ("int i = 0; while (i < 3) { x = x * 2; i = i + 1; } return x;", 1, 8),
        ("while (0 < 1) { x = x + 1; } return x;", 1, None),
        ("return y;", 1, None),
        ("return x / 0;", 1, None),
    ],
)
def test_functions_are_run_by_an_interpreter_that_ends(body, argument, result):
    assert grammar_texts.call(grammar_texts.tree("code", f"int f(int x) {{ {body} }}"), argument) == result


def test_every_text_is_tokens_of_the_models_and_fits():
    tokenizer, rng = task_mix.word_tokenizer(), Random(3)
    for source in task_mix.KINDS:
        for _ in range(20):
            prompts, answers, length = task_mix.requests(source, 8, rng)
            for text in prompts + answers:
                ids = tokenizer.encode(text).ids
                assert task_mix.SPECIAL.index("<unknown>") not in ids
                assert tokenizer.decode(ids, skip_special_tokens=False) == text
            assert all(len(tokenizer.encode(answer).ids) <= length for answer in answers)


class Words:
    """A model whose tokens are characters."""

    def encode(self, text):
        return torch.tensor([ord(c) for c in text])

    def decode(self, ids):
        return "".join(map(chr, ids.tolist()))


class Says:
    """A system that always gives one text, in some number of passes."""

    def __init__(self, text: str, passes: int):
        self.text, self.passes = text, passes

    def generate(self, prompt_ids, limit, rng):
        return Generation(Words().encode(self.text), Cost(passes=self.passes, accepted_per_pass=[1] * self.passes))


class Bench:
    points = ("right", "fast", "wrong")

    def __init__(self, systems, lossless):
        self.systems, self.lossless = systems, lossless

    def model(self, dtype):
        return Words()

    def system(self, point, dtype):
        return self.systems[point]

    def reference(self, dtype, point=""):
        return self.systems["right"]

    def rng(self, item):
        return np.random.default_rng(0)


@pytest.mark.parametrize("lossless", [False, True])
def test_a_lossless_method_is_compared_and_the_oracle_takes_the_best_point(lossless):
    benchmark = ScratchPad("float32", False, 1)
    item = benchmark.items({}, 0)[0]
    answer = benchmark.asked[item.id].answer
    systems = {"right": Says(answer, 9), "fast": Says(answer, 4), "wrong": Says("0=0", 1)}
    outcome = benchmark.measure(item, Bench(systems, lossless))
    numbers = {(point, metric): value for point, metric, value, _ in outcome.numbers}
    assert [numbers[point, "score"] for point in Bench.points] == [1, 1, 0]
    assert {numbers[point, "oracle_passes"] for point in Bench.points} == {4}
    assert set(outcome.failures) == ({("wrong", "equal")} if lossless else set())
    assert numbers.get(("wrong", "equal")) == (0 if lossless else None)
    assert numbers.get(("fast", "reference_passes")) == (9 if lossless else None)
