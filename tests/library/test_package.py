"""What is said in two places is the same in both."""

import ast
import os
import re
import subprocess
import sys
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


def test_dir_lists_what_is_public() -> None:
    """In a new interpreter, none of the modules that the calls come from; the modules of users once they are imported."""
    lines = "import herjax; print(dir(herjax)); from herjax import envs; print(dir(herjax))"
    program = subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True)
    before, after = (ast.literal_eval(line) for line in program.stdout.splitlines())
    assert before == sorted(herjax.__all__)
    assert after == sorted([*herjax.__all__, "envs"])


@pytest.mark.parametrize("tool", ["ruff", "check-jsonschema", "zizmor"])
def test_pre_commit_runs_the_versions_that_tests_run(tool: str) -> None:
    """The hooks' version is the one that the extra `test` pins."""
    needs = PROJECT["optional-dependencies"]["test"]
    (pinned,) = (need.removeprefix(f"{tool}==") for need in needs if need.startswith(f"{tool}=="))
    (hooks,) = re.findall(rf"/{tool}(?:-pre-commit)?\n +rev: v?(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == pinned


def test_every_version_has_notes() -> None:
    """The changelog has a section for this version, which a release prints; it refuses one that has none."""
    notes = [ROOT / ".github/notes"]
    assert subprocess.run([*notes, herjax.__version__], check=True, capture_output=True, text=True).stdout.strip()
    refused = subprocess.run([*notes, "9.9"], check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "no section on 9.9" in refused.stderr
