"""herjax behind the four functions of a flashbax buffer, for Stoix (https://github.com/EdanToledo/Stoix) and its kin.

`make` takes the place of `flashbax.make_item_buffer`. Its `add` ends the episodes that are done. Its `sample` puts hindsight
goals into the observations, and gives rewards under these goals. The learner stays as it is. Here a DQN in Stoix's manner flips
bits: it must turn ten bits into ten others, one by one. Each flip costs 1, except the one that ends it.

python examples/frameworks/flashbax_like.py  # success of each seed's greedy episodes, with HER and without
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import herjax


class Buffer(NamedTuple):
    """The pure functions of a flashbax buffer."""

    init: Callable[[Any], herjax.BufferState]  # (transition) -> state; one transition, unbatched.
    add: Callable[[herjax.BufferState, Any], herjax.BufferState]  # (state, transitions) -> state
    sample: Callable[[herjax.BufferState, jax.Array], Any]  # (state, key) -> Sample
    can_sample: Callable[[herjax.BufferState], jax.Array]  # (state) -> bool []


class Sample(NamedTuple):
    """What `Buffer.sample` returns."""

    experience: Any  # Transitions, [sample_batch_size, ...].


def make(
    *,
    max_length: int,  # The most transitions held, of all environments together.
    min_length: int,  # How many transitions of finished episodes `can_sample` asks for.
    sample_batch_size: int,
    add_batch_size: int,  # Environments. `add` takes [add_batch_size, ...]: a transition of each, always in the same order.
    add_sequences: bool = False,  # `add` takes [time, add_batch_size, ...] instead: what a scanned rollout returns.
    desired_goal_fn: Callable[[Any], Any],  # (transition) -> goal; the goal in its observations, unbatched.
    with_goal_fn: Callable[[Any, Any], Any],  # (transition, goal) -> transition; with this goal in its observations, unbatched.
    **settings: Any,  # Of `herjax.init`: max_episode_length, goal_fn, reward_fn, terminated_fn, num_goals and so on.
) -> Buffer:
    """Makes a buffer for transitions that are NamedTuples with the fields `reward` and `done`, whatever the others."""

    def init(transition: Any) -> herjax.BufferState:
        sizes = {"capacity": max_length // add_batch_size * add_batch_size, "num_envs": add_batch_size}
        return herjax.init(jax.tree.map(jnp.asarray, transition), relabel="sample", **sizes, **settings)

    def add_step(state: herjax.BufferState, transitions: Any) -> tuple[herjax.BufferState, None]:
        goals, unused_key = jax.vmap(desired_goal_fn)(transitions), jax.random.key(0)  # `sample` draws the hindsight goals.
        return herjax.end_episode(herjax.add(state, transitions), goals, unused_key, done=transitions.done), None

    def add(state: herjax.BufferState, transitions: Any) -> herjax.BufferState:
        return (jax.lax.scan(add_step, state, transitions) if add_sequences else add_step(state, transitions))[0]

    def sample(state: herjax.BufferState, key: jax.Array) -> Sample:
        batch = herjax.sample(state, key, sample_batch_size)
        transitions = jax.vmap(with_goal_fn)(batch.transition, batch.goal)
        done = jnp.zeros_like(transitions.done) if batch.terminated is None else batch.terminated
        return Sample(transitions._replace(reward=batch.reward, done=done))

    return Buffer(init, add, sample, can_sample=lambda state: herjax.size(state) >= max(min_length, 1))


BITS, ENVS, ROLLOUT, EPOCHS, UPDATES, SEEDS, EPSILON, DISCOUNT, LIMIT = 10, 8, 2, 4, 2000, 4, 0.2, 0.95, 20
NETWORK = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(BITS)])
OPTIMIZER = optax.adam(1e-3)
TASK = {  # Defined once: herjax compares functions by identity.
    "goal_fn": lambda t: t.next_obs[:BITS],
    "reward_fn": lambda t, goal: jnp.all(t.next_obs[:BITS] == goal) - 1.0,
    "terminated_fn": lambda t, goal: jnp.all(t.next_obs[:BITS] == goal),
    "desired_goal_fn": lambda t: t.obs[BITS:],
    "with_goal_fn": lambda t, goal: t._replace(obs=t.obs.at[BITS:].set(goal), next_obs=t.next_obs.at[BITS:].set(goal)),
}


class Transition(NamedTuple):
    """One step."""

    obs: jax.Array  # float32 [2 * BITS]; bits and goal.
    action: jax.Array  # int32 []; the bit to flip.
    reward: jax.Array  # float32 []
    done: jax.Array  # bool []; terminated or truncated where added, terminated where sampled.
    next_obs: jax.Array  # float32 [2 * BITS]; before any reset.


def play(params: Any, epsilon: float, env: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[Any, Transition]:
    """Takes an epsilon-greedy step; returns observation and time after it, and the transition. Resets where an episode ends."""
    (obs, time), (key_explore, key_action, key_reset) = env, jax.random.split(key, 3)
    greedy, other = jnp.argmax(NETWORK.apply(params, obs)), jax.random.randint(key_action, (), 0, BITS)
    action = jnp.where(jax.random.bernoulli(key_explore, epsilon), other, greedy)
    next_obs, time = obs.at[action].set(1 - obs[action]), time + 1
    solved = jnp.all(next_obs[:BITS] == obs[BITS:])
    done = solved | (time >= LIMIT)
    env = jnp.where(done, jax.random.bernoulli(key_reset, shape=obs.shape), next_obs), jnp.where(done, 0, time)
    return env, Transition(obs, action, solved - 1.0, done, next_obs)


def roll_out(params: Any, epsilon: float, env: Any, key: jax.Array, length: int) -> tuple[Any, Transition]:
    """Takes `length` steps in all environments; returns these after it, and transitions [length, environments, ...]."""
    return jax.lax.scan(jax.vmap(partial(play, params, epsilon)), env, jax.random.split(key, (length, len(env[0]))))


def train(num_goals: int, key: jax.Array) -> jax.Array:
    """A run; then the share of 500 greedy episodes that are solved, float32 []."""
    sizes = {"max_length": 50_000, "min_length": 64, "sample_batch_size": 64, "add_batch_size": ENVS}
    buffer = make(**sizes, **TASK, add_sequences=True, max_episode_length=LIMIT, num_goals=num_goals)
    key_params, key_env, key_start, key_updates, key_test = jax.random.split(key, 5)
    bits = jax.random.bernoulli(key_env, shape=(500, 2 * BITS)).astype(jnp.float32)
    params, times = NETWORK.init(key_params, bits[0]), jnp.zeros(500, jnp.int32)
    env, transitions = roll_out(params, 1.0, (bits[:ENVS], times[:ENVS]), key_start, LIMIT)
    state = buffer.add(buffer.init(jax.tree.map(lambda leaf: leaf[0, 0], transitions)), transitions)

    def loss(params: Any, target_params: Any, batch: Transition) -> jax.Array:
        targets = batch.reward + DISCOUNT * (1 - batch.done) * jnp.max(NETWORK.apply(target_params, batch.next_obs), axis=1)
        values = jnp.sum(NETWORK.apply(params, batch.obs) * jax.nn.one_hot(batch.action, BITS), axis=1)
        return jnp.mean(optax.huber_loss(values, targets))

    def update(loop: tuple[Any, ...], key: jax.Array) -> tuple[tuple[Any, ...], None]:
        (params, target_params, opt_state, state, env), (key_act, key_sample) = loop, jax.random.split(key)
        env, transitions = roll_out(params, EPSILON, env, key_act, ROLLOUT)
        state = buffer.add(state, transitions)
        for key_batch in jax.random.split(key_sample, EPOCHS):
            gradients = jax.grad(loss)(params, target_params, buffer.sample(state, key_batch).experience)
            updates, opt_state = OPTIMIZER.update(gradients, opt_state)
            params = optax.apply_updates(params, updates)
            target_params = optax.incremental_update(params, target_params, 0.03)
        return (params, target_params, opt_state, state, env), None

    loop = params, params, OPTIMIZER.init(params), state, env
    (params, *_), _ = jax.lax.scan(update, loop, jax.random.split(key_updates, UPDATES))
    _, transitions = roll_out(params, 0.0, (bits, times), key_test, LIMIT)
    return jnp.mean(jnp.any(transitions.reward == 0, axis=0))  # A failed episode takes all steps: no second one can succeed.


if __name__ == "__main__":
    for num_goals in (4, 0):
        success = jax.jit(jax.vmap(partial(train, num_goals)))(jax.random.split(jax.random.key(0), SEEDS))
        print(f"num_goals={num_goals}:", *(f"{rate:.2f}" for rate in success))
