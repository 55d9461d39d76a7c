"""DDPG with HER (arXiv:1707.01495, section 4 and appendix A): a disc pushes a puck to a goal, for sparse rewards.

A cycle plays an episode in each of `num_envs` environments, side by side, and then makes 40 updates of a deterministic policy
gradient (Lillicrap et al. 2016, arXiv:1509.02971). All of it, from the contact of disc and puck to the updates, is one scan;
seeds are vmapped, and shared out among the devices that there are.

Networks are as small as the paper's, exploration and the penalty on squared actions are those of OpenAI Baselines; both move
the target networks by 5 % a cycle, here it is 20 %, with which PlanarPush takes half as many cycles.

python examples/ddpg.py                             # learns to push a puck to a goal
python examples/ddpg.py --num-goals 0               # no hindsight: does not learn
python examples/ddpg.py --task reach --cycles 40    # moves the disc alone
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # A device for each core that this process may use. JAX reads it when it is imported.
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(affinity(0))))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import struct
from PIL import Image, ImageDraw

import herjax
from bitflip import Progress, check_numbers, goals_title, parse_strategy, plot, refuse, require, share_out, table
from herjax.envs import PlanarPush, PlanarReach

TASKS = {"push": PlanarPush, "reach": PlanarReach}


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """What every task is trained by."""

    seed: int = 0
    """Where all randomness starts."""
    cycles: int = 400
    """Cycles of each run; a multiple of eval-every."""
    num_envs: int = 16
    """Episodes of a cycle, side by side."""
    updates: int = 40
    """Updates of a cycle."""
    batch_size: int = 256
    """Transitions in an update."""
    strategy: str = "future"
    """Where hindsight goals come from: future, final, episode, random, or weights of several: future=0.8,random=0.2."""
    num_goals: int = 4
    """Hindsight goals per transition; 0: no HER."""
    relabel: str = "sample"
    """When hindsight goals are drawn: episode_end, once, or sample, afresh for each batch."""
    hindsight_ratio: float | None = None
    """Share of a batch with hindsight goals, only with relabel sample; by default k / (k + 1) for k goals per transition."""
    capacity: int = 1_000_000
    """Transitions held."""
    hidden: tuple[int, ...] = (64, 64, 64)
    """Units of the hidden layers of actor and critic."""
    learning_rate: float = 1e-3
    """Of Adam, for both."""
    discount: float = 0.98
    """Gamma; targets are clipped to [-1 / (1 - gamma), 0]."""
    num_steps: int = 1
    """Steps of an n-step return."""
    target_decay: float = 0.8
    """Share of the target networks that stays at the end of a cycle."""
    epsilon: float = 0.3
    """Probability of a random action."""
    noise: float = 0.2
    """Standard deviation of the noise on other actions, whose range is -1 to 1."""
    action_penalty: float = 1.0
    """Weight of the squared actions in the actor's loss."""
    eval_every: int = 10
    """Cycles between evaluations."""
    eval_episodes: int = 50
    """Greedy episodes of an evaluation; a success is at its goal at the end."""
    progress: bool = True
    """Whether to show a progress bar."""


@dataclasses.dataclass(frozen=True)
class Config(AgentConfig):
    """Trains DDPG with Hindsight Experience Replay on a planar task."""

    task: str = "push"
    """push: a puck to a goal; reach: the disc itself."""
    seeds: int = 5
    """Independent runs, vmapped, and shared out among the devices."""
    shaped: bool = False
    """Whether rewards are minus the squared distance to the goal, and not sparse."""
    out: Path = Path("results/ddpg")
    """Folder for results.json, success_rate.png, and pictures of the policy of the first seed."""


class Transition(NamedTuple):
    """One step of the environment."""

    observation: jax.Array  # float32 [D]
    action: jax.Array  # float32 [A]; in [-1, 1].
    next_observation: jax.Array  # float32 [D]
    achieved_goal: jax.Array  # float32 [G]; after the action.


