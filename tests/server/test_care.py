"""Backup and restore, the ledger's commands, status and doctor: on the files of a run that really was."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from client.deployment import DeviceHome, create_keys
from server.backup import CONTENTS, back_up, restore
from server.deployment import Deployment, initialise
from server.doctor import examine, verify_ledger
from server.ledger import ServerLedger
from server.registry import Registry
from server.rounds import Experiment
from server.settings import ServerSettings
from shared.enrolment import EnrolmentRefused
from shared.errors import DeploymentError, HomerankError, PrivacyError
from shared.privacy.accounting import Release
from simulations.runfolder import RunFolder
from tests.server.test_deployment import invoke

RELEASE = {"releases": [asdict(Release("train", 1.0, unit="event"))]}


@pytest.fixture
def deployment(tmp_path: Path, calm: RunFolder) -> Deployment:
    """A deployment with one device, whose rounds were those of the calm run."""
    made = initialise(tmp_path / "d", ServerSettings(names=("example.org",), port=8443))
    for name in ("sqlite", "witness"):
        with (  # its server may have it open still, with rows in a journal
            closing(sqlite3.connect(calm.path / f"server-ledger.{name}")) as old,
            closing(sqlite3.connect(made.folder / f"ledger.{name}")) as new,
        ):
            old.backup(new)
    shutil.copytree(calm.path, made.folder / "run", ignore=shutil.ignore_patterns("*.sqlite*", "*.witness*"))
    Experiment(str(made.folder / "run"), "running", "77").keep(made)
    (made.releases / "1").mkdir()
    (made.releases / "1" / "adapter.bin").write_bytes(b"\x00\x01")
    with closing(Registry(made.registry)) as registry:
        registry.admit(create_keys(DeviceHome.at(tmp_path / "device")).read_text().strip(), "42")
    return made


def charge(folder: Path, number: int) -> None:
    """One more release in a deployment's ledger."""
    with closing(open_ledger(folder)) as ledger:
        ledger.charge(run="later", phase="train", round=number, facts=RELEASE)


def open_ledger(folder: Path) -> ServerLedger:
    return ServerLedger(folder / "ledger.sqlite", witness=folder / "ledger.witness")


def rows_in(folder: Path) -> int:
    with closing(open_ledger(folder)) as ledger:
        return ledger.head().seq


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- backup and restore --------------------------------------------------------------------------------------


def test_what_is_backed_up_comes_back_elsewhere(deployment: Deployment, tmp_path: Path) -> None:
    rows = rows_in(deployment.folder)
    assert rows > 3
    made = back_up(deployment, tmp_path / "backup.tar")
    assert (tmp_path / "backup.tar").stat().st_mode & 0o777 == 0o600
    assert made.rows == rows
    restored = tmp_path / "elsewhere" / "d"
    assert restore(tmp_path / "backup.tar", restored) == made
    before, after = contents(deployment.folder), contents(restored)
    for name in ("ca.pem", "ca.key", "server.key", "server.toml", "server.json", "releases/1/adapter.bin"):
        assert after[name] == before[name]
    assert after["run/checkpoint.safetensors"] == before["run/checkpoint.safetensors"]
    assert (restored / "ca.key").stat().st_mode & 0o777 == 0o600
    assert restored.stat().st_mode & 0o777 == 0o700
    assert rows_in(restored) == rows
    with closing(Registry(restored / "registry.sqlite")) as registry:
        assert [device.node for device in registry.devices()] == ["42"]
    # the experiment is the restored one, and nobody keeps it going yet
    assert Experiment.of(Deployment.at(restored)) == Experiment(str(restored / "run"), "stopped", "")
    assert verify_ledger(Deployment.at(restored)) == verify_ledger(deployment)


def test_a_restore_sets_aside_what_was_there(deployment: Deployment, tmp_path: Path) -> None:
    back_up(deployment, tmp_path / "backup.tar")
    (deployment.folder / "note.txt").write_text("mine")
    restore(tmp_path / "backup.tar", deployment.folder)
    (aside,) = tmp_path.glob("d.before-restore-*")
    assert (aside / "note.txt").read_text() == "mine"
    assert not (deployment.folder / "note.txt").exists()
    assert list(tmp_path.glob(".d.restoring*")) == []


