"""The script for an environment that was not written for HER: it is short, and true to it, and needs hindsight to learn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import herjax

with jax.numpy_dtype_promotion("standard"):  # The environment, too, promotes as it is made.
    import any_env

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Run(NamedTuple):
    """A short training with HER."""

    success_rate: float
    functions: dict[str, Any]  # What `herjax.init` was given by name.
    batch: herjax.Sample  # All that was learned from, in one.


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One seed trained for 5,000 steps, from which every sample is kept; as short are other trainings while it lasts."""
    functions: dict[str, Any] = {}
    batches: list[herjax.Sample] = []
    init, sample = herjax.init, herjax.sample

    def recorded_init(*args: Any, **options: Any) -> herjax.BufferState:
        functions.update(options)
        return init(*args, **options)

    def recorded_sample(*args: Any, **options: Any) -> herjax.Sample:
        batch = sample(*args, **options)
        jax.debug.callback(batches.append, batch)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(any_env, "STEPS", 5000)
        with patch.context() as recording, jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            recording.setattr(herjax, "init", recorded_init)
            recording.setattr(herjax, "sample", recorded_sample)
            success_rate = float(jax.jit(any_env.train, static_argnums=0)(4, jax.random.key(0)))
        jax.effects_barrier()
        batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
        # Before the first episode has ended, what is drawn is nothing.
        yield Run(success_rate, functions, jax.tree.map(lambda leaf: leaf[batch.weights > 0], batch))


def test_is_short() -> None:
    """The whole of it has fewer than 100 lines."""
    assert len(Path(any_env.__file__).read_text().splitlines()) < 100


def test_needs_hindsight_to_learn(run: Run) -> None:
    """After 5,000 steps it reaches more than twice as many goals with HER as random actions do, 0.11, and fewer without."""
    without = float(jax.jit(any_env.train, static_argnums=0)(0, jax.random.key(0)))
    assert run.success_rate > 0.22
    assert without < 0.11


def test_learns_from_what_the_environment_did(run: Run) -> None:
    """Of all that is learned from, under the goal pursued or another, the environment itself says the same.

    Put at a transition's position and given its action, it ends where the transition says that it led and `goal_fn` that it
    achieved, not at the start of the next episode; given the sample's goal, it agrees on reward and termination. The goal
    pursued is where no transition starts: an episode neither begins there nor goes on from there.
    """
    batch, key = run.batch, jax.random.key(0)

    def ask(position: jax.Array, goal: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        _, state = any_env.ENV.reset(key, any_env.PARAMS)
        state = state.replace(pos=position, goal=goal)
        _, state, reward, terminated, _ = any_env.ENV.step_env(key, state, action, any_env.PARAMS)
        return state.pos, reward, terminated

    led_to, reward, terminated = jax.vmap(ask)(batch.transition.position, batch.goal, batch.transition.action)
    np.testing.assert_array_equal(batch.transition.next_position, led_to)
    np.testing.assert_array_equal(jax.vmap(run.functions["goal_fn"])(batch.transition), led_to)
    np.testing.assert_array_equal(batch.reward, reward - 1)
    np.testing.assert_array_equal(batch.terminated, terminated)
    starts_at_goal = np.all(batch.transition.position == batch.goal, axis=1)
    assert not np.any(starts_at_goal & ~batch.is_hindsight)
    for is_hindsight in (False, True):
        reached = batch.terminated[batch.is_hindsight == is_hindsight]
        assert 0 < np.sum(reached) < len(reached), "both are met, goals reached and goals missed"
