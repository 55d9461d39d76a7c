"""Figure 1 of the HER paper (arXiv:1707.01495, section 3.1): bit-flipping by a DQN with and without HER, by the number of bits.

As there, a cycle plays 16 episodes of n steps side by side and then makes 40 updates, and an episode is a success if it hits
its goal at any step. Everything from the environments to the updates is one scan, seeds are vmapped and shared out among the
devices, and a run stops once all its seeds have solved the task. It can be killed at any time: run again, it goes on.

python examples/figure1.py                        # all of the figure, with and without HER
python examples/figure1.py --bits 20 --seeds 8    # one number of bits
"""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    # A device for each core that this process may use. JAX reads it when it is imported.
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(affinity(0))))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

import bitflip
import herjax
from bitflip import Transition
from herjax import checkpoints
from herjax.envs import BitFlip

NOT_SHARED = ("bits", "num_goals", "out", "checkpoint_seconds", "progress")
"""Settings in which the runs of one figure may differ."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Reproduces Figure 1 of the HER paper."""

    bits: tuple[int, ...] = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50)
    """Numbers of bits, each with runs of its own; an episode has as many steps."""
    num_goals: tuple[int, ...] = (4, 0)
    """Hindsight goals per transition, for each of which there are runs; 0: no HER."""
    strategy: str = "future"
    """Where hindsight goals come from: future, final, episode or random."""
    seeds: int = 3
    """Independent runs, vmapped, and shared out among the devices."""
    seed: int = 0
    """Where all randomness starts."""
    cycles: int = 3200
    """The most cycles of a run."""
    eval_every: int = 100
    """Cycles between evaluations."""
    eval_episodes: int = 1000
    """Greedy episodes of an evaluation; what is reported at the end is one more, on fresh episodes."""
    solved: float = 0.995
    """A run stops when the last two evaluations of each seed have this success rate."""
    episodes: int = 16
    """Episodes of a cycle, side by side."""
    updates: int = 40
    """Updates of a cycle."""
    batch_size: int = 128
    """Transitions in an update."""
    capacity: int = 1_000_000
    """Transitions held, rounded up to a multiple of episodes."""
    hidden: tuple[int, ...] = (256,)
    """Units of the hidden layers."""
    discount: float = 0.98
    """Gamma; targets are clipped to [-1 / (1 - gamma), 0]."""
    learning_rate: float = 1e-3
    """Of Adam."""
    final_learning_rate: float = 1e-4
    """Of Adam after the last cycle, to which it falls linearly over the second half of them."""
    target_decay: float = 0.95
    """Share of the target network that stays at the end of a cycle."""
    epsilon: float = 0.2
    """Probability of a random action."""
    double: bool = False
    """Whether targets are those of Double Q-learning."""
    out: Path = Path("results/figure1")
    """Folder for results.json, figure1.png and what an interrupted run needs to go on."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints, at least; they are made after evaluations."""
    progress: bool = True
    """Whether to show progress bars."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one set of seeds is to learn."""

    num_bits: int
    num_goals: int

    @property
    def name(self) -> str:
        """The curve's key in results.json and the name of its checkpoint's folder."""
        return f"{self.num_bits}_bits_{self.num_goals}_goals"


class Loop(NamedTuple):
    """All that one seed's training goes on from; what a checkpoint holds."""

    params: optax.Params
    target_params: optax.Params
    opt_state: optax.OptState
    buffer: herjax.BufferState
    cycle: jax.Array  # int32 []; cycles made.


def network(config: Config, curve: Curve) -> bitflip.QNetwork:
    """The Q-network."""
    return bitflip.QNetwork(curve.num_bits, config.hidden)