class Statistics(NamedTuple):
    """Running mean and variance of vectors."""

    count: jax.Array  # float32 []
    mean: jax.Array  # float32 [D]
    variance: jax.Array  # float32 [D]

    @classmethod
    def of(cls, vectors: jax.Array) -> "Statistics":
        """Those of vectors [..., D]."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        return cls(jnp.float32(len(flat)), flat.mean(axis=0), flat.var(axis=0))

    def merged(self, other: "Statistics") -> "Statistics":
        """Those of both (Chan et al. 1979)."""
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1)
        apart = other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * apart**2
        return Statistics(count, self.mean + share * apart, variance)

    def normalize(self, vectors: jax.Array) -> jax.Array:
        """Of mean 0 and variance 1, clipped to 5 standard deviations."""
        return jnp.clip((vectors - self.mean) / jnp.maximum(jnp.sqrt(self.variance), 1e-2), -5, 5)


class MLP(nn.Module):
    """Hidden layers with rectifiers and a linear one, for inputs side by side: [..., D] each -> [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """What the last layer gives."""
        x = jnp.concatenate(inputs, axis=-1)
        for units in self.hidden:
            x = nn.relu(nn.Dense(units)(x))
        return nn.Dense(self.outputs)(x)


class Networks(NamedTuple):
    """Parameters of actor and critic."""

    actor: optax.Params
    critic: optax.Params


class Losses(NamedTuple):
    """Means over updates, float32 [] each."""

    critic: jax.Array
    actor: jax.Array  # Without the penalty.


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
    return Agent(networks, followers, optimizer(config).init(networks), *nothing, num_actions=action.size)


def optimizer(config: AgentConfig) -> optax.GradientTransformation:
    """Adam, for actor and critic."""
    return optax.adam(config.learning_rate)


def make_buffer(
    config: AgentConfig, example: Transition, reward_fn: Callable[[Transition, jax.Array], jax.Array], episode: tuple[int, int]
) -> herjax.BufferState:
    """An empty buffer for episodes of so many environments with so many steps."""
    num_envs, steps = episode
    return herjax.init(
        example,
        capacity=config.capacity // num_envs * num_envs,
        max_episode_length=steps,
        goal_fn=achieved_goal,
        reward_fn=reward_fn,
        strategy=parse_strategy(config.strategy),
        num_goals=config.num_goals,
        relabel=config.relabel,
        num_steps=config.num_steps,
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


def targets(config: AgentConfig, agent: Agent, sample: herjax.Sample) -> jax.Array:
    """What the critic is pulled to, float32 [...]: clipped to the returns there are where rewards are -1 or 0."""
    observation = agent.observations.normalize(sample.last.next_observation)
    goal = agent.goals.normalize(sample.goal)
    action = policy(config, agent, agent.targets, observation, goal)
    target = sample.reward + sample.discount * value(config, agent.targets, observation, goal, action)
    return jnp.clip(target, -1 / (1 - config.discount), 0)


def learn(config: AgentConfig, agent: Agent, sample: herjax.Sample) -> tuple[Agent, Losses]:
    """A cycle's updates, whose batches come all at once, [updates * batch_size], as the targets stay as they are in between."""
    observation = agent.observations.normalize(sample.transition.observation)
    data = (observation, agent.goals.normalize(sample.goal), sample.transition.action, targets(config, agent, sample))
    batches = jax.tree.map(lambda leaf: leaf.reshape(config.updates, config.batch_size, *leaf.shape[1:]), data)

    def loss(networks: Networks, batch: tuple[jax.Array, ...]) -> tuple[jax.Array, Losses]:
        observation, goal, action, target = batch
        critic_loss = jnp.mean(optax.squared_error(value(config, networks, observation, goal, action), target))
        chosen = policy(config, agent, networks, observation, goal)
        frozen = networks._replace(critic=jax.lax.stop_gradient(networks.critic))
        actor_loss = -jnp.mean(value(config, frozen, observation, goal, chosen))
        penalty = config.action_penalty * jnp.mean(chosen**2)
        return critic_loss + actor_loss + penalty, Losses(critic_loss, actor_loss)

    def update(carry: tuple[Networks, optax.OptState], batch: tuple[jax.Array, ...]) -> tuple[Any, Losses]:
        networks, opt_state = carry
        gradients, losses = jax.grad(loss, has_aux=True)(networks, batch)
        updates, opt_state = optimizer(config).update(gradients, opt_state)
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
    """A cycle but for the playing of its episodes."""
    key_goals, key_sample = jax.random.split(key)
    buffer = store(loop.buffer, transitions, goal, key_goals)
    draws = config.updates * config.batch_size
    sample = herjax.sample(buffer, key_sample, draws, hindsight_ratio=config.hindsight_ratio)
    agent, losses = learn(config, see(loop.agent, transitions, goal), sample)
    return Loop(agent, buffer), losses


class Metrics(NamedTuple):
    """What is measured at an evaluation, float32 [] each."""

    success_rate: jax.Array  # Of greedy episodes.
    critic_loss: jax.Array  # Mean over the updates since the last evaluation.
    actor_loss: jax.Array


@cache
def make_env(config: Config) -> tuple[Any, Any]:
    """The environment and its parameters."""
    env = TASKS[config.task]()
    return env, env.default_params


@cache
def make_reward(config: Config) -> Callable[[Transition, jax.Array], jax.Array]:
    """The reward of a transition under a goal: that of the environment, or shaped."""
    env, params = make_env(config)

    def sparse(transition: Transition, goal: jax.Array) -> jax.Array:
        return env.compute_reward(transition.achieved_goal, goal, params)

    def shaped(transition: Transition, goal: jax.Array) -> jax.Array:
        return -jnp.sum((transition.achieved_goal - goal) ** 2)

    return shaped if config.shaped else sparse


def start(config: Config, key: jax.Array) -> Loop:
    """A seed before its first cycle."""
    env, params = make_env(config)
    spaces = env.observation_space(params).spaces
    observation, goal = (jnp.zeros(spaces[name].shape) for name in ("observation", "achieved_goal"))
    example = Transition(observation, jnp.zeros(env.action_space(params).shape), observation, goal)
    buffer = make_buffer(config, example, make_reward(config), (config.num_envs, params.max_steps_in_episode))
    return Loop(make_agent(config, example, key), buffer)


class Episodes(NamedTuple):
    """E whole episodes of T steps, played side by side; steps come first."""

    states: Any  # Of the environment, after each step: leaves [T, E, ...].
    transitions: Transition  # Leaves [T, E, ...].
    goal: jax.Array  # float32 [E, G]
    success: jax.Array  # bool [E]; whether the goal was achieved at the end.


def play(config: Config, agent: Agent, key: jax.Array, *, episodes: int, greedy: bool) -> Episodes:
    """Plays whole episodes, greedily or with the noise of exploration."""
    env, params = make_env(config)
    key_reset, key_steps = jax.random.split(key)
    observation, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(key_reset, episodes), params)
    goal = observation["desired_goal"]

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], tuple[Any, Transition]]:
        observation, state = carry
        key_explore, key_env = jax.random.split(key)
        action = act(config, agent, observation["observation"], goal)
        if not greedy:
            action = explore(config, action, key_explore)
        # No reset: what follows the last step is what is stored, and the next cycle starts anew.
        keys = jax.random.split(key_env, episodes)
        then, state, _, _, _ = jax.vmap(env.step_env, (0, 0, 0, None))(keys, state, action, params)
        transition = Transition(observation["observation"], action, then["observation"], then["achieved_goal"])
        return (then, state), (state, transition)

    keys = jax.random.split(key_steps, params.max_steps_in_episode)
    _, (states, transitions) = jax.lax.scan(step, (observation, state), keys)
    success = env.compute_reward(transitions.achieved_goal[-1], goal, params) == 0
    return Episodes(states, transitions, goal, success)


