"""Item vectors: whitening by hand, and a cache that is used when it is right and only then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import shared.vectors
from shared.backbone import Backbone, open_backbone
from shared.catalogue import Catalogue
from shared.errors import BackboneError, ConfigError
from shared.items import ItemTable
from shared.schema import Item
from shared.vectors import (
    Directions,
    cache_folder,
    identity_directions,
    identity_room,
    make_views,
    raw_vectors,
    reference_directions,
)


@pytest.fixture
def raw() -> np.ndarray:
    """200 rows in 8 dimensions with very different variances and an offset."""
    generator = np.random.default_rng(0)
    mixing = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    spread = generator.normal(size=(200, 8)) * np.array([8, 5, 4, 3, 2, 1, 0.5, 0.1])
    return (spread @ mixing + 100.0).astype(np.float32)


def spectrum(rows: np.ndarray) -> np.ndarray:
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    return np.linalg.eigvalsh(centred.T @ centred / len(rows))[::-1]


def test_plain_vectors_are_centred_and_of_unit_length(raw: np.ndarray) -> None:
    plain = make_views(raw, whitening=0.5, output_dim=4, output_scale=1.0).plain
    centred = raw - raw.mean(0)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-4)


def test_content_whitening_flattens_what_content_compares_and_nothing_else(raw: np.ndarray) -> None:
    settings = {"whitening": 0.5, "output_dim": 4, "output_scale": 1.0}
    flat, before = make_views(raw, **settings, content_whitening=1.0), make_views(raw, **settings)
    token = flat.token / np.linalg.norm(flat.token, axis=1, keepdims=True)
    np.testing.assert_allclose(flat.plain, token, atol=1e-5)
    for view in ("token", "output", "codes"):
        np.testing.assert_array_equal(getattr(flat, view), getattr(before, view))
    likeness = before.plain @ before.plain.T
    rotated = make_views(raw, **settings, content_whitening=1e-9).plain
    np.testing.assert_allclose(rotated @ rotated.T, likeness, atol=1e-4)


def test_token_vectors_have_a_flat_spectrum_and_entries_of_size_one(raw: np.ndarray) -> None:
    token = make_views(raw, whitening=0.0, output_dim=4, output_scale=1.0).token
    assert token.shape == raw.shape
    np.testing.assert_allclose(spectrum(token), np.ones(8), rtol=1e-3)
    assert np.sqrt(np.mean(token.astype(np.float64) ** 2)) == pytest.approx(1.0, rel=1e-5)


def test_whitening_of_one_is_flat_and_of_zero_leaves_the_spectrum(raw: np.ndarray) -> None:
    original = spectrum(raw)
    for alpha in (0.0, 0.5, 1.0):
        output = make_views(raw, whitening=alpha, output_dim=8, output_scale=3.0).output
        expected = original ** (1 - alpha)
        np.testing.assert_allclose(spectrum(output) / spectrum(output)[0], expected / expected[0], rtol=2e-3)


def test_output_vectors_keep_the_leading_directions_at_the_asked_length(raw: np.ndarray) -> None:
    whole = make_views(raw, whitening=0.5, output_dim=8, output_scale=3.0).output
    cut = make_views(raw, whitening=0.5, output_dim=3, output_scale=3.0).output
    assert cut.shape == (200, 3)
    np.testing.assert_allclose(cut / cut[0, 0], whole[:, :3] / whole[0, 0], rtol=1e-4)
    for output in (whole, cut):
        lengths = np.linalg.norm(output.astype(np.float64), axis=1)
        assert np.sqrt(np.mean(lengths**2)) == pytest.approx(3.0, rel=1e-5)
    assert make_views(raw, whitening=0.5, output_dim=384, output_scale=3.0).output.shape == (200, 8)


def test_two_items_by_hand() -> None:
    """Rows (3, 0) and (1, 0): centred (1, 0) and (-1, 0), all variance in one direction."""
    views = make_views(np.array([[3, 0], [1, 0]], dtype=np.float32), whitening=1.0, output_dim=1, output_scale=2.0)
    np.testing.assert_allclose(views.plain, [[1, 0], [-1, 0]], atol=1e-6)
    np.testing.assert_allclose(np.abs(views.output), [[2], [2]], rtol=1e-6)
    assert views.output[0, 0] == -views.output[1, 0]


@pytest.mark.parametrize("rows", [np.zeros((3, 4)), np.ones((1, 4)), np.full((5, 4), 1e4)])
def test_vectors_that_are_all_alike_give_finite_views(rows: np.ndarray) -> None:
    views = make_views(rows.astype(np.float32), whitening=1.0, output_dim=2, output_scale=1.0)
    for view in (views.plain, views.token, views.output, views.codes):
        assert np.isfinite(view).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_whitening_outside_its_range_is_refused(raw: np.ndarray, alpha: float) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        make_views(raw, whitening=alpha, output_dim=2, output_scale=1.0)
    with pytest.raises(ConfigError, match=r"content_whitening = .*expected 0 to 1"):
        make_views(raw, whitening=0.5, output_dim=2, output_scale=1.0, content_whitening=alpha)


# --- codes -------------------------------------------------------------------------------------------------


def gram(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64).T @ rows.astype(np.float64)


def test_codes_are_orthonormal_directions_of_the_text_and_then_of_the_items_themselves(raw: np.ndarray) -> None:
    views = make_views(raw, whitening=0.5, output_dim=4, output_scale=3.0, identity=5)
    assert views.codes.shape == (200, 13)
    assert views.codes.dtype == np.float32
    np.testing.assert_allclose(gram(views.codes), np.eye(13), atol=1e-4)
    np.testing.assert_allclose(views.codes[:, :8] / views.codes[0, 0], views.token / views.token[0, 0], rtol=1e-3)
    centred = raw - raw.mean(0, dtype=np.float64)
    assert np.abs(centred.T @ views.codes[:, 8:]).max() < 1e-4 * np.linalg.norm(centred)  # nothing of the text
    assert np.linalg.norm(centred.T @ views.codes[:, 0]) == pytest.approx(np.linalg.norm(centred, 2), rel=1e-3)


def test_the_output_predicts_the_identity_directions_too_at_the_asked_length(raw: np.ndarray) -> None:
    views = make_views(raw, whitening=0.5, output_dim=4, output_scale=3.0, identity=5)
    without = make_views(raw, whitening=0.5, output_dim=4, output_scale=3.0)
    assert views.output.shape == (200, 9)
    np.testing.assert_array_equal(views.output[:, :4], without.output)
    np.testing.assert_allclose(views.output[:, 4:], 3.0 * views.codes[:, 8:], rtol=1e-5)
    assert without.codes.shape == (200, 8)


def test_items_with_the_same_text_are_told_apart_by_identity_alone() -> None:
    raw = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    raw[7] = raw[3]
    codes = make_views(raw, whitening=0.5, output_dim=3, output_scale=1.0, identity=9).codes
    np.testing.assert_allclose(codes[7, :3], codes[3, :3], atol=1e-5)
    assert np.linalg.norm(codes[7, 3:] - codes[3, 3:]) > 0.1


@pytest.mark.parametrize(
    ("wanted", "items", "width", "room"),
    [(5, 200, 8, 5), (500, 200, 8, 191), (1, 10, 9, 0), (1, 11, 9, 1), (3, 4, 384, 0), (0, 200, 8, 0)],
)
def test_there_are_no_more_identity_directions_than_fit(wanted: int, items: int, width: int, room: int) -> None:
    assert identity_room(wanted, items=items, width=width) == room
    raw = np.random.default_rng(2).normal(size=(items, width)).astype(np.float32)
    views = make_views(raw, whitening=0.5, output_dim=2, output_scale=1.0, identity=wanted)
    assert views.codes.shape == (items, width + room)
    assert views.output.shape == (items, 2 + room)
    measured = np.diag(gram(views.codes))
    assert set(measured.round(3).tolist()) <= {0.0, 1.0}
    assert measured[width:].round(3).tolist() == [1.0] * room


def test_directions_in_which_no_text_differs_are_left_empty() -> None:
    """Three items in eight dimensions differ in two; noise blown up to unit length would be learned from."""
    raw = np.random.default_rng(3).normal(size=(3, 8)).astype(np.float32)
    codes = make_views(raw, whitening=0.5, output_dim=2, output_scale=1.0).codes
    np.testing.assert_allclose(gram(codes[:, :2]), np.eye(2), atol=1e-5)
    assert not codes[:, 2:].any()


def test_identity_is_the_same_for_everyone_with_the_catalogue(raw: np.ndarray) -> None:
    settings = {"whitening": 0.5, "output_dim": 4, "output_scale": 1.0}
    first, again = (make_views(raw, **settings, identity=6).codes for _ in range(2))
    np.testing.assert_array_equal(again, first)
    np.testing.assert_allclose(identity_directions(first[:, :8].astype(np.float64), 6), first[:, 8:], atol=1e-4)


def test_identity_does_not_change_between_versions() -> None:
    """It is part of every stored adapter: the first direction is the first column that this seed draws."""
    drawn = np.random.default_rng(20_261).standard_normal((12, 3))
    directions = identity_directions(np.zeros((12, 2)), 3)
    assert abs(directions[:, 0] @ drawn[:, 0]) == pytest.approx(np.linalg.norm(drawn[:, 0]))
    np.testing.assert_allclose(directions @ (directions.T @ drawn), drawn, atol=1e-9)


# --- directions that two catalogues share ------------------------------------------------------------------


def test_signs_are_the_same_whatever_the_library_says(raw: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"whitening": 0.5, "output_dim": 4, "output_scale": 1.0, "identity": 3}
    here, directions = make_views(raw, **settings), Directions.of(raw).directions
    assert (directions[np.abs(directions).argmax(0), np.arange(8)] > 0).all()
    plain = np.linalg.eigh

    def other(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = plain(square)
        return values, vectors * np.resize([-1.0, 1.0, 1.0], len(values))

    monkeypatch.setattr(np.linalg, "eigh", other)
    there = make_views(raw, **settings)
    for view in ("plain", "token", "output", "codes"):
        np.testing.assert_allclose(getattr(there, view), getattr(here, view), atol=1e-6)


def test_directions_by_hand() -> None:
    """(3, 4) and its opposite: variance 25 along (.6, .8), none across it."""
    found = Directions.of(np.array([[13, 4], [7, -4]], dtype=np.float32))
    np.testing.assert_allclose(found.variance, [25, 0], atol=1e-9)
    np.testing.assert_allclose(found.directions[:, 0], [0.6, 0.8])
    np.testing.assert_allclose(np.abs(found.directions[:, 1]), [0.8, 0.6])
    assert found.directions[0, 1] > 0
    np.testing.assert_allclose(found.whitened(np.array([[6.0, 8.0]]), 1.0), [[2.0, 0.0]], atol=1e-9)


@pytest.fixture
def reference() -> Directions:
    generator = np.random.default_rng(5)
    mixing = np.linalg.qr(generator.normal(size=(8, 8)))[0]
    return Directions.of((generator.normal(size=(400, 8)) * np.arange(8, 0, -1) @ mixing).astype(np.float32))


def test_with_a_reference_every_catalogue_is_read_by_the_same_map(raw: np.ndarray, reference: Directions) -> None:
    """Up to its own mean and one overall length, so that what a parameter learned of a direction stays true."""
    settings = {"whitening": 0.5, "output_dim": 5, "output_scale": 2.0, "reference": reference}
    for catalogue in (raw, raw[:60] * 3 + 1, raw[50:].copy()):
        views = make_views(catalogue, **settings)
        centred = catalogue.astype(np.float64) - catalogue.mean(0, dtype=np.float64)
        rotated = centred @ reference.directions
        for view, expected in (
            (views.token, rotated / np.sqrt(reference.variance)),
            (views.output, rotated[:, :5] * reference.variance[:5] ** -0.25),
        ):
            np.testing.assert_allclose(view, expected * (view[0, 0] / expected[0, 0]), rtol=1e-3, atol=1e-4)
        assert np.sqrt(np.mean(views.token.astype(np.float64) ** 2)) == pytest.approx(1.0, rel=1e-5)
        assert np.sqrt(np.mean(np.sum(views.output.astype(np.float64) ** 2, 1))) == pytest.approx(2.0, rel=1e-5)


def test_what_is_learned_of_text_does_not_depend_on_the_size_of_the_catalogue(
    raw: np.ndarray, reference: Directions
) -> None:
    """The same items twice are the same means and variances."""
    settings = {"whitening": 0.5, "output_dim": 8, "output_scale": 2.0, "identity": 3, "reference": reference}
    once, twice = (make_views(rows, **settings) for rows in (raw, np.concatenate([raw, raw])))
    np.testing.assert_allclose(twice.token[:200], once.token, atol=1e-5)
    np.testing.assert_allclose(twice.output[:200, :8], once.output[:, :8], atol=1e-5)
    read = [ItemTable(views).input_codes(11).numpy() for views in (once, twice)]
    np.testing.assert_allclose(read[1][:200, :8], read[0][:, :8], atol=1e-5)
    for codes in read:
        np.testing.assert_allclose(np.sqrt(np.mean(codes[:, 8:].astype(np.float64) ** 2)), 1.0, rtol=1e-4)


def test_a_reference_leaves_content_and_the_prior_to_the_catalogue(raw: np.ndarray, reference: Directions) -> None:
    """The prior's codes stay orthonormal, as its ridge regression needs them."""
    settings = {"whitening": 0.5, "output_dim": 4, "output_scale": 1.0, "identity": 5, "content_whitening": 0.3}
    own, public = make_views(raw, **settings), make_views(raw, **settings, reference=reference)
    np.testing.assert_array_equal(public.plain, own.plain)
    np.testing.assert_array_equal(public.codes, own.codes)
    np.testing.assert_allclose(gram(public.codes), np.eye(13), atol=1e-4)
    assert np.abs(public.output[:, :4].T @ public.output[:, 4:]).max() < 1e-3  # identity says nothing of the text


