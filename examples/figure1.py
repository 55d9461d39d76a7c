"""Figure 1 of the HER paper (arXiv:1707.01495, section 3.1): bit-flipping by a DQN with and without HER, by the number of bits.

As there, a cycle plays 16 episodes of n steps side by side and then makes 40 updates, and an episode is a success if it hits
its goal at any step. Everything from the environments to the updates is one scan, seeds are vmapped and shared out among the
devices, and a run stops once all its seeds have solved the task. It can be killed at any time: run again, it goes on.

python examples/figure1.py                        # all of the figure, with and without HER
python examples/figure1.py --bits 20 --seeds 8    # one number of bits
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
import numpy as np
import optax
import tyro
from flax.training.train_state import TrainState

import flags
import herjax
from flags import Count, Share, Weight
from herjax.envs import BitFlip


@dataclasses.dataclass(frozen=True)
class Config(flags.Flags):
    """Reproduces Figure 1 of the HER paper."""

    bits: flags.Counts = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50)  # Numbers of bits; an episode has as many steps.
    num_goals: tuple[int, ...] = (4, 0)  # Hindsight goals per transition; 0: no HER. Each with each number of bits is a point.
    strategy: str = "future"  # Where hindsight goals come from: future, final, episode or random.
    seeds: Count = 3  # Independent runs of each point, vmapped, and shared out among the devices.
    cycles: flags.Stretches = 3200  # The most cycles of a run; a multiple of eval-every.
    eval_every: Count = 100  # Cycles between evaluations.
    eval_episodes: Count = 1000  # Greedy episodes of an evaluation; what is reported is one more, on fresh episodes.
    solved: Weight = 0.995  # A run stops when the last two evaluations of each seed have this success rate.
    episodes: Count = 16  # Episodes of a cycle, side by side.
    updates: Count = 40  # Updates of a cycle.
    batch_size: Count = 128  # Transitions in an update.
    capacity: Count = 1_000_000  # Transitions held, rounded up to a multiple of episodes.
    hidden: flags.Units = (256,)  # Units of the hidden layers.
    discount: flags.Below1 = 0.98  # Gamma; targets are clipped to [-1 / (1 - gamma), 0].
    learning_rate: Weight = 1e-3  # Of Adam.
    final_learning_rate: Weight = 1e-4  # After the last cycle; it falls linearly over the second half of them.
    target_decay: Share = 0.95  # Share of the target network that stays at the end of a cycle.
    epsilon: Share = 0.2  # Probability of a random action.
    shared: bool = False  # Whether the network has the same weights for every bit.
    double: bool = False  # Whether targets are those of Double Q-learning.
    out: Path = Path("results/figure1")  # Folder for runs.json, figure1.png and what a killed run needs to go on.
    checkpoint: tyro.conf.Suppress[Path | None] = None
    checkpoint_seconds: Weight = 60.0  # Time between checkpoints, at least; they are made after evaluations.

    @property
    def num_bits(self) -> int:
        """Of a point."""
        return self.bits[0]

    def points(self) -> "list[Config]":
        """One for each point of the figure: the same settings, with one number of bits and one of goals."""
        return [dataclasses.replace(self, bits=(bits,), num_goals=(k,)) for k in self.num_goals for bits in self.bits]


class Transition(NamedTuple):
    """One step of the environment."""

    observation: jax.Array  # uint8 [num_bits]
    action: jax.Array  # int32 []
    next_observation: jax.Array  # uint8 [num_bits]


class Loop(NamedTuple):
    """The carry of the scan."""

    agent: TrainState
    target_params: optax.Params
    buffer: herjax.BufferState


class QNetwork(nn.Module):
    """Values of all actions for bits and the goal beside them, which it sees as -1 and 1: [..., num_bits] each.

    With `shared`, every bit has the same weights, and sees itself, its goal, and the mean of all: an action's value then
    depends on its own bit and on the others together, whatever their order.
    """

    hidden: tuple[int, ...]
    shared: bool

    @nn.compact
    def __call__(self, bits: jax.Array, goal: jax.Array) -> jax.Array:
        """Q(bits, goal, .)."""
        x = 2 * jnp.stack([bits, goal], axis=-1).astype(jnp.float32) - 1  # [..., num_bits, 2]
        if not self.shared:
            x = jnp.concatenate([x[..., 0], x[..., 1]], axis=-1)
        for units in self.hidden:
            others = nn.Dense(units)(x.mean(axis=-2, keepdims=True)) if self.shared else 0.0
            x = nn.relu(nn.Dense(units)(x) + others)
        return nn.Dense(1)(x)[..., 0] if self.shared else nn.Dense(bits.shape[-1])(x)


def achieved_goal(transition: Transition) -> jax.Array:
    """The goal that the transition achieved."""
    return transition.next_observation


def reward(transition: Transition, goal: jax.Array) -> jax.Array:
    """0 where the goal is reached, else -1."""
    return terminated(transition, goal).astype(jnp.float32) - 1


def terminated(transition: Transition, goal: jax.Array) -> jax.Array:
    """Targets do not look past a goal that was reached."""
    return jnp.all(transition.next_observation == goal)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam, whose learning rate falls in the second half."""
    half = config.cycles * config.updates // 2
    return optax.adam(optax.linear_schedule(config.learning_rate, config.final_learning_rate, half, half))


