"""What a benchmark may ask of a system, and the values that pass between them.

A method's ``build(model, inputs)`` returns a system that satisfies one or more of these protocols; a benchmark
names the one it needs, and the plan rejects a pair that does not fit before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import torch


@dataclass
class Cost:
    """What one generation cost, counted by the loop that did the work.

    Attributes
    ----------
    passes : int
        Forward passes of the target after prefill.
    drafted, accepted : int
        Draft tokens proposed and draft tokens kept (bonus tokens not included, nothing after the end counted).
    rows : int
        Rows (tokens) the target evaluated in those passes.
    accepted_per_pass : list of int
        Tokens gained in each pass, bonus included; its mean is the mean accepted tokens (MAT), 1.0 for plain decoding.
    cache_bytes : int
        Bytes of the live KV entries at the end, counted from the tensors.
    prefill_seconds, draft_seconds, verify_seconds : float
        Shares of the wall-clock time.
    """

    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    rows: int = 0
    accepted_per_pass: list[int] = field(default_factory=list)
    cache_bytes: int = 0
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0


@dataclass
class Generation:
    """Generated token ids (1-D int64, prompt not included, end token included if reached) and their cost."""

    tokens: torch.Tensor
    cost: Cost


@dataclass
class Batch:
    """What generating for several prompts at once gives.

    Attributes
    ----------
    generations : list of Generation
        One a prompt, in order; their costs count what each sequence drafted and accepted.
    cost : Cost
        Of the batch as a whole: passes over the batch, rows including padding, peak cache.
    realign_seconds : float
        Wall-clock time spent on making rows of unequal length fit together again.
    grouped : int
        Passes over sequences that were of one length already, so that nothing had to be realigned.
    """

    generations: list[Generation]
    cost: Cost
    realign_seconds: float = 0.0
    grouped: int = 0


@dataclass
class Drafts:
    """Several continuations of one prompt, best first, and what they cost together.

    Attributes
    ----------
    tokens : list of Tensor
        Token ids of each continuation (1-D int64).
    scores : list of float
        What the method ranks them by, not increasing.
    cost : Cost
    """

    tokens: list[torch.Tensor]
    scores: list[float]
    cost: Cost


@dataclass(frozen=True)
class Inputs:
    """What a method may use besides the model.

    Attributes
    ----------
    assets : dict of str to Path
        Folder of each asset of the method's config, by field.
    records : dict of str to DataFrame
        Records of the cells the method's config `uses`, by benchmark (same model, reference method).
    """

    assets: dict[str, Path] = field(default_factory=dict)
    records: dict[str, pd.DataFrame] = field(default_factory=dict)


@runtime_checkable
class TextGenerator(Protocol):
    """Continues a prompt."""

    def generate(self, prompt_ids: torch.Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """Continue ``prompt_ids`` ([T] int64) by at most ``limit`` tokens."""
        ...


@runtime_checkable
class BatchGenerator(Protocol):
    """Continues several prompts at once."""

    def generate_batch(
        self, prompts: list[torch.Tensor], limit: int, rng: np.random.Generator, together: int | None = None
    ) -> Batch:
        """Continue each of ``prompts`` ([T_i] int64) by at most ``limit`` tokens.

        At most ``together`` sequences share a forward pass; None: all of them.
        """
        ...


@runtime_checkable
class MultiGenerator(Protocol):
    """Gives several continuations of one prompt."""

    def generate_many(self, prompt_ids: torch.Tensor, limit: int, rng: np.random.Generator) -> Drafts:
        """Continuations of ``prompt_ids`` ([T] int64) by at most ``limit`` tokens each."""
        ...


@runtime_checkable
class ImageGenerator(Protocol):
    """Makes images of given classes."""

    def generate_images(self, classes: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, Cost]:
        """Images [B, height, width] with values 0 to 1 of ``classes`` ([B] int64), and what they cost together."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """Scores a text."""

    def nll(self, ids: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood in nats of ``ids[1:]`` given what precedes each ([T-1] float64)."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Turns samples into bytes and back, elsewhere: a decoder has the bytes and an equal codec, and nothing else.

    Samples are uint8, an image [H, W] or [H, W, 3] or bytes [N], or int16, an audio clip [N].

    Attributes
    ----------
    model_bytes : int
        What both sides must have beforehand (networks, priors, tables) in bytes; 0 for classic codecs.
    """

    model_bytes: int

    def encode(self, x: np.ndarray) -> bytes:
        """Everything that a decoder needs for this item, its shape included; the length is the rate.

        Raises
        ------
        UserError
            For samples of a kind, shape or size that this codec does not take.
        """
        ...

    def decode(self, data: bytes) -> np.ndarray:
        """Samples of a stream.

        Raises
        ------
        UserError
            For bytes that are no stream of this codec, as far as that shows; never anything else, whatever they are.
        """
        ...


