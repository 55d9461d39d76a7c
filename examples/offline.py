"""Data without an environment: goal-conditioned policies from play data, in the format of OGBench (arXiv:2410.20092).

The data pursue no goal of ours, so every goal comes from hindsight. `herjax.sample` draws transitions, each with a goal for the
value: the state itself, a state later on, or any state. `herjax.relabel` draws goals for the actor of the same transitions, and
`herjax.steps` has the states k steps later. Two algorithms need no more, and `draw` has it in a few lines:

- GCIQL (Kostrikov et al. 2021, arXiv:2110.06169): expectiles of Q, and an actor that climbs Q and stays near the data.
- HIQL (Park et al. 2023, arXiv:2307.11949): an actor proposes where to be k steps later, another one gets there.

Where no file is given, a point plays in OGBench's maze first. Policies are evaluated on the five tasks of the maze. Both need
`pip install ".[ogbench]"`; play_data.py has them.

python examples/offline.py                                           # GCIQL; plays first, if there are no data yet
python examples/offline.py --agent hiql                              # HIQL, on the same data
python examples/offline.py --data pointmaze-large-navigate-v0.npz    # on a published file
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import experiment

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import flags
import herjax
import play_data
from flags import Count, Share, Weight
from play_data import Transition


@dataclasses.dataclass(frozen=True)
class Config(flags.Flags):
    """Learns to reach goals in a maze from play data alone."""

    agent: Literal["gciql", "hiql"] = "gciql"  # The algorithm.
    maze: play_data.Maze = "large"  # OGBench's pointmaze.
    data: str | None = None  # A file in OGBench's format; by default one that is played, once, in the folder `out`.
    episodes: Count = 300  # Episodes of 1,000 steps to play, where no file is given.
    steps: flags.Stretches = 20_000  # Updates of each run; a multiple of eval-every.
    seeds: Count = 3  # Independent runs, vmapped, and shared out among the devices.
    eval_every: Count = 5_000  # Updates between evaluations.
    eval_episodes: Count = 10  # Episodes of each task in an evaluation.
    batch_size: Count = 256  # Transitions in an update.
    hidden: flags.Units = (128, 128, 128)  # Units of the hidden layers of every network.
    learning_rate: Weight = 1e-3  # Of Adam, for all networks.
    discount: flags.Below1 = 0.99  # Gamma, of returns and of how far ahead the value's goals are.
    target_decay: Share = 0.98  # Share of the target networks that stays at each update.
    q_expectile: Share = 0.9  # GCIQL: the expectile of Q that is a state's value.
    v_expectile: Share = 0.7  # HIQL: the expectile of one-step targets.
    bc_weight: Weight = 0.003  # GCIQL: weight of the log-likelihood of the data's actions.
    temperature: Weight = 3.0  # HIQL: both actors weigh what the data did by exp(temperature * advantage).
    subgoal_steps: Count = 25  # HIQL: k, how far ahead a subgoal is.
    out: Path = Path("results/offline")  # Folder for the data, runs.json and offline.png.


class Batch(NamedTuple):
    """What an update learns from: B transitions, each with goals of its own. Positions are normalised."""

    here: jax.Array  # float32 [B, D]
    action: jax.Array  # float32 [B, A]
    then: jax.Array  # float32 [B, D]
    reward: jax.Array  # float32 [B]; 0 where `here` is `goal`, else -1.
    discount: jax.Array  # float32 [B]; 0 where `here` is `goal`.
    goal: jax.Array  # float32 [B, D]; the value's.
    actor_goal: jax.Array  # float32 [B, D]
    ahead: jax.Array  # float32 [B, D]; k steps later, or at the episode's end.
    subgoal: jax.Array  # float32 [B, D]; on the way to `actor_goal`: `ahead`, or the goal itself where it comes before.


@struct.dataclass
class Agent:
    """What learning changes, and what positions are normalised by."""

    networks: dict[str, Any]  # Parameters: of `twins`, two alike, and of what GCIQL or HIQL has beside them.
    targets: Any  # Parameters that follow `networks["twins"]`.
    opt_state: optax.OptState
    center: jax.Array  # float32 [D]; the mean of the data's observations.
    spread: jax.Array  # float32 [D]; their standard deviation.


class Loop(NamedTuple):
    """The carry of the scan; the buffer never changes."""

    agent: Agent
    buffer: herjax.BufferState


class MLP(nn.Module):
    """Hidden layers with layer normalisation, and a linear one, for inputs side by side: [..., D] each -> [..., outputs]."""

    hidden: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """What the last layer gives."""
        x = jnp.concatenate(inputs, axis=-1)
        for units in self.hidden:
            x = nn.gelu(nn.LayerNorm()(nn.Dense(units)(x)))
        return nn.Dense(self.outputs)(x)


def achieved(transition: Transition) -> jax.Array:
    """The goal of a transition is where it started, so that OGBench's "current goal" is one, with the value 0."""
    return transition.observation


