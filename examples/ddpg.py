"""DDPG with HER (arXiv:1707.01495, section 4 and appendix A): a disc pushes a puck to a goal, for sparse rewards.

A cycle plays an episode in each of `num_envs` environments, side by side, and then makes 40 updates of a deterministic policy
gradient (Lillicrap et al. 2016, arXiv:1509.02971). All of it, from the contact of disc and puck to the updates, is one scan;
seeds are vmapped, and shared out among the devices that there are.

Networks are as small as the paper's, exploration and the penalty on squared actions are those of OpenAI Baselines; both move
the target networks by 5 % a cycle, here it is 20 %, with which PlanarPush takes half as many cycles.

python examples/ddpg.py                                         # learns to push a puck to a goal
python examples/ddpg.py --num-goals 0                           # no hindsight: does not learn
python examples/ddpg.py --num-steps 3 --correction largest      # three-step returns, corrected for hindsight: learns sooner
python examples/ddpg.py --task reach --cycles 40                # moves the disc alone
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import experiment

import jax
import jax.numpy as jnp
import optax
from flax import struct

import flags
import herjax
import planar
import returns
from flags import Count, Share, Weight
from networks import MLP, Statistics
from planar import Transition


@dataclasses.dataclass(frozen=True)
class AgentConfig(flags.HindsightFlags):
    """What every task is trained by."""

    cycles: flags.Stretches = 400  # Cycles of each run; a multiple of eval-every.
    num_envs: Count = 16  # Episodes of a cycle, side by side.
    updates: Count = 40  # Updates of a cycle.
    batch_size: Count = 256  # Transitions in an update.
    relabel: Literal["episode_end", "sample"] = "sample"  # When hindsight goals are drawn: once, or afresh for each batch.
    capacity: Count = 1_000_000  # Transitions held.
    hidden: flags.Units = (64, 64, 64)  # Units of the hidden layers of actor and critic.
    learning_rate: Weight = 1e-3  # Of Adam, for both.
    discount: flags.Below1 = 0.98  # Gamma; targets are clipped to [-1 / (1 - gamma), 0].
    target_decay: Share = 0.8  # Share of the target networks that stays at the end of a cycle.
    epsilon: Share = 0.3  # Probability of a random action.
    noise: Weight = 0.2  # Standard deviation of the noise on other actions, whose range is -1 to 1.
    action_penalty: Weight = 1.0  # Weight of the squared actions in the actor's loss.
    eval_every: Count = 10  # Cycles between evaluations.
    eval_episodes: Count = 50  # Greedy episodes of an evaluation; a success is at its goal at the end.


@dataclasses.dataclass(frozen=True)
class Config(AgentConfig):
    """Trains DDPG with Hindsight Experience Replay on a planar task."""

    task: planar.Task = "push"  # push: a puck to a goal; reach: the disc itself; reacher: an arm's tip (brax).
    shaped: bool = False  # Whether rewards are minus the squared distance to the goal, and not sparse.
    out: Path = Path("results/ddpg")  # Folder for results.json, success_rate.png, and pictures of the first seed's policy.


Losses = dict[str, jax.Array]
"""Means over updates, float32 [] each: "critic_loss", and "actor_loss" without the penalty."""


class Networks(NamedTuple):
    """Parameters of actor and critic."""

    actor: optax.Params
    critic: optax.Params


@struct.dataclass
class Agent:
    """What learning changes."""

    networks: Networks
    targets: Networks
    opt_state: optax.OptState
    observations: Statistics  # Of all that was observed.
    goals: Statistics  # Of all that was achieved or desired.
    num_actions: int = struct.field(pytree_node=False)


def make_agent(config: AgentConfig, example: Transition, key: jax.Array) -> Agent:
    """An agent that has learned nothing."""
    key_actor, key_critic = jax.random.split(key)
    observation, action, _, goal = example
    networks = Networks(
        MLP(config.hidden, action.size).init(key_actor, observation, goal),
        MLP(config.hidden, 1).init(key_critic, observation, goal, action),
    )
    nothing = (Statistics(jnp.float32(0), jnp.zeros_like(leaf), jnp.zeros_like(leaf)) for leaf in (observation, goal))
    followers = jax.tree.map(jnp.copy, networks)  # Arrays of their own, so that both can be donated.
    return Agent(networks, followers, optax.adam(config.learning_rate).init(networks), *nothing, num_actions=action.size)


def make_buffer(
    config: AgentConfig, example: Transition, reward_fn: Callable[[Transition, jax.Array], jax.Array], episode: tuple[int, int]
) -> herjax.BufferState:
    """An empty buffer; `episode` is the number of environments, and of an episode's steps."""
    num_envs, steps = episode
    return herjax.init(
        example,
        capacity=config.capacity // num_envs * num_envs,
        max_episode_length=steps,
        goal_fn=achieved_goal,
        reward_fn=reward_fn,
        strategy=flags.parse_strategy(config.strategy),
        num_goals=config.num_goals,
        relabel=config.relabel,
        num_steps=returns.stored_steps(config),
        discount=config.discount,
        num_envs=num_envs,
    )


