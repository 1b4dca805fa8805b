"""The web page's files, as they lie in the package."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, HTTPException
from starlette.responses import Response

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

router = APIRouter(include_in_schema=False)


@router.get("/")
def index() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/page/{name}")
def part(name: str) -> Response:
    """A file of the page."""
    return _file(name)


def _file(name: str) -> Response:
    known = {file.name: file for file in (files("client.service") / "page").iterdir()}
    kind = _KINDS.get(name.rpartition(".")[2])
    if name not in known or kind is None:
        raise HTTPException(404, "found no such file of the page")
    return Response(known[name].read_bytes(), media_type=f"{kind}; charset=utf-8")
