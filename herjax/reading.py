"""What rows hold, read: transitions, and which step of which episode they are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax.functions import Transition
from herjax.rings import first_held, running_place
from herjax.state import BufferState


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
    place = jax.vmap(config.place.unpack)(config.place.read(state.places, rows)).astype(jnp.int32)
    step, length = place[:, 0], place[:, 1]
    if config.sample_running:
        running_step, running_length = running_place(state, rows)
        runs = running_step < running_length
        step, length = jnp.where(runs, running_step, step), jnp.where(runs, running_length, length)
    first = jnp.zeros_like(step) if config.keeps_oldest else first_held(state, rows, step)
    # The first index of a row has the goal pursued, which both layouts of `config.stored` begin with.
    goal = config.stored.read(state.copies, rows * config.num_copies)[:, : config.goal.words]
    return Visits(rows, step, jnp.maximum(length, 1), first, goal, length > 0)


def rows_of(state: BufferState, indices: jax.Array) -> jax.Array:
    """The rows of indices that `sample` returned, int32 [n]. Others give some row."""
    inside = jnp.clip(indices, 0, state.config.num_rows * state.config.num_copies - 1)
    return jax.lax.div(inside, jnp.int32(state.config.num_copies))  # Of non-negative numbers; `//` would mind their sign.


def transitions(state: BufferState, rows: jax.Array) -> Transition:
    """The transitions in `rows`, int32 of any shape: each leaf [*rows.shape, ...]."""
    layout = state.config.transition
    read = jax.vmap(layout.unpack)(layout.read(state.transitions, rows.ravel()))
    return jax.tree.map(lambda leaf: leaf.reshape(*rows.shape, *leaf.shape[1:]), read)
