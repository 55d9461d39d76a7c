"""HER for jumanji: Maze, from any cell to any other, by a DQN that trains inside one scan.

jumanji's own wrappers reset the environments. HER needs to know three things:
- What a step achieved: `agent_position` in `timestep.extras["next_obs"]`, which `next_obs_in_extras=True` puts there. Where
  `timestep.last()`, `timestep.observation` is already the next episode's.
- The goal that was pursued: `target_position` in the observation that the agent acted on.
- The task's rule for any goal: -1 until it is reached, which ends the episode. Maze's `timestep.discount` is no such rule: it
  is 0 at the time limit, too.

python examples/frameworks/jumanji_maze.py  # success of each seed's greedy episodes, with HER and without; random actions: 0.11
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jumanji.environments import Maze
from jumanji.environments.routing.maze.generator import RandomGenerator
from jumanji.environments.routing.maze.types import Position, State
from jumanji.wrappers import AutoResetWrapper, VmapWrapper

import herjax

SIZE, TIME_LIMIT, NUM_ENVS = 10, 40, 8
NETWORK = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(128), nn.relu, nn.Dense(4)])
UPDATES, SEEDS, EPSILON, DISCOUNT, OPTIMIZER = 10_000, 4, 0.2, 0.97, optax.adam(2e-3)


class OneMaze(RandomGenerator):
    """One of jumanji's random mazes: its walls stay, agent and target are drawn anew at each reset."""

    def __init__(self) -> None:
        super().__init__(SIZE, SIZE)
        self.first = super().__call__(jax.random.PRNGKey(0))

    def __call__(self, key: jax.Array) -> State:
        """Returns the state that an episode begins with."""
        key, key_cells = jax.random.split(key)
        cells = jax.random.choice(key_cells, SIZE * SIZE, (2,), replace=False, p=~self.first.walls.ravel())
        agent, target = (Position(*jnp.divmod(cell, SIZE)) for cell in cells)
        return self.first.replace(agent_position=agent, target_position=target, key=key)


ENV = VmapWrapper(AutoResetWrapper(Maze(OneMaze(), TIME_LIMIT), next_obs_in_extras=True))


class Transition(NamedTuple):
    """One step of one environment. The target is no part of it: a sample brings its own."""

    position: Position  # int32 [], int32 []; row and column.
    action: jax.Array  # int32 []
    next_position: Position  # Before any reset.


def values(params: Any, position: Position, target: Position) -> jax.Array:
    """Q(position, target, .), float32 [4]."""
    return NETWORK.apply(params, jax.nn.one_hot(jnp.stack([*position, *target]), SIZE).ravel())


def play(params: Any, epsilon: float, env: tuple[State, Any], key: jax.Array) -> tuple[Any, tuple[Any, ...]]:
    """Takes an epsilon-greedy step in each environment; returns the loop's next `env`, and (transition, goal, last)."""
    state, observation = env
    key_explore, key_action = jax.random.split(key)
    position, goal = observation.agent_position, observation.target_position
    greedy = jnp.argmax(jax.vmap(partial(values, params))(position, goal), axis=1)
    explore = jax.random.bernoulli(key_explore, epsilon, greedy.shape)
    action = jnp.where(explore, jax.random.randint(key_action, greedy.shape, 0, 4), greedy)
    state, timestep = ENV.step(state, action)
    transition = Transition(position, action, timestep.extras["next_obs"].agent_position)
    return (state, timestep.observation), (transition, goal, timestep.last())


def train_step(carry: tuple[Any, ...], key: jax.Array) -> tuple[tuple[Any, ...], None]:
    """Acts once in each environment, stores what happened, and learns from a batch."""
    params, target_params, opt_state, buffer, env = carry
    key_play, key_goals, key_sample = jax.random.split(key, 3)
    env, (transition, goal, last) = play(params, EPSILON, env, key_play)
    buffer = herjax.add(buffer, transition)
    buffer = herjax.end_episode(buffer, goal, key_goals, done=last)
    batch = herjax.sample(buffer, key_sample, batch_size=128)

    def loss(params: Any, sample: herjax.Sample) -> jax.Array:
        next_values = values(target_params, sample.transition.next_position, sample.goal)
        target = sample.reward + sample.discount * jnp.max(next_values)
        value = values(params, sample.transition.position, sample.goal)[sample.transition.action]
        return sample.weights * optax.huber_loss(value, target)

    gradients = jax.grad(lambda params: jnp.mean(jax.vmap(partial(loss, params))(batch)))(params)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    return (params, optax.incremental_update(params, target_params, 0.02), opt_state, buffer, env), None


def reset(key: jax.Array, num_envs: int) -> tuple[State, Any]:
    """States and first observations of `num_envs` environments."""
    state, timestep = ENV.reset(jax.random.split(key, num_envs))
    return state, timestep.observation


def train(num_goals: int, key: jax.Array) -> jax.Array:
    """A run with `num_goals` hindsight goals; then the share of 500 greedy episodes that reach their target, float32 []."""
    key_params, key_env, key_steps, key_reset, key_play = jax.random.split(key, 5)
    params = NETWORK.init(key_params, jnp.zeros(4 * SIZE))
    position = Position(jnp.int32(0), jnp.int32(0))
    buffer = herjax.init(
        Transition(position, jnp.int32(0), position),
        capacity=UPDATES * NUM_ENVS,
        max_episode_length=TIME_LIMIT,
        goal_fn=lambda t: t.next_position,
        reward_fn=lambda t, goal: (t.next_position == goal).astype(jnp.float32) - 1,  # jumanji's `==` of positions.
        terminated_fn=lambda t, goal: t.next_position == goal,
        num_goals=num_goals,
        discount=DISCOUNT,
        num_envs=NUM_ENVS,
    )
    carry = (params, params, OPTIMIZER.init(params), buffer, reset(key_env, NUM_ENVS))
    (params, *_), _ = jax.lax.scan(train_step, carry, jax.random.split(key_steps, UPDATES))
    keys = jax.random.split(key_play, TIME_LIMIT)
    _, (transition, goal, _) = jax.lax.scan(partial(play, params, 0.0), reset(key_reset, 500), keys)
    reached = transition.next_position == goal
    return jnp.mean(jnp.any(reached, axis=0))  # An episode that fails takes all the steps: no second one can succeed.


if __name__ == "__main__":
    for num_goals in (4, 0):
        success = jax.jit(jax.vmap(partial(train, num_goals)))(jax.random.split(jax.random.key(0), SEEDS))
        print(f"num_goals={num_goals}:", *(f"{rate:.2f}" for rate in success))
