"""Strategies: which achieved goal becomes a hindsight goal (Andrychowicz et al. 2017, arXiv:1707.01495, section 3.4).

They know episodes and goals, and nothing of how a buffer stores them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp

from herjax import checks
from herjax.functions import Function

StrategyFn: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(key, step, length) -> goal_step`, each int32 [] but the key: the step whose achieved goal becomes the goal of `step`."""

PlaceFn: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(quantile, step, length) -> goal_step`: the goal's step at a quantile of its distribution, float32 [] in [0, 1)."""

RANDOM = "random"
"""The one source whose goals come from other episodes too, so that the buffer has to draw them."""


@dataclasses.dataclass(frozen=True, repr=False)
class Quantile:
    """A strategy that needs one uniform number a goal. To draw all numbers at once is faster than to use a key for each."""

    name: str
    place: PlaceFn
    looks_ahead: bool = True  # Whether no goal's step comes before the step that it is for.

    def __repr__(self) -> str:
        """Its name."""
        return self.name

    def __call__(self, key: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
        """The goal's step, int32 []; `key` is used up."""
        return self.place(jax.random.uniform(key, (), jnp.float32), jnp.asarray(step), jnp.asarray(length))


Source: TypeAlias = Quantile | Function | str
"""Where a hindsight goal comes from. The one string is `RANDOM`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Sources of hindsight goals, and their shares. Every strategy is one of these; most have one source."""

    shares: tuple[tuple[Source, float], ...]  # > 0; they add up to 1.

    @property
    def sources(self) -> list[Source]:
        """The sources alone."""
        return [source for source, _ in self.shares]

    @property
    def looks_back(self) -> bool:
        """Whether a goal may come from an earlier step of the transition's episode."""
        return any(not source.looks_ahead if isinstance(source, Quantile) else source != RANDOM for source in self.sources)

    def __eq__(self, other: object) -> bool:
        """Whether it has the same sources in the same shares."""
        return isinstance(other, Mixture) and set(self.shares) == set(other.shares)

    def __hash__(self) -> int:
        return hash(frozenset(self.shares))

    def __repr__(self) -> str:
        """As it is written; of one source, its name."""
        if len(self.shares) == 1:
            return str(self.sources[0])
        return f"mixture({{{', '.join(f'{source}: {share:.6g}' for source, share in self.shares)}}})"


def mixture(weights: Mapping[str | StrategyFn, float]) -> Mixture:
    """A strategy that draws a source for each goal, in proportion to the weights.

    OGBench's value goals (arXiv:2410.20092) are `mixture({geometric(0): 0.2, geometric(0.99): 0.5, "random": 0.3})`: the
    achieved goal of the transition itself, of a later step, and of any step held.

    Args:
      weights: each source's weight. A source is a strategy's name or function. Weights are finite and >= 0, and one of them is
        above 0; they need not add up to 1.

    Returns:
      The strategy, for `init`. Two are equal if their sources and shares are. A weight of at most 2^-24 of the largest counts
      as 0.

    Raises:
      ValueError: a weight is out of range, all are 0, a name is unknown, or a function returns no scalar.
      TypeError: `weights` are no dict; a source is a mixture, or neither a name nor a function `(key, step, length)` that
        returns an integer; a weight is no number.

    Example:
      >>> import herjax
      >>> herjax.mixture({"future": 4, "random": 1})
      mixture({future: 0.8, random: 0.2})
      >>> herjax.mixture({"future": 0})
      Traceback (most recent call last):
      ValueError: mixture's weights are {'future': 0}; give at least one source a weight above 0.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(f"mixture is given {weights!r}; give a dict of sources and their weights.")
    weighed = {_source(source): checks.number(f"mixture's weight of {source!r}", weight) for source, weight in weights.items()}
    largest = max(weighed.values(), default=0.0)
    if largest == 0:
        raise ValueError(f"mixture's weights are {weights}; give at least one source a weight above 0.")
    # The number that says which source has 24 bits: it cannot tell smaller shares.
    shares = [(source, weight / largest) for source, weight in weighed.items() if weight / largest > 2**-24]
    total = math.fsum(share for _, share in shares)
    return Mixture(tuple((source, share / total) for source, share in sorted(shares, key=lambda each: str(each[0]))))


def as_mixture(strategy: str | StrategyFn | Mixture) -> Mixture:
    """The strategy that `init` is given, as a `Mixture`. Raises as `mixture` does."""
    return strategy if isinstance(strategy, Mixture) else Mixture(((_source(strategy), 1.0),))


def _source(strategy: str | StrategyFn) -> Source:
    """The source behind a strategy's name or function."""
    if isinstance(strategy, Mixture):
        raise TypeError(f"mixture is given {strategy} as a source; give that mixture's own sources instead.")
    if isinstance(strategy, str):
        if strategy not in (RANDOM, *STRATEGIES):
            names = ", ".join(map(repr, (*STRATEGIES, RANDOM)))
            raise ValueError(
                f"strategy is {strategy!r}; give {names}, a function (key, step, length) -> goal_step, such as "
                "herjax.geometric(0.99), or a herjax.mixture of these."
            )
        return STRATEGIES.get(strategy, strategy)
    if isinstance(strategy, Quantile):
        return strategy
    if not callable(strategy):
        names = ", ".join(map(repr, (*STRATEGIES, RANDOM)))
        raise TypeError(
            f"strategy is {strategy!r}; give a function (key, step, length), {names}, or a herjax.mixture of these."
        )
    step = jax.ShapeDtypeStruct((), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    checks.scalar("strategy", checks.result("strategy", strategy, key=key, step=step, length=step), jnp.integer)
    return Function(strategy)


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

    The truncated geometric distribution of contrastive RL (Eysenbach et al. 2022, arXiv:2206.07568, section 3). Two are
    equal if their discounts are.

    Args:
      discount: in [0, 1]. 0 keeps the transition's own achieved goal, 1 is `"future"`.

    Returns:
      The strategy, `(key, step, length) -> goal_step`: of int32 scalars; the key is used up.

    Raises:
      TypeError: `discount` is no number.
      ValueError: `discount` lies outside [0, 1].

    Example:
      >>> import herjax, jax, jax.numpy as jnp
      >>> strategy = herjax.geometric(0.9)
      >>> keys = jax.random.split(jax.random.key(0), 100)
      >>> steps = jax.vmap(strategy, (0, None, None))(keys, jnp.int32(2), jnp.int32(5))
      >>> sorted(set(steps.tolist())), strategy == herjax.geometric(0.9)  # Goals for step 2 of an episode of 5 steps.
      ([2, 3, 4], True)
    """
    discount = checks.number("geometric's discount", discount, most=1)
    return Quantile(f"geometric({discount})", _Geometric(discount))


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
STRATEGIES: dict[str, Source] = {strategy.name: strategy for strategy in _NAMED}


def _below(bound: jax.Array, quantile: jax.Array) -> jax.Array:
    """Uniform on `0 .. bound - 1` for a uniform quantile; its 23 bits or more leave a bias below bound / 2^23."""
    return jnp.floor(quantile * bound.astype(jnp.float32)).astype(jnp.int32)
