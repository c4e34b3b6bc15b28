"""Runs programs that a model wrote where they can do no harm, or does not run them.

bubblewrap gives a program namespaces of its own: no network, no processes but its own, the system's programs to read, a
few megabytes of memory to write to, and an empty environment.  What it says is read outside, so a verdict has to rest
on what only the caller knows, never on an exit status alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from parsimony.errors import UserError

PATH = "/usr/bin:/bin"
NOBODY = 65534
MEGABYTE = 1 << 20
DISK, OUTPUT, PROCESSES = 64 * MEGABYTE, 16 * MEGABYTE, 16
"""Bytes that can be written in all, and to one file or stream; processes and threads at a time."""


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes
    ----------
    status : int or None
        Exit status, 128 and the signal that killed it, or None: it ran past its time.
    output, errors : bytes
        What it wrote to its two streams, 16 MB of each at most.
    """

    status: int | None
    output: bytes
    errors: bytes


@cache
def obstacle(programs: tuple[str, ...]) -> str:
    """Why these commands cannot be run in a sandbox here; "" if they can."""
    for program in ("bwrap", "prlimit", *programs):
        if not shutil.which(program, path=None if program == "bwrap" else PATH):
            package = {"bwrap": "bubblewrap", "prlimit": "util-linux"}.get(program, program)
            return f"no command {program!r} for generated programs; install the system's package {package}"
    try:
        tried = _shut_in(["true"], Path("/usr"), {}, 10, 256)
        said = tried.errors.decode(errors="replace").strip() or f"status {tried.status}"
    except OSError as error:
        tried, said = None, str(error)
    if tried and tried.status == 0:
        return ""
    return f"bubblewrap cannot make a sandbox for generated programs ({said}); allow user namespaces"


def run(command: list[str], files: dict[str, bytes], seconds: float, megabytes: int = 1024) -> Ended:
    """Run a command in a folder that holds ``files`` (read-only, executable) and nothing else.

    Parameters
    ----------
    command : list of str
    files : dict of str to bytes
    seconds : float
        Of the clock; then all its processes are killed.
    megabytes : int
        Memory of each process.

    Raises
    ------
    UserError
        Where no sandbox can be made: nothing is run without one.
    """
    if why := obstacle(()):
        raise UserError(f"sandbox: {why}")
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        os.chmod(folder, 0o755)  # the program may be nobody's
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
            os.chmod(Path(folder, name), 0o755)
        ended = _shut_in(command, Path(folder), files, seconds, megabytes)
    if ended.status == 1 and ended.errors.startswith(b"bwrap: "):
        raise UserError(f"sandbox: {ended.errors.decode(errors='replace').strip()}; allow user namespaces")
    return ended


def _shut_in(command: list[str], folder: Path, files, seconds: float, megabytes: int) -> Ended:
    shell = [shutil.which("bwrap"), "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for link in ("/bin", "/lib", "/lib64", "/sbin"):
        if os.path.islink(link):
            shell += ["--symlink", os.readlink(link), link]
        elif os.path.isdir(link):
            shell += ["--ro-bind", link, link]
    shell += ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    shell += ["--proc", "/proc", "--dev", "/dev", "--size", str(DISK), "--tmpfs", "/work", "--chdir", "/work"]
    for name in files:
        shell += ["--ro-bind", str(folder / name), f"/work/{name}"]
    shell += ["--remount-ro", "/", "--remount-ro", "/dev"]  # both are memory without a limit
    limits = [f"--as={megabytes * MEGABYTE}", f"--fsize={OUTPUT}", f"--nproc={PROCESSES}", "--core=0"]
    limits += [f"--cpu={int(seconds) + 1}", "--"]
    # Root's processes are not counted, so root runs programs as nobody.
    other = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*shell, "--", "prlimit", *limits, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={"PATH": PATH, "HOME": "/work", "TMPDIR": "/work"},  # bubblewrap's own can be read inside, too
            **other,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()  # and with it, by --die-with-parent and its own process namespace, all that it started
            process.wait()
        output.seek(0)
        errors.seek(0)
        return Ended(status, output.read(OUTPUT), errors.read(OUTPUT))
