"""Installing into another root and leaving it again: what is made, for whom, and that exactly this goes away."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from client.deployment import DeviceHome, Invitation, create_keys
from client.install import setup, units
from client.install.accounts import Accounts
from client.install.layout import NODE_USER, SERVICE_USER, SOCKET_GROUP, Layout
from client.install.leaving import leave_home, leave_installation
from client.install.manifest import Manifest
from client.install.setup import install
from client.install.systemd import Systemd
from client.install.units import IPV4, Choices
from client.profile import Profile
from client.service.running import exclusive
from shared.errors import ConfigError, DeploymentError
from tests.client.install.two_users import environment, python
from tests.client.small_door import charges, person

ELSEWHERE = Invitation("192.0.2.7:9443", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
ACCOUNTS = {"passwd": "root:x:0:0:root:/root:/bin/sh\n", "group": "root:x:0:\n", "shadow": "root:*:1::::::\n"}
ACCOUNTS |= {"gshadow": "root:*::\n"}


class OtherSystemd(Systemd):
    """Says that it runs, and writes down what it is asked."""

    def __init__(self, layout: Layout) -> None:
        self.asked: list[str] = []
        super().__init__(layout, run=lambda command: self.asked.append(" ".join(command)))
        self.runs = True


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    """Another root, with accounts of its own, that every user may enter."""
    python()
    if shutil.which("useradd", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("found no useradd; needs Debian's passwd, or the like")
    monkeypatch.setenv("PYTHONPATH", environment(Path("/"))["PYTHONPATH"])
    root = Path(tempfile.mkdtemp(prefix="homerank-", dir="/tmp"))
    root.chmod(0o755)
    (root / "etc").mkdir()
    for name, text in ACCOUNTS.items():
        (root / "etc" / name).write_text(text)
    yield Layout(root)
    shutil.rmtree(root)


@pytest.fixture
def choices() -> Choices:
    return Choices(python=Path(python()))


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, user and group of everything below a root."""
    found = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        found[str(path.relative_to(root))] = (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid)
    return found


def test_everything_belongs_to_the_right_user_and_leaving_takes_it_away(layout: Layout, choices: Choices) -> None:
    before = tree(layout.root)
    done = install(layout, choices, invitation=ELSEWHERE)
    accounts = Accounts(layout)
    service, node, group = accounts.of(SERVICE_USER), accounts.of(NODE_USER), accounts.group(SOCKET_GROUP)
    assert accounts.members(SOCKET_GROUP) == [NODE_USER]
    found = tree(layout.root)
    assert found["var/lib/homerank"] == (0o700, service.user, service.group)
    assert found["run/homerank"] == (0o2750, service.user, group)
    assert found["var/lib/homerank-node"] == (0o700, node.user, node.group)
    assert found["var/lib/homerank-node/device.key"] == (0o600, node.user, node.group)
    for name in ("etc/systemd/system/homerank-device.service", "etc/systemd/system/homerank-node.service"):
        assert found[name] == (0o644, 0, 0)
    assert found["etc/homerank/install.json"] == (0o600, 0, 0)
    assert not done.started
    assert [user for user, _ in done.foreground] == [SERVICE_USER, NODE_USER]
    assert done.public_key is not None
    assert done.public_key.read_text().startswith("ecdsa-sha2-nistp256 ")

    manifest = Manifest.read(layout.manifest)
    assert manifest is not None
    assert set(manifest.files) == {*done.files, "/etc/homerank/install.json"}

    left = leave_installation(layout, forget=False)
    after = tree(layout.root)
    made = {
        "etc/systemd",
        "etc/systemd/system",
        "etc/tmpfiles.d",
        "var",
        "var/lib",
        "run",
    }  # empty folders, any system has
    backups = {name for name in after if name.endswith("-") or name.endswith(".lock")}  # of useradd's
    assert set(after) - set(before) <= made | backups
    assert {name: (layout.root / name).read_text() for name in ("etc/passwd", "etc/group")} == {
        "etc/passwd": ACCOUNTS["passwd"],
        "etc/group": ACCOUNTS["group"],
    }
    assert len(left.server_keeps) == 3
    with pytest.raises(DeploymentError, match="nothing that was installed"):
        leave_installation(layout, forget=False)


def test_installing_twice_changes_nothing(layout: Layout, choices: Choices) -> None:
    first = install(layout, choices, invitation=ELSEWHERE)
    assert first.public_key is not None
    before, key = tree(layout.root), first.public_key.read_text()
    again = install(layout, choices)  # the invitation is known
    assert again == first
    assert tree(layout.root) == before
    assert first.public_key.read_text() == key


def test_a_device_that_only_ranks_has_no_node(layout: Layout, choices: Choices) -> None:
    done = install(layout, choices)
    assert done.public_key is None
    assert not any("node" in name for name in done.files)
    assert Accounts(layout).missing_users(node=True) == [NODE_USER]
    install(layout, choices, invitation=ELSEWHERE)  # and may take part later
    assert Accounts(layout).missing_users(node=True) == []


