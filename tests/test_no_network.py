"""No verb opens a connection that leaves the machine; test_ct_rate.py runs rules under the same guard."""

import os
import subprocess
import sys
from pathlib import Path

GUARD = Path(__file__).with_name("no_network")

VERBS = """
import socket
from medsyn.cli import main
for ask in (lambda: socket.create_connection(("192.0.2.1", 80), 1), lambda: socket.getaddrinfo("example.org", 80)):
    try:
        ask()
    except OSError as error:
        assert "no network in this test" in str(error)
    else:
        raise AssertionError("the guard does not hold")
print("guarded", flush=True)
for verb in (
    "phantom --out ph --count 2 --size 64 --seed 1",
    "inspect ph/phantom-00000/volume.nii.gz --json",
    "preprocess ph/phantom-00000/volume.nii.gz --out one",
    "segment ph/phantom-00000/volume.nii.gz --out masks",
    "measure ph/phantom-00000/volume.nii.gz --out measures.json",
    "evaluate --real ph --synthetic ph --out table.csv",
    "export ph/phantom-00000/volume.nii.gz --dicom --out series",
    "manifest csv --table table_of_mine.csv --out manifest.csv",
    "label reports.csv --out labels.csv",
    "weights list",
):
    assert main(verb.split()) == 0, verb
"""


def test_no_verb_opens_a_connection(tmp_path: Path) -> None:
    (tmp_path / "table_of_mine.csv").write_text("subject_id,image,findings\na,a.nii.gz,Clear.\n")
    (tmp_path / "reports.csv").write_text("id,report\na,Small effusion.\n")
    log = tmp_path / "asked.txt"
    env = os.environ | {"MEDSYN_NETWORK_LOG": str(log)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), env.get("PYTHONPATH", "")]))
    run = subprocess.run([sys.executable, "-c", VERBS], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "guarded" in run.stdout
    assert log.read_text().split() == ["192.0.2.1", "example.org"], "only what the test itself asked for"
