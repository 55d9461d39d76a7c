"""The state of a buffer, where its rows lie, and how an empty one is made.

Episodes lie in rows one after another, each in one piece, the running one at the end:

    [0, head)                      episodes of this lap
    [head, head + pending)         the running episode
    [head, head + L)               the dead zone: never sampled, so that writing here is never a fault
    [head + L, lap_end)            what is left of the lap before

L is `max_episode_length`. Where the next episode might not fit behind `head`, a new lap begins at row 0. Thus an episode is
read and written as one window, a commit that has nothing to commit writes where nobody looks, and no operation's cost depends
on the capacity, but for the depth of the priorities' tree.

A row holds one transition and has `1 + num_goals` copies, each with a goal, a reward and a priority: copy 0 has the goal that
the episode pursued, the others have hindsight goals. Copy `c` of row `r` has index `r * (1 + num_goals) + c`.
"""

import dataclasses
from functools import partial
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax import sum_tree
from herjax.relabel import RANDOM, STRATEGIES, Goal, GoalFn, RewardFn, StrategyFn, TerminatedFn, Transition
from herjax.rows import Layout, Pytree, Rows

INT32_MAX = 2**31 - 1


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
    priority_exponent: float | None
    priority_epsilon: float
    transition: Layout
    goal: Layout
    copy: Layout

    @property
    def num_copies(self) -> int:
        """Copies of each transition: its own goal and the hindsight goals."""
        return 1 + self.num_goals

    @property
    def num_rows(self) -> int:
        """Rows enough for `capacity` beside the dead zone, and for an ended episode to outlive the start of a new lap."""
        return self.max_episode_length + max(self.capacity, 2 * self.max_episode_length - 1)


class Copy(NamedTuple):
    """What a copy adds to its transition."""

    goal: Goal
    reward: jax.Array  # []
    terminated: jax.Array | None  # bool []


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "transitions",
        "copies",
        "tree",
        "max_priority",
        "head",
        "lap_end",
        "pending",
        "num_dropped",
        "num_rejected",
    ],
    meta_fields=["config"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class BufferState:
    """The state of one buffer: a pytree, made by `init` and by the functions that take one.

    R is `config.num_rows`, K is `config.num_copies`. Only `num_dropped` and `num_rejected` are meant to be read by users.
    """

    transitions: Rows  # [R + 1, words]; the last row takes what is dropped.
    copies: Rows  # [R * K, words]
    tree: sum_tree.SumTree | None  # Priorities of the copies; None: uniform.
    max_priority: jax.Array  # float32 []; the largest accepted priority so far.
    head: jax.Array  # int32 []; the first row of the running episode.
    lap_end: jax.Array  # int32 []; the end of the lap before this one; 0 in the first.
    pending: jax.Array  # int32 []; transitions of the running episode.
    num_dropped: jax.Array  # int32 []; transitions past `max_episode_length`, not stored.
    num_rejected: jax.Array  # int32 []; priorities not accepted.
    config: Config


def init(
    transition: Transition,
    *,
    capacity: int,
    max_episode_length: int,
    goal_fn: GoalFn,
    reward_fn: RewardFn,
    terminated_fn: TerminatedFn | None = None,
    strategy: str | StrategyFn = "future",
    num_goals: int = 4,
    relabel: str = "episode_end",
    priority_exponent: float | None = None,
    priority_epsilon: float = 1e-6,
    num_envs: int | None = None,
) -> BufferState:
    """Makes an empty buffer.

    The functions are kept in the state and compare by identity: define them once, outside the training loop.

    Args:
      transition: an example of one transition, unbatched: a pytree of arrays or `jax.ShapeDtypeStruct`s.
      capacity: the most finished transitions held. Their copies do not count.
      max_episode_length: the most transitions of one episode that are stored.
      goal_fn: `goal_fn(transition) -> goal`, the goal that the transition achieved, after its action; any pytree.
      reward_fn: `reward_fn(transition, goal) -> []`, the transition's reward had `goal` been desired.
      terminated_fn: `terminated_fn(transition, goal) -> bool []`, whether the transition ends the task under `goal`.
      strategy: "final", "future", "episode" or "random" (arXiv:1707.01495, section 4.5), or a function
        `(key, step, length) -> goal_step` of int32 scalars, such as `herjax.geometric(0.98)`.
      num_goals: hindsight goals per transition, k in the paper. 0: no hindsight. "final" always has one.
      relabel: "episode_end": goals are drawn once, when their episode ends.
      priority_exponent: alpha of prioritised replay (arXiv:1511.05952, section 3.3); None: uniform replay.
      priority_epsilon: added to every priority, so that none is zero.
      num_envs: None: one environment, unbatched arguments.

    Returns:
      The state of an empty buffer.

    Raises:
      ValueError: an argument is out of range, or a function returns the wrong shape; the message says what to give.
      TypeError: an argument or a function's result is of the wrong type.
      NotImplementedError: `relabel="sample"` or `num_envs` is asked for.
    """
    if relabel == "sample" or num_envs is not None:
        asked = "relabel='sample'" if relabel == "sample" else f"num_envs={num_envs}"
        raise NotImplementedError(f"{asked} is not implemented yet; use relabel='episode_end' and num_envs=None.")
    if relabel != "episode_end":
        raise ValueError(f"relabel is {relabel!r}; give 'episode_end' or 'sample'.")
    check_whole("max_episode_length", max_episode_length, 1)
    check_whole("num_goals", num_goals, 0)
    check_whole("capacity", capacity, 1)
    if capacity < max_episode_length:
        raise ValueError(
            f"capacity is {capacity}, less than one episode; give at least max_episode_length, which is {max_episode_length}."
        )
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
        priority_exponent=priority_exponent,
        priority_epsilon=priority_epsilon,
        **_layouts(transition, goal_fn, reward_fn, terminated_fn),
    )
    # Beyond the rows, room for the window that is cleared behind an episode which ends in the last of them.
    num_leaves = (config.num_rows + max_episode_length) * config.num_copies
    if num_leaves > INT32_MAX:
        raise ValueError(
            f"capacity {capacity} with num_goals {num_goals} makes {num_leaves} copies, more than an int32 index can name; "
            "give a smaller capacity or num_goals."
        )
    return BufferState(
        transitions=config.transition.zeros(config.num_rows + 1),
        copies=config.copy.zeros(config.num_rows * config.num_copies),
        tree=None if priority_exponent is None else sum_tree.init(num_leaves),
        max_priority=jnp.float32(1),
        head=jnp.int32(0),  # Arrays of their own, so that the state can be donated.
        lap_end=jnp.int32(0),
        pending=jnp.int32(0),
        num_dropped=jnp.int32(0),
        num_rejected=jnp.int32(0),
        config=config,
    )


