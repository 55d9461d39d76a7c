"""A sum tree that float32 cannot spoil: proportional sampling in O(log n) (Schaul et al. 2015, arXiv:1511.05952, app. B.2.1).

A node holds the values of its `FANOUT` children and is the sum of them: always recomputed, never adjusted by a difference,
so rounding does not accumulate and writing the same leaf twice is harmless. The descent halves the children again and again
and never enters a half whose sum is zero, so no leaf of value zero is found while another has more.
"""

import math
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp

from herjax.batching import largest

FANOUT_BITS = 3
FANOUT = 2**FANOUT_BITS
_SMALL_LEVEL = 256  # Up to this size, or twice the nodes that changed, recomputing a whole level is faster than gathering.

SumTree: TypeAlias = tuple[jax.Array, ...]
"""Levels from the leaves up to the root's children, float32 [nodes * FANOUT] each; the last has one node.

Each is flat and an array of its own: XLA copies a level that is written in one shape and read in another, and a whole tree in
which one level is read while the next is written.
"""


def init(num_leaves: int) -> SumTree:
    """A tree of at least `num_leaves` leaves, all zero."""
    nodes = num_leaves
    levels: list[jax.Array] = []
    while nodes > 1 or not levels:
        nodes = math.ceil(nodes / FANOUT)
        levels.append(jnp.zeros(nodes * FANOUT, jnp.float32))
    return tuple(levels)


def total(tree: SumTree) -> jax.Array:
    """The sum of all leaves, float32 []."""
    return node_sums(tree[-1])[0]


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
    found = (target.astype(jnp.int32) * 0, target * 0, target, residue)
    # Each level is a conditional, because XLA leaves those apart: levels that follow each other it fuses, and computes the
    # whole way down again for every value read at the end of it.
    any_mass = largest(total(tree) > 0)
    for level in reversed(tree):
        found = jax.lax.cond(any_mass, partial(_descend, level), lambda found: found, found)
    return found[:2]


_Found: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""A node's index int32 [], its value, and the rest of target and residue, float32 []."""


def _descend(level: jax.Array, found: _Found) -> _Found:
    """From a node to that of its children, in `level`, which holds the target."""
    parent, _, target, residue = found
    node = parent * FANOUT
    children = list(jax.lax.dynamic_slice(level, (node,), (FANOUT,)))
    while (half := len(children) // 2) > 0:
        left, right = _add_up(children[:half]), _add_up(children[half:])
        beyond = target - left
        rest = beyond + residue
        go_right = (rest >= 0) & (right > 0)
        residue = jax.lax.select(go_right, residue - (rest - beyond), residue)
        target = jax.lax.select(go_right, rest, target)
        node = node + half * go_right.astype(jnp.int32)
        children = [jax.lax.select(go_right, *pair) for pair in zip(children[half:], children[:half], strict=True)]
    return node, children[0], target, residue


def set_windows(tree: SumTree, starts: jax.Array, values: jax.Array) -> SumTree:
    """Sets windows of neighbouring leaves.

    Args:
      tree: the sum tree.
      starts: int32 [n], >= 0; the first leaf of each window. A window that starts past the last leaf is dropped.
      values: float32 [n, width], finite and >= 0. Where windows share a leaf, they must give it the same value.
    """
    num_leaves, width = tree[0].size, values.shape[1]
    starts = jnp.minimum(starts, num_leaves)
    leaves = starts[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
    levels = [tree[0].at[leaves].set(values, mode="drop", wrap_negative_indices=False)]
    for height, parents in enumerate(tree[1:], start=1):
        # Every node above a window lies above one of these leaves of it.
        offsets = jnp.asarray(sorted({*range(0, width, FANOUT**height), width - 1}), jnp.int32)
        if parents.size <= max(_SMALL_LEVEL, 2 * starts.size * offsets.size):
            levels.append(_all_sums(levels[-1], parents.size))
        else:
            nodes = jnp.minimum(starts[:, None] + offsets[None], num_leaves - 1).ravel() >> (FANOUT_BITS * height)
            sums = _add_up(_children(levels[-1], nodes))
            levels.append(parents.at[nodes].set(sums, mode="promise_in_bounds", wrap_negative_indices=False))
    return tuple(levels)


def _children(level: jax.Array, nodes: jax.Array) -> list[jax.Array]:
    """The children of nodes, by their place, each of `nodes`' shape."""
    places = [nodes * FANOUT + place for place in range(FANOUT)]
    return [level.at[place].get(mode="promise_in_bounds", wrap_negative_indices=False) for place in places]


def _all_sums(children: jax.Array, num_nodes: int) -> jax.Array:
    """The level above `children`, float32 [num_nodes], which ends in zeros where there are more nodes than parents."""
    sums = node_sums(children)
    return jnp.pad(sums, (0, num_nodes - sums.size))


def node_sums(children: jax.Array) -> jax.Array:
    """The sum of every node's children, float32 [nodes] of [nodes * FANOUT]; added up as by `_add_up`."""
    sums = children.reshape(-1, FANOUT)
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    return sums[:, 0]


def _add_up(values: list[jax.Array]) -> jax.Array:
    """Adds a power of two of arrays pair by pair, the order in which `find` halves them."""
    while len(values) > 1:
        values = [left + right for left, right in zip(values[0::2], values[1::2], strict=True)]
    return values[0]
