"""HER in PureJaxRL's DQN: the loop of its `dqn.py`, with herjax in place of flashbax. "HER:" marks what HER changes.

The task is FourRooms of gymnax, 0.0.x or 1.x: to get from one cell of a maze to another, both drawn at each reset.

python examples/frameworks/purejaxrl_dqn.py  # success of each seed in its last 500 steps, with HER and without
"""

from functools import partial
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from gymnax.wrappers.purerl import GymnaxWrapper

import herjax

CONFIG: dict[str, Any] = {"SEED": 0, "NUM_SEEDS": 4, "NUM_ENVS": 4, "TOTAL_TIMESTEPS": 20_000, "BUFFER_SIZE": 20_000}
CONFIG |= {"BUFFER_BATCH_SIZE": 128, "LEARNING_STARTS": 1000, "TRAINING_INTERVAL": 4, "TARGET_UPDATE_INTERVAL": 100}
CONFIG |= {"EPSILON_START": 1.0, "EPSILON_FINISH": 0.05, "EPSILON_ANNEAL_TIME": 4000, "LR": 3e-3, "GAMMA": 0.95, "TAU": 1.0}
CONFIG |= {"NUM_GOALS": 4}  # HER: hindsight goals per transition; 0 for none.


class Transition(NamedTuple):
    """One step of one environment, without goal and reward: a sample brings its own."""

    obs: jax.Array  # int32 [2]; row and column.
    action: jax.Array  # int32 []
    next_obs: jax.Array  # HER: int32 [2]; before any reset.


class QNetwork(nn.Module):
    """Values of the actions, float32 [..., 4]."""

    @nn.compact
    def __call__(self, obs: jax.Array, goal: jax.Array) -> jax.Array:
        """Takes int32 [..., 2] each."""
        hidden = jax.nn.one_hot(jnp.concatenate([obs, goal], axis=-1), 13).reshape(*obs.shape[:-1], -1)
        return nn.Sequential([nn.Dense(120), nn.relu, nn.Dense(84), nn.relu, nn.Dense(4)])(hidden)


class CustomTrainState(TrainState):
    """Flax's train state, with what DQN needs besides."""

    target_network_params: Any
    timesteps: jax.Array  # int32 [], of all environments together.


class KeepFinalObservation(GymnaxWrapper):
    """HER: resets by itself, and keeps the observation before the reset in `info["final_observation"]`."""

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple[Any, ...]:
        """Returns observation, state, reward, done and info, as gymnax 0.0.x does."""
        key_step, key_reset = jax.random.split(key)
        final_obs, state, reward, done, info = self._env.step_env(key_step, state, action, params)
        done |= state.time >= params.max_steps_in_episode  # In gymnax 1.x `step_env` does not look at the time.
        obs, state = jax.tree.map(partial(jnp.where, done), self._env.reset(key_reset, params), (final_obs, state))
        return obs, state, reward, done, info | {"final_observation": final_obs}


def init_buffer(config: dict[str, Any], env_params: Any) -> herjax.BufferState:
    """HER: reward and termination are rules for any goal, -1 until it is reached. They replace what the environment says."""
    return herjax.init(
        Transition(jnp.zeros(2, jnp.int32), jnp.int32(0), jnp.zeros(2, jnp.int32)),
        capacity=config["BUFFER_SIZE"],
        max_episode_length=env_params.max_steps_in_episode,
        goal_fn=lambda t: t.next_obs,
        reward_fn=lambda t, goal: -jnp.any(t.next_obs != goal).astype(jnp.float32),
        terminated_fn=lambda t, goal: jnp.all(t.next_obs == goal),
        num_goals=config["NUM_GOALS"],
        discount=config["GAMMA"],
        num_envs=config["NUM_ENVS"],
    )


def eps_greedy_exploration(config: dict[str, Any], rng: jax.Array, q_vals: jax.Array, timesteps: jax.Array) -> jax.Array:
    """Each environment's action, int32 [NUM_ENVS]: the best, or any with a probability that falls over time."""
    rng_a, rng_e = jax.random.split(rng)
    epsilon = optax.linear_schedule(config["EPSILON_START"], config["EPSILON_FINISH"], config["EPSILON_ANNEAL_TIME"])
    explore = jax.random.bernoulli(rng_e, epsilon(timesteps), q_vals.shape[:1])
    return jnp.where(explore, jax.random.randint(rng_a, explore.shape, 0, 4), jnp.argmax(q_vals, axis=1))


