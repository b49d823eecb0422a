"""A folder's description survives the way through MLflow's tags, however long it is."""

import json
from pathlib import Path

import pytest
from penstock.errors import ModelFolderInvalid
from penstock.registry.folder import ModelFolder, describe
from penstock.registry.version_tags import from_tags, to_tags

from tests.platform.registry.model_folders import make_folder

MLFLOW_LIMIT = 100_000


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return describe(make_folder(tmp_path / "model"))


def test_what_goes_in_comes_back(folder: ModelFolder) -> None:
    facts = from_tags(to_tags(folder))
    assert facts.source == folder.path
    assert facts.context_length == folder.context_length
    assert facts.recipe == folder.recipe
    assert facts.manifest == folder.manifest
    assert facts.digest == folder.digest


def test_a_long_manifest_goes_over_several_tags(folder: ModelFolder) -> None:
    folder.manifest.update({f"shard-{number:05}.safetensors": f"{number:064x}" for number in range(3000)})
    tags = to_tags(folder)
    assert len([name for name in tags if name.startswith("penstock.manifest")]) > 2
    assert max(map(len, tags.values())) < MLFLOW_LIMIT
    assert from_tags(tags).manifest == folder.manifest


@pytest.mark.parametrize(
    "tag", ["penstock.source", "penstock.digest", "penstock.manifest", "penstock.recipe", "penstock.context_length"]
)
def test_a_missing_tag_is_named(folder: ModelFolder, tag: str) -> None:
    tags = to_tags(folder)
    del tags[tag]
    with pytest.raises(ModelFolderInvalid, match=f"it has no tag {tag}; register it with"):
        from_tags(tags)


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("penstock.source", "relative/path", "must be an absolute path"),
        ("penstock.manifest", "{", "is not JSON"),
        ("penstock.recipe", "[]", "must hold a JSON object"),
        ("penstock.context_length", "many", "must be a number of tokens, not 'many'"),
        ("penstock.context_length", "0", "must be a number of tokens"),
        ("penstock.manifest", json.dumps({"config.json": "0" * 64}), "do not belong together"),
    ],
)
def test_a_wrong_tag_is_named(folder: ModelFolder, tag: str, value: str, message: str) -> None:
    with pytest.raises(ModelFolderInvalid, match=message):
        from_tags(to_tags(folder) | {tag: value})
