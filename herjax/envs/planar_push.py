"""Pushing on a plane: the planar counterpart of the pushing task of Andrychowicz et al. 2017 (arXiv:1707.01495, section 4.1).

The hand's velocity is given, the puck is a disc of unit mass that slides without turning. A substep of length dt first finds
velocities under which nothing overlaps at its end, then moves. With n the unit vector from the hand to the puck and d the gap
between them, the discs stay apart if their relative velocity along n is at least -d / dt: what is tangential to n only takes
them farther apart. So contact is an impulse along n, without a threshold, and whatever d may be, none is missed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces

from herjax.envs.table import Observation, Table, TableParams, TableState, commanded, observe, polar, table_space

ROUNDING = 1e-6
"""Length; discs that overlap by less count as touching: several units in the last place of a float32 position."""


@struct.dataclass
class EnvState(TableState):
    """State of one episode."""

    puck: jax.Array  # float32 [2]; position of the puck's centre.
    velocity: jax.Array  # float32 [2]; the puck's, length / step.


@struct.dataclass
class EnvParams(TableParams):
    """Parameters that may vary without recompilation. The unit of length is half the table's side, of time one step.

    The puck starts in a ring around the hand, the goal lies in a ring around the puck. Starts are sound where
    hand_radius + puck_radius <= min_puck_distance, and max_puck_distance + max_goal_distance <= 1 - puck_radius.
    """

    puck_radius: float = 0.1  # length
    friction: float = 0.1  # length / step^2; the puck's deceleration on the table: Coulomb's coefficient times gravity.
    contact_friction: float = 0.5  # Coulomb's coefficient between hand and puck.
    min_puck_distance: float = 0.2  # length; of the centres of hand and puck at the start.
    max_puck_distance: float = 0.35  # length
    min_goal_distance: float = 0.25  # length; from the puck's start. Above `tolerance`, no goal is achieved at the start.
    max_goal_distance: float = 0.5  # length


class PlanarPush(Table[EnvState, EnvParams]):
    """Push a puck to a point of the table [-1, 1]^2. The reward is -1, and 0 within the tolerance.

    The hand starts at the centre, the puck is drawn around it and the goal around the puck (distances and directions
    uniform). An action is the hand's velocity in units of `params.max_speed`; walls stop hand and puck, and a puck that
    cannot give way stops the hand. As in Fetch, no goal terminates: episodes are truncated. To draw a scene: `EnvState` has
    the centres, `EnvParams` the radii.

    Observed, float32 [8]: the hand's position [2], the puck's [2], the puck's velocity (length / step) [2], and the puck's
    position less the hand's [2]. The achieved goal, float32 [2], is the puck's position. An action is float32 [2].

    The planar counterpart of the pushing task of the HER paper (arXiv:1707.01495, section 4.1).

    Args:
      num_substeps: substeps a step.

    Raises:
      ValueError: `num_substeps` is less than 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from herjax.envs import PlanarPush
      >>> env = PlanarPush()
      >>> seen, state = env.reset(jax.random.key(0), env.default_params)
      >>> seen["observation"].shape, seen["achieved_goal"].tolist() == state.puck.tolist()
      ((8,), True)
      >>> float(env.compute_reward(jnp.zeros(2), jnp.array([0.04, 0.0])))  # Within the tolerance, 0.05.
      0.0
    """

    def __init__(self, num_substeps: int = 10) -> None:
        super().__init__()
        if num_substeps < 1:
            raise ValueError(f"num_substeps is {num_substeps}; give an int >= 1.")
        self.num_substeps = num_substeps

    @property
    def default_params(self) -> EnvParams:
        """Episodes of 50 steps, 0.1 a step at most, on a table of side 2."""
        return EnvParams()

    def step_env(
        self, key: jax.Array, state: EnvState, action: int | float | jax.Array, params: EnvParams
    ) -> tuple[Observation, EnvState, jax.Array, jax.Array, dict[Any, Any]]:
        """Moves the hand at `params.max_speed * action`, float32 [2], for one step; `key` is not used.

        Actions are clipped to [-1, 1].
        """
        del key
        command = commanded(action, params)
        dt = 1 / self.num_substeps
        state = jax.lax.fori_loop(0, self.num_substeps, lambda _, state: _substep(state, command, dt, params), state)
        state = state.replace(time=state.time + 1)
        reward = self.compute_reward(state.puck, state.goal, params)
        return self.get_obs(state), state, reward, self.is_terminated(state, params), {}

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[Observation, EnvState]:
        """Draws the puck's position and the goal; the puck is at rest. `key` is used up."""
        drawn = jax.random.uniform(key, (4,), jnp.float32)
        puck = polar(drawn[:2], params.min_puck_distance, params.max_puck_distance)
        goal = puck + polar(drawn[2:], params.min_goal_distance, params.max_goal_distance)
        rest = jnp.zeros(2, jnp.float32)
        state = EnvState(time=jnp.int32(0), hand=rest, puck=puck, velocity=rest, goal=goal)
        return self.get_obs(state), state

    def get_obs(self, state: EnvState, params: EnvParams | None = None, key: jax.Array | None = None) -> Observation:
        """What the agent sees of a state."""
        del params, key
        observation = jnp.concatenate([state.hand, state.puck, state.velocity, state.puck - state.hand])
        return observe(observation, state.puck, state.goal)

    @property
    def name(self) -> str:
        """The environment's name."""
        return "PlanarPush-herjax"

    def observation_space(self, params: EnvParams) -> spaces.Dict:
        """The observation, whose components are below 2, and two positions on the table."""
        del params
        observation = spaces.Box(-2.0, 2.0, (8,), jnp.float32)
        return spaces.Dict({"observation": observation, "achieved_goal": table_space(), "desired_goal": table_space()})

    def state_space(self, params: EnvParams) -> spaces.Dict:
        """The fields of `EnvState`."""
        time = spaces.Discrete(params.max_steps_in_episode + 1)
        positions = {name: table_space() for name in ("hand", "puck", "goal")}
        return spaces.Dict({"time": time, "velocity": spaces.Box(-jnp.inf, jnp.inf, (2,), jnp.float32), **positions})