def start(config: Config, key: jax.Array) -> Loop:
    """A seed before its first cycle."""
    bits = jnp.zeros(config.num_bits, jnp.uint8)
    buffer = herjax.init(
        Transition(bits, jnp.int32(0), bits),
        capacity=-(-config.capacity // config.episodes) * config.episodes,
        max_episode_length=config.num_bits,
        goal_fn=achieved_goal,
        reward_fn=reward,
        terminated_fn=terminated,
        strategy=config.strategy,
        num_goals=config.num_goals[0],
        relabel="sample",
        num_envs=config.episodes,
    )
    network = QNetwork(config.hidden, config.shared)
    params = network.init(key, bits, bits)
    return Loop(TrainState.create(apply_fn=network.apply, params=params, tx=optimizer(config)), params, buffer)


class Episodes(NamedTuple):
    """E episodes of num_bits steps, played side by side; steps come first."""

    transitions: Transition  # Leaves [num_bits, E, ...]
    goal: jax.Array  # uint8 [E, num_bits]
    success: jax.Array  # bool [E]; whether the goal was hit at any step.


def play(config: Config, agent: TrainState, key: jax.Array, *, episodes: int, epsilon: float) -> Episodes:
    """Plays whole episodes, which go on after their goal is hit."""
    num_bits, env = config.num_bits, BitFlip(config.num_bits)
    key_reset, key_act, key_env = jax.random.split(key, 3)
    _, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(key_reset, episodes), env.default_params)
    chances = jax.random.uniform(key_act, (num_bits, 2, episodes))

    def step(state: Any, chance: jax.Array) -> tuple[Any, tuple[Transition, jax.Array]]:
        greedy = jnp.argmax(agent.apply_fn(agent.params, state.bits, state.goal), axis=-1)
        action = jnp.where(chance[0] < epsilon, jnp.floor(chance[1] * num_bits).astype(jnp.int32), greedy)
        # The environment's dynamics draw nothing.
        _, after, _, hit, _ = jax.vmap(env.step_env, (None, 0, 0, None))(key_env, state, action, env.default_params)
        return after, (Transition(state.bits.astype(jnp.uint8), action, after.bits.astype(jnp.uint8)), hit)

    _, (transitions, hits) = jax.lax.scan(step, state, chances)
    return Episodes(transitions, state.goal.astype(jnp.uint8), jnp.any(hits, axis=0))


def targets(config: Config, loop: Loop, batch: herjax.Sample) -> jax.Array:
    """What Q-learning pulls the values of a batch to, float32 [batch]."""
    values = lambda params: loop.agent.apply_fn(params, batch.transition.next_observation, batch.goal)  # noqa: E731
    target_values = values(loop.target_params)
    chosen = jnp.argmax(values(loop.agent.params) if config.double else target_values, axis=-1)
    value = jnp.take_along_axis(target_values, chosen[:, None], axis=-1)[:, 0]
    bootstrapped = batch.reward + config.discount * jnp.where(batch.terminated, 0.0, value)
    return jnp.clip(bootstrapped, -1 / (1 - config.discount), 0.0)