def cycle(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, Losses]:
    """Plays episodes, stores them, and learns."""
    key_play, key_learn = jax.random.split(key)
    episodes = play(config, loop.agent, key_play, episodes=config.num_envs, greedy=False)
    return store_and_learn(config, loop, episodes.transitions, episodes.goal, key_learn)


def train(config: Config, key: jax.Array, report: Callable[[jax.Array], None] = lambda _: None) -> tuple[Agent, Metrics]:
    """One whole run: a scan over evaluations of a scan over cycles. Pure, to be jitted and vmapped over keys.

    Args:
      config: the settings, static.
      key: all of the run's randomness; used up.
      report: called, while tracing, with the success rate of an evaluation.
    """
    key_start, key_cycles, key_evals = jax.random.split(key, 3)
    evaluations = config.cycles // config.eval_every
    keys = jax.random.split(key_cycles, config.cycles).reshape(evaluations, config.eval_every)

    def train_and_evaluate(loop: Loop, keys: tuple[jax.Array, jax.Array]) -> tuple[Loop, Metrics]:
        cycle_keys, key_eval = keys
        loop, losses = jax.lax.scan(partial(cycle, config), loop, cycle_keys)
        success = play(config, loop.agent, key_eval, episodes=config.eval_episodes, greedy=True).success
        success_rate = jnp.mean(success.astype(jnp.float32))
        report(success_rate)
        return loop, Metrics(success_rate, *jax.tree.map(jnp.mean, losses))

    keys = (keys, jax.random.split(key_evals, evaluations))
    loop, metrics = jax.lax.scan(train_and_evaluate, start(config, key_start), keys)
    return loop.agent, metrics


