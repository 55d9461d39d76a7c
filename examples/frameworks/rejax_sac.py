"""rejax's SAC (https://github.com/keraJLi/rejax, 0.1.3) with HER: a point in space learns to reach any other.

rejax asks its replay buffer for two methods, `extend` and `sample`. `HindsightReplay` has both, and holds a buffer of herjax.
`HindsightSAC` uses it, and changes nothing else. rejax's TD3 and DQN call the same two methods.

pip install . rejax==0.1.3
python examples/frameworks/rejax_sac.py  # success of each seed's episodes, with HER and without
"""

from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams
from rejax import SAC
from rejax.algos.algorithm import register_init
from rejax.buffers import Minibatch

import herjax

SEEDS, STEPS, LIMIT = 4, 8000, 50


class KeepFinal(Environment):
    """What rejax expects of gymnax, whatever its version: `step` returns five values, and resets by itself.

    The state is (state, final): `final` is the observation that the last step led to, before any reset.
    """

    def reset(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        """The first observation, and the state."""
        observation, state = self.reset_env(key, params)
        return observation, (state, observation)

    def step(self, key: jax.Array, state: tuple[Any, jax.Array], action: jax.Array, params: EnvParams) -> tuple[Any, ...]:
        """Steps; where that ends the episode, observation and state are those of the next one's start."""
        key_step, key_reset = jax.random.split(key)
        final, inner, reward, done, info = self.step_env(key_step, state[0], action, params)
        start = self.reset_env(key_reset, params)
        observation, inner = jax.tree.map(partial(jnp.where, done), start, (final, inner))
        return observation, (inner, final), reward, done, info


class Point(NamedTuple):
    """The state of `Reach`."""

    position: jax.Array  # float32 [3], in [-1, 1].
    goal: jax.Array  # float32 [3], in [-1, 1].
    time: jax.Array  # int32 []


class Reach(KeepFinal):
    """A point moves by up to 0.1 along each axis, until it is near its goal. Observations are float32 [6]: position, goal."""

    default_params = EnvParams(max_steps_in_episode=LIMIT)

    def reset_env(self, key: jax.Array, _: EnvParams) -> tuple[jax.Array, Point]:
        """Draws position and goal."""
        observation = jax.random.uniform(key, (6,), minval=-1.0)
        return observation, Point(*jnp.split(observation, 2), jnp.int32(0))

    def step_env(self, _: jax.Array, state: Point, action: jax.Array, params: EnvParams) -> tuple[Any, ...]:
        """Moves. The reward is 0 at the goal, which ends the episode, else -1."""
        state = Point(jnp.clip(state.position + 0.1 * action, -1.0, 1.0), state.goal, state.time + 1)
        success = is_near(state.position, state.goal)
        done = success | (state.time >= params.max_steps_in_episode)
        return jnp.concatenate([state.position, state.goal]), state, success - 1.0, done, {}

    def action_space(self, _: EnvParams) -> spaces.Box:
        """The move, as a share of the largest."""
        return spaces.Box(-1.0, 1.0, (3,))

    def observation_space(self, _: EnvParams) -> spaces.Box:
        """Position and goal."""
        return spaces.Box(-1.0, 1.0, (6,))


def is_near(position: jax.Array, goal: jax.Array) -> jax.Array:
    """Whether a goal is reached: the test that environment, reward and termination share."""
    return jnp.linalg.norm(position - goal) < 0.1


TASK = {  # Defined once: herjax compares functions by identity.
    "goal_fn": lambda t: t.next_obs[:3],
    "reward_fn": lambda t, goal: is_near(t.next_obs[:3], goal) - 1.0,
    "terminated_fn": lambda t, goal: is_near(t.next_obs[:3], goal),
}


class HindsightReplay(struct.PyTreeNode):
    """What rejax asks of a replay buffer."""

    buffer: herjax.BufferState

    def extend(self, batch: Minibatch) -> Self:
        """Adds a transition of each environment, and ends the episodes that are done. Goals are drawn later, by `sample`."""
        buffer, goal, unused_key = herjax.add(self.buffer, batch), batch.obs[:, 3:], jax.random.key(0)
        return self.replace(buffer=herjax.end_episode(buffer, goal, unused_key, done=batch.done))

    def sample(self, num: int, rng: jax.Array) -> Minibatch:
        """Draws transitions. Each has a goal, pursued or hindsight, in its observations, and the reward under that goal."""
        batch = herjax.sample(self.buffer, rng, num)
        obs, next_obs = (old.at[:, 3:].set(batch.goal) for old in (batch.transition.obs, batch.transition.next_obs))
        return batch.transition._replace(obs=obs, next_obs=next_obs, reward=batch.reward, done=batch.terminated)


class HindsightSAC(SAC):
    """rejax's SAC with hindsight goals, for a `KeepFinal` environment."""

    num_goals: int = struct.field(pytree_node=False, default=4)  # Hindsight goals for each pursued one. 0: no HER.

    @register_init
    def initialize_replay_buffer(self, _: jax.Array) -> dict[str, HindsightReplay]:
        """Makes the empty buffer."""
        obs, action = jnp.zeros(self.obs_space.shape), jnp.zeros(self.action_space.shape)
        buffer = herjax.init(
            Minibatch(obs=obs, action=action, reward=jnp.float32(0), done=jnp.bool(False), next_obs=obs),
            **TASK,
            capacity=self.buffer_size,
            max_episode_length=LIMIT,
            num_envs=self.num_envs,
            num_goals=self.num_goals,
            relabel="sample",
        )
        return {"replay_buffer": HindsightReplay(buffer)}

    def collect_transitions(self, ts: Any) -> tuple[Any, Minibatch]:
        """Collects as SAC does. Then it puts the final observations in place of those after a reset."""
        ts, batch = super().collect_transitions(ts)
        return ts, batch._replace(next_obs=ts.env_state[1])


def train(num_goals: int, key: jax.Array) -> jax.Array:
    """A run; then the share of 128 episodes that reach their goal, float32 []."""
    settings = {"total_timesteps": STEPS, "eval_freq": STEPS, "skip_initial_evaluation": True, "buffer_size": STEPS}
    sac = HindsightSAC.create(env=Reach(), num_goals=num_goals, learning_rate=1e-3, batch_size=128, gamma=0.95, **settings)
    _, (_, returns) = sac.train(key)
    return jnp.mean(returns[-1] > -LIMIT)  # An episode that fails is rewarded -1 at all its steps.


if __name__ == "__main__":
    for num_goals in (4, 0):
        success = jax.jit(jax.vmap(partial(train, num_goals)))(jax.random.split(jax.random.key(0), SEEDS))
        print(f"num_goals={num_goals}:", *(f"{rate:.2f}" for rate in success))
