"""The dashboard of a server as one page: no scripts, nothing loaded from anywhere, and no device named.

Each card has one function here, which says so when its part is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from itertools import pairwise
from string import Template

from server.glance import Glance, Row, RunView
from server.publishing import Published
from server.spending import Spent
from shared import plots
from shared.markup import banner, captioned, duration, legend, note, pairs, stylesheet, text
from shared.privacy.ledger import TOLERANCE
from shared.version import version

PROTECTED = {"event": "windows protected", "user": "persons protected", "both": "windows and persons protected"}
#: Seconds between two looks at a page, while a run goes on and otherwise.
BUSY, CALM = 10, 60
#: Seconds without a step after which a run is said to stand, at the least.
QUIET = 900.0
DAY = 86_400.0
REASONS = {
    "bad-message": "the question or the reply broke the contract; nothing of it was used",
    "bad-shape": "a reply of another shape than was asked for",
    "not-finite": "a reply that held NaN or infinity",
    "schema": "device and server speak different versions; update the older one",
    "trust": "the device's owner allows less than the round asked for",
    "catalogue": "the device has other items",
    "backbone": "the device has another backbone",
    "budget": "the device's privacy budget is spent; it goes on ranking",
    "busy": "the device was answering another question, or too many",
    "paused": "taking part is paused, or the machine is in use or on battery",
    "failed": "something broke on the device; its own log says what",
    "duplicate": "a second reply to one question; the first one counted",
    "no-answer": "the device's program ended without a reply",
    "late": "no reply in time",
    "no-sum": "secure aggregation found no sum; too many devices were missing",
}
FIRST_STEPS = """<ol class="steps"><li>Start the server: <code>homerank-server start DIR</code></li>
<li>Let devices in, and wait until they are connected.</li>
<li>Run rounds with them: <code>homerank-server run DIR --catalogue FILE</code></li>
<li>Release what they made: <code>homerank-server publish DIR --run DIR/run</code></li></ol>"""
SHIPPED = {
    "adapter": "the trained adapter was shipped",
    "prior": "the prior was shipped",
    "start": "the start was kept",
}


def page(found: Glance) -> str:
    """The whole page."""
    run = found.run
    headline, pills = _headline(found)
    cards = [_card("start", "What to do next", FIRST_STEPS)] if run is None else _of_run(found, run)
    cards += [_card("adapters", "Released adapters", _releases(found)), _card("server", "Server", _server(found))]
    template = Template((files("server") / "dashboard.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=text(f"homerank server: {found.folder.name}"),
        refresh=BUSY if run and run.outcome is None else CALM,
        style=stylesheet(),
        place=text(found.folder.name),
        headline=text(headline),
        pills=" ".join(f'<span class="pill {kind}">{text(words)}</span>' for kind, words in pills),
        tiles=_tiles(found),
        cards="".join(cards),
        when=_moment(found.now),
    )


def _of_run(found: Glance, run: RunView) -> list[str]:
    return [
        _card("rounds", "Rounds", _rounds(run)),
        _card("refusals", "Replies that were not used, and why", _refusals(run)),
        _card("updates", "Length of updates", _updates(run)),
        _card("privacy", "Privacy spent", _privacy(found, run)),
    ]


def _card(name: str, heading: str, body: str) -> str:
    return f'<section class="card" id="{name}"><h2>{heading}</h2>{body}</section>'


def _headline(found: Glance) -> tuple[str, list[tuple[str, str]]]:
    """What goes on in a sentence, and the marks below it."""
    run = found.run
    if run is None:
        return "No run yet", [("open", "waiting for a first run")]
    if run.problem:
        return "The run cannot be read", [("bad", "look at the ledger")]
    done, planned = len(run.training), run.config.federation.rounds
    mode = run.config.privacy.mode
    protection = ("bad", "no privacy") if mode == "none" else ("good", PROTECTED[mode])
    if run.outcome is not None:
        shipped = SHIPPED.get(str(run.outcome["shipped"]), "it is finished")
        return f"Finished after {done} of {planned} rounds: {shipped}", [("good", "finished"), protection]
    idle = found.now - (run.changed or found.now)
    if idle > max(QUIET, 2 * run.config.federation.reply_timeout):
        return f"No step for {duration(idle)}, after round {done} of {planned}", [("bad", "stands still"), protection]
    if not run.rows:
        return "The run waits for its first devices", [("open", "starting"), protection]
    return f"Round {done} of {planned} is done", [("open", "in progress"), protection]


def _tiles(found: Glance) -> str:
    run, devices = found.run, found.devices
    tiles: dict[str, str] = {}
    if run is not None:
        tiles["rounds"] = f"{len(run.training):,} of {run.config.federation.rounds:,}"
    if devices.online is not None:
        of = f" of {devices.members:,}" if devices.members is not None else ""
        tiles["devices online"] = f"{devices.online:,}{of}"
    if run is not None:
        tiles["replies accepted"] = f"{run.accepted:,}"
        tiles["replies not used"] = f"{run.refused.total():,}"
        tiles |= {f"ε per {_unit(one.unit)}": f"{one.epsilon:.2f} of {one.budget:g}" for one in run.spent}
    tiles["adapter"] = f"version {found.latest.version}" if found.latest else "none yet"
    return "".join(
        f'<div class="tile"><span>{text(name)}</span><b>{text(value)}</b></div>' for name, value in tiles.items()
    )


def _rounds(run: RunView) -> str:
    rounds = run.training
    if not rounds:
        return note("No training round yet.")
    accepted = [int(row.get("accepted") or 0) for row in rounds]
    late = [int((row.get("refused") or {}).get("late", 0)) for row in rounds]
    answered = [n + sum((row.get("refused") or {}).values()) for n, row in zip(accepted, rounds, strict=True)]
    asked = [max(int(row.get("asked") or 0), n) for n, row in zip(answered, rounds, strict=True)]
    answered = [n - missing for n, missing in zip(answered, late, strict=True)]
    layers = {"planned": asked, "refused": answered, "accepted": accepted}
    marks = {
        f"accepted {sum(accepted):,}": "--accent",
        f"refused {sum(answered) - sum(accepted):,}": "--bad",
        f"no reply in time {sum(asked) - sum(answered):,}": "--faint",
    }
    charts = captioned(
        "Cohort by round: devices asked, and what became of it",
        plots.step_chart(_numbers(rounds), layers) + legend(marks),
    )
    charts += _line("Seconds by round", rounds, "seconds", floor=0.0)
    unreleased = [f"{row['round']:g}" for row in rounds if not row.get("released", True)]
    below = f"Below the quorum, so nothing was released: round {', '.join(unreleased[-12:])}." if unreleased else ""
    return f'<div class="two">{charts}</div>{note(below) if below else ""}'


def _refusals(run: RunView) -> str:
    codes = run.refused
    if not codes:
        return note("Every reply was taken." if run.rows else "Nobody was asked yet.")
    items = "".join(
        _entry(f"{count:,}", text(code), REASONS.get(code, "see docs/privacy.md"))
        for code, count in codes.most_common()
    )
    return f'<ul class="rows">{items}</ul>'


def _updates(run: RunView) -> str:
    chart = _line("Length of the combined update (L2) by round", run.training, "update_norm")
    if not chart:
        return note("No update yet, or only one: two make a line.")
    clips = _line("Clip of whole updates by round", run.training, "clip")
    about = (
        "One line for the sum of a cohort after noise, divided by the planned cohort; single updates are never kept."
    )
    return note(about) + f'<div class="two">{chart}{clips if _moves(run, "clip") else ""}</div>'


def _privacy(found: Glance, run: RunView) -> str:
    if run.problem:
        return banner("The ledger cannot be read.", run.problem)
    if run.config.privacy.mode == "none":
        return banner("No privacy: these updates are not protected.", "Use such a run to measure, not to serve people.")
    if not run.spent:
        return note("Nothing was charged yet.")
    words = "At worst for one unit, from the server's ledger, which is charged before a sum is used."
    if found.runs_known > 1:
        words += f" The ledger knows {found.runs_known:,} runs on these people; this is what the shown one spent."
    units = "".join(f"<div>{_level(one)}{_spending(found.journal, run, one)}</div>" for one in run.spent)
    return f'{note(words)}<div class="two">{units}</div>'


def _level(one: Spent) -> str:
    """How much of a budget is spent, as a bar."""
    full = " class=full" * (one.epsilon > one.budget * (1 + TOLERANCE))
    words = f"<span>per {_unit(one.unit)}, at δ = {one.delta:g}</span><b>ε {one.epsilon:.3f} of {one.budget:g}</b>"
    bar = f'<i{full} style="width:{min(100.0, 100 * one.epsilon / one.budget):.1f}%"></i>'
    return f'<div class="level"><p>{words}</p><div class="track">{bar}</div></div>'


def _spending(journal: Sequence[Row], run: RunView, one: Spent) -> str:
    """How epsilon rose over the rounds; a round that was done again after a crash counts once."""
    mine = [row for row in journal if row.get("event") == "exchange" and row.get("run") == run.name]
    by_round = {row["round"]: row["epsilon"][one.unit] for row in mine if one.unit in (row.get("epsilon") or {})}
    rows = [{"round": number, "epsilon": value} for number, value in by_round.items()]
    return _line(
        f"ε per {_unit(one.unit)} by round; dashed: the budget", rows, "epsilon", baseline=one.budget, floor=0.0
    )


def _releases(found: Glance) -> str:
    if found.releases_problem:
        return banner("The releases cannot be read.", found.releases_problem)
    if not found.releases:
        return note("None yet: homerank-server publish DIR --run RUN.")
    shown = list(reversed(found.releases))[:12]
    more = note(f"and {len(found.releases) - len(shown):,} before them") if len(found.releases) > len(shown) else ""
    return f'<ul class="rows releases">{"".join(map(_release, shown))}</ul>{more}'


def _release(one: Published) -> str:
    if one.release is None:
        return _entry(str(one.version), '<span class="pill bad">does not verify</span>', one.problem)
    layers = one.privacy.get("layers", {})
    spent = ", ".join(f"ε {layer['epsilon']:.2f} per {_unit(unit)}" for unit, layer in layers.items()) or "no privacy"
    marks = ' <span class="pill good">latest</span>' * one.latest
    marks += ' <span class="pill open">simulation</span>' * (one.release.origin == "simulation")
    size = f"{one.release.size / 1e6:,.2f} MB"
    facts = f"{_moment(one.release.created)} UTC · {spent} · {size} · round {one.release.round}"
    return _entry(str(one.version), text(one.release.name) + marks, facts)


def _entry(lead: str, name: str, words: str) -> str:
    """A row of a list. name: HTML; the rest is text."""
    return f'<li><b>{text(lead)}</b><span>{name}</span><p class="soft">{text(words)}</p></li>'


def _server(found: Glance) -> str:
    devices, facts = found.devices, {}
    if devices.members is not None:
        facts["devices that may take part"] = f"{devices.members:,}"
    if devices.revoked is not None:
        facts["devices revoked"] = f"{devices.revoked:,}"
    if found.certificate_ends is not None:
        days = (found.certificate_ends - found.now) / DAY
        facts["certificate ends"] = (
            f"{_moment(found.certificate_ends)} UTC, in {days:,.0f} days" if days > 0 else "it has ended: renew it"
        )
    facts["free on the disk"] = f"{found.free / 1e9:,.1f} GB"
    if found.run is not None:
        facts["run folder"] = str(found.run.folder)
        if found.run.changed is not None:
            facts["last step"] = f"{_moment(found.run.changed)} UTC"
    facts |= {"deployment folder": str(found.folder), "version": version()}
    return f'<div class="facts">{pairs(facts)}</div>'


def _line(
    caption: str, rows: Sequence[Row], key: str, *, baseline: float | None = None, floor: float | None = None
) -> str:
    """A line over rounds; nothing for fewer than two points."""
    points = plots.series(rows, key)
    return captioned(caption, plots.line_chart(points, baseline=baseline, floor=floor)) if len(points) > 1 else ""


def _moves(run: RunView, key: str) -> bool:
    """Whether a value changed between two rounds."""
    points = plots.series(run.training, key)
    return any(first[1] != second[1] for first, second in pairwise(points))


def _numbers(rounds: Sequence[Row]) -> list[float]:
    return [float(row.get("round", index)) for index, row in enumerate(rounds, start=1)]


def _unit(unit: str) -> str:
    return {"event": "window", "user": "person"}.get(unit, unit)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
