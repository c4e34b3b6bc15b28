"""Constrained decoding of diffusion models with context-free grammars (Mündler et al., 2025, arXiv 2508.10111).

After each tentative token the decided words and the gaps between them are a regular language; the token stays if that
language holds a sentence of the grammar.  Words of a language that are keywords are not identifiers (lark's rule for
the grammars here; the official code lets every use of an identifier be a keyword).
"""

from __future__ import annotations

import json
from functools import cached_property
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.interfaces import Cost, Generation, Inputs
from parsimony.methods.diffusion import json_schema
from parsimony.methods.diffusion.caches import PASSES
from parsimony.methods.diffusion.grammar import read
from parsimony.methods.diffusion.grammars import GRAMMARS
from parsimony.methods.diffusion.intersection import Intersection
from parsimony.methods.diffusion.partial import Partial, automaton, written
from parsimony.methods.diffusion.sampler import View, unanswered, until_stop
from parsimony.methods.diffusion.static_unmasking import TopK
from parsimony.methods.diffusion.terminals import Lexer
from parsimony.models.masked import Masked
from parsimony.models.token_bytes import as_bytes, as_text, token_as_bytes

MARKS = ("<schema>", "</schema>")
"""Between these a prompt holds the JSON schema that the answer has to follow."""
FENCE = "```"
"""A prompt may end inside a block of code; what stands in the block is the beginning of the text that has a grammar."""


def opened(prompt: str) -> tuple[str, str]:
    """Name of the block of code that a prompt leaves open, and what stands in it already."""
    blocks = prompt.split(FENCE)
    name, _, begun = blocks[-1].partition("\n")
    return ("", "") if len(blocks) % 2 else (name, begun)


class Language:
    """A grammar with what its test needs, made once.

    Parameters
    ----------
    text : str
        In lark's notation.
    """

    def __init__(self, text: str):
        self.text = text

    @classmethod
    def named(cls, name: str) -> Language:
        """One of `GRAMMARS`."""
        return cls(GRAMMARS[name])

    @classmethod
    def asked_for(cls, prompt: str) -> Language | None:
        """The one that a prompt names in front of its first bar, that of the schema between its marks, or the one that
        the block of code is named after that the prompt opens, if any."""
        name, schema = prompt.partition("|")[0], prompt.partition(MARKS[0])[2].partition(MARKS[1])[0]
        if name not in GRAMMARS and schema.strip():
            return cls(json_schema.grammar(json.loads(schema)))
        name = name if name in GRAMMARS else opened(prompt)[0]
        return cls.named(name) if name in GRAMMARS else None

    @cached_property
    def lexer(self) -> Lexer:
        _, patterns, ignored = read(self.text)
        return Lexer(patterns, ignored)

    @cached_property
    def intersection(self) -> Intersection:
        return Intersection(read(self.text)[0].normal())

    def possible(self, partial: Partial) -> bool:
        """Whether the partial text can become a sentence."""
        return self.intersection.holds(automaton(partial, self.lexer))

    def completed(self, partial: Partial) -> str | None:
        """A text (as bytes) that the partial one can become, or None."""
        terminals = self.intersection.sentence(automaton(partial, self.lexer))
        return None if terminals is None else written(partial, terminals, self.lexer)


class CfgConstrained:
    """Static decoding in which no token is committed that makes the grammar's sentence impossible.

    The grammar is the one that the prompt asks for (`Language.asked_for`); a prompt that asks for none is decoded
    freely.

    Parameters
    ----------
    per_step : int
        Tokens a pass; they are checked one by one against what is decided already.
    temperature : float
    block : int or None
    max_resamples : int
        Rejections in one generation; then what is decided so far is returned.
    constrain : bool
        False: no token is checked (the baseline with the same random numbers).
    complete : bool
        Whether an unfinished text is completed to a shortest sentence in the end, if that fits into the limit.
    """

    def __init__(
        self,
        per_step: int = 1,
        temperature: float = 0.2,
        block: int | None = 32,
        max_resamples: int = 100,
        constrain: bool = True,
        complete: bool = False,
    ):
        self.settings = per_step, temperature, block, max_resamples, constrain, complete

    def build(self, model: Masked, inputs: Inputs) -> ConstrainedSampler:
        """The sampler."""
        return ConstrainedSampler(model, *self.settings)


