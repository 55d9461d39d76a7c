"""What the README prints."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax

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


def test_mixtures_windows_and_play_data_run_as_printed() -> None:
    """The second block runs; on its buffers, filled, a mixture has goals of other episodes, play data hindsight goals alone."""
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(BLOCKS[0], namespace)
    exec(BLOCKS[1], namespace)
    assert namespace["target"].shape == (32,)
    transition = namespace["Transition"]
    parts = BLOCKS[1].split("\n\n")
    assert len(parts) == 4

    def filled(buffer: herjax.BufferState) -> herjax.BufferState:
        for episode in range(2):
            for _ in range(8):
                buffer = herjax.add(buffer, transition(jnp.zeros(4), jnp.int32(0), jnp.full(4, float(episode))))
            buffer = herjax.end_episode(buffer, jnp.full(4, 9.0), jax.random.key(episode))
        return buffer

    def batch_of(part: str) -> herjax.Sample:
        made, drawn = part[: part.index("batch =")], part[part.index("batch =") :]
        exec(parts[0] + "\n" + made, namespace)
        namespace["buffer"] = filled(namespace["buffer"])
        exec(drawn.replace(", 32", ", 2048"), namespace)
        return namespace["batch"]

    mixed, windows, play = (batch_of(part) for part in parts[1:])
    elsewhere = jnp.any(mixed.goal != mixed.transition.next_observation, axis=1) & mixed.is_hindsight
    assert 0.02 < float(elsewhere.mean()) < 0.16, "one of five goals is drawn from everywhere, where half are alike"
    np.testing.assert_array_equal(windows.reward[windows.is_hindsight], 0)
    np.testing.assert_allclose(windows.reward[~windows.is_hindsight].min(), -(1 + 0.98 + 0.98**2), rtol=1e-6)
    assert bool(jnp.all(play.is_hindsight))
    assert float(play.goal.max()) < 9


def test_your_own_loop_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The third and fourth show its temporaries, and share its seeds out over an Explicit mesh, to the same rewards."""
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(BLOCKS[0], namespace)
    alone = np.asarray(namespace["rewards"])
    exec(BLOCKS[2], namespace)
    buffers = 8 * sum(leaf.nbytes for leaf in jax.tree.leaves(namespace["start"]()))
    assert buffers < int(capsys.readouterr().out) < 1.5 * buffers
    namespace = {"__name__": "readme"}
    exec(BLOCKS[0], namespace)
    exec(BLOCKS[3], namespace)
    assert jax.typeof(namespace["rewards"]).sharding.spec[0] == "seed"
    np.testing.assert_array_equal(namespace["rewards"], alone)


def test_a_checkpoint_is_restored_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last Python block saves a loop, and restores it when it runs again."""
    assert len(BLOCKS) == 5
    monkeypatch.chdir(tmp_path)
    first: dict[str, object] = {"loop": {"steps": jnp.int32(2000)}}
    exec(BLOCKS[4], first)
    assert "notes" not in first
    second: dict[str, object] = {"loop": {"steps": jnp.int32(0)}}
    exec(BLOCKS[4], second)
    assert second["notes"] == {"steps": 2000}
    assert int(second["loop"]["steps"]) == 2000


def test_its_files_exist() -> None:
    """Every file that the README links to is there."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
