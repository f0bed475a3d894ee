"""The shipped profile on a real SLURM cluster: jobs cancelled, over their memory or their time, a node that dies,
a controller that is away, Ctrl-C. What comes out must equal an undisturbed local run."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.cluster import NODES, Cluster, missing, wait_until
from conftest import ROOT, run_snakemake

RESULTS = Path("results/test")
TABLE = str(RESULTS / "eval/table1.csv")
PROFILE = yaml.safe_load((ROOT / "slurm/config.yaml").read_text(encoding="utf-8"))
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "cluster")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def start(cluster) -> Iterator[Callable[..., Run]]:
    """Starts `snakemake --profile slurm`; at the end no run is left behind, no node is dead."""
    runs: list[Run] = []

    def begin(*arguments: Any, **options: Any) -> Run:
        runs.append(Run(cluster, *arguments, **options))
        runs[-1].start()
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
    cluster.call("scancel", "--user", "root", check=False)
    wait_until(lambda: cluster.node_states() == dict.fromkeys(NODES, "idle"), 90, "idle nodes")


def write_config(path: Path, num_steps: int = 40, checkpoint_every: int = 5) -> Path:
    """A small test scale: one variant, two shards, a GPU for every job that may use one."""
    values = yaml.safe_load((ROOT / "config/test.yaml").read_text(encoding="utf-8"))
    values["cohort"]["num_shards"] = values["sampling"]["num_shards"] = 2
    values["low_res"]["train"] |= {"num_steps": num_steps, "checkpoint_every": checkpoint_every, "log_every": 1}
    values["phantom"]["num_subjects"] = 8
    values["variants"] = {"medsyn": values["variants"]["medsyn"]}
    values["compute"] = {"num_gpus_training": 1, "num_gpus_inference": 1}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


class Run:
    """`snakemake --profile slurm` in `directory`, with the few settings that this small cluster needs."""

    def __init__(
        self,
        cluster: Cluster,
        directory: Path,
        config: Path | None,
        *targets: str,
        snakefile: Path = ROOT / "workflow/Snakefile",
        **resources: str,
    ) -> None:
        self.cluster, self.directory = cluster, directory
        self.log = directory / "snakemake.log"
        partitions = {rule: words["slurm_partition"] for rule, words in PROFILE["set-resources"].items()}
        chosen = {f"{rule}:slurm_partition={name}" for rule, name in partitions.items()}
        chosen |= {f"{rule}:{value}" for rule, value in resources.items()}
        self.command = [
            *(sys.executable, str(ROOT / "tests/cluster/snakemake_often.py"), "--profile", str(ROOT / "slurm")),
            *("--snakefile", str(snakefile), "--configfile", str(config or ROOT / "config/test.yaml")),
            *("--directory", str(directory), "--latency-wait", "5", "--set-resources", *sorted(chosen), "--", *targets),
        ]

    def start(self) -> None:
        folder = Path(sys.executable).parent
        environment = self.cluster.environment | {"PATH": f"{folder}{os.pathsep}{self.cluster.environment['PATH']}"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.directory, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> int:
        try:
            return self.process.wait(timeout=1500)
        except subprocess.TimeoutExpired:
            self.interrupt()
            raise

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=120)

    def running(self, rule: str) -> dict[str, str]:
        """Wait until a job of `rule` runs, for two seconds at least, and return it."""
        found: list[dict[str, str]] = []

        def runs() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            jobs = [job for job in self.cluster.jobs() if job["rule"].startswith(f"rule_{rule}")]
            found[:] = [job for job in jobs if job["state"] == "RUNNING" and job["time"] not in ("0:00", "0:01")]
            return bool(found)

        wait_until(runs, 900, f"a running job of {rule}")
        return found[0]

    def states(self, rule: str) -> list[tuple[str, str]]:
        """State and memory of every job of `rule`, oldest first."""
        jobs = [job for job in self.cluster.jobs() if job["rule"].startswith(f"rule_{rule}")]
        return [(job["state"], job["memory"]) for job in sorted(jobs, key=lambda job: int(job["id"].split("_")[0]))]


def contents(directory: Path) -> dict[str, bytes]:
    """What an experiment has computed: tables, weights, measures, labels (provenance files name the time of day)."""
    root = directory / RESULTS
    files = [path for folder in ("eval", "models", "measures") for path in (root / folder).rglob("*") if path.is_file()]
    kept = [path for path in (*files, root / "labels.csv") if path.suffix in (".csv", ".safetensors")]
    return {str(path.relative_to(root)): path.read_bytes() for path in kept if not path.name.endswith("_metrics.csv")}


def losses(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return [(row["step"], row["loss"]) for row in csv.DictReader(handle)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Table I by the local executor."""
    directory = tmp_path_factory.mktemp("local")
    run = run_snakemake(TABLE, directory=directory, config=write_config(directory / "config.yaml"))
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return directory


