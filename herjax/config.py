"""A buffer's static settings, and the checks on them."""

import dataclasses
from collections.abc import Hashable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from herjax import checks
from herjax.functions import Function, Goal, GoalFn, RewardFn, TerminatedFn
from herjax.rows import INT32_MAX, Layout, Leaf, Pytree
from herjax.storage import Storage
from herjax.strategies import Mixture, as_mixture


class Copy(NamedTuple):
    """A transition's copy under one goal, without the transition: what an index stores with `relabel="episode_end"`."""

    goal: Goal
    reward: jax.Array  # []; of the window. `reward_fn`'s dtype, or float32 where integers are summed.
    terminated: jax.Array | None  # bool []; of the window's last step.
    window: jax.Array | None  # int32 []; steps of the window. None where all have one step.


TRACED = "traced"
"""Stands for a number that `init` was given as an array. The state has the number, so that it may differ from run to run."""

NUMBERS = {"discount": 1.0, "priority_exponent": None, "priority_epsilon": None}
"""Settings that may be traced, and the most that each can be."""


def settings_and_numbers(**given: jax.Array | float | None) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Checks numbers that `init` was given, by name. Returns what `Config` keeps of each, and the arrays, for the state."""
    checked = {
        name: None if value is None and name != "priority_epsilon" else checks.number_or_array(name, value, NUMBERS[name])
        for name, value in given.items()
    }
    arrays = {name: value for name, value in checked.items() if isinstance(value, jax.Array)}
    return checked | dict.fromkeys(arrays, TRACED), arrays


@dataclasses.dataclass(frozen=True, repr=False)
class Config:
    """Everything that decides shapes and behaviour. It is static. `init` documents its arguments.

    Raises `ValueError` or `TypeError`, as `init` does.
    """

    transition: Layout
    capacity: int
    max_episode_length: int
    goal_fn: GoalFn
    reward_fn: RewardFn
    terminated_fn: TerminatedFn | None
    strategy: Mixture
    num_goals: int
    relabel: str
    num_steps: int
    discount: float | str | None  # Of these three, `TRACED` where the state has the value.
    priority_exponent: float | str | None
    priority_epsilon: float | str
    num_envs: int | None
    next_of: tuple[tuple[Hashable, Hashable], ...] | None  # As `next_pairs` gives them.
    sample_running: bool

    def __post_init__(self) -> None:
        """Checks every setting. Numbers become Python's, and functions compare by identity from here on."""
        if self.relabel not in ("episode_end", "sample"):
            raise ValueError(f"relabel is {self.relabel!r}; give 'episode_end' or 'sample'.")
        if not isinstance(self.sample_running, bool | np.bool_):
            raise TypeError(f"sample_running is {self.sample_running!r}; give True or False.")
        if self.sample_running and not self.relabels_when_sampled:
            raise ValueError(f"sample_running is True, and relabel is {self.relabel!r}; give relabel='sample'.")
        self._set("sample_running", bool(self.sample_running))
        self._set("max_episode_length", checks.whole("max_episode_length", self.max_episode_length, 1))
        self._set("num_goals", checks.whole("num_goals", self.num_goals, 0))
        self._set("num_steps", checks.whole("num_steps", self.num_steps, 1))
        self._set_capacity()
        if self.discount is None and self.num_steps > 1:
            raise ValueError(f"discount is None, and num_steps is {self.num_steps}; give a discount in [0, 1].")
        if self.strategy == as_mixture("final"):
            self._set("num_goals", min(self.num_goals, 1))
        if not self.transition.words:
            raise ValueError("transition holds no element; give a pytree with at least one array that has some.")
        _ = self.copy  # Calls each function once.
        for name in ("goal_fn", "reward_fn", "terminated_fn"):
            function = getattr(self, name)
            if function is not None and not isinstance(function, Function):
                self._set(name, Function(function))
        # Up to an episode's rows are added to a row before it is wrapped. And there is one row more.
        longest = self.rows_per_env + self.max_episode_length + (0 if self.next_of is None else 2)
        last_index = (self.envs * longest + 1) * self.num_copies
        if last_index > INT32_MAX:
            raise ValueError(
                f"capacity {self.capacity} with num_goals {self.num_goals} takes indices up to {last_index}, more than an "
                "int32 can name; give a smaller capacity or num_goals."
            )

    def _set(self, name: str, value: Pytree) -> None:
        object.__setattr__(self, name, value)

    def _set_capacity(self) -> None:
        self._set("capacity", checks.whole("capacity", self.capacity, 1))
        if self.num_envs is not None:
            self._set("num_envs", checks.whole("num_envs", self.num_envs, 1))
        envs, share = self.envs, "capacity" if self.num_envs is None else f"capacity over num_envs, which is {self.envs},"
        if self.capacity % envs:
            raise ValueError(
                f"capacity is {self.capacity}, not a multiple of num_envs, which is {envs}; give a multiple of it."
            )
        least, more = self.max_episode_length, ""
        if self.next_of is not None:
            least, more = least + 1, ", and next_of takes one more"
        if self.capacity_per_env < least:
            raise ValueError(
                f"{share} is {self.capacity_per_env}, less than one episode; give a capacity of at least {least * envs}: "
                f"max_episode_length is {self.max_episode_length}{more}"
                + ("." if self.num_envs is None else ", for each environment.")
            )

    def __repr__(self) -> str:
        """What `init` was given, as messages of JAX show it where two states do not fit together."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return f"Config({', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)})"

    def __getstate__(self) -> dict[str, Any]:
        """Without its hash, which another process would find to be another."""
        return {name: value for name, value in vars(self).items() if name != "_hash"}

    def __hash__(self) -> int:
        """Kept, because JAX asks for it in every call."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in dataclasses.fields(self)))

    @cached_property
    def storage(self) -> Storage:
        """Of a transition."""
        return Storage.of(self.transition, self.next_of or ())

    @cached_property
    def goal(self) -> Layout:
        """Of a goal: what `goal_fn` returns for shapes."""
        goal = Layout.of("goal", checks.result("goal_fn", self.goal_fn, transition=self.transition.struct()))
        if not goal.words:
            raise ValueError("goal_fn returns no element; return the goal that the transition achieved.")
        return goal

    @cached_property
    def copy(self) -> Layout:
        """Of a `Copy`: with what the other functions return for shapes."""
        examples = {"transition": self.transition.struct(), "goal": self.goal.struct()}
        reward = checks.result("reward_fn", self.reward_fn, **examples)
        checks.scalar("reward_fn", reward, jnp.floating, jnp.integer)
        if self.num_steps > 1 and not jnp.issubdtype(reward.dtype, jnp.floating):
            reward = jax.ShapeDtypeStruct((), jnp.float32)
        terminated = None
        if self.terminated_fn is not None:
            terminated = checks.result("terminated_fn", self.terminated_fn, **examples)
            checks.scalar("terminated_fn", terminated, jnp.bool_)
        window: Pytree = jax.ShapeDtypeStruct((), jnp.int32) if self.num_steps > 1 else None
        return Layout.of("copy", Copy(self.goal.struct(), reward, terminated, window))

    @property
    def stored(self) -> Layout:
        """Of what an index stores: `Copy`, or the goal pursued."""
        return self.goal if self.relabels_when_sampled else self.copy

    @cached_property
    def place(self) -> Layout:
        """Of a step and its episode's length: int [2]."""
        narrow = self.max_episode_length < 2**16
        return Layout.of("place", jax.ShapeDtypeStruct((2,), jnp.uint16 if narrow else jnp.int32))

    @property
    def envs(self) -> int:
        """Environments, 1 where arguments have no axis for them."""
        return 1 if self.num_envs is None else self.num_envs

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """All that is stored of a transition and its copies."""
        return self.transition.leaves + self.copy.leaves

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
    def keeps_oldest(self) -> bool:
        """Whether a ring has `max_episode_length` rows more, which keep steps of the oldest episode that have made room.

        A goal that is drawn at sampling may come from such an earlier step.
        """
        return self.relabels_when_sampled and self.num_goals > 0 and self.strategy.looks_back

    @property
    def rows_per_env(self) -> int:
        """Rows of one environment's ring."""
        return self.capacity_per_env + (self.max_episode_length if self.keeps_oldest else 0)

    @property
    def observations_per_env(self) -> int:
        """Rows of one environment's ring of observations: one more, for the first of the next episode."""
        return self.rows_per_env + 1

    @property
    def num_rows(self) -> int:
        """Rows of all environments."""
        return self.envs * self.rows_per_env

    @property
    def num_observations(self) -> int:
        """Rows of observations of all environments."""
        return self.envs * self.observations_per_env

    @property
    def longest_window(self) -> int:
        """The most steps that a transition's window can have."""
        return min(self.num_steps, self.max_episode_length)
