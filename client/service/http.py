"""The HTTP API of one person's device. `make_app` builds it; `client.service.running` serves it on loopback.

Every handler is a few lines: what it does is in the modules it calls. Errors that a person can act on are 400, and
only a fault of the service itself is 500, whose text says nothing of anybody.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from client.events import NewEvent
from client.interests import interests
from client.journal import Verdict
from client.portability import export
from client.service import answered as a
from client.service import asked as q
from client.service.access import Gate
from client.service.accounts import KEPT, account
from client.service.cards import card, placed_card, slate_answer
from client.service.feed import Feed, item_index, known_edits
from client.service.gauges import Gauges
from client.service.imports import take_in
from client.service.pages import router as pages
from client.service.person import Person
from client.service.reasons import explained, history_page, sentence_of
from client.service.shop import NEWEST
from client.service.training import NoTraining, Training, sent_by
from client.slate import best_items
from shared.errors import HomerankError, RunError
from shared.version import version

log = logging.getLogger("homerank.client")

_ERRORS: dict[int | str, dict[str, object]] = {code: {"model": a.ErrorOut} for code in (400, 401, 409, 413, 422, 503)}


def make_app(person: Person, *, token: str, training: Training | None = None) -> FastAPI:
    """The service of one person. token: what requests must carry. training: the door for rounds, none without one."""
    app = FastAPI(
        title="homerank",
        version=version(),
        description="One person's private recommender. It listens on this machine only.",
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    feed, gauges, door = Feed(person), Gauges(), training or NoTraining()
    app.add_middleware(Gate, token=token)
    app.include_router(pages)
    _add_errors(app, gauges)
    _add_ranking(app, feed, gauges)
    _add_person(app, person, door)
    _add_data(app, person, door)

    @app.get("/healthz", tags=["service"])
    def healthz() -> dict[str, str]:
        """Whether the service answers. Needs no token."""
        return {"status": "ok"}

    @app.get("/metrics", tags=["service"], response_class=PlainTextResponse)
    def metrics() -> PlainTextResponse:
        """Figures for Prometheus; nothing of what the person does is in them. Needs no token."""
        return PlainTextResponse(gauges.text(person, training=door.state()), media_type="text/plain; version=0.0.4")

    @app.get("/v1/status", tags=["service"])
    def status() -> a.StatusOut:
        """What the service is and holds."""
        shop = None if person.empty else person.shop
        damaged = shop.journal.quarantined if shop else None
        return a.StatusOut(
            profile=person.profile.name,
            items=len(shop.catalogue) if shop else 0,
            events=shop.events if shop else 0,
            engine=shop.engine.kind if shop else "",
            adapter={name: str(value) for name, value in shop.engine.adapter.items()} if shop else {},
            training=door.state(),
            version=version(),
            damaged=str(damaged) if damaged else (shop.ranking.problem or None if shop else None),
        )

    return app


def _add_errors(app: FastAPI, gauges: Gauges) -> None:
    @app.exception_handler(HomerankError)
    def known(request: Request, error: HomerankError) -> JSONResponse:
        code = 503 if isinstance(error, RunError) else 400
        return JSONResponse({"error": str(error)}, code)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return JSONResponse({"error": f"{place}: {first['msg']}"}, 422)

    @app.exception_handler(Exception)
    def unknown(request: Request, error: Exception) -> JSONResponse:
        gauges.failed()
        log.error("a request failed: %s", type(error).__name__)
        return JSONResponse({"error": "the service failed; see `homerank-client doctor`"}, 500)


def _add_ranking(app: FastAPI, feed: Feed, gauges: Gauges) -> None:
    person = feed.person

    @app.post("/v1/recommend", tags=["ranking"])
    def recommend(asked: q.RecommendIn) -> a.SlateOut:
        """The best items now, with every event known that was recorded before."""
        _ = person.shop.ranking  # opened before the clock starts
        started = time.perf_counter()
        view = feed.view(asked)
        placed = feed.slate(view, asked)
        cards = [placed_card(view, one, why=sentence_of(view, one.item) if asked.why else None) for one in placed]
        took = time.perf_counter() - started
        gauges.ranked(took)
        return slate_answer(view, cards, took_ms=1e3 * took)

    @app.post("/v1/search", tags=["ranking"])
    def search(asked: q.RecommendIn) -> a.SlateOut:
        """The same as recommend, under the name one looks for: `query` in words, fused with the person's interests."""
        return recommend(asked)

    @app.post("/v1/explain", tags=["ranking"])
    def explain(asked: q.ExplainIn) -> a.ExplanationOut:
        """Why an item has its score, from which past events, and what there would be without one of them."""
        return explained(feed, asked)

    @app.post("/v1/similar", tags=["ranking"])
    def similar(asked: q.SimilarIn) -> list[a.SimilarOut]:
        """Items whose text is nearest to one item's; nothing about the person is in the answer."""
        shop = person.shop
        item = item_index(shop, asked.item)
        likeness = shop.engine.plain @ shop.engine.plain[item]
        others = np.ones(len(likeness), dtype=np.bool_)
        others[item] = False
        return [
            a.SimilarOut(**card(shop, near).model_dump(), similarity=float(likeness[near]))
            for near in best_items(likeness, others, asked.k).tolist()
        ]


