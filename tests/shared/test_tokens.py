"""Soft tokens: each source of context is there when asked for, starts at nothing, and reads its own column alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from client.samples import attribute_counts
from shared.config_rules import CONTEXTS
from shared.tokens import SoftTokens
from shared.windows import ATTRIBUTE_BUCKETS, GAP_BUCKETS, HOUR_BUCKETS, VALUE_BUCKETS, Windows
from tests.tiny_models import LENGTH, random_windows

WIDTH = 8
COLUMNS = {"kind": "kinds", "gap": "gaps", "value": "values", "hour": "hours", "attributes": "attributes"}
BUCKETS = {
    "kind": 6,
    "gap": GAP_BUCKETS,
    "value": VALUE_BUCKETS,
    "hour": HOUR_BUCKETS,
    "attributes": ATTRIBUTE_BUCKETS,
}


def shaken(*context: str) -> SoftTokens:
    tokens = SoftTokens(WIDTH, rank=0, codes=0, context=context)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in tokens.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return tokens


def read(tokens: SoftTokens, batch: Windows) -> torch.Tensor:
    """What is added to item vectors of zero, (B, L, d)."""
    size = (len(batch), LENGTH)
    with torch.no_grad():
        return tokens(torch.zeros(*size, WIDTH), torch.zeros(*size, 0), batch)


@pytest.mark.parametrize("context", [(), *((name,) for name in CONTEXTS), CONTEXTS])
def test_a_source_is_there_when_asked_for_and_starts_at_nothing(context: tuple[str, ...]) -> None:
    tokens = SoftTokens(WIDTH, rank=0, codes=0, context=context)
    assert {name for name, _ in tokens.named_parameters()} == {f"{name}.weight" for name in context}
    assert not read(tokens, random_windows(4)).any()
    assert all(parameter.requires_grad for parameter in tokens.parameters())


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_source_reads_its_own_column_and_no_other(name: str) -> None:
    tokens, batch = shaken(name), random_windows(4)
    before = read(tokens, batch)
    for other, column in COLUMNS.items():
        values = getattr(batch, column)
        changed = dataclasses.replace(
            batch, **{column: values + 1 if other == "attributes" else 1 - values.clamp(0, 1)}
        )
        assert torch.equal(read(tokens, changed), before) == (other != name)


def test_a_token_is_the_sum_of_its_sources_whatever_their_order() -> None:
    batch = random_windows(4)
    parts = shaken(*CONTEXTS)
    expected = torch.zeros(4, LENGTH, WIDTH)
    weights = dict(parts.named_parameters())
    for name, column in COLUMNS.items():
        weight = weights[f"{name}.weight"].detach()
        if name == "attributes":
            expected += (batch.attributes @ weight.T)[:, None]
        else:
            assert len(weight) == BUCKETS[name]
            expected += weight[getattr(batch, column)]
    torch.testing.assert_close(read(parts, batch), expected)
    backwards = SoftTokens(WIDTH, rank=0, codes=0, context=CONTEXTS[::-1])
    backwards.load_state_dict(parts.state_dict())
    assert torch.equal(read(backwards, batch), read(parts, batch))


def test_a_person_of_two_attributes_gets_the_sum_of_their_embeddings_on_every_token() -> None:
    tokens = shaken("attributes")
    batch = random_windows(1)
    rows = [{"age": "25-34"}, {"gender": "women"}, {"age": "25-34", "gender": "women"}, {}]
    added = [
        read(tokens, dataclasses.replace(batch, attributes=torch.from_numpy(attribute_counts(row))[None]))[0]
        for row in rows
    ]
    torch.testing.assert_close(added[0] + added[1], added[2])
    assert torch.equal(added[2], added[2][:1].expand(LENGTH, WIDTH))
    assert added[2].any()
    assert not added[3].any()


def test_one_source_more_leaves_the_start_of_everything_else_alone() -> None:
    starts = []
    for context in ((), CONTEXTS):
        torch.manual_seed(0)
        tokens = SoftTokens(WIDTH, rank=2, codes=3, context=context)
        starts.append((tokens.get_parameter("low.0.weight").detach().numpy(), torch.rand(1).item()))
    np.testing.assert_array_equal(starts[0][0], starts[1][0])
    assert starts[0][1] == starts[1][1]