class Encoder:
    """Stands in for the backbone's text encoder and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.bad = False

    def __call__(self, backbone: Backbone, texts: list[str]) -> np.ndarray:
        self.calls += 1
        rows = np.array([[len(text), self.calls] for text in texts], dtype=np.float32)
        return np.pad(rows, ((0, 0), (0, backbone.hidden - 2))) * (np.nan if self.bad else 1)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    counting = Encoder()
    monkeypatch.setattr(shared.vectors, "encode_texts", counting)
    return counting


def shelf(*titles: str) -> Catalogue:
    return Catalogue(tuple(Item(id=f"i{n}", title=title, text=title) for n, title in enumerate(titles)))


def test_the_same_catalogue_is_encoded_once(tmp_path: Path, encoder: Encoder) -> None:
    backbone = open_backbone("tiny-bert")
    first = raw_vectors(backbone, shelf("a", "bb"), cache=tmp_path)
    again = raw_vectors(backbone, shelf("a", "bb"), cache=tmp_path)
    assert encoder.calls == 1
    np.testing.assert_array_equal(first, again)
    assert [file.suffix for file in (tmp_path / "vectors").iterdir()] == [".npy"]  # nothing half-written


def test_the_reference_is_the_vocabulary_and_encoded_once(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.vectors, "REFERENCE_WORDS", 110)
    backbone = open_backbone("tiny-bert")
    first, again = (reference_directions(backbone, cache=tmp_path) for _ in range(2))
    assert encoder.calls == 1
    np.testing.assert_array_equal(again.directions, first.directions)
    assert first.variance[0] == pytest.approx(np.var([5] * 10 + [6] * 90 + [7] * 10))  # word0, word10, word100


def test_a_vocabulary_of_too_few_words_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.vectors, "REFERENCE_WORDS", 32)
    with pytest.raises(BackboneError, match=r"found 32 whole words.*more than 32. Use model.directions = 'catalogue'"):
        reference_directions(open_backbone("tiny-bert"), cache=tmp_path)


def test_another_text_or_backbone_is_encoded_anew(tmp_path: Path, encoder: Encoder) -> None:
    raw_vectors(open_backbone("tiny-bert"), shelf("a", "bb"), cache=tmp_path)
    raw_vectors(open_backbone("tiny-bert"), shelf("a", "cc"), cache=tmp_path)
    raw_vectors(open_backbone("tiny-gpt2"), shelf("a", "bb"), cache=tmp_path)
    assert encoder.calls == 3


def test_a_damaged_cache_is_computed_again_and_replaced(tmp_path: Path, encoder: Encoder) -> None:
    backbone, catalogue = open_backbone("tiny-bert"), shelf("a", "bb")
    raw_vectors(backbone, catalogue, cache=tmp_path)
    (file,) = (tmp_path / "vectors").iterdir()
    good = file.read_bytes()
    wrong = [np.zeros((3, 32), dtype=np.float32), np.zeros((2, 32)), np.full((2, 32), np.nan, np.float32)]
    damages = [b"", good[:-10], b"junk" * 50, b"PK\x03\x04 no zip"]
    for number, damage in enumerate([*damages, *wrong], start=2):
        if isinstance(damage, bytes):
            file.write_bytes(damage)
        else:
            np.save(file, damage)
        found = raw_vectors(backbone, catalogue, cache=tmp_path)
        assert encoder.calls == number
        assert found[0, 1] == number
        np.testing.assert_array_equal(raw_vectors(backbone, catalogue, cache=tmp_path), found)
        assert encoder.calls == number


def test_vectors_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path, encoder: Encoder) -> None:
    encoder.bad = True
    with pytest.raises(BackboneError, match="not finite"):
        raw_vectors(open_backbone("tiny-bert"), shelf("a"), cache=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HOMERANK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "homerank"
    monkeypatch.setenv("HOMERANK_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
