"""A real SLURM of one node on loopback, with two GPUs that are character devices and nothing else."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CONF, GRES = Path("/etc/slurm/slurm.conf"), Path("/etc/slurm/gres.conf")
MARK = "# of the tests of Parsimony\n"
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo")
GPUS = [Path(f"/dev/parsimony_gpu{n}") for n in range(2)]


class Slurm:
    """Daemons that can be killed and started again one by one."""

    def __init__(self, folder: Path):
        self.folder, self.running = folder, {}
        cores = os.cpu_count()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 100
        CONF.parent.mkdir(exist_ok=True)
        CONF.write_text(f"""{MARK}ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=15
MessageTimeout=10
KillWait=5
MinJobAge=3600
JobRequeue=1
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:{len(GPUS)} State=UNKNOWN
PartitionName=work Nodes=localhost Default=YES MaxTime=INFINITE State=UP
""")
        GRES.write_text(MARK + "".join(f"NodeName=localhost Name=gpu File={path}\n" for path in GPUS))

    def begin(self) -> None:
        folder = self.folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        paths = {"key-file": key, "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        paths |= {"log-file": "munged.log"}
        self.start("munged", "--foreground", "--force", *(f"--{name}={folder / path}" for name, path in paths.items()))
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D", "-N", "localhost")
        self.wait_until("idle")

    def start(self, name: str, *arguments: str) -> None:
        log = open(self.folder / f"{name}.out", "a")  # noqa: SIM115 - the daemon writes to it
        self.running[name] = subprocess.Popen([shutil.which(name) or f"/usr/sbin/{name}", *arguments], stdout=log,
                                              stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        time.sleep(1)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running.pop(name).wait()

    def state(self) -> str:
        """State of the node."""
        return ask("sinfo", "--noheader", "--format=%T")

    def wait_until(self, *states: str, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not any(state in self.state() for state in states):
            assert time.monotonic() < end, f"node is {self.state()!r}, not {states}: see {self.folder}"
            time.sleep(0.5)

    def jobs(self, state: str = "RUNNING") -> list[str]:
        """Ids of jobs in a state."""
        return ask("squeue", "--noheader", "--array", "--format=%i", f"--states={state}").split()

    def stop(self) -> None:
        for name in reversed(list(self.running)):
            self.running[name].terminate()
        for process in self.running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        for path in (CONF, GRES, *GPUS):
            path.unlink(missing_ok=True)


def ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return (done.stdout or done.stderr).strip()


def started(folder: Path):
    """The cluster, stopped at the end; the test is skipped where there can be none."""
    missing = [tool for tool in TOOLS if not (shutil.which(tool) or Path(f"/usr/sbin/{tool}").exists())]
    if missing:
        pytest.skip(f"no {missing[0]}: install the Debian packages slurm-wlm and munge")
    if os.getuid():
        pytest.skip("daemons and devices of SLURM need root")
    if CONF.exists() and not CONF.read_text().startswith(MARK):
        pytest.skip(f"{CONF} is somebody else's")
    try:
        for path in GPUS:
            if not path.exists():
                os.mknod(path, 0o020666, os.makedev(1, 3))
    except OSError as error:
        pytest.skip(f"no devices can be made for SLURM to hand out: {error}")
    cluster = Slurm(folder)
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.stop()