def learn_phase(config: dict[str, Any], buffer_state: herjax.BufferState, train_state: Any, rng: jax.Array) -> Any:
    """Learns from one batch; returns the train state."""
    batch = herjax.sample(buffer_state, rng, config["BUFFER_BATCH_SIZE"])
    t, goal = batch.transition, batch.goal  # HER: often another goal than the episode's.
    q_next_target = train_state.apply_fn(train_state.target_network_params, t.next_obs, goal)
    target = batch.reward + batch.discount * jnp.max(q_next_target, axis=1)  # HER: `discount` is 0 where `goal` is reached.

    def loss_fn(params: Any) -> jax.Array:
        q_vals = train_state.apply_fn(params, t.obs, goal)
        return jnp.mean((jnp.take_along_axis(q_vals, t.action[:, None], axis=1)[:, 0] - target) ** 2)

    return train_state.apply_gradients(grads=jax.grad(loss_fn)(train_state.params))


def update_step(config: dict[str, Any], env: Any, env_params: Any, runner_state: tuple[Any, ...], _: None) -> tuple[Any, Any]:
    """PureJaxRL's `_update_step`: each environment takes a step, and at some times the agent learns."""
    train_state, buffer_state, env_state, last_obs, rng = runner_state
    rng, rng_a, rng_s, rng_goals, rng_learn = jax.random.split(rng, 5)
    position, goal = jnp.split(last_obs, 2, axis=1)  # HER: the network and the buffer take them apart.
    q_vals = train_state.apply_fn(train_state.params, position, goal)
    action = eps_greedy_exploration(config, rng_a, q_vals, train_state.timesteps)
    rngs = jax.random.split(rng_s, config["NUM_ENVS"])
    obs, env_state, _, done, info = jax.vmap(env.step, (0, 0, 0, None))(rngs, env_state, action, env_params)
    train_state = train_state.replace(timesteps=train_state.timesteps + config["NUM_ENVS"])
    next_position = info["final_observation"][:, :2]  # HER: where `done`, `obs` is the next episode's.
    buffer_state = herjax.add(buffer_state, Transition(position, action, next_position))
    buffer_state = herjax.end_episode(buffer_state, goal, rng_goals, done=done)  # HER: the goal that was pursued.
    is_learn_time = herjax.can_sample(buffer_state) & (train_state.timesteps > config["LEARNING_STARTS"])
    is_learn_time &= train_state.timesteps % config["TRAINING_INTERVAL"] == 0
    is_learn_time = herjax.in_all_runs(is_learn_time)  # HER: `can_sample` differs by seed; a `cond` must not.
    learn, skip = partial(learn_phase, config, buffer_state), lambda train_state, _: train_state
    train_state = jax.lax.cond(is_learn_time, learn, skip, train_state, rng_learn)
    tau = jnp.where(train_state.timesteps % config["TARGET_UPDATE_INTERVAL"] == 0, config["TAU"], 0.0)
    target_params = optax.incremental_update(train_state.params, train_state.target_network_params, tau)
    runner_state = train_state.replace(target_network_params=target_params), buffer_state, env_state, obs, rng
    return runner_state, {"ended": jnp.sum(done), "reached": jnp.sum(jnp.all(next_position == goal, axis=1))}


def make_train(config: dict[str, Any]) -> Any:
    """Returns a function from a key to `{"runner_state": ..., "metrics": ...}`, metrics of each step."""
    env, env_params = gymnax.make("FourRooms-misc")
    env_params = env_params.replace(resample_init_pos=True, resample_goal_pos=True, fail_prob=0.0, max_steps_in_episode=30)
    env, network, tx = KeepFinalObservation(env), QNetwork(), optax.adam(config["LR"])

    def train(rng: jax.Array) -> dict[str, Any]:
        rng, rng_env, rng_params = jax.random.split(rng, 3)
        obs, env_state = jax.vmap(env.reset, (0, None))(jax.random.split(rng_env, config["NUM_ENVS"]), env_params)
        params = network.init(rng_params, *jnp.split(obs, 2, axis=1))
        of_dqn = {"target_network_params": params, "timesteps": jnp.int32(0)}
        train_state = CustomTrainState.create(apply_fn=network.apply, params=params, tx=tx, **of_dqn)
        runner_state = (train_state, init_buffer(config, env_params), env_state, obs, rng)
        num_updates = config["TOTAL_TIMESTEPS"] // config["NUM_ENVS"]
        runner_state, metrics = jax.lax.scan(partial(update_step, config, env, env_params), runner_state, None, num_updates)
        return {"runner_state": runner_state, "metrics": metrics}

    return train


if __name__ == "__main__":
    for num_goals in (4, 0):
        rngs = jax.random.split(jax.random.PRNGKey(CONFIG["SEED"]), CONFIG["NUM_SEEDS"])
        outs = jax.jit(jax.vmap(make_train(CONFIG | {"NUM_GOALS": num_goals})))(rngs)
        last = {name: counts[:, -500:].sum(axis=1) for name, counts in outs["metrics"].items()}
        print(f"num_goals={num_goals}:", *(f"{rate:.2f}" for rate in last["reached"] / last["ended"]))
