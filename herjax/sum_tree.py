"""A sum tree that float32 cannot spoil: proportional sampling in O(log n) (Schaul et al. 2015, arXiv:1511.05952, app. B.2.1).

A node holds the values of its `FANOUT` children and is the sum of them: always recomputed, never adjusted by a difference,
so rounding does not accumulate and writing the same leaf twice is harmless. The descent halves the children again and again
and never enters a half whose sum is zero, so no leaf of value zero is found while another has more.
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp

FANOUT = 8

SumTree: TypeAlias = tuple[jax.Array, ...]
"""Levels from the leaves up to the root's children, float32 [nodes, FANOUT] each; the last has one node."""


def init(num_leaves: int) -> SumTree:
    """A tree of at least `num_leaves` leaves, all zero."""
    nodes, levels = num_leaves, []
    while nodes > 1 or not levels:
        nodes = math.ceil(nodes / FANOUT)
        levels.append(jnp.zeros((nodes, FANOUT), jnp.float32))
    return tuple(levels)


def total(tree: SumTree) -> jax.Array:
    """The sum of all leaves, float32 []."""
    return _sum(tree[-1][0])


def find(tree: SumTree, target: jax.Array, residue: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The leaf in which the running sum of the leaves first exceeds `target + residue`.

    The target comes in two floats, the second at most a rounding error of the first, because one float32 has too few bits to
    reach each of a million leaves in proportion.

    Args:
      tree: the sum tree.
      target: float32 [], in [0, total).
      residue: float32 [], what the target's rounding left out.

    Returns:
      The leaf's index, int32 [], and its value, float32 []. Where every leaf is zero: the first one.
    """
    node, value = jnp.int32(0), target
    for level in reversed(tree):
        children = _columns(level.at[node].get(mode="promise_in_bounds"))
        node = node * FANOUT
        while (half := len(children) // 2) > 0:
            left, right = _add_up(children[:half]), _add_up(children[half:])
            beyond = target - left
            rest = beyond + residue
            go_right = (rest >= 0) & (right > 0)
            residue = jnp.where(go_right, residue - (rest - beyond), residue)
            target = jnp.where(go_right, rest, target)
            node = node + jnp.where(go_right, half, 0)
            children = [jnp.where(go_right, *pair) for pair in zip(children[half:], children[:half], strict=True)]
        # Without the barrier XLA recomputes the levels above for every child it reads: exponential work.
        node, value, target, residue = jax.lax.optimization_barrier((node, children[0], target, residue))
    return node, value


def set_leaves(tree: SumTree, indices: jax.Array, values: jax.Array) -> SumTree:
    """Sets leaves one by one.

    Args:
      tree: the sum tree.
      indices: int32 [n], >= 0; one past the last leaf is dropped. An index may come twice, with the same value.
      values: float32 [n], finite and >= 0.
    """
    levels = [tree[0].at[indices // FANOUT, indices % FANOUT].set(values, mode="drop")]
    nodes = jnp.minimum(indices // FANOUT, tree[0].shape[0] - 1)
    for parents in tree[1:]:
        sums = _sum(levels[-1].at[nodes].get(mode="promise_in_bounds"))
        levels.append(parents.at[nodes // FANOUT, nodes % FANOUT].set(sums, mode="promise_in_bounds"))
        nodes = nodes // FANOUT
    return tuple(levels)


def fill(tree: SumTree, start: jax.Array, values: jax.Array) -> SumTree:
    """Sets the leaves `start, start + 1, ...` to `values`, float32 [n]; all of them must lie in the tree."""
    first, count = start, values.shape[0]
    levels = [_write(tree[0], first, values)]
    for parents in tree[1:]:
        children = levels[-1]
        count = min((count + FANOUT - 2) // FANOUT + 1, children.shape[0])  # As many nodes as an unaligned window can touch.
        first = jnp.minimum(first // FANOUT, children.shape[0] - count)
        window = jax.lax.dynamic_slice_in_dim(children, first, count)
        levels.append(_write(parents, first, _sum(window)))
    return tuple(levels)


def _write(level: jax.Array, start: jax.Array, values: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(level.ravel(), values, start, axis=0).reshape(level.shape)


def _sum(children: jax.Array) -> jax.Array:
    """Sums the last axis, [..., FANOUT] -> [...]."""
    return _add_up(_columns(children))


def _columns(children: jax.Array) -> list[jax.Array]:
    return [children[..., child] for child in range(FANOUT)]


def _add_up(values: list[jax.Array]) -> jax.Array:
    """Adds a power of two of arrays pair by pair, the order in which `find` halves them."""
    while len(values) > 1:
        values = [left + right for left, right in zip(values[0::2], values[1::2], strict=True)]
    return values[0]