def learn(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """A cycle's updates, on batches drawn at once, as the target network stays as it is between them; returns the loss []."""
    batch = herjax.sample(loop.buffer, key, config.updates * config.batch_size)
    data = (batch.transition.observation, batch.transition.action, batch.goal, targets(config, loop, batch))
    batches = jax.tree.map(lambda leaf: leaf.reshape(config.updates, config.batch_size, *leaf.shape[1:]), data)

    def update(agent: TrainState, data: tuple[jax.Array, ...]) -> tuple[TrainState, jax.Array]:
        observation, action, goal, target = data

        def loss_fn(params: optax.Params) -> jax.Array:
            values = agent.apply_fn(params, observation, goal)
            value = jnp.take_along_axis(values, action[:, None], axis=-1)[:, 0]
            return jnp.mean(optax.squared_error(value, target))

        loss, gradients = jax.value_and_grad(loss_fn)(agent.params)
        return agent.apply_gradients(grads=gradients), loss

    agent, losses = jax.lax.scan(update, loop.agent, batches)
    target_params = optax.incremental_update(agent.params, loop.target_params, 1 - config.target_decay)
    return Loop(agent, target_params, loop.buffer), jnp.mean(losses)


def cycle(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """Plays episodes, stores them, and learns; returns the loss []."""
    key_play, key_goals, key_learn = jax.random.split(key, 3)
    episodes = play(config, loop.agent, key_play, episodes=config.episodes, epsilon=config.epsilon)
    buffer, _ = jax.lax.scan(lambda buffer, t: (herjax.add(buffer, t), None), loop.buffer, episodes.transitions)
    buffer = herjax.end_episode(buffer, episodes.goal, key_goals)
    return learn(config, loop._replace(buffer=buffer), key_learn)


def success_rate(config: Config, agent: TrainState, key: jax.Array) -> jax.Array:
    """The share of greedy episodes that hit their goal, float32 []."""
    success = play(config, agent, key, episodes=config.eval_episodes, epsilon=0.0).success
    return jnp.mean(success.astype(jnp.float32))


def advance(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Trains up to the next evaluation, and evaluates; returns metrics, float32 [] each."""
    key_cycles, key_evaluation = jax.random.split(key)
    loop, losses = jax.lax.scan(partial(cycle, config), loop, jax.random.split(key_cycles, config.eval_every))
    return loop, {"success_rate": success_rate(config, loop.agent, key_evaluation), "loss": jnp.mean(losses)}


def is_solved(config: Config, figures: dict[str, Any]) -> bool:
    """Whether the last two evaluations of each seed were good enough."""
    rates = np.asarray(figures.get("success_rate", [[]]))[:, -2:]
    return rates.shape[1] == 2 and bool(np.all(rates >= config.solved))


def run_point(config: Config) -> dict[str, Any]:
    """Trains the seeds of one point until they have solved the task or used up their cycles; returns its figures."""
    loops, results = experiment.run(
        config,
        experiment.over_seeds(config, partial(start, config), partial(advance, config)),
        steps=config.eval_every * config.episodes * config.num_bits,
        label=f"{config.num_bits:>3} bits, k = {config.num_goals[0]}",
        is_over=partial(is_solved, config),
    )
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), loops.agent.step.size)
    final = np.asarray(jax.jit(jax.vmap(partial(success_rate, config)))(loops.agent, keys))
    results["updates"] = len(results["eval_steps"]) * config.eval_every * config.updates
    results["success"] = final[: config.seeds].tolist()
    names = ("eval_steps", "updates", "success_rate", "loss", "success", "seconds", "device", "devices")
    return {name: results[name] for name in names}


def plot(config: Config, found: list[dict[str, Any]]) -> None:
    """Draws success against the number of bits: the mean of the seeds, and the span between the least and the best of them."""
    with experiment.axes(config.out / "figure1.png") as axes:
        for goals in config.num_goals:
            curve = [each for each in found if each["config"]["num_goals"] == [goals]]
            bits, rates = zip(*sorted((each["config"]["bits"][0], each["success"]) for each in curve), strict=True)
            label = f"DQN + HER ({config.strategy}, k = {goals})" if goals else "DQN"
            line = axes.plot(bits, np.mean(rates, axis=1), marker="o", label=label)[0]
            axes.fill_between(bits, np.min(rates, axis=1), np.max(rates, axis=1), color=line.get_color(), alpha=0.2)
        title = f"Bit-flipping, mean and span of {config.seeds} seeds"
        axes.set(title=title, xlabel="number of bits", ylabel="success rate (greedy)")
        axes.legend()


def try_out(config: Config) -> None:
    """Raises `ValueError` if a point cannot be trained, or there is none."""
    for name in ("bits", "num_goals"):
        flags.require(config, name, len(getattr(config, name)) > 0, "at least one number")
    for point in config.points():
        jax.eval_shape(partial(start, point), jax.random.key(0))


def main(args: Sequence[str] | None = None) -> None:
    """Trains every point that is not finished, and shows all of them."""
    config = flags.parse(Config, try_out, args)
    found, lines = [], ["bits   k  success    updates  seconds  each seed"]
    for point in config.points():
        figures = experiment.kept(config.out, point, run_point)
        rates, updates, seconds = (figures[name] for name in ("success", "updates", "seconds"))
        line = f"{point.num_bits:>4} {point.num_goals[0]:>3} {np.mean(rates):8.3f} {updates:>10,} {seconds:8.1f}  "
        lines.append(line + " ".join(f"{rate:.3f}" for rate in rates))
        found.append(figures)
    plot(config, found)
    print(*lines, f"written {config.out}: runs.json, figure1.png", sep="\n")


if __name__ == "__main__":
    main()
