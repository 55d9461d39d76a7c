"""A conditional that stays one under `vmap`."""

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


@custom_vmap
def anywhere(flag: jax.Array) -> jax.Array:
    """Whether `flag`, bool [], holds in any lane of the `vmap`s around the call; without one: `flag` itself.

    The result is the same in every lane, so a `lax.cond` on it remains a conditional where one on `flag` would become a
    select, which evaluates both branches and copies all that they return. The branch taken must be right in every lane.
    """
    return flag


@anywhere.def_vmap
def _anywhere_batched(axis_size: int, in_batched: list[bool], flags: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size, in_batched  # The rule is called only where the flags are batched.
    return anywhere(jnp.any(flags, axis=0)), False