def reached(transition: Transition, goal: jax.Array) -> jax.Array:
    """Whether the goal is this very state."""
    return jnp.all(transition.observation == goal)


def reward(transition: Transition, goal: jax.Array) -> jax.Array:
    """-1 until the goal is reached."""
    return reached(transition, goal).astype(jnp.float32) - 1


def fill(config: Config, transitions: Transition, mask: jax.Array) -> herjax.BufferState:
    """A buffer that holds all episodes; each observation is stored once."""
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype), transitions)
    number, steps = mask.shape
    # OGBench's goals for the value: the state itself, one later in the episode, or one of anywhere.
    strategy = herjax.mixture({herjax.geometric(0): 0.2, herjax.geometric(config.discount): 0.5, "random": 0.3})
    goals = {"strategy": strategy, "num_goals": 1, "relabel": "sample", "discount": config.discount}
    room = {"capacity": number * (steps + 1), "max_episode_length": steps, "next_of": {"next_observation": "observation"}}
    buffer = herjax.init(example, goal_fn=achieved, reward_fn=reward, terminated_fn=reached, **goals, **room)
    nothing = jnp.zeros(example.observation.shape)  # No goal was pursued, and with a hindsight ratio of 1 none is sampled.

    def put(buffer: herjax.BufferState, episode: tuple[Transition, jax.Array]) -> tuple[herjax.BufferState, None]:
        buffer, _ = jax.lax.scan(lambda buffer, step: (herjax.add(buffer, *step), None), buffer, episode)
        return herjax.end_episode(buffer, nothing, jax.random.key(0)), None

    return jax.lax.scan(put, buffer, (transitions, mask))[0]


def draw(config: Config, loop: Loop, key: jax.Array) -> Batch:
    """A batch with a goal for the value, one for the actor, and a subgoal on the way to the latter."""
    key_sample, key_actor = jax.random.split(key)
    sample = herjax.sample(loop.buffer, key_sample, config.batch_size, hindsight_ratio=1.0)
    actor_goal = herjax.relabel(loop.buffer, sample, key_actor, strategy="future", hindsight_ratio=1.0).goal
    coming = herjax.steps(loop.buffer, sample, range(config.subgoal_steps + 1)).transition.observation  # [B, k + 1, D]
    is_near = jnp.any(jnp.all(coming == actor_goal[:, None], axis=-1), axis=1, keepdims=True)
    here, action, then = sample.transition
    places = (here, then, sample.goal, actor_goal, coming[:, -1], jnp.where(is_near, actor_goal, coming[:, -1]))
    here, then, *goals = ((each - loop.agent.center) / loop.agent.spread for each in places)
    return Batch(here, action, then, sample.reward, sample.discount, *goals)


def make_agent(config: Config, center: jax.Array, spread: jax.Array, key: jax.Array) -> Agent:
    """An agent that has learned nothing."""
    outputs, number = ({"value": 1, "actor": 2}, 3) if config.agent == "gciql" else ({"high": 2, "low": 2}, 2)
    key_twins, *keys = jax.random.split(key, 1 + len(outputs))
    sizes = zip(outputs.items(), keys, strict=True)
    networks = {name: MLP(config.hidden, size).init(each, center, center) for (name, size), each in sizes}
    networks["twins"] = jax.vmap(lambda key: MLP(config.hidden, 1).init(key, *[center] * number))(jax.random.split(key_twins))
    targets = jax.tree.map(jnp.copy, networks["twins"])  # Arrays of their own, so that both can be donated.
    return Agent(networks, targets, optax.adam(config.learning_rate).init(networks), center, spread)


