"""A disk that is full."""

import os
import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one mebibyte, and a function that gives it more of them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a full disk is made with `mount -t tmpfs`, which is not permitted here")
    yield disk, lambda size=16: subprocess.run(["mount", "-o", f"remount,size={size}m", str(disk)], check=True)
    subprocess.run(["umount", str(disk)], check=True)
