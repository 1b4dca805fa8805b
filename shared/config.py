"""Everything a run can be told, frozen, typed and documented; unknown keys are refused with a suggestion.

`Config.from_dict(tomllib.load(file))` reads it, `to_toml(config)` writes it, `override(config,
"model.blocks=2")` changes one key. Combinations that would break a guarantee are refused here, with the
reason.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.config_rules import check_config
from shared.errors import ConfigError


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True)
class Data:
    """Where behaviour comes from and how it is split."""

    source: str = _doc("world", "`world`, or a data folder (see docs/data.md)")
    split: str = _doc("leave-one-out", "`leave-one-out` or `temporal`")
    min_item_count: int = _doc(0, "drop items with fewer interactions than this; 0 keeps all")
    world_users: int = _doc(300, "people in the synthetic world")
    world_events: int = _doc(60, "median events per person in the synthetic world")
    world_context: bool = _doc(False, "let breaks, hours and values matter in the synthetic world")


@dataclass(frozen=True)
class Model:
    """The scorer around the frozen backbone."""

    backbone: str = _doc("minilm", "registry name, model folder or cached hub id")
    blocks: int = _doc(2, "how many of the backbone's first blocks read the history")
    history: int = _doc(64, "events in one window L; also the longest history the ranker reads")
    input_rank: int = _doc(0, "rank of the learned input projection; 0 uses the item vectors as they are")
    output_rank: int = _doc(0, "rank of the learned output projection, started in a public basis; 0: full matrix")
    output_dim: int = _doc(384, "leading whitened directions k the output projection predicts; capped at the width")
    identity: int = _doc(0, "directions of item codes beside their text, the same for everyone; capped at what fits")
    input_codes: int = _doc(0, "directions of the item codes that a learned input projection reads; 0: none")
    whitening: float = _doc(0.5, "exponent of the whitening of output vectors, 0 (none) to 1 (flat spectrum)")
    output_scale: float = _doc(10.0, "root-mean-square length of the output vectors")
    token_scale: float = _doc(1.0, "factor on the item vectors that the history trunk reads")
    context: tuple[str, ...] = _doc(("kind", "gap"), "what is read beside items: kind, gap, value, hour, attributes")
    gamma: float = _doc(10.0, "start value of the content weight")
    beta: float = _doc(0.5, "start value of the popularity weight")
    content_half_life: float = _doc(2.0, "events after which an event counts half in content(u)")


@dataclass(frozen=True)
class Prior:
    """The closed-form prior that devices' moments are summed into once, before training."""

    half_lives: tuple[float, ...] = _doc((), "events after which an event counts half, one per feature; none: no prior")
    widths: tuple[int, ...] = _doc((), "directions of the item codes read at each half-life; none: as many as output")
    output: int = _doc(1536, "directions of the item codes that are predicted")
    ridge: float = _doc(30.0, "ridge penalty lambda, in events")
    kappa: float = _doc(1.3, "weight of the logarithm of the prior's estimate in the score")
    floor: float = _doc(0.6, "popularity share that the prior's estimate of an item does not fall below")
    gamma: float = _doc(0.0, "weight of content beside a prior")
    beta: float = _doc(0.0, "weight of popularity beside a prior")
    fusion: float = _doc(1.3, "weight of the prior's standardised estimate in a ranking, not in training")
    folds: int = _doc(2, "groups of devices; each trains against the prior of the other ones. 1: against its own")
    skip_penalty: float = _doc(0.0, "what a skip counts against its item in the prior's features; a like counts 1")
    clip: float = _doc(1.0, "L2 clip of a window's or device's moments; without privacy for secure aggregation only")


@dataclass(frozen=True)
class Lora:
    """The LoRA adapter on the backbone."""

    rank: int = _doc(4, "rank r of the adapters")
    alpha: int = _doc(8, "LoRA scale numerator; the update is (alpha / r) B A")
    dropout: float = _doc(0.0, "dropout on the adapter's input during training")
    targets: tuple[str, ...] = _doc(("q", "v"), "projections that carry LoRA: q, k, v, o (o: Llama and Qwen2)")
    blocks: int = _doc(1, "how many of the upper blocks carry LoRA; 0 means all of them")