def test_a_restore_that_would_forget_a_release_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    back_up(deployment, tmp_path / "backup.tar")
    charge(deployment.folder, 1)
    before = contents(deployment.folder)
    with pytest.raises(DeploymentError, match=r"knows releases .* the ledger is behind.*--keep-ledger"):
        restore(tmp_path / "backup.tar", deployment.folder)
    assert contents(deployment.folder) == before
    assert list(tmp_path.glob("d.before*")) + list(tmp_path.glob(".d.restoring*")) == []


def test_the_newer_ledger_can_be_kept(deployment: Deployment, tmp_path: Path) -> None:
    rows = back_up(deployment, tmp_path / "backup.tar").rows
    charge(deployment.folder, 1)
    shutil.rmtree(deployment.folder / "run")
    restore(tmp_path / "backup.tar", deployment.folder, keep_ledger=True)
    assert rows_in(deployment.folder) == rows + 1
    assert (deployment.folder / "run" / "checkpoint.safetensors").exists()


def test_who_was_shut_out_since_the_backup_stays_out(deployment: Deployment, tmp_path: Path) -> None:
    with closing(Registry(deployment.registry)) as registry:
        registry.issue(2, hours=1)
    back_up(deployment, tmp_path / "backup.tar")
    with closing(Registry(deployment.registry)) as registry:
        (secret,) = registry.issue(1, hours=1)
        registry.redeem(secret, "ecdsa-sha2-nistp256 LATER")
        registry.revoke(1)
        registry.revoke(2)
    restore(tmp_path / "backup.tar", deployment.folder)
    with closing(Registry(deployment.registry)) as registry:
        assert [device.revoked is None for device in registry.devices()] == [False, False]
        assert registry.open_tokens() == 2


def test_a_token_that_was_burnt_since_the_backup_stays_burnt(deployment: Deployment, tmp_path: Path) -> None:
    with closing(Registry(deployment.registry)) as registry:
        (secret,) = registry.issue(1, hours=1)
    back_up(deployment, tmp_path / "backup.tar")
    with closing(Registry(deployment.registry)) as registry:
        registry.redeem(secret, "ecdsa-sha2-nistp256 LATER")
    restore(tmp_path / "backup.tar", deployment.folder)
    with closing(Registry(deployment.registry)) as registry, pytest.raises(EnrolmentRefused, match="unknown"):
        registry.redeem(secret, "ecdsa-sha2-nistp256 THIEF")


@pytest.mark.parametrize("kept", ["witness", "adapter", "checkpoint"])
def test_what_else_knows_of_a_release_speaks_when_the_ledger_is_lost(
    deployment: Deployment, tmp_path: Path, kept: str
) -> None:
    with closing(open_ledger(deployment.folder)) as ledger:
        whole = ledger.entries()
    # a backup of a time at which the ledger was younger: the same first rows, then nothing
    young = initialise(tmp_path / "young")
    for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
        shutil.copy(deployment.folder / name, young.folder / name)
    with closing(open_ledger(young.folder)) as ledger:
        ledger.open_run(whole[0]["run"], whole[0]["facts"])
    back_up(young, tmp_path / "old.tar")

    (deployment.folder / "ledger.sqlite").unlink()
    if kept != "witness":
        (deployment.folder / "ledger.witness").unlink()
    if kept != "adapter":
        shutil.rmtree(deployment.folder / "run" / "adapter")
    if kept != "checkpoint":
        (deployment.folder / "run" / "checkpoint.safetensors").unlink()
    with pytest.raises(DeploymentError, match="knows releases that the restored ledger would not"):
        restore(tmp_path / "old.tar", deployment.folder)
    for name in ("ledger.witness", "run"):
        path = deployment.folder / name
        if path.exists():
            path.unlink() if path.is_file() else shutil.rmtree(path)
    restore(tmp_path / "old.tar", deployment.folder)  # nobody remembers anything else
    assert rows_in(deployment.folder) == 1