def test_what_somebody_had_is_moved_not_copied(layout: Layout, choices: Choices, tmp_path: Path) -> None:
    joined = DeviceHome.at(tmp_path / "so far")
    person(joined.folder, "default")
    create_keys(joined)
    key = joined.private_key.read_text()
    (joined.folder / "invitation.json").write_text(
        json.dumps({"schema": 1, "address": ELSEWHERE.address, "ca": ELSEWHERE.ca})
    )
    with exclusive(Profile(joined.folder / "profiles" / "default")), pytest.raises(DeploymentError, match="uses this"):
        install(layout, choices, joined=joined)
    install(layout, choices, joined=joined)
    assert layout.node.private_key.read_text() == key
    assert not joined.private_key.exists()
    assert not (joined.folder / "profiles" / "default").exists()
    moved = Profile(layout.service_home / "profiles" / "default")
    assert {path.stat().st_uid for path in moved.folder.rglob("*")} == {Accounts(layout).of(SERVICE_USER).user}

    person(joined.folder, "default")
    with pytest.raises(DeploymentError, match="leave first"):
        install(layout, choices, joined=joined)


@pytest.mark.parametrize("forget", [False, True])
def test_profiles_stay_for_root_alone_or_go(forget: bool, layout: Layout, choices: Choices, tmp_path: Path) -> None:
    person(tmp_path / "so far", "default")
    install(layout, choices, invitation=ELSEWHERE, joined=DeviceHome.at(tmp_path / "so far"))
    number = Accounts(layout).of(SERVICE_USER).user
    left = leave_installation(layout, forget=forget)
    home = layout.service_home
    assert home.exists() is not forget
    assert ("/var/lib/homerank" in left.kept) is not forget
    if not forget:
        assert {path.stat().st_uid for path in (home, *home.rglob("*"))} == {0}
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        install(layout, choices)  # it comes back
        assert home.stat().st_uid == Accounts(layout).of(SERVICE_USER).user
        assert charges(Profile(home / "profiles" / "default")) == []
        assert number > 0


def test_root_never_follows_what_the_node_left_there(layout: Layout, choices: Choices) -> None:
    """Its user runs a server's code, which could leave a link under the name of a file that root writes."""
    install(layout, choices, invitation=ELSEWHERE)
    victim = layout.root / "etc" / "victim"
    victim.write_text("root's")
    node = Accounts(layout).of(NODE_USER)
    for name in ("device.pub", "invitation.json"):
        path = layout.node.folder / name
        path.unlink()
        path.symlink_to(victim)
        os.chown(path, node.user, node.group, follow_symlinks=False)
    with pytest.raises(DeploymentError, match="could not be made"):
        install(layout, choices, invitation=ELSEWHERE)
    assert victim.read_text() == "root's"
    assert (victim.stat().st_uid, stat.S_IMODE(victim.stat().st_mode)) == (0, 0o644)
    leave_installation(layout, forget=True)
    assert victim.read_text() == "root's"


def test_what_others_own_is_left_alone(layout: Layout, choices: Choices) -> None:
    unit = layout.root / "etc/systemd/system/homerank-node.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("somebody's")
    with pytest.raises(DeploymentError, match="did not write"):
        install(layout, choices, invitation=ELSEWHERE)
    assert unit.read_text() == "somebody's"
    unit.unlink()
    layout.service_home.parent.mkdir(parents=True)
    layout.service_home.symlink_to("/etc")
    with pytest.raises(DeploymentError, match="a link or a file"):
        install(layout, choices, invitation=ELSEWHERE)
    layout.service_home.unlink()
    layout.service_home.mkdir()
    os.chown(layout.service_home, 4711, 0)
    with pytest.raises(DeploymentError, match="user number 4711"):
        install(layout, choices, invitation=ELSEWHERE)


def test_an_interrupted_installation_can_be_left(layout: Layout, choices: Choices) -> None:
    class Broken(Accounts):
        def make_user(self, name: str) -> None:
            if name == NODE_USER:
                raise DeploymentError("the disk is full")
            super().make_user(name)

    with pytest.raises(DeploymentError, match="disk is full"):
        install(layout, choices, invitation=ELSEWHERE, accounts=Broken(layout))
    leave_installation(layout, forget=False)
    assert (layout.root / "etc/passwd").read_text() == ACCOUNTS["passwd"]


