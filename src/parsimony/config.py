"""Typed, closed configuration: what may stand in ``configs/`` and nothing else.

Every group (`suite`, `paper`, `model`, `method`, `benchmark`) is one model below; the JSON schemas in
``workflow/schemas`` are generated from them.  Importing this module is cheap: no torch, no transformers.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from parsimony.errors import UserError, nearest

Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Target = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*$")]
Family = Literal[
    "autoregressive", "diffusion", "kv_cache", "context", "weights", "lossless", "image", "video", "audio",
    "representation", "serving", "evaluation",
]  # fmt: skip
Interface = Literal[
    "TextGenerator",
    "LanguageModel",
    "ForwardTimer",
    "BatchGenerator",
    "MultiGenerator",
    "Guesser",
    "ImageGenerator",
    "ContextHolder",
    "ParallelReader",
    "CacheEditor",
    "Codec",
    "BatchCodec",
    "CircuitCodec",
    "ChannelRanker",
    "SampleCoder",
]
Source = Literal["package", "debian", "generated", "trained", "shipped", "hub"]
Scale = Literal["small", "published"]
Scalar = bool | int | float | str
Params = dict[str, Scalar | list[Scalar] | dict[str, Scalar] | None]


class Closed(BaseModel):
    """Base of every config model: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Targeted(Closed):
    """A config that names the class it configures; the class must live inside ``parsimony``."""

    target: Target = Field(alias="_target_")
    params: Params = {}

    @model_validator(mode="after")
    def _inside_parsimony(self):
        if not self.target.startswith("parsimony."):
            raise ValueError(f"_target_ {self.target!r} is outside 'parsimony.'; only our own classes can be named")
        return self


class Model(Targeted):
    """Weights + tokenizer: which asset holds them and which class loads them."""

    asset: Key | None = Field(description="null for the neutral model `samples`, which codecs are bound to")
    architecture: Key = Field(description="what methods and benchmarks must be made for: decoder, samples, ...")
    licence: str
    parameters: float | None = Field(None, gt=0, description="billions; resources are asked by it until the lock knows")


class Method(Targeted):
    """An algorithm with named hyper-parameters and the operating points at which it is measured."""

    family: Family
    implements: list[Interface] = Field(min_length=1)
    lossless: bool = False
    architecture: Key = Field("decoder", description="architecture of the models it can be applied to")
    reference: Key | None = Field(None, description="method that is timed against and compared with")
    peer: Key | None = Field(None, description="timed in the same turns, at the point of the same name or its first")
    points: dict[Key, Params] = Field(min_length=1, description="operating point -> overrides of params")
    assets: dict[Key, dict[Key, Key]] = Field({}, description="model -> {field of the method: asset}")
    uses: list[Key] = Field([], description="benchmarks whose cell on the same model must be measured first")
    module: Key | None = Field(None, description="Python module it needs; its cells are skipped where that is missing")
    hasty: Params = Field({}, description="overrides in tests and rehearsals, of encoders that fit a network for long")

    @model_validator(mode="after")
    def _points_override_params(self):
        for where, overrides in [
            *((f"points.{point}", of) for point, of in self.points.items()),
            ("hasty", self.hasty),
        ]:
            for key in overrides:
                if key not in self.params:
                    hint = nearest(key, self.params)
                    raise ValueError(f"{where}: {key!r} is not among the params of this method{hint}")
        if self.lossless and not self.reference and "Codec" not in self.implements:  # codecs have their input
            raise ValueError("a lossless method needs a reference to be compared with")
        return self


class Benchmark(Targeted):
    """Real items + a procedure that measures a system on one item."""

    needs: Interface
    architecture: Key = Field("decoder", description="architecture of the models it can be run on")
    title: str
    assets: list[Key] = []
    uses: list[Key] = Field([], description="benchmarks whose cell for the reference must be measured first")
    programs: list[str] = Field([], description="commands that it runs in the sandbox; skipped where one is missing")
    columns: list[Key] = Field([], description="quantities in its table, in order; all that were measured if not named")


class Study(Closed):
    """One block of cells of a paper's study: every method on every benchmark."""

    methods: list[Key] = Field(min_length=1)
    benchmarks: list[Key] = Field(min_length=1)
    models: list[Key] = Field([], description="the models of the suite if none are named")
    points: dict[Key, list[Key]] = Field({}, description="method -> operating points; all of the suite if not named")
    scale: Scale = Field("small", description="suites of this scale measure it")


