"""Lossless coding with probabilistic circuits (Liu, Mandt, Van den Broeck, arXiv 2111.11632, sections 3 and 4).

A hidden Chow-Liu tree gives the exact conditional of each value given those before; rANS codes it.  The conditional is
linear in the input vector of its variable, so the vector going down to that input (`models.vtree.Schedule`) gives all
of P(X_k < x | past), one dot product with a cumulative table for each x that is asked for: two in the encoder, at most
log2 K + 1 in the decoder.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from parsimony.errors import UserError
from parsimony.methods.lossless import circuit_passes
from parsimony.methods.lossless.circuit_passes import Circuit
from parsimony.models import container, rans
from parsimony.models.circuit import plain_colours, shifted_colours, tables
from parsimony.models.vtree import Vtree, schedule


class CircuitCoder:
    """Codes images with a trained circuit.

    Parameters
    ----------
    circuit : str
        Which of the method's assets holds it.
    mode : {"once", "path", "naive"}
        What is evaluated anew for each variable (`models.vtree.schedule`); the streams are the same.
    tiles : bool
        Take images of any size, cut into tiles as large as the circuit, and code all tiles as one stream behind a
        header with the size; else take images as large as the circuit, without a header.
    """

    def __init__(self, circuit: str = "m_16", mode: str = "once", tiles: bool = False):
        self.circuit, self.mode, self.tiles = circuit, mode, tiles

    def build(self, model, inputs) -> CircuitCodec:
        return CircuitCodec(inputs.assets[self.circuit] / "circuit.safetensors", self.mode, self.tiles)


class CircuitCodec:
    """A circuit from its file, in one mode.

    Attributes
    ----------
    shape : tuple of int
        Of the images, or tiles.
    size : int
        Edges of the circuit, |p|.
    """

    modes = ("once", "path", "naive")

    def __init__(self, file: Path, mode: str, tiles: bool):
        if mode not in self.modes:
            raise UserError(f"circuit_coder: mode {mode!r} is none of {', '.join(self.modes)}")
        self.file, self.mode, self.tiles = file, mode, tiles
        self.stored = load_file(file)
        self.shape = tuple(self.stored["shape"].tolist())
        self.model_bytes = file.stat().st_size
        self.vtree = Vtree.of(self.stored["parent"])
        self.M = len(self.stored["prior"])
        self.size = int(self.vtree.edges(self.M).sum()) + self.M

    def in_mode(self, mode: str) -> CircuitCodec:
        """The same codec in another mode."""
        return CircuitCodec(self.file, mode, self.tiles)

    def in_one_stream(self) -> CircuitCodec:
        """The same circuit for images of any size, all of whose tiles are one stream."""
        return CircuitCodec(self.file, self.mode, True)

    @cached_property
    def evaluations(self) -> int:
        """Edges evaluated for all conditionals of one image or tile."""
        return schedule(self.vtree, self.mode).evaluations(self.vtree, self.M)

    @cached_property
    def circuit(self) -> Circuit:
        return compiled_circuit(self.stored, self.vtree, self.mode)

    def encode(self, x: np.ndarray) -> bytes:
        return self.encode_batch([x])[0]

    def decode(self, data: bytes) -> np.ndarray:
        return self.decode_batch([data])[0]

    def encode_batch(self, xs: list[np.ndarray]) -> list[bytes]:
        samples, counts = self._samples(xs)
        parts = _parts(counts)
        coded = _on_threads(lambda part: self._encode(samples[part[0] : part[-1]], part), parts)
        streams = [stream for part in coded for stream in part]
        return [container.pack(*each) for each in zip(xs, streams, strict=True)] if self.tiles else streams

    def decode_batch(self, data: list[bytes]) -> list[np.ndarray]:
        unpacked = [container.unpack(each) if self.tiles else (self.shape, each) for each in data]
        shapes, streams = zip(*unpacked, strict=True) if data else ((), ())
        if any(len(shape) not in self._axes for shape in shapes):
            raise UserError(f"circuit_coder: a header names no image of the kind {list(self.shape)}; encode it again")
        parts = _parts([self._count(shape) for shape in shapes])
        begins = np.cumsum([0, *(len(part) - 1 for part in parts)])
        jobs = [(streams[a:b], part) for part, a, b in zip(parts, begins, begins[1:], strict=False)]
        decoded = _on_threads(lambda job: self._decode(*job), jobs)
        images = [image for part in decoded for image in part]
        return [self._image(samples, shape) for samples, shape in zip(images, shapes, strict=True)]

    def bits(self, xs: list[np.ndarray]) -> np.ndarray:
        """-log2 p of each image [B], by the conditionals that are coded with."""
        samples, counts = self._samples(xs)
        _, _, bits = self._intervals(samples)
        return np.array([each.sum() for each in np.split(bits, np.cumsum(counts[:-1]))])

    def _samples(self, xs: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
        """Tiles [n, D] of all images, a column a node, and how many each has."""
        for x in xs:
            if self.tiles:
                container.kind(x, "circuit_coder", *(("grey", "colour")[: len(self._axes)]))
            elif x.dtype != np.uint8 or x.shape != self.shape:
                found = f"{x.dtype} {list(x.shape)}"
                raise UserError(
                    f"circuit_coder: {found} is not uint8 {list(self.shape)}, as it was trained on; set tiles"
                )
        D = len(self.vtree.order)
        if len(self.shape) == 3:
            xs = [shifted_colours(x if x.ndim == 3 else np.repeat(x[..., None], 3, 2)) for x in xs]
        cut = [_cut(x, self.shape).reshape(-1, D) for x in xs]
        samples = np.concatenate([np.zeros((0, D), np.uint8), *cut])[:, self.stored["variable"]]
        K = self.stored["leaves"].shape[1]
        if samples.max(initial=0) >= K:
            raise UserError(f"circuit_coder: {samples.max()} is not among the values from 0 to {K - 1} of this circuit")
        return np.ascontiguousarray(samples), [len(tiles) for tiles in cut]

    def _encode(self, samples: np.ndarray, part: np.ndarray) -> list[bytes]:
        lows, highs, _ = self._intervals(samples)
        first = part[1:-1] - part[0]
        return rans.encode(*([rows.ravel() for rows in np.split(bounds, first)] for bounds in (lows, highs)))

    def _intervals(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lows, highs, bits = np.zeros(samples.shape, np.int64), np.zeros(samples.shape, np.int64), np.zeros(len(samples))
        circuit_passes.intervals(self.circuit, samples, lows, highs, bits)
        return lows, highs, bits

    def _decode(self, data: list[bytes], part: np.ndarray) -> list[np.ndarray]:
        first, streams = part - part[0], rans.Streams(data)
        samples = np.zeros((first[-1], len(self.vtree.order)), np.uint8)
        circuit_passes.decode(self.circuit, first, streams.words, streams.states, streams.counts, samples)
        streams.finish("circuit_coder")
        return np.split(samples, first[1:-1])

    @property
    def _axes(self) -> tuple[int, ...]:
        """How many axes images may have; a circuit of colours takes grey as three equal ones."""
        return (2, 3) if len(self.shape) == 3 else (2,)

    def _count(self, shape: tuple[int, ...]) -> int:
        return -(-shape[0] // self.shape[0]) * -(-shape[1] // self.shape[1])

    def _image(self, samples: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The image of this shape of its samples [n, D]."""
        tiles = np.empty_like(samples)
        tiles[:, self.stored["variable"]] = samples
        h, w = self.shape[:2]
        rows = tiles.reshape(-(-shape[0] // h), -1, *self.shape).swapaxes(1, 2)
        x = rows.reshape(rows.shape[0] * h, -1, *self.shape[2:])[: shape[0], : shape[1]]
        if len(self.shape) == 3:
            x = plain_colours(x) if len(shape) == 3 else x[..., 1]
        return np.ascontiguousarray(x)


def compiled_circuit(stored: dict[str, np.ndarray], vtree: Vtree, mode: str) -> Circuit:
    """The arrays that the passes work on."""
    steps, M = schedule(vtree, mode), len(stored["prior"])
    A = np.concatenate((np.zeros((1, M, M)), np.diff(tables(stored["transitions"], 2), axis=2) * 2.0**-24))
    top = np.zeros((len(vtree.above), M))
    top[vtree.root] = np.diff(tables(stored["prior"], 0)) * 2.0**-24
    circuit = Circuit(
        vtree.first, vtree.second, vtree.above, vtree.sibling, vtree.order, steps.down, steps.down_at, steps.up,
        steps.up_at, A, np.ascontiguousarray(A.swapaxes(1, 2)), tables(stored["leaves"], 1).astype(np.int32), top,
    )  # fmt: skip
    nothing = np.ones_like(top)
    for node in vtree.bottom_up()[-2::-1]:
        circuit_passes.go_down(node, circuit, nothing, top)
    return circuit


def _cut(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Tiles [n, h, w(, 3)] of an image, row by row; what sticks out repeats the edge."""
    h, w = shape[:2]
    beyond = [(0, -x.shape[0] % h), (0, -x.shape[1] % w), (0, 0)][: x.ndim]
    x = np.pad(x, beyond, mode="edge")
    return x.reshape(x.shape[0] // h, h, x.shape[1] // w, *shape[1:]).swapaxes(1, 2).reshape(-1, *shape)


def _parts(counts: list[int]) -> list[np.ndarray]:
    """Where each stream's samples begin, and the last ends, for as many shares of the streams as there are threads."""
    ends = np.cumsum([0, *counts])
    shares = [share for share in np.array_split(np.arange(len(counts)), torch.get_num_threads()) if len(share)]
    return [ends[share[0] : share[-1] + 2] for share in shares]


def _on_threads(job, parts: list) -> list:
    if len(parts) < 2:
        return [job(part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as threads:
        return list(threads.map(job, parts))
