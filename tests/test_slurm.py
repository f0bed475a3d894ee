"""The shipped profile on a real SLURM cluster: jobs cancelled, requeued, over their memory or their time, a node that
dies, a controller that is away, Ctrl-C, training on two nodes. What comes out must equal an undisturbed local run."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cluster.cluster import NODES, Cluster, missing, wait_until
from conftest import ROOT, write_config
from golden_set import TIMINGS
from safetensors import safe_open
from safetensors.torch import load_file

RESULTS = Path("results/test")
LOW_RES = RESULTS / "models/medsyn/low_res.safetensors"
LOW_RES_LOG = RESULTS / "logs/train_network/medsyn/low_res.log"
GPUS = {"num_gpus_training": 1, "num_gpus_inference": 1}
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


class Run:
    """`snakemake --profile slurm` in `directory`, with the few settings that this small cluster needs."""

    def __init__(
        self,
        cluster: Cluster,
        directory: Path,
        config: Path,
        *targets: str,
        retries: int = 5,  # one job may meet several of the faults
        **resources: str,
    ) -> None:
        self.cluster, self.directory = cluster, directory
        self.log = directory / "snakemake.log"
        self.earlier = {job["id"] for job in cluster.jobs()}
        words = [(rule, word) for rule, words in PROFILE["set-resources"].items() for word in words.items()]
        chosen = {f"{rule}:{name}={value}" for rule, (name, value) in words}
        chosen |= {f"{rule}:{value}" for rule, value in resources.items()}
        self.command = [
            *(sys.executable, str(ROOT / "tests/cluster/snakemake_often.py"), "--profile", str(ROOT / "slurm")),
            *("--snakefile", str(ROOT / "workflow/Snakefile"), "--configfile", str(config)),
            *("--directory", str(directory), "--latency-wait", "5", "--jobs", "4"),
            *("--retries", str(retries)),
            *("--set-resources", *sorted(chosen), "--", *targets),
        ]

    def start(self) -> None:
        folder = Path(sys.executable).parent
        environment = self.cluster.environment | {"PATH": f"{folder}{os.pathsep}{self.cluster.environment['PATH']}"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background jobs
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

    def jobs(self, rule: str) -> list[dict[str, str]]:
        """This run's jobs of `rule`, oldest first."""
        jobs = [job for job in self.cluster.jobs() if job["id"] not in self.earlier]
        return sorted((job for job in jobs if job["rule"].startswith(f"rule_{rule}")), key=lambda job: int(job["id"]))

    def states(self, rule: str) -> list[str]:
        return [job["state"] for job in self.jobs(rule)]

    def running(self, rule: str) -> dict[str, str]:
        """Wait until a job of `rule` runs, for two seconds at least, and return it."""
        found: list[dict[str, str]] = []

        def runs() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            jobs = self.jobs(rule)
            found[:] = [job for job in jobs if job["state"] == "RUNNING" and job["time"] not in ("0:00", "0:01")]
            return bool(found)

        wait_until(runs, 900, f"a running job of {rule}")
        return found[0]


def contents(directory: Path) -> dict[str, bytes]:
    """What an experiment has computed: files that name neither the time of day nor how long something took."""
    root = directory / RESULTS
    kept = (".csv", ".npy", ".npz", ".png", ".safetensors", ".gz")
    files = [path for path in root.rglob("*") if path.suffix in kept and not path.name.endswith("_metrics.csv")]
    found = {str(path.relative_to(root)): path.read_bytes() for path in files}
    timed = [root / "eval/table1.csv", *root.glob("text/*/model/metrics.csv")]
    return found | {str(path.relative_to(root)): without_timings(path) for path in timed}


def without_timings(path: Path) -> bytes:
    """Return a table without the columns that measure the machine."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [{name: text for name, text in row.items() if name not in TIMINGS} for row in csv.DictReader(handle)]
    return repr(rows).encode()


def metrics(path: Path, column: str) -> list[str]:
    with path.open(newline="", encoding="utf-8") as handle:
        return [row[column] for row in csv.DictReader(handle)]


@pytest.fixture
def experiment(finished, tmp_path) -> Path:
    """A copy of the finished experiment, so that a training alone can be run anew."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


