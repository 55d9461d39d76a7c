"""Loops and conditionals that stay what they are under `vmap`."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

Carry = TypeVar("Carry")


@custom_vmap
def largest(value: jax.Array) -> jax.Array:
    """The largest `value`, [], in any lane of the `vmap`s around the call; without one: `value` itself. True is above False.

    The result is the same in every lane, so a `lax.cond` or a loop's length that depends on it stays as it is, where one on
    `value` would become a select between both branches, or between the carries before and after, and copy all of them. What
    then runs must be right in every lane.
    """
    return value


@largest.def_vmap
def _largest_batched(axis_size: int, in_batched: list[bool], values: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size, in_batched  # The rule is called only where the values are batched.
    return largest(jnp.max(values, axis=0)), False


class Steps(NamedTuple):
    """Some steps of some environments, as many as one turn of `for_each_step` takes; each field [chunk]."""

    env: jax.Array  # int32; in [0, num_envs)
    step: jax.Array  # int32; in [0, counts[env]), and 0 where not valid.
    valid: jax.Array  # bool; the last turn may have steps to spare.


def for_each_step(counts: jax.Array, chunk: int, body: Callable[[Carry, jax.Array, Steps], Carry], carry: Carry) -> Carry:
    """Folds `body(carry, turn, steps)` over the steps `0 .. counts[env] - 1` of every environment, `chunk` of them a turn.

    It takes as many turns as the steps need, over all lanes of a `vmap`: none where there is no step.

    Args:
      counts: int32 [num_envs], steps of each environment; their sum must be an int32 too.
      chunk: steps a turn.
      body: a turn, which must ignore steps that are not valid; `turn` is its number, int32 [].
      carry: what the first turn is given.
    """
    ends = jnp.cumsum(counts)
    starts = ends - counts

    def turn(number: jax.Array, carry: Carry) -> Carry:
        item = number * chunk + jnp.arange(chunk, dtype=jnp.int32)
        valid = item < ends[-1]
        env = locate(ends, item)
        return body(carry, number, Steps(env, jnp.where(valid, item - starts[env], 0), valid))

    turns = jax.lax.div(ends[-1] + jnp.int32(chunk - 1), jnp.int32(chunk))
    folded: Carry = jax.lax.fori_loop(jnp.int32(0), largest(turns), turn, carry)
    return folded


def locate(ends: jax.Array, item: jax.Array) -> jax.Array:
    """Which of consecutive ranges, that end before `ends`, int32 [n], holds each item: int32 of its shape, at most n - 1."""
    if ends.size == 1:
        return jnp.zeros_like(item)
    found = jnp.searchsorted(ends, item, side="right").astype(jnp.int32)
    return jnp.minimum(found, ends.size - 1)
