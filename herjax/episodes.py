"""Which episode a transition belongs to, and what that pursued: all that a goal drawn at sampling needs beside the transitions.

An episode has a slot, and the row of each of its transitions holds the slot's number. A slot is free again when its turn comes,
since no episode is without a row.
"""

import dataclasses

import jax
import jax.numpy as jnp

from herjax.batching import largest
from herjax.hindsight import Visits
from herjax.rows import Rows, read, write
from herjax.state import BufferState, Config, Episode, around, env_and_place, row_at, tail


def end(state: BufferState, goals: Rows, lengths: jax.Array) -> BufferState:
    """Notes goal and end of the running episodes that have a length, int32 [n], above 0, and gives the next ones a slot.

    Args:
      state: the buffer before the episodes end.
      goals: what all running episodes pursue, rows [n, words] of `config.goal`.
      lengths: int32 [n]; 0: the episode goes on.
    """
    if state.episodes is None:
        return state
    config, ending = state.config, lengths > 0

    def note(episodes: Rows) -> Rows:
        ends = after_reads(state, around(config, state.head + lengths))
        noted = jax.vmap(lambda goal, end: config.episode.pack(Episode(config.goal.unpack(goal), end)))(goals, ends)
        return write(episodes, jnp.where(ending, state.slot, config.envs * config.slots_per_env), noted)

    # A conditional, since XLA merges so small a write with the reads of `sample`, and then copies all slots.
    episodes = jax.lax.cond(largest(jnp.any(ending)), note, lambda episodes: episodes, state.episodes)
    return dataclasses.replace(state, episodes=episodes, slot=jnp.where(ending, _beside(config, state.slot, 1), state.slot))


def oldest_length(state: BufferState) -> jax.Array:
    """The length of each environment's oldest finished episode, int32 [n]; it means nothing where there is none."""
    config = state.config
    rows = row_at(config, jnp.arange(config.envs, dtype=jnp.int32), tail(state))
    return _first_and_length(state, _slots(state, rows))[1]


def visits(state: BufferState, rows: jax.Array, valid: jax.Array) -> tuple[Visits, Rows]:
    """The steps that finished transitions in `rows`, int32 [n], were, and their episodes' goals, rows [n, words]."""
    config = state.config
    slots = _slots(state, rows)
    env, place = env_and_place(config, rows)
    first, length = _first_and_length(state, slots)
    goals = jax.vmap(lambda row: config.goal.pack(config.episode.unpack(row).goal))(read(state.episodes, slots))
    return Visits(env, first, around(config, place - first), length, jnp.broadcast_to(valid, rows.shape)), goals


def after_reads(state: BufferState, values: jax.Array) -> jax.Array:
    """The same values, int32 [n], after the number of transitions held is known, which the oldest episode's length may decide.

    XLA copies all that is written with them, if that need not wait for what is read of the oldest episode.
    """
    return jnp.where(state.held >= 0, values, 0)


def _first_and_length(state: BufferState, slots: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where in its ring the episode of each slot begins, and its length: int32 of `slots`' shape."""
    config = state.config
    first, last = (_ends(state, slot) for slot in (_beside(config, slots, -1), slots))
    return first, 1 + around(config, last - first - 1)


def _ends(state: BufferState, slots: jax.Array) -> jax.Array:
    ends: jax.Array = jax.vmap(lambda row: state.config.episode.unpack(row).end)(read(state.episodes, slots))
    return ends


def _slots(state: BufferState, rows: jax.Array) -> jax.Array:
    slots: jax.Array = jax.vmap(lambda row: state.config.stored.unpack(row).slot)(read(state.transitions, rows))
    return slots


def _beside(config: Config, slot: jax.Array, offset: int) -> jax.Array:
    """The slot that comes so many turns after each of an environment's slots: int32 of `slot`'s shape."""
    turn = jax.lax.rem(slot, jnp.int32(config.slots_per_env))
    beside = jax.lax.rem(turn + (offset + config.slots_per_env), jnp.int32(config.slots_per_env))
    return slot - turn + beside
