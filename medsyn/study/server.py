"""Serve a reader study: the reader's page, the volumes of a reader's items, and a small interface for answers.

Every path below `/api` and `/volumes` needs the token of an invitation, as `Authorization: Bearer TOKEN`. The page
takes it from the fragment of its address (`/#TOKEN`), which a browser never sends: no address that reaches the server,
a log or a proxy holds it, and without cookies no other site can act for a reader. Items are known to the page by their
place in the reader's order, so that it learns neither their ids nor which ones repeat others.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, FiniteFloat, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsyn.config import Section
from medsyn.study.answers import Answer, AnswerStore, Draft, Progress, Refused
from medsyn.study.definition import Item, Reader, Slot, Study, volume_file

MAX_BODY = 16 << 10
"""Largest body of a request, in bytes: a note of 2,000 characters fits, however JSON escapes it."""
BODY_SECONDS = 30
"""Longest time in which a body arrives, in seconds."""
_DAY = 86400
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Characters of a note that become spaces: all control characters but the line feed."""
_ASSETS = {
    "/": ("page", "index.html", "text/html"),
    "/page/style.css": ("page", "style.css", "text/css"),
    **{
        f"/page/{name}.js": ("page", f"{name}.js", "text/javascript")
        for name in ("main", "api", "clock", "elements", "forms", "stage", "viewer")
    },
    "/page/niivue.js": ("niivue", "niivue.umd.js", "text/javascript"),
}
"""What is served without a token: path -> package, file and type. Nothing else of the disk has a path."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data:",  # NiiVue's font, and the empty icon
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
"""The content security policy: the page runs and asks for nothing but its own files on this server."""
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), display-capture=()",
}


_Body = TypeVar("_Body", bound=Section)


class _Submission(Section):
    """The body of POST /api/answers. content: option value, or ranks of the volumes in the order of display."""

    position: int = Field(ge=0)
    submission: str = Field(pattern=r"^[0-9a-f-]{16,36}$")
    replaces: str | None = None
    content: str | tuple[int, ...]
    note: str = Field(default="", max_length=2000)
    seconds: FiniteFloat = Field(ge=0, le=_DAY)


class _Draft(Section):
    """The body of POST /api/drafts. content: what is chosen so far, in the page's own words."""

    position: int = Field(ge=0)
    seconds: FiniteFloat = Field(ge=0, le=_DAY)
    content: str = Field(default="", max_length=4000)


class _Finish(Section):
    """The body of POST /api/finish."""


