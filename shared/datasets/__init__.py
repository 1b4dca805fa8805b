"""Behaviour data: one front door for every accepted source, and the splits that turn it into an evaluation.

The formats, the ordering rule and the splits are documented for users in `docs/data.md`.
"""

from shared.datasets.checks import DataReport, inspect
from shared.datasets.interactions import EventColumns, Interactions
from shared.datasets.sources import load_data
from shared.datasets.splits import Split, leave_one_out, make_split, temporal

__all__ = [
    "DataReport",
    "EventColumns",
    "Interactions",
    "Split",
    "inspect",
    "leave_one_out",
    "load_data",
    "make_split",
    "temporal",
]
