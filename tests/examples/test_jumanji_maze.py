"""jumanji's Maze with HER: the script is short, needs hindsight to learn, and is true to the environment."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import herjax

pytest.importorskip("jumanji")

with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # The maze is made on import.
    import jumanji_maze

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Run(NamedTuple):
    """A short training with HER."""

    success_rate: float
    batch: herjax.Sample  # All that was learned from, in one.


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One seed trained for 2,000 updates, from which every sample is kept; as short are other trainings while it lasts."""
    batches: list[herjax.Sample] = []
    sample = herjax.sample

    def recorded_sample(*args: Any, **options: Any) -> herjax.Sample:
        batch = sample(*args, **options)
        jax.debug.callback(batches.append, batch)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jumanji_maze, "UPDATES", 2000)
        with patch.context() as recording, jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            recording.setattr(herjax, "sample", recorded_sample)
            success_rate = float(jax.jit(jumanji_maze.train, static_argnums=0)(4, jax.random.key(0)))
        jax.effects_barrier()
        batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
        # Before the first episode has ended, what is drawn is nothing.
        yield Run(success_rate, jax.tree.map(lambda leaf: leaf[batch.weights > 0], batch))


def test_is_short() -> None:
    """The whole of it has no more than 150 lines."""
    assert len(Path(jumanji_maze.__file__).read_text().splitlines()) <= 150


def test_needs_hindsight_to_learn(run: Run) -> None:
    """After 2,000 updates it reaches twice as many targets with HER as random actions do, 0.11, and fewer without."""
    without = float(jax.jit(jumanji_maze.train, static_argnums=0)(0, jax.random.key(0)))
    assert run.success_rate > 0.22
    assert without < 0.11


def test_learns_from_what_the_environment_did(run: Run) -> None:
    """Of what is learned from, under the goal pursued or another, jumanji's maze says the same.

    Put at a transition's position and given its action, it ends where the transition says, not at the next episode's start;
    with the sample's goal as its target it gives the reward, less one, and the termination. No step starts at the goal pursued.
    """
    batch = jax.tree.map(lambda leaf: leaf[::25], run.batch)
    env = jumanji_maze.ENV.unwrapped

    def ask(position: Any, goal: Any, action: jax.Array) -> tuple[Any, jax.Array]:
        state, timestep = env.reset(jax.random.PRNGKey(0))
        mask = env._compute_action_mask(state.walls, position)
        state = state.replace(agent_position=position, target_position=goal, action_mask=mask)
        state, timestep = env.step(state, action)
        return state.agent_position, timestep.reward

    led_to, reward = jax.jit(jax.vmap(ask))(batch.transition.position, batch.goal, batch.transition.action)
    np.testing.assert_array_equal(batch.transition.next_position.row, led_to.row)
    np.testing.assert_array_equal(batch.transition.next_position.col, led_to.col)
    np.testing.assert_array_equal(batch.reward, reward - 1)
    np.testing.assert_array_equal(batch.terminated, reward == 1)
    assert not np.any((batch.transition.position == batch.goal) & ~batch.is_hindsight)
    for is_hindsight in (False, True):
        reached = batch.terminated[batch.is_hindsight == is_hindsight]
        assert 0 < np.sum(reached) < len(reached), "both are met, goals reached and goals missed"
