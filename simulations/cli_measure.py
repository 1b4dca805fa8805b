"""Commands that measure the system itself: what its noise really hides, and what hostile devices achieve."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from shared.terminal import emit_json

benchmark_app = typer.Typer(help="Measure the system on one machine.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Exactly one JSON object on stdout; everything else on stderr.")]
Seed = Annotated[int | None, typer.Option(help="Fixed coins and noise; drawn from the operating system unless given.")]


def audit(
    epsilon: Annotated[float, typer.Option(help="The claim to test: epsilon of one unit.")] = 2.0,
    delta: Annotated[float, typer.Option(help="Delta of the claim.")] = 1e-5,
    participations: Annotated[int, typer.Option(min=1, help="Rounds one device takes part in.")] = 1,
    groups: Annotated[int, typer.Option(min=2, help="Groups of canaries, each with rounds of its own.")] = 1024,
    canaries: Annotated[int, typer.Option(min=4, help="Canary devices per group.")] = 16,
    trials: Annotated[int, typer.Option(min=0, help="Membership trials on the event layer; 0 skips them.")] = 300,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Attack the real aggregator with canary devices, and the event layer by membership inference.

    Prints lower bounds on epsilon that hold with 95 % confidence, and a point estimate. Ends with exit code 1 when a
    lower bound exceeds the claim. A passed audit is no proof: it means that these attacks refute nothing.
    """
    import torch

    from simulations.audit.aggregator import audit_aggregator
    from simulations.audit.canaries import Claim
    from simulations.audit.membership import audit_membership
    from simulations.audit.report import audit_report, audit_tables, has_passed
    from simulations.console import terminal

    torch.set_num_threads(1)
    claim = Claim(epsilon, delta, participations)
    found = audit_aggregator(claim, groups=groups, canaries=canaries, seed=seed)
    attacks = [audit_membership(claim.epsilon, delta=claim.delta, trials=trials, seed=seed)] if trials else []
    if as_json:
        emit_json(audit_report(found, attacks))
    else:
        terminal().print(audit_tables(found, attacks))
    if not has_passed(found, attacks):
        raise typer.Exit(1)


@benchmark_app.command()
def robustness(
    attack: Annotated[list[str] | None, typer.Option(help="Attack by name; may be repeated; all unless given.")] = None,
    defence: Annotated[
        list[str] | None, typer.Option(help="Defence by name; may be repeated; all unless given.")
    ] = None,
    share: Annotated[float, typer.Option(min=0, max=0.49, help="Hostile share of the devices.")] = 0.1,
    robust_share: Annotated[
        float, typer.Option(min=0, max=0.49, help="Hostile share of a cohort that the defences allow for.")
    ] = 0.25,
    users: Annotated[int, typer.Option(min=10, help="People in the synthetic world.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Training rounds.")] = 12,
    cohort: Annotated[int, typer.Option(min=1, help="Planned devices per round.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of world, cohorts, attackers and target.")] = 0,
    as_json: Json = False,
) -> None:
    """Train under attack with and without each defence; print how often the promoted item is then shown."""
    import dataclasses

    import torch

    from shared.config import Config, merge
    from simulations.console import robustness_table as table_of
    from simulations.console import terminal
    from simulations.robustness import ATTACKS, DEFENCES, robustness_table

    torch.set_num_threads(1)
    settings = {
        "seed": seed,
        "data": {"world_users": users, "world_events": 40},
        "model": {"history": 32},
        "prior": {"half_lives": []},  # robust rules look at training updates, and so does this table
        "federation": {"rounds": rounds, "cohort": cohort, "robust_share": robust_share},
        "evaluation": {"every": 0},
    }
    progress = terminal(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        lines = robustness_table(
            merge(Config(), settings),
            Path(folder),
            share=share,
            attacks=attack or list(ATTACKS),
            defences=defence or list(DEFENCES),
            progress=lambda stage: progress.print(stage, markup=False),
        )
        rows = [dataclasses.asdict(line) for line in lines]
    if as_json:
        emit_json({"share": share, "robust_share": robust_share, "seed": seed, "rows": rows})
    else:
        terminal().print(table_of(rows))


@benchmark_app.command()
def quality(
    data: Annotated[
        str | None, typer.Option(help="`world` or a data folder; without it the data of the first --run, or the world.")
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Ranker by name; may be repeated; all unless given.")] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a finished run whose adapter is measured too; may be repeated.", metavar="FOLDER"),
    ] = None,
    split: Annotated[str | None, typer.Option(help="leave-one-out or temporal.")] = None,
    new_items: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of the items nobody has touched; then only these are asked for."),
    ] = 0.0,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, section.key=value; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of data, negatives and the first fit.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Fits of each ranker that depends on chance.")] = 1,
    reference: Annotated[
        str | None, typer.Option(help="Ranker the others are compared with; that of --run, or the first, unless given.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; measured rows in it are kept.", metavar="FOLDER"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare rankers on the same test items: accuracy, what is shown, whom it serves, and what it costs.

    Writes result.json, per_user.npz and quality.html. With the same --out it goes on where it stopped; to measure a
    row again, delete its folder under rows/.
    """
    import torch

    from simulations.console import terminal
    from simulations.quality.benchmark import benchmark, opened, prepared
    from simulations.quality.tables import quality_tables
    from simulations.session import build_config

    torch.set_num_threads(1)
    finished = [path.expanduser().resolve() for path in run or []]
    place = (out or Path("runs") / f"quality-{datetime.now():%Y%m%d-%H%M%S}").expanduser().resolve()
    given = {name: value for name, value in (("data.source", data), ("data.split", split)) if value is not None}
    if finished and data is None:
        folder = opened(finished[0], other_settings=bool(given or setting or new_items))
    else:
        options = {**given, "seed": seed}
        config = build_config(experiment=None, file=None, assignments=setting or [], options=options)
        folder = prepared(config, place, new_items=new_items)
    progress = terminal(stderr=True)
    result = benchmark(
        folder,
        place,
        names=row or [],
        finished=finished,
        seeds=range(seed, seed + repeats),
        reference=reference,
        progress=lambda stage: progress.print(stage, markup=False),
    )
    if as_json:
        emit_json(result)
    else:
        console = terminal()
        if not console.is_terminal:
            console.width = 140  # a file has no edge
        console.print(quality_tables(result))
        console.print(f"page: {place / 'quality.html'}", soft_wrap=True, markup=False, highlight=False)
