"""From ranks and lists to the result: numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.config import override
from simulations import evaluation
from simulations.quality import result as results
from simulations.quality.harness import K, Measured
from simulations.quality.result import Questions, benchmark_result
from simulations.quality.slices import withhold
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import ITEMS, tiny_config, write_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Twelve people of two genders, eight events each; nothing is trained."""
    folder = tmp_path_factory.mktemp("result")
    data = write_data(folder / "data")
    (data / "users.dat").write_text("".join(f"u{user}::{'MF'[user % 2]}::25::1::0\n" for user in range(12)))
    return prepare(tiny_config(data), folder / "run")


def measured(
    ranks: list[int],
    *,
    seed: int = 0,
    cases: list[int] | None = None,
    lists: Any = None,
    new: Any = (),
    cold: Any = None,
) -> Measured:
    """A row with these ranks, in both protocols, and the first items of the catalogue as everybody's list."""
    count = len(ranks)
    facts = {
        "settings": {"seed": seed},
        "trains_on": "federation",
        "chosen": {},
        "seconds": {"fit": 2.0, "rank": 0.024},
        "peak_rss_bytes": 10**9,
    }
    return Measured(
        facts=facts,
        cases=np.arange(count) if cases is None else np.array(cases),
        full=np.array(ranks),
        sampled=np.array(ranks),
        lists=np.tile(np.arange(K), (count, 1)) if lists is None else lists,
        new=np.array(new, dtype=np.int64),
        cold=cold or {},
    )


def test_means_are_over_users_and_seeds(run: RunFolder) -> None:
    first, second = [1] * 6 + [113] * 6, [3] * 6 + [113] * 6
    cold = {0: np.array([[1] * 12, [3] * 12])}
    rows = {"ours": [measured(first, cold=cold), measured(second, seed=1, cold=cold)], "flat": [measured([113] * 12)]}
    result = benchmark_result(run, rows, reference="flat")
    assert result["main"] == "NDCG@10"
    ours, flat = result["rows"]["ours"], result["rows"]["flat"]
    assert ours["metrics"]["hr@10"] == 0.5
    assert ours["metrics"]["ndcg@10"] == pytest.approx((0.5 + 0.25) / 2)  # rank 1 is worth 1, rank 3 a half
    assert ours["by_seed"] == [0.5, 0.25]
    assert ours["seeds"] == [0, 1]
    assert ours["against"]["difference"] == pytest.approx(0.375)
    assert ours["against"]["low"] < 0.375 < ours["against"]["high"]
    assert ours["main"]["mean"] == pytest.approx(0.375)
    assert ours["main"]["low"] < 0.375 < ours["main"]["high"]
    assert ours["cold_start"] == {"0": {"hr@10": 1.0, "ndcg@10": 1.0, "ndcg@10_99neg": 0.5}}
    assert ours["rank_ms"] == pytest.approx(2.0)
    assert flat["against"] is None
    assert flat["metrics"]["ndcg@10"] == 0.0
    assert flat["cold_start"] == {}
    # all seven events before the target are seen: 112 others, so the last place is 113
    assert flat["worst_tenth"] == 0.0
    assert ours["worst_tenth"] == 0.0


def test_a_slow_row_is_compared_over_its_own_users(run: RunFolder) -> None:
    rows = {"all": [measured([1] * 6 + [3] * 6)], "some": [measured([3, 3], cases=[2, 9])]}
    found = benchmark_result(run, rows, reference="all")["rows"]
    assert found["some"]["against"]["difference"] == pytest.approx((0.5 + 0.5) / 2 - (1.0 + 0.5) / 2)
    assert found["some"]["users"] == 2
    assert found["some"]["lists"]["coverage"] is None  # few lists cover little
    assert found["some"]["lists"]["gini"] is None
    assert found["some"]["lists"]["tail_share"] is not None
    assert found["all"]["lists"]["coverage"] == pytest.approx(K / ITEMS)
    backwards = benchmark_result(run, rows, reference="some")["rows"]
    assert backwards["all"]["against"]["difference"] == pytest.approx(0.25)