@runtime_checkable
class BatchCodec(Codec, Protocol):
    """A codec that is faster on many items at once; each stream is byte for byte that of `encode` alone."""

    def encode_batch(self, xs: list[np.ndarray]) -> list[bytes]:
        """A stream an item."""
        ...

    def decode_batch(self, data: list[bytes]) -> list[np.ndarray]:
        """The items of streams, which may have been encoded in other batches."""
        ...


@runtime_checkable
class CircuitCodec(BatchCodec, Protocol):
    """A codec on a probabilistic circuit, which can be evaluated in several modes with the same streams.

    Attributes
    ----------
    shape : tuple of int
        Of the images it takes.
    modes : tuple of str
        Modes of evaluation.
    size : int
        Edges of the circuit.
    evaluations : int
        Edges evaluated in its mode to code one image.
    """

    shape: tuple[int, ...]
    modes: tuple[str, ...]
    size: int
    evaluations: int

    def in_mode(self, mode: str) -> CircuitCodec:
        """The same codec in another mode."""
        ...

    def in_one_stream(self) -> BatchCodec:
        """A codec that takes several images one below the other and makes one stream of them."""
        ...

    def bits(self, xs: list[np.ndarray]) -> np.ndarray:
        """-log2 of the probability of each image ([B] float64)."""
        ...


@runtime_checkable
class ChannelRanker(Protocol):
    """Says which latent channels of an image codec matter.

    Attributes
    ----------
    original
        The ``latent_coding.ImageCodec`` as it was trained.
    importance
        The ``iscs.Importance`` of its channels.
    """

    original: object
    importance: object


@runtime_checkable
class SampleCoder(Protocol):
    """Tells another side samples of a Gaussian, given one that both know."""

    def draw(
        self, mean: np.ndarray, std: np.ndarray, prior_mean: np.ndarray, prior_std: np.ndarray, stream: int
    ) -> tuple[np.ndarray, int, int]:
        """A sample [d] of N(mean, std^2), as whoever knows the prior N(prior_mean, prior_std^2) has it from a number.

        Returns
        -------
        tuple
            The sample, the number, and how many bits it is sent in; all follow from the arguments.
        """
        ...


@runtime_checkable
class ContextHolder(Protocol):
    """Holds a context that was run exactly, compressed or moved away, and goes on from it."""

    def hold(self, prefilled):
        """What is held of a ``kv_cache.held.Prefilled``: a ``kv_cache.held.Context``, and the seconds that it took."""
        ...


@runtime_checkable
class ParallelReader(Protocol):
    """Reads several contexts behind a common prefix, not necessarily one after the other."""

    def read(self, prefix_ids: torch.Tensor, contexts: list[torch.Tensor]):
        """A ``kv_cache.held.Context`` that goes on from them, and the seconds that it took."""
        ...


@runtime_checkable
class CacheEditor(Protocol):
    """Brings a cached context up to date when its text is edited."""

    def edit(self, prefilled, edits):
        """Apply ``kv_cache.pie.Edit`` to a ``kv_cache.held.Prefilled``: a ``Context``, seconds, and rows run."""
        ...


