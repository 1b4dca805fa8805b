"""What MovieLens says about its users: gender and age.

A simulator, which holds the whole file, reports quality by these groups. A device's own model reads those of its person
where `model.context` names attributes; no device sends them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

from shared.datasets.files import Table, read_delimited

#: First year of each age group; MovieLens 1M names its groups by these numbers.
AGE_GROUPS = {0: "17 and under", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56 and over"}
GENDERS = {"F": "women", "M": "men"}

Attributes = Mapping[str, Mapping[str, str]]


def read_attributes(source: str | Path) -> Attributes:
    """Attribute -> user id -> group; empty for a source that says nothing about its users.

    Knows `users.dat` (MovieLens 1M) and `u.user` (MovieLens 100K). Raises DataError naming the place of a bad cell.
    """
    folder = Path(source).expanduser()
    if (folder / "users.dat").is_file():
        names = ("user", "gender", "age", "occupation", "zip")
        return _groups(read_delimited(folder / "users.dat", separator="::", names=names))
    if (folder / "u.user").is_file():
        names = ("user", "age", "gender", "occupation", "zip")
        return _groups(read_delimited(folder / "u.user", separator="|", names=names))
    return {}


def _groups(table: Table) -> Attributes:
    genders, ages = {}, {}
    for row, user in enumerate(table.columns["user"]):
        gender, age = table.columns["gender"][row], table.columns["age"][row]
        if gender not in GENDERS:
            raise table.error(row, "gender", found=repr(gender), expected=" or ".join(GENDERS))
        if not age.isascii() or not age.isdigit():
            raise table.error(row, "age", found=repr(age), expected="a whole number of years")
        genders[user] = GENDERS[gender]
        ages[user] = list(AGE_GROUPS.values())[bisect_right(list(AGE_GROUPS), int(age)) - 1]
    return {"gender": genders, "age": ages}
