"""A deployment folder: what lies in it, and how it is made.

::

    DIR/                        mode 0700
      server.toml               what the operator decided: names, public port (server/settings.py)
      ca.pem, ca.key            certificate authority of this deployment       (keys: mode 0600)
      server.pem, server.key    certificate of the server, for localhost, 127.0.0.1 and its names
      server.json               ports, kept from start to start so that devices find the server again
      invitation.json           what a device needs besides its own key: address and CA certificate; nothing secret
      registry.sqlite           enrolment tokens (hashed) and devices
      ledger.sqlite, .witness   every release there ever was (server/ledger.py)
      superlink.sqlite          Flower's state: registered devices, runs
      flower/                   FLWR_HOME: Flower's configuration; ~/.flwr is never touched
      proxy/                    nginx.conf, made anew at each start, and nginx's own files
      releases/                 what is served read-only under /v1/releases/
      app/                      the bundle that names our apps (it holds no code)
      logs/                     superlink.log, door.log, nginx.log, run.log

Whoever can reach the SuperLink's port can register devices and start runs, with or without `ca.pem`: Flower's control
interface has no authentication of its own. That is why it listens on loopback only, and why nothing but single routes
is let through to it by the proxy (server/proxy.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from server.certificates import HOST, create_certificates, replace_file
from server.settings import FILE as SETTINGS
from server.settings import ServerSettings, read_settings, write_settings
from shared.errors import DeploymentError
from shared.terminal import free_port

#: The connection's name in Flower's own configuration file.
CONNECTION = "homerank"

INVITATION_SCHEMA = 1


@dataclass(frozen=True)
class Deployment:
    """The paths of one deployment folder, and its ports; 0 is a port that is not settled yet.

    port: the SuperLink's, on loopback. public: the address that devices are told, host:port. door: the port of the
    enrolment app on loopback; 0 when there is no proxy, and `public` is then the SuperLink's own address.
    """

    folder: Path
    port: int = 0
    public: str = ""
    door: int = 0

    @classmethod
    def at(cls, folder: Path) -> Deployment:
        """Open an existing deployment. Raises DeploymentError when `init` or `start` has never run there."""
        folder = folder.expanduser().resolve()
        try:
            facts = json.loads((folder / "server.json").read_text())
            port = int(facts["port"])
            return cls(folder, port, str(facts.get("public") or f"{HOST}:{port}"), int(facts.get("door", 0)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeploymentError(
                f"{folder} is not a homerank deployment; make one with: homerank-server start {folder}"
            ) from error

    @property
    def address(self) -> str:
        """host:port of the SuperLink, on loopback."""
        return f"{HOST}:{self.port}"

    @property
    def public_port(self) -> int:
        """The port that devices connect to."""
        return int(self.public.rpartition(":")[2])

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
    def registry(self) -> Path:
        """Tokens and devices."""
        return self.folder / "registry.sqlite"

    @property
    def ledger(self) -> Path:
        """The server's ledger; its witness lies beside it."""
        return self.folder / "ledger.sqlite"

    @property
    def releases(self) -> Path:
        """What is served read-only under /v1/releases/."""
        return self.folder / "releases"

    @property
    def proxy(self) -> Path:
        """nginx's folder."""
        return self.folder / "proxy"

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


