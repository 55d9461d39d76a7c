"""A buffer's static settings, and the checks on them."""

import dataclasses
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax.relabel import RANDOM, STRATEGIES, Goal, GoalFn, Quantile, RewardFn, StrategyFn, TerminatedFn
from herjax.rows import INT32_MAX, Layout, Pytree


class Copy(NamedTuple):
    """What an index stores with `relabel="episode_end"`: a transition's copy under one goal, without the transition."""

    goal: Goal
    reward: jax.Array  # [], in `reward_fn`'s dtype.
    terminated: jax.Array | None  # bool []


class Visit(NamedTuple):
    """What an index stores with `relabel="sample"`: what it takes to draw a goal and to recompute the reward."""

    goal: Goal  # The goal that the episode pursued.
    step: jax.Array  # int32 []; of the transition in its episode.
    length: jax.Array  # int32 []; transitions of the episode.


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides shapes and behaviour. Static; what `init` documents has the meaning that it has there.

    Raises `ValueError` or `TypeError`, as `init` does.
    """

    transition: Layout
    capacity: int
    max_episode_length: int
    goal_fn: GoalFn
    reward_fn: RewardFn
    terminated_fn: TerminatedFn | None
    strategy: str | StrategyFn
    num_goals: int
    relabel: str
    priority_exponent: float | None
    priority_epsilon: float
    num_envs: int | None
    goal: Layout = dataclasses.field(init=False)
    copy: Layout = dataclasses.field(init=False)  # Of `Copy`.
    stored: Layout = dataclasses.field(init=False)  # Of what an index stores, `Copy` or `Visit`.

    def __post_init__(self) -> None:
        """Checks every setting, and derives the layouts."""
        if self.relabel not in ("episode_end", "sample"):
            raise ValueError(f"relabel is {self.relabel!r}; give 'episode_end' or 'sample'.")
        check_whole("max_episode_length", self.max_episode_length, 1)
        check_whole("num_goals", self.num_goals, 0)
        _check_capacity(self.capacity, self.max_episode_length, self.num_envs)
        if self.priority_exponent is not None:
            _check_number("priority_exponent", self.priority_exponent)
        _check_number("priority_epsilon", self.priority_epsilon)
        if self.strategy == "final":
            object.__setattr__(self, "num_goals", min(self.num_goals, 1))
        object.__setattr__(self, "strategy", _strategy(self.strategy))
        for name, layout in _layouts(self).items():
            object.__setattr__(self, name, layout)
        # An offset is added to before it is wrapped, by an episode's steps at most.
        last_index = self.envs * (self.rows_per_env + self.max_episode_length) * self.num_copies
        if last_index > INT32_MAX:
            raise ValueError(
                f"capacity {self.capacity} with num_goals {self.num_goals} takes indices up to {last_index}, more than an "
                "int32 can name; give a smaller capacity or num_goals."
            )

    @property
    def envs(self) -> int:
        """Environments, 1 where arguments have no axis for them."""
        return 1 if self.num_envs is None else self.num_envs

    @property
    def relabels_when_sampled(self) -> bool:
        """Whether goals are drawn when a transition is sampled, rather than when its episode ends."""
        return self.relabel == "sample"

    @property
    def num_copies(self) -> int:
        """Indices of each row: one for each of its copies, or one where goals are drawn when it is sampled."""
        return 1 if self.relabels_when_sampled else 1 + self.num_goals

    @property
    def capacity_per_env(self) -> int:
        """The most finished transitions of one environment."""
        return self.capacity // self.envs

    @property
    def rows_per_env(self) -> int:
        """Rows of one environment's ring.

        Where a goal that is drawn at sampling may come from an earlier step, there are an episode's rows beyond the capacity:
        they keep the steps of the oldest episode that have made room.
        """
        looks_back = callable(self.strategy) and not (isinstance(self.strategy, Quantile) and self.strategy.looks_ahead)
        spare = self.relabels_when_sampled and self.num_goals > 0 and looks_back
        return self.capacity_per_env + (self.max_episode_length if spare else 0)

    @property
    def num_rows(self) -> int:
        """Rows of all environments."""
        return self.envs * self.rows_per_env


def _layouts(config: Config) -> dict[str, Layout]:
    """The layouts that follow from the transition's and the user's functions, by their names in `Config`."""
    if not config.transition.leaves:
        raise ValueError("transition holds no array; give a pytree with at least one leaf.")
    example = config.transition.struct()
    goal = Layout.of("goal", jax.eval_shape(config.goal_fn, example))
    if not goal.words:
        raise ValueError("goal_fn returns no element; return the goal that the transition achieved.")
    reward = jax.eval_shape(config.reward_fn, example, goal.struct())
    _check_scalar("reward_fn", reward)
    terminated = None
    if config.terminated_fn is not None:
        terminated = jax.eval_shape(config.terminated_fn, example, goal.struct())
        _check_scalar("terminated_fn", terminated)
        if terminated.dtype != jnp.bool_:
            raise TypeError(f"terminated_fn returns dtype {terminated.dtype}; return a bool.")
    copy = Layout.of("copy", Copy(goal.struct(), reward, terminated))
    number: Pytree = jax.ShapeDtypeStruct((), jnp.int32)
    visit = Layout.of("visit", Visit(goal.struct(), number, number))
    return {"goal": goal, "copy": copy, "stored": visit if config.relabels_when_sampled else copy}


def _check_capacity(capacity: int, max_episode_length: int, num_envs: int | None) -> None:
    check_whole("capacity", capacity, 1)
    if num_envs is None:
        envs, share = 1, "capacity"
    else:
        check_whole("num_envs", num_envs, 1)
        envs, share = num_envs, f"capacity over num_envs, which is {num_envs},"
    if capacity % envs:
        raise ValueError(f"capacity is {capacity}, not a multiple of num_envs, which is {envs}; give a multiple of it.")
    if capacity // envs < max_episode_length:
        raise ValueError(
            f"{share} is {capacity // envs}, less than one episode; give a capacity of at least {max_episode_length * envs}: "
            f"max_episode_length is {max_episode_length}" + ("." if num_envs is None else ", for each environment.")
        )


def _strategy(strategy: str | StrategyFn) -> str | StrategyFn:
    """The function behind a strategy's name; "random", which has none, as it is."""
    if isinstance(strategy, str):
        if strategy not in (RANDOM, *STRATEGIES):
            names = ", ".join(map(repr, (*STRATEGIES, RANDOM)))
            raise ValueError(f"strategy is {strategy!r}; give {names}, or a function (key, step, length) -> goal_step.")
        return STRATEGIES.get(strategy, strategy)
    if not callable(strategy):
        raise TypeError(f"strategy is {strategy!r}; give a name or a function (key, step, length) -> goal_step.")
    step = jax.ShapeDtypeStruct((), jnp.int32)
    goal_step = jax.eval_shape(strategy, jax.eval_shape(lambda: jax.random.key(0)), step, step)
    _check_scalar("strategy", goal_step)
    if not jnp.issubdtype(goal_step.dtype, jnp.integer):
        raise TypeError(f"strategy returns dtype {goal_step.dtype}; return the goal's step as an int32.")
    return strategy


def _check_scalar(function: str, result: Pytree) -> None:
    if not isinstance(result, jax.ShapeDtypeStruct) or result.shape:
        raise ValueError(f"{function} returns {result}; return one scalar (shape ()) for one transition: herjax vmaps it.")


def _check_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; give a number >= 0.")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}; give a finite number >= 0.")


def check_whole(name: str, value: int, least: int) -> None:
    """Raises `TypeError` where `value` is no int, `ValueError` where it is below `least`; names the argument."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; give an int >= {least}.")
    if value < least:
        raise ValueError(f"{name} is {value}; give an int >= {least}.")
