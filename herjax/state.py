"""The state of a buffer, where its rows lie, and how an empty one is made.

Each environment has a ring of `rows_per_env` rows, and these rings lie one after another. A ring holds, oldest first and going
round its end to its start:

    [tail, head)               finished transitions, `held` of them; tail = head - held
    [head, head + pending)     the running episode
    the rest                   nothing

The running episode makes room for itself as it grows, so that a step's cost depends on no capacity, but for the depth of the
priorities' tree. Usually it takes the row of the oldest transition. Where goals are drawn when a transition is sampled, by a
strategy that looks back into its episode, it takes the room of the whole oldest episode (`Config.evicts_episodes`).

A row holds one transition, and either its copies, each with a goal, a reward and a priority: copy 0 has the goal that the
episode pursued, the others have hindsight goals, and copy `c` of row `r` has the index `r * num_copies + c`. Or, with
`relabel="sample"`, it holds what it takes to draw and recompute them, and its index is the row.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from herjax import sum_tree
from herjax.batching import locate
from herjax.config import INT32_MAX, Config, make_config
from herjax.relabel import GoalFn, RewardFn, StrategyFn, TerminatedFn, Transition
from herjax.rows import Rows


class Slots(NamedTuple):
    """The episodes, which take the slots of their environment in turn. n is `config.envs`."""

    episodes: Rows  # [n * config.slots_per_env, words]; of `Episode`.
    running: jax.Array  # int32 [n]; the slots of the running episodes.


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "transitions",
        "copies",
        "slots",
        "tree",
        "max_priority",
        "head",
        "held",
        "pending",
        "num_dropped",
        "num_rejected",
    ],
    meta_fields=["config"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class BufferState:
    """The state of one buffer: a pytree, made by `init` and by the functions that take one.

    R is `config.num_rows`, K is `config.num_copies`, n is `config.envs`. Only `num_dropped` and `num_rejected` are meant to be
    read by users.
    """

    transitions: Rows  # [R, words]; of `Stored`.
    copies: Rows | None  # [R * K, words]; of `Copy`. None with `relabel="sample"`.
    slots: Slots | None  # None with `relabel="episode_end"`.
    tree: sum_tree.SumTree | None  # Priorities of the copies, 0 where nothing finished is held; None: uniform.
    max_priority: jax.Array  # float32 []; the largest accepted priority so far.
    head: jax.Array  # int32 [n]; where in its ring the running episode begins.
    held: jax.Array  # int32 [n]; finished transitions.
    pending: jax.Array  # int32 [n]; transitions of the running episode.
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
      capacity: the most finished transitions held, over all environments. Their copies do not count.
      max_episode_length: the most transitions of one episode that are stored.
      goal_fn: `goal_fn(transition) -> goal`, the goal that the transition achieved, after its action; any pytree.
      reward_fn: `reward_fn(transition, goal) -> []`, the transition's reward had `goal` been desired.
      terminated_fn: `terminated_fn(transition, goal) -> bool []`, whether the transition ends the task under `goal`.
      strategy: "final", "future", "episode" or "random" (arXiv:1707.01495, section 4.5), or a function
        `(key, step, length) -> goal_step` of int32 scalars, such as `herjax.geometric(0.98)`.
      num_goals: hindsight goals per transition, k in the paper. 0: no hindsight. "final" always has one.
      relabel: "episode_end": goals are drawn once, when their episode ends, and kept. "sample": goals are drawn afresh whenever
        a transition is sampled, its own with probability 1 / (num_goals + 1), and no copies are stored.
      priority_exponent: alpha of prioritised replay (arXiv:1511.05952, section 3.3); None: uniform replay.
      priority_epsilon: added to every priority, so that none is zero.
      num_envs: environments that fill the buffer: the arguments of `add` and `end_episode` then have a leading axis of as many.
        None: one environment, unbatched arguments.

    Returns:
      The state of an empty buffer.

    Raises:
      ValueError: an argument is out of range, or a function returns the wrong shape; the message says what to give.
      TypeError: an argument or a function's result is of the wrong type.
    """
    config = make_config(
        transition,
        capacity=capacity,
        max_episode_length=max_episode_length,
        goal_fn=goal_fn,
        reward_fn=reward_fn,
        terminated_fn=terminated_fn,
        strategy=strategy,
        num_goals=num_goals,
        relabel=relabel,
        priority_exponent=priority_exponent,
        priority_epsilon=priority_epsilon,
        num_envs=num_envs,
    )
    return empty(config)


