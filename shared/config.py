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
from shared.sections import (
    Data,
    Evaluation,
    Federation,
    Lora,
    Model,
    Prior,
    Privacy,
    Simulation,
    Training,
    doc,
)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = doc(0, "seed of everything that is random in a simulation")
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
