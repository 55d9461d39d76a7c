"""What tasks on a plane have in common: a disc that moves over it, a table or the floor of a maze, and a point as goal."""

from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

Observation: TypeAlias = dict[str, jax.Array]
"""The keys of Gymnasium's GoalEnv, all float32: "observation" [...], "achieved_goal" [2] and "desired_goal" [2]."""


@struct.dataclass
class TableState(environment.EnvState):
    """State of one episode."""

    time: jax.Array  # int32 []; steps taken.
    hand: jax.Array  # float32 [2]; position of the hand's centre.
    goal: jax.Array  # float32 [2]; position.


@struct.dataclass
class TableParams(environment.EnvParams):
    """Parameters that may vary without recompilation. The unit of length is half the table's side, of time one step."""

    max_steps_in_episode: int = 50
    max_speed: float = 0.1  # length / step; of each component of the hand's velocity.
    hand_radius: float = 0.06  # length
    tolerance: float = 0.05  # length; a goal no farther off is achieved.


State = TypeVar("State", bound=TableState)
Params = TypeVar("Params", bound=TableParams)


class Table(environment.Environment[State, Params]):
    """A plane with a disc, the hand, whose velocity is the action. As in Fetch, no goal terminates an episode."""

    def compute_reward(self, achieved_goal: jax.Array, desired_goal: jax.Array, params: Params | None = None) -> jax.Array:
        """0 where the goals are at most `params.tolerance` apart, else -1: float32 [...] for goals [..., 2]."""
        tolerance = (params or self.default_params).tolerance
        achieved: jax.Array = jnp.linalg.norm(achieved_goal - desired_goal, axis=-1) <= tolerance
        return achieved.astype(jnp.float32) - 1

    def is_terminated(self, state: State, params: Params) -> jax.Array:
        """False, bool []: the task is to stay at the goal."""
        del state, params
        return jnp.zeros((), bool)

    @property
    def num_actions(self) -> int:
        """Two components of a velocity."""
        return 2

    def action_space(self, params: Params | None = None) -> spaces.Box:
        """The hand's velocity in units of `params.max_speed`."""
        del params
        return spaces.Box(-1.0, 1.0, (2,), jnp.float32)


def observe(observation: jax.Array, achieved_goal: jax.Array, desired_goal: jax.Array) -> Observation:
    """The keys of Gymnasium's GoalEnv."""
    return {"observation": observation, "achieved_goal": achieved_goal, "desired_goal": desired_goal}


def commanded(action: int | float | jax.Array, params: TableParams) -> jax.Array:
    """What an action commands, clipped to [-1, 1] in units of `params.max_speed`: float32 [2], whatever the action's dtype."""
    return params.max_speed * jnp.clip(jnp.asarray(action, jnp.float32), -1, 1)


def polar(drawn: jax.Array, low: float | jax.Array, high: float | jax.Array) -> jax.Array:
    """A vector, float32 [2], from two numbers [2] in [0, 1): one for its length, from low to high, and one for its angle."""
    angle = 2 * jnp.pi * drawn[1]
    return (low + (high - low) * drawn[0]) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def table_space() -> spaces.Box:
    """A position on the table."""
    return spaces.Box(-1.0, 1.0, (2,), jnp.float32)
