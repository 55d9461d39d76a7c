"""What decides a buffer's shapes and behaviour, and the mistakes that can be made in saying it."""

import dataclasses
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax.relabel import RANDOM, STRATEGIES, Goal, GoalFn, Quantile, RewardFn, StrategyFn, TerminatedFn, Transition
from herjax.rows import Layout, Pytree

INT32_MAX = 2**31 - 1


class Copy(NamedTuple):
    """What a copy adds to its transition."""

    goal: Goal
    reward: jax.Array  # []
    terminated: jax.Array | None  # bool []


class Stored(NamedTuple):
    """What a row holds beside its copies."""

    transition: Transition
    slot: jax.Array | None  # int32 []; that of the transition's episode, with `relabel="sample"`.


class Episode(NamedTuple):
    """What a slot holds."""

    goal: Goal  # The goal that was pursued.
    end: jax.Array  # int32 []; where in its ring the episode ends, and the next one begins.


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides shapes and behaviour; static."""

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
    transition: Layout
    goal: Layout
    stored: Layout
    copy: Layout
    episode: Layout

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
    def evicts_episodes(self) -> bool:
        """Whether an episode must be whole for a goal of it to be drawn, so that only whole ones make room."""
        backward = callable(self.strategy) and not (isinstance(self.strategy, Quantile) and self.strategy.looks_ahead)
        return self.relabels_when_sampled and self.num_goals > 0 and backward

    @property
    def capacity_per_env(self) -> int:
        """The most finished transitions of one environment."""
        return self.capacity // self.envs

    @property
    def rows_per_env(self) -> int:
        """Rows of one environment's ring; an episode that must stay whole needs some beyond the capacity."""
        return self.capacity_per_env + (self.max_episode_length if self.evicts_episodes else 0)

    @property
    def slots_per_env(self) -> int:
        """Enough for an episode a transition, and for that before the oldest, which says where the oldest begins."""
        return self.capacity_per_env + 1

    @property
    def num_rows(self) -> int:
        """Rows of all environments."""
        return self.envs * self.rows_per_env


def make_config(
    transition: Transition,
    *,
    capacity: int,
    max_episode_length: int,
    goal_fn: GoalFn,
    reward_fn: RewardFn,
    terminated_fn: TerminatedFn | None,
    strategy: str | StrategyFn,
    num_goals: int,
    relabel: str,
    priority_exponent: float | None,
    priority_epsilon: float,
    num_envs: int | None,
) -> Config:
    """The configuration that `herjax.init` is asked for; raises as it does."""
    if relabel not in ("episode_end", "sample"):
        raise ValueError(f"relabel is {relabel!r}; give 'episode_end' or 'sample'.")
    check_whole("max_episode_length", max_episode_length, 1)
    check_whole("num_goals", num_goals, 0)
    _check_capacity(capacity, max_episode_length, num_envs)
    if priority_exponent is not None:
        _check_number("priority_exponent", priority_exponent)
    _check_number("priority_epsilon", priority_epsilon)

    config = Config(
        capacity=capacity,
        max_episode_length=max_episode_length,
        goal_fn=goal_fn,
        reward_fn=reward_fn,
        terminated_fn=terminated_fn,
        strategy=_strategy(strategy),
        num_goals=min(num_goals, 1) if strategy == "final" else num_goals,
        relabel=relabel,
        priority_exponent=priority_exponent,
        priority_epsilon=priority_epsilon,
        num_envs=num_envs,
        **_layouts(transition, goal_fn, reward_fn, terminated_fn, relabel == "sample"),
    )
    # Places are added to before they are taken around the ring, by an episode's steps at most.
    last_index = config.envs * (config.rows_per_env + max_episode_length) * config.num_copies
    if last_index > INT32_MAX:
        raise ValueError(
            f"capacity {capacity} with num_goals {num_goals} takes indices up to {last_index}, more than an int32 can name; "
            "give a smaller capacity or num_goals."
        )
    return config


def _layouts(
    transition: Transition, goal_fn: GoalFn, reward_fn: RewardFn, terminated_fn: TerminatedFn | None, has_slots: bool
) -> dict[str, Layout]:
    """How everything is stored, by the names in `Config`."""
    transition_layout = Layout.of("transition", transition)
    if not transition_layout.leaves:
        raise ValueError(f"transition is {transition!r}, which holds no array; give a pytree with at least one leaf.")
    example = transition_layout.struct()
    goal_layout = Layout.of("goal", jax.eval_shape(goal_fn, example))
    if not any(leaf.words for leaf in goal_layout.leaves):
        raise ValueError("goal_fn returns no element; return the goal that the transition achieved.")
    reward = jax.eval_shape(reward_fn, example, goal_layout.struct())
    _check_scalar("reward_fn", reward)
    terminated = None
    if terminated_fn is not None:
        terminated = jax.eval_shape(terminated_fn, example, goal_layout.struct())
        _check_scalar("terminated_fn", terminated)
        if terminated.dtype != jnp.bool_:
            raise TypeError(f"terminated_fn returns dtype {terminated.dtype}; return a bool.")
    number: Pytree = jax.ShapeDtypeStruct((), jnp.int32)
    return {
        "transition": transition_layout,
        "goal": goal_layout,
        "stored": Layout.of("stored", Stored(example, number if has_slots else None)),
        "copy": Layout.of("copy", Copy(goal_layout.struct(), reward, terminated)),
        "episode": Layout.of("episode", Episode(goal_layout.struct(), number)),
    }


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