def achieved_goal(transition: Transition) -> jax.Array:
    """The goal that the transition achieved."""
    return transition.achieved_goal


def policy(config: AgentConfig, agent: Agent, networks: Networks, observation: jax.Array, goal: jax.Array) -> jax.Array:
    """Actions [..., A] in [-1, 1] for normalised observations and goals."""
    return jnp.tanh(MLP(config.hidden, agent.num_actions).apply(networks.actor, observation, goal))


def value(config: AgentConfig, networks: Networks, observation: jax.Array, goal: jax.Array, action: jax.Array) -> jax.Array:
    """Q [...] of normalised observations and goals, and of actions."""
    return MLP(config.hidden, 1).apply(networks.critic, observation, goal, action)[..., 0]


def act(config: AgentConfig, agent: Agent, observation: jax.Array, goal: jax.Array) -> jax.Array:
    """The policy's actions [..., A]."""
    return policy(config, agent, agent.networks, agent.observations.normalize(observation), agent.goals.normalize(goal))


def explore(config: AgentConfig, action: jax.Array, key: jax.Array) -> jax.Array:
    """Actions [n, A] with noise, and now and then random ones instead."""
    key_noise, key_random, key_which = jax.random.split(key, 3)
    noisy = jnp.clip(action + config.noise * jax.random.normal(key_noise, action.shape), -1, 1)
    at_random = jax.random.uniform(key_random, action.shape, minval=-1, maxval=1)
    return jnp.where(jax.random.bernoulli(key_which, config.epsilon, (len(action), 1)), at_random, noisy)


def see(agent: Agent, transitions: Transition, goal: jax.Array) -> Agent:
    """Counts what was met, [..., D] and [..., G], among what inputs are normalised by."""
    goals = Statistics.of(transitions.achieved_goal).merged(Statistics.of(goal))
    observations = Statistics.of(transitions.observation)
    return agent.replace(observations=agent.observations.merged(observations), goals=agent.goals.merged(goals))


def targets(config: AgentConfig, agent: Agent, sample: herjax.Sample, window: herjax.Steps | None) -> jax.Array:
    """What the critic is pulled to, float32 [n]: clipped to the returns there are where rewards are -1 or 0."""
    goal = agent.goals.normalize(sample.goal)

    def following(next_observation: jax.Array) -> jax.Array:
        observation = agent.observations.normalize(next_observation)
        return value(config, agent.targets, observation, goal, policy(config, agent, agent.targets, observation, goal))

    if window is None:
        target = sample.reward + sample.discount * following(sample.last.next_observation)
    else:
        values = jax.vmap(following, 1, 1)(window.transition.next_observation)
        discounts = jnp.full_like(window.reward, config.discount)
        target = jax.vmap(returns.largest)(window.reward, discounts, values, window.mask)
    return jnp.clip(target, -1 / (1 - config.discount), 0)


def learn(config: AgentConfig, agent: Agent, sample: herjax.Sample, window: herjax.Steps | None = None) -> tuple[Agent, Losses]:
    """A cycle's updates, whose batches come all at once, [updates * batch_size], as the targets stay as they are in between.

    `window`: that of `returns.window`.
    """
    observation, goal = agent.observations.normalize(sample.transition.observation), agent.goals.normalize(sample.goal)
    data = (observation, goal, sample.transition.action, targets(config, agent, sample, window))
    batches = jax.tree.map(lambda leaf: leaf.reshape(config.updates, config.batch_size, *leaf.shape[1:]), data)

    def loss(networks: Networks, batch: tuple[jax.Array, ...]) -> tuple[jax.Array, Losses]:
        observation, goal, action, target = batch
        critic_loss = jnp.mean(optax.squared_error(value(config, networks, observation, goal, action), target))
        chosen = policy(config, agent, networks, observation, goal)
        frozen = networks._replace(critic=jax.lax.stop_gradient(networks.critic))
        actor_loss = -jnp.mean(value(config, frozen, observation, goal, chosen))
        penalty = config.action_penalty * jnp.mean(chosen**2)
        return critic_loss + actor_loss + penalty, {"critic_loss": critic_loss, "actor_loss": actor_loss}

    def update(carry: tuple[Networks, optax.OptState], batch: tuple[jax.Array, ...]) -> tuple[Any, Losses]:
        networks, opt_state = carry
        gradients, losses = jax.grad(loss, has_aux=True)(networks, batch)
        updates, opt_state = optax.adam(config.learning_rate).update(gradients, opt_state)
        return (optax.apply_updates(networks, updates), opt_state), losses

    (networks, opt_state), losses = jax.lax.scan(update, (agent.networks, agent.opt_state), batches)
    followers = optax.incremental_update(networks, agent.targets, 1 - config.target_decay)
    return agent.replace(networks=networks, targets=followers, opt_state=opt_state), jax.tree.map(jnp.mean, losses)