def test_groups_are_those_of_the_users_who_were_asked(run: RunFolder) -> None:
    users = [case.user for case in evaluation.test_cases(run)]
    assert users == list(range(12))
    rows = {"all": [measured([1, 113] * 6)], "some": [measured([1], cases=[4])]}
    found = benchmark_result(run, rows, reference="all")["rows"]
    genders = found["all"]["groups"]["gender"]
    assert {group: (row["users"], row["mean"]) for group, row in genders.items()} == {
        "men": (6, 1.0),
        "women": (6, 0.0),
    }
    assert list(found["some"]["groups"]["gender"]) == ["men"]
    assert found["all"]["groups"]["activity"]["6 events"]["users"] == 12
    assert found["all"]["gaps"] == {"activity": None, "target": None, "gender": None, "age": None}  # all too small


def test_new_items_are_ranked_among_themselves(run: RunFolder, tmp_path: Path) -> None:
    later = withhold(run, tmp_path / "new", items=run.test[:4])
    count = len(evaluation.test_cases(later))
    rows = {"ours": [measured([100] * count, new=[1] * count)], "flat": [measured([100] * count, new=[113] * count)]}
    found = benchmark_result(later, rows, reference="flat")
    assert found["main"] == "NDCG, new items"
    ours = found["rows"]["ours"]
    assert ours["metrics"]["ndcg@10"] == 0.0
    assert ours["metrics"]["hr@10_new"] == ours["metrics"]["ndcg@10_new"] == ours["main"]["mean"] == 1.0
    assert ours["against"]["difference"] == 1.0
    assert ours["by_seed"] == [1.0]
    assert [group["mean"] for group in ours["groups"]["activity"].values()] == [1.0] * len(ours["groups"]["activity"])


def test_lists_are_judged_by_training_counts_vectors_and_tags(run: RunFolder) -> None:
    questions = Questions.of(run)
    assert questions.competitors.tolist() == [ITEMS - 7 - 1] * 12
    assert questions.touched.people.sum() == 12 * 6
    assert questions.shares is None  # these items have no tags
    found = benchmark_result(run, {"flat": [measured([113] * 12)]}, reference="flat")["rows"]["flat"]["lists"]
    expected = questions.touched.people[:K].mean() / 12
    assert found["popularity"] == pytest.approx(expected)
    assert found["tail_share"] == pytest.approx(questions.touched.tail[:K].mean())
    assert found["miscalibration"] is None
    vectors = questions.vectors[:K]
    pairs = [1 - float(vectors[i] @ vectors[j]) for i in range(K) for j in range(i)]
    assert found["diversity"] == pytest.approx(np.mean(pairs), rel=1e-4)


def test_tags_make_lists_comparable_with_histories(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Questions.of(run)
    shares = np.zeros((ITEMS, 2))
    shares[:, 0] = 1.0
    monkeypatch.setattr(results.Questions, "of", classmethod(lambda cls, run: replace(real, shares=shares)))
    found = benchmark_result(run, {"flat": [measured([113] * 12)]}, reference="flat")["rows"]["flat"]["lists"]
    assert found["miscalibration"] == pytest.approx(0.0)


def test_the_result_is_plain_json_without_nan(run: RunFolder) -> None:
    empty = np.full((12, K), -1)
    found = benchmark_result(run, {"none": [measured([113] * 12, lists=empty)]}, reference="none")
    assert found["rows"]["none"]["lists"]["novelty"] is None
    assert json.loads(json.dumps(found, allow_nan=False))["k"] == K


def test_a_world_has_no_attributes_even_where_a_folder_is_called_so(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "users.dat").write_text("broken")
    monkeypatch.chdir(tmp_path)
    world = replace(run, config=override(run.config, "data.source=world"))
    assert set(Questions.of(world).slices) == {"activity", "target"}
