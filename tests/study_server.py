"""Run the server of a reader study in a process of its own, and talk to it as the reader's page does."""

from __future__ import annotations

import csv
import http.client
import json
import multiprocessing
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["medsyn.study.serving"])


def _serve(folder: Path, port: int, log: Path) -> None:
    import os

    from medsyn.study.serving import serve

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    serve(folder, port=port)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server that can be killed and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.answers = folder.with_name(f"{folder.name}.answers.sqlite")
        self.links_file = folder.with_name(f"{folder.name}.links.csv")
        self.log = folder.with_name("server.log")
        self.process = None
        self.start()
        self.wait()

    def start(self) -> None:
        self.process = CONTEXT.Process(target=_serve, args=(self.folder, self.port, self.log), daemon=True)
        self.process.start()

    def wait(self, seconds: float = 120) -> None:
        """Wait until the server answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(OSError, http.client.HTTPException):
                Client(self.port).ask("/page/style.css")
                return
            assert self.process.is_alive(), self.log.read_text()
            time.sleep(0.01)
        raise AssertionError("the server does not listen")

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()
        self.process.join()

    def links(self) -> dict[str, str]:
        """Return reader -> invitation link."""
        with self.links_file.open() as handle:
            return {row["reader"]: row["link"] for row in csv.DictReader(handle)}

    def client(self, reader: str) -> Client:
        return Client(self.port, self.links()[reader].partition("#")[2])


class Client:
    """Requests with the token of a reader."""

    def __init__(self, port: int, token: str = "") -> None:
        self.port, self.headers = port, {"Authorization": f"Bearer {token}"} if token else {}

    def ask(
        self, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers (names in lower case) and body; an OSError or HTTPException if the server is gone."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            given = {**self.headers, **(headers or {})}
            if body is not None and not isinstance(body, bytes):
                body, given = json.dumps(body).encode(), {"Content-Type": "application/json", **given}
            connection.request(method, path, body, given)
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def study(self) -> dict[str, Any]:
        status, _, body = self.ask("/api/study")
        assert status == 200, body
        return json.loads(body)

    def submit(self, position: int, content: Any, submission: str | None = None, **more: Any) -> tuple[int, Any]:
        """Submit an answer; return the status and the reply."""
        submission = submission or secrets.token_hex(16)
        body = {"position": position, "submission": submission, "content": content, "seconds": 1.5, **more}
        status, _, reply = self.ask("/api/answers", "POST", body)
        return status, json.loads(reply)

    def answer_all(self, first: int = 0) -> None:
        """Answer all items from `first` on."""
        items = self.study()["items"]
        for position in range(first, len(items)):
            assert self.submit(position, answer_to(items[position]))[0] == 200


def answer_to(item: dict[str, Any], choice: int = 0) -> Any:
    """Return an answer that fits an item."""
    if item["task"] == "ranking":
        ranks = list(range(1, len(item["volumes"]) + 1))
        return ranks[choice % 4 :] + ranks[: choice % 4]
    return item["options"][choice % 4]["value"]
