"""The processes of a server: Flower's SuperLink, the enrolment app, and nginx in front of both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.deployment import Deployment, initialise, prepare
from server.fleet import Fleet
from server.proxy import nginx_program, proxy_command
from server.registry import Registry
from server.settings import ServerSettings, read_settings
from shared.enrolment import TIME_PATH
from shared.errors import DeploymentError
from shared.terminal import Child, flower_environment, flower_program, wait_until


@dataclass(frozen=True)
class Server:
    """A running server: its folder and its processes, of which none may end before the others."""

    deployment: Deployment
    children: Sequence[Child]

    @property
    def ended(self) -> Child | None:
        """The first process that is no longer there."""
        return next((child for child in self.children if child.exit_code is not None), None)


def will_be_proxied(settings: ServerSettings) -> bool:
    """Whether nginx will stand in front. DeploymentError when other machines are to be served and it is missing."""
    if not settings.proxy:
        return False
    if nginx_program() is None and settings.names:
        raise DeploymentError(
            f"found no nginx, and this server is to be reached as {settings.names[0]}; install it (Debian: apt-get"
            " install nginx-light)"
        )
    return nginx_program() is not None


@contextmanager
def running_server(
    folder: Path, *, port: int = 0, timeout: float = 60.0, warn: Callable[[str], None] = lambda line: None
) -> Iterator[Server]:
    """Run the server for the length of a `with` block.

    port: what devices connect to, see `prepare`. timeout: seconds until everything must answer. warn: told when this
    machine lacks nginx; only its own devices can then be served, and they are registered by hand.

    Leaving the block ends all processes and every ServerApp they started. Raises DeploymentError with the end of the
    log when one does not come up.
    """
    settings = read_settings(initialise(folder).folder)
    proxied = will_be_proxied(settings)
    if settings.proxy and not proxied:
        warn("found no nginx: only devices of this machine are served, and enrolment tokens do not work")
    deployment = prepare(folder, port=port, proxied=proxied)
    environment = server_environment(deployment)
    nginx = proxy_command(deployment, settings) if proxied else []
    with ExitStack() as stack:

        def begin(command: Sequence[str], log: Path) -> Child:
            return stack.enter_context(Child(command, log=log, env=environment, cwd=deployment.folder))

        superlink = [flower_program("flower-superlink"), *_superlink_options(deployment)]
        children = [begin(superlink, deployment.superlink_log)]
        _await(children[-1], deployment.answers, timeout=timeout)
        shut_out_revoked(deployment)
        if proxied:
            logs = deployment.folder / "logs"
            children.append(begin([sys.executable, "-m", "server.door", str(deployment.folder)], logs / "door.log"))
            _await(children[-1], lambda: _open(deployment.door), timeout=timeout)
            children.append(begin(nginx, logs / "nginx.log"))
            _await(children[-1], lambda: public_answers(deployment, settings), timeout=timeout)
        yield Server(deployment, children)


def shut_out_revoked(deployment: Deployment) -> None:
    """Have Flower refuse every device that the registry says is revoked, whatever was restored or interrupted."""
    with closing(Registry(deployment.registry)) as registry:
        revoked = {device.key for device in registry.devices() if device.revoked is not None}
    if revoked:
        with Fleet(deployment) as fleet:
            for node in fleet.nodes():
                if node.key in revoked and node.status != "unregistered":
                    fleet.unregister(node.node)


def server_environment(deployment: Deployment) -> dict[str, str]:
    """Environment of the server's processes. Flower's older gRPC ports, which have no TLS of ours, stay shut."""
    environment = flower_environment(deployment.flower_home)
    return {name: value for name, value in environment.items() if not name.startswith("FLWR_INTERNAL_GRPC")}


def public_answers(deployment: Deployment, settings: ServerSettings) -> bool:
    """Whether the public port answers with this deployment's certificate, enrolment app included."""
    import http.client
    import ssl

    context = ssl.create_default_context(cafile=str(deployment.ca))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.listen, settings.listen)
    connection = http.client.HTTPSConnection(host, deployment.public_port, timeout=3, context=context)
    try:
        context.check_hostname = False  # reached by its address here, by its name elsewhere
        connection.request("GET", TIME_PATH)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _await(child: Child, answers: Callable[[], bool], *, timeout: float) -> None:
    """Wait until a process answers. DeploymentError with the end of its log when it does not."""
    if wait_until(lambda: child.exit_code is not None or answers(), timeout=timeout) and child.exit_code is None:
        return
    what = f"did not answer within {timeout:.0f} s" if child.exit_code is None else "stopped at once"
    raise DeploymentError(f"the server ({child.log.stem}) {what}; end of {child.log}:\n{child.tail()}")


def _open(port: int) -> bool:
    """Whether something listens on this port of loopback."""
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _superlink_options(deployment: Deployment) -> list[str]:
    """Command line of the SuperLink: TLS, authentication of devices, and loopback only."""
    folder = deployment.folder
    host, _, port = deployment.address.rpartition(":")
    return [
        *("--ssl-ca-certfile", str(deployment.ca)),
        *("--ssl-certfile", str(folder / "server.pem")),
        *("--ssl-keyfile", str(folder / "server.key")),
        "--enable-supernode-auth",
        *("--host", host),
        *("--port", port),
        *("--database", str(folder / "superlink.sqlite")),
    ]
