"""The scorer: content + popularity + prior + a LoRA-adapted reading of the history.

    score(u, i) = gamma * content(u)_i  +  <P_out h(u), output_i>  +  beta * log_popularity_i
                  +  kappa * log soft(q(u))_i  +  fusion * q(u)_i / std q(u)

`content(u)` is how much an item is like recent events (`shared.content`). `h(u)` is the history trunk's state, where
L events are L soft tokens. `P_out` starts at zero, so a fresh model ranks exactly like content + popularity. `q(u)` is
what the one-round prior expects next (`shared.prior`); its logarithm makes it the base measure of the softmax, so that
the trained part learns by how much the prior is wrong, and its plain value is mixed in for ranking only. With a prior
the weights of the parts are settings: trained ones drift to what likelihood wants, more popularity than a ranking can
use (docs/decisions.md). Three rankers are in one scorer, and `stage` names them:

| stage | parts |
|---|---|
| start | content + popularity at their start weights: needs no training at all |
| prior | the same with the prior, at the start weights that go with it |
| adapter | everything, with the weights that were trained |
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shared.backbone import Backbone
from shared.content import mean_vector, recency_weights, sharp_content
from shared.errors import AdapterError
from shared.items import ItemTable
from shared.layout import PriorLayout
from shared.prior import history_features, prior_scores
from shared.sections import Lora, Model, Prior
from shared.tokens import SoftTokens
from shared.vectors import identity_room
from shared.windows import IGNORE, Windows

Stage = Literal["start", "prior", "adapter"]


class Scale(nn.Module):
    """One learned factor. A module of its own so that Opacus can see its per-sample gradient (`client.trainer`)."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Scorer(nn.Module):
    """The trainable ranker around a frozen trunk; `build_scorer` makes one."""

    def __init__(self, trunk: nn.Module, *, hidden: int, identity: int, settings: Model, prior: Prior) -> None:
        super().__init__()
        self.trunk = trunk
        self.settings = settings
        self.prior_settings = prior
        self.output_dim = min(settings.output_dim, hidden) + identity
        self.code_dim = min(settings.input_codes, hidden + identity)
        self.input = SoftTokens(hidden, rank=settings.input_rank, codes=self.code_dim, context=settings.context)
        if settings.output_rank:
            down = nn.Linear(hidden, settings.output_rank)  # `shared.basis` gives it a better start
            nn.init.orthogonal_(down.weight)
            nn.init.zeros_(down.bias)
            up = nn.Linear(settings.output_rank, self.output_dim, bias=False)
            self.output = nn.Sequential(down, up)
        else:
            up = nn.Linear(hidden, self.output_dim, bias=False)
            self.output = nn.Sequential(up)
        nn.init.zeros_(up.weight)
        self.gamma = Scale(settings.gamma)
        self.beta = Scale(settings.beta)
        self.layout: PriorLayout | None = None
        if prior.half_lives:
            available = hidden + identity
            self.layout = PriorLayout.of(prior, available=available)
            self.gamma.requires_grad_(False)
            self.beta.requires_grad_(False)
        self.prior: torch.Tensor | None = None  # (F, k) once one is installed
        named = ((_stable(name), p) for name, p in self.named_parameters() if p.requires_grad)
        self.adapter_parameters = dict(sorted(named, key=lambda pair: pair[0]))

    def set_prior(self, matrix: NDArray[np.float32] | None) -> None:
        """Put in a solved prior, float32 (F, k), or take it out; AdapterError when it is not of this layout."""
        if matrix is not None:
            expected = (self.layout.features, self.layout.output) if self.layout else None
            if matrix.shape != expected:
                raise AdapterError(f"found a prior of shape {matrix.shape}; this model's settings make it {expected}")
        self.prior = None if matrix is None else torch.from_numpy(np.ascontiguousarray(matrix))

    def user_states(
        self, batch: Windows, table: ItemTable, *, stage: Stage = "adapter", last: bool = False
    ) -> torch.Tensor:
        """z at every position, float32 (B, L, d + k + 1), with k_prior more entries where a prior is installed.

        With `sharpness` the content is not linear in any state: its d entries are 0, see `content_scores`.
        last: only after the last event of each row, (B, 1, ...).
        """
        weights = recency_weights(batch, half_life=self.settings.content_half_life, last=last)
        one = weights.new_ones(*weights.shape[:2], 1)
        if self.settings.sharpness:
            content = one.new_zeros(*one.shape[:2], table.plain.shape[1])
        else:
            content = self._weighted("gamma", mean_vector(weights, batch, table), stage=stage)
        if stage == "adapter":
            states = self.history_states(batch, table)
            learned = self.output(states[torch.arange(len(batch)), batch.last][:, None] if last else states)
        else:
            learned = one.new_zeros(*one.shape[:2], self.output_dim)
        parts = [content, learned, self._weighted("beta", one, stage=stage)]
        if (prior := self.prior_of(stage)) is not None:
            layout, matrix = prior
            parts.append(history_features(batch, table, layout, last=last) @ matrix)
        return torch.cat(parts, dim=-1)

    def content_scores(
        self, batch: Windows, table: ItemTable, *, stage: Stage = "adapter", last: bool = False
    ) -> torch.Tensor | None:
        """gamma * content(u) of all items with `sharpness`, float32 (B, L, N), None without.

        last: only after the last event of each row, (B, N).
        """
        if not self.settings.sharpness:
            return None
        weights = recency_weights(batch, half_life=self.settings.content_half_life, last=last)
        found = sharp_content(weights, batch.items, table, sharpness=self.settings.sharpness)
        scaled = self._weighted("gamma", found, stage=stage)
        return scaled[:, 0] if last else scaled

    def _weighted(self, name: Literal["gamma", "beta"], part: torch.Tensor, *, stage: Stage) -> torch.Tensor:
        """A part of the score with its weight at a stage."""
        if stage == "adapter" and self.layout is None:
            weight: Scale = getattr(self, name)
            return weight(part)
        fixed: float = getattr(self.settings if self.prior_of(stage) is None else self.prior_settings, name)
        return fixed * part

    def weight(self, name: Literal["gamma", "beta"], *, stage: Stage) -> float:
        """What content (`gamma`) or popularity (`beta`) counts at a stage."""
        return self._weighted(name, torch.ones(1), stage=stage).item()

    def prior_of(self, stage: Stage) -> tuple[PriorLayout, torch.Tensor] | None:
        """The prior that counts at a stage: its layout and M, float32 (F, k); None when none does."""
        if stage == "start" or self.prior is None or self.layout is None:
            return None
        return self.layout, self.prior

    def scores(self, states: torch.Tensor, table: ItemTable, *, fused: bool = True) -> torch.Tensor:
        """Scores of all items, float32 (..., N), for states (..., z)."""
        linear, expected = self.score_parts(states, table, fused=fused)
        return linear if expected is None else linear + expected

    def score_parts(
        self, states: torch.Tensor, table: ItemTable, *, fused: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The linear part of the scores and the prior's, each float32 (..., N); None without a prior.

        fused: with the prior's plain estimate beside its logarithm, as a ranking wants it. A likelihood does without.
        """
        width = table.rows.shape[1]
        linear = states[..., :width] @ table.rows.T
        if states.shape[-1] == width:
            return linear, None
        q = states[..., width:] @ table.codes[:, : states.shape[-1] - width].T
        return linear, prior_scores(q, table.share, settings=self.prior_settings, fused=fused)

    def tokens(self, batch: Windows, table: ItemTable) -> torch.Tensor:
        """The history as the trunk reads it, one soft token an event, float32 (B, L, d)."""
        codes = table.input_codes(self.code_dim)[batch.items]
        return self.input(table.token[batch.items] * self.settings.token_scale, codes, batch)

    def history_states(self, batch: Windows, table: ItemTable) -> torch.Tensor:
        """What the adapted trunk makes of the history at every position, float32 (B, L, d)."""
        return self.trunk(inputs_embeds=self.tokens(batch, table)).last_hidden_state

    def window_losses(self, batch: Windows, table: ItemTable) -> torch.Tensor:
        """Softmax cross-entropy over the whole catalogue, mean over a window's targets; float32 (B,).

        Items that came earlier in the same window are left out of the softmax, because a ranking leaves out
        what was seen; a target is never left out. A window without targets has loss 0 and a zero gradient.
        """
        logits = self.scores(self.user_states(batch, table), table, fused=False)  # (B, L, N)
        if (content := self.content_scores(batch, table)) is not None:
            logits = logits + content
        logits = logits.masked_fill(self._earlier_items(batch, logits.shape[-1]), -torch.inf)
        wanted = batch.targets != IGNORE
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="none"
        ).view_as(batch.targets)
        return losses.sum(1) / wanted.sum(1).clamp(min=1)

    @staticmethod
    def _earlier_items(batch: Windows, count: int) -> torch.Tensor:
        size, length = batch.items.shape
        index = batch.items[:, None, :].expand(size, length, length)
        earlier = torch.ones(length, length, dtype=torch.bool).tril() & batch.seen[:, None, :]  # (B, L, L)
        # scatter may hit one item twice with different values: the largest keeps any True, and cannot overflow
        hits = torch.zeros(size, length, count, dtype=torch.uint8)
        hits.scatter_reduce_(2, index, earlier.to(torch.uint8), "amax")
        safe = batch.targets.clamp(min=0)[..., None]
        return hits.bool().scatter_(2, safe, False)


def build_scorer(
    backbone: Backbone, *, model: Model, lora: Lora, seed: int, items: int = 0, prior: Prior | None = None
) -> Scorer:
    """A fresh scorer: frozen trunk with LoRA attached, everything else at its start values.

    items: size of the catalogue, which bounds the identity directions. prior: None for a scorer without one. The same
    seed gives the same start on every machine.
    """
    from peft import LoraConfig, get_peft_model

    trunk = backbone.trunk(model.blocks)
    adapted = tuple(range(model.blocks))[-lora.blocks :] if lora.blocks else tuple(range(model.blocks))
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_projections(trunk, set(backbone.targets(lora.targets)), adapted),
        bias="none",
        fan_in_fan_out=backbone.family == "gpt2",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with warnings.catch_warnings():  # between peft and transformers, nothing a user could act on
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            adapted_trunk = get_peft_model(trunk, config)
        identity = identity_room(model.identity, items=items, width=backbone.hidden)
        scorer = Scorer(
            adapted_trunk,
            hidden=backbone.hidden,
            identity=identity,
            settings=model,
            prior=prior or Prior(half_lives=()),
        )
    _train_only_trainable(scorer)
    return scorer


def _projections(trunk: nn.Module, leaves: set[str], blocks: Collection[int]) -> list[str]:
    """Full names of the adapted projections. peft finds no block number in names like `layers.0.self_attn`."""
    wanted = {str(block) for block in blocks}
    parts = ((name, name.split(".")) for name, _ in trunk.named_modules())
    return [name for name, path in parts if path[-1] in leaves and wanted & set(path)]


def _train_only_trainable(scorer: Scorer) -> None:
    """Evaluation mode everywhere (no dropout in the frozen trunk), training mode on what is trained.

    Opacus collects per-sample gradients only from modules in training mode.
    """
    scorer.eval()
    for module in scorer.modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            module.train()


def trainable(scorer: Scorer) -> dict[str, nn.Parameter]:
    """Trainable parameters by stable name, in a fixed order. LoRA names are peft's own file names."""
    return dict(scorer.adapter_parameters)


def _stable(name: str) -> str:
    return name.replace(".default.", ".").removeprefix("trunk.")


@torch.no_grad()
def load_parameters(scorer: Scorer, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy arrays into the trainable parameters; AdapterError unless names and shapes match exactly."""
    parameters = scorer.adapter_parameters
    if set(parameters) != set(arrays):
        odd = sorted(set(parameters) ^ set(arrays))
        raise AdapterError(f"found other parameter names than this model has, first difference {odd[0]!r}")
    for name, parameter in parameters.items():
        if tuple(parameter.shape) != arrays[name].shape:
            raise AdapterError(f"{name}: found shape {arrays[name].shape}; expected {tuple(parameter.shape)}")
    for name, parameter in parameters.items():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))


def read_parameters(scorer: Scorer) -> dict[str, NDArray[np.float32]]:
    """Copies of the trainable parameters, float32."""
    return {name: p.detach().cpu().numpy().astype(np.float32, copy=True) for name, p in trainable(scorer).items()}
