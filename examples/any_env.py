"""HER for an environment that was not written for it: FourRooms of gymnax, a maze, by a DQN that trains inside one scan.

The agent must get from one cell to another, both drawn by the environment at each reset. HER needs to know three things:
- `goal_fn`, what a transition achieved: the position that it led to, half of the observation. The other half is the goal.
- `reward_fn` and `terminated_fn`, the task's rule for any goal: 0 where it is reached, which ends the episode, else -1.
- The observation before the reset, `info["final_observation"]`: `step` resets by itself, and returns the next episode's first.

python examples/any_env.py  # success of each seed's greedy episodes, with HER and without; random actions: 0.11
"""

from functools import partial
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import herjax

ENV, PARAMS = gymnax.make("FourRooms-misc")
PARAMS = PARAMS.replace(resample_init_pos=True, resample_goal_pos=True, fail_prob=0.0, max_steps_in_episode=30)
NETWORK = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(ENV.num_actions)])
STEPS, SEEDS, EPSILON, DISCOUNT, OPTIMIZER = 20_000, 4, 0.2, 0.95, optax.adam(3e-3)


class Transition(NamedTuple):
    """One step of the environment. The goal is no part of it: a sample brings its own."""

    position: jax.Array  # int32 [2]; row and column.
    action: jax.Array  # int32 []
    next_position: jax.Array  # int32 [2]; before any reset.


def values(params: Any, position: jax.Array, goal: jax.Array) -> jax.Array:
    """Q(position, goal, .), float32 [4]. From one-hot rows and columns walls are learned faster than from numbers."""
    return NETWORK.apply(params, jax.nn.one_hot(jnp.concatenate([position, goal]), 13).ravel())


def play(params: Any, epsilon: float, env: tuple[jax.Array, Any], key: jax.Array) -> tuple[Any, tuple[Any, ...]]:
    """Takes an epsilon-greedy step; returns observation and state after it, and (transition, goal, terminated, truncated)."""
    key_explore, key_action, key_env = jax.random.split(key, 3)
    observation, state = env
    position, goal = jnp.split(observation, 2)
    greedy, other = jnp.argmax(values(params, position, goal)), ENV.action_space().sample(key_action)
    action = jnp.where(jax.random.bernoulli(key_explore, epsilon), other, greedy)
    observation, state, _, terminated, truncated, info = ENV.step(key_env, state, action, PARAMS)
    transition = Transition(position, action, info["final_observation"][:2])  # Where it led, even if a reset followed.
    return (observation, state), (transition, goal, terminated, truncated)


def train_step(carry: tuple[Any, ...], key: jax.Array) -> tuple[tuple[Any, ...], None]:
    """Acts once, stores what happened, and learns from a batch."""
    params, target_params, opt_state, buffer, env = carry
    key_play, key_goals, key_sample = jax.random.split(key, 3)
    env, (transition, goal, terminated, truncated) = play(params, EPSILON, env, key_play)
    buffer = herjax.add(buffer, transition)
    buffer = herjax.end_episode(buffer, goal, key_goals, done=terminated | truncated)
    batch = herjax.sample(buffer, key_sample, batch_size=64)

    def loss(params: Any, sample: herjax.Sample) -> jax.Array:
        next_values = values(target_params, sample.transition.next_position, sample.goal)
        target = sample.reward + sample.discount * jnp.max(next_values)
        value = values(params, sample.transition.position, sample.goal)[sample.transition.action]
        return sample.weights * optax.huber_loss(value, target)

    gradients = jax.grad(lambda params: jnp.mean(jax.vmap(partial(loss, params))(batch)))(params)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    return (params, optax.incremental_update(params, target_params, 0.03), opt_state, buffer, env), None


def train(num_goals: int, key: jax.Array) -> jax.Array:
    """A run with `num_goals` hindsight goals; then the share of 500 greedy episodes that reach their goal, float32 []."""
    key_params, key_env, key_steps, key_reset, key_play = jax.random.split(key, 5)
    params = NETWORK.init(key_params, jnp.zeros(4 * 13))
    buffer = herjax.init(
        Transition(jnp.zeros(2, jnp.int32), jnp.int32(0), jnp.zeros(2, jnp.int32)),
        capacity=STEPS,
        max_episode_length=PARAMS.max_steps_in_episode,
        goal_fn=lambda t: t.next_position,
        reward_fn=lambda t, goal: -jnp.any(t.next_position != goal).astype(jnp.float32),
        terminated_fn=lambda t, goal: jnp.all(t.next_position == goal),
        num_goals=num_goals,
        discount=DISCOUNT,
    )
    carry = (params, params, OPTIMIZER.init(params), buffer, ENV.reset(key_env, PARAMS))
    (params, *_), _ = jax.lax.scan(train_step, carry, jax.random.split(key_steps, STEPS))
    env = jax.vmap(ENV.reset, (0, None))(jax.random.split(key_reset, 500), PARAMS)
    keys = jax.random.split(key_play, (PARAMS.max_steps_in_episode, 500))
    _, (_, _, terminated, _) = jax.lax.scan(jax.vmap(partial(play, params, 0.0)), env, keys)
    return jnp.mean(jnp.any(terminated, axis=0))  # An episode that fails takes all the steps: no second one can succeed.


if __name__ == "__main__":
    for num_goals in (4, 0):
        success = jax.jit(jax.vmap(partial(train, num_goals)))(jax.random.split(jax.random.key(0), SEEDS))
        print(f"num_goals={num_goals}:", *(f"{rate:.2f}" for rate in success))
