"""What must be true of every state, checked on the host: for checkpoints and debugging."""

import dataclasses
import itertools
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from herjax import prioritized, sum_tree
from herjax.config import Copy, Episode
from herjax.rows import Layout, Pytree, Rows
from herjax.state import BufferState, Slots, empty

Values: TypeAlias = np.ndarray | jax.Array | int
"""What is on the host; a state says that its arrays are JAX's."""

_ROUNDING = 1e-5  # Relative. Devices may round a sum or a power differently; what is broken is further off.


def check(state: BufferState) -> None:
    """Raises where a state is broken: damaged on the way, or poisoned by what it was given.

    In this order: every array has its shape and dtype; counters are not negative; each environment's transitions fit its ring;
    no transition or goal held is NaN, and every reward is finite; each transition belongs to an episode whose end is known
    (with `relabel="sample"`); all that is held has a priority in range, nothing else has one, and each sum of the tree is that
    of its children.

    It reads the whole state, on the CPU, and calls none of the user's functions: a wrong reward that is finite it cannot see.

    Args:
      state: the buffer, or many of them made under `vmap`, whose axes lead; on any device.

    Raises:
      ValueError: the first invariant broken: which array, where, its value, and what it must be.
      TypeError: `state` is no `BufferState` of arrays, or is traced.
    """
    if not isinstance(state, BufferState):
        raise TypeError(f"state is a {type(state).__name__}; give the BufferState that init and its kin return.")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
        raise TypeError("state is traced; call check outside of jit, vmap and scan. Inside them checkify reports faults.")
    lanes = _check_arrays(state)
    host: BufferState = jax.device_get(state)
    with _on_cpu():
        for lane in np.ndindex(lanes):
            try:
                _check_buffer(jax.tree.map(lambda leaf, lane=lane: leaf[lane], host))
            except ValueError as error:
                raise ValueError(f"buffer {lane} of {lanes}: {error}" if lanes else str(error)) from None


def _on_cpu() -> AbstractContextManager[object]:
    """Computes on the CPU, since the state is on the host; where JAX was told to leave the CPU alone, on what there is."""
    try:
        cpu: AbstractContextManager[object] = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()
    return cpu


def _check_arrays(state: BufferState) -> tuple[int, ...]:
    """Checks shapes and dtypes; returns the axes that `vmap` has put before them."""
    expected: BufferState = jax.eval_shape(partial(empty, state.config))
    for field in dataclasses.fields(state):
        found, must = (str(jax.tree.structure(getattr(tree, field.name))) for tree in (state, expected))
        if found != must:
            raise ValueError(f"state.{field.name} has the structure {found}; it must have {must}.")
    lanes = tuple(np.shape(state.num_dropped))
    for (path, leaf), spec in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        name = "state" + jax.tree_util.keystr(path)
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
            raise TypeError(f"{name} is a {type(leaf).__name__}; it must be an array.")
        if np.shape(leaf) != lanes + spec.shape:
            raise ValueError(f"{name} has shape {np.shape(leaf)}; it must have {lanes + spec.shape}.")
        if leaf.dtype != spec.dtype:
            raise ValueError(f"{name} has dtype {leaf.dtype}; it must have {spec.dtype}.")
    return lanes


def _check_buffer(state: BufferState) -> None:
    """Checks one buffer of NumPy arrays."""
    config = state.config
    for name in ("num_dropped", "num_rejected"):
        _require(bool(getattr(state, name) >= 0), f"state.{name}", getattr(state, name), "be >= 0")
    _check_windows(state)
    places = np.arange(config.rows_per_env)[None]
    held = np.ravel((state.head[:, None] - 1 - places) % config.rows_per_env < state.held[:, None])  # [R]
    running = np.ravel((places - state.head[:, None]) % config.rows_per_env < state.pending[:, None])
    copies_held = np.repeat(held, config.num_copies)
    _check_values("row", _sound_transitions(config.stored, state.transitions), held | running)
    if state.copies is not None:
        _check_values("index", _sound_copies(config.copy, state.copies), copies_held)
    if state.slots is not None:
        _check_slots(state, state.slots)
    if state.tree is not None:
        _check_priorities(state, state.tree, copies_held)


def _check_windows(state: BufferState) -> None:
    config = state.config
    for name, values, most, due_to in (
        ("head", state.head, config.rows_per_env - 1, "rows of an environment, less one"),
        ("held", state.held, config.capacity_per_env, "capacity of an environment"),
        ("pending", state.pending, config.max_episode_length, "max_episode_length"),
        ("held + pending", state.held + state.pending, config.rows_per_env, "rows of an environment"),
    ):
        _require((values >= 0) & (values <= most), f"state.{name} of environment", values, f"lie in 0 .. {most}, the {due_to}")


@partial(jax.jit, static_argnums=0)
def _sound_transitions(layout: Layout, rows: Rows) -> Pytree:
    """Whether each leaf of each stored transition holds no NaN: bool [R] each."""
    return jax.vmap(lambda row: {"transition": jax.tree.map(_holds_no_nan, layout.unpack(row).transition)})(rows)


@partial(jax.jit, static_argnums=0)
def _sound_copies(layout: Layout, rows: Rows) -> Pytree:
    """Whether each copy's goal holds no NaN and its reward is finite: bool [R * K] each."""

    def sound(row: Rows) -> dict[str, Pytree]:
        copy: Copy = layout.unpack(row)
        return {"goal": jax.tree.map(_holds_no_nan, copy.goal), "reward": jnp.isfinite(copy.reward)}

    return jax.vmap(sound)(rows)


