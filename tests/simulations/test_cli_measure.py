"""The commands that attack the system: exit codes, and one object on stdout."""

from __future__ import annotations

import json

import pytest

from server.aggregation import Aggregator
from simulations.audit import aggregator
from tests.simulations.planted_bugs import BUGS
from tests.simulations.tiny_runs import invoke

QUICK = ("audit", "--epsilon", "2", "--groups", "128", "--canaries", "16", "--trials", "0", "--seed", "1", "--json")


def test_an_audit_of_the_real_aggregator_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(*QUICK) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed"]
    assert 0 <= answer["aggregator"]["lower_bound"] <= 2


def test_an_audit_that_refutes_its_claim_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = next(make for name, make in BUGS.items() if name.startswith("noise scaled"))
    assert broken is not Aggregator
    real = aggregator.audit_aggregator
    monkeypatch.setattr(
        aggregator,
        "audit_aggregator",
        lambda claim, *, groups, canaries, seed: real(
            claim, make_aggregator=broken, groups=groups, canaries=canaries, seed=seed
        ),
    )
    assert invoke(*QUICK) == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["passed"]
    assert max(answer["aggregator"]["lower_bound"], answer["aggregator"]["lower_bound_gaussian"]) > 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "--epsilon", "-1"),
        ("audit", "--delta", "2"),
        ("benchmark", "robustness", "--attack", "flattery"),
        ("benchmark", "robustness", "--defence", "hope"),
    ],
)
def test_what_makes_no_sense_is_said_to_be_so(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(*arguments) == 2
    assert "expected" in capsys.readouterr().err
