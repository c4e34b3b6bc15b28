"""ParallelBench's text writing at the scale of a toy: sentences of a small grammar instead of free English.

The published tasks judge grammar with LanguageTool; here a context-free grammar decides.  Number must agree between
determiner, noun and verb, and is the writer's choice: that is what positions written at once get wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

TOPICS = {
    "sea": (("sailor", "captain", "boat", "whale"), ("watch", "steer", "chase"), ("wet", "calm", "deep")),
    "farm": (("farmer", "horse", "barn", "goat"), ("feed", "lead", "clean"), ("green", "muddy", "warm")),
    "city": (("driver", "tram", "shop", "guard"), ("visit", "cross", "block"), ("busy", "loud", "new")),
    "kitchen": (("cook", "pan", "oven", "guest"), ("heat", "wash", "fill"), ("hot", "clean", "sour")),
}
"""Topic -> nouns, verbs, adjectives."""
ONE, MANY = "one", "two"
LEVELS = {"easy": 1, "medium": 2, "hard": 4}
"""Topics from which the four words of `words_to_sentence` come."""
TASKS = (*(f"words_to_sentence_{level}" for level in LEVELS), "paraphrasing", "summarization")
SEEDS = {task: 50500 + n for n, task in enumerate(TASKS)}


@dataclass(frozen=True)
class Clause:
    """Who does what to whom; determiners and forms follow from the numbers."""

    subject: str
    many: bool
    verb: str
    adjective: str
    object: str
    many_objects: bool

    def active(self) -> str:
        """Subject, verb, object."""
        return f"{noun(self.subject, self.many)} {self.predicate()}."

    def predicate(self) -> str:
        """Verb and object."""
        return f"{self.verb if self.many else third(self.verb)} {self.patient()}"

    def patient(self) -> str:
        """The object with its adjective."""
        return noun(f"{self.adjective} {self.object}", self.many_objects)

    def passive(self) -> str:
        """The same the other way round."""
        be = "are" if self.many_objects else "is"
        return f"{self.patient()} {be} {past(self.verb)} by {noun(self.subject, self.many)}."


@dataclass(frozen=True)
class Request:
    """What is to be written."""

    task: str
    words: tuple[str, ...]
    clauses: tuple[Clause, ...]
    form = "writing"

    @property
    def prompt(self) -> str:
        """The request as the models of this project read it."""
        if self.words:
            return f"words_to_sentence|{' '.join(self.words)}|"
        return f"{self.task}|{' '.join(clause.active() for clause in self.clauses)}|"

    def score(self, text: str) -> float:
        """1 if the text is a sentence of the grammar."""
        return float(grammatical(text))

    def included(self, text: str) -> float:
        """1 if every word is there (a noun or verb in any form)."""
        return float(all(word in text for word in self.words))

    def answer(self, rng: Random) -> str:
        """A right answer."""
        if self.task == "paraphrasing":
            return self.clauses[0].passive()
        if self.task == "summarization":
            first, second = self.clauses
            return f"{first.active()[:-1]} and {second.predicate()}."
        subject, verb, adjective, patient = self.words
        return Clause(subject, rng.random() < 0.5, verb, adjective, patient, rng.random() < 0.5).active()


def request(task: str, rng: Random) -> Request:
    """A random request."""
    if task.startswith("words_to_sentence"):
        return Request(task, _words(rng, LEVELS[task.rpartition("_")[2]]), ())
    first = _clause(rng)
    if task == "paraphrasing":
        return Request(task, (), (first,))
    second = _clause(rng)
    while second.predicate() == first.predicate():
        second = _clause(rng)
    same = Clause(first.subject, first.many, second.verb, second.adjective, second.object, second.many_objects)
    return Request(task, (), (first, same))


def _words(rng: Random, topics: int) -> tuple[str, ...]:
    """Subject, verb, adjective and object from so many topics."""
    names = rng.sample(sorted(TOPICS), topics)
    a, b, c, d = (TOPICS[names[n % topics]] for n in range(4))
    subject = rng.choice(a[0])
    return subject, rng.choice(b[1]), rng.choice(c[2]), rng.choice([word for word in d[0] if word != subject])


def _clause(rng: Random) -> Clause:
    subject, verb, adjective, patient = _words(rng, 1)
    return Clause(subject, rng.random() < 0.5, verb, adjective, patient, rng.random() < 0.5)


def noun(word: str, many: bool) -> str:
    """With determiner, in the right number."""
    return f"{MANY} {word}s" if many else f"{ONE} {word}"


def third(verb: str) -> str:
    """Third person singular."""
    return verb + ("es" if verb.endswith(("s", "sh", "ch")) else "s")


def past(verb: str) -> str:
    """Past participle."""
    return {"lead": "led", "feed": "fed", "steer": "steered"}.get(verb, verb + ("d" if verb.endswith("e") else "ed"))


@cache
def _parser():
    from lark import Lark

    return Lark(grammar(), parser="earley", lexer="dynamic")


def grammatical(text: str) -> bool:
    """Whether a text is one sentence of the grammar."""
    from lark.exceptions import LarkError

    try:
        _parser().parse(text)
    except LarkError:
        return False
    return True


def grammar() -> str:
    """The grammar in lark's notation."""
    words = [[word for topic in TOPICS.values() for word in topic[kind]] for kind in range(3)]
    alternatives = {
        "single": words[0], "plural": [f"{word}s" for word in words[0]], "verb": words[1],
        "verbs": [third(word) for word in words[1]], "done": [past(word) for word in words[1]], "adjective": words[2],
    }  # fmt: skip
    rules = "\n".join(f"{name}: " + " | ".join(f'"{word}"' for word in each) for name, each in alternatives.items())
    return rf"""
start: active "." | passive "."
active: one " " act_one | many " " act_many
act_one: verbs " " object (" and " verbs " " object)?
act_many: verb " " object (" and " verb " " object)?
passive: one " is " done " by " object | many " are " done " by " object
object: one | many
one: "{ONE} " (adjective " ")? single
many: "{MANY} " (adjective " ")? plural
{rules}
"""
