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
from herjax.config import NUMBERS, Config, Copy
from herjax.reading import places, transitions
from herjax.rings import observation_of
from herjax.rows import Layout, Pytree, dotted
from herjax.state import BufferState, Observations, config_of, empty

Values: TypeAlias = np.ndarray | jax.Array | int
"""What is on the host; a state says that its arrays are JAX's."""

_ROUNDING = 1e-5  # Relative. Devices may round a sum or a power differently; what is broken is further off.


def check(state: BufferState) -> None:
    """Raises where a state is broken: damaged on the way, or poisoned by what it was given.

    In this order: every array has its shape and dtype; counters are not negative; each environment's transitions fit its ring;
    no transition or goal held is NaN, every reward is finite, and every window in range; the steps held belong to
    finished episodes, one after another; what is held has a priority in range, nothing else has one, and each
    sum of the tree is the sum of its children.

    It reads the whole state, on the CPU, and calls none of the user's functions: a wrong reward that is finite it cannot see.

    Args:
      state: the buffer, or many of them made under `vmap`, whose axes lead; on any device.

    Raises:
      ValueError: the first invariant broken: which array, where, its value, and what it must be.
      TypeError: `state` is no `BufferState` of arrays, or is traced.

    Example:
      >>> import dataclasses, herjax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> herjax.check(buffer)  # Says nothing: all is well.
      >>> herjax.check(dataclasses.replace(buffer, pending=jnp.array([5])))
      Traceback (most recent call last):
      ValueError: state.pending of environment 0 is 5; it must lie in 0 .. 4, the max_episode_length.
    """
    config_of(state, one_run=False)
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
    numbers = dict.fromkeys(state.numbers, jnp.float32(0))
    expected: BufferState = jax.eval_shape(partial(empty, state.config), numbers)
    for field in dataclasses.fields(state):
        found, must = (str(jax.tree.structure(getattr(tree, field.name))) for tree in (state, expected))
        if found != must:
            raise ValueError(f"state.{field.name} has the structure {found}; it must have {must}.")
    lanes, (leaves, _) = tuple(np.shape(state.num_dropped)), jax.tree_util.tree_flatten_with_path(state)
    for (path, leaf), spec in zip(leaves, jax.tree.leaves(expected), strict=True):
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
    for name, value in state.numbers.items():
        most = NUMBERS[name]
        _require(
            bool(np.isfinite(value) & (value >= 0) & (most is None or value <= most)),
            f"state.numbers[{name!r}]",
            value,
            "be finite and >= 0" if most is None else f"lie in 0 .. {most:g}",
        )
    _check_windows(state)
    offsets = np.arange(config.rows_per_env)[None]
    held = np.ravel((state.head[:, None] - 1 - offsets) % config.rows_per_env < state.held[:, None])
    running = np.ravel((offsets - state.head[:, None]) % config.rows_per_env < state.pending[:, None])
    held, running = np.append(held, False), np.append(running, False)  # [R + 1]; the last row is nobody's.
    copies_held = np.repeat(held | running if config.sample_running else held, config.num_copies)
    _check_values("row", _sound_transitions(state), held | running)
    _check_values("index", _sound_copies(config, state.copies), copies_held)
    _check_steps(state)
    if state.observations is not None:
        _check_observations(state, state.observations)
    if state.tree is not None:
        _check_priorities(state, state.tree, copies_held)


def _check_windows(state: BufferState) -> None:
    config = state.config
    for name, values, most, due_to in (
        ("head", state.head, config.rows_per_env - 1, "rows of an environment, less one"),
        ("pending", state.pending, config.max_episode_length, "max_episode_length"),
        ("held", state.held, config.capacity_per_env, "capacity of an environment"),
        ("held + pending", state.held + state.pending, config.capacity_per_env, "capacity of an environment"),
    ):
        _require((values >= 0) & (values <= most), f"state.{name} of environment", values, f"lie in 0 .. {most}, the {due_to}")


def _rows(layout: Layout, words: jax.Array) -> jax.Array:
    """Every row of a layout, uint32 [rows, words], of the words of all of them."""
    return words.reshape(-1, layout.words)


@jax.jit
def _sound_transitions(state: BufferState) -> Pytree:
    """Whether each leaf of each stored transition holds no NaN: bool [R + 1] each."""
    rows = jnp.arange(state.config.num_rows + 1, dtype=jnp.int32)
    return {"transition": jax.tree.map(jax.vmap(_holds_no_nan), transitions(state, rows))}


@partial(jax.jit, static_argnums=0)
def _sound_copies(config: Config, words: jax.Array) -> Pytree:
    """Whether what each index stores is as `check` says: bool [(R + 1) * K] each."""

    def sound(row: jax.Array) -> dict[str, Pytree]:
        if config.relabels_when_sampled:
            return {"goal": jax.tree.map(_holds_no_nan, config.goal.unpack(row))}
        stored: Copy = config.stored.unpack(row)
        found = {"goal": jax.tree.map(_holds_no_nan, stored.goal)}
        found["reward"] = jnp.isfinite(stored.reward)
        if stored.window is not None:
            found["window"] = (stored.window >= 1) & (stored.window <= config.num_steps)
        return found

    return jax.vmap(sound)(_rows(config.stored, words))


