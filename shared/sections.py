"""The sections of a configuration: what each setting is called, its default, and what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def doc(default: Any, text: str) -> Any:
    """A field with a default, and with the line that docs/configuration.md shows."""
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True)
class Data:
    """Where behaviour comes from and how it is split."""

    source: str = doc("world", "`world`, or a data folder, or several with commas between (see docs/data.md)")
    domains: tuple[str, ...] = doc((), "keep only items of these domains, and what was done with them; none: keep all")
    split: str = doc("leave-one-out", "`leave-one-out` or `temporal`")
    min_item_count: int = doc(0, "drop items with fewer interactions than this; 0 keeps all")
    world_users: int = doc(300, "people in the synthetic world")
    world_events: int = doc(60, "median events per person in the synthetic world")
    world_context: bool = doc(False, "let breaks, hours and values matter in the synthetic world")


@dataclass(frozen=True)
class Model:
    """The scorer around the frozen backbone."""

    backbone: str = doc("minilm", "registry name, model folder or cached hub id")
    blocks: int = doc(2, "how many of the backbone's first blocks read the history")
    history: int = doc(64, "events in one window L; also the longest history the ranker reads")
    input_rank: int = doc(0, "rank of the learned input projection; 0 uses the item vectors as they are")
    output_rank: int = doc(0, "rank of the learned output projection, started in a public basis; 0: full matrix")
    output_dim: int = doc(384, "leading whitened directions k the output projection predicts; capped at the width")
    identity: int = doc(0, "directions of item codes beside their text, the same for everyone; capped at what fits")
    input_codes: int = doc(0, "directions of the item codes that a learned input projection reads; 0: none")
    directions: str = doc(
        "catalogue",
        "principal directions of item vectors: the `catalogue`'s own, or the `backbone`'s, so that parameters move on",
    )
    whitening: float = doc(0.5, "exponent of the whitening of output vectors, 0 (none) to 1 (flat spectrum)")
    output_scale: float = doc(10.0, "root-mean-square length of the output vectors")
    token_scale: float = doc(1.0, "factor on the item vectors that the history trunk reads")
    context: tuple[str, ...] = doc(("kind", "gap"), "what is read beside items: kind, gap, value, hour, attributes")
    gamma: float = doc(10.0, "start value of the content weight")
    beta: float = doc(0.5, "start value of the popularity weight")
    content_half_life: float = doc(2.0, "events after which an event counts half in content(u)")
    content_whitening: float = doc(0.0, "exponent of the whitening of the vectors that content compares, 0 to 1")
    sharpness: float = doc(0.0, "0: content likes what is near the mean of a history; large: near any event of it")


@dataclass(frozen=True)
class Prior:
    """The closed-form prior that devices' moments are summed into once, before training."""

    half_lives: tuple[float, ...] = doc((2.0,), "events after which one counts half, one per feature; none: no prior")
    widths: tuple[int, ...] = doc((), "directions of the item codes read at each half-life; none: as many as output")
    output: int = doc(64, "directions of the item codes that are predicted")
    ridge: float = doc(30.0, "ridge penalty lambda, in events")
    kappa: float = doc(1.3, "weight of the logarithm of the prior's estimate in the score")
    floor: float = doc(0.6, "popularity share that the prior's estimate of an item does not fall below")
    gamma: float = doc(0.0, "weight of content beside a prior")
    beta: float = doc(0.0, "weight of popularity beside a prior")
    fusion: float = doc(1.3, "weight of the prior's standardised estimate in a ranking, not in training")
    folds: int = doc(1, "groups of devices; each trains against the prior of the other ones. 1: against its own")
    skip_penalty: float = doc(0.0, "what a skip counts against its item in the prior's features; a like counts 1")
    clip: float = doc(1.0, "L2 clip of a window's or device's moments; without privacy for secure aggregation only")


@dataclass(frozen=True)
class Lora:
    """The LoRA adapter on the backbone."""

    rank: int = doc(4, "rank r of the adapters")
    alpha: int = doc(8, "LoRA scale numerator; the update is (alpha / r) B A")
    dropout: float = doc(0.0, "dropout on the adapter's input during training")
    targets: tuple[str, ...] = doc(("q", "v"), "projections that carry LoRA: q, k, v, o (o: Llama and Qwen2)")
    blocks: int = doc(1, "how many of the upper blocks carry LoRA; 0 means all of them")


