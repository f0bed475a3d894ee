"""Spread of the tables over training seeds: `python benchmarks/seeds.py results results/seed1 results/seed2`.

Reads eval/table1.csv ... table8.csv of runs that differ in their seed only (`make demo SEED=n`) and prints, as
Markdown, every numeric result of every row: mean and sample standard deviation over the seeds, then each seed's value.
A cell that is empty in a run is printed as "-" and left out of the mean, which then names its number of runs.
`--columns` takes shell patterns of the results to print, for example `'*_mean' fid mmd`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from medsyn.errors import InputError
from medsyn.files import read_csv, read_json

TABLES = {1: "I", 2: "II", 3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII"}
KEYS = ("method", "language_model", "text", "prompt_type", "finding")
Row = tuple[str, ...]
Results = dict[Row, dict[str, float | None]]


def seed_of(folder: Path) -> int:
    """Return the seed of the prompts, tables and bootstrap of the run in `folder`."""
    return int(read_json(folder / "config/evaluation.json")["seed"])


def read_results(path: Path) -> Results:
    """Return the cells of a table by row and column; None where a cell does not hold a number."""
    rows = read_csv(path)
    keys = [name for name in KEYS if rows and name in rows[0]]
    results: Results = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        if key in results:
            raise InputError(f"{path}: two rows are {' / '.join(key)}; expected one row for each {', '.join(keys)}")
        results[key] = {name: number(value) for name, value in row.items() if name not in keys}
    return results


def number(text: str) -> float | None:
    """Return the number that `text` holds, None if it does not hold one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def spread(runs: dict[int, Results], patterns: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown table: row, result, mean ± standard deviation over the runs, each run's value."""
    lines = [f"| row | result | mean ± sd | {' | '.join(f'seed {seed}' for seed in runs)} |"]
    lines.append("| --- " * (3 + len(runs)) + "|")
    keys = list(dict.fromkeys(key for results in runs.values() for key in results))
    for key in keys:
        cells = [results.get(key, {}) for results in runs.values()]
        for column in dict.fromkeys(name for cell in cells for name in cell):
            values = [cell.get(column) for cell in cells]
            known = [value for value in values if value is not None]
            if not known or not any(fnmatch(column, pattern) for pattern in patterns):
                continue
            shown = " | ".join("-" if value is None else f"{value:.4g}" for value in values)
            lines.append(f"| {' / '.join(key)} | {column} | {mean_and_deviation(known, len(values))} | {shown} |")
    return lines


def mean_and_deviation(known: Sequence[float], num_runs: int) -> str:
    """Return "mean ± sample standard deviation", with the number of runs behind it when some have no value."""
    deviation = f"{statistics.stdev(known):.2g}" if len(known) > 1 else "-"
    return f"{statistics.mean(known):.4g} ± {deviation}" + (f" (n = {len(known)})" if len(known) < num_runs else "")


def main() -> None:
    """Print the spread of all tables that every run has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results folders of finished runs, one per seed")
    parser.add_argument(
        "--columns", nargs="+", default=["*"], metavar="PATTERN", help="results to print (default: all)"
    )
    args = parser.parse_args()
    try:
        folders: dict[int, Path] = {}
        for folder in args.results:
            other = folders.setdefault(seed_of(folder), folder)
            if other is not folder:
                raise InputError(f"{folder}: its seed {seed_of(folder)} is that of {other}; give one folder per seed")
        for table, numeral in TABLES.items():
            runs = {seed: read_results(folders[seed] / f"eval/table{table}.csv") for seed in sorted(folders)}
            print(f"**Table {numeral}**\n", *spread(runs, args.columns), "", sep="\n")
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
