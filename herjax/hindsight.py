"""Copies of stored transitions: goals drawn, rewards and terminations recomputed. When that is done is the caller's affair."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax import relabel
from herjax.config import Config, Copy
from herjax.relabel import Goal, Transition
from herjax.rows import Rows, read
from herjax.state import BufferState, held_row, row_at, size


class Visits(NamedTuple):
    """Steps of episodes, each field [n]."""

    env: jax.Array  # int32
    first: jax.Array  # int32; where in its ring the episode begins.
    step: jax.Array  # int32
    length: jax.Array  # int32 >= 1; of the episode.
    valid: jax.Array  # bool; whether there is such a step. If not, it must still name a row.


def goals(state: BufferState, key: jax.Array, visits: Visits, num_goals: int) -> Rows:
    """Draws hindsight goals for each step: rows [n, num_goals, words]. Those of "random" come from anywhere in `state`."""
    config = state.config
    shape = (*visits.step.shape, num_goals)
    if callable(config.strategy):
        drawn = relabel.goal_steps(config.strategy, key, visits.step, visits.length, visits.valid, num_goals=num_goals)
        place = visits.first[:, None] + drawn
        sources = row_at(config, jnp.broadcast_to(visits.env[:, None], shape), place)
    else:
        number = jax.random.randint(key, shape, 0, jnp.maximum(size(state), 1), jnp.int32)
        sources = held_row(state, number)

    def achieved(transition: Transition) -> Rows:
        return config.goal.pack(config.goal_fn(transition))

    packed = jax.vmap(achieved)(transitions(state, sources.ravel()))
    return {group: words.reshape(*shape, words.shape[-1]) for group, words in packed.items()}


def copy(config: Config, transition: Transition, goal_row: Rows) -> Rows:
    """One transition's copy under one goal, a row, as a row."""
    goal: Goal = config.goal.unpack(goal_row)
    terminated = None if config.terminated_fn is None else config.terminated_fn(transition, goal)
    return config.copy.pack(Copy(goal, config.reward_fn(transition, goal), terminated))


def transitions(state: BufferState, rows: jax.Array) -> Transition:
    """The transitions in `rows`, int32 [n]: each leaf [n, ...]."""
    return jax.vmap(lambda row: state.config.stored.unpack(row).transition)(read(state.transitions, rows))
