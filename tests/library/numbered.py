"""Numbered transitions: every field encodes the transition's number, and every goal that of the transition that achieved it.

So a field out of place shows. Goals that episodes pursued have numbers below 0. A transition is its number, or, where fields
matter, a `Transition` of several shapes and dtypes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import herjax

LENGTH = 5  # Of the longest episode, unless a test says otherwise.


# Transitions that are their numbers.


def achieved(number: jax.Array) -> jax.Array:
    return number


def reward(number: jax.Array, goal: jax.Array) -> jax.Array:
    """Differs for every pair."""
    return 1000 * number + goal


def reached(number: jax.Array, goal: jax.Array) -> jax.Array:
    return number == goal


def make(**options: object) -> herjax.BufferState:
    """An empty buffer; what is not given to `init` is as small as most tests want it."""
    defaults = {"transition": jnp.int32(0), "capacity": 16, "max_episode_length": LENGTH}
    functions = {"goal_fn": achieved, "reward_fn": reward, "terminated_fn": reached}
    given = defaults | functions | options
    return herjax.init(given.pop("transition"), **given)


@jax.jit
def play(state: herjax.BufferState, first: jax.Array, dones: jax.Array, key: jax.Array) -> herjax.BufferState:
    """Steps `first`, `first + 1`, ... of n environments, of which `dones`, bool [steps, n], says where episodes end.

    In step s environment e's transition is `s * n + e`. What ends there pursued `-1 - (s * n + e)`.
    """
    steps, n = dones.shape

    def step(state: herjax.BufferState, xs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[herjax.BufferState, None]:
        number, done, key = xs
        numbers = number * n + jnp.arange(n, dtype=jnp.int32)
        if state.config.num_envs is None:
            numbers, done = numbers[0], done[0]
        return herjax.end_episode(herjax.add(state, numbers), -1 - numbers, key, done), None

    return jax.lax.scan(step, state, (first + jnp.arange(steps), dones, jax.random.split(key, steps)))[0]


# Transitions of which each ends where the next one begins.


class Pair(NamedTuple):
    """A transition for `next_of`: both observations name it, and differ from those of all others."""

    next_observation: dict[str, jax.Array]  # int32 [2] and uint8 [3]
    number: jax.Array  # int32 []
    observation: dict[str, jax.Array]


def pair(number: jax.Array | np.ndarray) -> Pair:
    """Transitions of these numbers, int32 [...]. A step's observation is not what came after the step before it."""
    return Pair(seen(2 * number + 1), number, seen(2 * number))


def seen(code: jax.Array | np.ndarray) -> dict[str, jax.Array | np.ndarray]:
    """The observation of this code, int32 [...]."""
    stack = np.stack if isinstance(code, np.ndarray | np.generic) else jnp.stack
    pixels = stack([code % 251, 7 * code % 251, 31 * code % 251], axis=-1).astype(np.uint8)
    return {"place": stack([code, code + 1], axis=-1), "pixels": pixels}


def make_of_pairs(**options: object) -> herjax.BufferState:
    """As `make`, for `Pair`s."""
    functions = {
        "goal_fn": lambda pair: achieved(pair.number),
        "reward_fn": lambda pair, goal: reward(pair.number, goal),
        "terminated_fn": lambda pair, goal: reached(pair.number, goal),
    }
    return make(**({"transition": pair(np.int32(0)), "next_of": {"next_observation": "observation"}} | functions | options))


# Transitions of several fields.


class Transition(NamedTuple):
    """Every field encodes the number."""

    number: jax.Array  # int32 []
    observation: jax.Array  # float32 [2]
    next_observation: dict[str, jax.Array]  # int16 [2, 3] and uint8 [1]


@jax.jit
def transition(number: jax.Array | int) -> Transition:
    """Transition `number`, int32 []."""
    number = jnp.asarray(number, jnp.int32)
    pixels = number.astype(jnp.int16) + jnp.arange(6, dtype=jnp.int16).reshape(2, 3)
    return Transition(
        number=number,
        observation=jnp.stack([number, -number]).astype(jnp.float32),
        next_observation={"pixels": pixels, "low": (number % 251).astype(jnp.uint8)[None]},
    )


@jax.jit
def goal(number: jax.Array | int) -> dict[str, jax.Array]:
    """The goal that transition `number`, int32 [], achieved."""
    number = jnp.asarray(number, jnp.int32)
    return {"number": number, "code": number.astype(jnp.float32) + jnp.array([0.25, 0.5, 0.75], jnp.float32)}


def achieved_of_fields(transition: Transition) -> dict[str, jax.Array]:
    return goal(transition.next_observation["pixels"][0, 0].astype(jnp.int32))


def reward_of_fields(transition: Transition, goal: dict[str, jax.Array]) -> jax.Array:
    return 1000.0 * transition.observation[0] + goal["code"][0] - 0.25


def ended_of_fields(transition: Transition, goal: dict[str, jax.Array]) -> jax.Array:
    """So under some of the goals that were pursued, too."""
    return (transition.number + goal["number"]) % 3 == 0


def make_of_fields(**options: object) -> herjax.BufferState:
    """As `make`, for `Transition`s."""
    functions = {"goal_fn": achieved_of_fields, "reward_fn": reward_of_fields, "terminated_fn": ended_of_fields}
    return make(**({"transition": jax.eval_shape(transition, 0)} | functions | options))


# Both.


def decode(batch: herjax.Sample) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of transitions and goals, int32 [...], after asserting that all else in the batch is theirs."""
    batch = jax.tree.map(np.asarray, batch)
    if isinstance(batch.transition, Transition):
        numbers, goals = batch.transition.number, batch.goal["number"]
        ended = (numbers + goals) % 3 == 0
        corners = numbers[..., None, None].astype(np.int16)
        np.testing.assert_array_equal(batch.transition.observation, np.stack([numbers, -numbers], axis=-1))
        pixels = batch.transition.next_observation["pixels"]
        np.testing.assert_array_equal(pixels, corners + np.arange(6, dtype=np.int16).reshape(2, 3))
        np.testing.assert_array_equal(batch.transition.next_observation["low"], numbers[..., None] % 251)
        np.testing.assert_array_equal(batch.goal["code"], goals[..., None] + np.array([0.25, 0.5, 0.75], np.float32))
    else:
        numbers, goals = batch.transition, batch.goal
        ended = numbers == goals
    np.testing.assert_array_equal(batch.reward, 1000 * numbers + goals)
    np.testing.assert_array_equal(batch.terminated, ended)
    np.testing.assert_array_equal(batch.is_hindsight, goals >= 0)
    return numbers, goals
