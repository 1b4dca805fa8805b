"""A deployment folder and the Flower processes of the server that live in it.

::

    DIR/
      ca.pem, ca.key            certificate authority of this deployment       (keys: mode 0600)
      server.pem, server.key    certificate of the server, for localhost and 127.0.0.1
      server.json               address, kept from start to start so that devices find the server again
      invitation.json           what a device needs to join: address and CA certificate; nothing secret
      superlink.sqlite          Flower's state: registered devices, runs
      flower/                   FLWR_HOME: Flower's configuration; ~/.flwr is never touched
      app/                      the bundle that names our apps (it holds no code)
      logs/                     superlink.log, run.log

Whoever can reach the server's port and has `ca.pem` can register devices and start runs: Flower's control
interface has no authentication of its own. That is why the server listens on loopback only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.certificates import HOST, create_certificates, replace_file
from shared.errors import DeploymentError
from shared.terminal import Child, flower_environment, flower_program, free_port, wait_until

#: The connection's name in Flower's own configuration file.
CONNECTION = "homerank"

INVITATION_SCHEMA = 1


@dataclass(frozen=True)
class Deployment:
    """The paths of one deployment folder. `port` is 0 until the server has been started once."""

    folder: Path
    port: int = 0

    @classmethod
    def at(cls, folder: Path) -> Deployment:
        """Open an existing deployment. Raises DeploymentError when `start` has never run there."""
        folder = folder.expanduser().resolve()
        try:
            port = json.loads((folder / "server.json").read_text())["port"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeploymentError(
                f"{folder} is not a homerank deployment; make one with: homerank-server start {folder}"
            ) from error
        return cls(folder, int(port))

    @property
    def address(self) -> str:
        """host:port of the server."""
        return f"{HOST}:{self.port}"

    @property
    def ca(self) -> Path:
        """Certificate of the deployment's authority, PEM."""
        return self.folder / "ca.pem"

    @property
    def invitation(self) -> Path:
        """The file to hand to a device."""
        return self.folder / "invitation.json"

    @property
    def flower_home(self) -> Path:
        """FLWR_HOME of the server's processes."""
        return self.folder / "flower"

    @property
    def superlink_log(self) -> Path:
        """What the SuperLink and the ServerApp wrote."""
        return self.folder / "logs" / "superlink.log"

    @property
    def run_log(self) -> Path:
        """What the latest run streamed."""
        return self.folder / "logs" / "run.log"

    def answers(self) -> bool:
        """Whether a server with this deployment's certificate is listening and healthy."""
        import ssl
        from urllib.error import URLError
        from urllib.request import urlopen

        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            with urlopen(f"https://{self.address}/health", timeout=3, context=context) as reply:
                return bool(reply.status == 200)
        except (URLError, OSError, ssl.SSLError):
            return False


def prepare(folder: Path, *, port: int = 0) -> Deployment:
    """Create or complete a deployment folder and settle its port. Starts nothing.

    port: 0 keeps the port of the last start, or picks a free one the first time. Raises DeploymentError when
    a server of this deployment is running already or somebody else listens on the port.
    """
    folder = folder.expanduser().resolve()
    create_certificates(folder)
    known = Deployment.at(folder).port if (folder / "server.json").exists() else 0
    deployment = Deployment(folder, port or known or free_port(HOST))
    if known and Deployment(folder, known).answers():
        raise DeploymentError(f"a server of {folder} is already running at {HOST}:{known}; stop it first")
    _require_free(deployment)
    replace_file(folder / "server.json", json.dumps({"port": deployment.port}).encode())
    _write_invitation(deployment)
    _write_flower_config(deployment)
    return deployment


def _require_free(deployment: Deployment) -> None:
    """Refuse a port on which somebody else listens."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, deployment.port))
        except OSError as error:
            raise DeploymentError(
                f"port {deployment.port} of {HOST} cannot be used ({error.strerror}); free it, or choose "
                "another with --port (devices then need the new invitation)"
            ) from error


def _write_invitation(deployment: Deployment) -> None:
    """The public facts a device needs, in one file."""
    facts = {
        "schema": INVITATION_SCHEMA,
        "address": deployment.address,
        "ca": deployment.ca.read_text(),
    }
    replace_file(deployment.invitation, json.dumps(facts, indent=1).encode())


def _write_flower_config(deployment: Deployment) -> None:
    """Tell Flower's command line where the server is."""
    import tomli_w

    deployment.flower_home.mkdir(exist_ok=True, mode=0o700)
    connection = {"address": deployment.address, "root-certificates": str(deployment.ca)}
    content = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    replace_file(deployment.flower_home / "config.toml", tomli_w.dumps(content).encode())


@contextmanager
def running_server(folder: Path, *, port: int = 0, timeout: float = 60.0) -> Iterator[tuple[Deployment, Child]]:
    """Run the SuperLink, with TLS and device authentication, for the length of a `with` block.

    port: see `prepare`. timeout: seconds until the server must answer. Leaving the block ends the server and
    every ServerApp it started. Raises DeploymentError with the end of the log when it does not come up.
    """
    deployment = prepare(folder, port=port)
    command = [flower_program("flower-superlink"), *_superlink_options(deployment)]
    with Child(
        command,
        log=deployment.superlink_log,
        env=flower_environment(deployment.flower_home),
        cwd=deployment.folder,
    ) as server:
        wait_until(lambda: server.exit_code is not None or deployment.answers(), timeout=timeout)
        if server.exit_code is not None or not deployment.answers():
            what = f"did not answer within {timeout:.0f} s" if server.exit_code is None else "stopped at once"
            raise DeploymentError(f"the server {what}; end of {server.log}:\n{server.tail()}")
        yield deployment, server


def _superlink_options(deployment: Deployment) -> list[str]:
    """Command line of the SuperLink."""
    folder = deployment.folder
    return [
        *("--ssl-ca-certfile", str(deployment.ca)),
        *("--ssl-certfile", str(folder / "server.pem")),
        *("--ssl-keyfile", str(folder / "server.key")),
        "--enable-supernode-auth",
        *("--host", HOST),
        *("--port", str(deployment.port)),
        *("--database", str(folder / "superlink.sqlite")),
    ]
