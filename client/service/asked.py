"""What the service is asked, as pydantic models: page, commands and OpenAPI share them.

Unknown fields are refused, texts and lists are bounded, and numbers must be finite.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_BATCH = 10_000
MAX_SLATE = 500
MAX_CANDIDATES = 100_000

Id = Annotated[str, Field(min_length=1, max_length=200)]
Tag = Annotated[str, Field(min_length=1, max_length=60)]
Words = Annotated[str, Field(max_length=1_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Asked(BaseModel):
    """Base of what is asked: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class EventIn(Asked):
    """One thing the person did. time: seconds UTC, now if left out. value: a rating or amount."""

    item: Id
    kind: Literal["impression", "click", "like", "purchase", "skip", "rating"] = "click"
    time: Finite | None = None
    value: Finite | None = None


class EventsIn(Asked):
    """Several events, oldest first; all are recorded or none."""

    events: Annotated[list[EventIn], Field(min_length=1, max_length=MAX_BATCH)]


class SlateIn(Asked):
    """Strengths of the stages that shape a slate, 0 is off; what is left out is as in the person's settings."""

    mmr: Weight | None = None
    dpp: Weight | None = None
    calibration: Weight | None = None
    freshness: Weight | None = None
    exploration: Weight | None = None
    tail_share: Share | None = None
    cap_per_tag: Annotated[int, Field(ge=0, le=MAX_SLATE)] | None = None
    cap_per_creator: Annotated[int, Field(ge=0, le=MAX_SLATE)] | None = None


class RecommendIn(Asked):
    """What to rank and how.

    query: words to search for; empty is the feed. steer: an instruction in words ("newer, less dark"). like: the item
    that "this" means in it, or that the slate should resemble. candidates: an app's own shelf, item ids; left out, the
    whole catalogue. seen: `hide` leaves out what was consumed or skipped, `fresh` also what was only shown, `show`
    nothing. deadline_ms: after so long the ranking goes on without the adapter's part. why: with a sentence for each.
    """

    k: Annotated[int, Field(ge=1, le=MAX_SLATE)] = 10
    query: Words = ""
    steer: Words = ""
    like: Id | None = None
    candidates: Annotated[list[Id], Field(max_length=MAX_CANDIDATES)] | None = None
    seen: Literal["show", "hide", "fresh"] = "hide"
    tags: Annotated[list[Tag], Field(max_length=50)] = []
    without_tags: Annotated[list[Tag], Field(max_length=50)] = []
    domains: Annotated[list[Tag], Field(max_length=50)] = []
    slate: SlateIn = SlateIn()
    deadline_ms: Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)] | None = None
    why: bool = False


class ExplainIn(Asked):
    """Why is this item where it is? query, steer, like: as they were in the request that showed it.

    without_event: number of a past event (`seq` of /v1/history); adds what the slate would be without it. k: its size.
    """

    item: Id
    query: Words = ""
    steer: Words = ""
    like: Id | None = None
    without_event: Annotated[int, Field(ge=0, le=2**62)] | None = None
    k: Annotated[int, Field(ge=1, le=100)] = 10


class SimilarIn(Asked):
    """Items whose text is nearest to this one's."""

    item: Id
    k: Annotated[int, Field(ge=1, le=MAX_SLATE)] = 10


class FeedbackIn(Asked):
    """What the person says about an item: `like` and `skip` become events, `not-interested` hides it until undone."""

    item: Id
    verdict: Literal["like", "skip", "not-interested", "undo"]


class InterestIn(Asked):
    """Mute a tag (0), boost it (up to 8), or take the edit back (1)."""

    tag: Tag
    factor: Annotated[float, Field(ge=0, le=8, allow_inf_nan=False)]


class SettingsIn(Asked):
    """What the person chooses; what is left out stays as it is. See the settings page for what each does."""

    participate: bool | None = None
    tail: Share | None = None
    diversity: Share | None = None
    calibration: Share | None = None
    freshness: Share | None = None
    exploration: Share | None = None
    per_tag_cap: Annotated[int, Field(ge=0, le=MAX_SLATE)] | None = None
    per_creator_cap: Annotated[int, Field(ge=0, le=MAX_SLATE)] | None = None
    retention_events: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    retention_days: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    personal: bool | None = None


class ForgetIn(Asked):
    """Forgetting cannot be undone, so it must be said in full."""

    confirm: Literal["forget everything"]
