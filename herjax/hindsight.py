"""Copies of stored transitions: goals drawn, rewards and terminations recomputed. The caller decides when."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax import relabel
from herjax.config import Config, Copy, Visit
from herjax.relabel import Transition
from herjax.state import BufferState, env_and_offset, held_row, row_at, size


class Visits(NamedTuple):
    """Steps of finished episodes."""

    row: jax.Array  # int32 [n]
    step: jax.Array  # int32 [n]
    length: jax.Array  # int32 [n]; transitions of the episode, >= 1.
    goal: jax.Array  # uint32 [n, words]; the goal pursued, a row of `config.goal`.
    valid: jax.Array  # bool [n]; whether there is such a step. Where False, the other fields must still be in range.


def stored(state: BufferState, key: jax.Array, visits: Visits) -> jax.Array:
    """What the indices of each step store once its episode has ended: rows of `config.stored`, uint32 [n, K, words]."""
    config = state.config
    if config.relabels_when_sampled:
        return jax.vmap(lambda goal, *step: config.stored.pack(Visit(config.goal.unpack(goal), *step))[None])(
            visits.goal, visits.step, visits.length
        )
    goals = visits.goal[:, None]
    if config.num_goals > 0:
        goals = jnp.concatenate([goals, _goals(state, key, visits, config.num_goals)], axis=1)
    return _copies(config, _transitions(state, visits.row), goals)


def relabelled(state: BufferState, key: jax.Array, rows: jax.Array, visits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws a goal for each sampled transition, where that is done now: its own, or a hindsight goal.

    Args:
      state: the buffer.
      key: used up.
      rows: int32 [n], of the transitions.
      visits: uint32 [n, words], rows of `Visit`, what their indices store.

    Returns:
      Whether it is a hindsight goal, int32 [n], 1 or 0, and rows of `Copy`, uint32 [n, words].
    """
    config = state.config
    key_own, key_goals = jax.random.split(key)
    visit: Visit = jax.vmap(config.stored.unpack)(visits)
    goals = jax.vmap(config.goal.pack)(visit.goal)
    is_hindsight = jnp.zeros_like(rows)
    if config.num_goals > 0:
        # Of an empty buffer all is zero, and no step is in an episode of length 0.
        drawn = _goals(state, key_goals, Visits(rows, visit.step, jnp.maximum(visit.length, 1), goals, visit.length > 0), 1)
        is_hindsight = jnp.minimum(jax.random.randint(key_own, rows.shape, 0, config.num_goals + 1), 1)
        goals = jnp.where(is_hindsight[:, None] > 0, drawn[:, 0], goals)
    return is_hindsight, _copies(config, _transitions(state, rows), goals[:, None])[:, 0]


def _goals(state: BufferState, key: jax.Array, visits: Visits, num_goals: int) -> jax.Array:
    """Draws hindsight goals for each step: rows of `config.goal`, uint32 [n, num_goals, words]."""
    config = state.config
    shape = (*visits.step.shape, num_goals)
    if callable(config.strategy):
        steps = relabel.goal_steps(config.strategy, key, visits.step, visits.length, visits.valid, num_goals=num_goals)
        env, offset = env_and_offset(config, visits.row)
        sources = row_at(config, env[:, None], (offset - visits.step)[:, None] + steps)
    else:
        sources = held_row(state, jax.random.randint(key, shape, 0, jnp.maximum(size(state), 1), jnp.int32))
    achieved = jax.vmap(config.goal_fn)(_transitions(state, sources.ravel()))
    return jax.vmap(config.goal.pack)(achieved).reshape(*shape, -1)


def _copies(config: Config, transitions: Transition, goals: jax.Array) -> jax.Array:
    """Each transition under each of its goals, uint32 [n, k, words]: rows of `config.copy`, uint32 [n, k, words]."""

    def copy(transition: Transition, goal_row: jax.Array) -> jax.Array:
        goal = config.goal.unpack(goal_row)
        terminated = None if config.terminated_fn is None else config.terminated_fn(transition, goal)
        return config.copy.pack(Copy(goal, config.reward_fn(transition, goal), terminated))

    return jax.vmap(jax.vmap(copy, (None, 0)))(transitions, goals)


def _transitions(state: BufferState, rows: jax.Array) -> Transition:
    """The transitions in `rows`, int32 [n]: each leaf [n, ...]."""
    return jax.vmap(state.config.transition.unpack)(state.config.transition.read(state.transitions, rows))