@dataclass(frozen=True)
class Training:
    """What one device does in one round."""

    local_steps: int = doc(1, "Opacus steps per round; more than 1 needs trust = local or privacy = none")
    local_learning_rate: float = doc(1.0, "step size of the device's SGD; the server optimiser scales the result")
    window_sample_rate: float = doc(1.0, "Poisson rate q at which each event window joins a step")
    clip_norm: float = doc(1.0, "per-window L2 clip C under privacy = event; without privacy nothing is clipped")


@dataclass(frozen=True)
class Privacy:
    """What is protected, against whom, and how much is spent over a device's life."""

    mode: str = doc("none", "`none`, `event` (unit: one window of events), `user` (unit: one person) or `both`")
    trust: str = doc("aggregate", "`aggregate`: the sum meets epsilon; `local`: each device's reply alone does")
    epsilon: float = doc(8.0, "budget of one unit over a device's whole life, at `delta`, all releases added up")
    user_epsilon: float = doc(0.0, "with mode `both`, the budget at user level; 0: the same as epsilon")
    delta: float = doc(1e-5, "probability with which the epsilon guarantee may fail")
    popularity_share: float = doc(0.1, "part of the budget spent on the popularity count")
    prior_share: float = doc(0.3, "part of the budget spent on the prior's moments, when there is a prior")
    validation_share: float = doc(0.1, "part of the budget spent on comparing the result with the start")
    user_clip: float = doc(1.0, "L2 clip of a device's whole update under modes user and both, and secure aggregation")
    clip_quantile: float = doc(0.0, "adapt user_clip to this quantile of update norms, privately; 0: keep it fixed")
    quantile_share: float = doc(0.02, "part of each training round's budget spent on the clip's quantile")
    clip_learning_rate: float = doc(0.2, "step size of the adaptive clip, on a logarithmic scale")
    noise_bands: int = doc(1, "rounds over which the server's noise is anticorrelated; 1: independent noise")


@dataclass(frozen=True)
class Federation:
    """Rounds, cohorts and what the server does with updates."""

    engine: str = doc("inline", "`inline` (one process) or `ray` (Flower's simulation runtime)")
    rounds: int = doc(20, "training rounds")
    cohort: int = doc(64, "planned devices per round K; the sum of updates is always divided by it")
    survey: int = doc(0, "devices asked for the popularity count, the prior and the comparison; 0: all of them")
    sampling: str = doc(
        "shuffled",
        "`shuffled`: each device once per pass; `cyclic`: the same in one order; `poisson`: each joins with rate K/N",
    )
    aggregation: str = doc("alternate", "`alternate`, `ffa` or `fedit`: which LoRA factors train in a round")
    server_optimizer: str = doc("adam", "`adam` (FedAdam) or `sgd` (FedAvg at learning rate 1)")
    server_learning_rate: float = doc(1e-3, "step size of the server optimiser")
    server_momentum: float = doc(0.9, "first-moment decay of the server optimiser")
    learning_rate_decay: bool = doc(True, "let the server's step size fall linearly to 5 % over the rounds")
    start_from: str = doc("", "adapter folder of an earlier run, whose parameters this run starts from")
    anchor: float = doc(0.0, "part of the way back to its start that each step takes, times the schedule; 0: none")
    average_last: float = doc(0.0, "share of the last rounds whose adapters are averaged into the result")
    quorum: float = doc(0.6, "least share of the planned devices that must reply for a release")
    minimum_devices: int = doc(1, "wait until so many devices are connected; a simulation waits for all of its own")
    reply_timeout: float = doc(600.0, "seconds to wait for a cohort's replies")
    secure_aggregation: bool = doc(False, "SecAgg+: the server learns the sum of a cohort and no single reply")
    robust: tuple[str, ...] = doc((), "robust rules, left to right: norm-filter, median, trimmed-mean, multi-krum")
    robust_share: float = doc(0.2, "share of hostile devices that the robust rules allow for")


@dataclass(frozen=True)
class Simulation:
    """What only a simulator does to its devices."""

    chaos: float = doc(0.0, "probability with which a fault is injected into each message and each step of the server")


@dataclass(frozen=True)
class Evaluation:
    """What the simulator measures. None of it steers training."""

    every: int = doc(5, "rounds between points of the quality curve; 0 for none")
    curve_users: int = doc(300, "devices in the quality curve (validation items)")
    test_users: int = doc(0, "devices whose test items are ranked, drawn at random; 0: all of them")
    local_only_users: int = doc(40, "devices in the local-only comparison; 0 skips it")
    bootstrap: int = doc(2000, "resamples behind each 95 % interval")
