"""Parts of a source, and several sources side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.config import Config, merge
from shared.errors import DataError
from simulations.sources import attributes_of, open_source, parts_of, source_of


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two people in each source, `ana` in both; item `1` in both; one names its domains."""
    shop, films = tmp_path / "shop", tmp_path / "films"
    shop.mkdir()
    films.mkdir()
    (shop / "items.csv").write_text("item,title,domain\n1,Tea,\n2,Cup,kitchen\n3,Pot,kitchen\n")
    (shop / "events.csv").write_text("user,item,timestamp\nben,2,60\nana,1,70\nana,3,80\n")
    (films / "movies.dat").write_text("1::Tea House (1956)::Drama\n2::Cup Final (1991)::War\n", encoding="latin-1")
    (films / "ratings.dat").write_text("ana::2::4::50\nana::1::3::90\ncy::1::5::40\n", encoding="latin-1")
    (films / "users.dat").write_text("ana::F::25::7::90210\ncy::M::35::7::90210\n", encoding="latin-1")
    return shop, films


def both(folders: tuple[Path, Path]) -> str:
    return ", ".join(map(str, folders))


def test_sources_side_by_side_share_nobody_and_nothing(folders: tuple[Path, Path]) -> None:
    data = open_source(both(folders))
    assert data.name == "shop+films"
    assert [item.id for item in data.catalogue.items] == ["shop:1", "shop:2", "shop:3", "films:1", "films:2"]
    assert [item.domain for item in data.catalogue.items] == ["shop", "kitchen", "kitchen", "films", "films"]
    assert data.users == ("shop:ben", "shop:ana", "films:ana", "films:cy")
    ids = np.array([item.id for item in data.catalogue.items])
    histories = {user: ids[data.item[data.of(place)]].tolist() for place, user in enumerate(data.users)}
    assert histories == {
        "shop:ben": ["shop:2"],
        "shop:ana": ["shop:1", "shop:3"],
        "films:ana": ["films:2", "films:1"],
        "films:cy": ["films:1"],
    }
    assert data.time[data.of(2)].tolist() == [50, 90]
    assert data.value[data.of(2)].tolist() == [4, 3]


def test_one_source_without_times_leaves_only_the_order_of_all(folders: tuple[Path, Path]) -> None:
    shop, films = folders
    (films / "ratings.dat").unlink()
    (films / "sequences.txt").write_text("ana 2 1\n")
    data = open_source(both((shop, films)))
    assert not data.has_times
    assert data.catalogue.items[data.item[data.of(1)][1]].title == "Pot"


def test_sources_of_one_name_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "more" / "shop"
    other.mkdir(parents=True)
    for file in folders[0].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"found the names shop, shop; expected different ones\. Rename a folder"):
        open_source(f"{folders[0]},{other}")


def test_a_folder_with_a_comma_in_its_name_is_one_source(tmp_path: Path) -> None:
    folder = tmp_path / "a,b"
    folder.mkdir()
    assert parts_of(str(folder)) == [str(folder)]
    assert parts_of("a, b,") == ["a", "b"]


def test_attributes_follow_their_people(folders: tuple[Path, Path]) -> None:
    alone = merge(Config(), {"data": {"source": str(folders[1])}})
    assert attributes_of(alone)["gender"] == {"ana": "women", "cy": "men"}
    together = merge(Config(), {"data": {"source": f"{both(folders)},world"}})
    assert attributes_of(together)["gender"] == {"films:ana": "women", "films:cy": "men"}
    assert attributes_of(Config()) == {}


def with_domains(source: str, *domains: str) -> Config:
    return merge(Config(), {"data": {"source": source, "domains": list(domains), "world_users": 12}})


def test_only_items_of_the_wanted_domains_and_their_events_stay(folders: tuple[Path, Path]) -> None:
    data = source_of(with_domains(both(folders), "kitchen", "films"))
    assert [item.id for item in data.catalogue.items] == ["shop:2", "shop:3", "films:1", "films:2"]
    assert data.users == ("shop:ben", "shop:ana", "films:ana", "films:cy")
    assert [data.catalogue.items[i].id for i in data.item[data.of(1)]] == ["shop:3"]
    assert source_of(with_domains(both(folders), "shop")).users == ("shop:ana",)


def test_the_world_has_four_domains_to_choose_from() -> None:
    whole, news = source_of(with_domains("world")), source_of(with_domains("world", "news"))
    assert {item.domain for item in whole.catalogue.items} == {"films", "shop", "music", "news"}
    assert {item.domain for item in news.catalogue.items} == {"news"}
    kept = {item.id for item in news.catalogue.items}
    assert len(news) == sum(whole.catalogue.items[item].id in kept for item in whole.item)


def test_a_domain_that_is_not_there_is_refused_with_those_that_are(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"no item of domain 'kitchn'; expected one of films, kitchen, shop"):
        source_of(with_domains(both(folders), "kitchn"))
    (folders[0] / "items.csv").write_text("item,title\n1,Tea\n2,Cup\n3,Pot\n")
    with pytest.raises(DataError, match="expected one of none, as its items name no domain"):
        source_of(with_domains(str(folders[0]), "shop"))


def test_a_domain_that_nobody_touched_is_refused(folders: tuple[Path, Path]) -> None:
    with (folders[0] / "items.csv").open("a") as handle:
        handle.write("4,Spade,garden\n")
    with pytest.raises(DataError, match="found no event on items of garden; add a domain"):
        source_of(with_domains(str(folders[0]), "garden"))
