"""One device's part of a round: Opacus DP-SGD on the trainable parameters, and noisy counts.

The *sum* of clipped per-window gradients is released, never a mean, so one window changes it by at most
`clip_norm` whatever the number of windows.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import nn

from shared.adapter import AdapterState
from shared.errors import PrivacyError
from shared.items import ItemTable
from shared.model import Scale, Scorer, read_parameters, trainable
from shared.windows import Windows

#: A seed whose place in torch's random state shows where the state's words are.
_PROBE = 0x5EED5EED

_HOOK_WARNING = "Full backward hook is firing when gradients are computed"

#: Windows that go through the model together; a longer history is accumulated in pieces of this size.
CHUNK = 16


@register_grad_sampler(Scale)
def _scale_grad_sample(
    layer: Scale, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    per_sample = (activations[0] * backprops).flatten(1).sum(1, keepdim=True)  # (B, 1)
    return {layer.weight: per_sample}


@dataclass(frozen=True)
class Step:
    """What a local step is told.

    noise_multiplier: z of the noise this device adds itself (its share under trust = aggregate). 0 adds none.
    clip_norm: C, infinity for no clipping. names: parameters that train this round; the others stay frozen.
    """

    steps: int
    learning_rate: float
    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.noise_multiplier > 0 and not math.isfinite(self.clip_norm):
            raise PrivacyError("found noise without a clip norm; noise is calibrated to a finite clip")

    @property
    def private(self) -> bool:
        """Whether per-window gradients are needed."""
        return self.noise_multiplier > 0 or math.isfinite(self.clip_norm)


def train_locally(
    scorer: Scorer, windows: Windows, table: ItemTable, *, step: Step, seed: int | None = None
) -> AdapterState:
    """Run `step.steps` steps and return the change of the named parameters.

    The change after one step is `-lr * (sum over sampled windows of clip(gradient, C) + N(0, (z C)^2 I))`.

    | case | result |
    |---|---|
    | no window, or none sampled | noise only (zero without noise): a device without data answers too |
    | z = 0, C infinite | plain SGD on the sum of window losses |
    | private and a window's gradient has NaN or infinite entries | those entries count as 0 |
    | seed given | deterministic; only a simulation may do that |

    The scorer's parameters are changed; install an adapter again before ranking with it.
    """
    before = AdapterState(read_parameters(scorer)).select(step.names)
    generator = make_generator(seed)
    with _only(scorer, step.names) as parameters, _lora_dropout(scorer, generator):
        optimiser = torch.optim.SGD(parameters, lr=step.learning_rate)
        if step.private:
            _private_steps(scorer, windows, table, step=step, optimiser=optimiser, generator=generator)
        else:
            for rows in _batches(len(windows), step, generator):
                optimiser.zero_grad()
                for chunk in torch.split(rows, CHUNK) if len(rows) else ():
                    _backward(scorer, windows.pick(chunk), table)
                optimiser.step()
    return AdapterState(read_parameters(scorer)).select(step.names) - before


def _private_steps(
    scorer: Scorer,
    windows: Windows,
    table: ItemTable,
    *,
    step: Step,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    # Opacus walks over every module of what it is given, several times; the frozen ones are left out.
    training = [
        module
        for module in scorer.modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    ]
    hooks = GradSampleHooks(torch.nn.ModuleList(training), loss_reduction="sum", strict=False)
    private = DPOptimizer(
        optimiser,
        noise_multiplier=step.noise_multiplier,
        max_grad_norm=min(step.clip_norm, 1e30),  # Opacus multiplies it with 0 noise: infinity would give NaN
        expected_batch_size=1,
        loss_reduction="sum",
        generator=generator,
        secure_mode=True,
    )
    try:
        for rows in _batches(len(windows), step, generator):
            private.zero_grad()
            chunks = torch.split(rows, CHUNK)
            for number, chunk in enumerate(chunks):
                if len(chunk):
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", message=_HOOK_WARNING, category=UserWarning)
                        _backward(scorer, windows.pick(chunk), table)
                    for parameter in private.params:  # clipping cannot bound NaN or infinity
                        parameter.grad_sample.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
                else:
                    for parameter in private.params:
                        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
                private.signal_skip_step(number < len(chunks) - 1)
                private.step()
                private.zero_grad()
    finally:
        hooks.cleanup()
        for module in training:  # Opacus leaves these, and a failed step leaves them full
            vars(module).pop("activations", None)
            vars(module).pop("max_batch_len", None)


def _backward(scorer: Scorer, windows: Windows, table: ItemTable) -> None:
    torch.autograd.backward(scorer.window_losses(windows, table).sum())


def _batches(count: int, step: Step, generator: torch.Generator) -> list[torch.Tensor]:
    """Row numbers of each step's Poisson batch, int64; possibly empty."""
    if count == 0:
        return [torch.zeros(0, dtype=torch.long)] * step.steps
    if step.sample_rate == 1.0:
        return [torch.arange(count)] * step.steps
    sampler = UniformWithReplacementSampler(
        num_samples=count, sample_rate=step.sample_rate, generator=generator, steps=step.steps
    )
    return [torch.tensor(rows, dtype=torch.long) for rows in sampler]


