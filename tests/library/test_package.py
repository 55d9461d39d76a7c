"""What is said in two places is the same in both."""

import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import herjax

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.skipif("HERJAX_INSTALLED_IN" not in os.environ, reason="another herjax may be installed than is tested")
def test_the_version_is_that_of_the_distribution() -> None:
    """What was built has the version that herjax says."""
    assert version("herjax") == herjax.__version__


def test_pre_commit_runs_the_ruff_that_tests_run() -> None:
    """The hooks' version is the one that the extra `test` pins."""
    (pinned,) = (need.removeprefix("ruff==") for need in PROJECT["optional-dependencies"]["test"] if need.startswith("ruff"))
    (hooks,) = re.findall(r"ruff-pre-commit\n +rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == pinned
