"""The parts of examples/benchmarks/accelerator.py run in order, whatever becomes of each."""

import dataclasses
import json
from pathlib import Path

import pytest

import accelerator
from accelerator import Part, Settings

WRITES = '-c \'import sys; open(sys.argv[1], "w").write("[1]"); print("written"); {}\' {{out}}'
"""A program that writes figures; then does something else."""
PARTS = (
    Part("first", "works", WRITES.format("1 / 0"), WRITES.format("pass"), 20),
    Part("second", "fails", "", WRITES.format("1 / 0"), 20),
    Part("third", "hangs", "", WRITES.format("import time; time.sleep(60)"), 3),
    Part("fourth", "needs what is not there", "", WRITES.format("pass"), 20, "no_such_module"),
    Part("fifth", "is not done in small", WRITES.format("pass"), None, 20),
    Part("sixth", "works", "", WRITES.format("pass"), 20),
)


def test_parts_run_in_order_and_each_writes_its_file(tmp_path: Path) -> None:
    """One that fails or hangs is recorded with what it had found, and the next one begins; a second call skips all of them."""
    settings = Settings(out=tmp_path)
    outcomes = accelerator.measure_all(PARTS, settings, small=True)
    assert [found.outcome for found in outcomes] == ["done", "failed", "timed out", "skipped", "done"]
    files = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "small").glob("*.json")}
    assert files.keys() == {"first", "second", "third", "sixth"}
    assert all(file["figures"] == [1] and file["printed"] == "written\n" for file in files.values())
    assert "ZeroDivisionError" in files["second"]["error"]
    assert files["third"]["seconds"] < 20
    summary = (tmp_path / "small" / "summary.txt").read_text()
    lines = [line.split()[0] for line in summary.splitlines() if not line.startswith(" ")]
    assert lines == ["first", "second", "third", "fourth", "sixth"]
    assert "no_such_module is not installed" in summary

    again = accelerator.measure_all(PARTS, settings, small=True)
    assert [found.outcome for found in again] == ["there already"] * 3 + ["skipped", "there already"]
    settings = dataclasses.replace(settings, again=True, only=("first",))
    assert [found.outcome for found in accelerator.measure_all(PARTS, settings, small=True)] == ["done"]
    assert [found.outcome for found in accelerator.measure_all(PARTS[:1], settings, small=False)] == ["failed"], "a folder each"


def test_parts_are_given_up_when_the_time_is_over(tmp_path: Path) -> None:
    """The one that runs then and those after it; they have no file, so that the next call measures them."""
    parts = (PARTS[2]._replace(seconds=60), PARTS[5])
    outcomes = accelerator.measure_all(parts, Settings(out=tmp_path, minutes=1 / 30), small=True)
    assert [found.outcome for found in outcomes] == ["given up", "given up"]
    assert [file.name for file in (tmp_path / "small").iterdir()] == ["summary.txt"]


def test_a_real_part_says_what_the_device_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command that a user types, on a CPU: small without being told so."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    accelerator.main(["--only", "device", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "small" / "device.json").read_text())
    assert found["outcome"] == "done", found["error"]
    about, drawn = found["figures"]
    assert about["platform"] == "cpu"
    assert (drawn["finite"], drawn["same"], drawn["indices_as_on_cpu"]) == (True, True, 1.0)


def test_every_part_is_a_file_that_is_there() -> None:
    """The table's programs and tests exist; a part that is not in it is refused."""
    paths = {word for part in accelerator.PARTS for word in part.command.split() if word.endswith(".py")}
    assert all((accelerator.ROOT / path).exists() for path in paths)
    with pytest.raises(SystemExit, match="--only has sevnth; give some of device, tests"):
        accelerator.main(["--only", "sevnth"])