def value(config: Config, parameters: Any, *inputs: jax.Array) -> jax.Array:
    """What one network makes of its inputs: [...]."""
    return MLP(config.hidden, 1).apply(parameters, *inputs)[..., 0]


def twins(config: Config, parameters: Any, *inputs: jax.Array) -> jax.Array:
    """What two networks make of the same inputs: [2, ...]."""
    return jax.vmap(lambda each: value(config, each, *inputs))(parameters)


def actor(config: Config, parameters: Any, here: jax.Array, goal: jax.Array) -> jax.Array:
    """What an actor gives, float32 [..., 2]: an action, or the way to a subgoal."""
    return MLP(config.hidden, 2).apply(parameters, here, goal)


def expectile(advantage: jax.Array, difference: jax.Array, share: float) -> jax.Array:
    """The mean square of `difference`, with the weight `share` where the advantage is positive, and 1 - share elsewhere."""
    return jnp.mean(jnp.where(advantage >= 0, share, 1 - share) * difference**2)


def imitate(config: Config, advantage: jax.Array, did: jax.Array, proposed: jax.Array) -> jax.Array:
    """Advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177): normal likelihoods of what was done, [B, A]."""
    weight = jnp.minimum(jnp.exp(config.temperature * advantage), 100)
    return jnp.mean(jax.lax.stop_gradient(weight) * jnp.sum((did - proposed) ** 2, axis=-1) / 2)


def gciql_loss(config: Config, networks: dict[str, Any], targets: Any, batch: Batch) -> jax.Array:
    """Q of two networks, V as their lesser one's expectile, and an actor that climbs Q (DDPG+BC, arXiv:2106.06860)."""
    q = jnp.min(twins(config, targets, batch.here, batch.goal, batch.action), axis=0)
    v = value(config, networks["value"], batch.here, batch.goal)
    value_loss = expectile(q - v, q - v, config.q_expectile)
    target = batch.reward + batch.discount * jax.lax.stop_gradient(value(config, networks["value"], batch.then, batch.goal))
    critic_loss = jnp.mean((twins(config, networks["twins"], batch.here, batch.goal, batch.action) - target) ** 2)
    chosen = jnp.tanh(actor(config, networks["actor"], batch.here, batch.actor_goal))
    frozen = jax.lax.stop_gradient(networks["twins"])
    q = jnp.min(twins(config, frozen, batch.here, batch.actor_goal, chosen), axis=0)
    scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(q)) + 1e-6)
    away = jnp.mean(jnp.sum((batch.action - chosen) ** 2, axis=-1)) / 2
    return value_loss + 2 * critic_loss - jnp.mean(q) / scale + config.bc_weight * away


def hiql_loss(config: Config, networks: dict[str, Any], targets: Any, batch: Batch) -> jax.Array:
    """V by expectiles of one-step targets, an actor that proposes subgoals, and one that goes there."""
    then, here = (twins(config, targets, place, batch.goal) for place in (batch.then, batch.here))  # [2, B] each.
    advantage = batch.reward + batch.discount * jnp.min(then, axis=0) - jnp.mean(here, axis=0)
    target = batch.reward + batch.discount * then
    difference = target - twins(config, networks["twins"], batch.here, batch.goal)
    value_loss = 2 * expectile(advantage, difference, config.v_expectile)

    def gain(there: jax.Array, goal: jax.Array) -> jax.Array:
        """How much nearer to the goal one is there: [B]."""
        frozen = jax.lax.stop_gradient(networks["twins"])
        return jnp.mean(twins(config, frozen, there, goal) - twins(config, frozen, batch.here, goal), axis=0)

    proposed = actor(config, networks["high"], batch.here, batch.actor_goal)
    high_loss = imitate(config, gain(batch.subgoal, batch.actor_goal), batch.subgoal - batch.here, proposed)
    chosen = actor(config, networks["low"], batch.here, batch.ahead - batch.here)
    low_loss = imitate(config, gain(batch.then, batch.ahead), batch.action, chosen)
    return value_loss + high_loss + low_loss