class Quantity(Closed):
    """A number that `stats.py` derives from the records of one method on one benchmark."""

    quantity: Key
    method: Key
    benchmark: Key
    point: Key | Literal["best"] | None = Field(None, description="'best': the point with the largest value")
    category: str | None = None


class Check(Closed):
    """A claim as a predicate over records: ``left relation (right * factor)``."""

    left: Quantity
    relation: Literal[">=", "<=", ">", "<", "=="]
    right: float | Quantity
    factor: float = 1.0
    scale: str = Field("", description="the sentence that says how our conditions differ from the published ones")


class Claim(Closed):
    """A published statement, with its value and conditions as published."""

    id: Key
    statement: str
    published: str = Field(description="the published value as printed")
    value: float | None = Field(None, description="the published value as one number, where it is one")
    unit: str = ""
    conditions: str
    source: str = Field(description="where it is published: abstract, table, README, ...")
    check: Check | None = Field(None, description="comes with the study that tests the claim")


class Correlation(Closed):
    """A score and measures of likeness that are correlated over the operating points of several methods."""

    benchmark: Key
    score: Key = Field(description="a quantity")
    measures: list[Key] = Field(min_length=1, description="quantities")
    methods: list[Key] = Field(min_length=1, description="lossless ones left out: they have one point, far from all")


class Figure(Closed):
    """A figure of a study: one quantity against a category, a benchmark, a parameter or another quantity."""

    id: Key
    mirrors: str = Field(description="the figure or table of the paper that it mirrors")
    quantity: Key
    benchmarks: list[Key] = Field(min_length=1)
    against: str = Field(description="'category', 'benchmark', 'param:<name>' or 'quantity:<name>'")
    methods: list[Key] = Field([], description="all that were measured if none are named")
    points: dict[Key, list[Key]] = Field({}, description="method -> operating points; the best one if not named")
    panels: bool = Field(False, description="a panel a category; the other benchmarks are level lines at their best")
    beside: Key | None = Field(None, description="in panels: a second quantity, drawn fainter")

    @model_validator(mode="after")
    def _against_something(self):
        kind, _, name = self.against.partition(":")
        if kind not in ("category", "benchmark", "param", "quantity") or (kind in ("param", "quantity")) != bool(name):
            raise ValueError(f"against: {self.against!r} is not category, benchmark, param:<name> or quantity:<name>")
        if (self.panels or self.beside) and not (self.panels and kind == "quantity"):
            raise ValueError(
                "panels draw a quantity against another: give both 'panels' and 'against: quantity:<name>'"
            )
        return self


class Paper(Closed):
    """One published system: citation, headline claims, and the study that tests them."""

    title: str
    authors: str
    venue: str
    year: int
    arxiv: str | None
    code: str | None = Field(description="official code, owner/name or None")
    code_licence: str | None = None
    family: Family
    kind: str = Field(description="one sentence: what kind of system this is")
    claims: list[Claim] = Field(min_length=1)
    study: list[Study] = Field([], description="empty: not built yet")
    figures: list[Figure] = Field([], description="what mirrors the paper's headline figures")
    correlations: list[Correlation] = Field([], description="for claims on every_codec, and a table")
    pending: str = Field("", description="why there is no study yet")

    @model_validator(mode="after")
    def _study_or_reason(self):
        if bool(self.study) == bool(self.pending):
            raise ValueError("give either a 'study' or, if it is not built yet, the reason in 'pending'")
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) != len(ids):
            raise ValueError(f"claim ids repeat: {sorted(i for i in set(ids) if ids.count(i) > 1)}")
        return self


class Suite(Closed):
    """A choice of papers, models, operating points and item counts, with one seed.

    A rehearsal goes through the studies of the published scale with small stand-ins of models and data from the hub.
    """

    title: str
    scale: Scale | Literal["rehearsal"] = "small"
    papers: list[Key]
    models: list[Key]
    seed: int = 0
    sources: list[Source] = Field(list(get_args(Source)), description="where assets may come from")
    benchmarks: list[Key] = Field([], description="only these; all that the studies name if none are given")
    points: dict[Key, list[Key]] = Field(
        {}, description="method -> operating points; all if not named, [] leaves it out"
    )
    gpu_gb: float | None = Field(None, gt=0, description="memory of each GPU that cells run on; null: processors")
    peers: list[Key] | None = Field(None, description="benchmarks on which methods' peers are timed; null: all")
    params: dict[Key, Params] = Field({}, description="benchmark -> overrides of its params")
    rehearsal: dict[Key, Params] = Field({}, description="benchmark -> further overrides in a rehearsal")