def _layouts(
    transition: Transition, goal_fn: GoalFn, reward_fn: RewardFn, terminated_fn: TerminatedFn | None
) -> dict[str, Layout]:
    """How transitions, goals and copies are stored, by their names in `Config`."""
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
    copy = Layout.of("copy", Copy(goal_layout.struct(), reward, terminated))
    return {"transition": transition_layout, "goal": goal_layout, "copy": copy}


@jax.jit
def can_sample(state: BufferState) -> jax.Array:
    """Whether an episode has finished, so that `sample` has something to draw: bool []."""
    held: jax.Array = size(state) > 0
    return held


@jax.jit
def size(state: BufferState) -> jax.Array:
    """Finished transitions held, copies not counted: int32 []."""
    config = state.config
    return jnp.minimum(config.capacity, jnp.maximum(state.head, state.lap_end - config.max_episode_length))


def row_of(state: BufferState, age: jax.Array) -> jax.Array:
    """The row of the `age`-th youngest finished transition, 1 the youngest; int32 of `age`'s shape."""
    row = state.head - age
    return jnp.where(row < 0, row + state.lap_end, row)


def is_held(state: BufferState, row: jax.Array) -> jax.Array:
    """Whether a row holds a finished transition; bool of `row`'s shape."""
    this_lap = (row >= 0) & (row < state.head)
    last_lap = (row >= state.head + state.config.max_episode_length) & (row < state.lap_end)
    age = state.head - row + jnp.where(last_lap, state.lap_end, 0)
    return (this_lap | last_lap) & (age <= state.config.capacity)


def count(counter: jax.Array, increment: jax.Array) -> jax.Array:
    """Adds to an int32 counter, which stays at its largest value rather than turn negative."""
    return counter + jnp.minimum(increment.astype(jnp.int32), INT32_MAX - counter)


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
