"""Prioritised replay (Schaul et al. 2015, arXiv:1511.05952): proportional, stratified, with a priority for every copy."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from herjax import checks, sum_tree
from herjax.faults import reported
from herjax.rings import is_held
from herjax.rows import INT32_MAX
from herjax.state import BufferState, after, can_sample, config_of, count
from herjax.sum_tree import SumTree

_SMALLEST = 2.0**-96  # Fractions of it, such as a stratum, are float32 at full precision still.
_LARGEST = 2.0**96  # 2^31 of them add up to a finite float32.


@partial(jax.jit, static_argnames=("axis_name",))
def update_priorities(
    state: BufferState, indices: jax.Array, priorities: jax.Array, *, axis_name: str | None = None
) -> BufferState:
    """Sets the priorities of sampled copies, stored as `(p + priority_epsilon)^priority_exponent` within [2^-96, 2^96].

    This is the proportional variant of arXiv:1511.05952, section 3.3. New copies enter with the largest priority so far.

    Where an index comes twice, its last accepted priority wins. A priority that is NaN, infinite or negative, or whose index
    holds nothing, changes nothing, is counted in `num_rejected`, and named under checkify; on an empty buffer it is ignored.

    Args:
      state: the buffer, made with a `priority_exponent`.
      indices: integer [n], from `sample`.
      priorities: float [n], the new absolute TD errors.
      axis_name: a mapped axis over which the buffer is sharded; the largest priority so far, which new copies enter with, is
        then that of the whole.

    Returns:
      The next state.

    Raises:
      ValueError: the buffer is uniform, the shapes differ, or n is above 2^24.
      TypeError: `indices` are not integers.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> settings = dict(capacity=8, max_episode_length=4, goal_fn=lambda t: t, num_goals=0, priority_exponent=1)
      >>> buffer = herjax.init(jnp.float32(0), reward_fn=lambda t, goal: jnp.where(t == goal, 0.0, -1.0), **settings)
      >>> buffer = herjax.add(herjax.add(buffer, jnp.float32(1)), jnp.float32(3))
      >>> buffer = herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))
      >>> batch = herjax.sample(buffer, jax.random.key(1), 64)
      >>> buffer = herjax.update_priorities(buffer, batch.indices, batch.transition)  # As if these were the TD errors.
      >>> batch = herjax.sample(buffer, jax.random.key(2), 64)
      >>> sorted(set(zip(batch.transition.tolist(), jnp.round(batch.probabilities, 2).tolist())))
      [(1.0, 0.25), (3.0, 0.75)]
    """
    config = config_of(state)
    indices = checks.array("indices", indices, "the integers that sample returned")
    priorities = checks.array("priorities", priorities, "absolute TD errors")
    tree = _check_update(state, indices, priorities)
    given, priorities = jnp.ravel(indices), jnp.ravel(priorities).astype(jnp.float32)
    state, tree, priorities = jax.lax.stop_gradient((state, tree, priorities))
    if given.size == 0:
        return state
    indices = _int32(given)
    state = after(state, (indices, priorities))
    valid = jnp.isfinite(priorities) & (priorities >= 0)
    held = (indices >= 0) & is_held(state, jax.lax.div(indices, jnp.int32(config.num_copies)))
    accepted = held & valid
    accepted_priorities = jnp.where(accepted, priorities, 0)
    max_priority = jnp.max(accepted_priorities, initial=state.max_priority)
    if axis_name is not None:
        # The maximum with its own leaves the value as it is, and varying over the axis, as a scan's carry must stay.
        max_priority = jnp.maximum(max_priority, jax.lax.pmax(max_priority, axis_name))
    targets = jnp.where(accepted, indices, config.num_rows * config.num_copies)
    values = jnp.where(accepted, _stored(state, accepted_priorities), 0)
    return dataclasses.replace(
        state,
        tree=sum_tree.set_leaves(tree, targets, values),
        max_priority=max_priority,
        num_rejected=count(_rejections(state, given, priorities, held, valid), jnp.sum(~accepted & can_sample(state))),
    )


def _check_update(state: BufferState, indices: jax.Array, priorities: jax.Array) -> SumTree:
    if state.tree is None:
        raise ValueError("priorities cannot be updated: the buffer is uniform; give init a priority_exponent, such as 0.6.")
    if jnp.shape(indices) != jnp.shape(priorities):
        raise ValueError(
            f"indices have shape {jnp.shape(indices)} and priorities {jnp.shape(priorities)}; give one priority for each index."
        )
    if indices.size > sum_tree.MOST_LEAVES:
        raise ValueError(f"there are {indices.size} indices; give at most 2^24 in one call.")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices have dtype {indices.dtype}; give the integers that sample returned.")
    if jnp.issubdtype(priorities.dtype, jnp.complexfloating):
        raise TypeError(f"priorities have dtype {priorities.dtype}; give absolute TD errors.")
    return state.tree


def _rejections(state: BufferState, indices: jax.Array, priorities: jax.Array, held: jax.Array, valid: jax.Array) -> jax.Array:
    """`num_rejected` as it is, with the faults of this update."""
    empty = ~can_sample(state)
    counter = reported(
        state.num_rejected,
        empty | jnp.all(valid),
        "update_priorities: priorities must be finite and >= 0, but that of index {index} is {priority}; it was rejected",
        index=indices[jnp.argmin(valid)],
        priority=priorities[jnp.argmin(valid)],
    )
    return reported(
        counter,
        empty | jnp.all(held),
        "update_priorities: indices must come from sample, but {index} holds nothing; it was rejected",
        index=indices[jnp.argmin(held)],
    )


def _int32(indices: jax.Array) -> jax.Array:
    """Indices as int32. Of 64-bit ones, those that do not fit become INT32_MAX, which no row has, rather than wrap around."""
    if indices.dtype.itemsize > 4:
        indices = jnp.where((indices < 0) | (indices > INT32_MAX), INT32_MAX, indices)
    return indices.astype(jnp.int32)


def enter(state: BufferState, rows: jax.Array) -> BufferState:
    """Gives all copies in `rows`, int32 [n], the largest priority so far; the last row, which holds nothing, keeps 0."""
    return _set_rows(state, rows, _stored(state, state.max_priority))


def leave(state: BufferState, rows: jax.Array) -> BufferState:
    """Takes the priorities of all copies in `rows`, int32 [n]."""
    return _set_rows(state, rows, jnp.zeros((), jnp.float32))


def _set_rows(state: BufferState, rows: jax.Array, value: jax.Array) -> BufferState:
    if state.tree is None:
        return state
    config = state.config
    values = jnp.where(rows < config.num_rows, value, 0)[:, None]
    values = jnp.broadcast_to(values, (rows.size, config.num_copies))
    return dataclasses.replace(state, tree=sum_tree.set_windows(state.tree, rows * config.num_copies, values))


def strata(words: jax.Array, mass: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A point in each of n equal parts of [0, mass): float32 [n], and what that rounds off, of random bits, uint32 [n].

    A float32 holds a part's number and as many random bits as still fit; the rest of 32 random bits is the residue.
    """
    coarse_bits = max(23 - (words.size - 1).bit_length(), 1)
    fine_bits = min(32 - coarse_bits, 24)
    coarse = words >> (32 - coarse_bits)
    fine = (words >> (32 - coarse_bits - fine_bits)) & (2**fine_bits - 1)
    width = mass / words.size
    target = jnp.arange(words.size, dtype=jnp.float32) + coarse.astype(jnp.float32) * 2.0**-coarse_bits
    residue = fine.astype(jnp.float32) * 2.0 ** -(coarse_bits + fine_bits)
    return target * width, residue * width


