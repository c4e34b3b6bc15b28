"""Real edits of real modules: a cached context is brought up to date, and the code behind it goes on."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.methods.kv_cache.held import Context, Held, prefill
from parsimony.methods.kv_cache.pie import edits_between
from parsimony.models.kv_cache import KVCache

OLD, NEW = "django_4_2_1", "django_5_2"
KINDS = ("insertion", "deletion", "multi_place", "renamed")
LEAD, BEHIND, NEXT = 30, 12, 8
"""Lines before the first change, behind the last one, and of what follows the context."""


@dataclass(frozen=True)
class Change:
    """A context in two versions and what follows it.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    old, new, next : str
    """

    kind: str
    old: str
    new: str
    next: str


def changes(old: Path, new: Path) -> list[Change]:
    """Changes between two trees of modules, by file and line.

    An insertion or a deletion is one hunk of lines that only come or only go; several hunks close to one another are
    a change in many places.  A renamed function is made from the new release alone: the context defines and the
    following lines use a name that is another one in the old version.
    """
    found = []
    for file in sorted(new.rglob("*.py")):
        before, after = (old / file.relative_to(new)), file.read_text(encoding="utf-8").splitlines()
        if before.exists():
            found += _hunks(before.read_text(encoding="utf-8").splitlines(), after)
        found += _renamed(after)
    return found


def _hunks(before: list[str], after: list[str]) -> list[Change]:
    """Groups of hunks with unchanged lines around them."""
    found = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for group in matcher.get_grouped_opcodes(BEHIND):
        hunks = [code for code in group if code[0] != "equal"]
        a, b, c, d = hunks[0][1], hunks[-1][2], hunks[0][3], hunks[-1][4]
        kind = "multi_place" if len(hunks) > 1 else {"insert": "insertion", "delete": "deletion"}.get(hunks[0][0])
        if kind is None or c < LEAD or max(b - a, d - c) > 2 * BEHIND or d + BEHIND + NEXT > len(after):
            continue
        lead, behind = after[c - LEAD : c], after[d : d + BEHIND]
        parts = [[*lead, *middle, *behind] for middle in (before[a:b], after[c:d])]
        if before[b : b + BEHIND] == behind and before[a - LEAD : a] == lead:
            found.append(Change(kind, *("\n".join(part) + "\n" for part in parts),
                                "\n".join(after[d + BEHIND : d + BEHIND + NEXT]) + "\n"))  # fmt: skip
    return found


def _renamed(after: list[str]) -> list[Change]:
    """The first function of a module that is called within a few lines behind a context that defines it."""
    text = "\n".join(after)
    for name in re.findall(r"^def ([a-z]\w{5,})\(", text, re.M):
        lines = [n for n, line in enumerate(after) if re.search(rf"\b{name}\b", line)]
        uses = [n for n in lines[1:] if LEAD < n - lines[0] < LEAD + 2 * BEHIND]
        if uses and lines[0] >= 1:
            first, cut = max(0, lines[0] - BEHIND), uses[0]
            context, following = "\n".join(after[first:cut]) + "\n", "\n".join(after[cut : cut + NEXT]) + "\n"
            return [Change("renamed", re.sub(rf"\b{name}\b", "handler", context), context, following)]
    return []


class ContextEdits:
    """Contexts of about sixty lines of Django, edited as between two releases.

    Every operating point brings the cache of the old context up to date and is compared with a context that was run
    anew: the predictions over the tokens that follow, the next line that it writes, and the directions of the keys
    and values of the unchanged text behind the last edit (its last token left out, as methods may run that again).

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        A kind of change.
    scored : int
        Tokens behind the context.
    line : int
        Most tokens of the next line.
    """

    def __init__(self, dtype: str, timed: bool, items: int, scored: int, line: int):
        self.dtype, self.timed, self.count, self.scored, self.line = dtype, timed, items, scored, line

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if OLD not in paths or NEW not in paths:
            return []
        self.changes, chosen = {}, []
        pool = changes(paths[OLD], paths[NEW])
        for kind in KINDS:
            mine = [change for change in pool if change.kind == kind]
            order = np.random.default_rng([seed, *kind.encode()]).permutation(len(mine))
            for n, at in enumerate(order[: self.count]):
                item = Item(f"{kind}_{n:03d}", kind, (mine[at].new,), f"{OLD}, {NEW}")
                self.changes[item.id] = mine[at]
                chosen.append(item)
        return sorted(chosen, key=lambda item: item.id.rpartition("_")[2])

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        gone = next((missing[asset] for asset in (OLD, NEW) if asset in missing), None)
        return {} if gone is None else dict.fromkeys(KINDS, gone)

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, model, change = Outcome(), bench.model(self.dtype), self.changes[item.id]
        old, new, true = (model.encode(text) for text in (change.old, change.new, change.next))
        true, edits = true[: self.scored], edits_between(old, new)
        cache = model.decoder.cache(len(new) + len(true))
        exact = model.decoder.prefill(torch.cat((new, true[:-1]))[None], cache, want="all")[0]
        expected, prefilled = exact[len(new) - 1 :].log_softmax(-1).cpu(), prefill(model.decoder, old)
        same = len(old) - edits[-1].end - 1  # tokens behind the last edit, without the last
        target = _first_line(change.next)
        anew = [
            Held(cache.keys(n)[0, :, : len(new)], cache.values(n)[0, :, : len(new)]) for n in range(len(cache.lengths))
        ]
        anew = self._next_line(Context(model.decoder, anew, len(new), exact[len(new) - 1]), model)
        for point in bench.points:
            context, seconds, rows = bench.system(point, self.dtype).edit(prefilled, edits)
            numbers = {"edit_seconds": seconds, "edited": 1, "rows": rows, "edited_tokens": len(new)}
            numbers |= _likeness(context, cache, len(new), same)
            line = self._next_line(context, model)
            with torch.inference_mode():
                found = torch.cat((context.logits[None], context.extend(true[:-1]))).float().log_softmax(-1).cpu()
            numbers |= {
                "scored": len(true),
                "divergence": float((expected.exp() * (expected - found)).sum()),
                "same_top": float((found.argmax(-1) == expected.argmax(-1)).sum()),
                "nll": float(-found.gather(1, true[:, None]).sum()),
                "exact_match": float(line == target),
                "edit_similarity": _similarity(line, target),
                "similarity_lost": 100 * (_similarity(anew, target) - _similarity(line, target)),
                "same_line": float(line == anew),
            }
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
        return outcome

    @torch.inference_mode()
    def _next_line(self, context: Context, model) -> str:
        """The first line that greedy decoding writes; the context is as before afterwards."""
        length, logits, ids, text = len(context), context.logits, [], ""
        while len(ids) < self.line and "\n" not in text.lstrip():
            ids.append(context.logits.argmax().cpu())
            text = model.decode(torch.stack(ids))
            context.extend(ids[-1:])
        for held in context.layers:
            held.count -= len(ids)
        context.in_order, context.logits = length, logits
        return _first_line(text)


def _first_line(text: str) -> str:
    """The first line that is not empty, without the spaces around it."""
    return text.strip().partition("\n")[0].rstrip()


def _similarity(line: str, target: str) -> float:
    """Share of equal characters (Ratcliff and Obershelp)."""
    return difflib.SequenceMatcher(None, line, target, autojunk=False).ratio()


def _likeness(context: Context, cache: KVCache, length: int, same: int) -> dict[str, float]:
    """Cosines, summed, of the keys and values of ``same`` tokens before the last with those of an exact cache."""
    sums = {"key_cosine": 0.0, "value_cosine": 0.0, "compared": 0}
    for n, held in enumerate(context.layers if same > 0 else ()):
        pairs = (held.keys, cache.keys(n)[0]), (held.values, cache.values(n)[0])
        for name, (ours, theirs) in zip(("key_cosine", "value_cosine"), pairs, strict=True):
            found, true = ours[:, -1 - same : -1].float(), theirs[:, length - 1 - same : length - 1].float()
            sums[name] += float(torch.cosine_similarity(found, true, dim=-1).sum())
        sums["compared"] += true.shape[0] * same
    return sums
