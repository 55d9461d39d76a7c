"""What rows hold, read: transitions, and which step of which episode they are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax.functions import Transition
from herjax.lanes import materialized, materialized_with
from herjax.rings import first_held, observation_after, observation_of, running_place
from herjax.rows import Pytree
from herjax.state import BufferState, can_sample
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
    read = jax.vmap(state.config.storage.unpack)(_words(state, *_addresses(state, rows.ravel())))
    return jax.tree.map(lambda leaf: leaf.reshape(*rows.shape, *leaf.shape[1:]), read)


def transitions_once(state: BufferState, values: Pytree, *rows: jax.Array) -> tuple[Pytree, list[Transition]]:
    """`values`, and the transitions in each of `rows`, int32 [n], materialized: zeros where there is nothing to draw."""
    there, storage = can_sample(state), state.config.storage
    addresses = [_addresses(state, jnp.where(there, each, state.config.num_rows)) for each in rows]
    words, images = slice(storage.images), slice(storage.images, None)
    (values, others), read = materialized_with(
        there,
        (values, [_words(state, *each, words) for each in addresses]),
        lambda: [_words(state, *each, images) for each in addresses],
    )
    return values, [jax.vmap(storage.unpack)(one + other) for one, other in zip(others, read, strict=True)]


def _addresses(state: BufferState, rows: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Where the columns of `rows`, int32 [n], lie: those of one step alone, and those that two steps share: int32 [n] each."""
    if state.observations is None:
        return (rows,), ()
    there = state.held[0] >= 0  # Always, but XLA does not know: it would read each again for every word of an observation.
    now: jax.Array = materialized(there, observation_of(state, rows))
    return (rows,), (now, observation_after(state.config, now))


def _words(state: BufferState, alone: tuple[jax.Array, ...], shared: tuple[jax.Array, ...], part: slice = slice(None)) -> Words:
    """Transitions as they are stored, of these columns: each array [n, ...]."""
    columns = zip(state.config.storage.columns[part], state.columns[part], strict=True)
    return tuple(
        tuple(column.layout.read(array, each) for each in (shared if column.later else alone)) for column, array in columns
    )
