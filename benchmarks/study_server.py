"""Measure the response times of the study server with many readers at once.

Each reader loads the page and, without a pause, fetches the volumes of every item and submits an answer; real readers
pause for minutes. The server runs in a process of its own. Prints one line per kind of request:

    python benchmarks/study_server.py --readers 20 --size 128
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from study_folders import write_study
from study_server import Client, Server, answer_to

from medsyn.volume import Volume


def volumes(size: int, count: int) -> list[Volume]:
    """Return cubes of noise in HU, which compress no better than CTs do."""
    chance = np.random.default_rng(0)
    return [
        Volume(chance.normal(-600, 60, (size,) * 3).astype(np.int16), (300 / size, 300 / size, 300 / size))
        for _ in range(count)
    ]


def read(client: Client, times: dict[str, list[float]]) -> None:
    """Go through the study as one reader and note the seconds of every request."""

    def timed(kind: str, act):
        begin = time.perf_counter()
        result = act()
        times[kind].append(time.perf_counter() - begin)
        return result

    timed("page", lambda: client.ask("/"))
    items = timed("study", client.study)["items"]
    for position, item in enumerate(items):
        for name in item["volumes"]:
            timed("volume", lambda name=name: client.ask(f"/volumes/{name}"))
        answer = answer_to(item)
        assert timed("answer", lambda p=position, a=answer: client.submit(p, a))[0] == 200


def main() -> None:
    """Serve a study to readers at once and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--items", type=int, default=18, help="items besides practice (default: the paper's 18)")
    parser.add_argument("--size", type=int, default=128, help="voxels along an axis (default: 128)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder) / "study", args.readers, volumes=volumes(args.size, 6), num_items=args.items - 1)
        server = Server(Path(folder) / "study")
        times: dict[str, list[float]] = defaultdict(list)
        threads = [
            threading.Thread(target=read, args=(server.client(f"R{index + 1:02d}"), times))
            for index in range(args.readers)
        ]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = time.perf_counter() - begin
        server.kill()
    print(f"{args.readers} readers at once, {args.size}^3, {total:.1f} s, {multiprocessing.cpu_count()} cores")
    for kind, values in times.items():
        median, high = np.percentile(values, (50, 95))
        print(
            f"{kind}: {len(values)} requests, median {1e3 * median:.0f} ms, 95 % below {1e3 * high:.0f} ms,"
            f" longest {1e3 * max(values):.0f} ms"
        )


if __name__ == "__main__":
    main()
