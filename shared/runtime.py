"""The model in memory: one per process, whatever the number of devices it serves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import torch

from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.backbone import Backbone, open_backbone
from shared.basis import public_basis
from shared.catalogue import Catalogue
from shared.config import Config, merge
from shared.errors import AdapterError, ConfigError, ProtocolError
from shared.items import ItemTable
from shared.model import Scorer, build_scorer, load_parameters, read_parameters
from shared.prior import PRIOR
from shared.vectors import make_views, raw_vectors, reference_directions

#: Sections of a configuration that both sides must share to mean the same model.
PUBLIC = ("seed", "model", "prior", "lora")


class Runtime:
    """Backbone, scorer and item table for one set of public settings and one catalogue.

    Use `runtime_for`, which keeps one in memory. `install` puts in an adapter; training changes it again.
    """

    def __init__(self, config: Config, catalogue: Catalogue) -> None:
        self.config = config
        self.catalogue = catalogue
        self.backbone: Backbone = open_backbone(config.model.backbone)
        self.scorer: Scorer = build_scorer(
            self.backbone,
            model=config.model,
            lora=config.lora,
            seed=config.seed,
            items=len(catalogue),
            prior=config.prior,
        )
        if config.model.output_rank:
            weight, bias = public_basis(self.scorer, self.table, rank=config.model.output_rank, seed=config.seed)
            arrays = read_parameters(self.scorer)
            arrays |= {"output.0.weight": weight.numpy(), "output.0.bias": bias.numpy()}
            load_parameters(self.scorer, arrays)
        self.start = AdapterState(read_parameters(self.scorer))

    @cached_property
    def table(self) -> ItemTable:
        """Item vectors, from the cache or encoded now."""
        model = self.config.model
        views = make_views(
            raw_vectors(self.backbone, self.catalogue),
            whitening=model.whitening,
            output_dim=model.output_dim,
            output_scale=model.output_scale,
            identity=model.identity,
            content_whitening=model.content_whitening,
            reference=reference_directions(self.backbone) if model.directions == "backbone" else None,
        )
        with torch.inference_mode(False):  # whoever asks first: a table born there could not be trained against
            return ItemTable(views)

    def peft_config(self) -> dict[str, Any]:
        """adapter_config.json of the LoRA part, as peft writes it, without a machine's paths."""
        trunk: Any = self.scorer.trunk
        values = dict(trunk.peft_config["default"].to_dict())
        values |= {"inference_mode": True, "base_model_name_or_path": self.config.model.backbone}
        return {name: sorted(v) if isinstance(v, set) else v for name, v in values.items()}

    def install(self, state: AdapterState) -> None:
        """Put in an adapter with its log popularity (array `popularity`, (N,)) and its prior (array `prior`, (F, k)).

        Without the one the popularity stays as it was; without the other there is no prior. AdapterError when
        something does not fit.
        """
        arrays = dict(state.arrays)
        popularity, prior = arrays.pop(POPULARITY, None), arrays.pop(PRIOR, None)
        if popularity is not None and popularity.shape != (len(self.catalogue),):
            raise AdapterError(f"found popularity of shape {popularity.shape}; expected ({len(self.catalogue)},)")
        before = self.scorer.prior
        self.scorer.set_prior(prior)
        try:
            load_parameters(self.scorer, arrays)
        except AdapterError:
            self.scorer.prior = before
            raise
        if popularity is not None:
            self.table.set_popularity(popularity)


def public_settings(config: Config) -> dict[str, Any]:
    """The part of a configuration that both sides must share to mean the same model."""
    values = config.to_dict()
    return {name: values[name] for name in PUBLIC}


def runtime_from_settings(settings: Mapping[str, Any], catalogue: Catalogue) -> Runtime:
    """The runtime for the settings in a manifest; ProtocolError when they are not ones this version knows."""
    try:
        return _runtime(_key({name: settings[name] for name in PUBLIC}), _Key(catalogue))
    except (ConfigError, KeyError, TypeError) as error:
        raise ProtocolError(f"found model settings that this version does not know ({error})") from None


def runtime_for(config: Config, catalogue: Catalogue) -> Runtime:
    """The runtime of a configuration; the newest one stays in memory."""
    return _runtime(_key(public_settings(config)), _Key(catalogue))


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


class _Key:
    """A catalogue that equals another with the same ids and texts, so both sides of a simulation share a runtime."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def __hash__(self) -> int:
        return hash(self.catalogue.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.catalogue.fingerprint == other.catalogue.fingerprint


@lru_cache(maxsize=1)
def _runtime(settings: str, key: _Key) -> Runtime:
    return Runtime(merge(Config(), json.loads(settings)), key.catalogue)