def _substep(state: EnvState, command: jax.Array, dt: float, params: EnvParams) -> EnvState:
    """Moves hand and puck for a time `dt`, the hand at velocity `command` [2] where nothing stops it."""
    offset = state.puck - state.hand
    distance = jnp.linalg.norm(offset)
    normal = offset / distance
    separation = (params.hand_radius + params.puck_radius - distance) / dt  # The least velocity apart; negative over a gap.

    def lack(hand_velocity: jax.Array, velocity: jax.Array) -> jax.Array:
        """How much faster the discs must part."""
        return jnp.maximum(separation - _dot(velocity - hand_velocity, normal), 0)

    def overlap(hand_velocity: jax.Array, velocity: jax.Array) -> jax.Array:
        return lack(hand_velocity, velocity) * dt > ROUNDING

    hand_velocity = _within_walls(command, state.hand, params.hand_radius, dt)
    velocity = _shorten(state.velocity, params.friction * dt)

    impulse = lack(hand_velocity, velocity)
    slip = _tangential(velocity - hand_velocity, normal)
    velocity = velocity + impulse * normal + _shorten(slip, params.contact_friction * impulse) - slip
    velocity = _within_walls(velocity, state.puck, params.puck_radius, dt)

    # A puck caught between hand and wall stops, and one that cannot give way holds back the hand. Where another wall keeps
    # the hand from yielding, both stop.
    caught = overlap(hand_velocity, velocity) & (_dot(velocity, normal) < 0)
    velocity = jnp.where(caught, 0, velocity)
    hand_velocity = hand_velocity - lack(hand_velocity, velocity) * normal
    hand_velocity = _within_walls(hand_velocity, state.hand, params.hand_radius, dt)
    stuck = overlap(hand_velocity, velocity)
    hand_velocity, velocity = jnp.where(stuck, 0, hand_velocity), jnp.where(stuck, 0, velocity)
    return EnvState(
        time=state.time,
        hand=state.hand + hand_velocity * dt,
        puck=state.puck + velocity * dt,
        velocity=velocity,
        goal=state.goal,
    )


def _dot(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.sum(first * second)  # On a GPU, `@` may round to fewer bits.


def _tangential(vector: jax.Array, normal: jax.Array) -> jax.Array:
    return vector - _dot(vector, normal) * normal


def _within_walls(velocity: jax.Array, position: jax.Array, radius: float | jax.Array, dt: float) -> jax.Array:
    """The velocity [2], cut so that a disc of this radius reaches the walls in `dt` but does not pass them."""
    extent = 1 - radius
    return jnp.clip(velocity, (-extent - position) / dt, (extent - position) / dt)


def _shorten(vector: jax.Array, length: float | jax.Array) -> jax.Array:
    """A vector [2] made shorter by a length, and zero where it is no longer than that: Coulomb friction on a velocity."""
    norm = jnp.linalg.norm(vector)
    return vector * jnp.where(norm > length, 1 - length / norm, 0)
