"""Who can reach what: every route, on every port, tried by everybody. Run as a module, it prints the page."""

from __future__ import annotations

import base64
import datetime
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from client.deployment import DeviceHome, create_keys
from server.deployment import initialise
from server.fleet import Fleet
from server.proxy import FLEET_PREFIX
from server.running import Server, running_server
from server.runs import register
from server.settings import ServerSettings
from shared.enrolment import CA_PATH, ENROL_PATH, TIME_PATH, VERSION_PATH

CALLERS = ("outsider", "CA certificate", "unknown key", "revoked key", "device")
DOOR = {CA_PATH: "GET", TIME_PATH: "GET", VERSION_PATH: "GET", ENROL_PATH: "POST"}
#: Ways to smuggle one route through another's name.
DETOURS = (
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/pull-messages/../../control/list-nodes",
    "/v1/fleet//pull-messages/..%2f..%2fcontrol/list-nodes",
    "/v1/control/list-nodes/../../fleet/pull-messages",
    "/v1/control/list-nodes%3f/../../fleet/pull-messages",
    "/V1/CONTROL/list-nodes",
    "//v1/control/list-nodes",
    "/v1/releases/../ca.key",
    "/v1/releases/..%2fca.key",
    "/v1/releases../ca.key",
    "/v1/releases/linked-out",
)
OPEN, REFUSED, CLOSED = "open", "refused", "closed"


@dataclass(frozen=True)
class Route:
    """A method and a path; the type of its protobuf request where Flower has one."""

    method: str
    path: str
    request: type[Any] | None = None


@dataclass(frozen=True)
class Key:
    """What a device signs with, and the node id it says it is."""

    private: Any
    node: int

    @classmethod
    def made(cls, folder: Path, node: int = 12345) -> Key:
        """A new key, or the one that is there."""
        home = DeviceHome.at(folder)
        create_keys(home)
        return cls(load_ssh_private_key(home.private_key.read_bytes(), password=None), node)

    def signed(self) -> dict[str, str]:
        """The headers of a SuperNode."""
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

        stamp = datetime.datetime.now(datetime.UTC).isoformat()
        public = public_key_to_bytes(self.private.public_key())
        signature = sign_message(self.private, stamp.encode())
        return {
            "flwr-timestamp": stamp,
            "flwr-public-key": base64.b64encode(public).decode(),
            "flwr-signature": base64.b64encode(signature).decode(),
        }

    def fill(self, message: Any) -> None:
        """Say who asks, wherever the request has a field for it."""
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        names = {field.name for field in message.DESCRIPTOR.fields}
        if "node" in names:
            message.node.node_id = self.node
        if "node_id" in names:
            message.node_id = self.node
        if "public_key" in names:
            message.public_key = public_key_to_bytes(self.private.public_key())
        if "heartbeat_interval" in names:
            message.heartbeat_interval = 30


def flower_routes() -> list[Route]:
    """Every route of the SuperLink that is installed."""
    from fastapi.routing import iter_route_contexts
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
    from flwr.superlink.main import create_app

    found = []
    for context in iter_route_contexts(create_app().routes):
        path = str(getattr(context, "path", None) or context.route.path)
        for method in sorted(set(getattr(context.route, "methods", None) or ()) - {"HEAD"}):
            found.append(Route(method, path, PROTOBUF_REQUEST_TYPES.get((method, path))))
    # a device's own routes first: over Flower's control interface everybody on the machine can unregister it
    return sorted(found, key=lambda r: (not r.path.startswith(FLEET_PREFIX), "deactivate" in r.path, r.path))


