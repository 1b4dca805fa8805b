"""The one public port: nginx lets single routes through and answers everything else itself.

What a SuperNode of flwr 1.41 calls, found in its `FleetHttpClient` and confirmed by the test that tries every route:
HTTPS POST requests with protobuf bodies, each signed with the device's key. They are matched by their whole path and
passed on with a path that stands in the configuration, so that nothing a caller writes into a URL reaches another
route of the SuperLink. `register-node` and `unregister-node` belong to the same API and are left out: with
authentication on they only refuse.
"""

from __future__ import annotations

import os
import subprocess
from shutil import which

from server.certificates import HOST, replace_file
from server.deployment import Deployment
from server.settings import ServerSettings
from shared.enrolment import CA_PATH, ENROL_PATH, LARGEST_BODY, TIME_PATH, VERSION_PATH
from shared.errors import DeploymentError

#: Routes of Flower's fleet API that a registered SuperNode uses.
FLEET = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
FLEET_PREFIX = "/v1/fleet/"
RELEASES_PREFIX = "/v1/releases/"

#: Flower cuts arrays into chunks of 5 MB.
_LARGEST_CHUNK = "8m"

_TEMPLATE = """\
# Written by homerank-server at each start; changes are lost.
daemon off;
worker_processes 1;
@user@
pid "@proxy@/nginx.pid";
error_log stderr warn;
events { worker_connections 4096; }
http {
    access_log off;
    server_tokens off;
    default_type application/octet-stream;
    types { application/json json; text/plain txt; }
    client_body_temp_path "@proxy@/body";
    proxy_temp_path "@proxy@/answers";
    fastcgi_temp_path "@proxy@/unused-fastcgi";
    uwsgi_temp_path "@proxy@/unused-uwsgi";
    scgi_temp_path "@proxy@/unused-scgi";

    client_header_timeout 15s;
    client_body_timeout 60s;
    send_timeout 60s;
    large_client_header_buffers 4 8k;
    client_max_body_size @body@;
    limit_req_zone $binary_remote_addr zone=enrolments:1m rate=@enrolments@r/m;
    limit_req_status 429;
    limit_req_log_level info;

    # The SuperLink closes idle connections after 5 s.
    upstream superlink { server @superlink@; keepalive 16; keepalive_timeout 2s; }

    # What is passed on says nothing that the caller could choose but its body and its signature.
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host localhost;
    proxy_set_header X-Forwarded-For "";
    proxy_set_header X-Forwarded-Proto "";
    proxy_set_header Forwarded "";
    proxy_set_header Cookie "";
    proxy_set_header Authorization "";
    proxy_redirect off;
    proxy_connect_timeout 5s;
    proxy_read_timeout 120s;
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate "@folder@/ca.pem";
    proxy_ssl_name localhost;
    proxy_ssl_protocols TLSv1.2 TLSv1.3;

    server {
        listen @listen@:@public@ ssl;
        server_name _;
        ssl_certificate "@folder@/server.pem";
        ssl_certificate_key "@folder@/server.key";
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:2m;
        ssl_session_tickets off;

@fleet@
@door@
        location @releases@ {
            limit_except GET { deny all; }
            alias "@folder@/releases/";
            disable_symlinks on "from=@folder@/releases/";
            autoindex off;
        }

        location / { return 404; }
    }
}
"""

_FLEET_ROUTE = """\
        location = {path} {{
            limit_except POST {{ deny all; }}
            client_max_body_size {largest};
            proxy_pass https://superlink{path};
        }}
"""
_DOOR_ROUTE = """\
        location = {path} {{
            limit_except {method} {{ deny all; }}{limit}
            proxy_pass http://{door}{path};
        }}
"""
_LIMIT = "\n            limit_req zone=enrolments burst=10 nodelay;"


def config_text(deployment: Deployment, settings: ServerSettings) -> str:
    """nginx's configuration for this deployment; it needs no root and writes into the deployment folder only."""
    door = f"{HOST}:{deployment.door}"
    values = {
        # nginx's workers would otherwise give up root for a user who cannot read the deployment folder.
        "user": "user root;" if os.geteuid() == 0 else "",
        "proxy": str(deployment.proxy),
        "folder": str(deployment.folder),
        "body": str(LARGEST_BODY),
        "enrolments": str(settings.enrolments),
        "superlink": deployment.address,
        "listen": f"[{settings.listen}]" if ":" in settings.listen else settings.listen,
        "public": str(deployment.public_port),
        "releases": RELEASES_PREFIX,
        "fleet": "".join(_FLEET_ROUTE.format(path=FLEET_PREFIX + name, largest=_LARGEST_CHUNK) for name in FLEET),
        "door": "".join(
            _DOOR_ROUTE.format(path=path, method=method, door=door, limit=_LIMIT if path == ENROL_PATH else "")
            for path, method in ((CA_PATH, "GET"), (TIME_PATH, "GET"), (VERSION_PATH, "GET"), (ENROL_PATH, "POST"))
        ),
    }
    text = _TEMPLATE
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def nginx_program() -> str | None:
    """Path of nginx, None where it is not installed."""
    return which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"]))


def proxy_command(deployment: Deployment, settings: ServerSettings) -> list[str]:
    """Write the configuration, have nginx check it, and return the command that serves it.

    Raises DeploymentError when nginx is missing or finds fault with the configuration.
    """
    program = nginx_program()
    if program is None:
        raise DeploymentError(
            "found no nginx, without which other machines cannot be served; install it (Debian: apt-get install"
            " nginx-light) or set proxy = false in server.toml for devices of this machine only"
        )
    path = deployment.proxy / "nginx.conf"
    replace_file(path, config_text(deployment, settings).encode(), mode=0o600)
    command = [program, "-c", str(path), "-p", str(deployment.proxy), "-e", "stderr"]
    check = subprocess.run([*command, "-t"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    if check.returncode:
        raise DeploymentError(f"nginx refuses {path}: {' '.join(check.stderr.split())[-600:]}")
    return command


def reload_proxy(deployment: Deployment) -> bool:
    """Have a running nginx read its certificate again, without losing a connection; False when none runs."""
    import signal

    import psutil  # type: ignore[import-untyped]

    pid = running_proxy(deployment)
    if pid:
        psutil.Process(pid).send_signal(signal.SIGHUP)
    return bool(pid)


def running_proxy(deployment: Deployment) -> int:
    """Process id of this deployment's nginx, 0 when none runs. A pid file that another process inherited is ignored."""
    import psutil

    try:
        pid = int((deployment.proxy / "nginx.pid").read_text())
        words = psutil.Process(pid).cmdline()
    except (OSError, ValueError, psutil.Error):
        return 0
    return pid if str(deployment.proxy / "nginx.conf") in " ".join(words) else 0
