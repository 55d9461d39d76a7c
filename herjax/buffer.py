"""What a training loop calls at every step: `add`, `end_episode`, `sample`."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from herjax import episodes, hindsight, prioritized
from herjax.batching import Steps, for_each_step
from herjax.config import INT32_MAX, Config, Copy, Stored, check_whole
from herjax.hindsight import Visits
from herjax.relabel import Goal, Transition
from herjax.rows import Pytree, Rows, read, write
from herjax.state import BufferState, Slots, around, can_sample, count, held_row, row_at, size, tail

_LEAST_STEPS, _MOST_STEPS = 32, 1024  # Steps that one turn of `end_episode` relabels: one for each environment, within these.


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
      transition: one transition, like `init`'s example; with `num_envs`, one of each environment along a leading axis.

    Returns:
      The next state. Called outside of a compiled loop, this copies the buffer: use `jax.jit(herjax.add, donate_argnums=0)`.

    Raises:
      ValueError: the transition's structure or a leaf's shape differs from the example's.
      TypeError: a leaf's dtype differs.
    """
    config = state.config
    config.transition.check("transition", transition, config.num_envs)
    fits = state.pending < config.max_episode_length
    checkify.debug_check(
        jnp.all(fits),
        "add: the episode of environment {env} is longer than max_episode_length, which is {max_episode_length}; "
        "the transition was dropped",
        env=jnp.argmin(fits),
        max_episode_length=jnp.int32(config.max_episode_length),
    )
    full = fits & (state.held + state.pending >= config.capacity_per_env)
    oldest = _oldest(state)
    # A whole episode stays while it can, so that no more than `max_episode_length` rows are ever missing.
    spared = state.held - oldest < config.capacity_per_env - config.max_episode_length
    state = _evict(state, jnp.where(full & ~spared, oldest, 0))
    rows = _rows(config, episodes.after_reads(state, state.head + state.pending))
    slot = None if state.slots is None else state.slots.running
    stored = jax.vmap(config.stored.pack)(Stored(_with_axis(config, transition), slot))
    return dataclasses.replace(
        state,
        transitions=write(state.transitions, jnp.where(fits, rows, config.num_rows), stored),
        pending=state.pending + fits.astype(jnp.int32),
        num_dropped=count(state.num_dropped, jnp.sum(~fits)),
    )


@jax.jit
def end_episode(state: BufferState, goal: Goal, key: jax.Array, done: jax.Array | bool = True) -> BufferState:
    """Ends the running episode: hindsight goals are drawn, rewards recomputed, and its transitions can be sampled.

    Args:
      state: the buffer.
      goal: the goal that the ended episode pursued; structure, shapes and dtypes are those of `goal_fn`'s result. With
        `num_envs`, a goal of each environment along a leading axis.
      key: draws the hindsight goals; used up.
      done: bool [], whether the episode ended; with `num_envs`, that or bool [num_envs]. Where it is False, or no transition is
        pending, nothing changes.

    Returns:
      The next state. The oldest transitions have made room; the ended episode is held whole.

    Raises:
      ValueError: the goal's structure or a leaf's shape differs from `goal_fn`'s, or `done` has another shape.
      TypeError: a leaf's dtype differs, or `done` is no bool.
    """
    config = state.config
    config.goal.check("goal", goal, config.num_envs)
    goals = jax.vmap(config.goal.pack)(_with_axis(config, goal))
    lengths = jnp.where(_check_done(config, done), state.pending, 0)
    if config.evicts_episodes:
        over = (lengths > 0) & (state.held + lengths > config.capacity_per_env)
        state = _evict(state, jnp.where(over, _oldest(state), 0))
    ended = dataclasses.replace(
        state,
        slots=None if state.slots is None else episodes.end(state, state.slots, goals, lengths),
        head=around(config, state.head + lengths),
        held=state.held + lengths,
        pending=state.pending - lengths,
    )
    if ended.copies is None and ended.tree is None:
        return ended

    def commit(ended: BufferState, turn: jax.Array, steps: Steps) -> BufferState:
        env = steps.env
        visits = Visits(env, state.head[env], steps.step, jnp.maximum(lengths[env], 1), steps.valid)
        pursued = {group: words[env][:, None] for group, words in goals.items()}
        return _commit(ended, jax.random.fold_in(key, turn), visits, pursued)

    return for_each_step(lengths, _steps_a_turn(config), commit, ended)


def _commit(state: BufferState, key: jax.Array, visits: Visits, goals: Rows) -> BufferState:
    """Writes the copies of some steps of episodes that have ended, and gives them the largest priority so far."""
    config = state.config
    rows = row_at(config, visits.env, visits.first + visits.step)
    if state.copies is not None:
        transitions = hindsight.transitions(state, rows)
        if config.num_goals > 0:
            drawn = hindsight.goals(state, key, visits, config.num_goals)
            goals = {group: jnp.concatenate([own, drawn[group]], axis=1) for group, own in goals.items()}
        copies = jax.vmap(jax.vmap(partial(hindsight.copy, config), (None, 0)))(transitions, goals)
        indices = rows[:, None] * config.num_copies + jnp.arange(config.num_copies, dtype=jnp.int32)[None]
        indices = jnp.where(visits.valid[:, None], indices, INT32_MAX).ravel()
        flat = {group: words.reshape(-1, words.shape[-1]) for group, words in copies.items()}
        state = dataclasses.replace(state, copies=write(state.copies, indices, flat))
    return prioritized.enter(state, rows, visits.valid)