def run(config: Config) -> tuple[dict[str, Any], Agent]:
    """Trains all seeds, and returns what results.json holds, and the agents, whose leaves have an axis for the seeds."""
    _, params = make_env(config)
    cycle_steps = config.num_envs * params.max_steps_in_episode
    steps, eval_every = config.cycles * cycle_steps, config.eval_every * cycle_steps
    progress = Progress(steps, eval_every, config.seeds, show=config.progress)
    mesh, share = share_out(config.seeds)
    spec = jax.sharding.PartitionSpec("seed")
    seeds = jnp.arange(mesh.size * share)  # Those past the last only fill up a device: they repeat it, and are not reported.
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)[jnp.minimum(seeds, config.seeds - 1)]

    def train_and_report(key: jax.Array, seed: jax.Array) -> tuple[Agent, Metrics]:
        return train(config, key, partial(jax.debug.callback, progress.report, seed))

    began = time.perf_counter()
    train_all = jax.shard_map(jax.vmap(train_and_report), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    program = jax.jit(train_all).lower(keys, seeds).compile()
    compiled = time.perf_counter()
    agents, metrics = jax.block_until_ready(program(keys, seeds))
    seconds = time.perf_counter() - compiled
    jax.effects_barrier()
    progress.close()
    buffer = jax.eval_shape(partial(start, config), keys[0]).buffer
    results = {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()},
        "eval_steps": list(range(eval_every, steps + 1, eval_every)),
        **{name: np.asarray(values)[: config.seeds].tolist() for name, values in metrics._asdict().items()},
        "seconds": seconds,
        "compile_seconds": compiled - began,
        "steps_per_second": steps * config.seeds / seconds,
        "buffer_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer)),
        "device": jax.local_devices()[0].device_kind,
        "devices": mesh.size,
    }
    return results, agents


