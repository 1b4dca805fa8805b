"""Tokens and devices: who gets in, once, and what is left of a token."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from server.registry import Registry
from shared.enrolment import EnrolmentRefused, Ticket, read_address
from shared.errors import DeploymentError

KEY, OTHER = "ecdsa-sha2-nistp256 AAAA", "ecdsa-sha2-nistp256 BBBB"


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Registry:
    return Registry(tmp_path / "registry.sqlite", clock=clock)


def code(registry: Registry, secret: bytes, key: str) -> str:
    """What the registry says to one that asks."""
    try:
        registry.redeem(secret, key)
    except EnrolmentRefused as refused:
        return refused.code
    return "in"


def test_every_row_of_the_table_of_redeem(registry: Registry, clock: Clock) -> None:
    first, second, third, late = registry.issue(4, hours=1)
    assert code(registry, first, KEY) == "in"
    assert code(registry, first, KEY) == "in"  # the answer was lost
    assert len(registry.devices()) == 1
    assert code(registry, first, OTHER) == "used"
    assert code(registry, second, KEY) == "registered"
    assert code(registry, second, OTHER) == "in"  # it was not burnt by that
    assert code(registry, b"x" * 20, KEY) == "unknown"
    registry.revoke(1)
    assert code(registry, first, KEY) == "revoked"
    assert code(registry, third, KEY) == "revoked"
    clock.now += 3601
    assert code(registry, late, "ecdsa-sha2-nistp256 CCCC") == "expired"
    assert code(registry, second, OTHER) == "in"  # redeemed in time, asked again later


def test_of_many_that_present_one_token_one_gets_in(registry: Registry, tmp_path: Path) -> None:
    (secret,) = registry.issue(1, hours=1)
    answers: list[str] = []

    def ask(number: int) -> None:
        own = Registry(tmp_path / "registry.sqlite", clock=lambda: 1_000_000.0)
        answers.append(code(own, secret, f"ecdsa-sha2-nistp256 K{number}"))
        own.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["in"] + ["used"] * 7
    assert len(registry.devices()) == 1


def test_secrets_are_not_in_the_file_and_only_its_owner_reads_it(registry: Registry, tmp_path: Path) -> None:
    secrets = registry.issue(3, hours=1)
    registry.redeem(secrets[0], KEY)
    registry.close()
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert not any(secret in content or secret.hex().encode() in content for secret in secrets)
        assert path.stat().st_mode & 0o077 == 0


def test_open_tokens_are_those_that_can_be_redeemed(registry: Registry, clock: Clock) -> None:
    first, _, _ = registry.issue(3, hours=1)
    registry.issue(2, hours=3)
    registry.redeem(first, KEY)
    assert registry.open_tokens() == 4
    clock.now += 2 * 3600
    assert registry.open_tokens() == 2


def test_devices_are_found_by_number_node_and_key(registry: Registry) -> None:
    device = registry.admit(KEY, "777")
    assert (device.number, device.node, device.revoked) == (1, "777", None)
    assert registry.admit(KEY, "778").number == 1
    for text in ("1", "778", KEY, f"{KEY} someone@somewhere"):
        assert registry.find(text).number == 1
    with pytest.raises(DeploymentError, match="found 0 devices for '2'"):
        registry.find("2")


def test_the_first_revocation_counts(registry: Registry, clock: Clock) -> None:
    registry.admit(KEY, "777")
    assert registry.revoke(1).revoked == clock.now
    clock.now += 60
    assert registry.revoke(1).revoked == clock.now - 60


def test_another_file_is_not_taken_for_a_registry(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing of the kind, and long enough to be sure of it")
    with pytest.raises(DeploymentError, match="no usable registry"):
        Registry(tmp_path / "text")
    import sqlite3

    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(DeploymentError, match="another kind of database"):
        Registry(tmp_path / "other")


# --- the token as text -------------------------------------------------------------------------------------


def test_a_token_says_where_and_whom_to_trust() -> None:
    ticket = Ticket("example.org:8443", "ab" * 32, bytes(range(20)))
    assert Ticket.read(ticket.token()) == ticket
    assert Ticket.read(f"  {ticket.token()}\n") == ticket
    assert set(ticket.token()) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def test_a_token_with_any_letter_changed_or_lost_is_not_whole() -> None:
    token = Ticket("h:1", "ab" * 32, bytes(20)).token()
    for place in range(len(token)):
        changed = "A" if token[place] != "A" else "B"
        for text in (token[:place] + changed + token[place + 1 :], token[:place] + token[place + 1 :]):
            if place == len(token) - 1 and len(text) == len(token):
                continue  # the last letter carries bits that base64 ignores
            with pytest.raises(DeploymentError, match="no whole enrolment token"):
                Ticket.read(text)
    for text in ("", "hr1.", "hr1.****", "token"):
        with pytest.raises(DeploymentError, match="no whole enrolment token"):
            Ticket.read(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://Example.org:8443", "example.org:8443"),
        ("10.0.0.1:443", "10.0.0.1:443"),
        ("https://[fd00::1]:8443/", "[fd00::1]:8443"),
    ],
)
def test_addresses_have_one_spelling(text: str, address: str) -> None:
    assert read_address(text) == address


@pytest.mark.parametrize(
    "text", ["example.org", "http://example.org:80", "a:0", "a:70000", "a b:1", "a:1/path", "u@a:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(DeploymentError, match="expected the server's address"):
        read_address(text)
