"""What the commands do between their options and their output."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from shared.config import Config, load_config, merge, override
from shared.errors import ConfigError, RunError
from simulations.console import closing_lines, plan_table, recommendation_table, terminal
from simulations.runfolder import RunFolder, open_run, prepare
from simulations.tables import result_table


def experiments() -> dict[str, Path]:
    """Named experiments that ship with the package."""
    folder = Path(str(resources.files("simulations") / "experiments"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def build_config(
    *, experiment: str | None, file: Path | None, assignments: Sequence[str], options: Mapping[str, Any]
) -> Config:
    """Defaults, then the experiment, then the file, then --set, then the named options; later ones win."""
    config = Config()
    if experiment is not None:
        known = experiments()
        if experiment not in known:
            raise ConfigError(f"found experiment {experiment!r}; expected one of {', '.join(known)}")
        config = load_config(known[experiment])
    if file is not None:
        config = _on_top(config, file)
    return override(config, *assignments, *(f"{name}={json.dumps(value)}" for name, value in options.items()))


def _on_top(config: Config, file: Path) -> Config:
    import tomllib

    load_config(file)  # its errors name the file
    return merge(config, tomllib.loads(file.read_text(encoding="utf-8")))


def refuse_with_resume(options: Mapping[str, Any], *, others: Sequence[Any]) -> None:
    """A resumed run keeps its settings; anything else given beside --resume is a mistake."""
    if options or any(other is not None for other in others):
        raise ConfigError("--resume continues a run with its own settings; give no other option but --json")


def new_run(config: Config, out: Path | None, *, prepare_only: bool) -> dict[str, Any]:
    """Prepare a folder and, unless told to stop there, run it to its end."""
    folder = (out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")).expanduser().resolve()
    started = time.perf_counter()
    with _status("reading data and setting up virtual devices"):
        run = prepare(config, folder)
    if prepare_only:
        command = (
            f"flwr run . --run-config 'out=\"{run.path}\"'"
            f' --federation-config "num-supernodes={run.devices} client-resources-num-cpus=1"'
        )
        return {"out": str(run.path), "devices": run.devices, "flwr_run": command}
    return _finish(run, started)


def continue_run(folder: Path) -> dict[str, Any]:
    """Continue an interrupted run from its last finished round; a finished one is only measured again."""
    return _finish(open_run(folder.expanduser().resolve()), time.perf_counter())


def _finish(run: RunFolder, started: float) -> dict[str, Any]:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from shared.runtime import runtime_for
    from simulations.experiment import evaluate, train

    with _status("loading the backbone and encoding the catalogue (cached after the first time)"):
        runtime = runtime_for(run.config, run.catalogue)
        _ = runtime.table
    setup = round(time.perf_counter() - started, 2)
    try:
        with _round_bar(run):
            seconds = train(run)
    except KeyboardInterrupt:
        told = f"stopped after the last finished round; go on with: homerank-simulate run --resume {run.path}"
        terminal(stderr=True).print(told, soft_wrap=True, markup=False)
        raise
    with _bar() as bar:
        task = bar.add_task("measuring", total=None)
        return evaluate(
            run,
            seconds={"setup": setup, "train": round(seconds, 2)},
            progress=lambda stage: bar.update(task, description=stage),
        )


def recommend(folder: Path, *, user: str, k: int) -> dict[str, Any]:
    """Rank for one user; milliseconds are those of the ranking once everything is loaded."""
    from client.app import virtual_device
    from shared.adapter import AdapterState
    from shared.artifacts import POPULARITY, load_adapter
    from shared.runtime import runtime_for

    run = open_run(folder.expanduser().resolve())
    number = run.device_of(user)
    if not (run.path / "adapter").is_dir():
        raise RunError(f"{run.path}: found no adapter; finish the run with --resume {run.path}")
    adapter, popularity, _ = load_adapter(run.path / "adapter")
    runtime = runtime_for(run.config, run.catalogue)
    runtime.install(AdapterState({**adapter.arrays, POPULARITY: popularity}))
    device = virtual_device(str(run.path), number)
    device.recommend(runtime, k=k)  # the first call also warms up memory
    started = time.perf_counter()
    found = device.recommend(runtime, k=k)
    milliseconds = (time.perf_counter() - started) * 1000
    history = device.history()
    return {
        "user": user,
        "milliseconds": round(milliseconds, 2),
        "history": [
            {"item": run.catalogue.items[item].id, "title": run.catalogue.items[item].title}
            for item in history.items[-runtime.config.model.history :].tolist()
        ],
        "recommendations": [
            {"rank": r.rank, "item": r.item_id, "title": r.title, "score": r.score, "parts": r.parts} for r in found
        ],
    }


def print_result(result: Mapping[str, Any]) -> None:
    """The end of a run, for a person."""
    console = terminal()
    if "flwr_run" in result:
        console.print(f"prepared {result['devices']} virtual devices in {result['out']}\nrun them with:")
        console.print(result["flwr_run"], soft_wrap=True, markup=False, highlight=False)
        return
    console.print(result_table(dict(result)))
    console.print(closing_lines(result))
    console.print(f"report: {Path(result['out']) / 'report.html'}", soft_wrap=True, markup=False, highlight=False)


def print_plan(answer: Mapping[str, Any]) -> None:
    """A plan, for a person."""
    terminal().print(plan_table(answer))


def print_recommendations(answer: Mapping[str, Any]) -> None:
    """Recommendations, for a person."""
    terminal().print(recommendation_table(answer))


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=terminal(stderr=True),
        transient=False,
    )


@contextmanager
def _status(text: str) -> Iterator[None]:
    with terminal(stderr=True).status(text):
        yield


@contextmanager
def _round_bar(run: RunFolder) -> Iterator[None]:
    """A bar that follows metrics.jsonl, so both engines show the same."""
    done = threading.Event()
    with _bar() as bar:
        task = bar.add_task("training rounds", total=run.config.federation.rounds)

        def follow() -> None:
            while not done.wait(0.3):
                bar.update(task, completed=_rounds_done(run))

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            bar.update(task, completed=_rounds_done(run))


def _rounds_done(run: RunFolder) -> int:
    path = run.path / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as handle:
        return sum(1 for line in handle if b'"phase": "train"' in line)
