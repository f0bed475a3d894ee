"""Start the server of a reader study: check the folder, write the invitations once, listen."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from medsyn.errors import InputError
from medsyn.files import sha256
from medsyn.outputs import is_replaceable, sign
from medsyn.study.answers import AnswerStore
from medsyn.study.definition import SUMS_FILE, Study, check_sums, default_answers, lies_in, read_study
from medsyn.study.server import create_app

_MAX_CONNECTIONS = 256
_LOCAL = ("localhost", "127.0.0.1", "::1", "[::1]")


def open_answers(folder: Path, answers: Path | None) -> tuple[Study, AnswerStore]:
    """Return the study in `folder` and its existing answers; InputError if they do not belong together."""
    study = read_study(folder)
    store = AnswerStore(answers or default_answers(folder))
    store.check(sha256(folder / SUMS_FILE))
    return study, store


def serve(
    folder: Path,
    *,
    answers: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    url: str | None = None,
    links: Path | None = None,
    new_links: bool = False,
    ready: str | None = None,
) -> None:
    """Serve the study in `folder` until the process is stopped.

    answers: SQLite file, made at the first start; url: address under which readers reach the server, needed where that
    is not this machine; links: CSV of the invitations, written at the first start or with `new_links`, which ends the
    old ones; ready: line for standard error once the server listens. Raises InputError for a folder that has changed,
    a sealed key or answers inside of it, and a port that is in use.
    """
    answers, links = answers or default_answers(folder), links or _default_links(folder)
    study = read_study(folder)
    for path in (answers, links, *folder.rglob("*.key.json")):
        if lies_in(path, folder):
            raise InputError(
                f"{path}: lies in the folder of the study, expected a place apart from it; move or rename it"
            )
    check_sums(folder)
    listener = _listen(host, port)
    with listener:
        url = _address(url, host, listener.getsockname()[1])
        store = AnswerStore.create(answers, sha256(folder / SUMS_FILE), [reader.code for reader in study.readers])
        invited = store.active() if new_links else store.without_token()
        if invited:
            _invite(store, invited, url, links, new_links)
            print(f"invitations of {len(invited)} readers: {links}", file=sys.stderr)
        print(ready or f"serving {folder} at {url} (answers: {answers}); stop with Ctrl+C", file=sys.stderr)
        hosts = sorted({*_LOCAL, urlsplit(url).hostname or host})
        try:
            _run(study, folder, store, hosts, listener)
        finally:
            store.close()


def _run(study: Study, folder: Path, store: AnswerStore, hosts: list[str], listener: socket.socket) -> None:
    """Answer requests until a signal stops the process."""
    settings = uvicorn.Config(
        create_app(study, folder, store, hosts),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        loop="asyncio",
        http="h11",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(settings).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; one that is in use or not ours is an InputError."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        remedy = "name another --port" if error.errno == errno.EADDRINUSE else "name another --host or --port"
        raise InputError(f"{host}:{port}: cannot listen there ({error.strerror}); {remedy}") from None
    except OverflowError:
        listener.close()
        raise InputError(f"--port {port}: expected 0 to 65535; name another") from None
    return listener


def _address(url: str | None, host: str, port: int) -> str:
    """Return the address of the page without a slash at its end."""
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise InputError(f"--url {url}: expected an address without a path, such as https://study.example.org")
        return f"{parts.scheme}://{parts.netloc}"
    if not _is_loopback(host):
        raise InputError(
            f"--host {host}: opens the server to other machines; give --url too, the address that readers will use"
            " (and see docs/reader_study.md on encryption)"
        )
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _default_links(folder: Path) -> Path:
    real = Path(os.path.realpath(folder))
    return real.with_name(f"{real.name}.links.csv")


def _invite(store: AnswerStore, readers: list[str], url: str, path: Path, new_links: bool) -> None:
    """Write one link per reader to a file that only its owner can read, then store the hashes of their tokens.

    In this order a server that is killed in between has no tokens, and writes new links when it starts again.
    """
    if not new_links and not is_replaceable(path):
        raise InputError(f"{path}: is not a file of this program, expected a new one; name another --links")
    tokens = {reader: secrets.token_urlsafe(16) for reader in readers}
    lines = ["reader,link", *(f"{reader},{url}/#{token}" for reader, token in tokens.items())]
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as handle:
        handle.write("\n".join(lines) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    sign(temporary)
    temporary.replace(path)
    store.set_tokens(tokens)