class LockedFile(Closed):
    """One file of an asset as it must be after fetching."""

    size: int | None = None
    sha256: Sha256 | None = None
    member: str | None = Field(None, description="path inside the archive (package, debian) or repository (hub)")


class Asset(Closed):
    """One row of ``assets.lock.yaml``."""

    source: Source
    revision: str = Field(
        description="version of package, Debian package or generator; commit of a hub repository (until it is locked, "
        "a branch or tag)"
    )
    licence: str
    origin: str = Field(description="package, Debian package, hub repository, or the function that makes it")
    archive: LockedFile | None = Field(None, description="the wheel, sdist or .deb")
    inputs: list[Key] = []
    params: Params = {}
    files: dict[str, LockedFile] = Field(min_length=1)
    rehearsal: Key | None = Field(None, description="small asset of the same form that stands in for it in a rehearsal")
    gpus: int = Field(0, ge=0, description="GPUs that its recipe runs on")
    hours: float = Field(1, gt=0, description="what its recipe asks of a cluster at its first attempt")
    memory_gb: float | None = Field(None, gt=0, description="the same, where the weights of its inputs do not say it")
    note: str = ""

    def content(self) -> dict:
        """What decides which bytes arrive, as JSON values."""
        return self.model_dump(mode="json", exclude={"note", "licence", "rehearsal", "gpus", "hours", "memory_gb"})

    @property
    def locked(self) -> bool:
        """Whether what must arrive is known to the byte; a hub row may wait for `parsimony lock` to find it out."""
        commit = re.fullmatch(r"[0-9a-f]{40}", self.revision)
        files = all(file.size is not None and file.sha256 for file in self.files.values())
        return self.source != "hub" or bool(commit and files)

    @property
    def requires(self) -> list[str]:
        """Assets that must be fetched before; a shipped one needs its inputs only when its recipe runs again."""
        return [] if self.source == "shipped" else self.inputs


def parse(kind: type[Closed], data: Any, where: str):
    """Validate ``data`` as ``kind``; the first error becomes one sentence naming key, file and remedy.

    Raises
    ------
    UserError
        With ``where`` (usually the file) and the nearest valid key for a misspelt one.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        # A misspelt required key is both missing and unknown; the unknown one tells more.
        errors = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        raise UserError(f"{where}: {_sentence(kind, errors[0])}") from None


def _sentence(kind: type[Closed], error: dict) -> str:
    location = ".".join(map(str, error["loc"])) or kind.__name__.lower()
    if error["type"] == "extra_forbidden":
        fields = _fields_at(kind, error["loc"][:-1])
        return f"unknown key {location!r}{nearest(str(error['loc'][-1]), fields)}"
    if error["type"] == "missing":
        return f"required key {location!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{location}: {message[0].lower()}{message[1:]}"


def _fields_at(kind: type[Closed], location) -> list[str]:
    """Names of the fields of the model at ``location`` inside ``kind``, read off its JSON schema."""
    schema = kind.model_json_schema()
    node = schema
    for step in location:
        node = _resolve(schema, node)
        if isinstance(step, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(step) or node.get("additionalProperties") or {}
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict, node: dict) -> dict:
    for option in node.get("anyOf", ()):
        if "$ref" in option:
            node = option
    if "$ref" in node:
        return schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


GROUPS: dict[str, type[Closed]] = {
    "suite": Suite,
    "paper": Paper,
    "model": Model,
    "method": Method,
    "benchmark": Benchmark,
    "asset": Asset,
}


def schemas() -> dict[str, str]:
    """JSON schema of each group as text, by file name in ``workflow/schemas``; a test keeps the files equal to it."""
    return {
        f"{name}.schema.json": json.dumps(kind.model_json_schema(), indent=1) + "\n" for name, kind in GROUPS.items()
    }
