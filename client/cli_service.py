"""Commands of a person's own device: serve it, and what the service can do, from a terminal.

A command talks to the running service of the profile; when none runs, it does the same work in its own process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli_limits import AnyTime, Delta, Epsilon, Privacy, Secure, Trust, UserEpsilon
from shared.terminal import emit_json

if TYPE_CHECKING:
    from client.service.caller import Caller
    from client.service.shop import OpenEngine

Home = Annotated[Path, typer.Option(help="The device's folder.", metavar="FOLDER", envvar="HOMERANK_HOME")]
Who = Annotated[str, typer.Option("--profile", help="Whose profile; each person at this machine has one.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Kind = Annotated[str, typer.Option("--engine", help="full, or int8 or student with --model, which need no torch.")]
Model = Annotated[Path | None, typer.Option("--model", help="Folder that export-model wrote.", metavar="FOLDER")]
Item = Annotated[str, typer.Argument(help="Id of an item.", metavar="ITEM")]
Count = Annotated[int, typer.Option("-k", min=1, max=500, help="How many items.")]
HOME = Path("~/.homerank")


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (serve, page, record, recommend, search, why, similar, interest, settings, privacy):
        app.command()(command)


def serve(
    home: Home = HOME,
    profile: Who = "default",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    engine: Kind = "full",
    model: Model = None,
    privacy: Privacy = None,
    trust: Trust = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    user_epsilon: UserEpsilon = None,
    secure: Secure = None,
    any_time: AnyTime = False,
    training: Annotated[
        bool, typer.Option("--training/--no-training", help="Open the socket that training rounds come through.")
    ] = True,
    socket: Annotated[
        Path | None, typer.Option(help="Where that socket is; FOLDER/run/NAME.sock unless given.", metavar="PATH")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve one person's recommender and its page on this machine until Ctrl-C.

    What the owner allows (--privacy to --secure-aggregation) is kept in the profile and holds until it is said anew.
    """
    from client.profile import Profile
    from client.service.owner import limits_of
    from client.service.running import Address, serve_person

    opened = Profile.open(home, profile)
    limits = limits_of(
        opened,
        mode=privacy,
        trust=trust,
        epsilon=epsilon,
        delta=delta,
        user_epsilon=user_epsilon,
        secure=secure,
    )

    def ready(address: Address) -> None:
        if as_json:
            emit_json({"url": address.url, "page": address.page, "profile": opened.name})
        # The link is a key to the page: it is for a terminal, and not for a log that others may read.
        link = address.page if sys.stderr.isatty() else f"{address.url} (homerank-client page prints the link to it)"
        sys.stderr.write(f"the page: {link}\nleave with Ctrl-C\n")

    serve_person(
        opened,
        engine=opener_of(engine, model),
        limits=limits,
        port=port,
        training=training,
        path=socket,
        any_time=any_time,
        ready=ready,
    )


def page(home: Home = HOME, profile: Who = "default", as_json: AsJson = False) -> None:
    """Print the link that opens the page of the running service."""
    from client.profile import Profile
    from client.service.running import find_service
    from shared.errors import DeploymentError

    address = find_service(Profile.open(home, profile))
    if address is None:
        raise DeploymentError(f"found no running service of profile {profile!r}; start it: homerank-client serve")
    if as_json:
        emit_json({"page": address.page})
    else:
        sys.stdout.write(address.page + "\n")


def record(
    item: Item,
    kind: Annotated[str, typer.Option(help="impression, click, like, purchase, skip or rating.")] = "click",
    value: Annotated[float | None, typer.Option(help="A rating or an amount.")] = None,
    time: Annotated[float | None, typer.Option(help="Seconds UTC; now if left out.")] = None,
    key: Annotated[str | None, typer.Option(help="A name for this request, so that it counts once.")] = None,
    home: Home = HOME,
    profile: Who = "default",
    as_json: AsJson = False,
) -> None:
    """Record that something happened with ITEM; the next ranking knows it."""
    event = {"item": item, "kind": kind, "value": value, "time": time}
    with reaching(home, profile) as service:
        done = service.call("POST", "/v1/events", json=event, key=key)
    if as_json:
        emit_json(done)
    else:
        sys.stdout.write(f"event {done['first']}{'' if done['new'] else ' was recorded before'}\n")


