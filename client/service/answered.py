"""What the service answers, as pydantic models."""

from __future__ import annotations

from pydantic import BaseModel


class RecordedOut(BaseModel):
    """Where events are: at `first` and the `count - 1` numbers after it. new: false when they were known already."""

    first: int
    count: int
    new: bool


class MoveOut(BaseModel):
    """A stage moved an item from one rank to another, in words under `said`."""

    stage: str
    before: int
    after: int
    figures: dict[str, float]
    said: str


class CardOut(BaseModel):
    """One item as people read it. year: null where it is not known."""

    item: str
    title: str
    tags: list[str]
    domain: str
    creator: str
    year: int | None


class PlacedOut(CardOut):
    """An item of a slate. parts add up to score. score_rank: its rank by score alone. why: null unless asked for."""

    rank: int
    score: float
    parts: dict[str, float]
    score_rank: int
    moves: list[MoveOut]
    why: str | None


class UnderstoodOut(BaseModel):
    """How words were read: `steering` in plain words, typos `corrected`, words `unknown`, parts `ignored` and why."""

    query: str
    feed: bool
    by_meaning: bool
    by_letters: bool
    corrected: dict[str, str]
    unknown: list[str]
    steering: str
    ignored: list[tuple[str, str]]


class SlateOut(BaseModel):
    """A slate, best first. engine: full, int8 or student. stage: `prior` where the deadline left no time for more."""

    slate: list[PlacedOut]
    understood: UnderstoodOut
    engine: str
    stage: str
    adapter: dict[str, str]
    events: int
    took_ms: float


class EvidenceOut(BaseModel):
    """One past event's share in a score. seq: its number in /v1/history."""

    seq: int
    item: str
    title: str
    share: float
    content: float
    prior: float


class RankOut(BaseModel):
    """An item and its rank in a slate."""

    item: str
    title: str
    rank: int


class CounterfactualOut(BaseModel):
    """A slate without one event: what would have appeared and vanished; `said` in one sentence."""

    seq: int
    item: str
    title: str
    appeared: list[RankOut]
    vanished: list[RankOut]
    said: str


class ExplanationOut(CardOut):
    """Why an item has its score. parts add up to score; above: less what competing items get on average.

    exact: for each part, whether its split over events is exact, apportioned (adds up by a rule) or none.
    """

    score: float
    rank: int
    parts: dict[str, float]
    above: dict[str, float]
    exact: dict[str, str]
    events: list[EvidenceOut]
    sentence: str
    counterfactual: CounterfactualOut | None


class SimilarOut(CardOut):
    """An item and its cosine with the one asked about."""

    similarity: float


class FeedbackOut(BaseModel):
    """What was said. event: the number of the event it became, null where it became none."""

    verdict: str
    event: int | None


class InterestOut(BaseModel):
    """A tag of the person: its part of the history, how many times the usual that is, and the person's own factor."""

    tag: str
    share: float
    weight: float
    factor: float


class InterestsOut(BaseModel):
    """Interests, strongest first, and the catalogue's tags with how many items have each, most first."""

    interests: list[InterestOut]
    catalogue: list[tuple[str, int]]


class HistoryOut(BaseModel):
    """One past event. learned: whether training may use it; the newest wanted one is held out to compare adapters."""

    seq: int
    item: str
    title: str
    kind: str
    time: float | None
    value: float | None
    learned: bool


class LayerOut(BaseModel):
    """Epsilon of one unit (event: a window of events; user: everything) at delta: spent so far, and the budget."""

    unit: str
    spent: float
    budget: float
    delta: float


class SentOut(BaseModel):
    """One thing that left the device. epsilon: by how much the ledger grew for it, by unit.

    digest: SHA-256 of exactly what was sent; refusal: the code sent instead.
    """

    time: float
    run: str
    round: int
    phase: str
    bytes: int
    digest: str
    refusal: str
    epsilon: dict[str, float]


class PrivacyOut(BaseModel):
    """What taking part has cost. rounds: of training alone, popularity and prior are asked for outside them.

    ledger: `ok`, or why it cannot be read; then the device does not train.
    """

    layers: list[LayerOut]
    ledger: str
    rounds: int
    bytes_sent: int
    sent: list[SentOut]
    participate: bool
    training: str
    kept_after_forgetting: str


class SettingsOut(BaseModel):
    """What the person chose."""

    participate: bool
    tail: float
    diversity: float
    calibration: float
    freshness: float
    exploration: float
    per_tag_cap: int
    per_creator_cap: int
    retention_events: int
    retention_days: int
    personal: bool


class ForgottenOut(BaseModel):
    """What is gone: rows by table before and after, whole files removed, words searched for in what is left."""

    before: dict[str, int]
    after: dict[str, int]
    files: list[str]
    words_searched: int
    kept: str


class ImportedOut(BaseModel):
    """What an import brought: `count` events or items."""

    what: str
    count: int


class StatusOut(BaseModel):
    """What the service is and holds."""

    profile: str
    items: int
    events: int
    engine: str
    adapter: dict[str, str]
    training: str
    version: str
    damaged: str | None


class ErrorOut(BaseModel):
    """What went wrong: what was found, what was expected, what to do."""

    error: str
