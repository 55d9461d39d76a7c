"""Copies of stored transitions: goals drawn, rewards and terminations recomputed. The caller decides when."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from herjax.config import Config, Copy
from herjax.faults import reported
from herjax.functions import Function, Goal, Transition
from herjax.lanes import materialized
from herjax.randomness import below, uniform, words
from herjax.reading import Visits, transitions
from herjax.rings import held_row, row_of_step
from herjax.state import BufferState, size
from herjax.strategies import RANDOM, Mixture, Quantile

_BELOW_ONE = 1 - 2.0**-24  # The largest float32 below 1.


class Draws(NamedTuple):
    """What is drawn by. Each who uses a word of the first axis passes the rest on."""

    words: jax.Array  # uint32 [words of each draw, ...]; random bits.
    key: jax.Array  # For the user's functions.

    @classmethod
    def of(cls, key: jax.Array, strategy: Mixture | None, others: int, *shape: int) -> "Draws":
        """For so many draws, by a key that is used up: `others` words each, and those of a goal.

        A goal's first word says which source, and then which step; its last one which row, if it may come from any episode.
        """
        sources = [] if strategy is None else strategy.sources
        numbers = others + (sources not in ([], [RANDOM])) + (RANDOM in sources)
        calls = any(isinstance(source, Function) for source in sources)
        key, for_functions = jax.random.split(key) if calls else (key, key)
        return cls(words(key, numbers, *shape), for_functions)


def stored(state: BufferState, key: jax.Array, visits: Visits) -> jax.Array:
    """What the indices of each step store once its episode has ended: rows of `config.stored`, uint32 [n, K, words]."""
    config = state.config
    goals = visits.goal[:, None]
    if config.relabels_when_sampled:
        return goals
    if config.num_goals > 0:
        draws = Draws.of(key, config.strategy, 0, visits.row.size, config.num_goals)
        goals = jnp.concatenate([goals, _goals(state, draws, visits, config.strategy)], axis=1)
    return _copies(state, visits, goals)


def relabelled(
    state: BufferState, draws: Draws, visits: Visits, strategy: Mixture | None, ratio: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws a goal for each step: its own, or a hindsight goal.

    Args:
      state: the buffer.
      draws: whose first words say whether a goal is its own, and the next ones which goal it is else.
      visits: the steps.
      strategy: where hindsight goals come from; None: there are none.
      ratio: float32 [], the chance of a hindsight goal.

    Returns:
      Whether it is a hindsight goal, int32 [n], 1 or 0, and rows of `Copy`, uint32 [n, words].
    """
    goals, is_hindsight = visits.goal, jnp.zeros_like(visits.row)
    if strategy is not None:
        drawn = _goals(state, Draws(draws.words[1:, :, None], draws.key), visits, strategy)[:, 0]
        is_hindsight = (uniform(draws.words[0]) < ratio).astype(jnp.int32)
        goals = jnp.where(is_hindsight[:, None] > 0, drawn, goals)
    return is_hindsight, _copies(state, visits, goals[:, None])[:, 0]


def _goals(state: BufferState, draws: Draws, visits: Visits, strategy: Mixture) -> jax.Array:
    """Draws k hindsight goals for each step, by words [1 or 2, n, k]: rows of `config.goal`, uint32 [n, k, words]."""
    config = state.config
    steps, anywhere = _goal_steps(strategy, draws, visits)
    if strategy.looks_back:
        steps = jnp.maximum(steps, visits.first[:, None])
    sources = row_of_step(config, visits.row[:, None], visits.step[:, None], steps)
    if RANDOM in strategy.sources:
        sources = jnp.where(anywhere, held_row(state, below(draws.words[-1], size(state))), sources)
    sources = materialized(jnp.any(visits.valid), sources)  # As in `drawing._uniformly`.
    achieved = jax.vmap(config.goal_fn)(transitions(state, sources.ravel()))
    return jax.vmap(config.goal.pack)(achieved).reshape(*steps.shape, -1)


