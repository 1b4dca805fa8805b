"""The device's keys, what it accepts as an invitation, and its command line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from client.deployment import DeviceHome, Invitation, adopt_earlier_files, create_keys, running_node
from client.limits import Limits
from client.profile import Profile
from client.store import Store
from shared.artifacts import load_catalogue, save_catalogue
from shared.errors import ConfigError, DeploymentError
from shared.privacy.accounting import Release
from shared.privacy.ledger import Ledger
from shared.terminal import free_port, run_cli
from tests.client.small_device import SHELF, rows
from tests.client.small_door import charges

CA = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"


def invitation_file(folder: Path, **changes: object) -> Path:
    path = folder / "invitation.json"
    path.write_text(json.dumps({"schema": 1, "address": "127.0.0.1:9000", "ca": CA} | changes))
    return path


@pytest.mark.parametrize("mode", ["event", "user", "none"])
def test_a_budget_for_people_needs_a_unit_beside_it(mode: str) -> None:
    rest = {"trust": "aggregate", "epsilon": 8.0, "delta": 1e-5}
    with pytest.raises(ConfigError, match="--user-epsilon belongs to --privacy both; use --epsilon"):
        Limits.of_owner(mode=mode, user_epsilon=2.0, **rest)
    assert Limits.of_owner(mode=mode, **rest).user_epsilon == 0.0
    assert Limits.of_owner(mode="both", user_epsilon=2.0, **rest).user_epsilon == 2.0


def test_a_device_of_an_earlier_version_keeps_its_history_and_what_it_spent(tmp_path: Path) -> None:
    home = DeviceHome.at(tmp_path)
    store = Store(home.folder / "device.sqlite")
    store.replace(rows([1, 2, 3]))
    store.close()
    save_catalogue(SHELF, home.folder / "items.jsonl")
    (home.folder / "adapter").mkdir()
    earlier = Ledger(home.folder / "ledger.sqlite", witness=home.folder / "device.witness")
    earlier.charge(0, [Release("train", 2.0)], key="a", budgets={"event": 8.0}, delta=1e-5)
    earlier.close()

    profile = Profile.open(home.folder)
    for _ in range(2):  # the second time there is nothing to do
        adopt_earlier_files(home, profile)
        assert charges(profile) == [Release("train", 2.0)]
        journal = profile.journal(load_catalogue(profile.catalogue))
        assert journal.newest(9).items.tolist() == [1, 2, 3]
        journal.close()
        assert profile.adapter.is_dir()
    left = {path.name for path in home.folder.iterdir()}
    assert left == {"profiles"}


def test_keys_are_a_matching_p256_pair_and_private(tmp_path: Path) -> None:
    home = DeviceHome.at(tmp_path / "device")
    public = load_ssh_public_key(create_keys(home).read_bytes())
    private = load_ssh_private_key(home.private_key.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP256R1)
    assert private.public_key() == public
    assert home.public_key.read_text().startswith("ecdsa-sha2-nistp256 ")
    assert home.private_key.stat().st_mode & 0o777 == 0o600
    assert home.folder.stat().st_mode & 0o777 == 0o700


def test_an_identity_is_kept_and_its_public_half_restored(tmp_path: Path) -> None:
    home = DeviceHome.at(tmp_path)
    create_keys(home)
    private, public = home.private_key.read_bytes(), home.public_key.read_bytes()
    home.public_key.unlink()
    create_keys(home)
    assert (home.private_key.read_bytes(), home.public_key.read_bytes()) == (private, public)


def test_a_damaged_or_foreign_key_is_refused_and_kept(tmp_path: Path) -> None:
    home = DeviceHome.at(tmp_path)
    home.private_key.write_text("not a key")
    with pytest.raises(DeploymentError, match="not an OpenSSH private key"):
        create_keys(home)
    assert home.private_key.read_text() == "not a key"
    other = ed25519.Ed25519PrivateKey.generate()
    home.private_key.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    with pytest.raises(DeploymentError, match="another kind of key"):
        create_keys(home)


def test_an_invitation_is_read(tmp_path: Path) -> None:
    assert Invitation.read(invitation_file(tmp_path)) == Invitation("127.0.0.1:9000", CA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "expected schema 1"),
        ({"address": "127.0.0.1"}, "expected host:port"),
        ({"address": "--insecure:1 x"}, "expected host:port"),
        ({"address": 5}, "expected host:port"),
        ({"ca": ""}, "no CA certificate"),
        ({"ca": None}, "no CA certificate"),
    ],
)
def test_a_bad_invitation_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DeploymentError, match=message):
        Invitation.read(invitation_file(tmp_path, **changes))


def test_an_invitation_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "invitation.json"
    for content in ("{", "[]"):
        path.write_text(content)
        with pytest.raises(DeploymentError, match=r"invitation\.json"):
            Invitation.read(path)


def invoke(*arguments: str) -> int:
    from client.cli import app

    with pytest.raises(SystemExit) as exit_:
        run_cli(app, "homerank-client", arguments)
    return int(exit_.value.code or 0)


def test_keys_only_prints_one_json_object_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "device"
    assert invoke("join", str(invitation_file(tmp_path)), "--home", str(home), "--keys-only", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "public_key": str(home / "device.pub"),
        "server": "127.0.0.1:9000",
        "joined": False,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jion"], "Did you mean 'join'? (see homerank-client --help)"),
        (["join", "x", "--hoem", "y"], "'--help', '--home', '--token'?) (see homerank-client join --help)"),
        (["join", "nowhere.json", "--home", "h"], "nowhere.json: No such file"),
        (["join", "x", "--home", "h"], "x: No such file"),
        (["join", "https://127.0.0.1:1", "--token", "x", "--home", "h"], "token"),
        (["join", "invitation.json", "--home", "h"], "h: found no history; join with --data FOLDER the first time"),
        (
            ["join", "invitation.json", "--home", "h", "--privacy", "all"],
            "'all'; expected one of event, user, both, none",
        ),
        (["join", "invitation.json", "--home", "h", "--trust", "me"], "'me'; expected one of aggregate, local"),
        (["join", "invitation.json", "--home", "h", "--delta", "0"], "--delta: found 0.0; expected more than 0"),
        (
            ["join", "invitation.json", "--home", "h", "--privacy", "user", "--user-epsilon", "2"],
            "--user-epsilon belongs to --privacy both",
        ),
        (["join", "invitation.json", "--home", "h", "--data", "d"], "d"),
        (["join", "invitation.json", "--home", "h", "--profile", "Ana B"], "profile: found 'Ana B'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    invitation_file(tmp_path)
    assert invoke(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.slow
def test_nobody_there_is_said_in_time_and_the_node_configuration_is_written(tmp_path: Path) -> None:
    home = DeviceHome.at(tmp_path / "a device")
    config: dict[str, str | int] = {"store": '/with space/and "quote".sqlite', "limit": 3}
    nobody = Invitation(f"127.0.0.1:{free_port()}", CA)
    with (
        pytest.raises(DeploymentError, match=r"127\.0\.0\.1"),
        running_node(home, nobody, node_config=config, timeout=6),
    ):
        pass
    assert tomllib.loads(home.node_config.read_text()) == config
