"""Bit-flipping solved by a goal-conditioned Double DQN with HER and prioritised replay, all inside one scan.

python examples/bitflip.py                                  # solves 10 bits
python examples/bitflip.py --num-bits 15 --num-goals 0      # no hindsight: does not learn
python examples/bitflip.py --num-steps 3 --strategy future=0.8,random=0.2 --relabel sample --hindsight-ratio 0.9
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import experiment

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import flags
import herjax
import returns
from flags import Count, Share, Weight
from herjax.envs import BitFlip


@dataclasses.dataclass(frozen=True)
class Config(flags.HindsightFlags):
    """Trains a Double DQN with Hindsight Experience Replay on bit-flipping."""

    num_bits: Count = 10  # Bits to flip, and actions to choose from.
    steps: flags.Stretches = 15_000  # Environment steps of each seed, one update each; a multiple of eval-every.
    prioritized: bool = True  # Prioritised or uniform replay.
    priority_exponent: Weight = 0.6  # Alpha of prioritised replay.
    beta: Share = 0.4  # Exponent of the importance weights at first; rises to 1.
    capacity: Count = 200_000  # Transitions held, hindsight copies not counted.
    batch_size: Count = 64  # Transitions in an update.
    hidden: flags.Units = (64, 64)  # Units of the hidden layers.
    learning_rate: Weight = 1e-3  # Of Adam.
    discount: Share = 0.99  # Gamma.
    epsilon: Share = 0.1  # Probability of a random action.
    target_period: Count = 1000  # Steps between copies to the target network.
    max_episode_length: Count = 100  # Steps after which an episode is truncated.
    out: Path = Path("results/bitflip")  # Folder for results.json and success_rate.png.


class Transition(NamedTuple):
    """One step of the environment."""

    observation: jax.Array  # float32 [num_bits]
    action: jax.Array  # int32 []
    next_observation: jax.Array  # float32 [num_bits]; before any reset.


class Agent(TrainState):
    """What learning changes: parameters, the optimiser's state, and the target network's parameters."""

    target_params: optax.Params


class Loop(NamedTuple):
    """The carry of the scan."""

    agent: Agent
    buffer: herjax.BufferState
    env: tuple[dict[str, jax.Array], Any]  # What the environment shows, and its state.


def glorot_uniform(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """The initializer of flax, drawn flat: a matrix of random numbers takes XLA up to four times as long to compile."""
    limit = (6 / sum(shape)) ** 0.5
    return jax.random.uniform(key, (shape[0] * shape[1],), dtype, -limit, limit).reshape(shape)


def make_network(config: Config) -> nn.Sequential:
    """The Q-network: values of all actions for an observation and the goal beside it, all [..., num_bits]."""
    dense = partial(nn.Dense, kernel_init=glorot_uniform)
    hidden = [layer for units in config.hidden for layer in (dense(units), nn.relu)]
    return nn.Sequential([lambda *bits: jnp.concatenate(bits, axis=-1), *hidden, dense(config.num_bits)])


def achieved_goal(transition: Transition) -> jax.Array:
    """The goal that the transition achieved."""
    return transition.next_observation


def reward(transition: Transition, goal: jax.Array) -> jax.Array:
    """0 where the goal is reached, else -1."""
    return terminated(transition, goal).astype(jnp.float32) - 1


def terminated(transition: Transition, goal: jax.Array) -> jax.Array:
    """Reaching the goal ends the episode."""
    return jnp.all(transition.next_observation == goal)


def make_buffer(config: Config, num_envs: int | None = None) -> herjax.BufferState:
    """An empty buffer for bit-flipping, which `num_envs` environments fill, or one without an axis for them."""
    bits = jax.ShapeDtypeStruct((config.num_bits,), jnp.float32)
    return herjax.init(
        Transition(bits, jax.ShapeDtypeStruct((), jnp.int32), bits),
        capacity=config.capacity,
        max_episode_length=config.max_episode_length,
        goal_fn=achieved_goal,
        reward_fn=reward,
        terminated_fn=terminated,
        strategy=flags.parse_strategy(config.strategy),
        num_goals=config.num_goals,
        relabel=config.relabel,
        num_steps=returns.stored_steps(config),
        discount=config.discount,
        priority_exponent=config.priority_exponent if config.prioritized else None,
        num_envs=num_envs,
    )


def make_env(config: Config) -> tuple[BitFlip, Any]:
    """The environment and its parameters."""
    env = BitFlip(config.num_bits)
    return env, env.default_params.replace(max_steps_in_episode=config.max_episode_length)


def start(config: Config, key: jax.Array) -> Loop:
    """The state of a run before its first step."""
    key_params, key_env = jax.random.split(key)
    network, bits = make_network(config), jnp.zeros(config.num_bits)
    params, adam = network.init(key_params, bits, bits), optax.adam(config.learning_rate)
    agent = Agent.create(apply_fn=network.apply, params=params, target_params=params, tx=adam)
    env, env_params = make_env(config)
    return Loop(agent, make_buffer(config), env.reset(key_env, env_params))


def interact(config: Config, agent: Agent, env: Any, keys: jax.Array) -> tuple[Any, Transition, jax.Array, jax.Array]:
    """An epsilon-greedy step, with 2 keys: the environment after it, the transition, the goal pursued, and whether it ended."""
    (now, state), (key_act, key_env), (bit_flip, params) = env, keys, make_env(config)
    explore, choice = jax.random.uniform(key_act, 2)
    greedy = jnp.argmax(agent.apply_fn(agent.params, now["observation"], now["desired_goal"]))
    action = jnp.where(explore < config.epsilon, jnp.floor(choice * config.num_bits).astype(jnp.int32), greedy)
    observation, state, _, terminated, truncated, info = bit_flip.step(key_env, state, action, params)
    transition = Transition(now["observation"], action, info["final_observation"]["observation"])  # Before any reset.
    return (observation, state), transition, now["desired_goal"], terminated | truncated


def next_value(agent: Agent, params: optax.Params, observation: jax.Array, goal: jax.Array) -> jax.Array:
    """The value in Double Q-learning (van Hasselt et al. 2016, arXiv:1509.06461), whose action `params` choose: float32 []."""
    action = jnp.argmax(agent.apply_fn(params, observation, goal))
    return agent.apply_fn(agent.target_params, observation, goal)[action]


def td_error(
    config: Config, agent: Agent, params: optax.Params, sample: herjax.Sample, window: herjax.Steps | None
) -> jax.Array:
    """Double Q-learning's error of one sample, float32 []; `window`: that of `returns.window`."""
    value = agent.apply_fn(params, sample.transition.observation, sample.goal)[sample.transition.action]
    following = partial(next_value, agent, params, goal=sample.goal)
    if window is None:
        target = sample.reward + sample.discount * following(sample.last.next_observation)
    else:
        values, discounts = jax.vmap(following)(window.transition.next_observation), config.discount * ~window.terminated
        target = returns.largest(window.reward, discounts, values, window.mask)
    return jax.lax.stop_gradient(target) - value


