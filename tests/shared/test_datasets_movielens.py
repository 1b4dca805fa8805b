"""The MovieLens layouts on small files, and on the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.datasets import Interactions, inspect, leave_one_out, load_data
from shared.errors import DataError
from shared.schema import EventKind


def film_line(item: str, title: str, genres: set[int]) -> str:
    flags = "|".join("1" if position in genres else "0" for position in range(19))
    return f"{item}|{title}|01-Jan-1995||http://example.org|{flags}\n"


def write_100k(folder: Path, *, ratings: str = "7\t2\t3\t50\n7\t1\t5\t40\n9\t1\t4\t10\n") -> Path:
    films = film_line("1", "Toy Story (1995)", {3, 4, 5}) + film_line("2", "Misérables, Les (1995)", {8})
    films += film_line("267", "unknown", {0})
    (folder / "u.item").write_text(films, encoding="latin-1")
    (folder / "u.data").write_text(ratings)
    return folder


def write_1m(folder: Path) -> Path:
    films = "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Café (1999)::Drama\n3::Unseen (2000)::War\n"
    (folder / "movies.dat").write_text(films, encoding="latin-1")
    return folder


def test_100k_folder(tmp_path: Path) -> None:
    data = load_data(write_100k(tmp_path))
    assert data.name == "ml-100k"
    assert data.users == ("7", "9")
    assert [item.id for item in data.catalogue.items] == ["1", "2"]  # nobody rated 267
    assert data.catalogue.texts == [
        "Toy Story (1995). Animation, Children's, Comedy",
        "Misérables, Les (1995). Drama",
    ]
    assert data.catalogue.items[0].tags == ("Animation", "Children's", "Comedy")
    assert data.catalogue.items[0].domain == "films"
    assert data.item.tolist() == [0, 1, 0]
    assert data.time.tolist() == [40.0, 50.0, 10.0]
    assert data.value.tolist() == [5.0, 3.0, 4.0]
    assert (data.kind == EventKind.RATING).all()


def test_unknown_is_not_a_genre(tmp_path: Path) -> None:
    data = load_data(write_100k(tmp_path, ratings="7\t267\t3\t50\n"))
    assert data.catalogue.texts == ["unknown"]


def test_ratings_dat_is_preferred_to_sequences(tmp_path: Path) -> None:
    write_1m(tmp_path)
    (tmp_path / "sequences.txt").write_text("1 2 1\n")
    order = load_data(tmp_path)
    assert (order.name, order.has_times, order.item.tolist()) == ("ml-1m", False, [1, 0])
    assert np.isnan(order.value).all()
    (tmp_path / "ratings.dat").write_text("1::1::5::978300760\n1::2::3::978300700\n")
    timed = load_data(tmp_path)
    assert timed.has_times
    assert timed.item.tolist() == [1, 0]
    assert timed.value.tolist() == [3.0, 5.0]
    assert timed.catalogue.texts == ["Toy Story (1995). Animation, Children's, Comedy", "Café (1999). Drama"]


def test_windows_line_ends(tmp_path: Path) -> None:
    write_1m(tmp_path)
    (tmp_path / "ratings.dat").write_bytes(b"1::1::5::978300760\r\n1::2::3::978300700\r\n\r\n")
    assert len(load_data(tmp_path)) == 2


def test_csv_folder(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n2,Odd,(no genres listed)\n'
    )
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n5,2,0.5,20\n5,1,4.5,10\n")
    data = load_data(tmp_path)
    assert data.catalogue.texts == ["American President, The (1995). Comedy, Drama", "Odd"]
    assert data.item.tolist() == [0, 1]
    assert data.value.tolist() == [4.5, 0.5]


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ("7\t1\t3\n", r"u\.data, line 1: found 3 fields; expected 4 fields separated by '\\t'"),
        ("7\t1\t3\t5\n7 2 3 5\n", r"u\.data, line 2: found 1 field; expected 4"),
        ("7\t1\tgood\t5\n", r"line 1, column rating: found 'good'; expected a number"),
        ("7\t1\tnan\t5\n", r"line 1, column rating: found 'nan'; expected a number"),
        ("7\t1\t3\tnoon\n", r"line 1, column timestamp: found 'noon'; expected seconds UTC or an ISO 8601"),
        ("7\t1\t3\t880000000000\n", r"milliseconds: divide by 1000"),
        (
            "7\t1\t3\t5\n7\t99\t3\t5\n7\t98\t3\t5\n",
            r"line 2, column item: found unknown item id '99'.*2 events",
        ),
        ("\t1\t3\t5\n", r"line 1, column user: found an empty id"),
        ("", r"u\.data, line 1: found an empty file"),
    ],
)
def test_bad_ratings_name_their_place(tmp_path: Path, ratings: str, message: str) -> None:
    write_100k(tmp_path, ratings=ratings)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


def test_bad_films_name_their_place(tmp_path: Path) -> None:
    write_100k(tmp_path)
    good = film_line("1", "Toy Story (1995)", {3})
    for films, message in [
        (good + good, "line 2, column item: found item id '1' again"),
        (good + film_line("2", " ", {3}), "line 2, column title: found an empty title"),
        (good.replace("|1|", "|yes|"), "line 1, column Animation: found 'yes'; expected 0 or 1"),
    ]:
        (tmp_path / "u.item").write_text(films, encoding="latin-1")
        with pytest.raises(DataError, match=message):
            load_data(tmp_path)
    (tmp_path / "u.item").unlink()
    with pytest.raises(DataError, match=r"u\.item: found No such file"):
        load_data(tmp_path)


def test_csv_headers_are_required(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,A,Drama\n")
    (tmp_path / "ratings.csv").write_text("userId,movieId,stars,timestamp\n5,1,4,20\n")
    with pytest.raises(DataError, match=r"ratings\.csv, line 1, column rating: found only the columns userId"):
        load_data(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    with pytest.raises(DataError, match=r"ratings\.csv, line 1: found no rows"):
        load_data(tmp_path)
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n")
    with pytest.raises(DataError, match=r"movies\.csv, line 1: found no rows"):
        load_data(tmp_path)


def counts(data: Interactions) -> tuple[int, int, int]:
    return len(data.users), len(data.catalogue), len(data)


@pytest.mark.slow
def test_real_100k(real_data: Callable[[str], Path]) -> None:
    data = load_data(real_data("ml-100k"))
    report = inspect(data)
    assert counts(data) == (943, 1_682, 100_000)
    assert report.users_tied_at_end == 415  # 44 % of the users
    assert report.first == "1997-09-20T03:05:10Z"
    assert (leave_one_out(data).test >= 0).all()
    assert len(data.with_min_item_count(5).catalogue) == 1_349
    # by hand: `awk '$1==1' u.data | sort -s -n -k4`; user 1 ties at both ends
    ids = [data.catalogue.items[item].id for item in data.item[data.of(data.user_index("1"))]]
    assert ids[:3] == ["168", "172", "165"]
    assert ids[-3:] == ["5", "74", "102"]


@pytest.mark.slow
def test_real_1m(real_data: Callable[[str], Path]) -> None:
    data = load_data(real_data("ml-1m"))
    assert counts(data) == (6_040, 3_416, 999_528)
    assert not data.has_times
    first = [data.catalogue.items[item].id for item in data.item[data.of(0)][:3]]
    assert first == ["3186", "1270", "1721"]
