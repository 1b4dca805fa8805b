"""The scorer: content + popularity + a LoRA-adapted reading of the history.

    score(u, i) = gamma * <content(u), plain_i>  +  <P_out h(u), output_i>  +  beta * log_popularity_i

`content(u)` is a recency-weighted mean of the plain vectors in the history. `h(u)` is the history trunk's state, where
L events are L soft tokens. `P_out` starts at zero, so a fresh model ranks exactly like content + popularity.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import register_grad_sampler
from torch import nn

from shared.backbone import Backbone
from shared.errors import AdapterError
from shared.schema import EventKind
from shared.vectors import ItemVectors

if TYPE_CHECKING:
    from shared.config import Lora, Model

#: Upper edges of the time-gap buckets in seconds: a minute, an hour, 6 hours, a day, a week, 30 days; then
#: longer, and a last bucket for "unknown" (first event, or a source without times).
GAP_EDGES = (60.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0)
GAP_BUCKETS = len(GAP_EDGES) + 2
IGNORE = -100


@dataclass(frozen=True)
class Windows:
    """A batch of event windows, padded on the right.

    items, kinds, gaps: int64 (B, L). content: bool (B, L), events that count towards content(u).
    seen: bool (B, L), events after which their item is no longer recommended.
    targets: int64 (B, L), the item that follows each position, IGNORE where there is nothing to predict.
    real: bool (B, L), False on padding.
    """

    items: torch.Tensor
    kinds: torch.Tensor
    gaps: torch.Tensor
    content: torch.Tensor
    seen: torch.Tensor
    targets: torch.Tensor
    real: torch.Tensor

    def __len__(self) -> int:
        return int(self.items.shape[0])

    @property
    def last(self) -> torch.Tensor:
        """Position of each window's last real event, int64 (B,); 0 for an empty window."""
        return (self.real.sum(1) - 1).clamp(min=0)

    def shorten(self, length: int) -> Windows:
        """The first `length` columns; for dropping columns that are padding everywhere."""
        return Windows(**{name: getattr(self, name)[:, :length] for name in self.__dataclass_fields__})

    def pick(self, rows: torch.Tensor) -> Windows:
        """The windows of the given rows."""
        return Windows(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


class ItemTable(nn.Module):
    """The catalogue as the model sees it: fixed tensors, no parameters.

    Under one roof the three score parts are one dot product: the row of an item is
    [plain (d) | output (k) | log popularity (1)].
    """

    plain: torch.Tensor
    token: torch.Tensor
    rows: torch.Tensor

    def __init__(self, vectors: ItemVectors) -> None:
        super().__init__()
        self.register_buffer("plain", torch.from_numpy(vectors.plain))
        self.register_buffer("token", torch.from_numpy(vectors.token))
        parts = (self.plain, torch.from_numpy(vectors.output), torch.zeros(len(vectors.plain), 1))
        self.register_buffer("rows", torch.cat(parts, dim=1))  # (N, d + k + 1)

    def set_popularity(self, popularity: NDArray[np.float32]) -> None:
        """Put in a newly released log-popularity column, float32 (N,)."""
        if popularity.shape != (len(self.rows),):
            raise AdapterError(f"found popularity of shape {popularity.shape}; expected ({len(self.rows)},)")
        self.rows[:, -1] = torch.from_numpy(np.ascontiguousarray(popularity))


class Scale(nn.Module):
    """One learned factor. A module of its own so that Opacus can see its per-sample gradient."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@register_grad_sampler(Scale)
def _scale_grad_sample(
    layer: Scale, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    per_sample = (activations[0] * backprops).flatten(1).sum(1, keepdim=True)  # (B, 1)
    return {layer.weight: per_sample}


class SoftTokens(nn.Module):
    """Item vector + event kind + time gap, one input embedding per event."""

    def __init__(self, hidden: int, *, rank: int, context: bool) -> None:
        super().__init__()
        self.low: nn.Module | None = None
        self.kind: nn.Module | None = None
        self.gap: nn.Module | None = None
        if rank:  # a residual x + U V x; U starts at zero
            up = nn.Linear(rank, hidden, bias=False)
            nn.init.zeros_(up.weight)
            self.low = nn.Sequential(nn.Linear(hidden, rank, bias=False), up)
        if context:
            self.kind = _zero_embedding(len(EventKind), hidden)
            self.gap = _zero_embedding(GAP_BUCKETS, hidden)

    def forward(self, x: torch.Tensor, kinds: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
        token = x  # (B, L, d)
        if self.low is not None:
            token = token + self.low(x)
        if self.kind is not None and self.gap is not None:
            token = token + self.kind(kinds) + self.gap(gaps)
        return token


class Scorer(nn.Module):
    """The trainable ranker around a frozen trunk; `build_scorer` makes one."""

    def __init__(self, trunk: nn.Module, *, hidden: int, settings: Model) -> None:
        super().__init__()
        self.trunk = trunk
        self.settings = settings
        self.output_dim = min(settings.output_dim, hidden)
        self.input = SoftTokens(hidden, rank=settings.input_rank, context=settings.event_context)
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
        named = ((_stable(name), p) for name, p in self.named_parameters() if p.requires_grad)
        self.adapter_parameters = dict(sorted(named, key=lambda pair: pair[0]))
        self._decay: dict[int, torch.Tensor] = {}

    def user_states(self, batch: Windows, table: ItemTable) -> torch.Tensor:
        """z at every position, float32 (B, L, d + k + 1); scores are `z @ table.rows.T`."""
        content = self.gamma(self._content(batch, table))  # (B, L, d)
        learned = self.output(self.history_states(batch, table))  # (B, L, k)
        popularity = self.beta(torch.ones_like(content[..., :1]))  # (B, L, 1)
        return torch.cat([content, learned, popularity], dim=-1)

    def history_states(self, batch: Windows, table: ItemTable) -> torch.Tensor:
        """What the adapted trunk makes of the history at every position, float32 (B, L, d)."""
        tokens = self.input(table.token[batch.items] * self.settings.token_scale, batch.kinds, batch.gaps)
        return self.trunk(inputs_embeds=tokens).last_hidden_state

    def zero_shot_states(self, batch: Windows, table: ItemTable) -> torch.Tensor:
        """The same at the start values of every parameter, whatever is installed; the trunk is not run."""
        content = self.settings.gamma * self._content(batch, table)
        learned = content.new_zeros(*content.shape[:2], self.output_dim)
        return torch.cat([content, learned, torch.full_like(content[..., :1], self.settings.beta)], dim=-1)

    def window_losses(self, batch: Windows, table: ItemTable) -> torch.Tensor:
        """Softmax cross-entropy over the whole catalogue, mean over a window's targets; float32 (B,).

        Items that came earlier in the same window are left out of the softmax, because a ranking leaves out
        what was seen; a target is never left out. A window without targets has loss 0 and a zero gradient.
        """
        logits = self.user_states(batch, table) @ table.rows.T  # (B, L, N)
        logits = logits.masked_fill(self._earlier_items(batch, logits.shape[-1]), -torch.inf)
        wanted = batch.targets != IGNORE
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="none"
        ).view_as(batch.targets)
        return losses.sum(1) / wanted.sum(1).clamp(min=1)

    def _content(self, batch: Windows, table: ItemTable) -> torch.Tensor:
        """Recency-weighted mean of plain vectors up to each position, (B, L, d)."""
        length = batch.items.shape[1]
        decay = self._decay_matrix(length)  # (L, L) lower-triangular
        weight = decay * batch.content[:, None, :]  # (B, L, L)
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)
        return weight @ table.plain[batch.items]

    def _decay_matrix(self, length: int) -> torch.Tensor:
        if length not in self._decay:
            age = torch.arange(length)[:, None] - torch.arange(length)[None, :]
            self._decay[length] = torch.where(age >= 0, 0.5 ** (age / self.settings.content_half_life), 0.0)
        return self._decay[length]

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


def build_scorer(backbone: Backbone, *, model: Model, lora: Lora, seed: int) -> Scorer:
    """A fresh scorer: frozen trunk with LoRA attached, everything else at its start values.

    The same seed gives the same start on every machine.
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
        scorer = Scorer(adapted_trunk, hidden=backbone.hidden, settings=model)
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


def _zero_embedding(count: int, hidden: int) -> nn.Embedding:
    table = nn.Embedding(count, hidden)
    nn.init.zeros_(table.weight)
    return table