def initialise(folder: Path, settings: ServerSettings | None = None) -> Deployment:
    """Create or complete a deployment folder. Starts nothing and opens no port.

    settings: replace those in the folder; None keeps them. Certificates are kept, except that the server's is issued
    anew when its names changed or it ends soon. Raises DeploymentError for a folder that cannot be used.
    """
    folder = folder.expanduser().resolve()
    require_plain(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DeploymentError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from None
    if settings is not None or not (folder / SETTINGS).exists():
        write_settings(folder, settings or ServerSettings())
    settings = read_settings(folder)
    create_certificates(folder, names=settings.names)
    known = Deployment.at(folder) if (folder / "server.json").exists() else Deployment(folder)
    taken = {known.port}
    public = settings.port or (known.public_port if known.door else 0) or _another_port(taken)
    deployment = Deployment(
        folder,
        known.port or _another_port(taken | {public}),
        f"{settings.host}:{public}",
        known.door or _another_port(taken | {public}),
    )
    _keep(deployment)
    for private in (deployment.proxy, deployment.flower_home, deployment.releases):
        private.mkdir(exist_ok=True, mode=0o700)
    _make_databases(deployment)
    return deployment


def prepare(folder: Path, *, port: int = 0, proxied: bool = False) -> Deployment:
    """Complete a deployment folder and settle its ports, for a start. Starts nothing.

    port: what devices connect to; 0 keeps the port of the last start, or the settings', or picks a free one the first
    time. proxied: nginx will stand in front; otherwise devices of this machine connect to the SuperLink itself.
    Raises DeploymentError when a server of this deployment is running already or somebody else listens on a port.
    """
    deployment = initialise(folder)
    settings = read_settings(deployment.folder)
    if deployment.answers():
        raise DeploymentError(
            f"a server of {deployment.folder} is already running at {deployment.address}; stop it first"
        )
    if proxied:
        public = f"{settings.host}:{port or deployment.public_port}"
        deployment = Deployment(deployment.folder, deployment.port, public, deployment.door)
        _require_free(settings.listen, deployment.public_port)
        _require_free(HOST, deployment.door)
    else:
        own = port or deployment.port
        deployment = Deployment(deployment.folder, own, f"{HOST}:{own}", 0)
    _require_free(HOST, deployment.port)
    _keep(deployment)
    return deployment


def require_plain(folder: Path) -> None:
    """Refuse a folder whose name would mean something in a configuration file of nginx."""
    if re.search(r'["$\\\x00-\x1f]', str(folder)):
        raise DeploymentError(
            f"{folder}: found a quote, dollar, backslash or control character in the path; choose another"
        )


def _another_port(taken: set[int]) -> int:
    """A free port of loopback that is none of these; it is remembered as taken."""
    while (port := free_port(HOST)) in taken:
        continue
    taken.add(port)
    return port


def _require_free(host: str, port: int) -> None:
    """Refuse a port on which somebody else listens."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DeploymentError(
                f"port {port} of {host} cannot be used ({error.strerror}); free it, or choose "
                "another with --port (devices then need the new invitation)"
            ) from error


def _keep(deployment: Deployment) -> None:
    """Write ports, invitation and Flower's configuration."""
    import tomli_w

    ports = {"port": deployment.port, "public": deployment.public, "door": deployment.door}
    replace_file(deployment.folder / "server.json", json.dumps(ports).encode(), mode=0o600)
    facts = {"schema": INVITATION_SCHEMA, "address": deployment.public, "ca": deployment.ca.read_text()}
    replace_file(deployment.invitation, json.dumps(facts, indent=1).encode())
    deployment.flower_home.mkdir(exist_ok=True, mode=0o700)
    connection = {"address": deployment.address, "root-certificates": str(deployment.ca)}
    content = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    replace_file(deployment.flower_home / "config.toml", tomli_w.dumps(content).encode(), mode=0o600)


def reachable(folder: Path) -> Deployment:
    """The deployment, if its server answers; DeploymentError otherwise."""
    deployment = Deployment.at(folder)
    if not deployment.answers():
        raise DeploymentError(
            f"no server answers at {deployment.address}; start it with: homerank-server start {deployment.folder}"
        )
    return deployment


def _make_databases(deployment: Deployment) -> None:
    """Make the registry and the ledger with its witness where there are none."""
    from server.ledger import ServerLedger
    from server.registry import Registry

    Registry(deployment.registry).close()
    ledger, witness = deployment.ledger, deployment.ledger.with_suffix(".witness")
    if not ledger.exists() and not witness.exists():  # one alone is for the ledger itself to judge
        ServerLedger(ledger, witness=witness).close()
        for path in (ledger, witness):
            path.chmod(0o600)
