"""Hindsight relabelling (Andrychowicz et al. 2017, arXiv:1707.01495, section 3.4): which achieved goal to have wanted.

Knows episodes and goals, and nothing of how a buffer stores them.
"""

import dataclasses
import math
from collections.abc import Callable
from numbers import Real
from typing import TypeAlias

import jax
import jax.numpy as jnp

from herjax.lanes import debug_check
from herjax.rows import Pytree

Transition: TypeAlias = Pytree
Goal: TypeAlias = Pytree

GoalFn: TypeAlias = Callable[[Transition], Goal]
RewardFn: TypeAlias = Callable[[Transition, Goal], jax.Array]
TerminatedFn: TypeAlias = Callable[[Transition, Goal], jax.Array]

StrategyFn: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(key, step, length) -> goal_step`, each int32 [] but the key: the step whose achieved goal becomes the goal of `step`."""

RANDOM = "random"
"""The one strategy whose goals come from other episodes too, so that the buffer has to draw them."""


PlaceFn: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(quantile, step, length) -> goal_step`: the goal's step at a quantile of its distribution, float32 [] in [0, 1)."""


@dataclasses.dataclass(frozen=True, repr=False)
class Quantile:
    """A strategy that one uniform number decides. All goals' numbers can be drawn at once, faster than from a key for each."""

    name: str
    place: PlaceFn
    looks_ahead: bool = True  # Whether no goal's step comes before the step that it is for.

    def __repr__(self) -> str:
        """Its name."""
        return self.name

    def __call__(self, key: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
        """The goal's step, int32 []; `key` is used up."""
        return self.place(jax.random.uniform(key, (), jnp.float32), step, length)


def _future(quantile: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
    """Uniform over the steps from `step` on."""
    return step + _below(length - step, quantile)


def _episode(quantile: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
    """Uniform over all steps of the episode."""
    del step
    return _below(length, quantile)


def _final(quantile: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
    """The last step."""
    del quantile, step
    return length - 1


def geometric(discount: float) -> StrategyFn:
    """A strategy that prefers near goals: `P(step + j)` proportional to `discount^j`, `j = 0 .. length - 1 - step`.

    The truncated geometric distribution of contrastive RL (Eysenbach et al. 2022, arXiv:2206.07568, section 3). Two of one
    discount are equal.

    Args:
      discount: in [0, 1]. 0 keeps the transition's own achieved goal, 1 is `"future"`.

    Raises:
      TypeError: `discount` is no number.
      ValueError: `discount` lies outside [0, 1].
    """
    if isinstance(discount, bool) or not isinstance(discount, Real):
        raise TypeError(f"discount is {discount!r}; give a Python number in [0, 1].")
    if not 0 <= discount <= 1:
        raise ValueError(f"discount is {discount}; geometric needs one in [0, 1].")
    return Quantile(f"geometric({float(discount)})", _Geometric(float(discount)))


@dataclasses.dataclass(frozen=True)
class _Geometric:
    discount: float

    def __call__(self, quantile: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
        """The inverse of the truncated geometric distribution function."""
        remaining = length - step
        if self.discount == 0:
            return step
        if self.discount == 1:
            return step + _below(remaining, quantile)
        rate = math.log(self.discount)
        mass = -jnp.expm1(rate * remaining.astype(jnp.float32))
        ahead = jnp.floor(jnp.log1p(-quantile * mass) / rate).astype(jnp.int32)
        return step + jnp.clip(ahead, 0, remaining - 1)


_NAMED = (Quantile("future", _future), Quantile("episode", _episode, looks_ahead=False), Quantile("final", _final))
STRATEGIES: dict[str, StrategyFn] = {strategy.name: strategy for strategy in _NAMED}


def goal_steps(
    strategy: StrategyFn, key: jax.Array, step: jax.Array, length: jax.Array, valid: jax.Array, *, num_goals: int
) -> jax.Array:
    """Draws the steps whose achieved goals become hindsight goals.

    One that lies outside the episode is clipped into it, and named under checkify.

    Args:
      strategy: names the step whose goal to take.
      key: used up.
      step: int32 [n], the steps that goals are for.
      length: int32 [n], steps in the episode of each.
      valid: bool [n], whether there is such a step; what is drawn for another means nothing, but lies in `0 .. length - 1` too.
      num_goals: goals drawn per step.

    Returns:
      int32 [n, num_goals].
    """
    shape = (*step.shape, num_goals)
    draw: StrategyFn
    if isinstance(strategy, Quantile):
        # Drawn flat: XLA compiles that faster.
        draw, chances = strategy.place, jax.random.uniform(key, (math.prod(shape),), jnp.float32).reshape(shape)
    else:
        draw, chances = strategy, jax.random.split(key, shape)
    drawn = jax.vmap(jax.vmap(draw, (0, None, None)))(chances, step, length)
    inside = jnp.clip(drawn, 0, length[:, None] - 1)
    if isinstance(strategy, Quantile):
        return inside  # Built-in strategies are always in range, and an unused check would disable JAX's fast dispatch.
    fault = (inside != drawn) & valid[:, None]
    debug_check(
        ~jnp.any(fault),
        "strategy: it returned goal_step {goal_step}, outside the episode of length {length}; it was clipped into it",
        goal_step=drawn.ravel()[jnp.argmax(fault)],
        length=length[jnp.argmax(jnp.any(fault, axis=1))],
    )
    return inside


def _below(bound: jax.Array, quantile: jax.Array) -> jax.Array:
    """Uniform on `0 .. bound - 1` for a uniform quantile; its 23 bits leave a bias below bound / 2^23."""
    return jnp.floor(quantile * bound.astype(jnp.float32)).astype(jnp.int32)