def _holds_no_nan(leaf: jax.Array) -> jax.Array:
    return ~jnp.any(jnp.isnan(leaf)) if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.bool_(True)


def _check_values(axis: str, sound: Pytree, there: np.ndarray) -> None:
    """Checks that what is there, bool [n], is sound, a pytree of bool [n]."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(sound)[0]:
        wrong = np.flatnonzero(there & ~np.asarray(leaf))
        if wrong.size:
            name = dotted(path)
            must = {"reward": "be finite", "window": "be 1 .. num_steps"}.get(name, "hold no NaN")
            if axis == "index" and must == "hold no NaN":
                must += " (for data that pursued no goal give a number, such as 0)"
            fault = "out of range" if name == "window" else "no number"
            raise ValueError(f"{name} of {axis} {wrong[0]} is {fault}; it must {must}.")


def _check_steps(state: BufferState) -> None:
    """Checks that each environment holds whole episodes one after another; only the oldest may have lost its first steps."""
    config = state.config
    for env in range(config.envs):
        rows = _oldest_first(state, env)
        step, length = map(np.asarray, places(state, jnp.asarray(rows)))
        in_range = (length >= 1) & (length <= config.max_episode_length)
        _require(in_range, "length of the episode of row", length, f"lie in 1 .. {config.max_episode_length}", rows)
        _require((step >= 0) & (step < length), "step of row", step, "lie within its episode", rows)
        ends = step == length - 1
        follows = np.where(ends[:-1], step[1:] == 0, (step[1:] == step[:-1] + 1) & (length[1:] == length[:-1]))
        _require(follows, "step of row", step[1:], "be the one after the row before, or 0 after an episode's end", rows[1:])
        _require(ends[-1:], "step of row", step[-1:], "be an episode's last: the running one begins after it", rows[-1:])


def _check_observations(state: BufferState, observations: Observations) -> None:
    """Checks that the observations of what is held follow one another, one more for each episode, and fit the capacity."""
    config, head, episodes = state.config, observations.head, observations.episodes
    ring = config.observations_per_env
    _require((head >= 0) & (head < ring), "state.observations.head of environment", head, f"lie in 0 .. {ring - 1}")
    for env in range(config.envs):
        rows, running = _oldest_first(state, env), np.arange(int(state.pending[env]))
        step, length = map(np.asarray, places(state, jnp.asarray(rows)))
        ends = step == length - 1
        held = int(ends.sum())
        name = f"state.observations.episodes of environment {env}"
        _require(episodes[env] >= held, name, episodes[env], f"be >= {held}, as rows say")
        taken = len(rows) + min(int(episodes[env]), len(rows)) + len(running)
        fits = taken <= config.capacity_per_env
        _require(fits, f"observations of environment {env} in use", taken, f"be <= {config.capacity_per_env}, the capacity")
        offset = head[env] - len(rows) - held + np.arange(len(rows)) + np.cumsum(ends) - ends
        must = 1 + env * ring + np.append(offset, head[env] + running) % ring
        rows = np.append(rows, env * config.rows_per_env + (state.head[env] + running) % config.rows_per_env)
        found = np.asarray(observation_of(state, jnp.asarray(rows)))
        _require(found == must, "observation of row", found, "follow that of the row before", rows)


def _oldest_first(state: BufferState, env: int) -> np.ndarray:
    """The rows of an environment's finished transitions: int32 [held]."""
    age = np.arange(int(state.held[env]), 0, -1, dtype=np.int32)
    return np.asarray(env * state.config.rows_per_env + (state.head[env] - age) % state.config.rows_per_env)


def _check_priorities(state: BufferState, tree: sum_tree.SumTree, held: np.ndarray) -> None:
    """Checks priorities and sums; `held`, bool [(R + 1) * K]: whether an index holds anything."""
    highest = state.max_priority
    _require(np.isfinite(highest) & (highest >= 1), "state.max_priority", highest, "be finite and >= 1")
    leaves = tree[0]
    held = np.pad(held, (0, leaves.size - held.size))
    least, most = (np.asarray(bound) for bound in prioritized.bounds(state))
    _require(~held | (leaves >= least * (1 - _ROUNDING)), "stored priority of index", leaves, f"be >= {least}")
    _require(~held | (leaves <= most * (1 + _ROUNDING)), "stored priority of index", leaves, f"be <= {most}, by max_priority")
    _require(held | (leaves == 0), "stored priority of index", leaves, "be 0: it holds nothing")
    for height, (children, parents) in enumerate(itertools.pairwise(tree), start=1):
        sums = np.zeros_like(parents)
        sums[: children.size // sum_tree.FANOUT] = sum_tree.node_sums(children)
        close = np.abs(parents - sums) <= _ROUNDING * sums
        _require(close, f"state.tree[{height}] at", parents, f"be {sums[np.argmin(close)]}, the sum of its children")


def _require(holds: Values, what: str, values: Values, must: str, places: Values | None = None) -> None:
    """Raises where one of `values`, of `what`, is not as it must be; `places` has the numbers to name them by."""
    if np.all(holds):
        return
    if np.ndim(values) == 0:
        raise ValueError(f"{what} is {values}; it must {must}.")
    wrong = np.argmin(holds)
    place = wrong if places is None else np.asarray(places)[wrong]
    raise ValueError(f"{what} {place} is {np.asarray(values)[wrong]}; it must {must}.")
