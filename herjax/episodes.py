"""Which episode a transition belongs to, and what that pursued: all that a goal drawn at sampling needs beside the transitions.

An episode has a slot, and the row of each of its transitions holds the slot's number. A slot is free again when its turn comes,
since no episode is without a row.
"""

import jax
import jax.numpy as jnp

from herjax.batching import largest
from herjax.config import Config, Episode
from herjax.hindsight import Visits
from herjax.rows import Rows, read, write
from herjax.state import BufferState, Slots, around, env_and_place, row_at, tail


def end(state: BufferState, slots: Slots, goals: Rows, lengths: jax.Array) -> Slots:
    """Notes goal and end of the running episodes that have a length, int32 [n], above 0, and gives the next ones a slot.

    Args:
      state: the buffer before the episodes end.
      slots: those of `state`.
      goals: what all running episodes pursue, rows [n, words] of `config.goal`.
      lengths: int32 [n]; 0: the episode goes on.
    """
    config, ending = state.config, lengths > 0

    def note(episodes: Rows) -> Rows:
        ends = after_reads(state, around(config, state.head + lengths))
        noted = jax.vmap(lambda goal, end: config.episode.pack(Episode(config.goal.unpack(goal), end)))(goals, ends)
        noted_in: Rows = write(episodes, jnp.where(ending, slots.running, config.envs * config.slots_per_env), noted)
        return noted_in

    # A conditional, since XLA merges so small a write with the reads of `sample`, and then copies all slots.
    episodes = jax.lax.cond(largest(jnp.any(ending)), note, lambda episodes: episodes, slots.episodes)
    return Slots(episodes, jnp.where(ending, _beside(config, slots.running, 1), slots.running))


def oldest_length(state: BufferState, slots: Slots) -> jax.Array:
    """The length of each environment's oldest finished episode, int32 [n]; it means nothing where there is none."""
    config = state.config
    rows = row_at(config, jnp.arange(config.envs, dtype=jnp.int32), tail(state))
    return _first_and_length(config, slots, _slots_of(state, rows))[1]


def visits(state: BufferState, slots: Slots, rows: jax.Array, valid: jax.Array) -> tuple[Visits, Rows]:
    """The steps that finished transitions in `rows`, int32 [n], were, and their episodes' goals, rows [n, words]."""
    config = state.config
    slot = _slots_of(state, rows)
    env, place = env_and_place(config, rows)
    first, length = _first_and_length(config, slots, slot)
    goals = jax.vmap(lambda row: config.goal.pack(config.episode.unpack(row).goal))(read(slots.episodes, slot))
    return Visits(env, first, around(config, place - first), length, jnp.broadcast_to(valid, rows.shape)), goals


def after_reads(state: BufferState, values: jax.Array) -> jax.Array:
    """The same values, int32 [n], after the number of transitions held is known, which the oldest episode's length may decide.

    XLA copies all that is written with them, if that need not wait for what is read of the oldest episode.
    """
    return jnp.where(state.held >= 0, values, 0)


def _first_and_length(config: Config, slots: Slots, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where in its ring the episode of each slot begins, and its length: int32 of `slot`'s shape."""

    def ends(slot: jax.Array) -> jax.Array:
        found: jax.Array = jax.vmap(lambda row: config.episode.unpack(row).end)(read(slots.episodes, slot))
        return found

    first = ends(_beside(config, slot, -1))
    return first, 1 + around(config, ends(slot) - first - 1)


def _slots_of(state: BufferState, rows: jax.Array) -> jax.Array:
    found: jax.Array = jax.vmap(lambda row: state.config.stored.unpack(row).slot)(read(state.transitions, rows))
    return found


def _beside(config: Config, slot: jax.Array, offset: int) -> jax.Array:
    """The slot that comes so many turns after each of an environment's slots: int32 of `slot`'s shape."""
    turn = jax.lax.rem(slot, jnp.int32(config.slots_per_env))
    beside = jax.lax.rem(turn + (offset + config.slots_per_env), jnp.int32(config.slots_per_env))
    return slot - turn + beside