def act(config: Config, agent: Agent, observation: jax.Array, goal: jax.Array) -> jax.Array:
    """The actor's mean action for observations and goals [..., D]; HIQL's goes to the mean subgoal."""
    here, goal = ((each - agent.center) / agent.spread for each in (observation, goal))
    if config.agent == "gciql":
        return jnp.tanh(actor(config, agent.networks["actor"], here, goal))
    way = actor(config, agent.networks["high"], here, goal)
    return jnp.clip(actor(config, agent.networks["low"], here, way), -1, 1)


def update(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """One update of all networks, and the loss."""
    agent, batch, loss = loop.agent, draw(config, loop, key), gciql_loss if config.agent == "gciql" else hiql_loss
    found, gradients = jax.value_and_grad(partial(loss, config))(agent.networks, agent.targets, batch)
    updates, opt_state = optax.adam(config.learning_rate).update(gradients, agent.opt_state)
    networks = optax.apply_updates(agent.networks, updates)
    targets = optax.incremental_update(networks["twins"], agent.targets, 1 - config.target_decay)
    return Loop(agent.replace(networks=networks, targets=targets, opt_state=opt_state), loop.buffer), found


def start(config: Config, data: tuple[Transition, np.ndarray], key: jax.Array) -> Loop:
    """A seed before its first update."""
    transitions, mask = jax.tree.map(jnp.asarray, data)
    center, spread = (f(transitions.observation, axis=(0, 1), where=mask[..., None]) for f in (jnp.mean, jnp.std))
    return Loop(make_agent(config, center, spread, key), fill(config, transitions, mask))


def advance(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Makes all updates up to the next evaluation."""
    loop, losses = jax.lax.scan(partial(update, config), loop, jax.random.split(key, config.eval_every))
    return loop, {"loss": jnp.mean(losses)}


def train(config: Config) -> dict[str, Any]:
    """The figures of all seeds; `tasks` has those of each task."""
    data = play_data.load(play_data.find(config.data, config.out, config.maze, config.episodes, config.seed))
    training = experiment.over_seeds(config, partial(start, config, data), partial(advance, config))
    policy = jax.jit(jax.vmap(partial(act, config)))

    def advance_and_evaluate(loop: Loop, number: int) -> tuple[Loop, dict[str, np.ndarray]]:
        loop, metrics = training.advance(loop, number)
        agents = jax.tree.map(lambda leaf: leaf[: config.seeds], jax.device_get(loop.agent))
        success = play_data.evaluate(config.maze, partial(policy, agents), config.seeds, config.eval_episodes, number)
        return loop, metrics | {"success_rate": success.mean(axis=1), "tasks": success}

    _, results = experiment.run(config, training._replace(advance=advance_and_evaluate))
    return {name: value for name, value in results.items() if name != "config"}  # `kept` adds those that count.


def try_out(config: Config) -> None:
    """Raises `ValueError` if there are no data."""
    flags.require(
        config, "data", config.data is None or Path(config.data).is_file(), "a file in OGBench's format, or none to play"
    )


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains what is not in runs.json yet, and shows what was learned."""
    config = flags.parse(Config, try_out, args)
    results = experiment.kept(config.out, config, train)
    print(experiment.table(results))
    tasks = " ".join(f"{rate:.2f}" for rate in np.asarray(results["tasks"])[:, -1].mean(axis=0))
    print(f"tasks 1 to 5 at the end           {tasks}")
    records = experiment.read_records(config.out / "runs.json")
    alike = [each for each in records if each["config"] | {"agent": ""} == flags.counted(config) | {"agent": ""}]
    runs = {each["config"]["agent"]: each for each in alike}
    play_data.draw(config.maze, runs, config.out / "offline.png")
    print(f"written                           {config.out}: runs.json, offline.png")


if __name__ == "__main__":
    main()
