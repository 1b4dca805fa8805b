"""SASRec (Kang and McAuley, ICDM 2018), trained centrally with cross-entropy over the whole catalogue.

The loss is the one with which Klenitskiy and Vasilev (RecSys 2023, "Turning Dross Into Gold Loss") report NDCG@10
.182 on MovieLens 1M, against .134 with SASRec's binary loss. As there: width 64, two blocks, one head, item vectors
shared by input and output. Different here: normalisation before each sublayer, no dropout on attention weights,
batches of a fixed number of events instead of sequences, and long histories are cut into pieces at places that
change from epoch to epoch, where theirs are truncated, so that every event is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from shared.errors import DataError
from simulations.evaluation import Case
from simulations.quality.base import Training
from simulations.quality.classical import Chosen, best_of, popularity_counts, positives, validation_ndcg

#: Positions whose logits are in memory at once; 128 x 4,000 of them stay in a core's cache.
_ROWS = 128


@dataclass(frozen=True)
class Settings:
    """Shape and training of one SASRec.

    width: d. length: newest events that are read L. batch: training positions per step. epochs: most passes over the
    data. patience: passes without a better validation NDCG@10 after which training stops.
    """

    dropout: float = 0.2
    width: int = 64
    blocks: int = 2
    heads: int = 1
    length: int = 100
    batch: int = 4096
    learning_rate: float = 2e-3
    epochs: int = 100
    patience: int = 10


#: Sparse data needs more dropout than MovieLens does.
GRID = (Settings(dropout=0.2), Settings(dropout=0.5))


@dataclass(frozen=True)
class SASRec:
    """A trained network. popularity: float32 (N,), what an empty history is ranked by."""

    network: Network
    settings: Settings
    popularity: NDArray[np.float32]
    chosen: Chosen

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """Logits of the next item, float32 (B, N)."""
        result = np.tile(self.popularity, (len(cases), 1))
        read = [positives(case.history)[-self.settings.length :] for case in cases]
        asked = sorted((row for row, items in enumerate(read) if len(items)), key=lambda row: len(read[row]))
        self.network.eval()
        with torch.inference_mode():
            for start in range(0, len(asked), 64):
                rows = asked[start : start + 64]
                states, real = self.network(*_pad([read[row] for row in rows]))  # (b, n, d), (b, n)
                last = states[torch.arange(len(rows)), real.sum(1) - 1]  # (b, d)
                result[rows] = (last @ self.network.items.weight.T).numpy()
        return result


def fit_sasrec(training: Training, *, seed: int, grid: Sequence[Settings] = GRID) -> SASRec:
    """Train one network per setting of the grid; the one with the best validation NDCG@10, at its best epoch.

    The same seed on the same machine gives the same network. Raises DataError when nothing follows anything.
    """
    return best_of([_train(training, seed=seed, settings=settings) for settings in grid], training.validation)


def _train(training: Training, *, seed: int, settings: Settings) -> SASRec:
    """Train until validation NDCG@10 stops rising."""
    sequences = [items for history in training.histories if len(items := positives(history)) > 1]
    if not sequences:
        raise DataError("sasrec: found no device with two positive training events; expected at least one")
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(training.items, settings)
        optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98))
        ranker = SASRec(network, settings, popularity_counts(training), {})
        best, best_epoch, kept = -1.0, 0, network.state_dict()
        for epoch in range(1, settings.epochs + 1):
            network.train()
            for batch in _batches(sequences, settings=settings, rng=rng):
                optimiser.zero_grad()
                network.loss(batch).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            reached = validation_ndcg(ranker, training.validation)
            if reached > best:
                best, best_epoch = reached, epoch
                kept = {name: value.clone() for name, value in network.state_dict().items()}
            elif epoch - best_epoch >= settings.patience:
                break
        network.load_state_dict(kept)
    chosen = {"dropout": settings.dropout, "width": settings.width, "epochs": best_epoch}
    return SASRec(network, settings, ranker.popularity, chosen)


class Network(nn.Module):
    """Item and position vectors, causal attention blocks, and item vectors again for the logits."""

    def __init__(self, items: int, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.items = nn.Embedding(items, width)
        self.places = nn.Embedding(settings.length, width)
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(width, settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, items: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, n, d) of sequences padded on the right, int64 (B, n), and where they are real, bool (B, n).

        Padding needs no mask: attention is causal, so it is never read. Positions count back from the newest event.
        """
        order = torch.arange(items.shape[1])
        back = (lengths[:, None] - 1 - order).clamp(min=0)  # (B, n)
        x = self.items(items) * self.items.embedding_dim**0.5 + self.places(back)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), order < lengths[:, None]

    def loss(self, sequences: Sequence[NDArray[np.int64]]) -> torch.Tensor:
        """Mean cross-entropy of every next item in the sequences."""
        items, lengths = _pad([sequence[:-1] for sequence in sequences])
        states, real = self(items, lengths)
        targets = torch.from_numpy(np.concatenate([sequence[1:] for sequence in sequences]))
        return CatalogueCrossEntropy.apply(states[real], self.items.weight, targets)  # type: ignore[no-untyped-call]


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each on a normalised copy and added back."""

    def __init__(self, width: int, settings: Settings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.norms = nn.ModuleList((nn.LayerNorm(width), nn.LayerNorm(width)))
        self.read = nn.Linear(width, 3 * width)
        self.write = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(settings.dropout), nn.Linear(width, width)
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = self.read(self.norms[0](x)).unflatten(2, (3, self.heads, -1))  # (B, n, 3, heads, d / heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, heads, n, d / heads)
        x = x + self.dropout(self.write(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feed(self.norms[1](x)))


class CatalogueCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of states (P, d) against item vectors (N, d) with targets int64 (P,).

    Logits are made, turned into gradients and dropped a few rows at a time, so they never leave the cache: three times
    as fast on one core as torch's own loss on a (P, N) matrix, and the same numbers.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        by_state, by_table = torch.empty_like(states), torch.zeros_like(table)
        loss = torch.zeros(())
        for start in range(0, len(states), _ROWS):
            rows = slice(start, start + _ROWS)
            target = targets[rows, None]
            logits = states[rows] @ table.T  # (b, N)
            logits -= logits.amax(1, keepdim=True)
            wanted = logits.gather(1, target)
            total = logits.exp_().sum(1, keepdim=True)
            loss += (total.log() - wanted).sum()
            errors = logits.div_(total).scatter_add_(1, target, torch.full_like(wanted, -1))
            torch.mm(errors, table, out=by_state[rows])
            by_table.addmm_(errors.T, states[rows])
        ctx.save_for_backward(by_state.div_(len(states)), by_table.div_(len(states)))
        return loss / len(states)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        by_state, by_table = ctx.saved_tensors
        return outputs[0] * by_state, outputs[0] * by_table, None


def _batches(
    sequences: Sequence[NDArray[np.int64]], *, settings: Settings, rng: np.random.Generator
) -> Iterator[list[NDArray[np.int64]]]:
    """One epoch in random order: every event that follows another is a target once, pieces of like length together."""
    pieces = [piece for sequence in sequences for piece in _pieces(sequence, length=settings.length, rng=rng)]
    lengths = np.array([len(piece) for piece in pieces])
    order = np.argsort(lengths * rng.uniform(0.9, 1.1, len(pieces)))
    number = np.cumsum(lengths[order] - 1) // settings.batch  # batch of each piece
    batches = np.split(order, np.flatnonzero(np.diff(number)) + 1)
    for index in rng.permutation(len(batches)):
        yield [pieces[row] for row in batches[index]]


def _pieces(sequence: NDArray[np.int64], *, length: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """A sequence cut into pieces of at most `length` + 1 events at a random offset, one event of overlap."""
    offset = int(rng.integers(length)) if len(sequence) > length + 1 else 0
    for start in range(-offset, len(sequence) - 1, length):
        yield sequence[max(start, 0) : start + length + 1]


def _pad(sequences: Sequence[NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Items padded with 0 on the right, int64 (B, n), and lengths, int64 (B,)."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = nn.utils.rnn.pad_sequence([torch.from_numpy(sequence) for sequence in sequences], batch_first=True)
    return padded, lengths
