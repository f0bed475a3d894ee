"""Train and package the phantom model without Snakemake, on a machine that has Python and the libraries alone.

    PYTHONPATH=. python benchmarks/phantom_model.py --jobs 16

`make phantom-model` is the usual way. This script runs the same commands on the same files (a test compares them). An
output that is there is not made again, so it goes on after it was stopped, with what another machine has made, or with
what Snakemake has made, and Snakemake goes on with its results. SIGTERM and Ctrl-C stop the training runs after they
have written a checkpoint. A GPU is used if there is one; phantoms, preprocessing, masks and store use `--jobs` cores.

Needs accelerate, matplotlib, numpy, packaging, pydantic, pyyaml, safetensors, scikit-image, scipy, SimpleITK,
tensorstore, tokenizers, torch, tqdm and transformers, and no network.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from medsyn.config import Config, load_config, stage_texts
from medsyn.errors import InputError
from medsyn.files import write_text
from medsyn.layout import Layout
from medsyn.registry import METHODS

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Step:
    """One call of a verb: its words, and the output whose presence says that it is done, unless it is made always."""

    words: Sequence[str]
    out: str
    always: bool = False


Chain = list[Step]
"""Steps that need each other, in order."""


def phantom_stages(config: Config, package: str) -> Iterator[list[Chain]]:
    """Yield the chains of each stage, which may run side by side; a stage needs the one before."""
    layout = Layout(config.results_dir)
    shards = [str(number) for number in range(config.cohort.num_shards)]
    yield [[_phantoms(layout, shard, len(shards))] for shard in shards] + [[_reports(layout)]]
    yield [[_cohort(layout, shards)]]
    encoder = config.methods[config.reference].text_encoder  # type: ignore[attr-defined]
    yield [_text(layout, encoder), *(_volumes(layout, shard, len(shards)) for shard in shards)]
    networks = METHODS["medsyn"].networks(config, config.reference)
    yield [[_train(layout, config.reference, name, shards, part.text_encoder)] for name, part in networks.items()]
    yield [_model(config, layout, package)]


def _phantoms(layout: Layout, shard: str, count: int) -> Step:
    out = layout.phantom(shard)
    return Step(["phantom", "--config", layout.config("phantom"), "--shard", f"{shard}/{count}", "--out", out], out)


def _reports(layout: Layout) -> Step:
    out = layout.phantom_reports()
    return Step(["phantom", "--config", layout.config("phantom"), "--reports-only", "--out", out], out)


def _cohort(layout: Layout, shards: Sequence[str]) -> Step:
    manifests = [f"{layout.phantom(shard)}/cohort.csv" for shard in shards]
    given = ["--config", layout.config("cohort"), "--manifest", *manifests, "--reports", layout.phantom_reports()]
    return Step(["cohort", *given, "--out", str(Path(layout.cohort()).parent)], layout.cohort("given_labels"))


def _volumes(layout: Layout, shard: str, count: int) -> Chain:
    volumes, masks, store = layout.preprocessed(shard), layout.masks(shard), layout.store(shard)
    settings, cohort = layout.config("preprocess"), layout.cohort()
    given = ["--cohort", cohort, "--shard", f"{shard}/{count}", "--config", settings]
    kept = ["--state", layout.state("preprocess", shard)]
    segment = ["segment", "--volumes", volumes, "--config", layout.config("masks")]
    return [
        Step(["preprocess", *given, *kept, "--out", volumes], volumes),
        Step([*segment, "--state", layout.state("segment", shard), "--out", masks], masks),
        Step(
            ["store", "--volumes", volumes, "--masks", masks, "--cohort", cohort, "--config", settings, "--out", store],
            store,
        ),
    ]


def _text(layout: Layout, encoder: str) -> Chain:
    model, states = layout.text_encoder(encoder), layout.embeddings(encoder)
    given = ["--config", layout.config(f"text_{encoder}"), "--reports", layout.cohort("reports")]
    return [
        Step(["pretrain-text", *given, "--out", model], model),
        Step(["embed", "--encoder", model, *given, "--out", states], states),
    ]


def _train(layout: Layout, method: str, network: str, shards: Sequence[str], encoder: str | None) -> Step:
    out = layout.network(method, network)
    given = ["--config", layout.config(f"{network}_{method}"), "--store", *map(layout.store, shards)]
    given += ["--embeddings", layout.embeddings(encoder)] if encoder else []
    return Step(["train", *given, "--state", layout.state(method, network), "--out", out], out)


def _model(config: Config, layout: Layout, package: str) -> Chain:
    method, run = config.reference, layout.run(config.reference)
    parts = METHODS["medsyn"].parts(config, method)
    joined = [word for name, path in parts.items() for word in (f"--{name.replace('_', '-')}", path)]
    return [
        Step(["assemble", "--label", method, *joined, "--sampling", layout.config("sampling"), "--out", run], run),
        Step(["package-model", "--weights", run, "--results", layout.root, "--out", package, "--force"], package, True),
    ]


def write_settings(config: Config, source: Path) -> None:
    """Write results/config; settings of an earlier run that differ are an InputError."""
    layout = Layout(config.results_dir)
    for stage, text in stage_texts(config).items():
        path = Path(layout.config(stage))
        if not path.exists():
            write_text(path, text + "\n")
        elif path.read_text(encoding="utf-8") != text + "\n":
            raise InputError(
                f"{path}: differs from {source}, expected the settings with which this folder was begun; name another"
                " results_dir, or run `make phantom-model`, which makes again what the change concerns"
            )


class Runner:
    """Runs chains of steps side by side; at the end of the block it stops what still runs."""

    def __init__(self, jobs: int, environment: dict[str, str]) -> None:
        self._pool = ThreadPoolExecutor(jobs)
        self._environment = environment
        self._lock = threading.Lock()  # of the two below
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()
        self._pool.shutdown()

    def stage(self, chains: Sequence[Chain]) -> None:
        """Run all chains; the first step that fails is an InputError at once, and no other step is started."""
        done, _ = wait([self._pool.submit(self._chain, chain) for chain in chains], return_when=FIRST_EXCEPTION)
        for chain in done:
            chain.result()

    def _chain(self, chain: Chain) -> None:
        for step in chain:
            if step.always or not Path(step.out).exists():
                self._step(step)

    def _step(self, step: Step) -> None:
        began = time.monotonic()
        command = [sys.executable, "-m", "medsyn", *step.words, "--quiet"]
        with self._lock:
            if self._stopped:
                return
            process = subprocess.Popen(command, env=self._environment, stderr=subprocess.PIPE, encoding="utf-8")
            self._running.add(process)
        _, said = process.communicate()
        with self._lock:
            self._running.discard(process)
            failed = process.returncode != 0 and not self._stopped
            self._stopped |= failed
        sys.stderr.write(said)
        if process.returncode == 0:
            print(f"{time.monotonic() - began:8.1f} s  {step.out}", flush=True)
        elif failed:
            raise InputError(f"{step.out}: `medsyn {step.words[0]}` ended with status {process.returncode}")


def main() -> None:
    """Make what is missing, from the phantoms to the folder of the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "config/phantom.yaml", help="configuration to train")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="commands at a time (default: all cores)")
    parser.add_argument("--out", default=str(ROOT / "medsyn/phantom_model"), help="folder of the packaged model")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        config = load_config(args.config)
        write_settings(config, args.config)
        threads = str(config.compute.num_threads_training)
        with Runner(args.jobs, os.environ | {"OMP_NUM_THREADS": threads}) as runner:
            for chains in phantom_stages(config, args.out):
                runner.stage(chains)
    except InputError as error:
        sys.exit(f"phantom_model: {error}")


if __name__ == "__main__":
    main()
