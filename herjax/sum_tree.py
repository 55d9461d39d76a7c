"""A sum tree whose float32 sums do not drift: proportional sampling in O(log n) (Schaul et al. 2015, arXiv:1511.05952, B.2.1).

A node holds the values of its `FANOUT` children and is the sum of them: always recomputed, never adjusted by a difference,
so rounding does not accumulate and writing the same leaf twice is harmless. The descent halves the children again and again.
It never enters a half whose sum is zero. So no leaf of value zero is found while another has more.
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp

from herjax import windows
from herjax.lanes import materialized, written_after

FANOUT_BITS = 4
FANOUT = 2**FANOUT_BITS
_FEW = 256  # A level of at most this many nodes, or twice as many as changed, is summed whole: faster than to gather children.
MOST_LEAVES = 2**24
"""Leaves that `set_leaves` sets in one call: float32 does not hold all larger integers."""

SumTree: TypeAlias = tuple[jax.Array, ...]
"""Levels from the leaves up, float32 [nodes * FANOUT] each. Small ones near the root are not stored, but summed when needed.

Each is an array of its own: XLA copies a whole tree in which one level is read while the next is written.
"""


def init(num_leaves: int) -> SumTree:
    """A tree of at least `num_leaves` leaves, all zero."""
    levels: list[jax.Array] = []
    while not levels or num_leaves > _FEW:
        num_nodes = math.ceil(num_leaves / FANOUT)
        levels.append(jnp.zeros(num_nodes * FANOUT, jnp.float32))
        num_leaves = num_nodes
    return tuple(levels)


def total(tree: SumTree) -> jax.Array:
    """The sum of all leaves, float32 []."""
    return node_sums(_whole(tree)[-1])[0]


def _whole(tree: SumTree) -> SumTree:
    """The tree with the levels that are not stored, up to the root's children."""
    levels = list(tree)
    while (num_nodes := levels[-1].size // FANOUT) > 1:
        levels.append(_all_sums(levels[-1], math.ceil(num_nodes / FANOUT) * FANOUT))
    return tuple(levels)


def find(tree: SumTree, target: jax.Array, residue: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The leaves in which the running sum of the leaves first exceeds `target + residue`.

    A target comes in two floats, since one float32 has too few bits to reach each of a million leaves in proportion.

    Args:
      tree: the sum tree.
      target: float32 [n], in [0, total).
      residue: float32 [n], what the target's rounding left out.

    Returns:
      The leaves' indices, int32 [n], and their values, float32 [n]. Where every leaf is zero: the first one, n times.
    """
    any_mass = total(tree) > 0
    node, way = jnp.zeros(target.shape, jnp.int32), _packed(target, residue, jnp.int32(0))
    for level in reversed(_whole(tree)):
        # Else XLA computes the whole way down again for every value read at the end of it.
        node, way = materialized(any_mass, (node, _descend(level, node, way)))
        node = node * FANOUT + _child(way)
    leaves, values = materialized(any_mass, (node, windows.read(tree[0], node, 1)[:, 0]))
    return leaves, values


def _descend(level: jax.Array, node: jax.Array, way: jax.Array) -> jax.Array:
    """The way on from nodes, int32 [n], to their children in `level`: complex64 [n], as `_packed` gives it."""
    target, residue, child = jnp.real(way), jnp.imag(way), jnp.zeros_like(node)
    children = _children(level, node)
    while (half := len(children) // 2) > 0:
        left, right = _add_up(children[:half]), _add_up(children[half:])
        beyond = target - left
        rest = beyond + residue
        go_right = (rest >= 0) & (right > 0)
        residue = jnp.where(go_right, residue - (rest - beyond), residue)
        target = jnp.where(go_right, rest, target)
        child = child + half * go_right.astype(jnp.int32)
        children = [jnp.where(go_right, *pair) for pair in zip(children[half:], children[:half], strict=True)]
    return _packed(target, residue, child)


def _packed(target: jax.Array, residue: jax.Array, child: jax.Array) -> jax.Array:
    """A target within a node's child, and which child, as one number: complex64 [n].

    Of three arrays XLA would compute each by itself, from the children on. The residue's last bits, of 2^-40 of the target and
    less, make room for the child.
    """
    bits = (residue.view(jnp.int32) & -FANOUT) | child
    packed: jax.Array = jax.lax.complex(target, bits.view(jnp.float32))
    return packed


def _child(way: jax.Array) -> jax.Array:
    """The child that `_packed` was given, int32 [n]."""
    child: jax.Array = jnp.imag(way).view(jnp.int32) & (FANOUT - 1)
    return child


def set_leaves(tree: SumTree, leaves: jax.Array, values: jax.Array) -> SumTree:
    """Sets leaves, int32 [n], to values, float32 [n] >= 0; to the last value of a leaf that comes twice. n <= `MOST_LEAVES`."""
    # Each value marks its leaf with its place in the list. The latest mark stays, and says which value all write there.
    lateness = jnp.arange(leaves.size, dtype=jnp.float32)
    marked = windows.write(tree[0], leaves, -1 - lateness[:, None], jax.lax.scatter_min)
    latest = -1 - windows.read(marked, leaves, 1)[:, 0]
    return set_windows((marked, *tree[1:]), leaves, values[latest.astype(jnp.int32), None])


def set_windows(tree: SumTree, starts: jax.Array, values: jax.Array) -> SumTree:
    """Sets windows of neighbouring leaves.

    Args:
      tree: the sum tree.
      starts: int32 [n]; the first leaf of each window.
      values: float32 [n, width], finite and >= 0. Where windows share a leaf, they must give it the same value.
    """
    width = values.shape[1]
    levels = [windows.write(tree[0], starts, values)]
    for height, parents in enumerate(tree[1:], start=1):
        # Every node above a window lies above one of these leaves of it.
        offsets = jnp.asarray(sorted({*range(0, width, FANOUT**height), width - 1}), jnp.int32)
        if parents.size <= max(_FEW, 2 * starts.size * offsets.size):
            levels.append(_all_sums(levels[-1], parents.size))
        else:
            nodes = (starts[:, None] + offsets[None]).ravel() >> (FANOUT_BITS * height)
            sums = _add_up(_children(levels[-1], nodes))
            levels.append(windows.write(parents, nodes, sums[:, None]))
    done = (levels[-1][0] >= 0).astype(jnp.int32)
    return (*[written_after(level, done) for level in levels[:-1]], levels[-1])


def _children(level: jax.Array, nodes: jax.Array) -> list[jax.Array]:
    """The children of nodes, int32 [n], by their place: float32 [n] each."""
    children = windows.read(level, nodes * FANOUT, FANOUT)
    return [children[:, place] for place in range(FANOUT)]


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
