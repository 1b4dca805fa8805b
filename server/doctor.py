"""Is everything in order? A deployment looked at from outside its processes, and what to do about what is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from server.deployment import Deployment
from server.evidence import heads_in
from server.fleet import Fleet
from server.ledger import ServerLedger
from server.registry import Enrolled, Registry
from server.rounds import Experiment
from server.settings import ServerSettings, read_settings
from shared.errors import HomerankError

OK, WARN, FAIL = "ok", "warn", "fail"

_PRIVATE = ("ca.key", "server.key", "registry.sqlite", "ledger.sqlite", "ledger.witness", "server.toml")
_LEAST_FREE = 500 * 1024**2


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. state: ok, warn or fail. detail: what was found, and what to do if it is not ok."""

    name: str
    state: str
    detail: str


def examine(deployment: Deployment) -> list[Finding]:
    """Every check, in the order in which an operator would make them; one that cannot be made fails."""
    settings = read_settings(deployment.folder)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "folder": lambda: _folder(deployment),
        "disk": lambda: _disk(deployment),
        "certificate": lambda: _certificate(deployment, settings),
        "nginx": lambda: _nginx(settings),
        "server": lambda: _processes(deployment, settings),
        "registry": lambda: _registry(deployment),
        "ledger": lambda: _ledger(deployment),
        "rounds": lambda: _rounds(deployment),
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            findings += check()
        except (HomerankError, OSError) as error:
            findings.append(Finding(name, FAIL, str(error)))
    return findings


def verify_ledger(deployment: Deployment) -> tuple[int, int]:
    """Rows of the ledger, and how many checkpoints and adapters rest on it. PrivacyError when one does not."""
    with closing(ServerLedger(deployment.ledger, witness=deployment.ledger.with_suffix(".witness"))) as ledger:
        heads = [head for folder in run_folders(deployment) for head in heads_in(folder)]
        for head in heads:
            ledger.require(head)
        return ledger.head().seq, len(heads)


def certificate_ends(deployment: Deployment) -> datetime:
    """When the server's certificate ends, UTC."""
    from cryptography import x509

    return x509.load_pem_x509_certificate((deployment.folder / "server.pem").read_bytes()).not_valid_after_utc


def _folder(deployment: Deployment) -> Iterator[Finding]:
    loose = [
        name for name in ("", *_PRIVATE) if (path := deployment.folder / name).exists() and path.stat().st_mode & 0o077
    ]
    if loose:
        names = ", ".join(name or "the folder" for name in loose)
        yield Finding("folder", FAIL, f"others can read {names}; chmod go-rwx, and think of the keys as known")
    else:
        yield Finding("folder", OK, f"{deployment.folder} and its keys are their owner's alone")
    if os.geteuid() == 0:
        yield Finding("user", WARN, "run by root; give the server a user of its own")


def _disk(deployment: Deployment) -> Iterator[Finding]:
    free = shutil.disk_usage(deployment.folder).free
    state = OK if free > _LEAST_FREE else FAIL
    yield Finding("disk", state, f"{free // 1024**2} MiB free" + ("" if state == OK else "; make room, rounds need it"))


def _certificate(deployment: Deployment, settings: ServerSettings) -> Iterator[Finding]:
    from cryptography import x509

    from server.certificates import names_in

    certificate = x509.load_pem_x509_certificate((deployment.folder / "server.pem").read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(deployment.ca.read_bytes()))
    days = (certificate_ends(deployment) - datetime.now(UTC)).days
    if missing := set(settings.names) - set(names_in(certificate)):
        yield Finding("certificate", FAIL, f"lacks {', '.join(sorted(missing))}; homerank-server renew, then restart")
    elif days < 0:
        yield Finding("certificate", FAIL, f"ended {-days} days ago; homerank-server renew, then restart")
    else:
        yield Finding("certificate", WARN if days < 30 else OK, f"ends in {days} days; homerank-server renew")


def _nginx(settings: ServerSettings) -> Iterator[Finding]:
    from server.proxy import nginx_program

    program = nginx_program()
    if program:
        yield Finding("nginx", OK, program)
    elif settings.proxy:
        state = FAIL if settings.names else WARN
        yield Finding("nginx", state, "not installed: devices cannot enrol (Debian: apt-get install nginx-light)")


def _processes(deployment: Deployment, settings: ServerSettings) -> Iterator[Finding]:
    from server.running import public_answers

    if not deployment.answers():
        yield Finding("server", WARN, f"not running; homerank-server start {deployment.folder}")
        return
    yield Finding("server", OK, f"the SuperLink answers at {deployment.address}, on loopback only")
    if deployment.door:
        answers = public_answers(deployment, settings)
        what = "answers" if answers else "does not answer; see logs/nginx.log and logs/door.log, and restart"
        yield Finding("public port", OK if answers else FAIL, f"{deployment.public} {what}")
    with Fleet(deployment) as fleet, closing(Registry(deployment.registry)) as registry:
        states = {node.node: node.status for node in fleet.nodes()}
        known = registry.devices()
    yield _agreement(states, known)


def _agreement(states: dict[str, str], known: list[Enrolled]) -> Finding:
    """Flower decides who is let in, the registry who should be."""
    revoked = [device for device in known if device.revoked is not None]
    still_in = [device.number for device in revoked if states.get(device.node, "unregistered") != "unregistered"]
    if still_in:
        numbers = ", ".join(map(str, still_in))
        return Finding("devices", FAIL, f"device {numbers} is revoked and Flower lets it in; revoke it again")
    strangers = set(states) - {device.node for device in known}
    if strangers:
        return Finding(
            "devices",
            WARN,
            f"Flower knows {len(strangers)} devices that are not in the registry: registered past homerank, or a"
            " registry restored from an older backup",
        )
    online = sum(state == "online" for state in states.values())
    return Finding("devices", OK, f"{len(known)} known, {online} online; Flower and the registry agree")


def _registry(deployment: Deployment) -> Iterator[Finding]:
    with closing(Registry(deployment.registry)) as registry:
        waiting = sum(1 for device in registry.devices() if not device.node and device.revoked is None)
        tokens = registry.open_tokens()
        yield Finding("registry", OK, f"readable; {tokens} tokens open, {waiting} enrolments unfinished")


def _ledger(deployment: Deployment) -> Iterator[Finding]:
    rows, heads = verify_ledger(deployment)
    yield Finding("ledger", OK, f"{rows} rows, an unbroken chain; {heads} checkpoints and adapters rest on it")


def _rounds(deployment: Deployment) -> Iterator[Finding]:
    experiment = Experiment.of(deployment)
    if experiment and experiment.state == "running" and not loop_runs(deployment):
        yield Finding("rounds", WARN, f"nobody keeps them going; homerank-server rounds resume {deployment.folder}")
    elif experiment:
        yield Finding("rounds", OK, f"{experiment.state}; {experiment.folder}")


def loop_runs(deployment: Deployment) -> bool:
    """Whether a process holds the loop's lock."""
    import fcntl

    from server.rounds import LOCK

    with (deployment.folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def run_folders(deployment: Deployment) -> list[Path]:
    """Where adapters and checkpoints of this deployment lie."""
    experiment = Experiment.of(deployment)
    outside = [Path(experiment.folder)] if experiment else []
    return [deployment.folder, *(path for path in outside if not path.is_relative_to(deployment.folder))]
