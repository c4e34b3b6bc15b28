"""Decoding elsewhere: a process of its own that has a codec's configuration, the folders of its assets and the bytes.

Messages over its pipes are a count, the lengths and the parts; the first part is JSON.  Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

import numpy as np

from parsimony.errors import UserError

SOURCE = Path(__file__).resolve().parents[1]


class DecoderFailure(Exception):
    """The decoding process crashed, hung or raised what a codec must not raise; one sentence."""


class Elsewhere:
    """Decodes with codecs in another process, which starts at the first call and again after a failure.

    Parameters
    ----------
    codecs : dict of str to dict
        By name: ``target``, ``params`` and ``assets`` (field -> folder) of a method.
    limit : float
        Seconds that a call may take; the first one builds the codec, too.
    threads : int
        Of the numerical libraries there.
    memory : int, optional
        Bytes of address space that the process may use.
    """

    def __init__(self, codecs: dict[str, dict], limit: float = 600.0, threads: int = 1, memory: int | None = None):
        self.setup = {"codecs": codecs, "memory": memory}
        self.limit, self.threads, self.process = limit, threads, None

    def decode(self, codec: str, streams: list[bytes]) -> tuple[list[np.ndarray], float]:
        """Samples of streams, and the seconds that decoding took there (neither start nor transport).

        Raises
        ------
        UserError
            What the codec says of a stream that is not its own.
        DecoderFailure
            When the process crashed, ran out of time, or the codec raised anything else.
        """
        if self.process is None:
            self._start()
        process, late = self.process, threading.Event()

        def stop():
            late.set()
            process.kill()

        timer = threading.Timer(self.limit, stop)
        timer.start()
        try:
            _send(process.stdin, {"codec": codec}, streams)
            answer, parts = _receive(process.stdout)
        except (OSError, EOFError):
            self.close()
            what = f"took more than {self.limit:g} s" if late.is_set() else f"ended with status {process.returncode}"
            sizes = f"{len(streams)} streams of {sum(map(len, streams))} bytes"
            raise DecoderFailure(f"codec {codec!r}: the decoding process {what} on {sizes}") from None
        finally:
            timer.cancel()
        if "refused" in answer:
            raise UserError(answer["refused"])
        if "failed" in answer:
            raise DecoderFailure(f"codec {codec!r}: decoding raised {answer['failed']}")
        shapes = zip(parts, answer["shapes"], strict=True)
        return [np.frombuffer(part, np.uint8).reshape(shape) for part, shape in shapes], answer["seconds"]

    def _start(self) -> None:
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "parsimony.elsewhere"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
            env=os.environ | threads | {"PYTHONPATH": path},
        )  # fmt: skip
        _send(self.process.stdin, self.setup, [])

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def main() -> None:
    """The other side: decode until the pipe closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the messages
    setup, _ = _receive(sys.stdin.buffer)
    if setup["memory"] is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (setup["memory"],) * 2)
    built: dict = {}
    while True:
        try:
            request, streams = _receive(sys.stdin.buffer)
        except EOFError:
            return
        arrays = []
        try:
            name = request["codec"]
            if name not in built:
                built[name] = _build(setup["codecs"][name])
            system, began = built[name], perf_counter()
            many = len(streams) > 1 and hasattr(system, "decode_batch")
            arrays = system.decode_batch(streams) if many else [system.decode(stream) for stream in streams]
            answer = {"seconds": perf_counter() - began, "shapes": [x.shape for x in arrays]}
            if any(x.dtype != np.uint8 for x in arrays):
                raise TypeError(f"samples of type {arrays[0].dtype} instead of uint8")
        except UserError as error:
            answer, arrays = {"refused": str(error)}, []
        except Exception as error:  # reported to the other side, which knows what was asked
            answer, arrays = {"failed": f"{type(error).__name__}: {error}"}, []
        _send(answers, answer, [np.ascontiguousarray(x).tobytes() for x in arrays])


def _build(codec: dict):
    from parsimony.instantiate import instantiate
    from parsimony.interfaces import Inputs
    from parsimony.models.samples import Samples

    assets = {field: Path(folder) for field, folder in codec["assets"].items()}
    return instantiate(codec["target"], codec["params"]).build(Samples(), Inputs(assets))


def _send(pipe: BinaryIO, head: dict, parts: list[bytes]) -> None:
    parts = [json.dumps(head).encode(), *parts]
    pipe.write(struct.pack(f"<{len(parts) + 1}Q", len(parts), *map(len, parts)))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _receive(pipe: BinaryIO) -> tuple[dict, list[bytes]]:
    (count,) = struct.unpack("<Q", _exactly(pipe, 8))
    sizes = struct.unpack(f"<{count}Q", _exactly(pipe, 8 * count))
    head, *parts = (_exactly(pipe, size) for size in sizes)
    return json.loads(head), parts


def _exactly(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
