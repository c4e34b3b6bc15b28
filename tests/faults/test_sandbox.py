"""What a generated program may try, and does not get, in the real sandbox."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from parsimony import sandbox
from parsimony.errors import UserError

pytestmark = pytest.mark.skipif(bool(sandbox.obstacle(())), reason=sandbox.obstacle(()) or "-")


def shell(script: str, seconds: float = 10, **files: bytes) -> sandbox.Ended:
    return sandbox.run(["bash", "-c", script], files, seconds)


def running(words: str) -> bool:
    """Whether a process of this machine has these words in its command line."""
    return any(words in " ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))


def test_a_program_reads_its_files_and_says_what_it_has_to_say():
    ended = shell("cat told; echo aside >&2; exit 3", told=b"all of it")
    assert ended == sandbox.Ended(3, b"all of it", b"aside\n")


def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = shell(f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo reached")
        assert ended.status != 0 and b"reached" not in ended.output
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_what_is_on_the_machine_is_neither_read_nor_written(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    os.chmod(secret, 0o644)
    ended = shell(f"cat {secret} /etc/passwd /root/.bashrc; ls /home /root /tmp; echo hidden > {secret}")
    assert ended.output == b"" and secret.read_text() == "hidden"
    for place in ("/usr/new", "/usr/bin/ls", "/new", "/dev/new", "/proc/sys/kernel/hostname", "/work/told"):
        assert shell(f"echo changed > {place}", told=b"").status != 0, place
    link = shell(f"ln -s {secret} link && cat link")
    assert link.status != 0 and link.output == b""


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hidden")
    assert b"hidden" not in shell("env; cat /proc/*/environ").output


def test_others_processes_are_out_of_reach():
    assert b"pytest" not in shell("cat /proc/*/cmdline").output
    assert shell(f"kill -9 {os.getpid()}").status != 0
    assert shell("kill -9 -1; kill -9 1; kill -9 $PPID; echo on").status is not None


@pytest.mark.parametrize("script", ["while :; do :; done", "sleep 60", "(setsid sleep 60 &) ; sleep 60"])
def test_time_is_limited(script):
    began = time.monotonic()
    assert shell(script, seconds=1).status is None
    assert time.monotonic() - began < 5


def test_a_fork_bomb_stays_small_and_ends():
    ended = shell("f() { f | f & }; f; sleep 1; ls /proc | grep -c '^[0-9]'", seconds=5)
    assert b"Resource temporarily unavailable" in ended.errors
    assert not running("f | f")


def test_memory_is_limited():
    script = "x=$(head -c 400000000 /dev/zero | tr '\\0' a); echo $?${#x}"
    ended = sandbox.run(["bash", "-c", script], {}, 20, megabytes=256)
    assert b"400000000" not in ended.output
    for place in ("/work", "/dev/shm", "/"):
        written = shell(f"for n in 1 2 3 4 5 6 7 8; do head -c 16000000 /dev/zero > {place}/$n || echo full; done")
        assert b"full" in written.output, place


def test_endless_output_is_cut():
    ended = shell("yes", seconds=20)
    assert len(ended.output) == sandbox.OUTPUT and ended.status not in (0, None)


def test_what_a_program_leaves_behind_dies_with_it():
    mark = "sleep 613"
    assert shell(f"(setsid {mark} &) ; exit 0").status == 0
    assert not running(mark)


def test_a_killed_caller_leaves_nothing_running():
    code = "from parsimony import sandbox; sandbox.run(['sleep', '617'], {}, 60)"
    caller = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(100):
        if running("sleep 617"):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the program never ran")
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    time.sleep(0.5)
    assert not running("sleep 617")


def test_without_a_sandbox_nothing_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.obstacle.cache_clear()
    try:
        with pytest.raises(UserError, match="no command 'bwrap' for generated programs; install .* bubblewrap"):
            sandbox.run(["touch", str(tmp_path / "ran")], {}, 1)
        (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'no namespaces' >&2; exit 1\n")
        os.chmod(tmp_path / "bwrap", 0o755)
        os.chmod(tmp_path, 0o755)
        sandbox.obstacle.cache_clear()
        with pytest.raises(UserError, match="cannot make a sandbox .*; allow user namespaces"):
            sandbox.run(["touch", str(tmp_path / "ran")], {}, 1)
        assert not (tmp_path / "ran").exists()
    finally:
        sandbox.obstacle.cache_clear()