def q_values(config: Config, curve: Curve, params: optax.Params, observation: jax.Array, goal: jax.Array) -> jax.Array:
    """Values of all actions, for bits uint8 or float [..., num_bits] that the network sees as -1 and 1."""
    signs = (2 * bits.astype(jnp.float32) - 1 for bits in (observation, goal))
    values: jax.Array = network(config, curve).apply(params, *signs)
    return values


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam, whose learning rate falls in the second half."""
    half = config.cycles * config.updates // 2
    return optax.adam(optax.linear_schedule(config.learning_rate, config.final_learning_rate, half, half))


def start(config: Config, curve: Curve, key: jax.Array) -> Loop:
    """A seed before its first cycle."""
    bits = jax.ShapeDtypeStruct((curve.num_bits,), jnp.uint8)
    buffer = herjax.init(
        Transition(bits, jax.ShapeDtypeStruct((), jnp.int32), bits),
        capacity=-(-config.capacity // config.episodes) * config.episodes,
        max_episode_length=curve.num_bits,
        goal_fn=bitflip.achieved_goal,
        reward_fn=bitflip.reward,
        terminated_fn=bitflip.terminated,
        strategy=config.strategy,
        num_goals=curve.num_goals,
        relabel="sample",
        num_envs=config.episodes,
    )
    no_bits = jnp.zeros(curve.num_bits)
    params = network(config, curve).init(key, no_bits, no_bits)
    return Loop(params, params, optimizer(config).init(params), buffer, jnp.int32(0))


class Episodes(NamedTuple):
    """E episodes of num_bits steps, played side by side; steps come first."""

    transitions: Transition  # Leaves [num_bits, E, ...]
    goal: jax.Array  # uint8 [E, num_bits]
    success: jax.Array  # bool [E]; whether the goal was hit at any step.


def play(config: Config, curve: Curve, params: optax.Params, key: jax.Array, *, episodes: int, epsilon: float) -> Episodes:
    """Plays whole episodes, which go on after their goal is hit."""
    env = BitFlip(curve.num_bits)
    key_reset, key_act, key_env = jax.random.split(key, 3)
    _, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(key_reset, episodes), env.default_params)
    chances = jax.random.uniform(key_act, (curve.num_bits, 2, episodes))

    def step(state: Any, chance: jax.Array) -> tuple[Any, tuple[Transition, jax.Array]]:
        greedy = jnp.argmax(q_values(config, curve, params, state.bits, state.goal), axis=-1)
        action = jnp.where(chance[0] < epsilon, jnp.floor(chance[1] * curve.num_bits).astype(jnp.int32), greedy)
        # The environment's dynamics draw nothing.
        _, after, _, hit, _ = jax.vmap(env.step_env, (None, 0, 0, None))(key_env, state, action, env.default_params)
        return after, (Transition(state.bits.astype(jnp.uint8), action, after.bits.astype(jnp.uint8)), hit)

    _, (transitions, hits) = jax.lax.scan(step, state, chances)
    return Episodes(transitions, state.goal.astype(jnp.uint8), jnp.any(hits, axis=0))


def targets(config: Config, curve: Curve, loop: Loop, batch: herjax.Sample) -> jax.Array:
    """What Q-learning pulls the values of a batch to, float32 [batch]."""
    values = partial(q_values, config, curve, observation=batch.transition.next_observation, goal=batch.goal)
    target_values = values(loop.target_params)
    chosen = jnp.argmax(values(loop.params) if config.double else target_values, axis=-1)
    value = jnp.take_along_axis(target_values, chosen[:, None], axis=-1)[:, 0]
    bootstrapped = batch.reward + config.discount * jnp.where(batch.terminated, 0.0, value)
    return jnp.clip(bootstrapped, -1 / (1 - config.discount), 0.0)


def learn(config: Config, curve: Curve, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """A cycle's updates, on batches drawn at once, as the target network stays as it is between them; returns the loss []."""
    batch = herjax.sample(loop.buffer, key, config.updates * config.batch_size)
    data = (batch.transition.observation, batch.transition.action, batch.goal, targets(config, curve, loop, batch))
    batches = jax.tree.map(lambda leaf: leaf.reshape(config.updates, config.batch_size, *leaf.shape[1:]), data)

    def update(carry: tuple[Any, Any], data: tuple[jax.Array, ...]) -> tuple[tuple[Any, Any], jax.Array]:
        params, opt_state = carry
        observation, action, goal, target = data

        def loss_fn(params: optax.Params) -> jax.Array:
            values = q_values(config, curve, params, observation, goal)
            value = jnp.take_along_axis(values, action[:, None], axis=-1)[:, 0]
            return jnp.mean(optax.squared_error(value, target))

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer(config).update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    (params, opt_state), losses = jax.lax.scan(update, (loop.params, loop.opt_state), batches)
    target_params = optax.incremental_update(params, loop.target_params, 1 - config.target_decay)
    return loop._replace(params=params, target_params=target_params, opt_state=opt_state), jnp.mean(losses)


