"""Tensors that many cells need and each would compute alike, kept on disk while a suite is measured.

Every cell of a cache benchmark starts from the same exact prefill of the same contexts, which takes most of its time.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from parsimony.errors import UserError
from parsimony.records import atomic

ROOM = 8 << 30
"""Bytes that stay free on the disk: where there is less, tensors are computed by every cell."""


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` returns, from the file if an earlier call left it there; the same bits either way.

    A file that cannot be read is made anew. ``make`` must decide all that is not in the name of ``path``.
    """
    with contextlib.suppress(OSError, SafetensorError):
        # Copied at once: pages of the file that are read at their first use would count as the work of a method.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free - sum(tensor.nbytes for tensor in tensors.values()) >= ROOM:
        with contextlib.suppress(UserError), atomic(path) as partial:
            save_file(tensors, partial)
    return tensors
