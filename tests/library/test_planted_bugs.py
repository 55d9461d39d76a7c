"""The table of planted bugs is up to date, and each of them is noticed."""

from pathlib import Path

import pytest

import planted_bugs


@pytest.mark.parametrize("bug", planted_bugs.BUGS, ids=lambda bug: bug.claim)
def test_each_bug_has_its_one_place(bug: planted_bugs.Bug, tmp_path: Path) -> None:
    """What a bug replaces is there once, what it leaves is Python, and the tests that should notice it are in the copy."""
    copy = planted_bugs.planted(bug, tmp_path)
    assert all((copy / planted_bugs.TESTS / f"{name}.py").exists() for name in bug.tests)
    source = (copy / "herjax" / bug.file).read_text()
    compile(source, bug.file, "exec")
    assert source != (planted_bugs.ROOT / "herjax" / bug.file).read_text()


@pytest.mark.slow
def test_each_bug_is_noticed() -> None:
    """Of bugs that raise nothing and make learning a little worse, each makes a test fall."""
    assert planted_bugs.main(planted_bugs.Settings()) == 0