def picture(config: Config, state: Any, size: int = 160) -> Image.Image:
    """The table from above: the goal a ring in green, the puck blue, the hand red."""
    _, params = make_env(config)
    scale = 4 * size  # Drawn larger, and made smaller: smooth edges.
    image = Image.new("RGB", (scale, scale), "white")
    canvas = ImageDraw.Draw(image)

    def disc(centre: np.ndarray, radius: float, **colours: Any) -> None:
        x, y = (1 + centre[0]) / 2 * scale, (1 - centre[1]) / 2 * scale
        canvas.circle((x, y), radius / 2 * scale, **colours)

    canvas.rectangle((0, 0, scale - 1, scale - 1), outline="gray", width=8)
    disc(state.hand, params.hand_radius, fill="#d62728")
    if hasattr(state, "puck"):
        disc(state.puck, params.puck_radius, fill="#1f77b4")
    disc(state.goal, params.tolerance, outline="#2ca02c", width=10)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def draw_policy(config: Config, agent: Agent, key: jax.Array, episodes: int = 4) -> tuple[list[Image.Image], Image.Image]:
    """Greedy episodes, side by side: a film of them, and a strip of every third step at first, with a row for each."""
    states = jax.device_get(jax.jit(partial(play, config, episodes=episodes, greedy=True))(agent, key).states)
    steps = range(len(states.time))
    pictures = [[picture(config, jax.tree.map(lambda leaf: leaf[t, e], states)) for e in range(episodes)] for t in steps]  # noqa: B023
    film = [side_by_side([row]) for row in pictures]
    shown = pictures[:24:3]
    return film, side_by_side([[row[e] for row in shown] for e in range(episodes)])


def side_by_side(rows: list[list[Image.Image]]) -> Image.Image:
    """One picture of many, all of one size."""
    width, height = rows[0][0].size
    whole = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            whole.paste(image, (j * width, i * height))
    return whole


def check_agent(config: AgentConfig, episode: int) -> None:
    """Raises `ValueError` that says, in one line, what is wrong with the flags of a task with so many steps an episode."""
    check_numbers(
        config,
        counts=("cycles", "num_envs", "updates", "batch_size", "num_steps", "eval_every", "eval_episodes"),
        shares=("target_decay", "epsilon"),
        weights=("learning_rate", "noise", "action_penalty"),
    )
    require(config, "seed", 0 <= config.seed < 2**32, "a number from 0 to 2^32 - 1")
    require(config, "discount", 0 <= config.discount < 1, "a number from 0 to 1, but not 1")
    require(config, "cycles", config.cycles % config.eval_every == 0, f"a multiple of --eval-every, {config.eval_every}")
    least = config.num_envs * episode
    require(config, "capacity", config.capacity >= least, f"room for an episode in each environment, {least}, at least")


def check(config: Config) -> None:
    """Raises `ValueError` that says, in one line, what is wrong with the flags and what to give instead."""
    require(config, "task", config.task in TASKS, f"one of {', '.join(TASKS)}")
    require(config, "seeds", config.seeds >= 1, "at least 1")
    check_agent(config, make_env(config)[1].max_steps_in_episode)
    jax.eval_shape(partial(start, config), jax.random.key(0))  # The buffer itself knows how large it may get.


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains, and shows what was learned."""
    config = tyro.cli(Config, args=args)
    try:
        check(config)
    except ValueError as error:
        refuse(error, "ddpg.py")
    config.out.mkdir(parents=True, exist_ok=True)
    results, agents = run(config)
    print(table(results))
    (config.out / "results.json").write_text(json.dumps(results, indent=1))
    reward = "shaped" if config.shaped else "sparse"
    plot(results, f"Planar {config.task}: DDPG, {goals_title(config)}, {reward} reward", config.out / "success_rate.png")
    film, strip = draw_policy(config, jax.tree.map(lambda leaf: leaf[0], agents), jax.random.key(config.seed + 1))
    strip.save(config.out / "policy.png")
    film[0].save(config.out / "policy.gif", save_all=True, append_images=film[1:], duration=60, loop=0)
    print(f"written                           {config.out}: results.json, success_rate.png, policy.png, policy.gif")


if __name__ == "__main__":
    main()