def create_app(study: Study, folder: Path, store: AnswerStore, hosts: list[str]) -> Starlette:
    """Return the web application of a study in `folder`, reached by the names `hosts` only."""
    room = _Room(study, folder, store)
    routes = [Route(path, _asset(*asset)) for path, asset in _ASSETS.items()]
    routes += [
        Route("/api/study", room.show),
        Route("/volumes/{name:str}", room.volume),
        Route("/api/answers", room.answer, methods=["POST"]),
        Route("/api/drafts", room.draft, methods=["POST"]),
        Route("/api/finish", room.finish, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(_SecurityHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        ],
        exception_handlers={HTTPException: _as_json},  # type: ignore[dict-item]
    )


class _Room:
    """The handlers of a study."""

    def __init__(self, study: Study, folder: Path, store: AnswerStore) -> None:
        self._study, self._folder, self._store = study, folder, store
        self._readers = {reader.code: reader for reader in study.readers}
        self._items = {item.id: item for item in study.items}
        self._volumes = {
            reader.code: frozenset(name for slot in reader.order for name in slot.volumes) for reader in study.readers
        }

    async def show(self, request: Request) -> Response:
        """GET /api/study: what the page shows to this reader, and where the reader stands."""
        reader = await self._reader(request)
        progress = await run_in_threadpool(self._store.progress, reader.code)
        study = {
            "title": self._study.title,
            "introduction": self._study.introduction,
            "window": self._study.window.model_dump(),
            "reader": reader.code,
            "items": [_shown(self._items[slot.item], slot) for slot in reader.order],
        }
        return _json({**study, **_standing(reader, progress)})

    async def volume(self, request: Request) -> Response:
        """GET /volumes/NAME: a volume of one of this reader's items, as the bytes of its .nii.gz; ranges are served."""
        reader = await self._reader(request)
        name = request.path_params["name"]
        if name not in self._volumes[reader.code]:
            raise HTTPException(404, "no such volume")
        return _VolumeResponse(
            volume_file(self._folder, name),
            media_type="application/octet-stream",
            headers={
                "cache-control": f"private, max-age={_DAY}, immutable",
                "vary": "authorization",
                "etag": f'"{name}"',
            },
        )

    async def answer(self, request: Request) -> Response:
        """POST /api/answers: record an answer; the reply says so only after it is on the disk."""
        reader = await self._reader(request)
        body = await _body(request, _Submission)
        slot = _slot(reader, body.position)
        content = _checked(self._items[slot.item], slot, body)
        note = _CONTROL.sub(" ", body.note).strip()
        answer = Answer(slot.item, body.submission, content, note, body.seconds)
        await self._record(self._store.submit, reader.code, answer, body.replaces)
        return _json({"recorded": body.submission})

    async def draft(self, request: Request) -> Response:
        """POST /api/drafts: keep the time of an open item, and what is chosen so far."""
        reader = await self._reader(request)
        body = await _body(request, _Draft)
        draft = Draft(_slot(reader, body.position).item, body.seconds, body.content)
        await self._record(self._store.keep_draft, reader.code, draft)
        return _json({"kept": True})

    async def finish(self, request: Request) -> Response:
        """POST /api/finish: end the study for this reader; every item must be answered."""
        reader = await self._reader(request)
        await _body(request, _Finish)
        await self._record(self._store.finish, reader.code, [slot.item for slot in reader.order])
        return _json({"finished": True})

    async def _reader(self, request: Request) -> Reader:
        """Return the reader whose token the request carries; 401 without one of this study."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        code = await run_in_threadpool(self._store.reader, token) if kind.lower() == "bearer" else None
        if code is None or code not in self._readers:
            raise HTTPException(401, "this invitation is not valid")
        return self._readers[code]

    async def _record(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            await run_in_threadpool(act, *arguments)
        except Refused as error:
            raise HTTPException(409, str(error)) from None


class _VolumeResponse(FileResponse):
    """A volume without the time of its file, which could tell how it was made."""

    def set_stat_headers(self, stat_result: Any) -> None:
        super().set_stat_headers(stat_result)
        del self.headers["last-modified"]

    def _should_use_range(self, http_if_range: str) -> bool:
        return http_if_range == self.headers["etag"]


class _SecurityHeaders:
    """Add the headers of security to every answer, and forbid to keep it unless it says otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def _asset(package: str, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of a file of the page, which is read once and compressed at most once."""
    root = resources.files("medsyn.viewer.niivue" if package == "niivue" else "medsyn.study") / (
        "" if package == "niivue" else "page"
    )
    plain = (root / name).read_bytes()
    packed = cache(lambda: gzip.compress(plain, mtime=0))  # when it is first asked for: starting stays quick
    headers = {"vary": "accept-encoding", "cache-control": "no-cache" if package == "page" else "public, max-age=86400"}

    async def serve(request: Request) -> Response:
        if re.search(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))", request.headers.get("accept-encoding", "")):
            content = await run_in_threadpool(packed)
            return Response(content, media_type=kind, headers={**headers, "content-encoding": "gzip"})
        return Response(plain, media_type=kind, headers=headers)

    return serve


def _shown(item: Item, slot: Slot) -> dict[str, Any]:
    """Return what the page learns about an item."""
    return {
        "task": item.task,
        "structure": item.structure,
        "question": item.question,
        "volumes": slot.volumes,
        "options": [option.model_dump() for option in item.options],
        "practice": item.practice,
    }


def _standing(reader: Reader, progress: Progress) -> dict[str, Any]:
    """Return answers and drafts of a reader by position, ranks in the order of display."""
    answers, drafts = {}, {}
    for position, slot in enumerate(reader.order):
        answer, draft = progress.answers.get(slot.item), progress.drafts.get(slot.item)
        if answer is not None:
            content = answer.content
            shown = content if isinstance(content, str) else [content[name] for name in slot.volumes]
            answers[position] = {
                "submission": answer.submission,
                "content": shown,
                "note": answer.note,
                "seconds": answer.seconds,
            }
        if draft is not None:
            drafts[position] = {"seconds": draft.seconds, "content": draft.content}
    return {"answers": answers, "drafts": drafts, "finished": progress.finished}


def _slot(reader: Reader, position: int) -> Slot:
    if position >= len(reader.order):
        raise HTTPException(404, "no such item")
    return reader.order[position]


def _checked(item: Item, slot: Slot, body: _Submission) -> str | dict[str, int]:
    """Return the answer as it is stored, ranks as competition ranks by volume; 422 if it does not fit the item."""
    if isinstance(body.content, str):
        if body.content not in {option.value for option in item.options}:
            raise HTTPException(422, "the answer is not one of the options of this item")
        return body.content
    count = len(slot.volumes)
    if item.task != "ranking" or len(body.content) != count or not all(1 <= rank <= count for rank in body.content):
        raise HTTPException(422, f"expected {count} ranks from 1 to {count}, one per volume")
    return {
        name: 1 + sum(other < rank for other in body.content)
        for name, rank in zip(slot.volumes, body.content, strict=True)
    }


async def _body(request: Request, kind: type[_Body]) -> _Body:
    """Return the JSON body of a request, of at most `MAX_BODY` bytes; 4xx for anything else."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected application/json")
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > MAX_BODY:
                    raise HTTPException(413, f"expected at most {MAX_BODY} bytes")
    except TimeoutError:
        raise HTTPException(408, "the request did not arrive in time") from None
    try:
        return kind.model_validate_json(bytes(content), strict=True)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(str(part) for part in fault["loc"]) for fault in error.errors()}))
        raise HTTPException(422, f"not as expected: {fields or 'the body'}") from None


def _json(content: object) -> JSONResponse:
    return JSONResponse(content, headers={"cache-control": "no-store"})


async def _as_json(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
