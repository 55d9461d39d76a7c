"""The buffer in flashbax's manner: it has flashbax's calls, gives hindsight goals by itself, and its learner needs them."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flashbax_like
import herjax

pytestmark = pytest.mark.usefixtures("standard_promotion")

# Where an episode ends. Environment 0 has episodes of 3 and 2 steps, environment 1 has one of 4. Then both have running ones.
DONE = np.array([[0, 0], [0, 0], [1, 0], [0, 1], [1, 0], [0, 0]], bool)
EPISODE_ENDS = {0: (3, 5), 1: (4,)}


class Step(NamedTuple):
    """A transition with Stoix's fields. Its action is its name: 10 * environment + time."""

    obs: jax.Array  # float32 [2]; name, goal
    action: jax.Array
    reward: jax.Array
    done: jax.Array
    next_obs: jax.Array  # float32 [2]; name + 0.5, which is what it achieved, and goal
    info: dict[str, jax.Array]


def desired_goal(name: int) -> float:
    """The goal of the episode that a transition is in: below zero, where nothing is achieved."""
    env, time = divmod(name, 10)
    return -1.0 - 10 * env - sum(time >= end for end in EPISODE_ENDS[env])


def hindsight_goals(name: int) -> set[float]:
    """What the episode of a transition achieved from there on; none if it has not ended."""
    env, time = divmod(name, 10)
    end = min((end for end in EPISODE_ENDS[env] if end > time), default=0)
    return {10 * env + later + 0.5 for later in range(time, end)}


def played() -> Step:
    """All that was played, [6, 2, ...]."""
    names = 10 * np.arange(2) + np.arange(6)[:, None]
    goals = np.vectorize(desired_goal)(names)
    obs, next_obs = (np.stack([names + achieved, goals], -1).astype(np.float32) for achieved in (0, 0.5))
    return Step(obs, names.astype(np.int32), np.full((6, 2), 7, np.float32), DONE, next_obs, {"time": names % 10})


TASK = {
    "goal_fn": lambda t: t.next_obs[0],
    "reward_fn": lambda t, goal: (t.next_obs[0] == goal) - 1.0,
    "terminated_fn": lambda t, goal: t.next_obs[0] == goal,
    "desired_goal_fn": lambda t: t.obs[1],
    "with_goal_fn": lambda t, goal: t._replace(obs=t.obs.at[1].set(goal), next_obs=t.next_obs.at[1].set(goal)),
}
SIZES = {"max_length": 20, "min_length": 5, "sample_batch_size": 500, "add_batch_size": 2, "max_episode_length": 4}


def filled(**options: Any) -> tuple[flashbax_like.Buffer, herjax.BufferState]:
    """A buffer, and its state after all that was played."""
    buffer = flashbax_like.make(**{"add_sequences": True, **SIZES, **TASK, **options})
    return buffer, buffer.add(buffer.init(jax.tree.map(lambda leaf: leaf[0, 0], played())), played())


@pytest.mark.parametrize("num_goals", [0, 4])
def test_samples_have_goals_of_their_episode(num_goals: int, key: jax.Array) -> None:
    """All steps of finished episodes are drawn, with the desired goal or one achieved later; the rest of them is as played.

    Without hindsight goals only the desired ones are drawn.
    """
    buffer, state = filled(num_goals=num_goals)
    batch = jax.tree.map(np.asarray, buffer.sample(state, key).experience)
    expected = {(name, goal) for name in (0, 1, 2, 3, 4, 10, 11, 12, 13) for goal in {desired_goal(name)}}
    if num_goals:
        expected |= {(name, goal) for name, _ in expected for goal in hindsight_goals(name)}
    assert {(int(name), float(goal)) for name, goal in batch.obs} == expected
    np.testing.assert_array_equal(batch.next_obs, batch.obs + np.float32([0.5, 0]))
    np.testing.assert_array_equal(batch.action, batch.obs[:, 0])
    np.testing.assert_array_equal(batch.info["time"], batch.action % 10)