class ConstrainedSampler:
    """Generates under a grammar."""

    def __init__(self, model: Masked, per_step, temperature, block, max_resamples, constrain, complete):
        self.model, self.rule, self.temperature, self.block = (
            model,
            TopK("low_confidence", per_step),
            temperature,
            block,
        )
        self.max_resamples, self.constrain, self.complete = max_resamples, constrain, complete
        self.languages: dict[str, Language] = {}
        self.texts: dict[int, str | None] = {model.mask_id: None}
        self.begun = ""
        self.resamples = 0
        self.check_seconds = 0.0
        if constrain:
            Language('start: "a"').possible(Partial.of(["a"], ended=True))  # compiles the search before a clock runs

    def language(self, prompt: Tensor) -> Language | None:
        """The language that a prompt asks for, one for all that share its grammar; notes what the text begins with."""
        asked = self.model.tokenizer.decode(prompt.tolist())  # whole: a turn's end may be the answer's, too
        self.begun, found = as_bytes(opened(asked)[1]), Language.asked_for(asked)
        return found and self.languages.setdefault(found.text, found)

    def generate(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """Answer of at most ``limit`` tokens."""
        mask, P, cost = self.model.mask_id, len(prompt_ids), Cost()
        self.resamples, self.check_seconds = 0, 0.0
        network, language = PASSES["none"](self.model), self.language(prompt_ids) if self.constrain else None
        x = unanswered(prompt_ids, limit, mask)
        over = limit == 0
        for begin in range(P, P + limit, self.block or max(limit, 1)):
            stop, step = min(begin + (self.block or limit), P + limit), 0
            self.rule.begin(stop - begin)
            while not over and bool((x[begin:stop] == mask).any()):
                began = perf_counter()
                logits = network.refresh(x, begin)[: stop - begin].cpu()  # the language is checked there
                passed = perf_counter()
                view = View.of(logits, x[begin:stop], mask, step, self.temperature, rng)
                count = self.rule.schedule[step] if step < len(self.rule.schedule) else 1
                gained, over = self._commit(x, P, begin, view, count, language)
                cost.passes += 1
                cost.accepted_per_pass.append(gained)
                cost.verify_seconds += passed - began
                cost.draft_seconds += perf_counter() - passed
                step += 1
        cost.rows = network.rows
        tokens = until_stop(x[P:], self.model.stop_ids)
        if self.complete and language is not None:
            completed = self._completed(tokens, language)
            tokens = completed if len(completed) <= limit else tokens
        return Generation(tokens[tokens != mask], cost)

    def _commit(
        self, x: Tensor, P: int, begin: int, view: View, count: int, language: Language | None
    ) -> tuple[int, bool]:
        """Commit up to ``count`` tokens of the block into ``x``; returns how many, and whether all is over.

        Confidence is that of the clean logits, the token that of the noised ones without the rejected tokens.
        """
        noisy, gained = view.noisy.clone(), 0
        tokens = noisy.argmax(-1)
        c = view.probs.gather(-1, tokens[:, None])[:, 0].where(view.masked, -1.0)
        while gained < count and float(c.max()) >= 0:
            i = int(c.argmax())
            token = int(tokens[i])
            if noisy[i, token] == -torch.inf:
                return gained, True
            x[begin + i] = token
            if language is not None and not self._possible(x[P:], language):
                x[begin + i] = self.model.mask_id
                noisy[i, token] = -torch.inf
                tokens[i] = noisy[i].argmax()
                c[i] = view.probs[i, tokens[i]]
                self.resamples += 1
                if self.resamples >= self.max_resamples:
                    return gained, True
                continue
            c[i] = -1.0
            gained += 1
            if token in self.model.stop_ids:
                x[begin + i :], c[i:] = token, -1.0
                whole = until_stop(x[P:], self.model.stop_ids)
                if not bool((whole == self.model.mask_id).any()):
                    return gained, True
        return gained, False

    def _possible(self, answer: Tensor, language: Language) -> bool:
        began = perf_counter()
        possible = language.possible(self._partial(answer))
        self.check_seconds += perf_counter() - began
        return possible

    def _partial(self, answer: Tensor) -> Partial:
        pieces: list[str | None] = [self.begun] if self.begun else []
        for token in answer.tolist():
            if token in self.model.stop_ids:
                return Partial.of(pieces, ended=True)
            if token not in self.texts:
                self.texts[token] = token_as_bytes(self.model.tokenizer, token)
            pieces.append(self.texts[token])
        return Partial.of(pieces, ended=False)

    def _completed(self, tokens: Tensor, language: Language) -> Tensor:
        """The tokens of a shortest sentence that what is decided can become; itself if it is one already."""
        text = language.completed(self._partial(tokens))
        return tokens if text is None else self.model.encode(as_text(text.removeprefix(self.begun)))