def recommend(
    k: Count = 10,
    tag: Annotated[list[str] | None, typer.Option(help="Only items with one of these tags; may be repeated.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="No items with these tags; may be repeated.")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="Only these domains; may be repeated.")] = None,
    steer: Annotated[str, typer.Option(help='In words: "more like this but newer", "less dark".')] = "",
    like: Annotated[str | None, typer.Option(help="The item that `this` is, by id.")] = None,
    seen: Annotated[str, typer.Option(help="hide, show, or fresh: hide also what was only shown.")] = "hide",
    home: Home = HOME,
    profile: Who = "default",
    engine: Kind = "full",
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Rank the catalogue for this person now."""
    asked = {"k": k, "tags": tag or [], "without_tags": without or [], "domains": domain or [], "seen": seen}
    asked |= {"steer": steer, "like": like, "why": True}
    with reaching(home, profile, engine, model) as service:
        show_slate(service.call("POST", "/v1/recommend", json=asked), as_json=as_json)


def search(
    query: Annotated[str, typer.Argument(help="Words to search for.", metavar="QUERY")],
    k: Count = 10,
    home: Home = HOME,
    profile: Who = "default",
    engine: Kind = "full",
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Search for QUERY in words, fused with what this person turns to."""
    with reaching(home, profile, engine, model) as service:
        show_slate(service.call("POST", "/v1/search", json={"query": query, "k": k, "why": True}), as_json=as_json)


def why(
    item: Item,
    without_event: Annotated[
        int | None, typer.Option(help="Number of a past event: also say what there would be without it.")
    ] = None,
    home: Home = HOME,
    profile: Who = "default",
    engine: Kind = "full",
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Explain the score of ITEM: its parts, the past events behind it, one plain sentence."""
    with reaching(home, profile, engine, model) as service:
        answer = service.call("POST", "/v1/explain", json={"item": item, "without_event": without_event})
    if as_json:
        emit_json(answer)
        return
    from client.tables import explanation_table, terminal

    terminal().print(explanation_table(answer))


def similar(
    item: Item,
    k: Count = 10,
    home: Home = HOME,
    profile: Who = "default",
    engine: Kind = "full",
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Items whose text is nearest to that of ITEM."""
    with reaching(home, profile, engine, model) as service:
        answer = service.call("POST", "/v1/similar", json={"item": item, "k": k})
    if as_json:
        emit_json({"similar": answer})
        return
    for row in answer:
        sys.stdout.write(f"{row['similarity']:.2f}  {row['item']}  {row['title']}\n")


def interest(
    tag: Annotated[
        str | None, typer.Argument(help="A tag; left out, all interests are shown.", metavar="[TAG]")
    ] = None,
    factor: Annotated[float | None, typer.Option(min=0, max=8, help="0 mutes, above 1 boosts, 1 undoes.")] = None,
    home: Home = HOME,
    profile: Who = "default",
    as_json: AsJson = False,
) -> None:
    """Show interests as tags with weights, or mute or boost TAG."""
    with reaching(home, profile) as service:
        if tag is None:
            answer = service.call("GET", "/v1/interests")
        else:
            given = 1.0 if factor is None else factor
            answer = service.call("PUT", "/v1/interests", json={"tag": tag, "factor": given})
    if as_json:
        emit_json(answer)
        return
    for row in answer["interests"]:
        edit = "" if row["factor"] == 1 else "  muted" if not row["factor"] else f"  boosted {row['factor']:g}x"
        sys.stdout.write(f"{row['weight']:6.1f}x  {row['tag']}{edit}\n")


def settings(
    change: Annotated[list[str] | None, typer.Argument(help="NAME=VALUE; none shows all.", metavar="[CHANGE]")] = None,
    home: Home = HOME,
    profile: Who = "default",
    as_json: AsJson = False,
) -> None:
    """Show this person's settings, or CHANGE some, such as participate=false or diversity=0.3."""
    from client.service.errands import parsed_changes

    changes = parsed_changes(change or [])
    with reaching(home, profile) as service:
        answer = service.call("PATCH", "/v1/settings", json=changes) if changes else service.call("GET", "/v1/settings")
    if as_json:
        emit_json(answer)
    else:
        for name, value in answer.items():
            sys.stdout.write(f"{name} = {str(value).lower() if isinstance(value, bool) else value}\n")


def privacy(home: Home = HOME, profile: Who = "default", as_json: AsJson = False) -> None:
    """Show what taking part has cost of the budget, and exactly what has left this device."""
    with reaching(home, profile) as service:
        answer = service.call("GET", "/v1/privacy")
    if as_json:
        emit_json(answer)
        return
    from client.tables import privacy_table, terminal

    terminal().print(privacy_table(answer))


def opener_of(engine: str, model: Path | None) -> OpenEngine:
    """How engines are made. ConfigError for an unknown kind, or one that wants a model folder and has none."""
    from client.service.engines import KINDS, opener
    from shared.errors import ConfigError

    if engine not in KINDS:
        raise ConfigError(f"--engine: found {engine[:60]!r}; expected one of {', '.join(KINDS)}")
    return opener(engine, model=model)


@contextmanager
def reaching(home: Path, profile: str, engine: str = "full", model: Path | None = None) -> Iterator[Caller]:
    """The service of a profile, or the same in this process."""
    from client.profile import Profile
    from client.service.caller import reached

    with reached(Profile.open(home, profile), engine=opener_of(engine, model)) as service:
        yield service


def show_slate(answer: dict[str, Any], *, as_json: bool) -> None:
    """A slate on stdout."""
    if as_json:
        emit_json(answer)
        return
    from client.tables import slate_table, terminal

    terminal().print(slate_table(answer))
