"""A study server that is killed at any moment: nothing acknowledged is lost, nothing counts twice."""

from __future__ import annotations

import http.client
import random
import secrets
import threading
import time

import pytest
from study_folders import write_study
from study_server import Client, Server, answer_to

from medsyn.study.answers import AnswerStore
from medsyn.study.definition import read_study

NUM_KILLS = 50
NUM_READERS = 25
"""Enough that the readers are not done before the last kill."""


class ScriptedReader(threading.Thread):
    """Answers its items like the page: one submission id per act, repeated until there is a reply; some are changed."""

    def __init__(self, client: Client, seed: int) -> None:
        super().__init__(daemon=True)
        self.client, self.random = client, random.Random(seed)
        self.acknowledged: dict[int, tuple[str, object]] = {}
        self.refusals: list[object] = []

    def run(self) -> None:
        items = self._insist(self.client.study)["items"]
        for position, item in enumerate(items):
            self._submit(position, answer_to(item, self.random.randrange(4)))
            if self.random.random() < 0.3:
                replaced = self.acknowledged[position][0]
                self._submit(position, answer_to(item, self.random.randrange(4)), replaces=replaced)

    def _submit(self, position: int, content: object, **more: str) -> None:
        submission = secrets.token_hex(16)
        status, reply = self._insist(lambda: self.client.submit(position, content, submission, **more))
        if status == 200:
            self.acknowledged[position] = (submission, content)
        else:
            self.refusals.append(reply)
        time.sleep(self.random.random() * 0.05)

    def _insist(self, act):
        while True:
            try:
                return act()
            except (OSError, http.client.HTTPException, AssertionError):
                time.sleep(0.02)


@pytest.mark.slow
def test_fifty_kills_lose_nothing_that_was_acknowledged_and_count_nothing_twice(tmp_path):
    study = write_study(tmp_path / "study", num_readers=NUM_READERS)
    server = Server(tmp_path / "study")
    chance = random.Random(0)
    scripted = {code: ScriptedReader(server.client(code), seed) for seed, code in enumerate(server.links())}
    waiting = list(scripted.values())
    begin, kills = time.monotonic(), 0
    while kills < NUM_KILLS and time.monotonic() - begin < 50:
        while waiting and sum(reader.is_alive() for reader in scripted.values()) < 2:
            waiting.pop().start()
        if chance.random() < 0.7:  # otherwise the server is often killed before it listens
            server.wait()
        time.sleep(chance.random() * 0.2)
        server.kill()
        kills += 1
        server.start()
    server.wait()
    for reader in scripted.values():
        if reader.ident is not None:
            reader.join(timeout=60)
            assert not reader.is_alive()
    served = {code: server.client(code).study()["answers"] for code in scripted}
    server.kill()
    assert kills >= 3  # all fifty take half a minute on two free cores
    assert sum(len(reader.acknowledged) for reader in scripted.values()) >= 10
    _check(study, scripted, served, server)


def _check(study, scripted, served, server) -> None:
    store = AnswerStore(server.answers)
    with store.transaction() as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        doubled = db.execute("SELECT count(*) - count(DISTINCT reader || submission) FROM answers").fetchone()[0]
        assert doubled == 0
    stored = store.all_answers()
    store.close()
    assert read_study(server.folder) == study
    for code, reader in scripted.items():
        assert reader.refusals == []
        found = {int(position): (answer["submission"], answer["content"]) for position, answer in served[code].items()}
        expected = {
            position: (submission, _competition(content))
            for position, (submission, content) in reader.acknowledged.items()
        }
        assert found == expected
        assert len(stored.get(code, {})) == len(reader.acknowledged)


def _competition(content: object) -> object:
    return [1 + sum(other < rank for other in content) for rank in content] if isinstance(content, list) else content
