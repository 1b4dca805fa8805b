"""What a hostile bundle would run on a device: tries everything, and writes down what it got.

`python -m tests.client.install.hostile SPEC REPORT`, as the SuperNode's user. SPEC says what an attacker who knows this
project would know: paths, the service's process, and packed questions. Nothing here is a secret of the person's.
"""

from __future__ import annotations

import base64
import ctypes
import http.client
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOUND: list[tuple[str, str]] = []
HEARD: list[bytes] = []
SECRETS = (
    "events.sqlite",
    "events.sqlite-wal",
    "ledger.sqlite",
    "ledger.witness",
    "sent.sqlite",
    "token",
    "service.json",
    "settings.json",
    "items.jsonl",
    "adapter/homerank.json",
    "door.lock",
)


def attempt(name: str, deed: Callable[[], Any]) -> None:
    """Do it; what came of it is a word, or the error."""
    try:
        got = deed()
    except OSError as error:
        got = type(error).__name__
    except Exception as error:  # noqa: BLE001  # whatever it is belongs into the report
        got = f"unexpected {type(error).__name__}: {error}"
    FOUND.append((name, str(got)))


def raw(path: str, data: bytes, *, announce: int | None = None) -> bytes:
    """Everything the socket says to some bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(120)
        channel.connect(path)
        try:
            channel.sendall(struct.pack(">I", len(data) if announce is None else announce) + data)
            channel.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while part := channel.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    HEARD.append(answer)
    return answer


def verdict(answer: bytes) -> str:
    """An answer in a word: the code of a refusal, or how many numbers came."""
    from client.door import wire

    if not answer:
        return "nothing"
    (length,) = struct.unpack(">I", answer[:4])
    if len(answer) != 4 + length:
        return "unexpected bytes"
    records = wire.unpack(answer[4:])
    config = dict(records["config"])
    if "refusal" in config:
        return str(config["refusal"]) if set(records) == {"config"} else "unexpected records"
    arrays = [array for name, record in records.items() if name != "config" for array in record.values()]
    return f"answer of {sum(array.numpy().size for array in arrays)} numbers"


def files(home: Path, profile: Path, own: Path) -> None:
    """Read, change, link and list what is the person's."""
    attempt("list the service's home", lambda: os.listdir(home))
    attempt("list the profile", lambda: os.listdir(profile))
    for name in SECRETS:
        attempt(f"read {name}", lambda name=name: (profile / name).read_bytes())
        attempt(f"write {name}", lambda name=name: (profile / name).open("ab").close() or "opened")
    attempt("link events", lambda: os.link(profile / "events.sqlite", own / "copy") or "linked")
    attempt("stat events", lambda: os.stat(profile / "events.sqlite").st_size)
    attempt("put an adapter there", lambda: (profile / "adapter" / "x").write_text("x"))


def around_the_socket(path: Path) -> None:
    """Put something else in its place."""
    attempt("remove the socket", lambda: path.unlink() or "removed")
    attempt("rename the socket", lambda: path.rename(path.with_name("mine.sock")))
    attempt("write beside the socket", lambda: path.with_name("x").write_text("x"))
    attempt("listen beside the socket", lambda: socket.socket(socket.AF_UNIX).bind(str(path.with_name("y"))) or "bound")
    attempt("open the socket's folder", lambda: path.parent.chmod(0o777) or "opened")


def process(pid: int) -> None:
    """Look into, stop and slow down the service."""
    proc = Path(f"/proc/{pid}")
    for name in ("environ", "maps", "mem", "stack", "auxv"):
        attempt(f"read /proc/PID/{name}", lambda name=name: (proc / name).open("rb").read(64))
    attempt("list /proc/PID/fd", lambda: os.listdir(proc / "fd"))
    attempt("follow /proc/PID/cwd", lambda: os.listdir(proc / "cwd"))
    attempt("follow /proc/PID/root", lambda: os.listdir(proc / "root"))
    attempt("read /proc/PID/cmdline", lambda: (proc / "cmdline").read_bytes() and "command line")
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        attempt(f"send {number.name}", lambda number=number: os.kill(pid, number) or "sent")
    attempt("slow it down", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19) or "done")
    attempt("move it to one core", lambda: os.sched_setaffinity(pid, {0}) or "done")
    libc = ctypes.CDLL(None, use_errno=True)

    def traced() -> str:
        if libc.ptrace(16, pid, 0, 0) == -1:
            raise OSError(ctypes.get_errno(), "ptrace")
        return "attached"

    attempt("ptrace", traced)
    attempt("become root", lambda: os.setuid(0) or "root")
    attempt("become the service", lambda: os.setuid(os.stat(f"/proc/{pid}").st_uid) or "service")


