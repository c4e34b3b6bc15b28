"""Hidden Chow-Liu trees of digits and of patches of photographs, learnt by expectation maximisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from parsimony.assets.mnist import HELD_OUT, pixels
from parsimony.assets.photographs import crops
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
    learnt = learn(images[:-HELD_OUT], states, epochs, pseudocount, balanced, bins, seed)
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
    learnt = learn(shifted_colours(cut), states, epochs, pseudocount, balanced, bins, seed)
    write(out, learnt, apart, floor)


def learn(
    images: np.ndarray, states: int, epochs: int, pseudocount: float, balanced: bool, bins: int, seed: int
) -> tuple[HiddenChowLiuTree, tuple[int, ...]]:
    """A circuit of images ([N, H, W] or [N, H, W, 3] uint8), and their shape.

    Mini-batches move the parameters by half of what they ask for at first and by a twentieth in the last epoch; then
    the whole training side does, at full step, as long as the samples of the fold gain.
    """
    x = images.reshape(len(images), -1)
    edges = chow_liu(mutual_information(x[:STRUCTURE], VALUES, bins))
    circuit = HiddenChowLiuTree(rooted(edges, x.shape[1], balanced), states, VALUES, seed)
    x = torch.from_numpy(x.astype(np.int64))
    train, fold = x[:-FOLD], x[-FOLD:]
    rng = torch.Generator().manual_seed(seed)
    for step in np.geomspace(0.5, 0.05, epochs):
        total = 0.0
        for batch in train[torch.randperm(len(train), generator=rng)].split(BATCH):
            flows, found = circuit.flows([batch])
            circuit.maximise(flows, pseudocount * len(batch) / len(train), step)
            total += found
        print(f"step {step:.3f}: {_bits(total, train):.4f} bits a value", flush=True)
    best, kept = _apart(circuit, fold), circuit.state_dict()
    while True:
        flows, total = circuit.flows(train.split(BATCH))
        circuit.maximise(flows, pseudocount, 1.0)
        found = _apart(circuit, fold)
        print(f"whole: {_bits(total, train):.4f} bits a value, fold {found:.4f}", flush=True)
        if found > best - 5e-4:
            break
        best, kept = found, {name: p.clone() for name, p in circuit.state_dict().items()}
    circuit.load_state_dict(kept)
    return circuit, images.shape[1:]


def write(out: Path, learnt: tuple[HiddenChowLiuTree, tuple[int, ...]], apart: np.ndarray, floor: float) -> None:
    """Write the file and check the code length, by the tables that are stored, of images ``apart``."""
    circuit, shape = learnt
    save_file(circuit.tables() | {"shape": np.array(shape, np.int32)}, out / "circuit.safetensors")
    bits = float(CircuitCodec(out / "circuit.safetensors", "once", False).bits(list(apart)).mean() / np.prod(shape))
    print(f"{bits:.4f} bits a value on {len(apart)} images held out", flush=True)
    if bits > floor:
        raise UserError(f"the circuit needs {bits:.4f} bits a value for images held out; it must need {floor} at most")


@torch.no_grad()
def _apart(circuit: HiddenChowLiuTree, x: Tensor) -> float:
    return _bits(sum(circuit(batch).sum().item() for batch in x.split(BATCH)), x)


def _bits(nats: float, x: Tensor) -> float:
    return -nats / x.numel() / np.log(2)


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
