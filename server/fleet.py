"""What Flower knows of devices, over its control interface: the one place that speaks it without `flwr`.

The same calls as `flwr supernode register`, `unregister` and `list` make. A program start of `flwr` costs seconds each
time, and its list leaves out the public keys, by which alone a device is found again after a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.deployment import Deployment
from shared.errors import DeploymentError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class Node:
    """A device in Flower's eyes. key: OpenSSH public key. status: registered, online, offline or unregistered."""

    node: str
    key: str
    status: str
    last_active: str


class Fleet:
    """Flower's register of devices. Every method raises DeploymentError when the server does not answer."""

    def __init__(self, deployment: Deployment) -> None:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

        self._deployment = deployment
        self._client = ControlHttpClient.from_server_address(
            server_address=deployment.address,
            insecure=False,
            root_certificates=deployment.ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def register(self, key: str) -> str | None:
        """Let the device with this OpenSSH public key in; its node id, None when the key is or was registered."""
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        encoded = public_key_to_bytes(read_key(key))
        try:
            answer = self._call(lambda: self._client.RegisterNode(RegisterNodeRequest(public_key=encoded)))
        except DeploymentError as error:
            if any(node.key == key for node in self.nodes()):
                return None
            raise error
        return str(answer.node_id) if answer.node_id else None

    def unregister(self, node: str) -> None:
        """Shut a device out at once and for ever: Flower takes no key twice. One that is out already stays out."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        if any(known.node == node and known.status != "unregistered" for known in self.nodes()):
            self._call(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=int(node))))

    def nodes(self) -> list[Node]:
        """All devices, those that were shut out too."""
        from flwr.proto.control_pb2 import ListNodesRequest

        found = self._call(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        return [Node(str(n.node_id), _openssh(n.public_key), n.status, n.last_activated_at) for n in found]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, request: Callable[[], Any]) -> Any:
        import httpx

        try:
            return request()
        except httpx.HTTPStatusError as error:
            detail = " ".join(error.response.text.split())[:300]
            raise DeploymentError(f"Flower refused a request ({error.response.status_code}): {detail}") from None
        except httpx.HTTPError as error:
            raise DeploymentError(
                f"no server answers at {self._deployment.address} ({type(error).__name__}); start it with:"
                f" homerank-server start {self._deployment.folder}"
            ) from None


def read_key(text: str, *, name: str = "the key") -> ec.EllipticCurvePublicKey:
    """An OpenSSH public key of a NIST curve; DeploymentError for anything else, since Flower gives no usable reason."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(text.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeploymentError(f"{name} is not a readable OpenSSH public key; expected device.pub") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeploymentError(f"{name} holds another kind of key; expected a NIST elliptic curve key")
    return key


def canonical_key(text: str, *, name: str = "the key") -> str:
    """A public key as one spelling, without its comment, so that two spellings are not two devices."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return read_key(text, name=name).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def _openssh(pem: bytes) -> str:
    """Flower keeps keys as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        return load_pem_public_key(pem).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
    except ValueError:
        return ""
