"""Reacher of brax as one of the planar tasks: the tip of an arm with two joints, which torques move, must come to a point.

`pip install ".[brax]"`; brax says that it is not maintained any more.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from brax import envs
from flax import struct
from gymnax.environments import spaces

from herjax.envs.table import Observation, Table, TableParams, TableState, observe, table_space

REACH = 0.2
"""The farthest goal's distance from the shoulder, in metres: the unit of length here. The arm is 1.05 units long."""


@struct.dataclass
class ReacherState(TableState):
    """State of one episode; the hand is the arm's tip."""

    arm: envs.State  # brax's own.


class Reacher(Table[ReacherState, TableParams]):
    """brax's Reacher with its spring backend. As in the other planar tasks, the reward is -1, and 0 within the tolerance.

    Observed, float32 [8]: cosines and sines of the joints' angles, the tip's velocity in m/s, and its position in units of
    `REACH`. A goal is a position of the tip. An action, float32 [2] in [-1, 1], is the joints' torques.
    """

    def __init__(self) -> None:
        super().__init__()
        # Concrete arrays even when called under jit: `planar.make_env` keeps what it makes.
        with warnings.catch_warnings(), jax.ensure_compile_time_eval():
            warnings.filterwarnings("ignore", "Brax System", UserWarning)  # It is not maintained.
            self.env = envs.get_environment("reacher", backend="spring")

    @property
    def default_params(self) -> TableParams:
        """Episodes of 50 steps, as Gymnasium's; a tolerance of 5 cm, as in JaxGCRL's Reacher. `max_speed` is not used."""
        return TableParams(tolerance=0.05 / REACH)

    def step_env(
        self, key: jax.Array, state: ReacherState, action: int | float | jax.Array, params: TableParams
    ) -> tuple[Observation, ReacherState, jax.Array, jax.Array, dict[Any, Any]]:
        """Moves the arm; actions are clipped to [-1, 1], `key` is not used."""
        del key
        state = located(self.env.step(state.arm, jnp.clip(action, -1, 1)), state.time + 1)
        reward = self.compute_reward(state.hand, state.goal, params)
        return self.get_obs(state), state, reward, self.is_terminated(state, params), {}

    def reset_env(self, key: jax.Array, params: TableParams) -> tuple[Observation, ReacherState]:
        """Draws a goal and where the arm begins; `key` is used up."""
        del params
        state = located(self.env.reset(key), jnp.int32(0))
        return self.get_obs(state), state

    def get_obs(self, state: ReacherState, params: TableParams | None = None, key: jax.Array | None = None) -> Observation:
        """What the agent sees of a state; brax's own observation holds the goal, which is left out."""
        del params, key
        joints, _, velocity, _ = jnp.split(state.arm.obs, (4, 6, 8))
        return observe(jnp.concatenate([joints, velocity, state.hand]), state.hand, state.goal)

    def action_space(self, params: TableParams | None = None) -> spaces.Box:
        """The torques of shoulder and elbow, as shares of the motors' strength."""
        return super().action_space(params)

    @property
    def name(self) -> str:
        """The environment's name."""
        return "Reacher-brax"

    def observation_space(self, params: TableParams) -> spaces.Dict:
        """What is observed, and two positions."""
        del params
        goals = {name: table_space() for name in ("achieved_goal", "desired_goal")}
        return spaces.Dict(goals | {"observation": spaces.Box(-jnp.inf, jnp.inf, (8,), jnp.float32)})


def located(arm: envs.State, time: jax.Array) -> ReacherState:
    """The state, with the positions of tip and goal as brax observes them."""
    _, goal, _, to_tip, _ = jnp.split(arm.obs, (4, 6, 8, 10))
    return ReacherState(time=time, hand=(goal + to_tip) / REACH, goal=goal / REACH, arm=arm)
