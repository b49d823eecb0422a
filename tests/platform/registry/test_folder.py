"""A model folder is described without torch; whatever is missing, cut off or altered is named."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from penstock.errors import ModelFolderInvalid
from penstock.registry.folder import describe, verify

from tests.platform.registry.model_folders import CHAT_TEMPLATE, make_folder, write_json

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model", shards=2)


def test_a_whole_folder_is_described(folder: Path) -> None:
    found = describe(folder)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert found.path == folder
    assert found.architecture == "LlamaForCausalLM"
    assert found.context_length == 512
    assert found.dtype == "bfloat16"
    assert found.recipe == {"scheme": "none", "dtype": "bfloat16"}
    assert found.manifest == hashes
    assert found.tokenizer_sha256 == hashes["tokenizer.json"]
    assert found.chat_template_sha256 == hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest()
    assert found.total_bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_progress_ends_with_every_byte_hashed(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = describe(folder, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (found.total_bytes, found.total_bytes)


def test_equal_files_have_an_equal_digest_wherever_they_are(tmp_path: Path, folder: Path) -> None:
    assert describe(make_folder(tmp_path / "twin")).digest == describe(folder).digest
    assert describe(make_folder(tmp_path / "other", seed=1)).digest != describe(folder).digest


def test_a_sharded_folder_is_described(sharded: Path) -> None:
    assert SHARD in describe(sharded).manifest


def test_hidden_files_are_no_part_of_the_model(folder: Path) -> None:
    before = describe(folder).digest
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / ".gitattributes").write_text("")
    assert describe(folder).digest == before


def test_the_recipe_is_the_configurations_own(tmp_path: Path) -> None:
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    found = describe(make_folder(tmp_path / "model", config={"quantization_config": quantization}))
    assert found.recipe == {"scheme": "compressed-tensors", "dtype": "bfloat16", "config": quantization}


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({"torch_dtype": "float16", "dtype": None}, "float16"), ({"dtype": None}, "float16")],
    ids=["by its older name", "from the weights"],
)
def test_the_dtype_is_found(tmp_path: Path, config: dict[str, Any], dtype: str) -> None:
    assert describe(make_folder(tmp_path / "model", config=config)).dtype == dtype


def test_settings_of_the_text_part_are_found(tmp_path: Path) -> None:
    inner = {"max_position_embeddings": 2048, "dtype": "float32"}
    config = {"text_config": inner, "max_position_embeddings": None, "dtype": None}
    found = describe(make_folder(tmp_path / "model", config=config))
    assert (found.context_length, found.dtype) == (2048, "float32")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderInvalid, match=f"{tmp_path}/nowhere is not a model folder: it does not exist"):
        describe(tmp_path / "nowhere")


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ModelFolderInvalid, match="it is a file"):
        describe(folder / "config.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFolderInvalid, match=f"lacks {name}") as caught:
        describe(folder)
    assert caught.value.extra["file"] == name


@pytest.mark.parametrize("content", ["{not json", "[1]", "", b"\xff\xfe\x00"])
def test_a_corrupt_configuration_is_named(folder: Path, content: str | bytes) -> None:
    (folder / "config.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ModelFolderInvalid, match=r"config\.json"):
        describe(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_position_embeddings": None}, "max_position_embeddings must be the context's length in tokens, not None"),
        ({"max_position_embeddings": "512"}, "not '512'"),
        ({"max_position_embeddings": 0}, "not 0"),
        ({"architectures": None}, "must name the model's class"),
        ({"architectures": []}, "must name the model's class"),
    ],
)
def test_a_configuration_that_lacks_what_serving_needs_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelFolderInvalid, match=message):
        describe(make_folder(tmp_path / "model", config=config))


@pytest.mark.parametrize("left", [0, 5, 60, -1])
def test_cut_off_weights_are_named(folder: Path, left: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(ModelFolderInvalid, match=r"model\.safetensors is cut off or corrupt"):
        describe(folder)


def test_weights_with_bytes_too_many_are_named(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelFolderInvalid, match=r"asks for \d+ bytes, but the file has \d+"):
        describe(folder)


@pytest.mark.parametrize(
    "header", [b"[]", b"{bad", b'{"a": {"dtype": "F16"}}', b'{"a": 1}', b'{"a": {"data_offsets": []}}']
)
def test_a_header_that_is_none_is_named(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelFolderInvalid, match="its header is not what the format asks for"):
        describe(folder)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARD).unlink()
    with pytest.raises(ModelFolderInvalid, match=f"lacks {SHARD}"):
        describe(sharded)


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    write_json(index, {"weight_map": places | {"layer.extra": SHARD}})
    with pytest.raises(ModelFolderInvalid, match=f"{SHARD} lacks the tensor layer.extra"):
        describe(sharded)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map_is_named(sharded: Path, index: dict[str, Any]) -> None:
    write_json(sharded / "model.safetensors.index.json", index)
    with pytest.raises(ModelFolderInvalid, match="has no weight_map"):
        describe(sharded)


def test_an_index_cannot_name_a_file_outside(tmp_path: Path, sharded: Path) -> None:
    (tmp_path / "secret").write_text("x")
    write_json(sharded / "model.safetensors.index.json", {"weight_map": {"a": "../secret"}})
    with pytest.raises(ModelFolderInvalid, match="leads out of the model folder"):
        describe(sharded)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "notes/extra.txt"])
def test_a_link_cannot_lead_outside(tmp_path: Path, folder: Path, name: str) -> None:
    outside, inside = tmp_path / "outside", folder / name
    inside.parent.mkdir(exist_ok=True)
    inside.touch()
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(ModelFolderInvalid, match=rf"{inside.name} leads out of the model folder.*cp -L"):
        describe(folder)


def test_a_link_within_the_folder_is_fine(folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "one")
    (folder / "model.safetensors").symlink_to("weights/one")
    found = describe(folder)
    assert found.manifest["model.safetensors"] == found.manifest["weights/one"]
    verify(folder, found.manifest)


def test_an_unaltered_folder_is_verified_with_progress(folder: Path) -> None:
    found = describe(folder)
    seen: list[tuple[int, int]] = []
    verify(folder, found.manifest, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (found.total_bytes, found.total_bytes)


def test_one_flipped_bit_is_found_and_named(folder: Path) -> None:
    manifest = describe(folder).manifest
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelFolderInvalid, match=r"model\.safetensors was altered") as caught:
        verify(folder, manifest)
    assert caught.value.extra["file"] == "model.safetensors"


def test_a_file_that_went_missing_is_named(folder: Path) -> None:
    manifest = describe(folder).manifest
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelFolderInvalid, match=r"lacks tokenizer_config\.json"):
        verify(folder, manifest)


def test_a_folder_that_went_missing_is_named(folder: Path) -> None:
    manifest = describe(folder).manifest
    folder.rename(folder.with_name("moved"))
    with pytest.raises(ModelFolderInvalid, match="it does not exist"):
        verify(folder, manifest)


@pytest.mark.parametrize("name", ["generation_config.json", "extra.safetensors"])
def test_a_file_that_changes_the_model_cannot_be_added(folder: Path, name: str) -> None:
    manifest = describe(folder).manifest
    (folder / name).write_text("{}")
    with pytest.raises(ModelFolderInvalid, match=f"{name} was added after the registration"):
        verify(folder, manifest)


def test_a_file_that_changes_nothing_may_be_added(folder: Path) -> None:
    manifest = describe(folder).manifest
    (folder / "NOTES.md").write_text("served since May")
    verify(folder, manifest)


def test_a_manifest_cannot_name_a_file_outside(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(ModelFolderInvalid, match="leads out of the model folder"):
        verify(folder, {"../secret": "0" * 64})


def test_reading_a_folder_needs_neither_torch_nor_transformers() -> None:
    """Nor does following the registry, but that also moves rollouts, whose statistics need numpy."""
    look = "print(sorted({'torch', 'transformers', 'mlflow', 'pandas', 'numpy'} & sys.modules.keys()))\n"
    script = (
        f"import sys, penstock.registry.folder, penstock.registry.tokenizer\n{look}"
        f"import penstock.registry.mlflow_sync\n{look}"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:2] == ["[]", "['numpy']"]