def _oldest(state: BufferState) -> jax.Array:
    """How many transitions make room together in each environment: the oldest one, or all of its episode. int32 [n]."""
    if state.slots is not None and state.config.evicts_episodes:
        return episodes.oldest_length(state, state.slots)
    return jnp.ones_like(state.held)


def _evict(state: BufferState, counts: jax.Array) -> BufferState:
    """Takes the oldest transitions of each environment out, as many as `counts`, int32 [n]."""
    config = state.config
    oldest = tail(state)

    def clear(state: BufferState, turn: jax.Array, steps: Steps) -> BufferState:
        del turn
        return prioritized.leave(state, row_at(config, steps.env, oldest[steps.env] + steps.step), steps.valid)

    if state.tree is not None:
        chunk = _steps_a_turn(config) if config.evicts_episodes else config.envs
        state = for_each_step(counts, chunk, clear, state)
    return dataclasses.replace(state, held=state.held - counts)


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
    key, key_goals = jax.random.split(key) if config.relabels_when_sampled else (key, key)
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
    transitions = read(state.transitions, rows)
    if state.slots is None:
        is_hindsight, copies = indices > rows * config.num_copies, read(state.copies, indices)
    else:
        is_hindsight, copies = _relabelled(state, state.slots, key_goals, rows)
    copy: Copy = jax.vmap(config.copy.unpack)(_or_zeros(state, copies))
    return Sample(
        transition=jax.vmap(config.stored.unpack)(_or_zeros(state, transitions)).transition,
        goal=copy.goal,
        reward=copy.reward,
        terminated=copy.terminated,
        is_hindsight=is_hindsight,
        indices=indices,
        probabilities=probabilities,
        weights=weights,
    )


def _relabelled(state: BufferState, slots: Slots, key: jax.Array, rows: jax.Array) -> tuple[jax.Array, Rows]:
    """Draws a goal for each sampled row: whether it is a hindsight goal, bool [n], and the copy under it, rows [n, words]."""
    config = state.config
    visits, goals = episodes.visits(state, slots, rows, can_sample(state))
    is_hindsight = jnp.zeros(rows.shape, bool)
    if config.num_goals > 0:
        key_own, key_goals = jax.random.split(key)
        drawn = hindsight.goals(state, key_goals, visits, 1)
        is_hindsight = visits.valid & (jax.random.randint(key_own, rows.shape, 0, config.num_goals + 1) > 0)
        goals = {group: jnp.where(is_hindsight[:, None], drawn[group][:, 0], own) for group, own in goals.items()}
    return is_hindsight, jax.vmap(partial(hindsight.copy, config))(hindsight.transitions(state, rows), goals)


def _draw_uniformly(state: BufferState, key: jax.Array, batch_size: int) -> jax.Array:
    """Indices of copies held, int32 [batch_size]."""
    num_copies = state.config.num_copies
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)  # randint would draw four times as many.
    drawn = scale(bits, (size(state) * num_copies).astype(jnp.uint32)).astype(jnp.int32)
    number = jax.lax.div(drawn, jnp.int32(num_copies))
    indices = held_row(state, number) * num_copies + (drawn - number * num_copies)
    return jnp.where(can_sample(state), indices, 0)


def scale(bits: jax.Array, bound: jax.Array) -> jax.Array:
    """The upper half of the product of two uint32: of uniform bits, a number uniform below the bound to within bound / 2^32.

    By halves, because `jax.lax.mulhi` does not compile under `shard_map` over several devices (jax 0.10.2).
    """
    high, low = bits >> 16, bits & 0xFFFF
    bound_high, bound_low = bound >> 16, bound & 0xFFFF
    upper = high * bound_low + (low * bound_low >> 16)
    lower = low * bound_high + (upper & 0xFFFF)
    return high * bound_high + (upper >> 16) + (lower >> 16)


def _or_zeros(state: BufferState, rows: Rows) -> Rows:
    """The rows, or zeros on an empty buffer."""
    return {group: jnp.where(can_sample(state), words, 0) for group, words in rows.items()}


def _rows(config: Config, places: jax.Array) -> jax.Array:
    """The row at a place of each environment's ring: int32 [n]."""
    return row_at(config, jnp.arange(config.envs, dtype=jnp.int32), places)


def _with_axis(config: Config, tree: Pytree) -> Pytree:
    """An argument with an axis for the environments, also where there is none: each leaf [n, ...]."""
    return tree if config.num_envs is not None else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


def _check_done(config: Config, done: jax.Array | bool) -> jax.Array:
    """Whether each environment's episode ended: bool [n]."""
    done = jnp.asarray(done)
    if done.shape and done.shape != (config.num_envs,):
        expected = "()" if config.num_envs is None else f"() or ({config.num_envs},)"
        remedy = "one bool" if config.num_envs is None else "one bool for all environments, or one for each"
        raise ValueError(f"done has shape {done.shape}, expected {expected}; pass {remedy}.")
    if done.dtype != jnp.bool_:
        raise TypeError(f"done has dtype {done.dtype}, expected bool; convert it with astype(bool).")
    return jnp.broadcast_to(done, (config.envs,))


def _steps_a_turn(config: Config) -> int:
    return min(config.envs * config.max_episode_length, max(_LEAST_STEPS, min(config.envs, _MOST_STEPS)))
