"""What the README prints."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
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
    parts = BLOCKS[1].split("# ")[1:]
    assert len(parts) == 3

    def filled(buffer: herjax.BufferState) -> herjax.BufferState:
        for episode in range(2):
            for _ in range(8):
                step = namespace["example"] | {"next_observation": jnp.full(4, float(episode))}
                buffer = herjax.add(buffer, step)
            buffer = herjax.end_episode(buffer, jnp.full(4, 9.0), jax.random.key(episode))
        return buffer

    def batch_of(part: str) -> herjax.Sample:
        made, drawn = part[part.index("buffer =") : part.index("batch =")], part[part.index("batch =") :]
        exec(made, namespace)
        exec(drawn, namespace)
        assert namespace["batch"].reward.shape == (32,)
        namespace["buffer"] = filled(namespace["buffer"])
        exec(drawn.replace(", 32", ", 2048"), namespace)
        return namespace["batch"]

    mixed, windows, play = map(batch_of, parts)
    elsewhere = jnp.any(mixed.goal != mixed.transition["next_observation"], axis=1) & mixed.is_hindsight
    assert 0.02 < float(elsewhere.mean()) < 0.16, "one of five goals is drawn from everywhere, where half are alike"
    np.testing.assert_array_equal(windows.reward[windows.is_hindsight], 0)
    np.testing.assert_allclose(windows.reward[~windows.is_hindsight].min(), -(1 + 0.98 + 0.98**2), rtol=1e-6)
    assert bool(jnp.all(play.is_hindsight))
    assert float(play.goal.max()) < 9


def test_seeds_on_many_devices_run_as_printed() -> None:
    """The third block shares the seeds out over an Explicit mesh, to the same rewards."""
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(BLOCKS[0], namespace)
    alone = np.asarray(namespace["rewards"])
    exec(BLOCKS[2], namespace)
    assert jax.typeof(namespace["rewards"]).sharding.spec[0] == "seed"
    np.testing.assert_array_equal(namespace["rewards"], alone)


def test_the_loop_is_in_place_as_it_says() -> None:
    """Its temporaries are the buffers that it makes, and little more."""
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(BLOCKS[0], namespace)
    compiled = jax.jit(jax.vmap(namespace["train"])).lower(jax.random.split(jax.random.key(0), 8)).compile()
    buffer = jax.eval_shape(
        lambda: herjax.init(namespace["example"], priority_exponent=0.6, discount=0.98, **namespace["task"])
    )
    buffers = 8 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer))
    assert buffers < compiled.memory_analysis().temp_size_in_bytes < 1.5 * buffers


def test_it_is_short() -> None:
    """A landing page has at most 170 lines."""
    assert len(README.splitlines()) <= 170


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
        assert (ROOT / target).exists(), target
