"""What a training loop calls at every step: `add`, `end_episode`, `sample`."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from herjax import prioritized, relabel
from herjax.batching import anywhere
from herjax.relabel import Goal, Transition
from herjax.rows import Rows
from herjax.state import BufferState, Config, Copy, can_sample, check_whole, count, row_of, size


class Sample(NamedTuple):
    """A batch of copies; every field is [batch_size, ...]. On an empty buffer all of it is zero."""

    transition: Transition
    goal: Goal
    reward: jax.Array  # [batch_size], in `reward_fn`'s dtype.
    terminated: jax.Array | None  # bool [batch_size]; None without `terminated_fn`.
    is_hindsight: jax.Array  # bool [batch_size]; whether the goal is a hindsight goal.
    indices: jax.Array  # int32 [batch_size]; for `update_priorities`.
    probabilities: jax.Array  # float32 [batch_size]; of drawing that index.
    weights: jax.Array  # float32 [batch_size]; importance weights over the largest drawn.


@jax.jit
def add(state: BufferState, transition: Transition) -> BufferState:
    """Appends a transition to the running episode. It is neither sampled nor a goal's source until the episode ends.

    Past `max_episode_length` the transition is not stored but counted in `num_dropped`, and named under checkify.

    Args:
      state: the buffer.
      transition: one transition, like `init`'s example.

    Returns:
      The next state. Called outside of a compiled loop, this copies the buffer: use `jax.jit(herjax.add, donate_argnums=0)`.

    Raises:
      ValueError: the transition's structure or a leaf's shape differs from the example's.
      TypeError: a leaf's dtype differs.
    """
    config = state.config
    config.transition.check("transition", transition)
    fits = state.pending < config.max_episode_length
    checkify.debug_check(
        fits,
        "add: the episode is longer than max_episode_length, which is {max_episode_length}; the transition was dropped",
        max_episode_length=jnp.int32(config.max_episode_length),
    )
    packed = config.transition.pack(transition)
    row = jnp.where(fits, state.head + state.pending, config.num_rows)
    return dataclasses.replace(
        state,
        transitions=_write(state.transitions, {group: words[None] for group, words in packed.items()}, row),
        pending=state.pending + fits.astype(jnp.int32),
        num_dropped=count(state.num_dropped, ~fits),
    )


@jax.jit
def end_episode(state: BufferState, goal: Goal, key: jax.Array, done: jax.Array | bool = True) -> BufferState:
    """Ends the running episode: hindsight goals are drawn, rewards recomputed, and its transitions can be sampled.

    Args:
      state: the buffer.
      goal: the goal that the ended episode pursued; structure, shapes and dtypes are those of `goal_fn`'s result.
      key: draws the hindsight goals; used up.
      done: bool [], whether the episode ended. Where it is False, or no transition is pending, nothing changes.

    Returns:
      The next state. The oldest rows have made room; the ended episode is held whole.

    Raises:
      ValueError: the goal's structure or a leaf's shape differs from `goal_fn`'s, or `done` is no scalar.
      TypeError: a leaf's dtype differs, or `done` is no bool.
    """
    state.config.goal.check("goal", goal)
    done = jnp.asarray(done)
    if done.shape:
        raise ValueError(f"done has shape {done.shape}, expected (); with one environment pass one bool.")
    if done.dtype != jnp.bool_:
        raise TypeError(f"done has dtype {done.dtype}, expected bool; convert it with astype(bool).")
    ending = done & (state.pending > 0)
    ended: BufferState = jax.lax.cond(anywhere(ending), _commit, lambda state, *_: state, state, goal, key, ending)
    return ended


def _commit(state: BufferState, goal: Goal, key: jax.Array, ending: jax.Array) -> BufferState:
    """Makes the running episode a finished one if `ending`; otherwise writes into the dead zone, to no effect."""
    config = state.config
    length = jnp.where(ending, state.pending, 0)
    end = state.head + length
    new_lap = end + config.max_episode_length > config.num_rows
    ended = dataclasses.replace(
        state,
        head=jnp.where(new_lap, 0, end),
        lap_end=jnp.where(new_lap, end, state.lap_end),
        pending=state.pending - length,
    )
    steps = jnp.minimum(jnp.arange(config.max_episode_length, dtype=jnp.int32), jnp.maximum(length - 1, 0))
    episode = _read_transitions(state, state.head + steps)
    window = (config.max_episode_length, 1)
    goals = {group: jnp.broadcast_to(words, (*window, words.size)) for group, words in config.goal.pack(goal).items()}
    if config.num_goals > 0:
        drawn = _hindsight_goals(ended, key, episode, length)
        goals = {group: jnp.concatenate([own, drawn[group]], axis=1) for group, own in goals.items()}
    return dataclasses.replace(
        ended,
        copies=_write(state.copies, _copies(config, episode, goals), state.head * config.num_copies),
        tree=None if state.tree is None else prioritized.enter(state.tree, ended, state.head, length),
    )


def _hindsight_goals(state: BufferState, key: jax.Array, episode: Transition, length: jax.Array) -> Rows:
    """Hindsight goals for every step of the ended episode: rows [max_episode_length, num_goals, words]."""
    config = state.config

    def achieved(transition: Transition) -> Rows:
        return config.goal.pack(config.goal_fn(transition))

    if callable(config.strategy):
        drawn: Rows = relabel.hindsight_goals(config.strategy, key, jax.vmap(achieved)(episode), length, config.num_goals)
        return drawn
    held = jnp.maximum(size(state), 1)
    ages = jax.random.randint(key, (config.max_episode_length, config.num_goals), 1, held + 1, jnp.int32)
    transitions = _read_transitions(state, jnp.maximum(row_of(state, ages), 0).ravel())
    goals = jax.vmap(achieved)(transitions)
    return {group: words.reshape(*ages.shape, words.shape[-1]) for group, words in goals.items()}


def _copies(config: Config, episode: Transition, goals: Rows) -> Rows:
    """The copies of an episode under the goals of each step: rows [max_episode_length * num_copies, words]."""

    def copy(transition: Transition, goal_row: Rows) -> Rows:
        goal = config.goal.unpack(goal_row)
        terminated = None if config.terminated_fn is None else config.terminated_fn(transition, goal)
        return config.copy.pack(Copy(goal, config.reward_fn(transition, goal), terminated))

    copies = jax.vmap(jax.vmap(copy, (None, 0)))(episode, goals)
    return {group: words.reshape(-1, words.shape[-1]) for group, words in copies.items()}


@partial(jax.jit, static_argnames=("batch_size", "axis_name"))
def sample(
    state: BufferState,
    key: jax.Array,
    batch_size: int,
    *,
    beta: jax.Array | float = 0.4,
    axis_name: str | None = None,
) -> Sample:
    """Draws copies, with replacement: uniformly, or in proportion to their priorities, one from each of equal strata.

    Args:
      state: the buffer.
      key: draws the batch; used up.
      batch_size: copies drawn, static, >= 1.
      beta: exponent of the importance weights `(N P)^-beta` (arXiv:1511.05952, section 3.4); may be traced.
      axis_name: a mapped axis over which the buffer is sharded; `probabilities` and `weights` are then those of the whole.

    Returns:
      The batch; zeros where no episode has finished, as `can_sample` says.

    Raises:
      ValueError: `batch_size` is less than 1.
      TypeError: `batch_size` is no int.
    """
    check_whole("batch_size", batch_size, 1)
    config = state.config
    copies_held = size(state) * config.num_copies
    if state.tree is None:
        indices = _draw_uniformly(state, key, batch_size)
        weights = jnp.full(batch_size, can_sample(state).astype(jnp.float32))
        priorities, priority_sum = weights, copies_held.astype(jnp.float32)
    else:
        indices, priorities, priority_sum = prioritized.draw(state.tree, key, batch_size)
    if axis_name is not None:
        copies_held, priority_sum = jax.lax.psum((copies_held, priority_sum), axis_name)
    probabilities = priorities / jnp.where(priority_sum > 0, priority_sum, 1)
    if state.tree is not None:
        weights = prioritized.importance_weights(probabilities, copies_held, beta, axis_name)
    rows = jax.lax.div(indices, jnp.int32(config.num_copies))  # Of non-negative numbers; `//` would mind their sign.
    copies: Copy = jax.vmap(config.copy.unpack)(_read_held(state, state.copies, indices))
    return Sample(
        transition=jax.vmap(config.transition.unpack)(_read_held(state, state.transitions, rows)),
        goal=copies.goal,
        reward=copies.reward,
        terminated=copies.terminated,
        is_hindsight=indices > rows * config.num_copies,
        indices=indices,
        probabilities=probabilities,
        weights=weights,
    )


def _draw_uniformly(state: BufferState, key: jax.Array, batch_size: int) -> jax.Array:
    """Indices of copies held, int32 [batch_size]."""
    num_copies = state.config.num_copies
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)
    # The upper half of the product is uniform below the bound, to within bound / 2^32; randint would draw four times the bits.
    drawn = jax.lax.mulhi(bits, (size(state) * num_copies).astype(jnp.uint32)).astype(jnp.int32)
    rows_back = jax.lax.div(drawn, jnp.int32(num_copies))
    rows = jnp.maximum(row_of(state, rows_back + 1), 0)
    return rows * num_copies + (drawn - rows_back * num_copies)


def _read_transitions(state: BufferState, rows: jax.Array) -> Transition:
    """The transitions in `rows`, int32 [n]: each leaf [n, ...]."""
    return jax.vmap(state.config.transition.unpack)(_read(state.transitions, rows))


def _read_held(state: BufferState, rows: Rows, indices: jax.Array) -> Rows:
    """The rows at `indices`, or zeros on an empty buffer."""
    return {group: jnp.where(can_sample(state), words, 0) for group, words in _read(rows, indices).items()}


def _read(rows: Rows, indices: jax.Array) -> Rows:
    return {
        group: words.at[indices].get(mode="promise_in_bounds", wrap_negative_indices=False) for group, words in rows.items()
    }


def _write(rows: Rows, block: Rows, start: jax.Array) -> Rows:
    """Writes a block of rows, [n, words], from row `start` on."""
    return {group: jax.lax.dynamic_update_slice_in_dim(rows[group], block[group], start, axis=0) for group in rows}
