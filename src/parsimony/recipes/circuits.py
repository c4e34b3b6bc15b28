"""Hidden Chow-Liu trees of digits and of patches of photographs, learnt by expectation maximisation."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from parsimony import devices
from parsimony.assets.mnist import HELD_OUT, pixels
from parsimony.assets.photographs import crops
from parsimony.benchmarks.hub_media import picture, rows
from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.lossless.chow_liu import ChowLiu
from parsimony.methods.lossless.circuit_coder import CircuitCodec
from parsimony.models.circuit import HiddenChowLiuTree, chow_liu, mutual_information, rooted, shifted_colours

VALUES = 256
FOLD = 400
"""Samples of the training side that stop the learning."""
BATCH = 256
STRUCTURE = 1000
"""Samples from which mutual information is estimated."""


def of_digits(
    out: Path, inputs: dict[str, Path], data: str, states: int, epochs: int, pseudocount: float, floor: float,
    seed: int, balanced: bool = False, crop: int = 28, bins: int = 16,
):  # fmt: skip
    """Learn a circuit of the middle ``crop`` by ``crop`` pixels of the digits.

    Raises
    ------
    UserError
        When it needs more than ``floor`` bits a pixel for the digits held out.
    """
    images, _ = pixels(inputs[data])
    edge = (images.shape[1] - crop) // 2
    images = images[:, edge : edge + crop, edge : edge + crop].copy()
    learnt = learn(images[:-HELD_OUT], states, epochs, pseudocount, balanced, bins, seed, BATCH, FOLD, STRUCTURE)
    write(out, learnt, images[-HELD_OUT:], floor)


def of_patches(
    out: Path, inputs: dict[str, Path], data: str, side: int, patches: int, states: int, epochs: int,
    pseudocount: float, floor: float, seed: int, balanced: bool = False, bins: int = 16,
):  # fmt: skip
    """Learn a circuit of ``patches`` squares of ``side`` pixels, anywhere in the training side of the photographs.

    Raises
    ------
    UserError
        When it needs more than ``floor`` bits a value for patches that were not trained on.
    """
    _, squares = crops(inputs[data], "train")
    rng = np.random.default_rng(seed)
    at = rng.integers(0, [len(squares), squares.shape[1] - side + 1, squares.shape[2] - side + 1], (patches, 3))
    cut = np.stack([squares[n, r : r + side, c : c + side] for n, r, c in at[np.argsort(at[:, 0], kind="stable")]])
    apart = cut[-HELD_OUT:]  # of the last pictures
    cut = rng.permutation(cut[:-HELD_OUT])
    learnt = learn(shifted_colours(cut), states, epochs, pseudocount, balanced, bins, seed, BATCH, FOLD, STRUCTURE)
    write(out, learnt, apart, floor)


def of_data_set(
    out: Path, inputs: dict[str, Path], data: str, states: int, epochs: int, pseudocount: float, floor: float,
    seed: int, balanced: bool = False, bins: int = 32, batch: int = 512, fold: int = 5000, structure: int = 10_000,
):  # fmt: skip
    """Learn a circuit of the grey images in ``train.parquet`` of a public data set.

    Raises
    ------
    UserError
        When it needs more than ``floor`` bits a pixel for the first images of ``test.parquet``.
    """

    def images(side: str, most: int | None) -> np.ndarray:
        table = islice(rows(inputs[data] / f"{side}.parquet", ["image"]), most)
        return np.stack([picture(row["image"], "L") for row in table])

    train, test = images("train", None), images("test", HELD_OUT)
    learnt = learn(train, states, epochs, pseudocount, balanced, bins, seed, batch, fold, structure)
    write(out, learnt, test, floor)


def learn(
    images: np.ndarray, states: int, epochs: int, pseudocount: float, balanced: bool, bins: int, seed: int,
    batch: int, fold: int, structure: int,
) -> tuple[HiddenChowLiuTree, tuple[int, ...]]:  # fmt: skip
    """A circuit of images ([N, H, W] or [N, H, W, 3] uint8), and their shape.

    Mutual information is that of the first ``structure`` images; the last ``fold`` stop the learning.

    Mini-batches move the parameters by half of what they ask for at first and by a twentieth in the last epoch; then
    the whole training side does, at full step, as long as the samples of the fold gain.
    """
    x, where = images.reshape(len(images), -1), devices.held()[0]
    edges = chow_liu(mutual_information(x[:structure], VALUES, bins))
    circuit = HiddenChowLiuTree(rooted(edges, x.shape[1], balanced), states, VALUES, seed).to(where)
    x = torch.from_numpy(x.astype(np.int64)).to(where)
    learnt, apart = x[:-fold], x[-fold:].split(batch)
    train = learnt.split(batch)
    rng = torch.Generator().manual_seed(seed)
    with torch.device(where):
        for step in np.geomspace(0.5, 0.05, epochs):
            total, order = 0.0, torch.randperm(len(learnt), generator=rng, device="cpu").to(where)
            for some in learnt[order].split(batch):
                flows, found = circuit.flows([some])
                circuit.maximise(flows, pseudocount * len(some) / len(order), step)
                total += found
            print(f"step {step:.3f}: {_bits(total, train):.4f} bits a value", flush=True)
        best, kept = _apart(circuit, apart), _copy(circuit)
        while True:
            flows, total = circuit.flows(train)
            circuit.maximise(flows, pseudocount, 1.0)
            found = _apart(circuit, apart)
            print(f"whole: {_bits(total, train):.4f} bits a value, fold {found:.4f}", flush=True)
            if found > best - 5e-4:
                break
            best, kept = found, _copy(circuit)
    circuit.load_state_dict(kept)
    return circuit.cpu(), images.shape[1:]


def _copy(circuit: HiddenChowLiuTree) -> dict[str, Tensor]:
    return {name: p.clone() for name, p in circuit.state_dict().items()}


def write(out: Path, learnt: tuple[HiddenChowLiuTree, tuple[int, ...]], apart: np.ndarray, floor: float) -> None:
    """Write the file and check the code length, by the tables that are stored, of images ``apart``."""
    circuit, shape = learnt
    save_file(circuit.tables() | {"shape": np.array(shape, np.int32)}, out / "circuit.safetensors")
    bits = float(CircuitCodec(out / "circuit.safetensors", "once", False).bits(list(apart)).mean() / np.prod(shape))
    print(f"{bits:.4f} bits a value on {len(apart)} images held out", flush=True)
    if bits > floor:
        raise UserError(f"the circuit needs {bits:.4f} bits a value for images held out; it must need {floor} at most")


@torch.no_grad()
def _apart(circuit: HiddenChowLiuTree, batches: tuple[Tensor, ...]) -> float:
    return _bits(sum(circuit(batch).sum().item() for batch in batches), batches)


def _bits(nats: float, batches: tuple[Tensor, ...]) -> float:
    """Bits a value of all values in the batches."""
    return -nats / sum(batch.numel() for batch in batches) / np.log(2)


def chow_liu_pairs(out: Path, inputs: dict[str, Path], data: str, floor: float, bins: int = 16):
    """Count the values of pixels and of those above them in the Chow-Liu tree of the digits.

    Raises
    ------
    UserError
        When the streams of the digits held out take more than ``floor`` bits a pixel.
    """
    images, _ = pixels(inputs[data])
    x = images[:-HELD_OUT].reshape(-1, images[0].size)
    tree = HiddenChowLiuTree(rooted(chow_liu(mutual_information(x[:STRUCTURE], VALUES, bins)), x.shape[1], False), 1, 1)
    parent, variable = (array.numpy().astype(np.int32) for array in (tree.parent, tree.variable))
    x = x[:, variable].astype(np.int64)
    above = x[:, parent]
    above[:, 0] = 0
    keys, counts = np.unique((np.arange(len(parent)) * VALUES + above) * VALUES + x, return_counts=True)
    pairs = {"keys": keys.astype(np.int32), "counts": counts.astype(np.uint16), "parent": parent, "variable": variable}
    save_file(pairs | {"shape": np.array(images.shape[1:], np.int32)}, out / "pairs.safetensors")
    streams = ChowLiu().build(None, Inputs({"pairs": out})).encode_batch(list(images[-HELD_OUT:]))
    bits = 8 * sum(map(len, streams)) / images[-HELD_OUT:].size
    print(f"{bits:.4f} bits a pixel on {HELD_OUT} digits held out", flush=True)
    if bits > floor:
        raise UserError(f"the tree needs {bits:.4f} bits a pixel for digits held out; it must need {floor} at most")
