"""What both kinds read from a model folder, ready for ranking."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.compact.folder import ModelFolder
from client.compact.integers import Floats32, Product, Rows
from client.evidence import PriorReading, Reading
from client.search import QuerySpace
from shared.config import Config, merge
from shared.errors import AdapterError, ConfigError
from shared.layout import PriorLayout
from shared.sections import Prior

TABLES = "tables.safetensors"


class Tables:
    """plain: float32 (N, d). codes: as wide as anything reads or predicts them. popularity: log popularity, (N,).

    layout: of the prior, None without one; so is `prior`, from f(u) to q. weights: of content and popularity by stage.
    """

    def __init__(self, folder: ModelFolder) -> None:
        manifest, arrays = folder.manifest, folder.arrays(TABLES)
        try:
            self.config = merge(Config(), manifest["settings"])
        except (ConfigError, TypeError) as error:
            raise AdapterError(
                f"{folder.path}: found model settings that this version does not know ({error}); export again"
            ) from None
        self.weights: dict[str, dict[str, float]] = manifest["weights"]
        self.plain: Floats32 = Rows.read(arrays, "plain").decoded()
        self.codes = Rows.read(arrays, "codes")
        self.popularity: Floats32 = arrays["popularity"]
        odds = np.exp(self.popularity - self.popularity.max())
        self.share: Floats32 = odds / odds.sum()
        self._arrays = arrays
        self._adapter = Product(folder, manifest["products"]["adapter"])
        self.layout: PriorLayout | None = None
        self.prior: Product | None = None
        if "prior" in manifest["products"]:
            self.layout = PriorLayout.of(self.config.prior, available=int(manifest["directions"]))
            self.prior = Product(folder, manifest["products"]["prior"])

    def adapter(self, state: Floats32) -> Floats32:
        """The adapter's part of all items' scores, (N,), for its state (a,).

        States share a large mean, whose own part is stored exactly; eight bits are left for what differs.
        """
        return self._arrays["usual.part"] + self._adapter(state - self._arrays["usual.state"])

    @cached_property
    def space(self) -> QuerySpace:
        """How raw vectors become comparable with `plain`."""
        turn = self._arrays.get("space.turn")
        return QuerySpace(
            self._arrays["space.mean"].astype(np.float64), None if turn is None else turn.astype(np.float64)
        )

    @cached_property
    def reading(self) -> Reading:
        """How scores come from events. The prior's shares are of the matrix and codes before they were multiplied."""
        model, settings = self.config.model, self.config.prior
        read = None
        if self.layout is not None:
            read = PriorReading(
                matrix=Rows.read(self._arrays, "prior").decoded(),
                codes=self.codes.decoded(),
                share=self.share,
                half_lives=self.layout.half_lives,
                widths=self.layout.widths,
                skip_penalty=self.layout.skip_penalty,
                kappa=settings.kappa,
                fusion=settings.fusion,
                floor=settings.floor,
            )
        return Reading(
            plain=self.plain,
            share=self.share,
            gamma=self.weights["adapter"]["gamma"],
            half_life=model.content_half_life,
            sharpness=model.sharpness,
            length=model.history,
            prior=read,
        )


def prior_scores(q: Floats32, share: NDArray[Any], *, settings: Prior) -> Floats32:
    """`shared.prior.prior_scores` as a ranking has it, in numpy; float32 (N,)."""
    least = np.float32(settings.floor) * share
    larger = (np.abs(q) + np.hypot(q, 2 * least)) / 2
    soft = np.where(q < 0, least * (least / larger), larger)
    expected = settings.kappa * np.log(soft)
    if settings.fusion:
        expected += settings.fusion * q / max(float(q.std(ddof=1)), 1e-12)
    return expected.astype(np.float32)
