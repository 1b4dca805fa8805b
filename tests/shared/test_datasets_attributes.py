"""What MovieLens says about its users."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.datasets.attributes import AGE_GROUPS, read_attributes
from shared.errors import DataError


def test_movielens_1m(tmp_path: Path) -> None:
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n")
    assert read_attributes(tmp_path) == {
        "gender": {"1": "women", "2": "men", "3": "men"},
        "age": {"1": "17 and under", "2": "56 and over", "3": "25-34"},
    }


def test_movielens_100k_has_years_and_gets_the_same_groups(tmp_path: Path) -> None:
    ages = {"17": "17 and under", "18": "18-24", "24": "18-24", "49": "45-49", "50": "50-55", "73": "56 and over"}
    lines = [f"{number}|{age}|M|writer|85711" for number, age in enumerate(ages)]
    (tmp_path / "u.user").write_text("\n".join(lines) + "\n")
    found = read_attributes(str(tmp_path))
    assert list(found["age"].values()) == list(ages.values())
    assert set(found["age"].values()) <= set(AGE_GROUPS.values())


def test_a_source_may_say_nothing(tmp_path: Path) -> None:
    assert read_attributes(tmp_path) == {}
    assert read_attributes(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("line", "place"), [("2::X::25::1::0", "gender"), ("2::M::old::1::0", "age"), ("2::M::-1::1::0", "age")]
)
def test_a_bad_cell_is_named(tmp_path: Path, line: str, place: str) -> None:
    (tmp_path / "users.dat").write_text(f"1::F::1::10::48067\n{line}\n")
    with pytest.raises(DataError, match=f"line 2, column {place}"):
        read_attributes(tmp_path)
