"""How transitions get out of a buffer: `sample`."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from herjax import checks, drawing, hindsight
from herjax.config import Config, Copy
from herjax.faults import reported
from herjax.functions import Goal, Transition
from herjax.lanes import materialized
from herjax.reading import rows_of, visits
from herjax.rings import row_of_step
from herjax.rows import Pytree
from herjax.state import BufferState, can_sample, config_of
from herjax.strategies import Mixture, StrategyFn, as_mixture

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
    indices, probabilities, weights = drawing.draw(state, key, batch_size, beta, axis_name)
    rows = rows_of(state, indices)
    if config.relabels_when_sampled:
        strategy = config.strategy if config.num_goals > 0 else None
        is_hindsight, copies = hindsight.relabelled(state, key_goals, visits(state, rows), strategy, ratio)
    else:
        is_hindsight, copies = jax.lax.sign(indices - rows * config.num_copies), config.stored.read(state.copies, indices)
    transitions = config.transition.read(state.transitions, rows)
    drawn = (transitions, is_hindsight, copies, _last(state, rows, copies), indices, probabilities, weights)
    # All reads are over before any of the batch is there, so that a write that waits for some of it waits for all of them.
    transitions, is_hindsight, copies, last, indices, probabilities, weights = materialized(can_sample(state), drawn)
    transition = jax.vmap(config.transition.unpack)(transitions)
    under_goals = _under_goals(state, transition, is_hindsight, copies, last)
    return Sample(transition=transition, indices=indices, probabilities=probabilities, weights=weights, **under_goals)


def relabel(
    state: BufferState,
    batch: Sample,
    key: jax.Array,
    *,
    strategy: str | StrategyFn | Mixture | None = None,
    hindsight_ratio: jax.Array | float | None = None,
) -> Sample:
    """The same batch with goals drawn anew: for an agent whose value and actor learn from other goals, or from several.

    Under `jax.vmap` over keys it gives many goals for each transition, whose rows are read once.

    Args:
      state: the buffer that the batch was drawn from, not yet changed. Of another the result is finite, and means nothing.
      batch: from `sample`, of any setting of `init`'s `relabel`.
      key: one key; draws the goals; used up.
      strategy: where hindsight goals come from, as `init` takes it; static. None: as `init` was told. Where one that looks back
        names a step that is not held any more, the first one held takes its place.
      hindsight_ratio: the share of hindsight goals, float [] in [0, 1]; may be traced. None: k / (k + 1). One out of range is
        clipped, and named under checkify.

    Returns:
      The batch; `goal`, `reward`, `terminated`, `is_hindsight`, `last` and `discount` are those of the new goals.

    Raises:
      ValueError: the strategy is unknown, `key` has an axis, or `hindsight_ratio` is not a single number.
      TypeError: `batch` is no `Sample`, `strategy` neither a name nor a function, or `key` is no key.

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> reward = lambda t, goal: jnp.where(t == goal, 0.0, -1.0)
      >>> buffer = herjax.init(jnp.float32(0), capacity=8, max_episode_length=4, goal_fn=lambda t: t, reward_fn=reward)
      >>> buffer = herjax.add(herjax.add(buffer, jnp.float32(3)), jnp.float32(4))
      >>> buffer = herjax.end_episode(buffer, jnp.float32(5), jax.random.key(0))
      >>> batch = herjax.sample(buffer, jax.random.key(1), 64)
      >>> actor = herjax.relabel(buffer, batch, jax.random.key(2), strategy="final", hindsight_ratio=1.0)
      >>> bool(jnp.all(actor.transition == batch.transition)), set(actor.goal.tolist())
      (True, {4.0})
    """
    chosen = config_of(state).strategy if strategy is None else as_mixture(strategy)
    relabelled: Sample = _relabel(state, batch, key, strategy=chosen, hindsight_ratio=hindsight_ratio)
    return relabelled


@partial(jax.jit, static_argnames=("strategy",))
def _relabel(
    state: BufferState, batch: Sample, key: jax.Array, *, strategy: Mixture, hindsight_ratio: jax.Array | float | None
) -> Sample:
    """`relabel`, compiled."""
    config = config_of(state)
    checks.key(key)
    require_sample(batch)
    state, batch = jax.lax.stop_gradient((state, batch))
    ratio = _share(config, "relabel", hindsight_ratio)
    rows = rows_of(state, batch.indices)
    goals_from = None if hindsight_ratio is None and config.num_goals == 0 else strategy
    is_hindsight, copies = hindsight.relabelled(state, key, visits(state, rows), goals_from, ratio)
    drawn = (is_hindsight, copies, _last(state, rows, copies))
    return batch._replace(**_under_goals(state, batch.transition, *materialized(can_sample(state), drawn)))


def require_sample(batch: Sample) -> None:
    """`TypeError` where it is none."""
    if not isinstance(batch, Sample):
        raise TypeError(f"batch is a {type(batch).__name__}; give the Sample that sample returned.")


def _last(state: BufferState, rows: jax.Array, copies: jax.Array) -> jax.Array | None:
    """The last transitions of the windows that begin in `rows`, int32 [n]: uint32 [n, words]; None if all have one step.

    `copies`, rows of `Copy`, say how long the windows are.
    """
    config = state.config
    if config.num_steps == 1:
        return None
    windows = jax.vmap(lambda copy: config.copy.unpack(copy).window)(copies)
    last = row_of_step(config, rows, jnp.int32(0), jnp.maximum(windows - 1, 0))
    return config.transition.read(state.transitions, last)


def _under_goals(
    state: BufferState, transition: Transition, is_hindsight: jax.Array, copies: jax.Array, last: jax.Array | None
) -> dict[str, Pytree]:
    """The fields of a `Sample` that its goals decide."""
    config = state.config
    copy: Copy = jax.vmap(config.copy.unpack)(copies)
    return {
        "goal": copy.goal,
        "reward": copy.reward,
        "terminated": copy.terminated,
        "is_hindsight": is_hindsight > 0,
        "last": transition if last is None else jax.vmap(config.transition.unpack)(last),
        "discount": _discount(state, copy, jnp.broadcast_to(can_sample(state), is_hindsight.shape)),
    }


def _ratio(config: Config, hindsight_ratio: jax.Array | float | None) -> jax.Array:
    """The chance that a goal drawn at sampling is a hindsight goal: float32 []."""
    if hindsight_ratio is not None and (not config.relabels_when_sampled or config.num_goals == 0):
        raise ValueError(
            f"hindsight_ratio is given, but init had relabel={config.relabel!r} and num_goals={config.num_goals}: sample draws "
            "no goals; give init relabel='sample' and num_goals >= 1, or leave hindsight_ratio out."
        )
    return _share(config, "sample", hindsight_ratio)


def _share(config: Config, caller: str, hindsight_ratio: jax.Array | float | None) -> jax.Array:
    """The share of hindsight goals, in [0, 1]: float32 []."""
    if hindsight_ratio is None:
        return jnp.asarray(config.num_goals / (config.num_goals + 1), jnp.float32)
    ratio = jax.lax.stop_gradient(checks.real("hindsight_ratio", hindsight_ratio, "one number in [0, 1]"))
    return reported(
        jnp.clip(ratio, 0, 1).astype(jnp.float32),
        (ratio >= 0) & (ratio <= 1),
        caller + ": hindsight_ratio must lie in [0, 1], but it is {hindsight_ratio}; it was clipped",
        hindsight_ratio=ratio,
    )


def _discount(state: BufferState, copy: Copy, there: jax.Array) -> jax.Array | None:
    """What the value after each window is worth, float32 [batch_size]; `there`, bool [batch_size], is whether there is one."""
    if state.config.discount is None:
        return None
    worth = there if copy.terminated is None else there & ~copy.terminated
    window = jnp.int32(1) if copy.window is None else copy.window
    # Not an element picked: JAX refuses to pick one of a constant on a mesh with Explicit axes.
    is_length = jnp.reshape(window, (-1, 1)) == np.arange(state.config.longest_window + 1, dtype=np.int32)[None]
    return jnp.where(worth, jnp.sum(jnp.where(is_length, hindsight.powers(state)[None], 0), axis=1), 0)