def empty(config: Config) -> BufferState:
    """An empty buffer of that configuration."""
    num_indices = config.num_rows * config.num_copies
    per_env = partial(jnp.zeros, config.envs, jnp.int32)
    return BufferState(
        transitions=config.stored.zeros(config.num_rows),
        copies=None if config.relabels_when_sampled else config.copy.zeros(num_indices),
        slots=_free_slots(config) if config.relabels_when_sampled else None,
        tree=None if config.priority_exponent is None else sum_tree.init(num_indices),
        max_priority=jnp.float32(1),
        head=per_env(),  # Arrays of their own, so that the state can be donated.
        held=per_env(),
        pending=per_env(),
        num_dropped=jnp.int32(0),
        num_rejected=jnp.int32(0),
        config=config,
    )


def _free_slots(config: Config) -> Slots:
    num_slots = config.envs * config.slots_per_env
    return Slots(config.episode.zeros(num_slots), jnp.arange(0, num_slots, config.slots_per_env, jnp.int32))


@jax.jit
def can_sample(state: BufferState) -> jax.Array:
    """Whether an episode has finished, so that `sample` has something to draw: bool []."""
    held: jax.Array = size(state) > 0
    return held


@jax.jit
def size(state: BufferState) -> jax.Array:
    """Finished transitions held, copies not counted: int32 []."""
    return jnp.sum(state.held, dtype=jnp.int32)


def around(config: Config, place: jax.Array) -> jax.Array:
    """A place in a ring that may lie past either end, by less than its length: int32 of `place`'s shape."""
    place = jnp.where(place < 0, place + config.rows_per_env, place)
    return jnp.where(place >= config.rows_per_env, place - config.rows_per_env, place)


def row_at(config: Config, env: jax.Array, place: jax.Array) -> jax.Array:
    """The row at a place in an environment's ring, as by `around`: int32."""
    return env * config.rows_per_env + around(config, place)


def tail(state: BufferState) -> jax.Array:
    """Where in its ring each environment's oldest transition lies: int32 [n]."""
    return around(state.config, state.head - state.held)


def held_row(state: BufferState, number: jax.Array) -> jax.Array:
    """The row of each of the finished transitions, by a number in [0, size): int32 of `number`'s shape."""
    ends = jnp.cumsum(state.held)
    env = locate(ends, number)
    back = ends[env] - number  # 1 for the youngest.
    return row_at(state.config, env, state.head[env] - back)


def is_held(state: BufferState, row: jax.Array) -> jax.Array:
    """Whether a row, any int32, holds a finished transition; bool of `row`'s shape."""
    inside = (row >= 0) & (row < state.config.num_rows)
    env, place = env_and_place(state.config, jnp.where(inside, row, 0))
    return inside & (age(state, env, place) <= state.held[env])


def age(state: BufferState, env: jax.Array, place: jax.Array) -> jax.Array:
    """How far a place in an environment's ring lies behind its head: int32, 1 for the youngest finished transition."""
    return 1 + around(state.config, state.head[env] - 1 - place)


def env_and_place(config: Config, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The environment whose row it is, and its place in the ring: int32 of `row`'s shape each."""
    if config.envs == 1:
        return jnp.zeros_like(row), row
    env = jax.lax.div(row, jnp.int32(config.rows_per_env))
    return env, row - env * config.rows_per_env


def count(counter: jax.Array, increment: jax.Array) -> jax.Array:
    """Adds to an int32 counter, which stays at its largest value rather than turn negative."""
    return counter + jnp.minimum(increment.astype(jnp.int32), INT32_MAX - counter)
