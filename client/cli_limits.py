"""What a device's owner allows, as options of commands; what is left out stays as it was (`client.service.owner`)."""

from __future__ import annotations

from typing import Annotated

import typer

Privacy = Annotated[
    str | None,
    typer.Option("--privacy", help="event, user or both: refuse rounds that protect less; none: accept all."),
]
Trust = Annotated[
    str | None, typer.Option("--trust", help="aggregate: rely on noise in the sum; local: only on this device's own.")
]
Epsilon = Annotated[float | None, typer.Option("--epsilon", min=0, help="This device's budget over its life.")]
Delta = Annotated[float | None, typer.Option("--delta", min=0, max=0.5, help="Delta at which epsilon is stated.")]
UserEpsilon = Annotated[
    float | None,
    typer.Option("--user-epsilon", min=0, help="With --privacy both: the budget at user level; 0: the same."),
]
Secure = Annotated[
    bool | None,
    typer.Option(
        "--secure-aggregation/--no-secure-aggregation", help="Refuse rounds in which the server could see a reply."
    ),
]
AnyTime = Annotated[bool, typer.Option("--any-time", help="Train on battery too, and while the machine is in use.")]