def test_the_experiment_through_every_fault_equals_an_undisturbed_run(cluster, start, finished, tmp_path):
    """From nothing to the report."""
    config = write_config(tmp_path / "config.yaml", compute=GPUS)
    run = start(tmp_path, config, "all", pretrain_text="mem_mb=250*attempt*attempt")

    cluster.call("scancel", run.running("preprocess")["id"])

    died = run.running("segment")["node"]
    cluster.crash_node(died)
    wait_until(lambda: cluster.node_states()[died].startswith("down"), 90, "the controller to miss the node")
    cluster.start_node(died)

    run.running("train_network")
    cluster.stop_controller()
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(timeout=15)
    cluster.start_controller()

    run.running("sample")
    run.interrupt()
    assert run.process.returncode == 1
    wait_until(lambda: not cluster.call("squeue", "--noheader"), 60, "the jobs to be cancelled")
    assert not (tmp_path / RESULTS / "report.html").exists()

    run.start()
    assert run.wait() == 0, run.log.read_text()[-4000:]
    expected, computed = contents(finished), contents(tmp_path)
    assert set(computed) == set(expected)
    assert [name for name in expected if computed[name] != expected[name]] == []
    assert sorted(run.states("preprocess")) == ["CANCELLED", "COMPLETED"]
    assert run.states("segment") == ["COMPLETED"], "SLURM requeues the jobs of a dead node under their ids"
    jobs = run.jobs("")
    starved = [job for job in jobs if job["memory"] == "250M"]
    assert len(starved) >= 2 and all(job["rule"].startswith("rule_pretrain_text") for job in starved), jobs
    assert not [job for job in starved if job["state"] == "COMPLETED"], jobs
    for job in jobs:  # failed: over its memory, or started on a GPU node that the returned controller did not know yet
        if job["state"] not in ("COMPLETED", "CANCELLED"):
            assert job in starved or job["node"] in ("g1", "g2"), jobs
            assert "COMPLETED" in run.states(job["rule"].removeprefix("rule_")), jobs
    for name in ("low_res", "super_res"):
        path = RESULTS / f"models/medsyn/{name}_metrics.csv"
        assert metrics(tmp_path / path, "loss") == metrics(finished / path, "loss")


class Training:
    """A run whose one job trains, the process that does it, and what it has written."""

    def __init__(self, run: Run, state: Path, log: Path) -> None:
        self.run, self.state, self.log = run, state, log

    def last_step(self) -> int:
        path = self.state / "metrics.csv"
        return int(metrics(path, "step")[-1]) if path.exists() else 0

    def after_some_steps(self) -> str:
        """Wait for three more steps of a running job; its id."""
        job, begun = self.run.running("train_network")["id"], self.last_step()
        wait_until(lambda: self.last_step() > begun + 3, 300, "some steps")
        return job

    def resumed(self) -> None:
        """Wait until a job has gone on after the newest checkpoint; each job begins a new log."""
        words = f"resumes after step {int(max(self.state.glob('step_*')).name.removeprefix('step_'))} "
        wait_until(lambda: self.log.exists() and words in self.log.read_text(), 300, f"a job that {words}")

    def process(self) -> int:
        """Id of the training process once there is one."""
        found: list[int] = []

        def runs() -> bool:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    words = path.read_bytes().decode(errors="replace").split("\0")
                    here = path.with_name("cwd").readlink() == self.run.directory  # not of another run on this machine
                    if here and {"-m", "medsyn", "train"} <= set(words):
                        found.append(int(path.parent.name))
            return bool(found)

        wait_until(runs, 300, "the training process")
        return found[0]


