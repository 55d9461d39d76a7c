"""Returns of several steps that are corrected for hindsight: the largest of each window, and where windows end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flags
import herjax
import returns

DISCOUNT = 0.5
CORRECTED = flags.HindsightFlags(num_steps=3, correction="largest")


def largest(rewards: np.ndarray, ends: np.ndarray, values: np.ndarray, held: int) -> float:
    """In a plain loop: the largest return of a window that has `held` steps, and goes on after no step that ends the task."""
    found, so_far = [], 0.0
    for step in range(held):
        so_far += DISCOUNT**step * rewards[step]
        found.append(so_far + (0 if ends[step] else DISCOUNT ** (step + 1) * values[step]))
        if ends[step]:
            break
    return max(found)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_return_is_the_largest_of_all_lengths(steps: int) -> None:
    """Of windows with any number of steps held, and with the task ended at any of them, or at none: as in a plain loop."""
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 2000, steps)).astype(np.float32)
    ends, held = rng.random((2000, steps)) < 0.2, rng.integers(1, steps + 1, 2000)
    mask = np.arange(steps) < held[:, None]
    discounts = np.where(ends, 0, DISCOUNT).astype(np.float32)
    expected = [largest(*each) for each in zip(rewards, ends, values, held, strict=True)]
    np.testing.assert_allclose(jax.vmap(returns.largest)(rewards, discounts, values, mask), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rewards", "discounts", "values", "mask", "expected"),
    [
        ([-1, -1, -1], [0.5, 0.5, 0.5], [-2, -2, -2], [1, 1, 1], -1.5 - 0.25 - 0.25),  # Nothing won: each is worth -2.
        ([-1, -1, -1], [0.5, 0.5, 0.5], [-4, -2, -4], [1, 1, 1], -1.5 - 0.25 * 2),  # Two steps led to a good place,
        ([-1, -1, -1], [0.5, 0.5, 0.5], [-4, -2, 0], [1, 1, 1], -1.75),  # three to a better one,
        ([-1, -1, -1], [0.5, 0.5, 0.5], [-4, -2, 0], [1, 1, 0], -1.5 - 0.25 * 2),  # which is after the episode's end.
        ([-1, 0, 9], [0.5, 0.0, 0.5], [-4, 9, 9], [1, 1, 1], -1),  # The second step reaches the goal: nothing comes after it.
        ([-1, -1, -1], [0.5, 0.5, 0.5], [-1, -9, -9], [1, 1, 1], -1.5),  # A poor second action is passed by.
        ([0, 0, 0], [0.5, 0.5, 0.5], [0, 1, 1], [0, 0, 0], 0),  # What an empty buffer gives is finite.
    ],
)
def test_returns_by_hand(
    rewards: list[int], discounts: list[float], values: list[int], mask: list[int], expected: float
) -> None:
    """Windows of three steps whose return can be seen."""
    numbers = (jnp.array(field, jnp.float32) for field in (rewards, discounts, values))
    assert returns.largest(*numbers, jnp.array(mask, bool)) == expected


class Step(NamedTuple):
    """A step of a walk: where it led to."""

    episode: jax.Array  # int32 []
    step: jax.Array  # int32 []
    place: jax.Array  # float32 []


def reached(step: Step, goal: jax.Array) -> jax.Array:
    """Whether it is at its goal."""
    return step.place == goal


def reward(step: Step, goal: jax.Array) -> jax.Array:
    """-1, or 0 at the goal."""
    return reached(step, goal).astype(jnp.float32) - 1


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_windows_end_with_the_task_and_with_the_episode(relabel: str, key: jax.Array) -> None:
    """Read from a buffer, windows give what a plain loop over the episodes does, where goals are met on the way, too.

    Both walks are cut off before the goal that they pursued: their last windows are shorter, and go on from the last step. Each
    place is worth minus its square.
    """
    walks = ([1.0, 2.0, 1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 5.0])
    buffer = herjax.init(
        Step(jnp.int32(0), jnp.int32(0), jnp.float32(0)),
        capacity=20,
        max_episode_length=6,
        goal_fn=lambda step: step.place,
        reward_fn=reward,
        terminated_fn=reached,
        relabel=relabel,
        num_steps=returns.stored_steps(CORRECTED),
        discount=DISCOUNT,
    )
    for episode, walk in enumerate(walks):
        for step, place in enumerate(walk):
            buffer = herjax.add(buffer, Step(jnp.int32(episode), jnp.int32(step), jnp.float32(place)))
        buffer = herjax.end_episode(buffer, jnp.float32(9), jax.random.fold_in(key, episode))
    sample = herjax.sample(buffer, key, 500)
    window = returns.window(CORRECTED, buffer, sample)
    assert window is not None
    discounts = jnp.where(window.terminated, 0, DISCOUNT)
    found = jax.vmap(returns.largest)(window.reward, discounts, -(window.transition.place**2), window.mask)
    lengths = set()
    for episode, step, goal, each in zip(*jax.device_get((*sample.transition[:2], sample.goal, found)), strict=True):
        places = np.array(walks[episode][step : step + 3])
        lengths.add((len(places), bool(np.any(places == goal))))
        assert each == pytest.approx(largest((places == goal) - 1.0, places == goal, -(places**2), len(places)))
    assert lengths == {(length, met) for length in (1, 2, 3) for met in (False, True)}, "all kinds of windows were drawn"


def test_nothing_is_read_where_nothing_is_corrected() -> None:
    """Without a correction the buffer is told of n steps, and there is no window."""
    plain = flags.HindsightFlags(num_steps=3)
    assert (returns.stored_steps(plain), returns.stored_steps(CORRECTED)) == (3, 1)
    buffer = herjax.init(
        jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=lambda t, goal: t - goal
    )
    assert returns.window(plain, buffer, herjax.sample(buffer, jax.random.key(0), 2)) is None
