"""The bit-flipping environment (Andrychowicz et al. 2017, arXiv:1707.01495, section 3.1)."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

Observation: TypeAlias = dict[str, jax.Array]
"""The keys of Gymnasium's GoalEnv, "observation", "achieved_goal" and "desired_goal": float32 [num_bits] of 0 and 1 each."""


@struct.dataclass
class EnvState(environment.EnvState):
    """State of one episode."""

    time: jax.Array  # int32 []; steps taken.
    bits: jax.Array  # float32 [num_bits]
    goal: jax.Array  # float32 [num_bits]


@struct.dataclass
class EnvParams(environment.EnvParams):
    """Parameters that may vary without recompilation."""

    max_steps_in_episode: int = 100


class BitFlip(environment.Environment[EnvState, EnvParams]):
    """Flip one bit a step until all are as in the goal. The reward is -1, and 0 on reaching the goal, which terminates.

    From the HER paper (arXiv:1707.01495, section 3.1). Start and goal are drawn independently and uniformly at each reset.

    Observed, float32 [num_bits] of 0 and 1: the bits, which are also the achieved goal. An action is an int32 [].

    Args:
      num_bits: bits in the state, n in the paper; action i flips bit i.

    Raises:
      ValueError: `num_bits` is less than 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from herjax.envs import BitFlip
      >>> env = BitFlip(num_bits=4)
      >>> seen, state = env.reset(jax.random.key(0), env.default_params)
      >>> *_, info = env.step(jax.random.key(1), state, jnp.int32(2), env.default_params)
      >>> jnp.flatnonzero(info["final_observation"]["observation"] != seen["observation"]).tolist()  # Action 2 flips bit 2.
      [2]
    """

    def __init__(self, num_bits: int = 10) -> None:
        super().__init__()
        if num_bits < 1:
            raise ValueError(f"num_bits is {num_bits}; give an int >= 1.")
        self.num_bits = num_bits

    @property
    def default_params(self) -> EnvParams:
        """Episodes of at most 100 steps."""
        return EnvParams()

    def compute_reward(self, achieved_goal: jax.Array, desired_goal: jax.Array) -> jax.Array:
        """0 where the goal is achieved, else -1: float32 [...] for goals [..., num_bits]."""
        return jnp.all(achieved_goal == desired_goal, axis=-1).astype(jnp.float32) - 1

    def step_env(
        self, key: jax.Array, state: EnvState, action: int | float | jax.Array, params: EnvParams
    ) -> tuple[Observation, EnvState, jax.Array, jax.Array, dict[Any, Any]]:
        """Flips bit `action`, int32 []; `key` is not used."""
        del key, params
        flipped = jnp.where(jnp.arange(self.num_bits) == action, 1 - state.bits, state.bits)
        state = state.replace(time=state.time + 1, bits=flipped)
        reward = self.compute_reward(flipped, state.goal)
        return _observe(state), state, reward, reward == 0, {}

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[Observation, EnvState]:
        """Draws start and goal; `key` is used up."""
        del params
        # Drawn flat: XLA takes a third of the time to compile that.
        drawn = jax.random.bernoulli(key, shape=(2 * self.num_bits,)).astype(jnp.float32)
        bits, goal = drawn.reshape(2, self.num_bits)
        state = EnvState(time=jnp.int32(0), bits=bits, goal=goal)
        return _observe(state), state

    def is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """Whether the goal is reached, bool []."""
        del params
        return jnp.all(state.bits == state.goal)

    def get_obs(self, state: EnvState, params: EnvParams | None = None, key: jax.Array | None = None) -> Observation:
        """What the agent sees of a state."""
        del params, key
        return _observe(state)

    @property
    def name(self) -> str:
        """The environment's name."""
        return "BitFlip-herjax"

    @property
    def num_actions(self) -> int:
        """One action per bit."""
        return self.num_bits

    def action_space(self, params: EnvParams | None = None) -> spaces.Discrete:
        """Which bit to flip."""
        del params
        return spaces.Discrete(self.num_bits)

    def observation_space(self, params: EnvParams) -> spaces.Dict:
        """Three vectors of bits."""
        del params
        return spaces.Dict({name: self._bits() for name in ("observation", "achieved_goal", "desired_goal")})

    def state_space(self, params: EnvParams) -> spaces.Dict:
        """The fields of `EnvState`."""
        time = spaces.Discrete(params.max_steps_in_episode + 1)
        return spaces.Dict({"time": time, "bits": self._bits(), "goal": self._bits()})

    def _bits(self) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.num_bits,), jnp.float32)


def _observe(state: EnvState) -> Observation:
    return {"observation": state.bits, "achieved_goal": state.bits, "desired_goal": state.goal}