def _add_person(app: FastAPI, person: Person, door: Training) -> None:
    @app.get("/v1/interests", tags=["person"])
    def read_interests() -> a.InterestsOut:
        """Interests as tags with weights, and the catalogue's tags to choose from."""
        shop = person.shop
        tags = shop.tags
        counts = np.bincount(tags.of, minlength=len(tags.names))
        found = interests(shop.journal.newest(NEWEST), tags, edits=known_edits(shop))
        order = np.lexsort((np.arange(len(counts)), -counts)).tolist()
        return a.InterestsOut(
            interests=[
                a.InterestOut(tag=one.tag, share=one.share, weight=one.weight, factor=one.edit) for one in found
            ],
            catalogue=[(tags.names[column], int(counts[column])) for column in order],
        )

    @app.put("/v1/interests", tags=["person"])
    def edit_interest(asked: q.InterestIn) -> a.InterestsOut:
        """Mute or boost a tag; the next ranking follows."""
        shop = person.shop
        column = shop.tags.index(asked.tag)
        shop.journal.set_interest(shop.tags.names[column], asked.factor)
        return read_interests()

    @app.post("/v1/feedback", tags=["person"])
    def feedback(asked: q.FeedbackIn) -> a.FeedbackOut:
        """Say what an item is worth; likes and skips are events."""
        shop = person.shop
        item_index(shop, asked.item)
        if asked.verdict in ("like", "skip"):
            done = person.record([NewEvent(asked.item, asked.verdict)])
            return a.FeedbackOut(verdict=asked.verdict, event=done.first)
        shop.journal.judge(asked.item, Verdict.NOT_INTERESTED, withdraw=asked.verdict == "undo")
        return a.FeedbackOut(verdict=asked.verdict, event=None)

    @app.get("/v1/not-interested", tags=["person"])
    def refused() -> list[a.CardOut]:
        """Items that the person does not want to see, newest first."""
        shop = person.shop
        known = [item for item, _, _ in shop.journal.verdicts() if item in shop.catalogue]
        return [card(shop, shop.catalogue.index(item)) for item in reversed(known)]

    @app.get("/v1/settings", tags=["person"])
    def read_settings() -> a.SettingsOut:
        """What the person chose."""
        return a.SettingsOut(**vars(person.preferences))

    @app.patch("/v1/settings", tags=["person"])
    def change_settings(asked: q.SettingsIn) -> a.SettingsOut:
        """Change some of it."""
        changed = person.choose(asked.model_dump(exclude_none=True))
        (door.resume if changed.participate else door.pause)()
        return a.SettingsOut(**vars(changed))

    @app.get("/v1/privacy", tags=["person"])
    def privacy(limit: Annotated[int, Query(ge=0, le=1000)] = 50) -> a.PrivacyOut:
        """What taking part has cost so far, and exactly what has left this device."""
        spent, sent = account(person.profile, person.limits), sent_by(person.profile, limit)
        return a.PrivacyOut(
            layers=spent.layers,
            ledger=spent.problem or "ok",
            rounds=sent.rounds,
            bytes_sent=sent.bytes,
            sent=sent.rows,
            participate=person.preferences.participate,
            training=door.state(),
            kept_after_forgetting=KEPT,
        )


def _add_data(app: FastAPI, person: Person, door: Training) -> None:
    @app.post("/v1/events", tags=["data"])
    def record(
        asked: q.EventIn, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
    ) -> a.RecordedOut:
        """Record one event. With an Idempotency-Key, the same event sent again is recorded once."""
        return record_batch(q.EventsIn(events=[asked]), idempotency_key)

    @app.post("/v1/events/batch", tags=["data"])
    def record_batch(
        asked: q.EventsIn, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
    ) -> a.RecordedOut:
        """Record several events, oldest first: all of them or none."""
        events = [NewEvent(one.item, one.kind, one.time, one.value) for one in asked.events]
        done = person.record(events, key=idempotency_key)
        return a.RecordedOut(first=done.first, count=done.count, new=done.new)

    @app.get("/v1/history", tags=["data"])
    def history(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50, before: Annotated[int | None, Query(ge=0, le=2**62)] = None
    ) -> list[a.HistoryOut]:
        """Past events, newest first; `before` a number for the next page."""
        return history_page(person.shop, limit=limit, before=before)

    @app.post("/v1/export", tags=["data"], response_class=Response)
    def export_all() -> Response:
        """Everything this device keeps about the person, as a zip in open formats."""
        shop = person.shop
        person.profile.cache.mkdir(exist_ok=True, mode=0o700)
        with TemporaryDirectory(prefix="export-", dir=person.profile.cache) as scratch:
            made = export(person.profile, shop.journal, Path(scratch) / "homerank-export.zip")
            body = made.path.read_bytes()
        name = {"content-disposition": 'attachment; filename="homerank-export.zip"'}
        return Response(body, media_type="application/zip", headers=name)

    @app.post("/v1/forget", tags=["data"])
    def forget(asked: q.ForgetIn) -> a.ForgottenOut:
        """Wipe everything about the person but what the ledger spent, and prove it. It cannot be undone."""
        with door.held():
            found = person.forget()
        return a.ForgottenOut(
            before=found.before, after=found.after, files=list(found.files), words_searched=found.searched, kept=KEPT
        )

    @app.post("/v1/import", tags=["data"], openapi_extra={"requestBody": _ZIP})
    async def import_zip(
        request: Request,
        what: Literal["history", "catalogue", "adapter"],
        user: Annotated[str | None, Query(max_length=200)] = None,
    ) -> a.ImportedOut:
        """Take in a zipped data folder (docs/data.md), a zipped items file, or a zipped adapter folder."""
        body = await request.body()
        return await run_in_threadpool(take_in, person, body, what=what, user=user)


_ZIP = {"required": True, "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
