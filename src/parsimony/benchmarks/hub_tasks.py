"""Public question sets of the hub: what is asked, and what an answer is worth.

Requests are put in our own words, so that scores are compared between methods here, not with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parsimony.benchmarks import hub_media
from parsimony.benchmarks.passage_qa import token_f1, words
from parsimony.errors import UserError
from parsimony.interfaces import Item


@dataclass(frozen=True)
class Request:
    """A question, perhaps about a text.

    Attributes
    ----------
    prompt : str
        The text, if any, and the question behind it.
    answers : tuple of str
        Right ones.
    choices : tuple of str
        All that may be answered, where that is a list.
    """

    task: str
    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()

    def score(self, text: str) -> float:
        """What an answer is worth, from 0 to 1, by the measure of its task."""
        task = TASKS[self.task]
        return max(task.grade(text, answer, self.choices) for answer in self.answers)


@dataclass(frozen=True)
class Task:
    """One question set.

    Attributes
    ----------
    asset, file : str
    read : callable row -> (prompt, answers, choices)
    grade : callable (text, answer, choices) -> float
    limit : int
        Tokens of an answer, as published.
    """

    asset: str
    file: str
    read: Callable[[dict], tuple[str, list[str], list[str]]]
    grade: Callable[[str, str, tuple[str, ...]], float]
    limit: int


def requests(task: str, folder: Path, count: int, seed: int, file: str = "") -> list[tuple[int, Request]]:
    """``count`` rows of a task, or of another file of its form, with their numbers; fewer are the first of more."""
    rows = list(hub_media.rows(folder / (file or TASKS[task].file)))
    order = np.random.default_rng([seed, *task.encode()]).permutation(len(rows))[:count]
    found = []
    for n in order:
        prompt, answers, choices = TASKS[task].read(rows[n])
        found.append((int(n), Request(task, prompt, tuple(answers), tuple(choices))))
    return found


def f1(text: str, answer: str, choices=()) -> float:
    """Token F1 of the answer up to the end of its line."""
    return token_f1(text.strip().partition("\n")[0], answer)


def rouge_l(text: str, answer: str, choices=()) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), articles left out."""
    said, wanted = words(text), words(answer)
    return 2 * common(said, wanted) / max(len(said) + len(wanted), 1)


def chosen(text: str, answer: str, choices: tuple[str, ...]) -> float:
    """1 over the number of choices that are named, if the right one is among them.

    A choice inside a longer one that is named too does not count.
    """
    named = [choice for choice in choices if choice in text]
    named = [choice for choice in named if not any(choice != other and choice in other for other in named)]
    return 1 / len(named) if answer in named else 0.0


def counted(text: str, answer: str, choices=()) -> float:
    """Share of the numbers in the answer that are right."""
    numbers, wanted = re.findall(r"\d+", text), re.findall(r"\d+", answer)
    return numbers.count(wanted[0]) / max(len(numbers), 1) if wanted else 0.0


def code_line(text: str, answer: str, choices=()) -> float:
    """Likeness (2 LCS / lengths) of the first line that is code with the right one."""
    lines = [line for line in text.lstrip("\n").split("\n") if not re.search(r"`|#|//", line)]
    said = lines[0] if lines else ""
    return 2 * common(said, answer) / max(len(said) + len(answer), 1)