def cycle(config: Config, curve: Curve, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """Plays episodes, stores them, and learns; returns the loss []."""
    key_play, key_goals, key_learn = jax.random.split(key, 3)
    episodes = play(config, curve, loop.params, key_play, episodes=config.episodes, epsilon=config.epsilon)
    buffer, _ = jax.lax.scan(lambda buffer, t: (herjax.add(buffer, t), None), loop.buffer, episodes.transitions)
    buffer = herjax.end_episode(buffer, episodes.goal, key_goals)
    return learn(config, curve, loop._replace(buffer=buffer, cycle=loop.cycle + 1), key_learn)


class Evaluation(NamedTuple):
    """What is measured after some cycles, float32 [] each."""

    success_rate: jax.Array  # Of greedy episodes.
    loss: jax.Array  # Mean over the cycles since the last evaluation.


def train(config: Config, curve: Curve, loop: Loop, key: jax.Array) -> tuple[Loop, Evaluation]:
    """The cycles up to the next evaluation, and that; `key` is the seed's own, from which those of any cycle follow."""
    key_here = jax.random.fold_in(key, loop.cycle)
    key_cycles, key_evaluation = jax.random.split(key_here)
    loop, losses = jax.lax.scan(partial(cycle, config, curve), loop, jax.random.split(key_cycles, config.eval_every))
    return loop, Evaluation(success_rate(config, curve, loop, key_evaluation), jnp.mean(losses))


def success_rate(config: Config, curve: Curve, loop: Loop, key: jax.Array) -> jax.Array:
    """The share of greedy episodes that hit their goal, float32 []."""
    success = play(config, curve, loop.params, key, episodes=config.eval_episodes, epsilon=0.0).success
    return jnp.mean(success.astype(jnp.float32))


class Trainer:
    """The seeds of one curve on all devices: a state, and a program that takes it to the next evaluation."""

    def __init__(self, config: Config, curve: Curve) -> None:
        mesh, share = bitflip.share_out(config.seeds)
        spec = jax.sharding.PartitionSpec("seed")
        share_vmapped = partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        # Seeds past the last only fill up a device: they repeat it, and nobody looks at them.
        number = jnp.minimum(jnp.arange(mesh.size * share), config.seeds - 1)
        self._keys = jax.random.split(jax.random.key(config.seed), 3 * config.seeds).reshape(config.seeds, 3)[number]
        self._start = jax.jit(share_vmapped(jax.vmap(partial(start, config, curve))))
        self._train = jax.jit(share_vmapped(jax.vmap(partial(train, config, curve))), donate_argnums=0)
        self._evaluate = jax.jit(share_vmapped(jax.vmap(partial(success_rate, config, curve))))
        self.loops: Loop = self._start(self._keys[:, 0])

    def advance(self) -> Evaluation:
        """Trains up to the next evaluation; float32 arrays [seeds]."""
        self.loops, evaluation = self._train(self.loops, self._keys[:, 1])
        return jax.tree.map(np.asarray, evaluation)

    def evaluate(self) -> np.ndarray:
        """The success of each seed, and of those that fill up, on episodes that decided nothing: float32 [seeds or more]."""
        return np.asarray(self._evaluate(self.loops, self._keys[:, 2]))


def is_solved(config: Config, figures: dict[str, Any]) -> bool:
    """Whether the last two evaluations of each seed were good enough."""
    rates = np.asarray(figures["success_rate"])[-2:]
    return len(rates) == 2 and bool(np.all(rates >= config.solved))


def run_curve(config: Config, curve: Curve) -> dict[str, Any]:
    """Trains the seeds of one curve until they have solved the task or used up their cycles; returns its figures."""
    trainer, unfinished = Trainer(config, curve), unfinished_folder(config, curve)
    figures: dict[str, Any] = {"cycles": [], "success_rate": [], "loss": [], "seconds": 0.0}
    if (saved := checkpoints.restore(unfinished, trainer.loops, settings=training_settings(config))) is not None:
        trainer.loops, figures = saved
    saved_at = time.monotonic()
    goals = f"HER {config.strategy}, k = {curve.num_goals}" if curve.num_goals else "without HER"
    done = len(figures["cycles"]) * config.eval_every
    label = f"{curve.num_bits:>3} bits, {goals}"
    with tqdm(desc=label, total=config.cycles, initial=done, unit="cycle", disable=not config.progress) as bar:
        while done < config.cycles and not is_solved(config, figures):
            began = time.perf_counter()
            evaluation = trainer.advance()
            figures["seconds"] += time.perf_counter() - began
            done += config.eval_every
            figures["cycles"].append(done)
            for name, values in evaluation._asdict().items():
                figures[name].append(values[: config.seeds].tolist())
            bar.set_postfix_str(f"success {np.mean(figures['success_rate'][-1]):.3f}", refresh=False)
            bar.update(config.eval_every)
            if time.monotonic() - saved_at >= config.checkpoint_seconds:
                checkpoints.save(unfinished, trainer.loops, settings=training_settings(config), notes=figures)
                saved_at = time.monotonic()
    figures["final_success_rate"] = trainer.evaluate()[: config.seeds].tolist()
    return figures


def unfinished_folder(config: Config, curve: Curve) -> Path:
    """Where a curve's training is kept until results.json has its figures."""
    return config.out / "unfinished" / curve.name


def training_settings(config: Config) -> dict[str, Any]:
    """The settings that all curves of a figure share, by name."""
    return {name: value for name, value in plain(config).items() if name not in NOT_SHARED}


def plain(config: Config) -> dict[str, Any]:
    """All settings as JSON brings them back."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()}
    return dict(json.loads(json.dumps(settings)))


def summary(config: Config, curve: Curve, figures: dict[str, Any]) -> str:
    """One line about a finished curve."""
    rates = np.asarray(figures["final_success_rate"])
    each = " ".join(f"{rate:.3f}" for rate in rates)
    updates = figures["cycles"][-1] * config.updates
    return f"{curve.num_bits:>5} {curve.num_goals:>3} {rates.mean():8.3f}   {each}  {updates:>9,} {figures['seconds']:8.1f}"


def plot(config: Config, curves: dict[str, Any], path: Path) -> None:
    """Draws success against the number of bits: the mean of the seeds, and the span between the least and the best of them."""
    import matplotlib  # noqa: PLC0415 - only the end of a run needs it.

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for num_goals in config.num_goals:
        bits = [n for n in sorted(config.bits) if Curve(n, num_goals).name in curves]
        rates = [curves[Curve(n, num_goals).name]["final_success_rate"] for n in bits]
        label = f"DQN + HER ({config.strategy}, k = {num_goals})" if num_goals else "DQN"
        line = axes.plot(bits, np.mean(rates, axis=1), marker="o", label=label)[0]
        axes.fill_between(bits, np.min(rates, axis=1), np.max(rates, axis=1), color=line.get_color(), alpha=0.2)
    axes.set(
        title=f"Bit-flipping, mean and span of {config.seeds} seeds",
        xlabel="number of bits",
        ylabel="success rate (greedy)",
        ylim=(-0.03, 1.03),
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def recorded(config: Config) -> dict[str, Any]:
    """What results.json holds, without any curve yet; refuses to go on with runs of other settings."""
    results = {
        "config": plain(config),
        "device": jax.local_devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "curves": {},
    }
    file = config.out / "results.json"
    if not file.exists():
        return results
    before = json.loads(file.read_text())
    for name, new in training_settings(config).items():
        old = before["config"].get(name, new)
        if old != new:
            raise ValueError(f"{file} was begun with {name} {old}, and now it is {new}; give the same, or another --out.")
    return results | {"curves": before["curves"]}


def main(args: Sequence[str] | None = None) -> None:
    """Trains every curve that is not finished, and shows all of them."""
    config = tyro.cli(Config, args=args)
    config.out.mkdir(parents=True, exist_ok=True)
    results = recorded(config)
    lines = [f"{'bits':>5} {'k':>3} {'success':>8}   each seed{' ' * (6 * config.seeds - 9)}  {'updates':>9} {'seconds':>8}"]
    for curve in [Curve(bits, num_goals) for num_goals in config.num_goals for bits in config.bits]:
        if curve.name not in results["curves"]:
            results["curves"][curve.name] = run_curve(config, curve)
            checkpoints.replace_file(config.out / "results.json", json.dumps(results, indent=1))
            checkpoints.discard(unfinished_folder(config, curve))
        lines.append(summary(config, curve, results["curves"][curve.name]))
    plot(config, results["curves"], config.out / "figure1.png")
    print("\n".join(lines))
    print(f"written {config.out / 'results.json'}, {config.out / 'figure1.png'}")


if __name__ == "__main__":
    main()
