"""The dashboard over HTTP on loopback: the page, its figures as JSON, and metrics for Prometheus.

::

    DIR/dashboard.token    what requests must carry; 0600

Whoever can read that file may look; nobody can change anything here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse, PlainTextResponse

from server.gauges import exposition
from server.glance import Glance, look
from server.page import page
from shared.errors import DeploymentError
from shared.loopback import HOST, Gate, Rules, read_token
from shared.version import version

TOKEN = "dashboard.token"
RULES = Rules(
    cookie="homerank-server",
    open=frozenset({"/healthz", "/metrics"}),
    limit=lambda path: 0,
    policy=(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    locked="This page is for the server's operator. Open the link that `homerank-server dashboard` printed.\n",
)


def make_app(folder: Path, *, token: str, run: Path | None = None) -> FastAPI:
    """The dashboard of a deployment folder. token: what requests must carry. run: its folder, else the newest."""
    app = FastAPI(title="homerank server", version=version(), docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, token=token, rules=RULES)

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        return HTMLResponse(page(look(folder, run=run)))

    @app.get("/v1/overview")
    def overview() -> dict[str, Any]:
        return facts_of(look(folder, run=run))

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(exposition(look(folder, run=run)), media_type="text/plain; version=0.0.4")

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


def serve(
    folder: Path, listener: socket.socket, *, run: Path | None = None, ready: Callable[[str], None] = lambda link: None
) -> None:
    """Serve until SIGINT or SIGTERM. listener: see `shared.loopback.bound`. ready: told the link that opens the page.

    DeploymentError for a folder that is not there.
    """
    import uvicorn

    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise DeploymentError(f"{folder}: found no such folder; expected a deployment folder, or that of a run")
    token = read_token(folder / TOKEN)
    app = make_app(folder, token=token, run=run)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, server_header=False, date_header=False)
    )
    ready(f"http://{HOST}:{listener.getsockname()[1]}/?token={token}")
    server.run(sockets=[listener])


def facts_of(found: Glance) -> dict[str, Any]:
    """An overview as JSON values."""
    run = found.run
    return {
        "now": found.now,
        "run": None
        if run is None
        else {
            "folder": str(run.folder),
            "name": run.name,
            "round": len(run.training),
            "rounds": run.config.federation.rounds,
            "finished": run.outcome is not None,
            "shipped": run.outcome["shipped"] if run.outcome else None,
            "accepted": run.accepted,
            "refused": dict(run.refused),
            "epsilon": {one.unit: one.epsilon for one in run.spent},
            "problem": run.problem,
            "rows": [dict(row) for row in run.rows],
        },
        "devices": vars(found.devices) | {"members": found.devices.members},
        "releases": [{"version": one.version, "latest": one.latest, "problem": one.problem} for one in found.releases],
        "certificate_ends": found.certificate_ends,
        "disk_free_bytes": found.free,
    }
