"""What the README prints."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_quickstart_runs_as_printed() -> None:
    """The first Python block runs, and every seed's batches hold rewards once an episode has ended."""
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(BLOCKS[0], namespace)
    rewards = np.asarray(namespace["rewards"])
    assert rewards.shape == (8, 200)
    assert np.all((rewards >= -1) & (rewards <= 0))
    assert np.all(rewards[:, -1] < 0)
    assert np.all(rewards[:, -50:].max(axis=1) > -1), "hindsight goals were reached"


def test_a_checkpoint_is_restored_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second Python block saves a loop, and restores it when it runs again."""
    assert len(BLOCKS) == 2
    monkeypatch.chdir(tmp_path)
    first: dict[str, object] = {"loop": {"steps": jnp.int32(2000)}}
    exec(BLOCKS[1], first)
    assert "notes" not in first
    second: dict[str, object] = {"loop": {"steps": jnp.int32(0)}}
    exec(BLOCKS[1], second)
    assert second["notes"] == {"steps": 2000}
    assert int(second["loop"]["steps"]) == 2000


def test_its_files_exist() -> None:
    """Every file that the README links to is there."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
