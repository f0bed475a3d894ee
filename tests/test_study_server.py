"""The server of a reader study: what it refuses, what it stores, and what it never shows."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sqlite3
import stat
import threading
import time
from pathlib import Path

import pytest
from study_folders import write_study
from study_server import Client, Server, answer_to

from medsyn.cli import main
from medsyn.study.definition import Study

SCRIPT = "<script>alert(1)</script>\"'&"


@pytest.fixture
def server(tmp_path):
    write_study(tmp_path / "my study", num_readers=3)
    server = Server(tmp_path / "my study")
    yield server
    server.kill()


def export(server: Server, out: Path) -> list[dict[str, str]]:
    assert main(["study", "export", str(server.folder), "--out", str(out), "--force"]) == 0
    with out.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_a_whole_study_is_found_in_the_export(server, tmp_path):
    client = server.client("R02")
    study = client.study()
    assert [item["practice"] for item in study["items"]] == [True, True] + [False] * 7
    assert "id" not in study["items"][0] and "repeats" not in study["items"][0]
    for position, item in enumerate(study["items"]):
        content = [2, 1, 1, 4] if item["task"] == "ranking" else "other"
        assert client.submit(position, content, note=' a, "b"\n=c ', seconds=position + 0.25)[0] == 200
    assert client.ask("/api/finish", "POST", {})[0] == 200
    assert client.study()["finished"]
    rows = export(server, tmp_path / "answers.csv")
    design = Study.model_validate_json((server.folder / "study.json").read_text())
    reader = design.readers[1]
    asked = reader.order[2:]
    assert {row["reader"] for row in rows} == {"R02"}
    assert [row["volume"] for row in rows] == [name for slot in asked for name in slot.volumes]
    assert {row["item"]: int(row["position"]) for row in rows} == {
        slot.item: place for place, slot in enumerate(asked, start=1)
    }
    ranking = [row for row in rows if row["task"] == "ranking"]
    assert [row["rank"] for row in ranking[:4]] == ["3", "1", "1", "4"]  # competition ranks of 2, 1, 1, 4
    assert {row["structure"] for row in ranking} == {"lobes"}
    assert {row["answer"] for row in rows if row["task"] == "recognition"} == {"other"}
    assert {row["group"] for row in rows} == {"junior"}
    assert {row["note"] for row in rows} == {'a, "b"\n=c'}
    assert next(row["repeats"] for row in rows if row["item"] == "i8") == "i2"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", rows[0]["answered_at"])


def test_an_answer_is_recorded_once_and_changed_only_by_naming_what_it_replaces(server, tmp_path):
    client = server.client("R01")
    for position in (0, 1):
        assert client.submit(position, answer_to(client.study()["items"][position]))[0] == 200
    first, second = "a" * 32, "b" * 32
    position = next(p for p, item in enumerate(client.study()["items"]) if p > 1 and item["task"] == "recognition")
    assert client.submit(position, "cardiomegaly", first)[0] == 200
    assert client.submit(position, "cardiomegaly", first)[0] == 200  # a retry
    status, reply = client.submit(position, "other", second)  # another tab
    assert (status, reply["error"]) == (409, "this item was answered in another tab or browser")
    assert client.submit(position, "other", second, replaces=first)[0] == 200
    assert client.submit(position, "consolidation", replaces=first)[0] == 409
    assert client.submit(position + 1, "consolidation", second)[0] in (409, 422)
    assert client.submit(position, "cardiomegaly", first)[0] == 200  # a late retry changes nothing
    assert client.study()["answers"][str(position)]["content"] == "other"
    (row,) = export(server, tmp_path / "a.csv")
    assert row["answer"] == "other"


def test_nothing_changes_after_the_end_and_the_end_needs_all_answers(server):
    client = server.client("R01")
    assert client.ask("/api/finish", "POST", {})[0] == 409
    client.answer_all()
    assert client.ask("/api/finish", "POST", {})[0] == 200
    before = client.study()["answers"]
    assert client.submit(0, "other", replaces=before["0"]["submission"])[0] == 409
    assert client.ask("/api/drafts", "POST", {"position": 0, "seconds": 9, "content": ""})[0] == 200
    assert client.study()["answers"] == before
    assert client.study()["drafts"] == {}


def test_time_and_choices_of_an_open_item_are_kept_and_time_never_shrinks(server):
    client = server.client("R01")
    for seconds, content in ((12.5, "first"), (3.0, "second")):
        client.ask("/api/drafts", "POST", {"position": 0, "seconds": seconds, "content": content})
    assert server.client("R01").study()["drafts"] == {"0": {"seconds": 12.5, "content": "second"}}
    client.submit(0, answer_to(client.study()["items"][0]))
    assert client.study()["drafts"] == {}


def test_two_tabs_at_the_same_moment_count_once(server, tmp_path):
    client, results = server.client("R01"), []
    position = 2
    content = answer_to(client.study()["items"][position])
    threads = [threading.Thread(target=lambda: results.append(client.submit(position, content)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [200] + [409] * 7


def bodies():
    good = {"position": 0, "submission": "a" * 32, "content": "other", "seconds": 1.0}
    yield 422, {**good, "content": "no such option"}
    yield 422, {**good, "content": [1, 2]}
    yield 422, {**good, "content": 3}
    yield 422, {**good, "seconds": -1}
    yield 422, {**good, "seconds": 1e9}
    yield 422, {**good, "position": -1}
    yield 422, {**good, "position": "0"}
    yield 422, {**good, "position": True}
    yield 404, {**good, "position": 99}
    yield 422, {**good, "submission": "x"}
    yield 422, {**good, "reader": "R02"}
    yield 422, {**good, "note": "x" * 2001}
    yield 422, [good]
    yield 422, b'{"position": 0, "seconds": NaN}'
    yield 422, b"\xff\xfe"
    yield 422, b"[" * 10000
    yield 413, b" " * (17 << 10)
    yield 422, json.dumps({**good, "note": "?"}).replace("?", "\\ud800").encode()


@pytest.mark.parametrize(("status", "body"), list(bodies()))
def test_what_does_not_fit_is_refused_and_nothing_is_stored(shared, status, body):
    headers = {"Content-Type": "application/json"}
    client = shared.client("R01")
    found, _, reply = client.ask("/api/answers", "POST", body, headers)
    assert found == status, reply
    assert "error" in json.loads(reply)
    assert client.study()["answers"] == {}
    assert "Traceback" not in shared.log.read_text()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server for tests that store nothing."""
    folder = tmp_path_factory.mktemp("shared") / "study"
    write_study(folder, num_readers=3)
    secret = folder.with_name("secret.txt")
    secret.write_text("sealed")
    server = Server(folder)
    yield server
    server.kill()