@dataclass(frozen=True)
class Training:
    """What one device does in one round."""

    local_steps: int = _doc(1, "Opacus steps per round; more than 1 needs trust = local or privacy = none")
    local_learning_rate: float = _doc(1.0, "step size of the device's SGD; the server optimiser scales the result")
    window_sample_rate: float = _doc(1.0, "Poisson rate q at which each event window joins a step")
    clip_norm: float = _doc(1.0, "per-window L2 clip C under privacy = event; without privacy nothing is clipped")


@dataclass(frozen=True)
class Privacy:
    """What is protected, against whom, and how much is spent over a device's life."""

    mode: str = _doc("none", "`none`, `event` (unit: one window of events), `user` (unit: one person) or `both`")
    trust: str = _doc("aggregate", "`aggregate`: the sum meets epsilon; `local`: each device's reply alone does")
    epsilon: float = _doc(8.0, "budget of one unit over a device's whole life, at `delta`, all releases added up")
    user_epsilon: float = _doc(0.0, "with mode `both`, the budget at user level; 0: the same as epsilon")
    delta: float = _doc(1e-5, "probability with which the epsilon guarantee may fail")
    popularity_share: float = _doc(0.1, "part of the budget spent on the popularity count")
    prior_share: float = _doc(0.3, "part of the budget spent on the prior's moments, when there is a prior")
    validation_share: float = _doc(0.1, "part of the budget spent on comparing the result with the start")
    user_clip: float = _doc(1.0, "L2 clip of a device's whole update under modes user and both, and secure aggregation")
    clip_quantile: float = _doc(0.0, "adapt user_clip to this quantile of update norms, privately; 0: keep it fixed")
    quantile_share: float = _doc(0.02, "part of each training round's budget spent on the clip's quantile")
    clip_learning_rate: float = _doc(0.2, "step size of the adaptive clip, on a logarithmic scale")
    noise_bands: int = _doc(1, "rounds over which the server's noise is anticorrelated; 1: independent noise")


@dataclass(frozen=True)
class Federation:
    """Rounds, cohorts and what the server does with updates."""

    engine: str = _doc("inline", "`inline` (one process) or `ray` (Flower's simulation runtime)")
    rounds: int = _doc(20, "training rounds")
    cohort: int = _doc(64, "planned devices per round K; the sum of updates is always divided by it")
    survey: int = _doc(0, "devices asked for the popularity count, the prior and the comparison; 0: all of them")
    sampling: str = _doc(
        "shuffled",
        "`shuffled`: each device once per pass; `cyclic`: the same in one order; `poisson`: each joins with rate K/N",
    )
    aggregation: str = _doc("alternate", "`alternate`, `ffa` or `fedit`: which LoRA factors train in a round")
    server_optimizer: str = _doc("adam", "`adam` (FedAdam) or `sgd` (FedAvg at learning rate 1)")
    server_learning_rate: float = _doc(1e-3, "step size of the server optimiser")
    server_momentum: float = _doc(0.9, "first-moment decay of the server optimiser")
    learning_rate_decay: bool = _doc(True, "let the server's step size fall linearly to 5 % over the rounds")
    average_last: float = _doc(0.0, "share of the last rounds whose adapters are averaged into the result")
    quorum: float = _doc(0.6, "least share of the planned devices that must reply for a release")
    minimum_devices: int = _doc(1, "wait until so many devices are connected; a simulation waits for all of its own")
    reply_timeout: float = _doc(600.0, "seconds to wait for a cohort's replies")
    secure_aggregation: bool = _doc(False, "SecAgg+: the server learns the sum of a cohort and no single reply")
    robust: tuple[str, ...] = _doc((), "robust rules, left to right: norm-filter, median, trimmed-mean, multi-krum")
    robust_share: float = _doc(0.2, "share of hostile devices that the robust rules allow for")


@dataclass(frozen=True)
class Simulation:
    """What only a simulator does to its devices."""

    chaos: float = _doc(0.0, "probability with which a fault is injected into each message and each step of the server")