def importance_weights(
    probabilities: jax.Array, copies_held: jax.Array, beta: jax.Array | float, axis_name: str | None
) -> jax.Array:
    """`(N P)^-beta` over the largest in the batch (section 3.4), float32 [batch_size]; 0 where P is."""
    drawn = probabilities > 0
    scaled = jnp.where(drawn, probabilities * copies_held.astype(jnp.float32), 1)
    weights = jnp.where(drawn, scaled ** -jnp.asarray(beta, jnp.float32), 0)
    heaviest = jnp.max(weights)
    if axis_name is not None:
        heaviest = jax.lax.pmax(heaviest, axis_name)
    return weights / jnp.where(heaviest > 0, heaviest, 1)


def _stored(state: BufferState, priorities: jax.Array) -> jax.Array:
    """The tree's value of a priority (section 3.3), kept where neither it nor the sum of all can underflow or overflow."""
    epsilon = state.number("priority_epsilon")
    powers = (priorities + epsilon) ** state.number("priority_exponent")
    positive = (powers > 0) | (jnp.asarray(epsilon) > 0)
    return jnp.where(positive, jnp.clip(powers, _SMALLEST, _LARGEST), 0)


def bounds(state: BufferState) -> tuple[jax.Array, jax.Array]:
    """The least and the largest that the tree may hold of something held: float32 [] each."""
    return _stored(state, jnp.zeros_like(state.max_priority)), _stored(state, state.max_priority)
