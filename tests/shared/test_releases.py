"""A release is what was signed, all of it and nothing else, or it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from shared.artifacts import ADAPTER_SCHEMA, MAX_ADAPTER_BYTES
from shared.errors import AdapterError, DeploymentError
from shared.releases import (
    ADAPTER_FILES,
    MANIFEST,
    MAX_VERSION,
    SIGNATURE,
    SIGNATURE_BYTES,
    key_id,
    key_pem,
    read_key,
    read_release,
    require_fits,
    verify_release,
)
from tests.releases import (
    BACKBONE,
    CATALOGUE,
    KEY,
    OTHER_KEY,
    bare_adapter,
    encoded,
    facts_of,
    file_facts,
    signature_of,
    write_release,
)

PINNED = KEY.public_key()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return bare_adapter(tmp_path / "1")


@pytest.fixture
def release(adapter: Path) -> Path:
    return write_release(adapter, facts_of(adapter, 1))


def test_what_was_signed_is_read_back(release: Path) -> None:
    found = verify_release(release, key=PINNED)
    assert (found.version, found.name, found.created, found.run, found.round) == (1, "release 1", 1_700_000_000, "r", 3)
    assert (found.backbone, found.catalogue, found.adapter_schema) == (BACKBONE, CATALOGUE, ADAPTER_SCHEMA)
    assert found.size == sum((release / name).stat().st_size for name in ADAPTER_FILES)
    assert read_release(found.to_json(), signature_of(found.to_json()), key=PINNED) == found


# --- the signature -----------------------------------------------------------------------------------------


@given(st.data())
def test_one_bit_anywhere_is_noticed(data: st.DataObject) -> None:
    content = encoded({"schema": 1, "version": 7})
    both = bytearray(content + signature_of(content))
    place = data.draw(st.integers(0, 8 * len(both) - 1))
    both[place // 8] ^= 1 << place % 8
    with pytest.raises(AdapterError, match="found no signature of this"):
        read_release(bytes(both[: len(content)]), bytes(both[len(content) :]), key=PINNED)


@pytest.mark.parametrize("signature", [b"", b"\0" * SIGNATURE_BYTES, b"x" * 63, b"x" * 65])
def test_a_cut_or_empty_signature_is_none(signature: bytes) -> None:
    with pytest.raises(AdapterError, match="found no signature of this"):
        read_release(b"{}", signature, key=PINNED)


def test_another_key_signs_nothing_here(adapter: Path) -> None:
    write_release(adapter, facts_of(adapter, 1, key=key_id(OTHER_KEY.public_key())), OTHER_KEY)
    assert verify_release(adapter, key=OTHER_KEY.public_key()).version == 1
    with pytest.raises(AdapterError, match="comes from somebody else"):
        verify_release(adapter, key=PINNED)


def test_a_signature_of_something_else_is_none_of_a_release(adapter: Path) -> None:
    content = encoded(facts_of(adapter, 1))
    with pytest.raises(AdapterError, match="found no signature"):
        read_release(content, KEY.sign(content), key=PINNED)  # without what stands before it


def test_the_name_of_the_key_is_that_of_the_key(adapter: Path) -> None:
    content = encoded(facts_of(adapter, 1, key="0" * 16))
    with pytest.raises(AdapterError, match="found key 0000000000000000 named in it"):
        read_release(content, signature_of(content), key=PINNED)


# --- release.json ------------------------------------------------------------------------------------------


def signed(facts: Any) -> None:
    content = facts if isinstance(facts, bytes) else encoded(facts)
    read_release(content, signature_of(content), key=PINNED)


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"{", b'"text"', b"\xff"])
def test_signed_nonsense_is_refused(content: bytes) -> None:
    with pytest.raises(AdapterError, match=r"release\.json"):
        signed(content)


@pytest.mark.parametrize(
    ("schema", "said"), [(2, "update homerank on this device"), *((s, "the server is behind") for s in (0, "1", None))]
)
def test_another_schema_is_refused_with_who_should_update(adapter: Path, schema: Any, said: str) -> None:
    with pytest.raises(AdapterError, match=f"found schema {schema!r}; this version reads 1; {said}"):
        signed(facts_of(adapter, 1, schema=schema))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "7"),
        ("version", True),
        ("version", 1.0),
        ("version", 0),
        ("version", -1),
        ("version", MAX_VERSION + 1),
        ("name", "two\nlines"),
        ("name", "x" * 201),
        ("created", None),
        ("backbone", "short"),
        ("catalogue", "C" * 64),
        ("adapter_schema", [2]),
        ("run", 3),
        ("files", []),
        ("files", None),
    ],
    ids=str,
)
def test_a_field_of_another_kind_is_refused(adapter: Path, field: str, value: Any) -> None:
    with pytest.raises(AdapterError, match=r"release\.json"):
        signed({**facts_of(adapter, 1), field: value})


@pytest.mark.parametrize("field", ["version", "files", "catalogue", "key", "origin"])
def test_a_missing_field_is_refused_and_an_unknown_one_is_left_alone(adapter: Path, field: str) -> None:
    facts = facts_of(adapter, 1)
    signed({**facts, "of_the_future": 1})
    del facts[field]
    with pytest.raises(AdapterError, match=field):
        signed(facts)


@pytest.mark.parametrize(
    "name", ["../homerank.json", "/etc/passwd", "sub/homerank.json", "release.json", ".bashrc", "C:\\x", "", "."]
)
def test_a_name_with_a_path_in_it_is_refused_before_anything_is_fetched(adapter: Path, name: str) -> None:
    facts = facts_of(adapter, 1)
    facts["files"][name] = facts["files"]["homerank.json"]
    with pytest.raises(AdapterError, match="among the files"):
        signed(facts)


def test_a_file_that_an_adapter_needs_must_be_there(adapter: Path) -> None:
    facts = facts_of(adapter, 1)
    del facts["files"]["privacy.json"]
    with pytest.raises(AdapterError, match=r"found no 'privacy\.json' among the files"):
        signed(facts)


def test_a_release_is_no_larger_than_an_adapter_may_be(adapter: Path) -> None:
    facts = facts_of(adapter, 1)
    facts["files"]["projections.safetensors"]["bytes"] = MAX_ADAPTER_BYTES
    with pytest.raises(AdapterError, match=f"at most {MAX_ADAPTER_BYTES}"):
        signed(facts)


def test_a_long_manifest_is_not_read(adapter: Path) -> None:
    with pytest.raises(AdapterError, match="it is not a release"):
        signed(facts_of(adapter, 1, more="x" * 70_000))


# --- the files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_changed_byte_in_any_file_is_noticed(release: Path, name: str) -> None:
    content = bytearray((release / name).read_bytes())
    content[len(content) // 2] ^= 1
    (release / name).write_bytes(content)
    with pytest.raises(AdapterError, match=f"another content in {name}"):
        verify_release(release, key=PINNED)


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_cut_file_is_noticed(release: Path, name: str) -> None:
    content = (release / name).read_bytes()
    (release / name).write_bytes(content[:-1])
    with pytest.raises(AdapterError, match=f"found {len(content) - 1} bytes in {name}; expected {len(content)}"):
        verify_release(release, key=PINNED)


@pytest.mark.parametrize("name", [*ADAPTER_FILES, MANIFEST, SIGNATURE])
def test_a_missing_file_is_noticed(release: Path, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(AdapterError, match=rf"found no (file|release).*{name}"):
        verify_release(release, key=PINNED)


def test_a_file_too_many_is_noticed(release: Path) -> None:
    (release / "model.pkl").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"a file too many 'model\.pkl'"):
        verify_release(release, key=PINNED)


def test_a_folder_too_many_is_noticed(release: Path) -> None:
    (release / "more").mkdir()
    with pytest.raises(AdapterError, match="a file too many 'more'"):
        verify_release(release, key=PINNED)


def test_a_link_is_no_file_even_to_the_same_content(release: Path, tmp_path: Path) -> None:
    (release / "privacy.json").rename(tmp_path / "elsewhere.json")
    (release / "privacy.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(AdapterError, match=r"privacy\.json is no plain file"):
        verify_release(release, key=PINNED)


def test_privacy_cannot_be_exchanged_for_a_nicer_one(release: Path) -> None:
    """The file alone is not signed, but its hash is."""
    (release / "privacy.json").write_text(json.dumps({"mode": "event", "statement": "All is well."}))
    facts = json.loads((release / MANIFEST).read_bytes())
    new = file_facts(release / "privacy.json")
    facts["files"]["privacy.json"] = {"sha256": new.sha256, "bytes": new.bytes}
    (release / MANIFEST).write_bytes(encoded(facts))
    with pytest.raises(AdapterError, match="found no signature"):
        verify_release(release, key=PINNED)


# --- whether it fits ---------------------------------------------------------------------------------------


def test_a_release_must_be_for_the_same_items_backbone_and_schema(release: Path) -> None:
    found = verify_release(release, key=PINNED)
    require_fits(found, catalogue=CATALOGUE, backbone=BACKBONE)
    with pytest.raises(AdapterError, match=r"another catalogue \(cccccccccccc\); expected dddddddddddd"):
        require_fits(found, catalogue="d" * 64, backbone=BACKBONE)
    with pytest.raises(AdapterError, match=r"another backbone \(bbbbbbbbbbbb\); expected dddddddddddd"):
        require_fits(found, catalogue=CATALOGUE, backbone="d" * 64)
    for schema, said in ((ADAPTER_SCHEMA + 1, "update homerank on this device"), (ADAPTER_SCHEMA - 1, "the server is")):
        why = rf"adapter schema {schema}; this version reads {ADAPTER_SCHEMA} \(.* homerank 0\.1\.0\); {said}"
        with pytest.raises(AdapterError, match=why):
            require_fits(replace(found, adapter_schema=schema), catalogue=CATALOGUE, backbone=BACKBONE)


# --- keys --------------------------------------------------------------------------------------------------


def test_a_key_travels_as_text() -> None:
    assert key_id(read_key(key_pem(PINNED))) == key_id(PINNED) != key_id(OTHER_KEY.public_key())


def test_only_ed25519_keys_are_pinned() -> None:
    other = generate_private_key(SECP256R1()).public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(DeploymentError, match="of another kind; expected Ed25519"):
        read_key(pem)
    with pytest.raises(DeploymentError, match="found no public key"):
        read_key("ssh-ed25519 AAAA")