@dataclass(frozen=True)
class Evaluation:
    """What the simulator measures. None of it steers training."""

    every: int = _doc(5, "rounds between points of the quality curve; 0 for none")
    curve_users: int = _doc(300, "devices in the quality curve (validation items)")
    test_users: int = _doc(0, "devices whose test items are ranked, drawn at random; 0: all of them")
    local_only_users: int = _doc(40, "devices in the local-only comparison; 0 skips it")
    bootstrap: int = _doc(2000, "resamples behind each 95 % interval")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = _doc(0, "seed of everything that is random in a simulation")
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    prior: Prior = field(default_factory=Prior)
    lora: Lora = field(default_factory=Lora)
    training: Training = field(default_factory=Training)
    privacy: Privacy = field(default_factory=Privacy)
    federation: Federation = field(default_factory=Federation)
    simulation: Simulation = field(default_factory=Simulation)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        check_config(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build from nested tables; ConfigError names an unknown key and the nearest known one."""
        return _build(cls, values, "")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; `Config.from_dict(config.to_dict()) == config`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def load_config(path: str | Path) -> Config:
    """Read a TOML file. ConfigError when it is missing, not TOML, or holds an unknown key or a bad value."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: found no readable file ({error.strerror}); expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: found invalid TOML ({error}); expected tables like [model]") from None
    return Config.from_dict(values)


def override(config: Config, *assignments: str) -> Config:
    """Change keys, each given as `section.key=value` (or `seed=1`); values are TOML, bare words are strings."""
    changes: list[dict[str, Any]] = []
    for assignment in assignments:
        key, equals, raw = assignment.partition("=")
        if not equals:
            raise ConfigError(f"found {assignment!r}; expected section.key=value, for example federation.rounds=10")
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw.strip()
        for name in reversed(key.strip().split(".")):
            value = {name: value}
        changes.append(value)
    return merge(config, *changes)


def merge(config: Config, *changes: Mapping[str, Any]) -> Config:
    """A config with the given nested values replaced, checked when all of them are in; later ones win."""
    tree = config.to_dict()
    for key, value in (pair for change in changes for pair in change.items()):
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            tree[key] = {**tree[key], **value}
        else:
            tree[key] = value
    return Config.from_dict(tree)


def to_toml(config: Config) -> str:
    """TOML text that `load_config` reads back to the same config."""
    lines = [f"seed = {config.seed}"]
    for name, section in config.to_dict().items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]"] + [f"{key} = {_toml(value)}" for key, value in section.items()]
    return "\n".join(lines) + "\n"


def describe() -> list[tuple[str, Any, str]]:
    """Every key as (dotted name, default, documentation), in file order."""
    rows: list[tuple[str, Any, str]] = [("seed", 0, _docs(Config)["seed"])]
    for section in dataclasses.fields(Config):
        if section.default_factory is not dataclasses.MISSING:
            cls = type(section.default_factory())
            for item in dataclasses.fields(cls):
                rows.append((f"{section.name}.{item.name}", item.default, item.metadata["doc"]))
    return rows


def _docs(cls: Any) -> dict[str, str]:
    return {item.name: item.metadata.get("doc", "") for item in dataclasses.fields(cls)}


def _toml(value: Any) -> str:
    # JSON writes these values as TOML does, but for surrogate pairs and the DEL character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'config'}: found {values!r}; expected a table of settings")
    known = {item.name: item for item in dataclasses.fields(cls)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if key not in known:
            raise ConfigError(f"unknown setting {name!r}.{_suggest(name)}")
        nested = known[key].default_factory
        if nested is not dataclasses.MISSING:
            arguments[key] = _build(type(nested()), value, name)
        else:
            arguments[key] = _typed(name, value, known[key].default, element=_ELEMENTS.get(str(known[key].type)))
    return cls(**arguments)


def _suggest(name: str) -> str:
    names = [row[0] for row in describe()]
    leaf = name.rsplit(".", 1)[-1]
    close = (
        [full for full in names if full.rsplit(".", 1)[-1] == leaf]
        or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        or [full for full in names if difflib.get_close_matches(leaf, [full.rsplit(".", 1)[-1]], cutoff=0.8)]
    )
    return f" Did you mean {close[0]!r}?" if close else f" Sections: {', '.join(_docs(Config))}"


#: An example of what a list of each type holds.
_ELEMENTS: dict[str, Any] = {"tuple[str, ...]": "", "tuple[int, ...]": 0, "tuple[float, ...]": 0.0}


def _typed(name: str, value: Any, default: Any, *, element: Any = None) -> Any:
    wanted = type(default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is tuple and isinstance(value, list | tuple):
        return tuple(_typed(f"{name}[{place}]", item, element) for place, item in enumerate(value))
    if type(value) is not wanted:
        shown = "a list" if wanted is tuple else f"{wanted.__name__} (default {default!r})"
        raise ConfigError(f"{name}: found {value!r}; expected {shown}")
    return value
