"""Whole episodes, on the host: to look at, to plot, to export, to fill another buffer with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from herjax.functions import Goal, Transition
from herjax.reading import transitions, visits
from herjax.rows import Pytree
from herjax.state import BufferState, config_of


class Episode(NamedTuple):
    """A finished episode, in arrays of NumPy's.

    Attributes:
      transitions: its steps, in the structure of `init`'s example, with an axis for them in front.
      goal: the goal that it pursued; with `sample_running`, that of each step, with an axis for them in front.
      env: the environment that it was played in; 0 without `num_envs`.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.end_episode(herjax.add(buffer, jnp.float32(3)), jnp.float32(5), jax.random.key(0))
      >>> (episode,) = herjax.episodes(buffer)
      >>> isinstance(episode, herjax.Episode), float(episode.goal), episode.env
      (True, 5.0, 0)
    """

    transitions: Transition
    goal: Goal
    env: int


def episodes(state: BufferState) -> list[Episode]:
    """The finished episodes all of whose steps are held, the oldest first in each environment.

    Args:
      state: the buffer, of one run, outside of compiled code. It is copied to the host.

    Returns:
      The episodes. One whose first steps have made room is left out.

    Raises:
      TypeError: `state` is traced, or no state.
      ValueError: `state` is that of many runs.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> for length in (2, 3):
      ...     for position in range(length):
      ...         buffer = herjax.add(buffer, jnp.float32(position))
      ...     buffer = herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))
      >>> [episode.transitions.tolist() for episode in herjax.episodes(buffer)]
      [[0.0, 1.0], [0.0, 1.0, 2.0]]
    """
    config = config_of(state)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
        raise TypeError("state is traced; call episodes outside of jit, vmap and scan.")
    read = jax.device_get(_everything(state))
    head, held = np.asarray(state.head), np.asarray(state.held)
    found = []
    for env in range(config.envs):
        ring = np.arange(head[env] - held[env], head[env]) % config.rows_per_env
        held_here = _part(read, env * config.rows_per_env + ring)
        found += _episodes(env, *held_here, goal_by_step=config.sample_running)
    return found


def _episodes(
    env: int, transitions: Transition, goals: Goal, step: np.ndarray, length: np.ndarray, *, goal_by_step: bool
) -> list[Episode]:
    """Those of one environment, from all that it holds, the oldest first: each leaf [n, ...]."""
    found = []
    for first in np.flatnonzero(step == 0):
        steps = slice(first, first + length[first])
        goal = steps if goal_by_step else first
        found.append(Episode(_part(transitions, steps), _part(goals, goal), env))
    return found


def _part(tree: Pytree, where: Any) -> Pytree:
    return jax.tree.map(lambda leaf: leaf[where], tree)


@jax.jit
def _everything(state: BufferState) -> tuple[Transition, Goal, jax.Array, jax.Array]:
    """Transitions, goals pursued, steps and lengths of episodes, of all rows: each leaf [R, ...]."""
    rows = jnp.arange(state.config.num_rows, dtype=jnp.int32)
    found = visits(state, rows)
    return transitions(state, rows), jax.vmap(state.config.goal.unpack)(found.goal), found.step, found.length
