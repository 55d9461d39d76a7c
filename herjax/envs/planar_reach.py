"""Reaching on a plane: the planar counterpart of FetchReach (Plappert et al. 2018, arXiv:1802.09464)."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

Observation: TypeAlias = dict[str, jax.Array]
"""The keys of Gymnasium's GoalEnv, all float32: "observation" [...], "achieved_goal" [2] and "desired_goal" [2]."""


@struct.dataclass
class EnvState(environment.EnvState):
    """State of one episode."""

    time: jax.Array  # int32 []; steps taken.
    hand: jax.Array  # float32 [2]; position of the hand's centre.
    goal: jax.Array  # float32 [2]; position.


@struct.dataclass
class EnvParams(environment.EnvParams):
    """Parameters that may vary without recompilation. The unit of length is half the table's side, of time one step."""

    max_steps_in_episode: int = 50
    max_speed: float = 0.1  # length / step; of each component of the hand's velocity.
    hand_radius: float = 0.06  # length
    tolerance: float = 0.05  # length; a goal no farther off is achieved.
    min_goal_distance: float = 0.2  # length; from the hand's start. Above `tolerance`, no goal is achieved at the start.
    max_goal_distance: float = 0.8  # length; up to 1 - hand_radius, every goal can be reached.


class PlanarReach(environment.Environment[EnvState, EnvParams]):
    """Move a disc, the hand, to a point of the table [-1, 1]^2. The reward is -1, and 0 within the tolerance.

    The hand starts at the centre, the goal is drawn around it (distance and direction uniform). An action is the hand's
    velocity in units of `params.max_speed`, walls stop the hand. As in Fetch, no goal terminates: episodes are truncated.
    What is observed is the hand's position, which is also the achieved goal. To draw a scene: `EnvState` has the centres,
    `EnvParams` the radii.
    """

    @property
    def default_params(self) -> EnvParams:
        """Episodes of 50 steps, 0.1 a step at most, on a table of side 2."""
        return EnvParams()

    def compute_reward(self, achieved_goal: jax.Array, desired_goal: jax.Array, params: EnvParams | None = None) -> jax.Array:
        """0 where the goals are at most `params.tolerance` apart, else -1: float32 [...] for goals [..., 2]."""
        tolerance = (params or self.default_params).tolerance
        return sparse_reward(achieved_goal, desired_goal, tolerance)

    def step_env(
        self, key: jax.Array, state: EnvState, action: int | float | jax.Array, params: EnvParams
    ) -> tuple[Observation, EnvState, jax.Array, jax.Array, dict[Any, Any]]:
        """Moves the hand by `params.max_speed * action`, float32 [2]; actions are clipped to [-1, 1]."""
        del key
        extent = 1 - params.hand_radius
        hand = jnp.clip(state.hand + params.max_speed * jnp.clip(action, -1, 1), -extent, extent)
        state = state.replace(time=state.time + 1, hand=hand)
        reward = self.compute_reward(hand, state.goal, params)
        return _observe(state), state, reward, self.is_terminated(state, params), {}

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[Observation, EnvState]:
        """Draws a goal."""
        drawn = jax.random.uniform(key, (2,))
        goal = polar(drawn, params.min_goal_distance, params.max_goal_distance)
        state = EnvState(time=jnp.int32(0), hand=jnp.zeros(2), goal=goal)
        return _observe(state), state

    def is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """False, bool []: the task is to stay at the goal."""
        del state, params
        return jnp.zeros((), bool)

    def get_obs(self, state: EnvState, params: EnvParams | None = None, key: jax.Array | None = None) -> Observation:
        """What the agent sees of a state."""
        del params, key
        return _observe(state)

    @property
    def name(self) -> str:
        """The environment's name."""
        return "PlanarReach-herjax"

    @property
    def num_actions(self) -> int:
        """Two components of a velocity."""
        return 2

    def action_space(self, params: EnvParams | None = None) -> spaces.Box:
        """The hand's velocity in units of `params.max_speed`."""
        del params
        return spaces.Box(-1.0, 1.0, (2,), jnp.float32)

    def observation_space(self, params: EnvParams) -> spaces.Dict:
        """Three positions on the table."""
        del params
        return spaces.Dict({name: table_space() for name in ("observation", "achieved_goal", "desired_goal")})

    def state_space(self, params: EnvParams) -> spaces.Dict:
        """The fields of `EnvState`."""
        time = spaces.Discrete(params.max_steps_in_episode + 1)
        return spaces.Dict({"time": time, "hand": table_space(), "goal": table_space()})


def sparse_reward(achieved_goal: jax.Array, desired_goal: jax.Array, tolerance: float | jax.Array) -> jax.Array:
    """0 where two positions [..., 2] are at most `tolerance` apart, else -1: float32 [...]."""
    achieved: jax.Array = jnp.linalg.norm(achieved_goal - desired_goal, axis=-1) <= tolerance
    return achieved.astype(jnp.float32) - 1


def polar(drawn: jax.Array, low: float | jax.Array, high: float | jax.Array) -> jax.Array:
    """A vector, float32 [2], from two numbers [2] in [0, 1): one for its length, from low to high, and one for its angle."""
    angle = 2 * jnp.pi * drawn[1]
    return (low + (high - low) * drawn[0]) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def table_space() -> spaces.Box:
    """A position on the table."""
    return spaces.Box(-1.0, 1.0, (2,), jnp.float32)


def _observe(state: EnvState) -> Observation:
    return {"observation": state.hand, "achieved_goal": state.hand, "desired_goal": state.goal}
