"""CacheGen (Liu et al., SIGCOMM 2024, arXiv 2310.07240): a codec for the cache of a context that is sent.

    data = CacheGen(level=2).encode(keys, values)
    keys, values = decode(data)

The cache is cut into chunks of tokens; each is quantised (`cachegen_codec`) and becomes a container
(`cachegen_container`).  Decoding imports no torch, so that ``python -m parsimony.methods.kv_cache.cachegen decode``
starts fast.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from parsimony.errors import UserError
from parsimony.methods.kv_cache.cachegen_codec import BINS, FACTORS, SCHEMES, Scheme, differences
from parsimony.methods.kv_cache.cachegen_container import CODINGS, MOST, container, counted, decode

if TYPE_CHECKING:
    from parsimony.interfaces import Inputs
    from parsimony.methods.kv_cache.held import Held, Holder, Prefilled
    from parsimony.models.language import Language


class CacheGen:
    """Sends the cache as bytes to another process, and holds in half precision what that decodes.

    The first layer's ``numbers`` tell what that took: ``transport_bytes``, ``encode_seconds``, and ``decode_seconds``,
    the other process's own time from bytes to arrays; with variant "paper" also the mean squares of values and of
    their differences from anchors.

    Parameters
    ----------
    level : {1, 2, 3, "70b", "int8", "int4"}
        A level of the codec, or plain quantisation without entropy coding.
    variant : {"released", "paper", "raw"}
        The official code, the paper with its anchors, or the paper's bin widths without them: see `Scheme`.
        Interpretations in the latter: bin widths are relative to the deviation (root mean square) of a layer's
        differences, which are from the anchor as decoded; symbols stay within 127 bins from 0; levels 1 and 3 have bins
        twice and half as wide.
    coding : {"channel", "layer", "global", "fixed", "lzma"}
        How symbols become bytes: range coded with a table for each channel of a layer, for a layer, or for all layers
        (keys and values always have their own); in the whole bits that their layer needs; or by LZMA.
    late : bool
        Gives the last layers the precision that the first have, to compare.
    chunk : int
        Tokens in a container; 1500 as in the official code's streaming.
    h2o : float
        Share of the tokens that H2O leaves before its sums of attention are sent too; 0 leaves H2O out.
    profile : path, optional
        An npy file of the counts of other contexts, as `profiled` returns them, that sender and receiver have.  Tables
        are those and none are sent; ``coding`` is then what the profile has.

    Raises
    ------
    UserError
        For parameters that are none of these, and a profile that cannot be read.
    """

    def __init__(self, level: int | str = 2, variant: str = "released", coding: str = "channel", late: bool = False,
                 chunk: int = 1500, h2o: float = 0.0, profile: str | Path | None = None):  # fmt: skip
        levels = {"released": (*BINS, "int8", "int4")} | dict.fromkeys(("paper", "raw"), tuple(FACTORS))
        known = coding in CODINGS and coding != "profile"
        if level not in levels.get(variant, ()) or not known or chunk < 1 or not 0 <= h2o <= 1:
            raise UserError(f"cachegen: level {level!r} of variant {variant!r} with coding {coding!r}, chunks of "
                            f"{chunk} and h2o {h2o} is not one there is; mend its params")  # fmt: skip
        self.scheme = Scheme(level if level in SCHEMES else variant, level, late)
        self.coding, self.chunk, self.h2o, self.profile = coding, chunk, h2o, profile
        self.counts = None if profile is None else load_profile(profile)

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        from parsimony.methods.kv_cache.held import Holder

        return Holder(model, self.hold)

    def hold(self, prefilled: Prefilled) -> list[Held]:
        """What arrives, one `Held` a layer."""
        import torch

        from parsimony.methods.kv_cache.h2o import H2O
        from parsimony.methods.kv_cache.held import Held

        layers, keys, values = None, prefilled.keys, prefilled.values
        if self.h2o:
            layers = H2O(self.h2o).hold(prefilled)
            keys, values = (torch.stack([getattr(held, kind) for held in layers]) for kind in ("keys", "values"))
        keys, values = (x.float().cpu().numpy() for x in (keys, values))
        began = perf_counter()
        data = self.encode(keys, values)
        numbers = {"transport_bytes": len(data), "encode_seconds": perf_counter() - began}
        decoded, numbers["decode_seconds"] = decode_elsewhere(data, self.profile)
        arrived = torch.from_numpy(decoded).to(prefilled.keys.device)  # [2, L, H, n, d]
        if layers:
            numbers["transport_bytes"] += sum(held.sums.nbytes for held in layers)
            for held, buffer in zip(layers, arrived.unbind(1), strict=True):
                held.buffer = buffer
        else:
            layers = [Held(*layer) for layer in zip(*arrived, strict=True)]
        if self.scheme.name == "paper":
            x = np.stack((keys, values)).swapaxes(2, 3).reshape(2, len(keys), keys.shape[2], -1)  # [2, L, T, C]
            numbers["value_energy"] = float(np.square(x).mean())
            delta = differences(x)[2]
            numbers["difference_energy"] = float(np.square(delta).sum() / max(delta.size, 1))
        layers[0].numbers = numbers
        return layers

    def encode(self, keys: np.ndarray, values: np.ndarray) -> bytes:
        """A cache, keys and values [L, H, T, d], as bytes; raises what `chunks` does."""
        return b"".join(self.chunks(keys, values))

    def chunks(self, keys: np.ndarray, values: np.ndarray) -> list[bytes]:
        """The container of each chunk of a cache, keys and values [L, H, T, d].

        Raises
        ------
        UserError
            For an empty cache, chunks of more than `MOST` elements, what half precision has no number for, and a
            profile that is not of such caches.
        """
        x = np.stack((keys, values)).astype(np.float32)  # [2, L, H, T, d]
        T = x.shape[3]
        if not 0 < x.size // max(T, 1) * min(T, self.chunk) <= MOST:
            raise UserError(f"cachegen: chunks of {self.chunk} tokens are empty or too large; mend its params")
        if not np.abs(x).max() <= np.finfo(np.float16).max:
            raise UserError("cachegen: half precision has no number for some key or value; mend the model's dtype")
        parts = [x[:, :, :, t : t + self.chunk] for t in range(0, T, self.chunk)]
        return [
            container(
                self.scheme.name, *self.scheme.quantise(part), self.coding, part.shape, n * self.chunk, T, self.counts
            )
            for n, part in enumerate(parts)
        ]

    def profiled(self, contexts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Counts [2, L or 1, C or 1, A] uint32 of keys and values of several contexts, to be tables of others."""
        A = self.scheme.alphabet
        parts = [self.scheme.quantise(np.stack(context).astype(np.float32))[1] + A // 2 for context in contexts]
        return sum(counted(symbols, self.coding, A) for symbols in parts).astype(np.uint32)


def load_profile(path: str | Path) -> np.ndarray:
    """Counts as `CacheGen.profiled` returned them and `numpy.save` wrote them; `UserError` if the file has none."""
    try:
        counts = np.load(path, allow_pickle=False)
        if counts.dtype != np.uint32 or counts.ndim != 4 or len(counts) != 2 or counts.shape[3] not in range(1, 256, 2):
            raise ValueError(f"it has {counts.dtype} {counts.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cachegen: profile {path} has no counts ({error}); mend its params") from None
    return counts


def decode_elsewhere(data: bytes, profile: str | Path | None = None) -> tuple[np.ndarray, float]:
    """What a process that gets the bytes alone decodes: [2, L, H, T, d] float16, and the seconds that decoding took.

    Raises
    ------
    UserError
        If the process fails.
    """
    search = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "parsimony.methods.kv_cache.cachegen", "decode", *([profile] if profile else [])]
    done = subprocess.run(command, input=data, capture_output=True, env=os.environ | {"PYTHONPATH": search})
    out = io.BytesIO(done.stdout)
    try:
        if done.returncode:
            raise ValueError
        return np.load(out, allow_pickle=False), float(np.load(out, allow_pickle=False))
    except (ValueError, EOFError):
        said = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise UserError(f"cachegen: the decoding process failed with status {done.returncode}: {said}") from None


def main(arguments: list[str]) -> None:
    """``decode [PROFILE]``: containers from standard input, two npy arrays to standard output (cache, seconds)."""
    if arguments[:1] != ["decode"] or len(arguments) > 2:
        sys.exit("usage: python -m parsimony.methods.kv_cache.cachegen decode [PROFILE] < containers > arrays")
    data, out = sys.stdin.buffer.read(), io.BytesIO()
    try:
        profile = load_profile(arguments[1]) if len(arguments) == 2 else None
        began = perf_counter()
        decoded = np.stack(decode(data, profile))
        seconds = perf_counter() - began
    except UserError as error:
        sys.exit(str(error))
    np.save(out, decoded)
    np.save(out, seconds)
    sys.stdout.buffer.write(out.getbuffer())


if __name__ == "__main__":
    main(sys.argv[1:])
