"""How the running episodes grow: `add`."""

import dataclasses
import re

import jax
import jax.numpy as jnp

from herjax import checks, prioritized
from herjax.arguments import batched, check_goal, only_where
from herjax.faults import on_explicit_axes, reported
from herjax.functions import Goal, Transition
from herjax.rings import observation_after, observation_at, row_at
from herjax.state import BufferState, after, config_of, count
from herjax.storage import Words


@jax.jit
def add(state: BufferState, transition: Transition, mask: jax.Array | bool = True, *, goal: Goal | None = None) -> BufferState:
    """Appends a transition to the running episode.

    It is neither sampled nor a goal's source until the episode ends; with `sample_running`, it is both at once.

    Past `max_episode_length` the transition is not stored but counted in `num_dropped`, and named under checkify.

    Args:
      state: the buffer.
      transition: one transition, like `init`'s example; with `num_envs`, one of each environment along a leading axis.
      mask: bool [], whether there is a transition; with `num_envs`, that or bool [num_envs]. Where False, nothing changes.
      goal: with `sample_running` alone: the goal that this step pursues, as `end_episode` is given it elsewhere. It may change
        from step to step.

    Returns:
      The next state. Called outside of a compiled loop, this copies the buffer: use `jax.jit(herjax.add, donate_argnums=0)`.

    Raises:
      ValueError: the transition's structure or a leaf's shape differs from the example's, or `mask` has another shape; `goal`
        is given or missing, against what `init` was told.
      TypeError: a leaf's dtype differs, or `mask` is no bool.

    Example:
      >>> import herjax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=2, goal_fn=lambda t: t, reward_fn=reward)
      >>> for position in (1.0, 2.0, 3.0):
      ...     buffer = herjax.add(buffer, jnp.float32(position))
      >>> int(herjax.size(buffer)), int(buffer.num_dropped)  # The episode still runs; the third did not fit.
      (0, 1)
    """
    config = config_of(state)
    config.transition.check("transition", transition, config.num_envs)
    check_goal(config, "add", goal, given=config.sample_running)
    mask = checks.flags("mask", mask, config.num_envs)
    state, transition, goal = jax.lax.stop_gradient((state, transition, goal))
    envs = jnp.arange(config.envs, dtype=jnp.int32)
    # For what is written here and in `end_episode`: a transition may depend on a batch, by way of the policy.
    state = after(state, (transition, goal))
    dropped = mask & (state.pending >= config.max_episode_length)
    stored = mask & ~dropped
    num_dropped = reported(
        state.num_dropped,
        ~jnp.any(dropped),
        "add: the episode of environment {env} is longer than max_episode_length, which is "
        f"{config.max_episode_length}; the transition was dropped",
        env=jnp.argmax(dropped),
    )
    state = _room_made(state, stored)
    rows = jnp.where(stored, row_at(config, envs, state.head + state.pending), config.num_rows)
    if config.sample_running:
        goals = only_where(stored, jax.vmap(config.goal.pack)(batched(config, goal)))
        state = dataclasses.replace(state, copies=config.stored.write(state.copies, rows, goals[:, None]))
        state = prioritized.enter(state, rows)
    state = _written(state, rows, batched(config, transition), stored)
    return dataclasses.replace(
        state,
        pending=state.pending + stored.astype(jnp.int32),
        num_dropped=count(num_dropped, jnp.sum(dropped)),
    )


def _room_made(state: BufferState, stored: jax.Array) -> BufferState:
    """Room for one more transition of the environments where `stored`, bool [n]: in a full ring the oldest one goes."""
    config, used = state.config, state.held + state.pending
    if state.observations is not None:
        used += jnp.minimum(state.observations.episodes, state.held)
    full = stored & (used >= config.capacity_per_env)
    oldest = row_at(config, jnp.arange(config.envs, dtype=jnp.int32), state.head - state.held)
    state = prioritized.leave(state, jnp.where(full, oldest, config.num_rows))
    return dataclasses.replace(state, held=state.held - full.astype(jnp.int32))


def _written(state: BufferState, rows: jax.Array, transition: Transition, stored: jax.Array) -> BufferState:
    """Each environment's transition, each leaf [n, ...], written to its row, int32 [n]; zeros unless `stored`, bool [n]."""
    config, observations = state.config, state.observations
    now = None
    if observations is not None:
        now = observation_at(config, jnp.arange(config.envs, dtype=jnp.int32), observations.head + state.pending)
    given = only_where(stored, jax.vmap(config.storage.pack)(transition, now))
    shared: tuple[jax.Array, ...] = ()
    if now is not None:
        if not on_explicit_axes():  # Where JAX refuses to read what is not sharded by values that are.
            now = _reported_unless_follows(state, now, given, stored & (state.pending > 0))
        shared = tuple(jnp.where(stored, row, 0) for row in (now, observation_after(config, now)))
    columns = []
    for column, array, words in zip(config.storage.columns, state.columns, given, strict=True):
        written = array
        for target, part in zip(shared if column.later else (rows,), words, strict=True):
            written = column.layout.write(written, target, part[:, None])
        columns.append(written)
    return dataclasses.replace(state, columns=tuple(columns))


def _reported_unless_follows(state: BufferState, now: jax.Array, given: Words, compared: jax.Array) -> jax.Array:
    """`now` as it is; under checkify, the fault where an observation is not the one that the step before was given.

    Args:
      state: the buffer.
      now: int32 [n]; the row of each environment's observation.
      given: each environment's transition, as it is to be stored.
      compared: bool [n]; where there is a step before.
    """
    leaves = state.config.transition.leaves
    for column, array, words in zip(state.config.storage.columns, state.columns, given, strict=True):
        if not column.later:
            continue
        before = column.layout.read(array, now)
        for leaf, *pair in zip(column.layout.leaves, column.leaves, column.later, strict=True):
            part = slice(leaf.start, leaf.start + leaf.words)
            alike = ~compared | jnp.all(before[:, part] == words[0][:, part], axis=1)
            field, later = (re.sub("[{}]", "", leaves[number].path) for number in pair)
            now = reported(
                now,
                jnp.all(alike),
                f"add: {field} of environment {{env}} is not {later} of the step before it (next_of); the one given last holds",
                env=jnp.argmin(alike),
            )
    return now
