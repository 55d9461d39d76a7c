"""What rows hold, read: transitions, and which step of which episode they are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax.functions import Transition
from herjax.lanes import materialized
from herjax.rings import first_held, row_after, running_place
from herjax.state import BufferState
from herjax.storage import Words


class Visits(NamedTuple):
    """Steps of episodes."""

    row: jax.Array  # int32 [n]
    step: jax.Array  # int32 [n]
    length: jax.Array  # int32 [n]; transitions of the episode, >= 1.
    first: jax.Array  # int32 [n]; the first step whose row has not been given to another.
    goal: jax.Array  # uint32 [n, words]; the goal pursued, a row of `config.goal`.
    valid: jax.Array  # bool [n]; whether there is such a step. Where False, the other fields must still be in range.


def visits(state: BufferState, rows: jax.Array) -> Visits:
    """The steps that `rows`, int32 [n], hold."""
    config = state.config
    step, length = places(state, rows)
    if config.sample_running:
        running_step, running_length = running_place(state, rows)
        runs = running_step < running_length
        step, length = jnp.where(runs, running_step, step), jnp.where(runs, running_length, length)
    first = jnp.zeros_like(step) if config.keeps_oldest else first_held(state, rows, step)
    # The first index of a row has the goal pursued, which both layouts of `config.stored` begin with.
    goal = config.stored.read(state.copies, rows * config.num_copies)[:, : config.goal.words]
    return Visits(rows, step, jnp.maximum(length, 1), first, goal, length > 0)


def places(state: BufferState, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The step of each of `rows`, int32 [n], and the length of its episode, if that has ended: int32 [n] each."""
    layout = state.config.place
    place = jax.vmap(layout.unpack)(layout.read(state.places, rows)).astype(jnp.int32)
    return place[:, 0], place[:, 1]


def rows_of(state: BufferState, indices: jax.Array) -> jax.Array:
    """The rows of indices that `sample` returned, int32 [n]. Others give some row."""
    inside = jnp.clip(indices, 0, state.config.num_rows * state.config.num_copies - 1)
    return jax.lax.div(inside, jnp.int32(state.config.num_copies))  # Of non-negative numbers; `//` would mind their sign.


def transitions(state: BufferState, rows: jax.Array) -> Transition:
    """The transitions in `rows`, int32 of any shape: each leaf [*rows.shape, ...]."""
    read = jax.vmap(state.config.storage.unpack)(words(state, rows.ravel()))
    return jax.tree.map(lambda leaf: leaf.reshape(*rows.shape, *leaf.shape[1:]), read)


def words(state: BufferState, rows: jax.Array) -> Words:
    """The same as they are stored, of `rows` int32 [n]: each array [n, ...]."""
    config, observations = state.config, state.observations
    stored = config.storage.row.read(state.transitions, rows)
    if observations is None or config.storage.observation is None:
        return (stored,)
    now, read = observation_rows(state, stored), config.storage.observation.read
    return stored, read(observations.rows, now), read(observations.rows, row_after(config, now))


def observation_rows(state: BufferState, stored: jax.Array) -> jax.Array:
    """Where the observations of rows lie, which are given as they are stored, uint32 [n, words]: int32 [n]."""
    there = state.held[0] >= 0  # Always, but XLA does not know: it would read each again for every word of an observation.
    rows: jax.Array = materialized(there, stored[:, 0].astype(jnp.int32))
    return rows
