"""What an operator decides about a deployment: the file `server.toml` in its folder."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path

from server.certificates import HOST, replace_file
from shared.errors import DeploymentError

FILE = "server.toml"


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a deployment.

    names: host names and IP addresses under which devices reach the server, for its certificate; the first one is in
    every token. Empty: this machine only. listen: address the public port is opened on. port: the public port, 0 for
    any free one, kept afterwards. proxy: whether nginx stands in front; without it only this machine is served.
    enrolments: requests to enrol per minute that are looked at, from one address; ten times as many from all.
    """

    names: tuple[str, ...] = ()
    listen: str = HOST
    port: int = 0
    proxy: bool = True
    enrolments: int = 30

    def __post_init__(self) -> None:
        for name in self.names:
            if not _is_address(name) and not re.fullmatch(
                r"(?=.{1,200}$)[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", name
            ):
                raise DeploymentError(f"found the name {name!r}; expected a host name or an IP address without a port")
        if not _is_address(self.listen):
            raise DeploymentError(f"listen: found {self.listen!r}; expected an IP address, for example 0.0.0.0")
        if not 0 <= self.port < 65536:
            raise DeploymentError(f"port: found {self.port}; expected 0 to 65535")
        if self.enrolments < 1:
            raise DeploymentError(f"enrolments: found {self.enrolments}; expected 1 or more a minute")
        if self.names and not self.proxy:
            raise DeploymentError("found names and no proxy; other machines reach the server through the proxy only")

    @property
    def host(self) -> str:
        """The host in the address that devices are given."""
        first = self.names[0] if self.names else HOST
        return f"[{first}]" if ":" in first else first.lower()


def read_settings(folder: Path) -> ServerSettings:
    """The settings in a deployment folder, the defaults where there is no file. DeploymentError for anything odd."""
    path = folder / FILE
    if not path.exists():
        return ServerSettings()
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeploymentError(f"{path}: found no readable TOML ({error}); mend it, or run init again") from None
    defaults = asdict(ServerSettings())
    for key, value in found.items():
        if key not in defaults:
            close = get_close_matches(key, defaults, n=1)
            raise DeploymentError(
                f"{path}: found the setting {key!r}" + (f". Did you mean {close[0]!r}?" if close else "")
            )
        wanted = type(defaults[key])
        if key == "names" and isinstance(value, list) and all(isinstance(name, str) for name in value):
            found[key] = tuple(value)
        elif type(value) is not wanted:
            raise DeploymentError(f"{path}: found {key} = {value!r}; expected something like {defaults[key]!r}")
    return ServerSettings(**found)


def write_settings(folder: Path, settings: ServerSettings) -> None:
    """Replace the file, with a line on each setting."""
    import tomli_w

    explained = {
        "names": "host names and addresses of the server, for its certificate; the first one is in every token",
        "listen": "address on which the public port is opened; 0.0.0.0 is every one",
        "port": "the public port; 0 picks a free one and keeps it",
        "proxy": "nginx in front; without it only this machine is served",
        "enrolments": "requests to enrol per minute from one address",
    }
    lines = ["# Settings of this homerank server; read when it starts.", ""]
    for field in fields(settings):
        value = getattr(settings, field.name)
        lines += [f"# {explained[field.name]}"]
        lines += [tomli_w.dumps({field.name: list(value) if isinstance(value, tuple) else value}).rstrip(), ""]
    replace_file(folder / FILE, "\n".join(lines).encode(), mode=0o600)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