@runtime_checkable
class Guesser(Protocol):
    """Guesses tokens beyond the next one.

    Attributes
    ----------
    trained : list of Tensor
        Everything that was trained for it.
    """

    trained: list[torch.Tensor]

    def guess(self, ids: torch.Tensor, cuts: torch.Tensor) -> torch.Tensor:
        """Ranked guesses [K, m, R] of the tokens 2, 3, ..., m + 1 steps behind each of K prefixes of ``ids``.

        ``cuts`` [K] int64 are the prefixes' lengths; what follows a prefix must not be looked at.
        """
        ...


@runtime_checkable
class ForwardTimer(Protocol):
    """Times a forward pass of its network."""

    def forward_seconds(self, rows: int, context: int, repeats: int) -> list[float]:
        """Wall-clock seconds of each of several passes over ``rows`` tokens behind ``context`` cached ones."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """Learns from the items it has seen; the cell saves its state with every shard, so that a rerun goes on from it."""

    def state(self) -> dict[str, torch.Tensor]:
        """Everything carried from item to item."""
        ...

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go back to a saved state; an empty dict is the state after building."""
        ...


@dataclass(frozen=True)
class Item:
    """One item of a benchmark.

    Attributes
    ----------
    id : str
        Stable and unique inside the benchmark.
    category : str
        Reported group, lower snake case.
    turns : tuple of str
        User messages in order (one for single-turn items), or the text itself.
    source : str
        Where the item comes from: asset key and row.
    """

    id: str
    category: str
    turns: tuple[str, ...] = ()
    source: str = ""


@dataclass
class Outcome:
    """What measuring one item gives.

    Attributes
    ----------
    numbers : list of tuple
        ``(point, metric, value, unit)``.
    failures : dict of (point, metric) to str
        Numbers that a check found wrong, with the cause; their status becomes ``failed``.
    outputs : dict of (point, name) to list of float
        Raw outputs worth keeping (tokens, tokens gained in each pass, per-token likelihoods).
    """

    numbers: list[tuple[str, str, float, str]] = field(default_factory=list)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    outputs: dict[tuple[str, str], list[float]] = field(default_factory=dict)


class Workbench(Protocol):
    """What a benchmark may use while it measures; the cell provides it."""

    points: tuple[str, ...]
    records: dict[str, pd.DataFrame]
    lossless: bool
    """Whether the method promises the output of its reference."""

    def model(self, dtype: str):
        """The loaded model in ``dtype``."""
        ...

    def system(self, point: str, dtype: str):
        """The method at an operating point; built once."""
        ...

    def reference(self, dtype: str, point: str = ""):
        """The declared reference at its point of this name, else at its first; None for a method that is its own."""
        ...

    def peer(self, point: str, dtype: str):
        """The declared peer at its point of the same name, else at its first, or None; built once."""
        ...

    def stored(self, item: str, name: str) -> list[float] | None:
        """An output of the reference's cell on this benchmark."""
        ...

    def decode(self, point: str, streams: list[bytes]) -> tuple[list[np.ndarray], float]:
        """What a codec at an operating point decodes in another process, and the seconds that it took there."""
        ...

    def kept(self, code: str, settings: list, make) -> dict[str, torch.Tensor]:
        """What ``make`` returns, computed once for all cells; ``code`` (a name), model and settings decide it."""
        ...

    def rng(self, item: str) -> np.random.Generator:
        """A generator seeded by suite and item, the same for every method and point."""
        ...


class Benchmark(Protocol):
    """Items and a procedure; ``timed`` benchmarks are warmed up and reserve all cores."""

    timed: bool

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        """The items, in order, from the assets that are there; deterministic in ``seed``."""
        ...

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        """Categories that have no items, each with the reason, given why assets are missing."""
        ...

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        """Measure all operating points on one item."""
        ...