def _holds_no_nan(leaf: jax.Array) -> jax.Array:
    return ~jnp.any(jnp.isnan(leaf)) if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.bool_(True)


def _check_values(axis: str, sound: Pytree, there: np.ndarray) -> None:
    """Checks that what is there, bool [n], is sound, a pytree of bool [n]."""
    for path, leaf in jax.tree.leaves_with_path(sound):
        wrong = np.flatnonzero(there & ~np.asarray(leaf))
        if wrong.size:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            must = "be finite" if name == "reward" else "hold no NaN"
            raise ValueError(f"{name} of {axis} {wrong[0]} is no number; it must {must}.")


@partial(jax.jit, static_argnums=0)
def _slots_of(layout: Layout, rows: Rows) -> jax.Array:
    """The slot of each stored transition, int32 [R]."""
    slots: jax.Array = jax.vmap(lambda row: layout.unpack(row).slot)(rows)
    return slots


@partial(jax.jit, static_argnums=0)
def _episodes_of(layout: Layout, rows: Rows) -> tuple[jax.Array, Pytree]:
    """Where the episode in each slot ends, int32 [slots], and whether each leaf of its goal holds no NaN, bool [slots] each."""

    def of(row: Rows) -> tuple[jax.Array, Pytree]:
        episode: Episode = layout.unpack(row)
        return episode.end, {"goal": jax.tree.map(_holds_no_nan, episode.goal)}

    ends_and_sound: tuple[jax.Array, Pytree] = jax.vmap(of)(rows)
    return ends_and_sound


def _check_slots(state: BufferState, slots: Slots) -> None:
    """Checks that each environment's transitions have the slots of episodes each of which begins where the one before ends."""
    config = state.config
    turns, rows, longest = config.slots_per_env, config.rows_per_env, config.max_episode_length
    slot_of = np.asarray(_slots_of(config.stored, state.transitions))
    ends, sound = jax.tree.map(np.asarray, _episodes_of(config.episode, slots.episodes))
    for env in range(config.envs):
        head, held, pending, running = (int(leaf[env]) for leaf in (state.head, state.held, state.pending, slots.running))
        first = env * turns
        in_range = first <= running < first + turns
        _require(in_range, f"state.slots.running of environment {env}", running, f"be one of the {turns} of that environment")
        before = first + (running - first - 1 - np.arange(turns)) % turns  # Slots of finished episodes, youngest first.
        _require(ends[before[0]] == head, f"end of the episode in slot {before[0]}", ends[before[0]], f"be head, {head}")
        lengths = 1 + (ends[before[:-1]] - ends[before[1:]] - 1) % rows
        reach = np.cumsum(lengths)
        number = int(np.searchsorted(reach, held)) + (held > 0)  # Of episodes that something is held of.
        too_long = np.flatnonzero(lengths[:number] > longest)
        if too_long.size:
            slot, length = before[too_long[0]], lengths[too_long[0]]
            raise ValueError(f"length of the episode in slot {slot} is {length}; it must be at most {longest}.")
        missing = int(reach[number - 1]) - held if number else 0
        whole = missing == 0 or not config.evicts_episodes
        _require(whole, f"steps missing of the oldest episode of environment {env}", missing, "be 0: only whole ones make room")
        _check_values("slot", sound, np.isin(np.arange(ends.size), before[:number]))
        episode = np.searchsorted(reach[:number], np.arange(held), side="right")  # Of each transition, youngest first.
        expected = np.concatenate([before[episode][::-1], np.full(pending, running)])
        places = env * rows + (head - held + np.arange(held + pending)) % rows
        wrong = np.flatnonzero(slot_of[places] != expected)
        if wrong.size:
            row, must = places[wrong[0]], expected[wrong[0]]
            raise ValueError(f"slot of row {row} is {slot_of[row]}; it must be {must}, its episode's.")


def _check_priorities(state: BufferState, tree: sum_tree.SumTree, held: np.ndarray) -> None:
    """Checks priorities and sums; `held`, bool [R * K]: whether an index holds anything."""
    highest = state.max_priority
    _require(np.isfinite(highest) & (highest >= 1), "state.max_priority", highest, "be finite and >= 1")
    leaves = tree[0]
    held = np.pad(held, (0, leaves.size - held.size))
    least, most = (np.asarray(bound) for bound in prioritized.bounds(state.config, jnp.asarray(highest)))
    _require(~held | (leaves >= least * (1 - _ROUNDING)), "stored priority of index", leaves, f"be >= {least}")
    _require(~held | (leaves <= most * (1 + _ROUNDING)), "stored priority of index", leaves, f"be <= {most}, by max_priority")
    _require(held | (leaves == 0), "stored priority of index", leaves, "be 0: it holds nothing")
    for height, (children, parents) in enumerate(itertools.pairwise(tree), start=1):
        sums = np.zeros_like(parents)
        sums[: children.size // sum_tree.FANOUT] = sum_tree.node_sums(children)
        close = np.abs(parents - sums) <= _ROUNDING * sums
        _require(close, f"state.tree[{height}] at", parents, f"be {sums[np.argmin(close)]}, the sum of its children")


def _require(holds: Values, what: str, values: Values, must: str) -> None:
    """Raises where one of `values`, of `what`, is not as it must be."""
    if np.all(holds):
        return
    if np.ndim(values) == 0:
        raise ValueError(f"{what} is {values}; it must {must}.")
    wrong = np.argmin(holds)
    raise ValueError(f"{what} {wrong} is {np.asarray(values)[wrong]}; it must {must}.")