def last_number(text: str, answer: str, choices=()) -> float:
    """Whether the last number of the text is the right one."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(bool(numbers) and _value(numbers[-1]) == _value(answer))


def boxed(text: str, answer: str, choices=()) -> float:
    r"""Whether what the last ``\boxed{}`` holds is written like the right answer, white space and sizes aside."""
    at = text.rfind(r"\boxed{")
    if at < 0:
        return 0.0
    begin, depth = at + len(r"\boxed{"), 1
    for end, letter in enumerate(text[begin:], begin):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return float(_plain(text[begin:end]) == _plain(answer))
    return 0.0


def common(a, b) -> int:
    """Length of the longest common subsequence, by a bit for each place of ``a`` (Hyyroe 2004)."""
    places: dict = {}
    for n, each in enumerate(a):
        places[each] = places.get(each, 0) | 1 << n
    everywhere = (1 << len(a)) - 1
    free = everywhere
    for each in b:
        taken = free & places.get(each, 0)
        free = (free + taken | free - taken) & everywhere
    return len(a) - free.bit_count()


def _value(number: str) -> float:
    return float(number.replace(",", "").rstrip("."))


def _plain(formula: str) -> str:
    """A formula without what changes its looks alone."""
    formula = re.sub(r"\\(left|right|displaystyle|,|!|;)|[\s$]|\\?%", "", formula.replace(r"\$", ""))
    formula = re.sub(r"\\text\{([^{}]*)\}", r"\1", formula.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac"))
    return re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", formula).rstrip(".")


def _grade_school(row: dict):
    request = "{}\nThink step by step, and end with the number that answers the question."
    return request.format(row["question"]), [row["answer"].rpartition("#### ")[2]], []


def _mathematics(row: dict):
    request = "{}\nThink step by step, and put the final answer into \\boxed{{}}."
    return request.format(row["problem"]), [row["answer"]], []


def _about(instruction: str, ask: str = "Question: {input}"):
    """A reader of LongBench's rows: an instruction, the text, what is asked about it."""

    def read(row: dict):
        asked = "\n\n" + ask.format(input=row["input"]) if ask else ""
        return f"{instruction}\n\n{row['context']}{asked}", row["answers"], row["all_classes"] or []

    return read


QUESTION = _about("Read this text and answer the question behind it with as few words as it takes.")
EXAMPLES = _about("Go on as the examples do.", "{input}")
CODE = _about("Write the next line of this code.", "{input}")
LONG = {
    "narrativeqa": (QUESTION, f1, 128),
    "qasper": (QUESTION, f1, 128),
    "multifieldqa_en": (QUESTION, f1, 64),
    "hotpotqa": (QUESTION, f1, 32),
    "2wikimqa": (QUESTION, f1, 32),
    "musique": (QUESTION, f1, 32),
    "gov_report": (_about("Summarise this report on one page.", ""), rouge_l, 512),
    "qmsum": (_about("Read this transcript of a meeting and answer the request behind it."), rouge_l, 512),
    "multi_news": (_about("Summarise these articles on one page.", ""), rouge_l, 512),
    "trec": (EXAMPLES, chosen, 64),
    "triviaqa": (EXAMPLES, f1, 32),
    "samsum": (EXAMPLES, rouge_l, 128),
    "passage_count": (_about("How many different paragraphs are there here? Answer with a number.", ""), counted, 32),
    "passage_retrieval_en": (
        _about("Which of these paragraphs is this a summary of?", "{input}\n\nAnswer with the paragraph's number."),
        counted,
        32,
    ),
    "lcc": (CODE, code_line, 64),
    "repobench-p": (CODE, code_line, 64),
}
"""English tasks and code of LongBench (Bai et al. 2023, arXiv 2308.14508): how a row is asked, its measure, tokens."""

TASKS = {
    "gsm8k": Task("gsm8k", "test.parquet", _grade_school, last_number, 256),
    "math_500": Task("math_500", "test.jsonl", _mathematics, boxed, 512),
} | {name: Task("long_bench", f"{name}.parquet", *how) for name, how in LONG.items()}


class HubTasks:
    """The items of a benchmark on some of these tasks, which are its categories.

    Raises
    ------
    UserError
        For a task that there is not.
    """

    def __init__(self, tasks: list[str], items: int):
        for task in tasks:
            if task not in TASKS:
                raise UserError(f"there is no task {task!r} of the hub; valid: {', '.join(TASKS)}")
        self.tasks, self.count = tasks, items

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        """``items`` rows of each task whose asset is there; all tasks take turns."""
        self.asked, turns = {}, []
        for task in self.tasks:
            asset = TASKS[task].asset
            rows = requests(task, paths[asset], self.count, seed) if asset in paths else []
            for turn, (n, request) in enumerate(rows):
                item = Item(f"{task}_{n:05d}", task, (request.prompt,), f"{asset} row {n}")
                self.asked[item.id] = request
                turns.append((turn, item))
        return [item for _, item in sorted(turns, key=lambda each: each[0])]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        """Tasks that have no items, each with the reason."""
        return {task: missing[TASKS[task].asset] for task in self.tasks if TASKS[task].asset in missing}