def terminated(pid: int) -> bool:
    """Whether a stopped process has SIGTERM before it, or is gone: SLURM lets a step that it signals go on."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return True
    waiting = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in waiting)


def let_go(pid: int) -> None:
    """Let a stopped process go on, if SLURM has not done so."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_training_longer_than_its_time_limit_uses_no_retry_and_repeats_no_step(cluster, start, experiment):
    """Requeued from outside, then twice at its limit: SIGTERM, a checkpoint, the same job again; then it finishes."""
    finite = {"num_steps": 200, "checkpoint_every": 50_000, "log_every": 1}
    config = write_config(experiment / "config.yaml", low_res={"train": finite}, compute=GPUS)
    run = start(experiment, config, str(LOW_RES), retries=0)
    training = Training(run, experiment / RESULTS / "state/medsyn/low_res", experiment / LOW_RES_LOG)

    jobs = [training.after_some_steps()]
    cluster.call("scontrol", "requeue", jobs[0])
    wait_until(lambda: set(training.state.glob("step_*")), 300, "the checkpoint that SIGTERM writes")
    training.resumed()
    for _ in range(2):
        jobs.append(training.after_some_steps())
        before, process = set(training.state.glob("step_*")), training.process()
        os.kill(process, signal.SIGSTOP)  # a training that is not finished in time
        cluster.call(
            "scontrol", "update", f"JobId={jobs[0]}", "TimeLimit=5"
        )  # the profile asks for SIGTERM 300 s before
        wait_until(lambda: terminated(process), 120, "SIGTERM before the time limit")  # noqa: B023
        cluster.call("scontrol", "update", f"JobId={jobs[0]}", "TimeLimit=60")
        let_go(process)
        wait_until(lambda: set(training.state.glob("step_*")) - before, 300, "the checkpoint that SIGTERM writes")  # noqa: B023
        training.resumed()
    assert run.wait() == 0, run.log.read_text()[-4000:]
    assert set(jobs) == {run.jobs("train_network")[0]["id"]}, "a requeued job keeps its id"
    assert run.states("train_network") == ["COMPLETED"]

    steps = metrics((experiment / LOW_RES).with_name("low_res_metrics.csv"), "step")
    assert steps == [str(step) for step in range(1, 201)]
    whole = experiment / "whole"
    results = RESULTS / "config/low_res_medsyn.json", RESULTS / "text/biomedical/embeddings.json", RESULTS / "store/0"
    options = zip(("--config", "--embeddings", "--store"), results, strict=True)
    command = [sys.executable, "-m", "medsyn", "train", *(str(word) for pair in options for word in pair)]
    command += ["--state", f"{whole}/state", "--out", f"{whole}/low_res.safetensors", "--quiet"]
    subprocess.run(command, check=True, cwd=experiment, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (whole / "low_res.safetensors").read_bytes() == (experiment / LOW_RES).read_bytes()


def test_training_without_progress_fails_after_its_retries(cluster, start, experiment):
    """SIGTERM before the first step: no requeue, or the job would come back for ever."""
    config = write_config(experiment / "config.yaml", low_res={"train": {"num_steps": 5}}, compute=GPUS)
    run = start(experiment, config, str(LOW_RES), retries=1)
    training = Training(run, experiment / RESULTS / "state/medsyn/low_res", experiment / LOW_RES_LOG)
    for _ in range(2):
        process = training.process()
        os.kill(process, signal.SIGSTOP)
        cluster.call("scancel", "--signal=TERM", run.running("train_network")["id"])  # what --signal=TERM@300 does
        wait_until(lambda: terminated(process), 60, "SIGTERM")  # noqa: B023
        let_go(process)
        wait_until(lambda: not Path(f"/proc/{process}").exists(), 60, "the end of the process")  # noqa: B023
    assert run.wait() == 1
    assert run.states("train_network") == ["FAILED", "FAILED"]


def test_training_on_two_nodes_equals_one_process(cluster, start, experiment, finished):
    """One process on each GPU node, gradients exchanged by gloo: SLURM's GPUs are fake."""
    config = write_config(
        experiment / "config.yaml",
        low_res={"train": {"micro_batch_size": 2}},
        super_res={"train": {"micro_batch_size": 1}},
        compute=GPUS | {"num_nodes_training": 2},
    )
    run = start(experiment, config, str(LOW_RES))
    assert run.wait() == 0, run.log.read_text()[-4000:]
    assert [job["node"] for job in run.jobs("train_network")] == ["g[1-2]"]
    one, two = load_file(finished / LOW_RES), load_file(experiment / LOW_RES)
    differences = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
    assert differences.mean() < 1e-6, "biases before a group norm have no gradient but rounding, so no bound on each"
    path = LOW_RES.with_name("low_res_metrics.csv")
    one_losses, two_losses = ([float(loss) for loss in metrics(root / path, "loss")] for root in (finished, experiment))
    assert two_losses == pytest.approx(one_losses, rel=1e-5)
    with safe_open(experiment / LOW_RES, framework="pt") as handle:
        assert json.loads(handle.metadata()["provenance"])["num_processes"] == 2