def test_a_backup_of_a_broken_ledger_is_not_made(deployment: Deployment, tmp_path: Path) -> None:
    (deployment.folder / "ledger.sqlite").unlink()
    with pytest.raises(HomerankError, match="found no ledger"):
        back_up(deployment, tmp_path / "backup.tar")
    fresh = initialise(tmp_path / "fresh")
    shutil.copy(fresh.folder / "ledger.sqlite", deployment.folder / "ledger.sqlite")
    with pytest.raises(PrivacyError, match="the ledger is lost"):
        back_up(deployment, tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()
    assert list(deployment.folder.glob(".backup*")) + list(tmp_path.glob(".backup*")) == []


def forged(tmp_path: Path, backup: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A backup with other files in it, whose table of contents is as it was."""
    with tarfile.open(backup) as tar:
        found = {m.name: (tar.extractfile(m) or io.BytesIO()).read() for m in tar.getmembers()}
    change(found)
    with tarfile.open(tmp_path / "forged.tar", "w") as tar:
        for name, content in found.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return tmp_path / "forged.tar"


def renamed(found: dict[str, bytes], name: str) -> None:
    """Give one file another name, in the table of contents too."""
    found[name] = found.pop("server.toml")
    facts = json.loads(found[CONTENTS])
    facts["files"][name] = facts["files"].pop("server.toml")
    found[CONTENTS] = json.dumps(facts).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.update({"server.toml": b"port = 1"}), "server.toml is damaged"),
        (lambda found: found.update({"more": b""}), "not those it names"),
        (lambda found: found.pop("ca.key"), "not those it names"),
        (lambda found: found.pop(CONTENTS), "backup schema None"),
        (lambda found: renamed(found, "../outside"), "expected one inside the folder"),
        (lambda found: renamed(found, "/tmp/outside"), "expected one inside the folder"),
    ],
)
def test_a_backup_that_is_not_whole_changes_nothing(
    deployment: Deployment, tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    back_up(deployment, tmp_path / "backup.tar")
    before = contents(deployment.folder)
    with pytest.raises(DeploymentError, match=message):
        restore(forged(tmp_path, tmp_path / "backup.tar", change), deployment.folder)
    assert contents(deployment.folder) == before
    assert not (tmp_path / "outside").exists()


def test_a_link_in_a_backup_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    back_up(deployment, tmp_path / "backup.tar")
    with tarfile.open(tmp_path / "backup.tar") as old, tarfile.open(tmp_path / "linked.tar", "w") as new:
        for member in old.getmembers():
            content = old.extractfile(member)
            if member.name == "server.toml":
                member.type, member.linkname, member.size, content = tarfile.SYMTYPE, "/etc/passwd", 0, None
            new.addfile(member, content)
    with pytest.raises(DeploymentError, match="no plain file"):
        restore(tmp_path / "linked.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- the ledger, status, doctor ------------------------------------------------------------------------------


def test_the_ledger_is_verified_against_what_rests_on_it(deployment: Deployment) -> None:
    rows, heads = verify_ledger(deployment)
    assert (rows, heads) == (rows_in(deployment.folder), 2)  # the checkpoint and the adapter
    manifest = deployment.folder / "run" / "adapter" / "homerank.json"
    facts = json.loads(manifest.read_text())
    facts["ledger"]["seq"] += 5
    manifest.write_text(json.dumps(facts))
    with pytest.raises(PrivacyError, match="the ledger is behind"):
        verify_ledger(deployment)


def test_the_commands_of_the_ledger(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(deployment.folder)
    assert invoke("ledger", "show", place, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    (run,) = shown["runs"]
    assert run["released"] == {"popularity": 1, "train": 3, "validate": 1}
    statement = json.loads((deployment.folder / "run" / "adapter" / "privacy.json").read_text())
    assert run["epsilon"] == {unit: layer["epsilon"] for unit, layer in statement["layers"].items()}
    assert run["delta"] == statement["delta"]
    assert invoke("ledger", "verify", place, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "rows": shown["rows"], "rest_on_it": 2}
    (deployment.folder / "ledger.sqlite").write_bytes(b"not a ledger, and long enough to see that")
    assert invoke("ledger", "verify", place) == 2
    assert "no usable ledger" in capsys.readouterr().err


def test_status_reads_everything_and_says_what_it_cannot(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("status", str(deployment.folder), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["server"] == {"running": False, "public": False}
    assert facts["devices"] == {"enrolled": 1, "revoked": 0, "online": 0, "open_tokens": 0}
    assert (facts["rounds"]["state"], facts["rounds"]["round"], facts["rounds"]["kept_going"]) == ("running", 3, False)
    assert facts["ledger"]["rows"] == rows_in(deployment.folder)
    deployment.registry.write_bytes(b"not a registry, and long enough to see that")
    assert invoke("status", str(deployment.folder), "--json") == 0
    assert "no usable registry" in json.loads(capsys.readouterr().out)["devices"]["error"]


def test_doctor_names_what_is_wrong_and_what_to_do(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    found = {finding.name: finding for finding in examine(deployment)}
    assert (found["server"].state, found["rounds"].state) == ("warn", "warn")
    assert "rounds resume" in found["rounds"].detail
    assert all(found[name].state == "ok" for name in ("folder", "disk", "certificate", "registry", "ledger"))
    (deployment.folder / "ca.key").chmod(0o644)
    (deployment.folder / "server.toml").write_text('names = ["example.net"]\n')
    shutil.rmtree(deployment.folder / "run" / "adapter")
    (deployment.folder / "ledger.witness").write_bytes(b"not a witness, and long enough to see that")
    assert invoke("doctor", str(deployment.folder), "--json") == 1
    said = {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    for name, words in {
        "folder": "others can read ca.key;",
        "certificate": "lacks example.net",
        "ledger": "no usable ledger",
    }.items():
        assert said[name]["state"] == "fail"
        assert words in said[name]["detail"]


# --- the command line ----------------------------------------------------------------------------------------


def test_a_deployment_is_made_and_changed_and_its_certificate_renewed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "new"
    assert invoke("init", str(place), "--name", "Example.org", "--name", "10.0.0.7", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["address"] == "example.org:8443"
    assert (first["names"], first["listen"]) == (["Example.org", "10.0.0.7"], "0.0.0.0")
    for name in ("", "ca.key", "server.key", "server.json", "server.toml", "registry.sqlite", "ledger.sqlite"):
        assert (place / name).stat().st_mode & 0o077 == 0
    ca, port = (place / "ca.pem").read_bytes(), Deployment.at(place).port
    assert invoke("init", str(place), "--port", "9443", "--json") == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["address"], second["names"]) == ("example.org:9443", first["names"])
    assert ((place / "ca.pem").read_bytes(), Deployment.at(place).port) == (ca, port)
    certificate = (place / "server.pem").read_bytes()
    assert invoke("renew", str(place), "--json") == 0
    assert json.loads(capsys.readouterr().out)["reloaded"] is False
    assert (place / "server.pem").read_bytes() != certificate
    assert (place / "ca.pem").read_bytes() == ca


def test_tokens_are_printed_once_and_devices_listed(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(deployment.folder)
    assert invoke("enroll", place, "--count", "2", "--valid", "1", "--json") == 0
    given = json.loads(capsys.readouterr().out)
    assert given["url"] == "https://example.org:8443"
    assert len(set(given["tokens"])) == 2
    assert invoke("devices", place, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(each["number"], each["node_id"], each["state"]) for each in listed["devices"]] == [(1, "42", "unknown")]
    assert listed["open_tokens"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "x", "--name", "a b"], "expected a host name"),
        (["init", "x", "--listen", "here"], "expected an IP address"),
        (["enroll", "nowhere"], "is not a homerank deployment"),
        (["enroll", "d", "--count", "0"], "0 is not in the range"),
        (["revoke", "d", "1"], "no server answers at"),
        (["devices", "nowhere"], "is not a homerank deployment"),
        (["rounds", "resume", "nowhere"], "is not a homerank deployment"),
        (["rounds", "start", "d"], "Missing option '--catalogue'"),
        (["backup", "nowhere", "x.tar"], "is not a homerank deployment"),
        (["backup", "d", "no/such/folder/x.tar"], "expected the path of a new file"),
        (["restore", "no.tar", "x"], "found no readable backup"),
        (["ledger", "show", "nowhere"], "is not a homerank deployment"),
        (["renew", "nowhere"], "is not a homerank deployment"),
    ],
)
def test_a_mistake_is_one_line(
    deployment: Deployment,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not (tmp_path / "nowhere").exists()