class Loop(NamedTuple):
    """The carry of the scan."""

    agent: Agent
    buffer: herjax.BufferState


def store(buffer: herjax.BufferState, transitions: Transition, goal: jax.Array, key: jax.Array) -> herjax.BufferState:
    """Adds an episode of each of n environments: leaves [T, n, ...], and the goals [n, G] that were pursued."""
    buffer, _ = jax.lax.scan(lambda buffer, step: (herjax.add(buffer, step), None), buffer, transitions)
    return herjax.end_episode(buffer, goal, key)


def store_and_learn(
    config: AgentConfig, loop: Loop, transitions: Transition, goal: jax.Array, key: jax.Array
) -> tuple[Loop, Losses]:
    """Stores a cycle's episodes and learns from them."""
    key_goals, key_sample = jax.random.split(key)
    buffer = store(loop.buffer, transitions, goal, key_goals)
    draws = config.updates * config.batch_size
    sample = herjax.sample(buffer, key_sample, draws, hindsight_ratio=config.hindsight_ratio)
    agent = see(loop.agent, transitions, goal)
    agent, losses = learn(config, agent, sample, returns.window(config, buffer, sample))
    return Loop(agent, buffer), losses


def start(config: Config, key: jax.Array) -> Loop:
    """A seed before its first cycle."""
    example, reward = planar.example(config.task), planar.make_reward(config.task, config.shaped)
    buffer = make_buffer(config, example, reward, (config.num_envs, planar.steps(config.task)))
    return Loop(make_agent(config, example, key), buffer)


def behave(config: Config, agent: Agent, greedy: bool) -> planar.Policy:
    """The policy, with the noise of exploration unless it is greedy."""

    def policy(observation: jax.Array, goal: jax.Array, key: jax.Array) -> jax.Array:
        action = act(config, agent, observation, goal)
        return action if greedy else explore(config, action, key)

    return policy


def cycle(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, Losses]:
    """Plays episodes, stores them, and learns."""
    key_play, key_learn = jax.random.split(key)
    episodes = planar.play(config.task, behave(config, loop.agent, greedy=False), key_play, config.num_envs)
    return store_and_learn(config, loop, episodes.transitions, episodes.goal, key_learn)


def advance(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Trains up to the next evaluation, and evaluates; returns metrics, float32 [] each."""
    key_cycles, key_episodes = jax.random.split(key)
    loop, losses = jax.lax.scan(partial(cycle, config), loop, jax.random.split(key_cycles, config.eval_every))
    success = planar.play(config.task, behave(config, loop.agent, greedy=True), key_episodes, config.eval_episodes).success
    return loop, {"success_rate": jnp.mean(success.astype(jnp.float32)), **jax.tree.map(jnp.mean, losses)}


def train(config: Config, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """One whole run, in one scan: its last state, and metrics, float32 [evaluations] each. Jit it and vmap it over keys."""
    return experiment.scan(config, partial(start, config), partial(advance, config), key)


def check(config: AgentConfig, episode: int) -> None:
    """Raises `ValueError` if the buffer has no room for `episode` steps in each environment."""
    least = config.num_envs * episode
    flags.require(config, "capacity", config.capacity >= least, f"room for an episode in each environment, {least}, at least")


def try_out(config: Config) -> None:
    """Raises `ValueError` if these flags do not fit together."""
    check(config, planar.steps(config.task))
    jax.eval_shape(partial(start, config), jax.random.key(0))  # The buffer itself knows how large it may get.


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains, and shows what was learned."""
    config = flags.parse(Config, try_out, args)
    training = experiment.over_seeds(config, partial(start, config), partial(advance, config))
    loops, results = experiment.run(config, training, steps=config.eval_every * config.num_envs * planar.steps(config.task))
    first = behave(config, jax.tree.map(lambda leaf: leaf[0], loops.agent), greedy=True)
    planar.draw_policy(config.task, first, jax.random.key(config.seed + 1), config.out)
    title = f"Planar {config.task}: DDPG, {flags.describe_goals(config)}, {'shaped' if config.shaped else 'sparse'} reward"
    experiment.show(config, results, title, "policy.png", "policy.gif")


if __name__ == "__main__":
    main()