def test_no_fault_of_the_scheduler_makes_snakemake_wait_for_ever(cluster, start, tmp_path):
    """Four sleeps: one is cancelled from outside, the controller is away while Snakemake asks for states."""
    run = start(tmp_path, None, "all", snakefile=ROOT / "tests/cluster/Snakefile")
    cluster.call("scancel", run.running("preprocess")["id"])
    cluster.stop_controller()
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(timeout=20)
    cluster.start_controller()
    assert run.wait() == 0, run.log.read_text()[-4000:]
    assert (tmp_path / "merged").read_text().split() == ["0", "1", "2", "3"]
    states = [state for state, _ in run.states("preprocess")]
    assert states.count("CANCELLED") == 1 and states.count("COMPLETED") == 4


def test_a_dead_node_too_little_memory_and_ctrl_c_lose_nothing(cluster, start, tmp_path):
    """The same sleeps: their node dies, the job after them has too little memory at first and is interrupted."""
    run = start(tmp_path, None, "all", snakefile=ROOT / "tests/cluster/Snakefile", merge="mem_mb=100*attempt*attempt")
    before = {job["id"] for job in cluster.jobs()}
    died = run.running("preprocess")["node"]
    cluster.crash_node(died)
    wait_until(lambda: cluster.node_states()[died].startswith("down"), 90, "the controller to miss the node")
    run.running("merge")
    cluster.start_node(died)
    parts = [job for job in cluster.jobs() if job["rule"].startswith("rule_preprocess") and job["id"] not in before]
    assert {job["state"] for job in parts} == {"COMPLETED"} and len(parts) == 4, "SLURM requeues them under their ids"
    assert {job["node"] for job in parts} == {"c1", "c2"} - {died}
    run.interrupt()
    assert run.process.returncode == 1
    wait_until(lambda: not cluster.call("squeue", "--noheader"), 60, "the jobs to be cancelled")
    assert not (tmp_path / "merged").exists()

    run.start()
    assert run.wait() == 0, run.log.read_text()[-4000:]
    assert (tmp_path / "merged").read_text().split() == ["0", "1", "2", "3"]
    (killed, little), (ended, more) = run.states("merge")[-2:]
    assert killed in ("FAILED", "OUT_OF_MEMORY") and ended == "COMPLETED"
    assert (little, more) == ("100M", "400M")


def test_table1_through_every_fault_equals_an_undisturbed_run(cluster, start, undisturbed, tmp_path):
    config = write_config(tmp_path / "config.yaml")
    run = start(tmp_path, config, TABLE, pretrain_text="mem_mb=250*attempt*attempt")

    cancelled = run.running("preprocess")
    cluster.call("scancel", cancelled["id"])

    died = run.running("segment")["node"]
    cluster.crash_node(died)
    wait_until(lambda: cluster.node_states()[died].startswith("down"), 90, "the controller to miss the node")
    cluster.start_node(died)

    run.running("train_low_res")
    cluster.stop_controller()
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(timeout=15)
    cluster.start_controller()

    run.running("sample")
    run.interrupt()
    assert run.process.returncode == 1
    wait_until(lambda: not cluster.call("squeue", "--noheader"), 60, "the jobs to be cancelled")
    assert not (tmp_path / TABLE).exists()

    run.start()
    assert run.wait() == 0, run.log.read_text()[-4000:]
    assert contents(tmp_path) == contents(undisturbed)
    assert "CANCELLED" in [state for state, _ in run.states("preprocess")]
    (killed, little), (ended, more) = run.states("pretrain_text")[:2]
    assert killed in ("FAILED", "OUT_OF_MEMORY") and ended == "COMPLETED"
    assert (little, more) == ("250M", "1000M")
    assert losses(tmp_path / RESULTS / "models/medsyn/low_res_metrics.csv") == losses(
        undisturbed / RESULTS / "models/medsyn/low_res_metrics.csv"
    )


def test_training_over_its_time_limit_goes_on_without_a_lost_or_repeated_step(start, tmp_path):
    """SIGTERM at the limit, a checkpoint, TIMEOUT, a second job that goes on."""
    weights = str(RESULTS / "models/medsyn/low_res.safetensors")
    config = write_config(tmp_path / "config.yaml", num_steps=100_000, checkpoint_every=50_000)
    run = start(tmp_path, config, weights, train_low_res="runtime=2")
    run.running("train_low_res")
    state = tmp_path / RESULTS / "state/medsyn/low_res"
    log = tmp_path / RESULTS / "logs/train_low_res/medsyn.log"  # each job begins a new one
    ended = "stopped by SIGTERM at step "
    wait_until(lambda: ended in run.log.read_text(), 900, "the end of the first job, with its log")
    stopped = int(run.log.read_text().split(ended)[1].split()[0])
    wait_until(lambda: log.exists() and "resumes after step" in log.read_text(), 300, "the second job")
    resumed = int(log.read_text().split("resumes after step ")[1].split()[0])
    assert resumed == stopped
    wait_until(lambda: len(losses(state / "metrics.csv")) > stopped + 3, 300, "steps of the second job")
    run.interrupt()
    steps = [int(step) for step, _ in losses(state / "metrics.csv")]
    assert steps == list(range(1, len(steps) + 1))
    states = [state for state, _ in run.states("train_low_res")]
    assert len(states) == 2 and states[0] in ("TIMEOUT", "FAILED")