def _goal_steps(strategy: Mixture, draws: Draws, visits: Visits) -> tuple[jax.Array, jax.Array]:
    """Draws the steps whose achieved goals become hindsight goals.

    A step that a user's function names outside the episode is clipped into it, and named under checkify. The steps of a visit
    that is not valid mean nothing, but lie in `0 .. length - 1` too.

    Returns:
      The steps, int32 [n, k], and which goals come from any episode instead, bool [n, k].
    """
    step, length = visits.step, visits.length
    number, low = uniform(draws.words[0]), 0.0  # Says which source, and then which step.
    steps, anywhere = jnp.zeros(number.shape, jnp.int32), jnp.zeros(number.shape, jnp.bool_)
    alone = len(strategy.shares) == 1
    for place, (source, share) in enumerate(strategy.shares):
        high = math.inf if place == len(strategy.shares) - 1 else low + share
        chosen = jnp.bool_(True) if alone else (number >= low) & (number < high)
        if isinstance(source, Quantile):
            quantile = number if alone else jnp.clip((number - low) / share, 0, _BELOW_ONE)
            drawn = jax.vmap(jax.vmap(source.place, (0, None, None)))(quantile, step, length)
            drawn = jnp.clip(drawn, 0, length[:, None] - 1)
        elif isinstance(source, Function):
            keys = jax.random.split(jax.random.fold_in(draws.key, place), number.shape)
            drawn = jax.vmap(jax.vmap(source, (0, None, None)))(keys, step, length)
            drawn = _clipped(drawn, length, chosen & visits.valid[:, None])
        else:
            drawn, anywhere = steps, anywhere | chosen
        steps = jnp.where(chosen, drawn, steps)
        low = high
    return steps, anywhere


def _clipped(drawn: jax.Array, length: jax.Array, chosen: jax.Array) -> jax.Array:
    """Goal steps that a user's function drew, int [n, k], clipped into their episodes: int32 [n, k]."""
    wide = jnp.promote_types(drawn.dtype, jnp.int32)
    drawn = drawn.astype(wide)
    inside = jnp.clip(drawn, 0, length[:, None].astype(wide) - 1)
    fault = (inside != drawn) & chosen
    return reported(
        inside.astype(jnp.int32),
        ~jnp.any(fault),
        "strategy: it returned goal_step {goal_step}, outside the episode of length {length}; it was clipped into it",
        goal_step=drawn.ravel()[jnp.argmax(fault)],
        length=length[jnp.argmax(jnp.any(fault, axis=1))],
    )


def powers(state: BufferState) -> jax.Array:
    """`discount^i` for i in `0 .. longest_window`: float32 [longest_window + 1]. Subnormal powers are 0."""
    discount, exponents = state.number("discount"), np.arange(state.config.longest_window + 1)
    if isinstance(discount, jax.Array):
        found = discount ** exponents.astype(np.float32)
    else:
        found = jnp.asarray(np.float64(discount) ** exponents, jnp.float32)
    return jnp.where(found < np.finfo(np.float32).tiny, 0, found)


def _copies(state: BufferState, visits: Visits, goals: jax.Array) -> jax.Array:
    """Each step under each of its goals, uint32 [n, k, words]: rows of `config.copy`, uint32 [n, k, words]."""
    config = state.config
    remaining, rows = visits.length - visits.step, visits.row[:, None]
    if config.longest_window > 1:
        ahead = jnp.minimum(jnp.arange(config.longest_window, dtype=jnp.int32)[None], remaining[:, None] - 1)
        rows = row_of_step(config, rows, jnp.int32(0), ahead)
    windows, weights = transitions(state, rows), powers(state)[:-1]

    def copy(window: Transition, remaining: jax.Array, goal: jax.Array) -> jax.Array:
        return config.copy.pack(_copy(config, weights, window, remaining, config.goal.unpack(goal)))

    return jax.vmap(jax.vmap(copy, (None, None, 0)))(windows, remaining, goals)


def _copy(config: Config, weights: jax.Array, window: Transition, remaining: jax.Array, goal: Goal) -> Copy:
    """A transition under `goal`, with what the steps of its window bring: n-step returns (Sutton 1988).

    Args:
      config: the buffer's settings.
      weights: float32 [longest_window], of the rewards.
      window: the transition and those after it, each leaf [longest_window, ...].
      remaining: int32 [], steps to the episode's end, this one included. What `window` has after that end means nothing.
      goal: the goal desired.
    """
    reward = jax.vmap(config.reward_fn, (0, None))(window, goal)
    terminated = None if config.terminated_fn is None else jax.vmap(config.terminated_fn, (0, None))(window, goal)
    if config.num_steps == 1:
        return Copy(goal, reward[0], None if terminated is None else terminated[0], None)
    ends = jnp.arange(config.longest_window, dtype=jnp.int32) == remaining - 1
    if terminated is not None:
        ends |= terminated
    inside = jnp.cumsum(ends, dtype=jnp.int32) - ends.astype(jnp.int32) == 0  # Nothing has ended before.
    dtype = jnp.float64 if reward.dtype == jnp.float64 else jnp.float32
    # A reward without weight does not count, not even an infinite one.
    total = jnp.sum(jnp.where(inside & (weights > 0), weights.astype(dtype) * reward.astype(dtype), 0))
    terminated = None if terminated is None else jnp.any(terminated & inside)
    return Copy(goal, total, terminated, jnp.sum(inside, dtype=jnp.int32))
