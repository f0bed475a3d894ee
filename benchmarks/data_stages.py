"""Processor time of the demo's data stages, as the workflow starts them, on one core.

    python benchmarks/data_stages.py [--count 16] [--repeats 2] [--code OTHER_CHECKOUT]

Each stage is one process, `medsyn VERB ...` with the settings of config/config.yaml, on --count phantoms of 64^3
voxels: its seconds contain its start and imports. The least of the repeats is printed. --code measures another checkout
as well, in turns with this one, so that both meet the same load. The decoded volumes, the measures and the truth that
both write are compared; exit status 1 where they differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config/config.yaml"
COMMANDS = {
    "phantom": "phantom --count {count} --size 64 --seed 0 --out phantom",
    "cohort": "cohort --config config/cohort.json --manifest phantom/cohort.csv --out cohort",
    "preprocess": "preprocess --cohort cohort/cohort.csv --config config/preprocess.json --out preprocessed",
    "segment": "segment --volumes preprocessed --config config/masks.json --out masks",
    "measure": "measure --volumes preprocessed --config config/measure.json --out measures.csv",
    "store": "store --volumes preprocessed --masks masks --cohort cohort/cohort.csv --config config/preprocess.json"
    " --out store",
}
COMPARED = ("*.nii.gz", "measures.csv", "truth.json")


def main() -> None:
    """Run the stages with every checkout, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16, help="phantoms")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--code", type=Path, help="another checkout of this program, measured before this one")
    args = parser.parse_args()
    codes = [args.code.resolve(), ROOT] if args.code else [ROOT]
    best: dict[Path, dict[str, float]] = {}
    written: dict[Path, dict[str, str]] = {}
    for _ in range(args.repeats):
        for code in codes:
            with tempfile.TemporaryDirectory() as name:
                seconds = run_stages(code, Path(name), args.count)
                best[code] = {stage: min(s, best.get(code, seconds)[stage]) for stage, s in seconds.items()}
                written[code] = content_of(Path(name))
    print_table([best[code] for code in codes], args.count)
    if args.code:
        first, second = (written[code] for code in codes)
        different = [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]
        print(f"{len(first)} files compared, {len(different)} differ", *different[:5], sep="\n")
        sys.exit(1 if different else 0)


def run_stages(code: Path, folder: Path, count: int) -> dict[str, float]:
    """Run the stages of a checkout in an empty folder; return the processor seconds of each."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1")
    environment = os.environ | threads | {"PYTHONPATH": str(code)}
    seconds = {}
    for stage, words in {"config": "config {config} --out config", **COMMANDS}.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = [word.format(count=count, config=CONFIG) for word in words.split()]
        command = [sys.executable, "-m", "medsyn", *arguments]
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
        )
        if result.returncode:
            sys.exit(result.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds[stage] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {stage: seconds[stage] for stage in COMMANDS}


def content_of(folder: Path) -> dict[str, str]:
    """Return a hash of what each file that `COMPARED` names holds: voxels with their geometry, or the text."""
    from medsyn.volume import read_volume

    hashes = {}
    for path in sorted(path for pattern in COMPARED for path in folder.rglob(pattern)):
        if path.name.endswith(".nii.gz"):
            volume = read_volume(path)
            geometry = json.dumps([volume.spacing_mm, volume.origin_mm, volume.direction, str(volume.array.dtype)])
            content = geometry.encode() + volume.array.tobytes()
        else:
            content = path.read_bytes()
        hashes[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return hashes


def print_table(columns: list[dict[str, float]], count: int) -> None:
    """Print processor seconds per stage as Markdown, the other checkout's first if there is one, and the ratio."""
    heads = ["before, s", "now, s", "ratio"] if len(columns) > 1 else ["now, s"]
    print(f"| {count} phantoms | " + " | ".join(heads) + " |")
    print("| --- |" + " --- |" * len(heads))
    rows = {stage: [column[stage] for column in columns] for stage in COMMANDS}
    rows["**all**"] = [sum(column.values()) for column in columns]
    for name, values in rows.items():
        ratio = f" {values[0] / values[1]:.2f} |" if len(values) > 1 else ""
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |" + ratio)


if __name__ == "__main__":
    main()
