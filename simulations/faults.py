"""What can happen to one device's reply, and what the server counts it as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray


def _nothing(content: RecordDict) -> None:
    return None


@dataclass(frozen=True)
class Fault:
    """counted_as: the server's code for such a reply; "" where the reply is used, after clipping.

    spoil: changes a sound reply in place. Faults of the device or the network change nothing.
    """

    counted_as: str
    spoil: Callable[[RecordDict], None] = _nothing


def _packed(change: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        arrays = content.array_records["arrays"]
        arrays["packed"] = Array(change(arrays["packed"].numpy()))

    return spoil


def _last_entry(value: float) -> Callable[[RecordDict], None]:
    return _packed(lambda packed: np.append(packed[:-1], np.float32(value)))


def _address(**changes: int) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        address = content.config_records["config"]
        for name, by in changes.items():
            address[name] = int(str(address[name])) + by

    return spoil


def _garbage(content: RecordDict) -> None:
    arrays = content.array_records["arrays"]
    sound = arrays["packed"]
    noise = np.random.default_rng(len(sound.data)).bytes(len(sound.data))
    arrays["packed"] = Array(dtype=sound.dtype, shape=sound.shape, stype=sound.stype, data=noise)


def _extra_key(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({"num-examples": 10**9})


def _missing_key(content: RecordDict) -> None:
    del content["arrays"]


def _unknown_refusal(content: RecordDict) -> None:
    del content["arrays"]
    content["config"] = ConfigRecord({**content.config_records["config"], "refusal": "not on the list"})


FAULTS = {
    "drop-out": Fault("late"),  # never computes an answer
    "straggler": Fault("late"),  # computes it, and it arrives after the deadline
    "exception": Fault("no-answer"),
    "duplicate": Fault("duplicate"),  # the first of the two counts
    "nan": Fault("not-finite", _last_entry(np.nan)),
    "infinity": Fault("not-finite", _last_entry(-np.inf)),
    "huge": Fault("", _packed(lambda packed: packed * np.float32(1e6))),
    "zero": Fault("", _packed(np.zeros_like)),
    "wrong-shape": Fault("bad-shape", _packed(lambda packed: np.append(packed, np.float32(0)))),
    "wrong-dtype": Fault("bad-shape", _packed(lambda packed: packed.astype(np.float64))),
    "garbage": Fault("bad-shape", _garbage),
    "extra-key": Fault("bad-message", _extra_key),
    "missing-key": Fault("bad-message", _missing_key),
    "replay": Fault("bad-message", _address(round=-1)),  # a reply to an earlier round's question
    "newer-schema": Fault("bad-message", _address(schema=1)),
    "unknown-refusal": Fault("bad-message", _unknown_refusal),
}
