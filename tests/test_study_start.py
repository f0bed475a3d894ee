"""How `medsyn study serve` starts, and why it does not."""

from __future__ import annotations

import socket
import sqlite3

import pytest
from study_folders import write_study

from medsyn.cli import main
from medsyn.files import sha256
from medsyn.study.answers import Answer, AnswerStore, Draft, Refused


@pytest.fixture
def folder(tmp_path):
    write_study(tmp_path / "study")
    return tmp_path / "study"


def store_of(folder):
    return AnswerStore.create(folder.with_name("study.answers.sqlite"), sha256(folder / "SHA256SUMS"), ["R01", "R02"])


def refusal(capsys, *arguments: object) -> str:
    """Return the one line with which the verb ends."""
    assert main(["study", "serve", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_port_in_use_is_named(folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refusal(capsys, folder, "--port", port)
    assert f"127.0.0.1:{port}: cannot listen there (Address already in use); name another --port" in line
    assert not folder.with_name("study.links.csv").exists()


def test_a_folder_that_changed_since_there_are_answers_is_refused(folder, capsys):
    store_of(folder).close()
    text = (folder / "study.json").read_text()
    (folder / "study.json").write_text(text.replace("Chest CT study", "Another study"))
    assert "study.json: differs from its sum in SHA256SUMS" in refusal(capsys, folder, "--port", 0)
    sums = (folder / "SHA256SUMS").read_text()
    digest = sha256(folder / "study.json")
    (folder / "SHA256SUMS").write_text(f"{digest}  study.json\n" + sums.partition("\n")[2])
    line = refusal(capsys, folder, "--port", 0)
    assert "study.answers.sqlite: holds answers to a study with checksums" in line
    assert line.endswith("restore the folder as it was, or name another --answers")


def test_a_key_answers_or_links_inside_of_the_folder_are_refused(folder, capsys):
    assert "lies in the folder of the study" in refusal(capsys, folder, "--answers", folder / "a.sqlite", "--port", 0)
    assert "lies in the folder of the study" in refusal(capsys, folder, "--links", folder / "links.csv", "--port", 0)
    (folder / "volumes/study.key.json").write_text("{}")
    assert "study.key.json: lies in the folder of the study" in refusal(capsys, folder, "--port", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "0.0.0.0"), "opens the server to other machines; give --url too"),
        (("--url", "ftp://x"), "expected an address without a path, such as https://study.example.org"),
        (("--url", "https://x.org/study"), "expected an address without a path"),
        (("--port", "70000"), "expected 0 to 65535"),
        (("--host", "203.0.113.1"), "cannot listen there"),
    ],
)
def test_addresses_that_cannot_be_are_refused(folder, capsys, arguments, message):
    port = () if "--port" in arguments else ("--port", "0")
    assert message in refusal(capsys, folder, *arguments, *port)


def test_other_files_are_not_taken_for_answers(folder, capsys):
    text = folder.with_name("text")
    text.write_text("no database" * 100)
    assert "text: is not a file of answers" in refusal(capsys, folder, "--answers", text, "--port", 0)
    other = folder.with_name("other.sqlite")
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    assert "is a database of something else" in refusal(capsys, folder, "--answers", other, "--port", 0)
    assert text.read_text().startswith("no database")


def test_links_that_somebody_else_wrote_are_not_replaced(folder, capsys):
    links = folder.with_name("study.links.csv")
    links.write_text("mine")
    assert "study.links.csv: is not a file of this program" in refusal(capsys, folder, "--port", 0)
    assert links.read_text() == "mine"


def test_the_store_refuses_what_contradicts_it(folder):
    store = store_of(folder)
    answer = Answer("i2", "a" * 16, "other", "", 2.0)
    store.submit("R01", answer)
    store.submit("R01", answer)
    with pytest.raises(Refused, match="another item"):
        store.submit("R01", Answer("i3", "a" * 16, "other", "", 2.0))
    with pytest.raises(Refused, match="another tab"):
        store.submit("R01", Answer("i2", "b" * 16, "other", "", 2.0))
    store.keep_draft("R01", Draft("i2", 9.0, "a change that was not submitted"))
    assert store.progress("R01").drafts == {"i2": Draft("i2", 9.0, "")}
    with pytest.raises(Refused, match="1 items have no answer"):
        store.finish("R01", ["i2", "i3"])
    assert store.withdraw("R01") == 1
    with pytest.raises(Refused, match="withdrawn"):
        store.submit("R01", answer)
    with pytest.raises(Refused, match="withdrawn"):
        store.keep_draft("R01", Draft("i2", 1.0, ""))


def test_a_failed_transaction_leaves_nothing(folder):
    store = store_of(folder)
    with pytest.raises(ZeroDivisionError), store.transaction() as db:
        db.execute("DELETE FROM readers")
        raise ZeroDivisionError
    assert store.active() == ["R01", "R02"]


def test_new_tokens_end_the_old_ones_and_a_withdrawn_reader_gets_none(folder):
    store = store_of(folder)
    assert store.without_token() == ["R01", "R02"]
    store.set_tokens({"R01": "first", "R02": "second"})
    assert (store.reader("first"), store.reader("second"), store.reader("third")) == ("R01", "R02", None)
    store.set_tokens({"R01": "third"})
    assert (store.reader("first"), store.reader("third")) == (None, "R01")
    store.withdraw("R02")
    store.set_tokens({"R02": "fourth"})
    assert store.reader("fourth") is None
    assert store.without_token() == []
