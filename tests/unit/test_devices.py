"""GPUs are held by one process each, as long as it lives."""

import os
import subprocess
import sys

import pytest

from parsimony import devices
from parsimony.errors import UserError

HOLD = "import sys, time; from parsimony.devices import lease; from pathlib import Path; "
HOLD += "print(*lease(int(sys.argv[2]), Path(sys.argv[1])), flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Starts processes that hold GPUs of three that are said to be here."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    monkeypatch.setattr(devices, "_held", {})
    started = []

    def start(count):
        command = [sys.executable, "-c", HOLD, str(tmp_path), str(count)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        started.append(process)
        return process, process.stdout.readline().split()

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_nobody_gets_a_gpu_that_another_holds_until_its_process_is_gone(holder, tmp_path, monkeypatch):
    first, two = holder(2)
    _, one = holder(1)
    assert (two, one) == (["4", "5"], ["7"])
    monkeypatch.setattr(devices, "POLL", 0.1)
    first.kill()
    assert devices.lease(1, tmp_path) == ["4"] and os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    assert devices.lease(1, tmp_path) == ["4"]  # it is held already


def test_too_few_are_one_sentence(holder, tmp_path):
    with pytest.raises(UserError, match="this job asks for 4 GPUs, and this process sees 3; run where there are more"):
        devices.lease(4, tmp_path)


def test_without_a_gpu_a_cell_of_the_published_scale_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="asks for 1 GPU, and this process sees 0"):
        devices.lease(1, tmp_path)


def test_a_cell_s_facts_are_its_peak_and_where_the_clock_decides_its_seconds():
    items = [{"peak_bytes": 3, "seconds": 1.5}, None, {"peak_bytes": 2, "seconds": 0.5}]
    assert devices.summed(items, timed=True) == {"gpu_peak_bytes": 3, "gpu_seconds": 2.0}
    assert devices.summed(items, timed=False) == {"gpu_peak_bytes": 3}
    with devices.metered([]) as told:
        pass
    assert told == {} and devices.summed([told], timed=True) == {}
