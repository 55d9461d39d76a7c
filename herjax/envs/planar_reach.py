"""Reaching on a plane: the planar counterpart of FetchReach (Plappert et al. 2018, arXiv:1802.09464)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces

from herjax.envs.table import Observation, Table, TableParams, TableState, commanded, observe, polar, table_space


@struct.dataclass
class EnvParams(TableParams):
    """Parameters that may vary without recompilation."""

    min_goal_distance: float = 0.2  # length; from the hand's start. Above `tolerance`, no goal is achieved at the start.
    max_goal_distance: float = 0.8  # length; up to 1 - hand_radius, every goal can be reached.


class PlanarReach(Table[TableState, EnvParams]):
    """Move a disc, the hand, to a point of the table [-1, 1]^2. The reward is -1, and 0 within the tolerance.

    The hand starts at the centre, the goal is drawn around it (distance and direction uniform). An action is the hand's
    velocity in units of `params.max_speed`, walls stop the hand. As in Fetch, no goal terminates: episodes are truncated.
    To draw a scene: `TableState` has the centres, `EnvParams` the radii and their units.

    Observed, float32 [2]: the hand's position, which is also the achieved goal. An action is float32 [2].

    The planar counterpart of FetchReach (Plappert et al. 2018, arXiv:1802.09464, section 1.1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from herjax.envs import PlanarReach
      >>> env = PlanarReach()
      >>> _, state = env.reset(jax.random.key(0), env.default_params)
      >>> *_, info = env.step(jax.random.key(1), state, jnp.array([1.0, 0.0]), env.default_params)
      >>> [round(x, 3) for x in info["final_observation"]["achieved_goal"].tolist()]  # Moved by max_speed.
      [0.1, 0.0]
    """

    @property
    def default_params(self) -> EnvParams:
        """Episodes of 50 steps, 0.1 a step at most, on a table of side 2."""
        return EnvParams()

    def step_env(
        self, key: jax.Array, state: TableState, action: int | float | jax.Array, params: EnvParams
    ) -> tuple[Observation, TableState, jax.Array, jax.Array, dict[Any, Any]]:
        """Moves the hand by `params.max_speed * action`, float32 [2]; actions are clipped to [-1, 1], `key` is not used."""
        del key
        extent = 1 - params.hand_radius
        hand = jnp.clip(state.hand + commanded(action, params), -extent, extent)
        state = state.replace(time=state.time + 1, hand=hand)
        reward = self.compute_reward(hand, state.goal, params)
        return self.get_obs(state), state, reward, self.is_terminated(state, params), {}

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[Observation, TableState]:
        """Draws a goal; `key` is used up."""
        drawn = jax.random.uniform(key, (2,), jnp.float32)
        goal = polar(drawn, params.min_goal_distance, params.max_goal_distance)
        state = TableState(time=jnp.int32(0), hand=jnp.zeros(2, jnp.float32), goal=goal)
        return self.get_obs(state), state

    def get_obs(self, state: TableState, params: EnvParams | None = None, key: jax.Array | None = None) -> Observation:
        """What the agent sees of a state."""
        del params, key
        return observe(state.hand, state.hand, state.goal)

    @property
    def name(self) -> str:
        """The environment's name."""
        return "PlanarReach-herjax"

    def observation_space(self, params: EnvParams) -> spaces.Dict:
        """Three positions on the table."""
        del params
        return spaces.Dict({name: table_space() for name in ("observation", "achieved_goal", "desired_goal")})

    def state_space(self, params: EnvParams) -> spaces.Dict:
        """The fields of `TableState`."""
        time = spaces.Discrete(params.max_steps_in_episode + 1)
        return spaces.Dict({"time": time, "hand": table_space(), "goal": table_space()})
