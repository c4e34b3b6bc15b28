"""ParallelBench (Kang et al., ICLR 2026, arXiv 2510.04767): quality against tokens a step, task by task."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.benchmarks.parallel_bench import lists
from parsimony.benchmarks.parallel_bench.ideal import Ideal
from parsimony.benchmarks.parallel_bench.tasks import GROUPS, LENGTH, Example, examples, grade
from parsimony.benchmarks.parallel_bench.theory import total_correlation
from parsimony.benchmarks.parallel_bench.writing import Request
from parsimony.benchmarks.unmasked import Drawn
from parsimony.errors import UserError
from parsimony.interfaces import Workbench


class ParallelBench(Drawn):
    """Requests of the 17 tasks.

    An answer has 32 tokens to unmask, what follows its end included (as published: short answers look faster than
    they are); an answer to a list of names alone or of letters has as many tokens as its list.  Where
    all right answers can be enumerated and the system unmasks, the exact model decodes the same request by the same
    strategy beside it (`Ideal`): ``ideal_score``.

    Parameters
    ----------
    dtype : str
    timed : bool
    tasks : list of str or None
        All if None; the ten list tasks if the form is not "printed".
    items : int
        A task; equally many of each list length.
    form : {"printed", "names", "letters"}
        Of lists (`lists.FORMS`).
    chat : bool
        Whether a request is put as a user's turn.
    """

    def __init__(self, dtype: str, timed: bool, tasks: list | None, items: int, form: str, chat: bool = False):
        if form not in lists.FORMS:
            raise UserError(f"parallel_bench has no lists of form {form!r}; valid: {', '.join(lists.FORMS)}")
        known = GROUPS if form == "printed" else lists.SEEDS
        for task in tasks or ():
            if task not in known:
                raise UserError(f"parallel_bench has no task {task!r}; valid: {', '.join(known)}")
        self.dtype, self.timed, self.count, self.form, self.chat = dtype, timed, items, form, chat
        self.tasks = list(tasks or known)

    def requests(self):
        for task in self.tasks:
            yield from ((task, one) for one in examples(task, self.count, self.form))

    def length(self, asked: Example, model) -> int:
        return LENGTH if self.form == "printed" else len(model.encode(asked.answer))

    def grade(self, asked: Example, text: str) -> dict[str, float]:
        numbers = {"score": grade(asked, text), "strict_score": grade(asked, text, strict=True)}
        if isinstance(asked.request, Request):
            numbers["words_included"] = asked.request.included(text)
        return numbers

    def beside(self, asked: Example, system, model, bench: Workbench, item: str) -> dict[str, float]:
        if not (hasattr(system, "unmask") and isinstance(asked.request, lists.Query)):
            return {}
        prompt, limit = self.encoded(asked, model), self.length(asked, model)
        answers = self._answers(model, asked, limit)
        if answers is None:
            return {}
        ideal = Ideal(answers, len(prompt), len(model.tokenizer), model.mask_id)
        best = system.unmask(ideal, prompt, limit, bench.rng(item))
        return {
            "ideal_score": grade(asked, model.decode(best.tokens)),
            "ideal_passes": best.cost.passes,
            "correlation": total_correlation(answers.numpy()),
        }

    def _answers(self, model, shown: Example, limit: int) -> Tensor | None:
        """Token ids [m, limit] of every right answer, filled up with the end token; None if one is longer."""
        end = min(model.stop_ids)
        texts = [lists.shown(answer, self.form) for answer in shown.request.answers()]
        rows = [model.encode(text).tolist() for text in texts]
        if max(map(len, rows)) > limit:
            return None
        return torch.tensor([row + [end] * (limit - len(row)) for row in rows])