def test_systemd_is_told(layout: Layout, choices: Choices) -> None:
    systemd = OtherSystemd(layout)
    done = install(layout, choices, invitation=ELSEWHERE, systemd=systemd)
    assert done.started
    assert done.foreground == ()
    both = "homerank-device.service homerank-node.service"
    create = "systemd-tmpfiles --create /etc/tmpfiles.d/homerank.conf"
    assert systemd.asked == [
        create, "systemctl daemon-reload", f"systemctl enable {both}", f"systemctl restart {both}"
    ]  # fmt: skip
    systemd.asked.clear()
    leave_installation(layout, forget=False, systemd=systemd)
    assert systemd.asked == [f"systemctl disable --now {both}", "systemctl daemon-reload"]


def test_only_root_installs_and_only_where_others_can_read(
    layout: Layout, choices: Choices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hidden = tmp_path / "venv" / "bin" / "python"
    hidden.parent.mkdir(parents=True)
    hidden.symlink_to(choices.python)
    tmp_path.chmod(0o700)
    with pytest.raises(DeploymentError, match="own users cannot go"):
        install(layout, replace(choices, python=hidden))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for deed in (lambda: install(layout, choices), lambda: leave_installation(layout, forget=False)):
        with pytest.raises(DeploymentError, match="as root"):
            deed()
    assert tree(layout.root).keys() == {"etc", *(f"etc/{name}" for name in ACCOUNTS)}


@pytest.mark.parametrize("address", ["localhost:9443", "127.0.0.1:9443", "[::1]:9443"])
def test_a_server_on_the_same_machine_keeps_the_node_on_its_loopback(
    address: str, layout: Layout, choices: Choices
) -> None:
    assert not setup.can_be_apart(replace(ELSEWHERE, address=address))
    install(layout, choices, invitation=replace(ELSEWHERE, address=address))
    unit = (layout.root / "etc/systemd/system/homerank-node.service").read_text()
    assert f"--loopback {IPV4}" in unit
    assert "IPAddressDeny" not in unit


def test_a_damaged_list_removes_nothing(layout: Layout, choices: Choices) -> None:
    install(layout, choices)
    good = json.loads(layout.manifest.read_text())
    for bad in ({**good, "files": ["etc/passwd"]}, {**good, "folders": ["/var/../etc"]}, {**good, "schema": 9}, []):
        layout.manifest.write_text(json.dumps(bad))
        with pytest.raises(DeploymentError, match="list"):
            leave_installation(layout, forget=True)
    assert layout.service_home.exists()


def test_leaving_a_folder_takes_keys_and_leaves_the_rest(tmp_path: Path) -> None:
    home = DeviceHome.at(tmp_path / "home")
    profile = person(home.folder, "default")
    create_keys(home)
    for path in (home.ca, home.node_config, home.log, home.flower_home / "x", home.log.parent / "of somebody else"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with exclusive(profile), pytest.raises(DeploymentError, match="uses this profile"):
        leave_home(home, forget=True)
    left = leave_home(home, forget=False)
    assert set(left.kept) == {str(home.folder / "profiles")}
    assert "0 answers" in left.server_keeps[1]
    assert {path.name for path in home.folder.iterdir()} == {"profiles", "logs"}
    assert [path.name for path in home.log.parent.iterdir()] == ["of somebody else"]
    assert leave_home(home, forget=True).server_keeps == ()  # nothing of it is known to a server any more
    with pytest.raises(DeploymentError, match="found no device"):
        leave_home(home, forget=True)


# --- the units ---------------------------------------------------------------------------------------------


def lines(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_each_unit_reaches_what_it_needs_and_no_more() -> None:
    plan = Choices(python=Path("/opt/homerank/bin/python"))
    device, node = lines(units.device_unit(plan)), lines(units.node_unit(plan))
    for unit in (device, node):
        assert {
            "NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "CapabilityBoundingSet=",
            "Restart=on-failure", "SystemCallFilter=~@privileged", "ProtectProc=invisible",
        } <= set(unit)  # fmt: skip
        assert any(line.startswith("MemoryMax=") for line in unit)
        assert any(line.startswith("Nice=") for line in unit)
    assert "InaccessiblePaths=/var/lib/homerank -/run/dbus" in node
    assert "ReadWritePaths=/var/lib/homerank-node" in node
    assert "IPAddressDeny=127.0.0.1" in node
    assert {"User=homerank-node", "SupplementaryGroups=homerank-train", "Requires=homerank-device.service"} <= set(node)
    assert {"User=homerank", "IPAddressDeny=any", "IPAddressAllow=localhost"} <= set(device)
    assert not any("SupplementaryGroups" in line for line in device)


@pytest.mark.parametrize("name", ["a\nExecStartPre=/bin/sh", "../x", "%h", ""])
def test_a_name_cannot_add_to_a_unit(name: str) -> None:
    with pytest.raises(ConfigError, match="profile"):
        Choices(profile=name)


def test_a_per_cent_sign_is_no_specifier() -> None:
    plan = Choices(python=Path("/opt/100% me/bin/python"))
    assert "ExecStart='/opt/100%% me/bin/python' -P -m client" in units.device_unit(plan)
