"""The strategies, and the contract's distribution of each: how likely each step of an episode is to give the goal of a step."""

from collections.abc import Callable

import jax
import numpy as np

import herjax
from oracle import Distribution

FALSE_ALARM_RATE = 1e-6


def past(key: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
    """A custom strategy: uniform over the steps up to this one."""
    del length
    return jax.random.randint(key, (), 0, step + 1)


def geometric_distribution(discount: float) -> Distribution:
    def distribution(step: int, length: int) -> np.ndarray:
        weights = np.array([float(discount) ** (other - step) if other >= step else 0.0 for other in range(length)])
        return weights / weights.sum()

    return distribution


def uniform(first: int, last: int, length: int) -> np.ndarray:
    """Uniform over the steps first .. last of `length`."""
    return np.array([first <= step <= last for step in range(length)]) / (last - first + 1)


# By name: the strategy, and its distribution. "random" is not among them: its goals come from other episodes too.
WITHIN_EPISODE: dict[str, tuple[str | Callable[..., jax.Array], Distribution]] = {
    "future": ("future", lambda step, length: uniform(step, length - 1, length)),
    "episode": ("episode", lambda step, length: uniform(0, length - 1, length)),  # noqa: ARG005
    "final": ("final", lambda step, length: uniform(length - 1, length - 1, length)),  # noqa: ARG005
    "past": (past, lambda step, length: uniform(0, step, length)),
    "geometric(0.5)": (herjax.geometric(0.5), geometric_distribution(0.5)),
}
STRATEGIES = {**{name: strategy for name, (strategy, _) in WITHIN_EPISODE.items()}, "random": "random"}


def name_of(strategy: str | Callable[..., jax.Array]) -> str:
    """A strategy's name, the same in every process."""
    return getattr(strategy, "__name__", str(strategy))
