"""The shipped file of held-out invoices is what its command writes."""

from pathlib import Path

from examples.invoices.held_out import write_held_out
from examples.invoices.samples import FOLDER


def test_the_file_is_what_the_command_writes(tmp_path: Path) -> None:
    write_held_out(tmp_path / "again.jsonl", 20)
    lines = (FOLDER / "held-out.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 640
    assert (tmp_path / "again.jsonl").read_text(encoding="utf-8").splitlines() == lines[:20]
