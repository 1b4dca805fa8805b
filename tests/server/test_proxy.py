"""The text of nginx's configuration, the settings it is made from, and what nginx says to it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server import running
from server.certificates import create_certificates, names_in
from server.deployment import Deployment, initialise
from server.proxy import FLEET, config_text, nginx_program, proxy_command
from server.settings import ServerSettings, read_settings, write_settings
from shared.errors import DeploymentError

NO_NGINX = "nginx is not installed, so its opinion cannot be asked (Debian: apt-get install nginx-light)"


def locations(text: str) -> dict[str, str]:
    """Each location of a configuration with what it does."""
    parts = re.split(r" location ((?:= )?\S+) \{", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_only_named_routes_are_passed_on_and_each_to_a_path_that_stands_there(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, 1111, "example.org:2222", 3333)
    found = locations(config_text(deployment, ServerSettings(names=("example.org",), listen="0.0.0.0")))
    passed = {name: re.findall(r"proxy_pass (\S+);", body) for name, body in found.items() if "proxy_pass" in body}
    fleet = {f"= /v1/fleet/{name}": [f"https://superlink/v1/fleet/{name}"] for name in FLEET}
    door = {f"= /v1/{name}": [f"http://127.0.0.1:3333/v1/{name}"] for name in ("ca", "time", "version", "enroll")}
    assert passed == fleet | door
    assert found["/"].split() == ["return", "404;", "}", "}", "}"]
    assert all("control" not in name and "runtime" not in name and "health" not in name for name in found)
    assert set(found) - set(passed) == {"/", "/v1/releases/"}


def test_ports_names_and_limits_come_from_the_settings(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, 1111, "[fd00::1]:2222", 3333)
    text = config_text(deployment, ServerSettings(names=("fd00::1",), listen="::", enrolments=7))
    assert "listen [::]:2222 ssl;" in text
    assert "server 127.0.0.1:1111;" in text
    assert "rate=7r/m" in text
    assert "@" not in text.replace("@folder@", "")


@pytest.mark.skipif(nginx_program() is None, reason=NO_NGINX)
def test_nginx_accepts_the_configuration_and_writes_into_the_folder_only(tmp_path: Path) -> None:
    deployment = initialise(tmp_path / "a folder's {name}; #1")
    command = proxy_command(deployment, read_settings(deployment.folder))
    assert (deployment.proxy / "nginx.conf").stat().st_mode & 0o777 == 0o600
    assert str(deployment.proxy / "nginx.conf") in command
    outside = re.findall(r'"(/[^"]*)"', (deployment.proxy / "nginx.conf").read_text())
    assert outside
    assert all(path.startswith(str(deployment.folder)) for path in outside)


@pytest.mark.skipif(nginx_program() is None, reason=NO_NGINX)
def test_nginx_finding_fault_is_said(tmp_path: Path) -> None:
    deployment = initialise(tmp_path / "d")
    (deployment.folder / "server.pem").write_text("no certificate")
    with pytest.raises(DeploymentError, match=r"nginx refuses .*nginx\.conf.*server\.pem"):
        proxy_command(deployment, read_settings(deployment.folder))


def test_a_path_that_means_something_to_nginx_is_refused(tmp_path: Path) -> None:
    for name in ('a"b', "a$host", "a\\b", "a\nb"):
        with pytest.raises(DeploymentError, match="control character in the path"):
            initialise(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_without_nginx_a_public_server_is_refused_and_a_local_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "nginx_program", lambda: None)
    with pytest.raises(DeploymentError, match=r"found no nginx, and .* as example\.org"):
        running.will_be_proxied(ServerSettings(names=("example.org",)))
    assert not running.will_be_proxied(ServerSettings())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("server.proxy.nginx_program", lambda: None)
    with pytest.raises(DeploymentError, match="apt-get install"):
        proxy_command(initialise(tmp_path / "d"), ServerSettings())


# --- settings and certificates -------------------------------------------------------------------------------


def test_settings_are_what_was_written(tmp_path: Path) -> None:
    settings = ServerSettings(names=("example.org", "10.0.0.1"), listen="0.0.0.0", port=8443, enrolments=5)
    write_settings(tmp_path, settings)
    assert read_settings(tmp_path) == settings
    assert (tmp_path / "server.toml").stat().st_mode & 0o777 == 0o600
    assert read_settings(tmp_path / "elsewhere") == ServerSettings()
    assert settings.host == "example.org"
    assert ServerSettings(names=("fd00::1",)).host == "[fd00::1]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "Did you mean 'port'?"),
        ("port = 'x'", "expected something like 0"),
        ("names = 'x'", "expected something like"),
        ("names = ['a b']", "expected a host name"),
        ("names = ['a:1']", "expected a host name"),
        ("listen = 'everywhere'", "expected an IP address"),
        ("port = 70000", "expected 0 to 65535"),
        ("enrolments = 0", "1 or more"),
        ("names = ['a']\nproxy = false", "through the proxy only"),
        ("port =", "no readable TOML"),
    ],
)
def test_odd_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "server.toml").write_text(text)
    with pytest.raises(DeploymentError, match=re.escape(message)):
        read_settings(tmp_path)


def test_a_certificate_gets_new_names_and_is_renewed_under_the_same_authority(tmp_path: Path) -> None:
    create_certificates(tmp_path)
    ca, first = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "server.pem").read_bytes()
    named = create_certificates(tmp_path, names=["example.org", "10.0.0.7", "fd00::1"])
    assert names_in(named) == ["localhost", "example.org", "127.0.0.1", "10.0.0.7", "fd00::1"]
    second = (tmp_path / "server.pem").read_bytes()
    assert create_certificates(tmp_path, names=["10.0.0.7"]).serial_number == named.serial_number
    renewed = create_certificates(tmp_path, names=["example.org"], renew=True)
    assert renewed.serial_number != named.serial_number
    assert len({first, second, (tmp_path / "server.pem").read_bytes()}) == 3
    assert (tmp_path / "ca.pem").read_bytes() == ca
    from cryptography import x509

    renewed.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