class _only:
    """Freeze every trainable parameter but the named ones, before Opacus looks at the model, and undo it."""

    def __init__(self, scorer: Scorer, names: Sequence[str]) -> None:
        self._all = trainable(scorer)
        self._names = set(names)

    def __enter__(self) -> list[torch.nn.Parameter]:
        for name, parameter in self._all.items():
            parameter.requires_grad_(name in self._names)
        return [parameter for name, parameter in self._all.items() if name in self._names]

    def __exit__(self, *exc: object) -> None:
        for parameter in self._all.values():
            parameter.requires_grad_(True)
            parameter.grad = None


@contextmanager
def _lora_dropout(scorer: Scorer, generator: torch.Generator) -> Iterator[None]:
    """Dropout on the adapters' inputs while training, drawn from `generator`; ranking drops nothing."""
    layers = [
        module
        for name, module in scorer.named_modules()
        if ".lora_dropout." in name and isinstance(module, torch.nn.Dropout)
    ]
    if not layers:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()


def make_generator(seed: int | None) -> torch.Generator:
    """A torch generator whose whole state comes from the operating system, or from `seed` in a simulation.

    `manual_seed` keeps 32 bits of a seed: few enough to try them all and subtract the noise. So the 624 words
    of the Mersenne Twister are drawn instead.
    """
    generator = torch.Generator().manual_seed(_PROBE if seed is None else seed)
    if seed is None:
        state = generator.get_state().numpy()
        words = state[24 : 24 + 8 * 624].view(np.uint64)
        if words[0] != _PROBE:
            raise PrivacyError("this torch keeps its random state elsewhere; noise cannot be seeded safely")
        words[:] = np.frombuffer(secrets.token_bytes(4 * 624), dtype=np.uint32)
        generator.set_state(torch.from_numpy(state))
    return generator


def clipped_popularity(items: Sequence[NDArray[np.int64]], *, count: int, clip: float) -> NDArray[np.float32]:
    """Sum over windows of item counts clipped to L2 norm `clip`; float32 (count,).

    One window changes the sum by at most `clip` in L2 norm. items: the positive items of each window.
    """
    total = np.zeros(count)
    for window in items:
        counts = np.bincount(window, minlength=count).astype(np.float64)
        norm = float(np.linalg.norm(counts))
        total += counts * min(1.0, clip / norm) if norm else 0.0
    return total.astype(np.float32)


def gaussian(count: int, *, std: float, seed: int | None) -> NDArray[np.float64]:
    """Gaussian noise, float64 (count,); seeded by the operating system unless a seed is given."""
    if std == 0:
        return np.zeros(count)
    return np.random.default_rng(seed).normal(0.0, std, count)
