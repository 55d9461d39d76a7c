"""How transitions get out of a buffer: `sample`."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax import checks, hindsight, prioritized
from herjax.config import Config, Copy
from herjax.faults import reported
from herjax.functions import Goal, Transition
from herjax.lanes import materialized
from herjax.state import BufferState, can_sample, config_of, held_row, row_of_step, scale, size

_BETA = 0.4
"""The default exponent of importance weights, where prioritised replay begins (arXiv:1511.05952, table 3)."""


class Sample(NamedTuple):
    """A batch of copies; every field is [batch_size, ...]. On an empty buffer all of it is zero.

    A value to learn from is `reward + discount * value(last.next_observation, goal)`.

    Attributes:
      transition: the transitions, in the structure, shapes and dtypes of `init`'s example.
      goal: the goal of each copy, as `goal_fn` returns it: the one that was pursued, or a hindsight goal.
      reward: under that goal, in `reward_fn`'s dtype. With num_steps > 1, the discounted sum of the window, in a float's.
      terminated: whether `last` ends the task under that goal. None without `terminated_fn`.
      is_hindsight: whether the goal is a hindsight goal.
      indices: for `update_priorities`.
      probabilities: of drawing that index; with `axis_name`, were all shards drawn from as one.
      weights: importance weights, divided by the largest of the batch; ones when uniform.
      last: the last transition of the window; with num_steps=1, `transition`.
      discount: 0 where terminated, else discount^m for a window of m steps. None if `init` was given no discount.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> settings = dict(capacity=8, max_episode_length=4, goal_fn=lambda t: t, num_goals=0, num_steps=2, discount=0.5)
      >>> buffer = herjax.init(jnp.float32(0), reward_fn=lambda t, goal: jnp.where(t == goal, 0.0, -1.0), **settings)
      >>> buffer = herjax.add(herjax.add(buffer, jnp.float32(3)), jnp.float32(4))
      >>> buffer = herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))
      >>> batch = herjax.sample(buffer, jax.random.key(1), 64)
      >>> isinstance(batch, herjax.Sample), sorted(set(zip(batch.reward.tolist(), batch.discount.tolist())))
      (True, [(-1.5, 0.25), (-1.0, 0.5)])
    """

    transition: Transition
    goal: Goal
    reward: jax.Array  # [batch_size]
    terminated: jax.Array | None  # bool [batch_size]
    is_hindsight: jax.Array  # bool [batch_size]
    indices: jax.Array  # int32 [batch_size]
    probabilities: jax.Array  # float32 [batch_size]
    weights: jax.Array  # float32 [batch_size]
    last: Transition
    discount: jax.Array | None  # float32 [batch_size]


def sample(
    state: BufferState,
    key: jax.Array,
    batch_size: int,
    *,
    beta: jax.Array | float = _BETA,
    hindsight_ratio: jax.Array | float | None = None,
    axis_name: str | None = None,
) -> Sample:
    """Draws copies, with replacement: uniformly, or in proportion to their priorities, one from each of equal strata.

    Args:
      state: the buffer.
      key: one key, also with `num_envs`: draws the batch, and with `relabel="sample"` its goals; used up.
      batch_size: copies drawn, static, >= 1.
      beta: exponent of the importance weights `(N P)^-beta` (arXiv:1511.05952, section 3.4), float []; may be traced.
      hindsight_ratio: the share of draws with a hindsight goal, float [] in [0, 1]; may be traced. None: k / (k + 1). Another
        needs `relabel="sample"` and `num_goals` >= 1. One out of range is clipped, and named under checkify.
      axis_name: a mapped axis over which the buffer is sharded; `probabilities` and `weights` are then those of the whole.

    Returns:
      The batch; zeros where no finished transition is held, as `can_sample` says.

    Raises:
      ValueError: `batch_size` is less than 1, `key` has an axis, or `hindsight_ratio` is given where `sample` draws no goals;
        that or `beta` is not a single number.
      TypeError: `batch_size` is no int, or `key` is no key.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.end_episode(herjax.add(buffer, jnp.float32(3)), jnp.float32(5), jax.random.key(0))
      >>> batch = herjax.sample(buffer, jax.random.key(1), 64)
      >>> sorted(set(zip(batch.is_hindsight.tolist(), batch.reward.tolist())))  # Every hindsight goal was reached here.
      [(False, -1.0), (True, 0.0)]
    """
    batch_size = checks.whole("batch_size", batch_size, 1)
    options = {"batch_size": batch_size, "hindsight_ratio": hindsight_ratio, "axis_name": axis_name}
    # The default is a constant of the compiled program: nothing is moved to the device for it.
    by_default = isinstance(beta, float) and beta == _BETA
    batch: Sample = _sample(state, key, **options) if by_default else _sample(state, key, **options, beta=beta)
    return batch


@partial(jax.jit, static_argnames=("batch_size", "axis_name"))
def _sample(
    state: BufferState,
    key: jax.Array,
    *,
    batch_size: int,
    hindsight_ratio: jax.Array | float | None,
    axis_name: str | None,
    beta: jax.Array | float = _BETA,
) -> Sample:
    """`sample`, compiled."""
    config = config_of(state)
    checks.key(key)
    beta = checks.real("beta", beta, "one number, such as 0.4").astype(jnp.float32)
    state, beta = jax.lax.stop_gradient((state, beta))
    ratio = _ratio(config, hindsight_ratio)
    key, key_goals = jax.random.split(key) if config.relabels_when_sampled else (key, key)
    indices, probabilities, weights = _draw(state, key, batch_size, beta, axis_name)
    drawn = (_read(state, key_goals, indices, ratio), indices, probabilities, weights)
    # All reads are over before any of the batch is there, so that a write that waits for some of it waits for all of them.
    there = can_sample(state)
    (transitions, last, copies, is_hindsight), indices, probabilities, weights = materialized(there, drawn)
    copy: Copy = jax.vmap(config.copy.unpack)(copies)
    transition = jax.vmap(config.transition.unpack)(transitions)
    return Sample(
        transition=transition,
        goal=copy.goal,
        reward=copy.reward,
        terminated=copy.terminated,
        is_hindsight=is_hindsight > 0,
        indices=indices,
        probabilities=probabilities,
        weights=weights,
        last=transition if last is None else jax.vmap(config.transition.unpack)(last),
        discount=_discount(config, copy, jnp.full(batch_size, there)),
    )


def _read(
    state: BufferState, key: jax.Array, indices: jax.Array, ratio: jax.Array
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]:
    """What is at `indices`, int32 [n]: transitions, last transitions of windows, rows of `Copy`, and 1 for a hindsight goal."""
    config = state.config
    rows = jax.lax.div(indices, jnp.int32(config.num_copies))  # Of non-negative numbers; `//` would mind their sign.
    is_hindsight = jax.lax.sign(indices - rows * config.num_copies)
    copies = config.stored.read(state.copies, indices)
    if config.relabels_when_sampled:
        is_hindsight, copies = hindsight.relabelled(state, key, rows, copies, ratio)
    transitions = config.transition.read(state.transitions, rows)
    if config.num_steps == 1:
        return transitions, None, copies, is_hindsight
    windows = jax.vmap(lambda copy: config.copy.unpack(copy).window)(copies)
    last_rows = row_of_step(config, rows, jnp.int32(0), jnp.maximum(windows - 1, 0))
    return transitions, config.transition.read(state.transitions, last_rows), copies, is_hindsight


def _ratio(config: Config, hindsight_ratio: jax.Array | float | None) -> jax.Array:
    """The chance that a goal drawn at sampling is a hindsight goal: float32 []."""
    if hindsight_ratio is None:
        return jnp.asarray(config.num_goals / (config.num_goals + 1), jnp.float32)
    if not config.relabels_when_sampled or config.num_goals == 0:
        raise ValueError(
            f"hindsight_ratio is given, but init had relabel={config.relabel!r} and num_goals={config.num_goals}: sample draws "
            "no goals; give init relabel='sample' and num_goals >= 1, or leave hindsight_ratio out."
        )
    ratio = jax.lax.stop_gradient(checks.real("hindsight_ratio", hindsight_ratio, "one number in [0, 1]"))
    return reported(
        jnp.clip(ratio, 0, 1).astype(jnp.float32),
        (ratio >= 0) & (ratio <= 1),
        "sample: hindsight_ratio must lie in [0, 1], but it is {hindsight_ratio}; it was clipped",
        hindsight_ratio=ratio,
    )


def _discount(config: Config, copy: Copy, there: jax.Array) -> jax.Array | None:
    """What the value after each window is worth, float32 [batch_size]; `there`, bool [batch_size], is whether there is one."""
    if config.discount is None:
        return None
    worth = there if copy.terminated is None else there & ~copy.terminated
    window = jnp.int32(1) if copy.window is None else copy.window
    return jnp.where(worth, jnp.asarray(config.powers)[window], 0)


def _draw(
    state: BufferState, key: jax.Array, batch_size: int, beta: jax.Array | float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Indices, int32 [batch_size], their probabilities and their importance weights, float32 [batch_size] each."""
    copies_held = size(state) * state.config.num_copies
    if state.tree is None:
        indices = _draw_uniformly(state, key, batch_size)
        weights = jnp.full(batch_size, can_sample(state).astype(jnp.float32))
        priorities, priority_sum = weights, copies_held.astype(jnp.float32)
    else:
        indices, priorities, priority_sum = prioritized.draw(state.tree, key, batch_size)
        # Where all priorities are 0, the oldest is drawn, since the first row may hold a step of the running episode.
        oldest = held_row(state, jnp.int32(0)) * state.config.num_copies
        indices = jnp.where((priority_sum > 0) | ~can_sample(state), indices, oldest)
    if axis_name is not None:
        # As floats: all shards together may hold more copies than an int32 can count.
        copies_held, priority_sum = jax.lax.psum((copies_held.astype(jnp.float32), priority_sum), axis_name)
    probabilities = priorities / jnp.where(priority_sum > 0, priority_sum, 1)
    if state.tree is not None:
        weights = prioritized.importance_weights(probabilities, copies_held, beta, axis_name)
    return indices, probabilities, weights


def _draw_uniformly(state: BufferState, key: jax.Array, batch_size: int) -> jax.Array:
    """Indices of copies held, int32 [batch_size]."""
    num_copies = state.config.num_copies
    bits = jax.random.bits(key, (batch_size,), jnp.uint32)  # randint would draw four times as many.
    drawn = scale(bits, (size(state) * num_copies).astype(jnp.uint32)).astype(jnp.int32)
    number = jax.lax.div(drawn, jnp.int32(num_copies))
    indices = held_row(state, number) * num_copies + (drawn - number * num_copies)
    drawn_once: jax.Array = materialized(can_sample(state), indices)  # Else XLA draws each for every word that is read of it.
    return drawn_once
