"""Long episodes: the four ways differ in when learning begins, not in how many steps they take."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import long_episodes

pytestmark = pytest.mark.usefixtures("standard_promotion")

TINY = long_episodes.Config(
    task="reach", episode=20, piece=10, cycle_steps=5, num_envs=3, capacity=126, updates=2, batch_size=8, hidden=(8,)
)


@pytest.mark.parametrize(("way", "begins"), [("whole", 20), ("cut", 10), ("running", 5), ("next_of", 5)])
def test_learning_begins_with_the_first_steps_that_can_be_sampled(way: long_episodes.Way, begins: int, key: jax.Array) -> None:
    """Parameters stay as they are until an episode or a piece has ended; where running ones are sampled, they never do."""
    loop = long_episodes.start(TINY, way, key)
    cycle = jax.jit(partial(long_episodes.cycle, TINY, way))
    for steps in (5, 10, 15, 20):
        before = loop.agent.networks
        loop, updates = cycle(loop, jax.random.fold_in(key, steps))
        assert (loop.env[1].time == steps % 20).all()
        assert updates == (2 if steps >= begins else 0)
        same = jax.tree.leaves(jax.tree.map(np.array_equal, before, loop.agent.networks))
        assert not any(same) if steps >= begins else all(same)


def test_the_script_prints_tables_and_writes_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every evaluation has a success by steps; by updates, a way that waited has none at the end."""
    flags = ["--task=reach", "--episode=20", "--piece=10", "--num-envs=3", "--capacity=126", "--cycles=4", "--eval-every=2"]
    flags += ["--updates=2", "--batch-size=8", "--hidden=8", "--seeds=2", "--eval-episodes=2", "--ways=whole"]
    long_episodes.main([*flags, f"--json={tmp_path / 'new' / 'long.json'}"])
    results = json.loads((tmp_path / "new" / "long.json").read_text())
    whole = results["ways"]["whole"]
    assert (results["eval_steps"], whole["updates"], np.shape(whole["success_rate"])) == ([30, 60], [0, 2], (2, 2))
    by_steps, by_updates = (table.splitlines()[-2:] for table in capsys.readouterr().out.split("\n\n"))
    assert [line.count("±") for line in by_steps] == [1, 1]
    assert by_updates == ["| 4 | - |", "| 8 | - |"]


def test_observations_that_are_shared_take_less_memory(key: jax.Array) -> None:
    """A buffer is smaller with next_of; the other three are alike."""
    buffers = [jax.eval_shape(partial(long_episodes.start, TINY, way), key).buffer for way in long_episodes.OPTIONS]
    *others, shared = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer)) for buffer in buffers]
    assert shared < min(others) == max(others)


def test_pieces_that_do_not_fill_an_episode_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The flag, its value and the remedy are named."""
    with pytest.raises(SystemExit):
        long_episodes.main(["--piece=300"])
    assert capsys.readouterr().err.endswith("--piece is 300; give a divisor of --episode, 1000.\n")