def page(port: int) -> None:
    """The HTTP API, without the token."""

    def ask(method: str, path: str, body: str | None = None, **headers: str) -> str:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            link.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = link.getresponse()
            HEARD.append(answer.read())
            return str(answer.status)
        finally:
            link.close()

    for path in ("/v1/history", "/v1/privacy", "/v1/interests", "/v1/settings", "/v1/status", "/openapi.json", "/"):
        attempt(f"GET {path}", lambda path=path: ask("GET", path))
    for path in ("/v1/recommend", "/v1/export", "/v1/forget", "/v1/events", "/v1/import?what=adapter"):
        attempt(f"POST {path}", lambda path=path: ask("POST", path, "{}", Content_Type="application/json"))
    attempt("PATCH /v1/settings", lambda: ask("PATCH", "/v1/settings", "{}"))
    for guess in ("", "a", "0" * 43, base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")):
        attempt("GET with a guess", lambda guess=guess: ask("GET", "/v1/history", Authorization=f"Bearer {guess}"))
        attempt("GET with a cookie", lambda guess=guess: ask("GET", "/v1/history", Cookie=f"homerank={guess}"))
        attempt("GET the page with a guess", lambda guess=guess: ask("GET", f"/?token={guess}"))
    attempt("GET with another Host", lambda: ask("GET", "/v1/history", Host="evil.example"))
    for path in ("/healthz", "/metrics"):
        attempt(f"GET {path}", lambda path=path: ask("GET", path))


def door(path: str, questions: dict[str, bytes]) -> None:
    """The training socket: the one thing there is."""
    train = questions["train"]
    for name, data in {
        "garbage": os.urandom(4000),
        "http": b"GET /v1/history HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "sql": b"SELECT * FROM events",
        "nothing": b"",
        "a cut question": train[:-7],
    }.items():
        attempt(f"say {name}", lambda data=data: verdict(raw(path, data)))
    attempt("announce 4 GiB", lambda: verdict(raw(path, b"x", announce=2**32 - 1)))
    for name, data in questions.items():
        if name != "train":
            attempt(f"ask {name}", lambda data=data: verdict(raw(path, data)))
            time.sleep(1.1)
    attempt("ask train", lambda: verdict(raw(path, train)))
    time.sleep(1.1)
    threads = []
    for _ in range(100):
        ask = lambda: attempt("ask train at once", lambda: verdict(raw(path, train)))  # noqa: E731
        threads.append(threading.Thread(target=ask))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(61)  # until the minute's allowance is full again
    for _ in range(5):
        time.sleep(1.1)
        attempt("replay train", lambda: verdict(raw(path, train)))


def main() -> None:
    """Try everything."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    report, own = Path(sys.argv[2]), Path(sys.argv[2]).parent
    home, profile, path = Path(spec["home"]), Path(spec["profile"]), Path(spec["socket"])
    started = time.time()
    files(home, profile, own)
    around_the_socket(path)
    process(int(spec["pid"]))
    page(int(spec["port"]))
    door(str(path), {name: base64.b64decode(text) for name, text in spec["questions"].items()})
    heard = base64.b64encode(b"\0".join(HEARD)).decode()
    facts = {"uid": os.getuid(), "groups": os.getgroups(), "seconds": time.time() - started}
    report.write_text(json.dumps({"found": FOUND, "heard": heard, **facts}))


if __name__ == "__main__":
    main()
