"""Which copies a batch holds: drawn uniformly, or by their priorities."""

import jax
import jax.numpy as jnp

from herjax import prioritized, sum_tree
from herjax.lanes import materialized
from herjax.randomness import below
from herjax.rings import held_row
from herjax.state import BufferState, can_sample, size


def draw(
    state: BufferState, words: jax.Array, beta: jax.Array | float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Indices, int32 [n], their probabilities and importance weights, float32 [n] each; `words`, uint32 [n], are random."""
    copies_held = size(state) * state.config.num_copies
    if state.tree is None:
        indices = _uniformly(state, words)
        weights = jnp.full(words.size, can_sample(state).astype(jnp.float32))
        priorities, priority_sum = weights, copies_held.astype(jnp.float32)
    else:
        priority_sum = sum_tree.total(state.tree)
        indices, priorities = sum_tree.find(state.tree, *prioritized.strata(words, priority_sum))
        # Where all priorities are 0, the oldest is drawn, since the first row may hold a step of the running episode.
        oldest = held_row(state, jnp.int32(0)) * state.config.num_copies
        indices = jnp.where((priority_sum > 0) | ~can_sample(state), indices, oldest)
    if axis_name is not None:
        # As floats: all shards together may hold more copies than an int32 can count.
        copies_held, priority_sum = jax.lax.psum((copies_held.astype(jnp.float32), priority_sum), axis_name)
    probabilities = priorities / jnp.where(priority_sum > 0, priority_sum, 1)
    if state.tree is not None:
        weights = prioritized.importance_weights(probabilities, copies_held, beta, axis_name)
    return indices, probabilities, weights


def _uniformly(state: BufferState, words: jax.Array) -> jax.Array:
    """Indices of copies held, int32 [n]."""
    num_copies = state.config.num_copies
    drawn = below(words, size(state) * num_copies)
    number = jax.lax.div(drawn, jnp.int32(num_copies))
    indices = held_row(state, number) * num_copies + (drawn - number * num_copies)
    drawn_once: jax.Array = materialized(can_sample(state), indices)  # Else XLA draws each anew for every word read.
    return drawn_once