class Survey:
    """One running server, and everybody who may want something from it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.deployment = server.deployment
        self.server = server
        keys = {name: Key.made(folder / name) for name in ("unknown key", "revoked key", "device")}
        for name in ("revoked key", "device"):
            node = register(self.deployment.folder, folder / name / "device.pub")
            keys[name] = Key(keys[name].private, int(node))
        with Fleet(self.deployment) as fleet:
            fleet.unregister(str(keys["revoked key"].node))
        self.keys = keys
        trusting = ssl.create_default_context(cafile=str(self.deployment.ca))
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        self._http = {name: httpx.Client(verify=anybody, timeout=10) for name in CALLERS}
        self._http["CA certificate"] = httpx.Client(verify=trusting, timeout=10)
        (self.deployment.releases / "note.txt").write_text("released")
        (self.deployment.releases / "linked-out").symlink_to("/etc/hostname")

    def ask(self, caller: str, origin: str, route: Route) -> tuple[int, str]:
        """Status and body, 0 when nobody listens."""
        from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

        key = self.keys.get(caller)
        headers, content = {}, b""
        if route.request is not None:
            message = route.request()
            if key:
                key.fill(message)
                headers = key.signed()
            content = message.SerializeToString()
            headers |= {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
        request = httpx.Request(route.method, origin, headers=headers, content=content)
        # the path as it is written: httpx would tidy it up
        request.url = request.url.copy_with(raw_path=route.path.encode())
        try:
            answer = self._http[caller].send(request)
        except (httpx.ConnectError, httpx.RemoteProtocolError):
            return 0, ""
        except httpx.ReadTimeout:
            return 200, "a stream"  # it was let in and waits
        return answer.status_code, answer.text

    def word(self, caller: str, origin: str, route: Route) -> str:
        """open: the handler of the route answered. refused: for want of a key. closed: there is no such route here."""
        status, body = self.ask(caller, origin, route)
        no_route = status in (404, 405) and '"code"' not in body  # Flower's handlers say 404 with a code
        if status == 0 or no_route or "<center>nginx</center>" in body:
            return CLOSED
        return REFUSED if status == 401 or (status == 412 and route.path.startswith(FLEET_PREFIX)) else OPEN

    def row(self, origin: str, route: Route) -> list[str]:
        """What each caller gets."""
        return [self.word(caller, origin, route) for caller in CALLERS]

    def close(self) -> None:
        """Close all connections."""
        for http in self._http.values():
            http.close()


def listening(server: Server) -> dict[int, set[str]]:
    """Ports that any process of the server listens on, with their addresses."""
    found: dict[int, set[str]] = {}
    for child in server.children:
        for process in (parent := psutil.Process(child.pid), *parent.children(recursive=True)):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
    return found


def rows(survey: Survey) -> Iterator[list[str]]:
    """Port, where it is tried from, route, and what each caller gets."""
    deployment = survey.deployment
    door = [Route(method, path) for path, method in DOOR.items()]
    own = [*door, Route("GET", "/v1/releases/note.txt"), Route("PUT", "/v1/releases/note.txt"), Route("GET", "/")]
    listed = next(route.request for route in flower_routes() if route.path == "/v1/control/list-nodes")
    detours = [Route("POST", path, listed) for path in DETOURS]
    flower = flower_routes()
    public, superlink = f"https://127.0.0.1:{deployment.public_port}", f"https://{deployment.address}"
    for route in [*own, *flower, *detours, *(Route("GET", path) for path in DETOURS)]:
        yield ["public", route.method, route.path, *survey.row(public, route)]
    for route in [*flower, *own]:
        yield ["SuperLink", route.method, route.path, *survey.row(superlink, route)]
    for route in [*own, *flower]:
        yield ["enrolment app", route.method, route.path, *survey.row(f"http://127.0.0.1:{deployment.door}", route)]


def page(survey: Survey) -> str:
    """The content of docs/reachability.md."""
    from flwr.supercore.version import package_version

    deployment, table = survey.deployment, list(rows(survey))
    names = {deployment.public_port: "public", deployment.port: "SuperLink", deployment.door: "enrolment app"}
    ports = {names.get(port, "another"): ", ".join(sorted(found)) for port, found in listening(survey.server).items()}
    closed = {
        name: all(
            survey.ask("device", f"{scheme}://127.0.0.2:{port}", Route("GET", "/"))[0] == 0
            for scheme in ("http", "https")
        )
        for port, name in names.items()
    }
    lines = [
        "# Who can reach what",
        "",
        f"Written by `python -m tests.server.reachability > docs/reachability.md` with flwr {package_version}; a test",
        "starts a server, tries every route again on every port, and compares. Do not edit by hand.",
        "",
        "- *outsider*: reaches the port and checks no certificate. *CA certificate*: has `ca.pem`, which is public.",
        "- *unknown key*, *revoked key*: signs requests as a SuperNode does, with a key that was never registered, or",
        "  is no longer. *device*: signs with a registered key.",
        "- open: the code behind the route answered, if only to say that the request made no sense. refused: turned",
        "  away for want of a registered key or of a task's token. closed: no such route here.",
        "",
        "| port | listens on | answers on another address of the machine |",
        "|---|---|---|",
        *(f"| {name} | {ports[name]} | {'no' if closed[name] else 'yes'} |" for name in sorted(ports)),
        "",
        "The ports of the SuperLink and of the enrolment app are on loopback: whoever can run programs on the server's",
        "machine, as any user, reaches them, and through Flower's control interface can register devices and start",
        "programs as the server's user. Let nobody else use that machine.",
    ]
    for port, intro in (
        ("public", "What the world sees."),
        ("SuperLink", "From the server's machine only."),
        ("enrolment app", "From the server's machine only; the same app as behind the public port."),
    ):
        lines += [
            "",
            f"## {port}",
            "",
            intro,
            "",
            f"| route | {' | '.join(CALLERS)} |",
            "|---|" + "---|" * len(CALLERS),
        ]
        mine = [row for row in table if row[0] == port]
        lines += [f"| `{row[1]} {row[2]}` | {' | '.join(row[3:])} |" for row in mine if set(row[3:]) != {CLOSED}]
        shut = [f"- `{row[1]} {row[2]}`" for row in mine if set(row[3:]) == {CLOSED}]
        lines += ["", f"Closed to all of them ({len(shut)} tried):", "", *shut] if shut else []
    return "\n".join(lines) + "\n"


def survey_of(folder: Path) -> Iterator[Survey]:
    """Start a server that listens on all addresses, and end it."""
    settings = ServerSettings(names=("127.0.0.1",), listen="0.0.0.0")
    initialise(folder / "server", settings)
    with running_server(folder / "server", timeout=120) as server:
        survey = Survey(server, folder)
        try:
            yield survey
        finally:
            survey.close()


def main() -> None:
    """Print the page."""
    with TemporaryDirectory() as folder:
        for survey in survey_of(Path(folder)):
            sys.stdout.write(page(survey))


if __name__ == "__main__":
    main()