def test_a_wrong_kind_of_body_or_method_is_refused(shared):
    client = shared.client("R01")
    assert client.ask("/api/answers", "POST", b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert client.ask("/api/answers")[0] == 405
    assert client.ask("/", "DELETE")[0] == 405


TRAVERSALS = (
    "/volumes/../secret.txt",
    "/volumes/..%2f..%2fsecret.txt",
    "/volumes/%2e%2e/study.json",
    "/page/../../secret.txt",
    "/page/..%2fserver.py",
    "/page/%2e%2e%2fanswers.py",
    "//etc/passwd",
    "/volumes/%00",
    "/study.json",
    "/SHA256SUMS",
    "/study.key.json",
    "/study.answers.sqlite",
    "/volumes/" + "a" * 3000,
)


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_leads_out_of_what_is_served(shared, path):
    status, _, body = shared.client("R01").ask(path)
    assert status in (400, 404)
    assert b"sealed" not in body and b"import" not in body


def test_a_token_opens_its_own_study_only(shared, tmp_path):
    write_study(tmp_path / "other")
    other = Server(tmp_path / "other")
    try:
        name = other.client("R01").study()["items"][0]["volumes"][0]
        for client in (Client(shared.port), Client(shared.port, "x" * 22), Client(shared.port, "R01")):
            assert client.ask("/api/study")[0] == 401
            assert client.ask(f"/volumes/{name}")[0] == 401
            assert client.submit(0, "other")[0] == 401
        stranger = Client(shared.port, other.links()["R01"].partition("#")[2])
        assert stranger.ask("/api/study")[0] == 401
    finally:
        other.kill()


def test_a_volume_outside_of_a_readers_items_is_not_served(tmp_path):
    study = write_study(tmp_path / "study", num_items=2)
    shown = {name for slot in study.readers[0].order for name in slot.volumes}
    (unused,) = [p.name[:16] for p in (tmp_path / "study/volumes").iterdir() if p.name[:16] not in shown][:1]
    server = Server(tmp_path / "study")
    try:
        assert server.client("R01").ask(f"/volumes/{sorted(shown)[0]}")[0] == 200
        assert server.client("R01").ask(f"/volumes/{unused}")[0] == 404
    finally:
        server.kill()


def test_volumes_come_as_their_bytes_in_whole_or_in_ranges_without_the_time_of_the_file(shared):
    client = shared.client("R01")
    name = client.study()["items"][0]["volumes"][0]
    stored = (shared.folder / f"volumes/{name}.nii.gz").read_bytes()
    status, headers, body = client.ask(f"/volumes/{name}", headers={"Accept-Encoding": "gzip"})
    assert (status, body) == (200, stored)
    assert "content-encoding" not in headers and "last-modified" not in headers
    assert headers["cache-control"] == "private, max-age=86400, immutable"
    assert headers["vary"] == "authorization"
    assert headers["etag"] == f'"{name}"'
    status, headers, body = client.ask(f"/volumes/{name}", headers={"Range": "bytes=10-19"})
    assert (status, body, headers["content-range"]) == (206, stored[10:20], f"bytes 10-19/{len(stored)}")
    status, _, body = client.ask(f"/volumes/{name}", headers={"Range": "bytes=0-3", "If-Range": '"old"'})
    assert (status, body) == (200, stored)
    assert client.ask(f"/volumes/{name}", headers={"Range": f"bytes={len(stored)}-"})[0] == 416


def test_every_answer_has_the_headers_of_security(shared):
    client = shared.client("R01")
    name = client.study()["items"][0]["volumes"][0]
    for path in ("/", "/page/main.js", "/page/niivue.js", "/api/study", f"/volumes/{name}", "/none", "/api/answers"):
        _, headers, _ = client.ask(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy, path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers and "set-cookie" not in headers
        if path.startswith(("/api", "/none")):
            assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1:1", 200), ("localhost", 200), ("evil.example", 400)])
def test_another_name_of_the_host_is_refused(shared, host, status):
    assert Client(shared.port).ask("/", headers={"Host": host})[0] == status


def test_the_page_is_compressed_where_the_browser_takes_it(shared):
    plain = Client(shared.port).ask("/page/niivue.js")[2]
    for accepted, is_packed in (("gzip, br", True), ("br", False), ("gzip;q=0", False)):
        _, headers, body = Client(shared.port).ask("/page/niivue.js", headers={"Accept-Encoding": accepted})
        assert (headers.get("content-encoding") == "gzip") == is_packed
        assert (gzip.decompress(body) if is_packed else body) == plain


def test_no_served_byte_names_a_method_or_another_machine(shared):
    client = shared.client("R01")
    paths = ["/", *(f"/page/{name}.js" for name in ("main", "api", "clock", "elements", "forms", "stage", "viewer"))]
    paths += ["/page/style.css", "/api/study", "/none"]
    for path in paths:
        _, headers, body = client.ask(path)
        text = (body.decode() + json.dumps(headers)).lower()
        for word in ("medsyn", "hagan", "ha-gan", "gan", "diffusion", "synth", "generated", "method_"):
            assert not re.search(rf"\b{word}\b", text), (path, word)
        assert not re.search(r"https?://", text), path
    library = client.ask("/page/niivue.js")[2].decode().lower()
    assert not re.search(r"\b(medsyn|ha-?gan|medical.diffusion|alpha-?gan|wgan)\b", library)


def test_notes_are_kept_as_text_and_not_computed_by_a_spreadsheet(server, tmp_path):
    client = server.client("R01")
    position = 2
    content = answer_to(client.study()["items"][position])
    assert client.submit(position, content, note=SCRIPT + "\x00\x1b")[0] == 200
    status, headers, body = client.ask("/api/study")
    assert headers["content-type"] == "application/json" and status == 200
    assert json.loads(body)["answers"][str(position)]["note"] == SCRIPT
    client.submit(position + 1, answer_to(client.study()["items"][position + 1]), note="=HYPERLINK(1)")
    notes = {row["note"] for row in export(server, tmp_path / "a.csv")}
    assert notes == {SCRIPT, "'=HYPERLINK(1)"}


def test_the_page_never_makes_markup_of_text():
    page = Path(__file__).parents[1] / "medsyn/study/page"
    for path in page.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text()), path


def test_links_and_answers_are_for_their_owner_alone_and_tokens_are_not_stored(server):
    for path in (server.links_file, server.answers):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = server.answers.read_bytes() + Path(f"{server.answers}-wal").read_bytes()
    for link in server.links().values():
        token = link.partition("#")[2]
        assert len(token) == 22 and token.encode() not in content  # 128 bits in base 64


def test_a_withdrawn_reader_leaves_no_trace_while_the_server_runs(server, tmp_path, capsys):
    for reader in ("R01", "R02"):
        client = server.client(reader)
        client.answer_all()
        client.ask("/api/drafts", "POST", {"position": 1, "seconds": 9, "content": f"draft of {reader}"})
        ranked = client.study()["answers"]["0"]["submission"]
        client.submit(0, "other", replaces=ranked, note=f"note of {reader}")
    gone = server.client("R01")
    assert main(["study", "withdraw", str(server.folder), "R01"]) == 0
    assert "R01: 9 answers deleted" in capsys.readouterr().err
    files = [server.answers, *server.answers.parent.glob(f"{server.answers.name}-*")]
    content = b"".join(path.read_bytes() for path in files)
    assert b"note of R01" not in content and b"draft of R01" not in content
    assert b"note of R02" in content
    assert gone.ask("/api/study")[0] == 401
    assert {row["reader"] for row in export(server, tmp_path / "a.csv")} == {"R02"}
    assert main(["study", "withdraw", str(server.folder), "R99"]) == 2
    server.kill()
    server.start()  # no new invitation for who has withdrawn
    server.wait()
    assert gone.ask("/api/study")[0] == 401
    assert len(server.client("R02").study()["answers"]) == 9


def test_a_backup_of_a_running_server_is_whole_and_serves_again(server, tmp_path):
    client = server.client("R01")
    client.answer_all()
    out = tmp_path / "copy.sqlite"
    assert main(["study", "backup", str(server.folder), "--out", str(out)]) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with sqlite3.connect(out) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM answers").fetchone() == (9,)
    assert main(["study", "export", str(server.folder), "--answers", str(out), "--out", str(tmp_path / "b.csv")]) == 0
    assert (tmp_path / "b.csv").read_bytes() == export_bytes(server, tmp_path)


def export_bytes(server: Server, tmp_path: Path) -> bytes:
    export(server, tmp_path / "a.csv")
    return (tmp_path / "a.csv").read_bytes()


def test_twenty_readers_at_once_are_all_stored(tmp_path):
    write_study(tmp_path / "study", num_readers=20)
    server = Server(tmp_path / "study")
    try:
        clients = [server.client(f"R{index + 1:02d}") for index in range(20)]
        begin = time.monotonic()
        threads = [threading.Thread(target=client.answer_all) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begin < 60
        assert {len(client.study()["answers"]) for client in clients} == {9}
        assert len({(row["reader"], row["item"]) for row in export(server, tmp_path / "a.csv")}) == 140
    finally:
        server.kill()
