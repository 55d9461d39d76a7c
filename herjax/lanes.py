"""Control flow that stays what it is: under `vmap`, and in the hands of each compiler."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from herjax import checks, windows
from herjax.rows import INT32_MAX, Pytree

Carry = TypeVar("Carry")
Given = TypeVar("Given")

_LEAST_STEPS, _MOST_STEPS = 16, 1024  # Steps that a turn of `for_each_step` takes: one for each environment, within these.
_STEPS_AT_ONCE = 1024  # Where at most this many can end, a GPU works through all, rather than ask the host how many did.


@custom_vmap
def max_over_lanes(value: jax.Array) -> jax.Array:
    """The largest `value`, [], of all lanes of the `vmap`s around the call; True is above False.

    Under vmap, a cond on a per-lane value runs both branches and copies the carry. The maximum is the same in all lanes, so it
    stays a real cond. What it then runs must be harmless in lanes that did not ask for it.
    """
    return value


@max_over_lanes.def_vmap
def _max_over_lanes_batched(axis_size: int, in_batched: list[bool], values: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size, in_batched  # The rule is called only where the values are batched.
    return max_over_lanes(jnp.max(values, axis=0)), False


@jax.jit
def in_all_runs(condition: jax.Array | bool) -> jax.Array:
    """Whether `condition` is True in every run of the `vmap`s around the call: the same in all runs.

    A `lax.cond` on it stays a conditional. On a condition that differs by run JAX takes both branches and selects: it learns at
    every step, and copies a buffer that passes through. So write, and likewise for the number of turns of a `lax.fori_loop`,

        loop = jax.lax.cond(herjax.in_all_runs(herjax.can_sample(buffer)), learn, skip, loop)

    The shards of a mesh do not count as runs: each may take another branch, so no branch may hold a collective, such as
    `sample` with an `axis_name`.

    Args:
      condition: bool [].

    Returns:
      bool [].

    Raises:
      ValueError: `condition` is no single value.
      TypeError: `condition` is no bool.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> ready = jnp.array([True, False, True])  # Of three runs.
      >>> jax.vmap(herjax.in_all_runs)(ready).tolist(), bool(herjax.in_all_runs(ready[0]))
      ([False, False, False], True)
    """
    (one,) = checks.flags("condition", condition, None, remedy="one bool: call it inside the vmap, or use jnp.all")
    in_all: jax.Array = ~max_over_lanes(~jax.lax.stop_gradient(one))
    return in_all


def materialized(there: jax.Array, values: Pytree) -> Pytree:
    """As `materialized_with`, without reads."""
    return materialized_with(there, values, lambda: None)[0]


def materialized_with(there: jax.Array, values: Pytree, reads: Callable[[], Pytree]) -> tuple[Pytree, Pytree]:
    """Values and what is read, or zeros unless `there`, bool []: computed once, by what XLA cannot fuse into their users.

    Fused, a read would be repeated for each value computed from it. XLA could then not tell that all reads come before a write
    that waits for some. On a CPU only a conditional is never fused; elsewhere a barrier is enough.

    Args:
      there: whether there is something to compute.
      values: numbers, no bools.
      reads: returns arrays that are large: on a CPU they are not copied once more, as values are. Zeros where not `there`.
    """
    values = jax.tree.map(lambda value: jnp.where(there, value, jnp.zeros((), value.dtype)), values)

    def both(values: Pytree) -> tuple[Pytree, Pytree]:
        return values, reads()

    def zeros(values: Pytree) -> tuple[Pytree, Pytree]:
        # Made of the values: under shard_map both branches must vary over the same axes.
        zero = jnp.where(there, 0, 0)
        read = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype) + zero.astype(like.dtype), jax.eval_shape(reads))
        return jax.tree.map(lambda value: value * 0, values), read

    found: tuple[Pytree, Pytree] = jax.lax.platform_dependent(
        values,
        cpu=lambda values: jax.lax.cond(max_over_lanes(there), both, zeros, values),
        default=lambda values: jax.lax.optimization_barrier(both(values)),
    )
    return found


def written_after(array: jax.Array, number: jax.Array) -> jax.Array:
    """The same array, [rows, ...], but the next write to it comes after `number`, int32 [] and >= 0, has been computed.

    Without it XLA copies the array on a CPU in two places: where it cannot tell that reads come before the write, and at the
    end of a conditional's branch that writes and then reads. So this is a write that waits for the number. It adds 0.
    """

    def nothing_added(array: jax.Array, number: jax.Array) -> jax.Array:
        somewhere = jnp.where(number >= 0, 0, array.shape[0] - 1)  # The first row, but XLA does not know.
        written: jax.Array = array.at[somewhere.astype(jnp.uint32)].add(0, mode="promise_in_bounds")
        return written

    unchanged: jax.Array = jax.lax.platform_dependent(array, number, cpu=nothing_added, default=lambda array, _: array)
    return unchanged


def seen(values: Pytree) -> jax.Array:
    """A number >= 0, int32 [], that is there once `values`, a pytree of arrays, are: as `written_after` needs it."""
    leaves = [jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf) for leaf in jax.tree.leaves(values)]
    # One element is enough: all that `sample` reads is computed before any of it is there.
    elements = [leaf.ravel()[0] != jnp.zeros((), leaf.dtype) for leaf in leaves if leaf.size]
    return sum([element.astype(jnp.int32) for element in elements], start=jnp.int32(0))


def _is_key(leaf: jax.Array) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


class Chunk(NamedTuple):
    """Some steps of some environments; each field [chunk]."""

    env: jax.Array  # int32; in [0, num_envs)
    step: jax.Array  # int32; in [0, counts[env]), and 0 where not valid.
    valid: jax.Array  # bool; the last turn may have steps to spare.


def for_each_step(
    counts: jax.Array,
    longest: int,
    body: Callable[[Carry, jax.Array, Chunk, Given], Carry],
    carry: Carry,
    given: Given,
) -> Carry:
    """Folds `body(carry, turn, steps, given)` over steps `0 .. counts[env] - 1` of every environment, a chunk of them a turn.

    It takes as many turns as the steps need, over all lanes of a `vmap`: none where there is no step. A GPU would have to
    ask the host how many. So it takes one turn over all steps that there may be, unless these are too many.

    Args:
      counts: int32 [num_envs], steps of each environment.
      longest: the most that one of `counts` can be; times num_envs, an int32.
      body: a turn, which must ignore steps that are not valid; `turn` is its number, int32 [].
      carry: what the first turn is given.
      given: what every turn is given; a pytree of small arrays. What a turn computes of nothing but what it closes over, XLA
        computes before the first turn, even where there is none.
    """
    ends = jnp.cumsum(counts)
    starts = ends - counts
    most = counts.size * longest

    def turn(chunk: int, number: jax.Array, carry: Carry) -> Carry:
        item = number * chunk + jnp.arange(chunk, dtype=jnp.int32)
        valid = item < ends[-1]
        env = group_of(ends, item)
        if counts.size > 1:  # Else XLA searches again for each value computed from it.
            env = materialized(ends[-1] > 0, env)
        steps = Chunk(env, jnp.where(valid, item - starts[env], 0), valid)
        # A turn's number is never negative, but XLA does not know.
        return body(carry, number, steps, jax.tree.map(lambda leaf: jnp.where(number >= 0, leaf, jnp.zeros_like(leaf)), given))

    def in_turns(carry: Carry) -> Carry:
        chunk = min(most, max(_LEAST_STEPS, min(counts.size, _MOST_STEPS)))
        turns = jax.lax.div(ends[-1] + jnp.int32(chunk - 1), jnp.int32(chunk))
        folded: Carry = jax.lax.fori_loop(jnp.int32(0), max_over_lanes(turns), partial(turn, chunk), carry)
        return folded

    if most > _STEPS_AT_ONCE:
        return in_turns(carry)
    at_once = partial(turn, most, jnp.int32(0))
    folded: Carry = jax.lax.platform_dependent(carry, cuda=at_once, rocm=at_once, default=in_turns)
    return folded


def group_of(ends: jax.Array, item: jax.Array) -> jax.Array:
    """The range that each item falls into; range i ends before `ends[i]`, int32 [n]. int32 of `item`'s shape, at most n - 1."""
    # Binary search without a loop: jnp.searchsorted has one, which no mesh with an Explicit axis takes.
    bits = (ends.size - 1).bit_length()
    padded = jnp.pad(ends, (0, 2**bits - ends.size), constant_values=INT32_MAX)
    group = jnp.zeros_like(item)
    for half in (2**bit for bit in reversed(range(bits))):
        end = windows.read(padded, group + (half - 1), 1)[..., 0]
        group = group + jnp.where(end <= item, half, 0)
    return jnp.minimum(group, ends.size - 1)
