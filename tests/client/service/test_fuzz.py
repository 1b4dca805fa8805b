"""Whatever is sent to the API, it answers as its own description says, and never with a fault of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests.client.service.small_service import TOKEN, Served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.filterwarnings("ignore"),  # of the fuzzer's own libraries
]
HEADERS = {"authorization": f"Bearer {TOKEN}", "host": "127.0.0.1"}
EXAMPLES = 30


@schemathesis.serializer("application/zip")
def zip_body(ctx: Any, value: Any) -> bytes:
    """What is drawn for a file."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as service:
        service.record("i1", "i2", "i3")
        yield service


def fuzzed(operation: Any, mode: schemathesis.GenerationMode) -> set[int]:
    """Status codes of the answers to drawn requests."""
    codes: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
        database=None,
    )
    @given(operation.as_strategy(generation_mode=mode))
    def sent(case: Any) -> None:
        answer = case.call(headers=HEADERS)
        codes.add(answer.status_code)
        assert answer.status_code < 500, f"{operation.label}: {answer.status_code} for {case.body!r} {case.query!r}"
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error"}

    with suppress(Unsatisfiable):  # an operation without any input cannot be asked wrongly
        sent()
    return codes


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_nothing_that_is_sent_breaks_the_service(served: Served, mode: schemathesis.GenerationMode) -> None:
    """Sound requests and broken ones, drawn from the description, for each operation that it names."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", served.app, headers=HEADERS)
    found = {one.ok().label: fuzzed(one.ok(), mode) for one in schema.get_all_operations()}
    assert len(found) >= 20
    if mode is schemathesis.GenerationMode.POSITIVE:
        assert 200 in found["POST /v1/recommend"]
        assert all(found.values())
    else:
        assert 422 in found["POST /v1/recommend"]
        assert not found["POST /v1/recommend"] & {200}
