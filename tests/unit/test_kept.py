"""What cells compute alike is computed once, and nothing else is taken for it."""

import shutil
from collections import namedtuple

import pytest
import torch

from parsimony import kept as module
from parsimony.kept import kept
from parsimony.methods.kv_cache.held import Prefilled, prefill

IDS = torch.arange(20, 90)


@pytest.fixture
def calls(tiny):
    """A context to prefill, and how often it was."""

    def make():
        make.count += 1
        return vars(prefill(tiny.decoder, IDS))

    make.count = 0
    return make


def test_the_second_cell_gets_the_same_bits_without_computing_them(calls, tmp_path):
    first, second = (kept(tmp_path / "kept" / "a.safetensors", calls) for _ in range(2))
    assert calls.count == 1 and Prefilled(**second).nbytes == Prefilled(**first).nbytes
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and tensor.stride() == second[name].stride()


@pytest.mark.parametrize("damage", [b"", b"nothing of the kind", None])
def test_a_file_that_cannot_be_read_is_made_anew(calls, tmp_path, damage):
    path = tmp_path / "a.safetensors"
    expected = kept(path, calls)
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert torch.equal(kept(path, calls)["keys"], expected["keys"]) and calls.count == 2
    kept(path, calls)
    assert calls.count == 2


def test_a_disk_without_room_is_left_alone(calls, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(100, 100, module.ROOM)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    kept(tmp_path / "a.safetensors", calls)
    assert calls.count == 1 and not list(tmp_path.iterdir())
