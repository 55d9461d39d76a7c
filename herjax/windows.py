"""Neighbouring elements of an array, or rows of a two-dimensional one, read and written at many places by one operation.

Plain `lax` rather than `.at[]`: indices are promised to lie in the array, and no code is made for negative ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_PROMISED = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS


def read(array: jax.Array, starts: jax.Array, width: int) -> jax.Array:
    """The `width` elements from each of `starts`, int32 of any shape, on; or the rows there. [*starts.shape, width].

    All must be there, and rows must have that width.
    """
    rows = array.ndim - 1
    axes = jax.lax.GatherDimensionNumbers((starts.ndim,), collapsed_slice_dims=(0,) * rows, start_index_map=(0,))
    return jax.lax.gather(array, starts[..., None], axes, (1,) * rows + (width,), mode=_PROMISED)


def write(
    array: jax.Array, starts: jax.Array, values: jax.Array, scatter: Callable[..., jax.Array] = jax.lax.scatter
) -> jax.Array:
    """Puts `values`, [n, width], in the elements from each of `starts`, int32 [n], on; or [n, k, width], in k rows.

    `scatter_min` keeps the least.
    """
    if values.size == 1 and scatter is jax.lax.scatter:
        # Of several runs a TPU would write a single element by a select over all of the array; it does not if told twice.
        starts, values = jnp.tile(starts, 2), jnp.tile(values, (2,) + (1,) * (values.ndim - 1))
    window = tuple(range(1, values.ndim))
    axes = jax.lax.ScatterDimensionNumbers(window, inserted_window_dims=(), scatter_dims_to_operand_dims=(0,))
    return scatter(array, starts[:, None], values, axes, mode=_PROMISED)
