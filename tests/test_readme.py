"""What the README prints."""

import re
from pathlib import Path

import jax
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


def test_your_own_loop_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The next two show its temporaries, and share its seeds out over an Explicit mesh, to the same rewards."""
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(BLOCKS[0], namespace)
    alone = np.asarray(namespace["rewards"])
    exec(BLOCKS[1], namespace)
    buffers = 8 * sum(leaf.nbytes for leaf in jax.tree.leaves(namespace["start"]()))
    assert buffers < int(capsys.readouterr().out) < 1.5 * buffers
    namespace = {"__name__": "readme"}
    exec(BLOCKS[0], namespace)
    exec(BLOCKS[2], namespace)
    assert jax.typeof(namespace["rewards"]).sharding.spec[0] == "seed"
    np.testing.assert_array_equal(namespace["rewards"], alone)


def test_a_checkpoint_is_restored_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last Python block saves a loop, and restores it when it runs again."""
    assert len(BLOCKS) == 4
    monkeypatch.chdir(tmp_path)
    first: dict[str, object] = {"loop": {"steps": jnp.int32(2000)}}
    exec(BLOCKS[3], first)
    assert "notes" not in first
    second: dict[str, object] = {"loop": {"steps": jnp.int32(0)}}
    exec(BLOCKS[3], second)
    assert second["notes"] == {"steps": 2000}
    assert int(second["loop"]["steps"]) == 2000


def test_its_files_exist() -> None:
    """Every file that the README links to is there."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
