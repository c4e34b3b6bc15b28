"""CacheGen's controller (Liu et al., SIGCOMM 2024, arXiv 2310.07240): which form of each chunk of a context is sent.

A simulation: a context's chunks arrive one after another over a link whose bandwidth changes, each at one of several
levels of an encoded cache or as text whose cache is computed again.  With one level and no text this is a transport
at a fixed level or of a quantised cache; without levels it sends text alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parsimony.errors import UserError
from parsimony.methods.kv_cache.held import Prefilled

TEXT = "text"
RULES = ("slots", "budget")


@dataclass
class Arriving(Prefilled):
    """A context that is needed where it was not computed.

    Attributes
    ----------
    chunk : int
        Tokens that are sent at once.
    links : ndarray [n, N]
        Gb/s while each of the N chunks is sent, over each of n links.
    slo : float
        Seconds until the first token is due.
    recompute : float
        Seconds to compute the cache of a chunk of text.
    text_bytes : float
        Bytes of a chunk's text.
    """

    chunk: int
    links: np.ndarray
    slo: float
    recompute: float
    text_bytes: float


@dataclass(frozen=True)
class Delivery:
    """How a context arrived.

    Attributes
    ----------
    levels : tuple of str
        What was sent of each chunk, a level or "text".
    first_token_seconds : float
        Until all chunks were there and decoded or computed.
    slo : float
        Seconds that were allowed.
    """

    levels: tuple[str, ...]
    first_token_seconds: float
    slo: float

    @property
    def met(self) -> bool:
        """Whether the context was there in time."""
        return self.first_token_seconds <= self.slo


def trace(chunks: int, seed: int | np.random.Generator, low: float = 0.1, high: float = 10.0) -> np.ndarray:
    """Bandwidth [chunks] in Gb/s while each chunk is sent, uniform as in the official code."""
    return np.random.default_rng(seed).uniform(low, high, chunks)


def arrival(
    levels: Sequence[str],
    sizes: Mapping[str, Sequence[float]],
    bandwidths: Sequence[float],
    recompute: float | None,
    decode: Mapping[str, float],
    text_bytes: float,
    begin: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, float]:
    """Seconds until the link is free, and until all chunks are decoded or computed, from when both were before.

    Chunks ``levels`` of the first ``bandwidths`` and sizes follow one another on the link; one is decoded or computed
    while the next is sent.  The other parameters are those of `deliver`.
    """
    link, done = begin
    for chunk, (form, bandwidth) in enumerate(zip(levels, bandwidths, strict=True)):
        link += (text_bytes if form == TEXT else sizes[form][chunk]) * 8e-9 / bandwidth
        done = max(link, done) + (recompute if form == TEXT else decode.get(form, 0.0))
    return link, done


def deliver(
    sizes: Mapping[str, Sequence[float]],
    bandwidths: Sequence[float],
    slo: float,
    recompute: float | None = 0.2,
    rule: str = "slots",
    decode: Mapping[str, float] | None = None,
    text_bytes: float = 0.0,
    prior: float | None = None,
) -> Delivery:
    """Send a context.

    Parameters
    ----------
    sizes : dict of str to sequence
        Bytes of each chunk at each level, the best level first.
    bandwidths : sequence [N]
        Gb/s while each of the N chunks is sent.
    slo : float
        Seconds until the first token is due.
    recompute : float or None
        Seconds to compute the cache of a chunk that was sent as text; the official code has 0.2.  None: text is not
        sent.
    rule : {"slots", "budget"}
        "slots" is the official code: every chunk has slo / N seconds and knows its bandwidth; the best level that
        takes less is sent, and text if none does.  Decoding takes no time, and chunks follow one another.
        "budget" is the paper: the bandwidth of the last chunk is expected for all that are left, decoding and
        computing overlap with the next transfer, and the best form is sent with which all chunks left would be there
        in time; text, which loses nothing, is the best.  If none would be in time, the one that ends first is sent;
        that, text as the best form, and that a chunk of text tells of the bandwidth too, are interpretations.
    decode : dict of str to float, optional
        Seconds to decode a chunk of a level, under "budget"; none where it is left out.
    text_bytes : float
        Bytes of a chunk's text, under "budget".
    prior : float, optional
        Gb/s that are expected of the first chunk, under "budget".  Without it the first chunk is sent at the middle
        level.

    Raises
    ------
    UserError
        For an unknown rule, chunks that differ in number, bandwidths, times or sizes that are not positive, and when
        there is nothing to send.
    """
    N, decode = len(bandwidths), decode or {}
    if rule not in RULES or not N or any(len(of_level) != N for of_level in sizes.values()):
        raise UserError(f"streaming: rule {rule!r} is not one of {', '.join(RULES)}, or not all levels have a size for "
                        f"each of {N} chunks; mend the arguments")  # fmt: skip
    if TEXT in sizes or not sizes and recompute is None:
        raise UserError("streaming: there is neither a level nor text to send, or a level is called text; name levels")
    above = np.array([slo, *bandwidths, *(size for of_level in sizes.values() for size in of_level)])
    above = np.append(above, [] if prior is None else prior)
    others = np.array([text_bytes, recompute or 0.0, *decode.values()])
    if not ((above > 0) & (above < np.inf)).all() or not ((others >= 0) & (others < np.inf)).all():
        raise UserError("streaming: sizes, bandwidths and slo have to be above 0, other times not below; mend them")

    def sent(form: str, first: int, bandwidths: Sequence[float], state: tuple[float, float]) -> tuple[float, float]:
        """When the link is free and the chunks from ``first`` on are done, all of one form."""
        left = {level: of_level[first:] for level, of_level in sizes.items()}
        return arrival([form] * len(bandwidths), left, bandwidths, recompute, decode, text_bytes, state)

    def slots(chunk: int) -> str:
        fitting = (level for level in sizes if sizes[level][chunk] * 8e-9 / bandwidths[chunk] < slo / N)
        return next(fitting, TEXT if recompute is not None else list(sizes)[-1])

    def budget(chunk: int) -> str:
        forms = [TEXT] * (recompute is not None) + list(sizes)
        expected = bandwidths[chunk - 1] if chunk else prior
        if expected is None:
            return list(sizes)[len(sizes) // 2] if sizes else TEXT
        ends = {form: sent(form, chunk, [expected] * (N - chunk), (link, done))[1] for form in forms}
        return next((form for form in forms if ends[form] <= slo), min(forms, key=ends.get))

    link = done = 0.0
    levels = []
    for chunk, bandwidth in enumerate(bandwidths):
        if rule == "slots":
            form = slots(chunk)
            done += recompute if form == TEXT else sizes[form][chunk] * 8e-9 / bandwidth
        else:
            form = budget(chunk)
            link, done = sent(form, chunk, [bandwidth], (link, done))
        levels.append(form)
    return Delivery(tuple(levels), float(done), float(slo))
