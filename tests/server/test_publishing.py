"""An operator publishes what the ledger vouches for, in versions that only rise."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.publishing import latest_version, publish, published
from server.signing import signing_key
from shared.artifacts import write_json
from shared.errors import AdapterError, DeploymentError, PrivacyError, RunError
from shared.releases import LATEST, key_id, read_key, verify_release
from simulations.runfolder import RunFolder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A deployment folder without a ledger."""
    folder = tmp_path / "deployment"
    folder.mkdir()
    return folder


@pytest.fixture
def run(calm: RunFolder, tmp_path: Path) -> Path:
    """A copy of a private run in a simulation, with its ledger."""
    return Path(shutil.copytree(calm.path, tmp_path / "run"))


@pytest.fixture
def real(run: Path, place: Path) -> Path:
    """The same as a deployment would have left it: charged to the deployment's ledger, and no virtual devices."""
    for file in run.glob("devices.sqlite*"):
        file.unlink()
    for file in run.glob("server-ledger.*"):
        shutil.move(file, place / file.name.replace("server-ledger", "ledger"))
    return run


def change_json(path: Path, **values: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


# --- what is published -------------------------------------------------------------------------------------


def test_a_run_of_real_devices_becomes_a_release_that_verifies(real: Path, place: Path) -> None:
    before = int(time.time())
    release, new = publish(place, real, name="first")
    manifest = json.loads((real / "adapter" / "homerank.json").read_text())
    assert new
    assert (release.version, release.name, release.origin) == (1, "first", "deployment")
    assert before <= release.created <= time.time()
    assert (release.run, release.backbone, release.backbone_name) == (
        manifest["run"],
        manifest["backbone"],
        "tiny-bert",
    )
    key = read_key((place / "release.pub").read_text())
    assert verify_release(place / "releases" / "1", key=key) == release
    assert json.loads((place / "releases" / LATEST).read_text()) == {"schema": 1, "version": 1}
    for name in release.files:
        assert (place / "releases" / "1" / name).read_bytes() == (real / "adapter" / name).read_bytes()


def test_what_devices_pin_is_the_key_the_authority_and_the_address(real: Path, place: Path) -> None:
    (place / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (place / "server.json").write_text('{"public": "example.org:8443", "port": 1}')
    publish(place, real)
    assert json.loads((place / "publisher.json").read_text())["url"] == "https://example.org:8443/v1/releases"
    publish(place, real, url="https://host/releases")
    publish(place, real)  # keeps the address
    facts = json.loads((place / "publisher.json").read_text())
    assert key_id(read_key(facts["key"])) == key_id(signing_key(place).public_key())
    assert (facts["ca"], facts["url"]) == ("-----BEGIN CERTIFICATE-----\n", "https://host/releases")


def test_the_same_adapter_is_one_release_and_another_is_the_next(real: Path, place: Path) -> None:
    first, _ = publish(place, real)
    (place / "releases" / LATEST).unlink()  # as after a crash between the release and latest.json
    again, new = publish(place, real)
    assert (again, new, latest_version(place)) == (first, False, 1)
    change_json(real / "adapter" / "homerank.json", outcome={})
    second, new = publish(place, real)
    assert (second.version, new, latest_version(place)) == (2, True, 2)
    assert [(one.version, one.latest) for one in published(place)] == [(1, False), (2, True)]


def test_versions_that_were_lost_are_stepped_over_and_never_used_again(real: Path, place: Path) -> None:
    """After an old backup: devices refuse what is not newer than what they have."""
    assert publish(place, real, version=7)[0].version == 7
    change_json(real / "adapter" / "homerank.json", outcome={})
    with pytest.raises(DeploymentError, match="found version 7 asked for; expected 8 or higher"):
        publish(place, real, version=7)
    assert publish(place, real)[0].version == 8


def test_a_key_that_is_lost_with_its_public_half_is_not_replaced_either(real: Path, place: Path) -> None:
    publish(place, real)
    (place / "release.key").unlink()
    (place / "release.pub").unlink()
    with pytest.raises(DeploymentError, match="is missing while there are releases"):
        publish(place, real)
    assert not (place / "release.key").exists()


def test_a_damaged_release_is_said_to_be_so_and_does_not_stand_in_the_way(real: Path, place: Path) -> None:
    publish(place, real)
    (place / "releases" / "1" / "privacy.json").write_text("{}")
    (found,) = published(place)
    assert found.release is None
    assert "privacy.json" in found.problem
    release, new = publish(place, real)
    assert (release.version, new) == (2, True)


def test_a_release_under_another_number_is_a_problem(real: Path, place: Path) -> None:
    publish(place, real)
    (place / "releases" / "1").rename(place / "releases" / "5")
    assert "found version 1 in it; expected 5" in published(place)[0].problem


def test_what_a_crash_left_half_written_is_written_anew(real: Path, place: Path) -> None:
    half = place / "releases" / ".1.new"
    half.mkdir(parents=True)
    (half / "junk").write_text("")
    publish(place, real)
    assert published(place)[0].problem == ""
    assert not half.exists()


def test_a_full_disk_publishes_nothing(real: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(place, real)
    change_json(real / "adapter" / "homerank.json", outcome={})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.publishing.shutil.copyfile", full)
    with pytest.raises(RunError, match="No space left on device"):
        publish(place, real)
    assert [path.name for path in sorted((place / "releases").iterdir())] == ["1", LATEST]


def test_a_name_that_devices_would_refuse_is_refused_here(real: Path, place: Path) -> None:
    with pytest.raises(AdapterError, match="no line of at most 200 characters"):
        publish(place, real, name="two\nlines")
    assert published(place) == []


# --- the ledger --------------------------------------------------------------------------------------------


def test_a_simulation_is_released_only_when_asked_for(run: Path, place: Path) -> None:
    with pytest.raises(DeploymentError, match="say --simulation"):
        publish(place, run)
    release, _ = publish(place, run, simulation=True)
    assert release.origin == "simulation"


def test_a_run_of_real_devices_is_no_simulation(real: Path, place: Path) -> None:
    with pytest.raises(DeploymentError, match="found a run of real devices"):
        publish(place, real, simulation=True)


def test_without_the_ledger_nothing_is_released(real: Path, place: Path) -> None:
    (place / "ledger.sqlite").unlink()
    with pytest.raises(DeploymentError, match="found no ledger"):
        publish(place, real)
    assert not (place / "releases").exists()
    assert not (place / "ledger.sqlite").exists()


def test_a_nicer_epsilon_than_the_ledgers_is_refused(real: Path, place: Path) -> None:
    stated = json.loads((real / "adapter" / "privacy.json").read_text())
    for unit in stated["layers"]:
        stated["layers"][unit]["epsilon"] *= 0.99
    write_json(real / "adapter" / "privacy.json", stated)
    with pytest.raises(DeploymentError, match="found other figures than"):
        publish(place, real)


@pytest.mark.parametrize("field", ["statement", "not_covered", "mode"])
def test_other_words_than_the_ledgers_are_refused(real: Path, place: Path, field: str) -> None:
    change_json(real / "adapter" / "privacy.json", **{field: "nothing to see"})
    with pytest.raises(DeploymentError, match="found other figures than"):
        publish(place, real)


def test_a_rounded_last_digit_is_not_another_figure(real: Path, place: Path) -> None:
    stated = json.loads((real / "adapter" / "privacy.json").read_text())
    for unit in stated["layers"]:
        stated["layers"][unit]["epsilon"] *= 1 + 1e-12
    write_json(real / "adapter" / "privacy.json", stated)
    assert publish(place, real)[1]


def test_a_head_that_the_ledger_does_not_hold_is_refused(real: Path, place: Path) -> None:
    head = json.loads((real / "adapter" / "homerank.json").read_text())["ledger"]
    change_json(real / "adapter" / "homerank.json", ledger={**head, "hash": "0" * 64})
    with pytest.raises(PrivacyError):
        publish(place, real)


def test_a_run_that_the_ledger_does_not_know_cannot_claim_privacy(real: Path, place: Path) -> None:
    change_json(real / "adapter" / "homerank.json", ledger=None, run="another")
    with pytest.raises(DeploymentError, match="found other figures than"):
        publish(place, real)


def test_an_adapter_that_claims_no_privacy_but_was_charged_is_refused(real: Path, place: Path) -> None:
    write_json(real / "adapter" / "privacy.json", {"mode": "none", "statement": "No privacy."})
    with pytest.raises(DeploymentError, match="found other figures than"):
        publish(place, real)


# --- the key -----------------------------------------------------------------------------------------------


def test_the_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    first = signing_key(tmp_path)
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    assert key_id(signing_key(tmp_path).public_key()) == key_id(first.public_key())


def test_a_key_that_others_could_read_signs_nothing(tmp_path: Path) -> None:
    signing_key(tmp_path)
    (tmp_path / "release.key").chmod(0o640)
    with pytest.raises(DeploymentError, match="found mode 640; expected 600"):
        signing_key(tmp_path)


def test_a_lost_key_is_not_replaced_in_silence(tmp_path: Path) -> None:
    signing_key(tmp_path)
    (tmp_path / "release.key").unlink()
    with pytest.raises(DeploymentError, match="restore it from a backup"):
        signing_key(tmp_path)


def test_a_damaged_key_says_so(tmp_path: Path) -> None:
    signing_key(tmp_path)
    (tmp_path / "release.key").write_text("junk")
    with pytest.raises(DeploymentError, match="found no usable key"):
        signing_key(tmp_path)


def test_the_public_half_is_always_that_of_the_key(tmp_path: Path) -> None:
    key = signing_key(tmp_path)
    (tmp_path / "release.pub").write_text("another")
    signing_key(tmp_path)
    assert key_id(read_key((tmp_path / "release.pub").read_text())) == key_id(key.public_key())


# --- the commands ------------------------------------------------------------------------------------------


def test_the_commands_publish_and_list(real: Path, place: Path) -> None:
    cli = CliRunner()
    done = cli.invoke(app, ["publish", str(place), "--run", str(real), "--name", "autumn", "--json"])
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert (facts["version"], facts["new"], facts["name"], facts["mode"]) == (1, True, "autumn", "both")
    stated = json.loads((real / "adapter" / "privacy.json").read_text())
    (row,) = json.loads(cli.invoke(app, ["releases", str(place), "--json"]).stdout)["releases"]
    assert (row["version"], row["latest"], row["mode"], row["bytes"]) == (1, True, "both", facts["bytes"])
    assert row["epsilon"] == {unit: layer["epsilon"] for unit, layer in stated["layers"].items()}
    told = cli.invoke(app, ["releases", str(place)]).stdout
    assert "autumn  <- latest" in told
    (place / "releases" / "1" / "privacy.json").write_text("{}")
    broken = cli.invoke(app, ["releases", str(place)])
    assert broken.exit_code == 1
    assert "BAD" in broken.stdout


def test_no_releases_yet(place: Path) -> None:
    assert CliRunner().invoke(app, ["releases", str(place)]).stdout == "no releases yet\n"
