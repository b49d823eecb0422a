"""The storage on a local folder and on fsspec's memory: the same promises on both."""

import io
from pathlib import Path
from uuid import uuid4

import pytest
from penstock.errors import ServiceUnavailable
from penstock.files.storage import FileStorage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> FileStorage:
    return FileStorage(str(tmp_path / "files") if request.param == "local" else f"memory://{uuid4().hex}")


def test_what_is_written_is_read_whole_and_in_parts(storage: FileStorage) -> None:
    text = bytes(range(256)) * 4000
    with storage.writing("ten/file") as out:
        for begin in range(0, len(text), 70_000):
            out.write(text[begin : begin + 70_000])

    with storage.reading("ten/file") as file:
        assert file.read() == text
        file.seek(300_000)
        assert file.readline(5) == text[300_000:300_005]
    assert storage.read("ten/file", 123_456, 1000) == text[123_456:124_456]


def test_what_breaks_off_leaves_nothing(storage: FileStorage) -> None:
    def break_off() -> None:
        with storage.writing("ten/file") as out:
            out.write(b"half")
            raise RuntimeError("the sender is gone")

    with pytest.raises(RuntimeError, match="gone"):
        break_off()
    with pytest.raises(FileNotFoundError):
        storage.open("ten/file")


def test_deleting_is_for_good_and_can_be_repeated(storage: FileStorage) -> None:
    with storage.writing("ten/file") as out:
        out.write(b"text")

    storage.delete("ten/file")
    storage.delete("ten/file")
    with pytest.raises(FileNotFoundError):
        storage.read("ten/file", 0, 4)


def test_a_storage_that_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("this is no folder")
    storage = FileStorage(str(tmp_path / "files"))
    with pytest.raises(ServiceUnavailable, match="file storage"), storage.writing("ten/file"):
        pytest.fail("nothing can be written there")


def test_reading_is_buffered(storage: FileStorage) -> None:
    with storage.writing("key") as out:
        out.write(b"a\n" * 1000)
    with storage.reading("key") as file:
        assert isinstance(file, io.BufferedReader)
        assert sum(1 for _ in file) == 1000