def test_rewards_and_ends_are_those_of_the_goal(key: jax.Array) -> None:
    """Reward and `done` of a sample are the task's under the goal in its observations, not those that were added."""
    buffer, state = filled()
    batch = buffer.sample(state, key).experience
    reached = np.asarray(batch.next_obs[:, 0] == batch.next_obs[:, 1])
    np.testing.assert_array_equal(batch.reward, np.where(reached, 0, -1))
    np.testing.assert_array_equal(batch.done, reached)
    assert 0 < np.mean(reached) < 1


def test_without_terminated_fn_nothing_is_done(key: jax.Array) -> None:
    """Where reaching a goal does not end the task, no sample is `done`: an end that was added was the time limit."""
    buffer, state = filled(terminated_fn=None)
    assert not np.any(buffer.sample(state, key).experience.done)


def test_can_sample_counts_finished_transitions() -> None:
    """`can_sample` is False until the episodes that ended have `min_length` transitions: here 5, of 3 and then 7."""
    buffer = flashbax_like.make(**SIZES, **TASK)
    steps = [jax.tree.map(lambda leaf, time=time: leaf[time], played()) for time in range(6)]
    state = buffer.init(jax.tree.map(lambda leaf: leaf[0], steps[0]))
    ready = [bool(buffer.can_sample(state := buffer.add(state, step))) for step in steps]
    assert ready == [False, False, False, True, True, True]
    # And what was added step by step is what a sequence adds.
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(state), jax.tree.leaves(filled()[1]))


def test_holds_no_more_than_max_length() -> None:
    """However often they are added: here 9 at most in two environments, so 4 in each."""
    buffer, state = filled(max_length=9)
    for _ in range(3):
        state = buffer.add(state, played())
        herjax.check(state)
        assert 0 < herjax.size(state) <= 8


def test_is_used_as_stoix_does(key: jax.Array) -> None:
    """The state may be broadcast, and the functions mapped over it, as Stoix does for its update batch."""
    buffer, state = filled()
    empty = buffer.init(jax.tree.map(lambda leaf: leaf[0, 0], played()))
    states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), empty)
    states = jax.vmap(buffer.add, (0, None))(states, played())
    batches = jax.jit(jax.vmap(buffer.sample))(states, jax.random.split(key, 3))
    one = buffer.sample(state, jax.random.split(key, 3)[1])
    jax.tree.map(lambda many, single: np.testing.assert_array_equal(many[1], single), batches, one)


def test_needs_hindsight_to_learn(monkeypatch: pytest.MonkeyPatch, key: jax.Array) -> None:
    """After 1,000 updates of the script's learner most episodes are solved with HER (0.9 or more of them), else hardly one."""
    monkeypatch.setattr(flashbax_like, "UPDATES", 1000)
    monkeypatch.setattr(flashbax_like, "EPOCHS", 2)
    with_her, without = (float(jax.jit(flashbax_like.train, static_argnums=0)(num_goals, key)) for num_goals in (4, 0))
    assert with_her > 0.5
    assert without < 0.05


def test_flashbax_fits_the_same_learner(monkeypatch: pytest.MonkeyPatch, key: jax.Array) -> None:
    """The script's learner runs with a buffer of flashbax's own: nothing in it was made for herjax."""
    flashbax = pytest.importorskip("flashbax")

    def make(max_length: int, min_length: int, sample_batch_size: int, **_: Any) -> Any:
        return flashbax.make_item_buffer(max_length, min_length, sample_batch_size, add_sequences=True, add_batches=True)

    monkeypatch.setattr(flashbax_like, "UPDATES", 1)
    monkeypatch.setattr(flashbax_like, "make", make)
    assert 0 <= flashbax_like.train(0, key) <= 1


def test_is_short() -> None:
    """The script has no more than 150 lines."""
    assert len(Path(flashbax_like.__file__).read_text().splitlines()) <= 150
