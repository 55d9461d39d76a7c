"""Which copies a batch holds: drawn uniformly, or by their priorities."""

import jax
import jax.numpy as jnp

from herjax import prioritized
from herjax.lanes import materialized
from herjax.rings import held_row, scale
from herjax.state import BufferState, can_sample, size


def draw(
    state: BufferState, key: jax.Array, batch_size: int, beta: jax.Array | float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Indices, int32 [batch_size], their probabilities and their importance weights, float32 [batch_size] each."""
    copies_held = size(state) * state.config.num_copies
    if state.tree is None:
        indices = _uniformly(state, key, batch_size)
        weights = jnp.full(batch_size, can_sample(state).astype(jnp.float32))
        priorities, priority_sum = weights, copies_held.astype(jnp.float32)
    else:
        indices, priorities, priority_sum = prioritized.draw(state.tree, key, batch_size)
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


def _uniformly(state: BufferState, key: jax.Array, batch_size: int) -> jax.Array:
    """Indices of copies held, int32 [batch_size]."""
    num_copies = state.config.num_copies
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)  # randint would draw four times as many.
    drawn = scale(bits, (size(state) * num_copies).astype(jnp.uint32)).astype(jnp.int32)
    number = jax.lax.div(drawn, jnp.int32(num_copies))
    indices = held_row(state, number) * num_copies + (drawn - number * num_copies)
    drawn_once: jax.Array = materialized(can_sample(state), indices)  # Else XLA draws each anew for every word read.
    return drawn_once