def update(
    config: Config, agent: Agent, batch: herjax.Sample, window: herjax.Steps | None = None
) -> tuple[Agent, jax.Array, jax.Array]:
    """One step of Adam; returns the agent, the TD errors [batch_size] and the loss []."""

    def loss_fn(params: optax.Params) -> tuple[jax.Array, jax.Array]:
        errors = jax.vmap(partial(td_error, config, agent, params))(batch, window)
        return jnp.mean(batch.weights * optax.huber_loss(errors)), errors

    (loss, errors), gradients = jax.value_and_grad(loss_fn, has_aux=True)(agent.params)
    agent = agent.apply_gradients(grads=gradients)
    target_params = optax.periodic_update(agent.params, agent.target_params, agent.step, config.target_period)
    return agent.replace(target_params=target_params), errors, loss


def train_step(config: Config, loop: Loop, keys: jax.Array) -> tuple[Loop, jax.Array]:
    """Acts once, stores what happened, and learns from a batch, with 4 keys; returns the loss."""
    env, transition, goal, done = interact(config, loop.agent, loop.env, keys[:2])
    buffer = herjax.add(loop.buffer, transition)
    buffer = herjax.end_episode(buffer, goal, keys[2], done)
    beta, ratio = config.beta + (1 - config.beta) * (loop.agent.step / config.steps), config.hindsight_ratio
    batch = herjax.sample(buffer, keys[3], config.batch_size, beta=beta, hindsight_ratio=ratio)
    agent, errors, loss = update(config, loop.agent, batch, returns.window(config, buffer, batch))
    if config.prioritized:
        buffer = herjax.update_priorities(buffer, batch.indices, jnp.abs(errors))
    return Loop(agent, buffer, env), loss


def evaluate(config: Config, agent: Agent, key: jax.Array) -> jax.Array:
    """The share of greedy episodes that reach their goal, float32 []."""
    env, env_params = make_env(config)
    step_all, (key_reset, key_step) = jax.vmap(env.step_env, (None, 0, 0, None)), jax.random.split(key)  # Steps draw nothing.

    def step(carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
        observation, state, success = carry
        values = agent.apply_fn(agent.params, observation["observation"], observation["desired_goal"])
        observation, state, _, terminated, _ = step_all(key_step, state, jnp.argmax(values, axis=-1), env_params)
        return observation, state, success | terminated

    def unfinished(carry: tuple[Any, Any, jax.Array]) -> jax.Array:
        return ~jnp.all(carry[2] | (carry[1].time >= config.max_episode_length))

    seen = jax.vmap(env.reset_env, (0, None))(jax.random.split(key_reset, config.eval_episodes), env_params)
    *_, success = jax.lax.while_loop(unfinished, step, (*seen, jnp.zeros(config.eval_episodes, bool)))
    return jnp.mean(success.astype(jnp.float32))


def advance(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Trains up to the next evaluation, and evaluates; returns metrics, float32 [] each."""
    key_steps, key_evaluation = jax.random.split(key)
    keys = jax.random.split(key_steps, 4 * config.eval_every).reshape(-1, 4)  # All at once, off the hot path.
    loop, losses = jax.lax.scan(partial(train_step, config), loop, keys)
    return loop, {"success_rate": evaluate(config, loop.agent, key_evaluation), "loss": jnp.mean(losses)}


def train(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """One whole run, in one scan: metrics, float32 [evaluations] each. Jit it and vmap it over keys; the key is used up."""
    return experiment.scan(config, partial(start, config), partial(advance, config), key)[1]


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains all seeds, each as `train` does, and shows what was learned."""
    config = flags.parse(Config, lambda config: jax.eval_shape(partial(make_buffer, config)), args)
    training = experiment.over_seeds(config, partial(start, config), partial(advance, config))
    _, results = experiment.run(config, training)
    experiment.show(config, results, f"Bit-flipping, {config.num_bits} bits: Double DQN, {flags.describe_goals(config)}")


if __name__ == "__main__":
    main()
