"""Who may talk to the service: whoever can read the token file, which is the person it serves (`shared.loopback`)."""

from __future__ import annotations

from shared.loopback import Rules

COOKIE = "homerank"
#: Paths that need no token: what they say is the same for everybody.
OPEN = frozenset({"/healthz", "/metrics"})
#: Largest body of a request in bytes; an import is a zipped data folder.
MAX_BODY = 4 * 1024**2
MAX_IMPORT = 1024**3


def _limit(path: str) -> int:
    return MAX_IMPORT if path == "/v1/import" else MAX_BODY


RULES = Rules(
    cookie=COOKIE,
    open=OPEN,
    limit=_limit,
    policy=(
        "default-src 'none'; require-trusted-types-for 'script'; script-src 'self'; style-src 'self';"
        " img-src 'self' data:; connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self';"
        " frame-ancestors 'none'"
    ),
    locked=(
        "This page is for the person at this device. Open the link that `homerank-client serve` printed, or run"
        " `homerank-client page` for a new one.\n"
    ),
)
