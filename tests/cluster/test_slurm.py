"""A suite sent through a real SLURM ends with the records of a local run, also when jobs and the node are killed."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from parsimony import records

SLURM = ["--profile", "workflow/profiles/slurm", "--slurm-no-account", "--slurm-status-command", "squeue"]
QUICK = ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"]


@pytest.fixture
def cluster(project, root, slurm):
    """The tiny project with the profile as a user of this cluster edits it; its cells ask SLURM for a GPU, unused."""
    path = project.folder / "workflow/profiles/slurm/config.yaml"
    profile = yaml.safe_load(path.read_text())
    profile["default-resources"] = {"mem_mb": 2000, "runtime": 10}
    profile["set-resources"] = {"cell_4gb_1h": {"gpu": 1}}
    path.write_text(yaml.safe_dump(profile))
    limits = {"max_runtime": 10000, "max_mem_mb": 64000, "max_threads": 64, "max_gpu": 2}
    project.write("workflow/profiles/slurm/partitions.yaml", {"partitions": {"work": limits}})
    suite = yaml.safe_load((project.folder / "configs/suite/tiny.yaml").read_text())
    # `auto` sizes drafts by the latency that a run measures, so that two runs may differ in it.
    suite["points"] = {key: [p for p in points if p != "auto"] for key, points in suite["points"].items()}
    project.write("configs/suite/tiny.yaml", suite)
    return project


def start(project) -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", *SLURM, *QUICK, "--max-threads", str(os.cpu_count())]
    return subprocess.Popen(command, cwd=project.folder, env=project.environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def counted(project) -> dict:
    """Every record that is not a time, by cell, point, item and metric."""
    values = {}
    for path in sorted((project.folder / "results/tiny/cells").glob("*.parquet")):
        frame, _ = records.read(path)
        for row in frame.itertuples():
            if "second" not in row.metric:
                values[row.cell, row.point, row.item, row.category, row.metric] = (str(row.value), row.status)
    return values


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_jobs_and_a_killed_node_change_no_record(cluster, slurm):
    run = start(cluster)
    try:
        job = _running(slurm, run)[0]
        assert "gpu" in subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
        subprocess.run(["scancel", "--signal=KILL", "--full", job], check=True)
        time.sleep(4)
        _running(slurm, run)
        _lose_power(slurm)
        subprocess.run(["scontrol", "update", "nodename=localhost", "state=down", "reason=killed"], check=True)
        time.sleep(3)
        slurm.start("slurmd", "-D", "-N", "localhost")
        subprocess.run(["scontrol", "update", "nodename=localhost", "state=resume"])
        slurm.wait_until("idle", "mixed", "allocated")
        output, _ = run.communicate(timeout=900)
    finally:
        run.send_signal(signal.SIGKILL)
    assert run.returncode == 0, output
    through_slurm = counted(cluster)
    assert (cluster.folder / "results/tiny/report/index.html").exists()
    shutil.rmtree(cluster.folder / "results/tiny")
    cluster.snakemake("--executor", "local")
    assert counted(cluster) == through_slurm and len(through_slurm) > 100


def _lose_power(slurm) -> None:
    """End the node's daemon and every process of its jobs, whose outputs nobody is left to remove or report."""
    steps = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "slurmstepd"]
    processes = [*steps, *(child for step in steps for child in step.children(recursive=True))]
    slurm.kill("slurmd")
    for process in processes:
        process.kill()


def _running(slurm, run, seconds: float = 300) -> list[str]:
    """Ids of the running jobs, once there is one."""
    end = time.monotonic() + seconds
    while not (jobs := slurm.jobs()):
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < end, "no job began"
        time.sleep(0.3)
    return jobs
