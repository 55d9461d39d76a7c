"""Bit-flipping solved by a goal-conditioned Double DQN with HER and prioritised replay, all inside one scan.

Seeds are vmapped, and shared out among the devices that there are: GPUs, TPUs, or the cores of the CPU.

python examples/bitflip.py                                  # solves 10 bits
python examples/bitflip.py --num-bits 15 --num-goals 0      # no hindsight: does not learn
python examples/bitflip.py --num-bits 20 --steps 60000 --strategy future --seeds 8
python examples/bitflip.py --num-steps 3 --strategy future=0.8,random=0.2 --relabel sample --hindsight-ratio 0.9
python examples/bitflip.py --checkpoint results/checkpoint  # killed and run again, it goes on where it was
"""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

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
from tqdm import tqdm

import herjax
from herjax import checkpoints
from herjax.envs import BitFlip

STRATEGIES = ("future", "final", "episode", "random")
KEYS_A_STEP = 4
"""Keys that a training step uses up. They are split for all steps at once, off the hot path."""
NOT_TRAINING = ("out", "log_dir", "checkpoint", "checkpoint_seconds", "progress")
"""Settings that may differ when a run goes on."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a Double DQN with Hindsight Experience Replay on bit-flipping."""

    num_bits: int = 10
    """Bits to flip, and actions to choose from."""
    steps: int = 15_000
    """Environment steps of each seed, one update each; a multiple of eval-every."""
    seeds: int = 5
    """Independent runs, vmapped, and shared out among the devices."""
    seed: int = 0
    """Where all randomness starts."""
    strategy: str = "future"
    """Where hindsight goals come from: future, final, episode, random, or weights of several: future=0.8,random=0.2."""
    num_goals: int = 4
    """Hindsight goals per transition; 0: no HER."""
    relabel: str = "episode_end"
    """When hindsight goals are drawn: episode_end, once, or sample, afresh for each batch."""
    hindsight_ratio: float | None = None
    """Share of a batch with hindsight goals, only with relabel sample; by default k / (k + 1) for k goals per transition."""
    prioritized: bool = True
    """Prioritised or uniform replay."""
    priority_exponent: float = 0.6
    """Alpha of prioritised replay."""
    beta: float = 0.4
    """Exponent of the importance weights at first; rises to 1."""
    capacity: int = 200_000
    """Transitions held, hindsight copies not counted."""
    batch_size: int = 64
    """Transitions in an update."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of the hidden layers."""
    learning_rate: float = 1e-3
    """Of Adam."""
    discount: float = 0.99
    """Gamma."""
    num_steps: int = 1
    """Steps of an n-step return."""
    epsilon: float = 0.1
    """Probability of a random action."""
    target_period: int = 1000
    """Steps between copies to the target network."""
    max_episode_length: int = 100
    """Steps after which an episode is truncated."""
    eval_every: int = 100
    """Steps between evaluations."""
    eval_episodes: int = 20
    """Greedy episodes of an evaluation."""
    out: Path = Path("results/bitflip")
    """Folder for results.json and success_rate.png."""
    log_dir: Path | None = None
    """Folder for TensorBoard scalars; none by default."""
    checkpoint: Path | None = None
    """Folder that keeps the whole state of training: an interrupted run, started again, goes on from it. None by default."""
    checkpoint_seconds: float = 10.0
    """Time between checkpoints, at least."""
    progress: bool = True
    """Whether to show a progress bar."""


class Transition(NamedTuple):
    """One step of the environment."""

    observation: jax.Array  # float32 [num_bits]
    action: jax.Array  # int32 []
    next_observation: jax.Array  # float32 [num_bits]; before any reset.


class Agent(NamedTuple):
    """What learning changes."""

    params: optax.Params
    target_params: optax.Params
    opt_state: optax.OptState


class Loop(NamedTuple):
    """The carry of the scan."""

    agent: Agent
    buffer: herjax.BufferState
    env_state: Any
    observation: dict[str, jax.Array]


class Metrics(NamedTuple):
    """What is measured at each of E evaluations, float32 [E] each."""

    success_rate: jax.Array  # Of the greedy episodes.
    loss: jax.Array  # Mean over the steps since the last evaluation.


def glorot_uniform(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """The initializer of flax, drawn flat: a matrix of random numbers takes XLA up to four times as long to compile."""
    limit = (6 / sum(shape)) ** 0.5
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


class QNetwork(nn.Module):
    """Values of all actions for an observation and the goal beside it: [..., num_bits] twice -> [..., num_actions]."""

    num_actions: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, observation: jax.Array, goal: jax.Array) -> jax.Array:
        """Q(observation, goal, .)."""
        x = jnp.concatenate([observation, goal], axis=-1)
        dense = partial(nn.Dense, kernel_init=glorot_uniform)
        for units in self.hidden:
            x = nn.relu(dense(units)(x))
        return dense(self.num_actions)(x)


def achieved_goal(transition: Transition) -> jax.Array:
    """The goal that the transition achieved."""
    return transition.next_observation


def reward(transition: Transition, goal: jax.Array) -> jax.Array:
    """0 where the goal is reached, else -1."""
    return terminated(transition, goal).astype(jnp.float32) - 1


def terminated(transition: Transition, goal: jax.Array) -> jax.Array:
    """Reaching the goal ends the episode."""
    return jnp.all(transition.next_observation == goal)


def parse_strategy(text: str) -> Any:
    """The strategy that a flag names, or the mixture whose weights it gives, as "future=0.8,random=0.2"."""
    try:
        weights = [part.split("=") for part in text.split(",")] if "=" in text else [[text, "1"]]
        mixture = {name: float(weight) for name, weight in weights}
        if len(mixture) < len(weights):
            raise ValueError("a name is given twice")
        return herjax.mixture(mixture)
    except ValueError as error:
        remedy = f"give one of {', '.join(STRATEGIES)}, or weights such as future=0.8,random=0.2."
        raise ValueError(f"--strategy is {text}; {remedy}") from error


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
        strategy=parse_strategy(config.strategy),
        num_goals=config.num_goals,
        relabel=config.relabel,
        num_steps=config.num_steps,
        discount=config.discount,
        priority_exponent=config.priority_exponent if config.prioritized else None,
        num_envs=num_envs,
    )


def make_env(config: Config) -> tuple[BitFlip, Any]:
    """The environment and its parameters."""
    env = BitFlip(config.num_bits)
    return env, env.default_params.replace(max_steps_in_episode=config.max_episode_length)


def make_network(config: Config) -> QNetwork:
    """The Q-network."""
    return QNetwork(config.num_bits, config.hidden)


def start(config: Config, key: jax.Array) -> Loop:
    """The state of a run before its first step."""
    key_params, key_env = jax.random.split(key)
    env, params = make_env(config)
    observation, env_state = env.reset(key_env, params)
    weights = make_network(config).init(key_params, observation["observation"], observation["desired_goal"])
    agent = Agent(weights, weights, optax.adam(config.learning_rate).init(weights))
    return Loop(agent, make_buffer(config), env_state, observation)


def act(config: Config, params: optax.Params, observation: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """An epsilon-greedy action, int32 []."""
    values = make_network(config).apply(params, observation["observation"], observation["desired_goal"])
    explore, choice = jax.random.uniform(key, 2)
    random_action = jnp.floor(choice * config.num_bits).astype(jnp.int32)
    return jnp.where(explore < config.epsilon, random_action, jnp.argmax(values))


def td_errors(config: Config, params: optax.Params, target_params: optax.Params, batch: herjax.Sample) -> jax.Array:
    """Double Q-learning's errors (van Hasselt et al. 2016, arXiv:1509.06461), [batch_size]."""
    network = make_network(config)
    transition = batch.transition
    values = network.apply(params, transition.observation, batch.goal)
    value = jnp.take_along_axis(values, transition.action[:, None], axis=1)[:, 0]
    next_observation = batch.last.next_observation
    next_action = jnp.argmax(network.apply(params, next_observation, batch.goal), axis=1)
    next_values = network.apply(target_params, next_observation, batch.goal)
    next_value = jnp.take_along_axis(next_values, next_action[:, None], axis=1)[:, 0]
    return jax.lax.stop_gradient(batch.reward + batch.discount * next_value) - value


def update(config: Config, agent: Agent, batch: herjax.Sample, step: jax.Array) -> tuple[Agent, jax.Array, jax.Array]:
    """One step of Adam; returns the agent, the TD errors [batch_size] and the loss []."""

    def loss_fn(params: optax.Params) -> tuple[jax.Array, jax.Array]:
        errors = td_errors(config, params, agent.target_params, batch)
        return jnp.mean(batch.weights * optax.huber_loss(errors)), errors

    (loss, errors), gradients = jax.value_and_grad(loss_fn, has_aux=True)(agent.params)
    updates, opt_state = optax.adam(config.learning_rate).update(gradients, agent.opt_state)
    params = optax.apply_updates(agent.params, updates)
    target_params = optax.periodic_update(params, agent.target_params, step + 1, config.target_period)
    return Agent(params, target_params, opt_state), errors, loss


class Outcome(NamedTuple):
    """What one step of the environment brought."""

    transition: Transition
    goal: jax.Array  # float32 [num_bits]; the goal that was pursued.
    done: jax.Array  # bool []; whether the episode ended.
    env_state: Any
    observation: dict[str, jax.Array]


def interact(config: Config, loop: Loop, key_act: jax.Array, key_env: jax.Array) -> Outcome:
    """Takes one step in the environment."""
    env, params = make_env(config)
    action = act(config, loop.agent.params, loop.observation, key_act)
    observation, env_state, _, ended, truncated, info = env.step(key_env, loop.env_state, action, params)
    # The environment resets itself: what the action led to is the final observation.
    transition = Transition(loop.observation["observation"], action, info["final_observation"]["observation"])
    return Outcome(transition, loop.observation["desired_goal"], ended | truncated, env_state, observation)


def train_step(config: Config, loop: Loop, step_and_keys: tuple[jax.Array, jax.Array]) -> tuple[Loop, jax.Array]:
    """Acts once, stores what happened, and learns from a batch; takes `KEYS_A_STEP` keys, returns the loss."""
    step, (key_act, key_env, key_goals, key_sample) = step_and_keys
    outcome = interact(config, loop, key_act, key_env)
    buffer = herjax.add(loop.buffer, outcome.transition)
    buffer = herjax.end_episode(buffer, outcome.goal, key_goals, done=outcome.done)
    beta = config.beta + (1 - config.beta) * (step / config.steps)
    batch = herjax.sample(buffer, key_sample, config.batch_size, beta=beta, hindsight_ratio=config.hindsight_ratio)
    agent, errors, loss = update(config, loop.agent, batch, step)
    if config.prioritized:
        buffer = herjax.update_priorities(buffer, batch.indices, jnp.abs(errors))
    return Loop(agent, buffer, outcome.env_state, outcome.observation), loss


def evaluate(config: Config, params: optax.Params, keys: jax.Array) -> jax.Array:
    """The share of greedy episodes that reach their goal, float32 []; takes a key for each episode and one for all steps."""
    env, env_params = make_env(config)
    network = make_network(config)
    key_step, keys_reset = keys[0], keys[1:]
    observation, state = jax.vmap(env.reset_env, (0, None))(keys_reset, env_params)

    def unfinished(carry: tuple[Any, Any, jax.Array]) -> jax.Array:
        _, state, success = carry
        return jnp.any(~success & (state.time < config.max_episode_length))

    def step(carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
        observation, state, success = carry
        action = jnp.argmax(network.apply(params, observation["observation"], observation["desired_goal"]), axis=-1)
        observation, state, _, ended, _ = jax.vmap(env.step_env, (None, 0, 0, None))(key_step, state, action, env_params)
        return observation, state, success | ended

    success = jnp.zeros(config.eval_episodes, bool)
    return jnp.mean(jax.lax.while_loop(unfinished, step, (observation, state, success))[2].astype(jnp.float32))


class Part(NamedTuple):
    """Which stretch of which run."""

    keys: jax.Array  # [2]; for all steps and all evaluations of the run, the same in every part.
    first: jax.Array  # int32 []; the number of its first evaluation.


def train_part(
    config: Config, evaluations: int, loop: Loop, part: Part, report: Callable[[jax.Array], None]
) -> tuple[Loop, Metrics]:
    """A scan over so many evaluations of a scan over the steps up to each; `report` is called with every success rate."""
    key_steps, key_evals = part.keys
    number = config.steps // config.eval_every
    steps = jnp.arange(config.steps).reshape(number, config.eval_every)
    keys = jax.random.split(key_steps, steps.size * KEYS_A_STEP).reshape(*steps.shape, KEYS_A_STEP)
    eval_keys = jax.random.split(key_evals, number * (1 + config.eval_episodes)).reshape(number, -1)
    xs = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, part.first, evaluations), (steps, keys, eval_keys))

    def train_and_evaluate(loop: Loop, xs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Loop, Metrics]:
        steps, keys, eval_keys = xs
        loop, losses = jax.lax.scan(partial(train_step, config), loop, (steps, keys))
        success_rate = evaluate(config, loop.agent.params, eval_keys)
        report(success_rate)
        return loop, Metrics(success_rate, jnp.mean(losses))

    return jax.lax.scan(train_and_evaluate, loop, xs)


def train(config: Config, key: jax.Array, report: Callable[[jax.Array], None] = lambda _: None) -> Metrics:
    """One whole run. Pure, to be jitted and vmapped over keys.

    Args:
      config: the settings, static.
      key: all of the run's randomness; used up.
      report: called, while tracing, with the success rate of an evaluation.
    """
    keys = jax.random.split(key, 3)
    whole = Part(keys[1:], jnp.int32(0))
    _, metrics = train_part(config, config.steps // config.eval_every, start(config, keys[0]), whole, report)
    return metrics


class Progress:
    """A bar that counts the steps of all seeds and shows their success rate."""

    def __init__(self, steps: int, eval_every: int, seeds: int, *, show: bool) -> None:
        self._eval_every = eval_every
        self._bar = tqdm(total=steps * seeds, unit="step", unit_scale=True, disable=not show)
        self._latest = np.zeros(seeds)

    def report(self, seed: jax.Array, success_rate: jax.Array) -> None:
        """One seed's evaluation; nothing for a seed that only fills up a device."""
        number = int(seed)  # No computation of JAX's here, which would wait for the program that waits for this.
        if number >= len(self._latest):
            return
        self._latest[number] = success_rate
        self._bar.set_postfix_str(f"success {self._latest.mean():.2f}", refresh=False)
        self._bar.update(self._eval_every)

    def resume(self, success_rate: list[list[float]]) -> None:
        """What an earlier run has done, by seed."""
        if success_rate[0]:
            self._latest[:] = [rates[-1] for rates in success_rate]
            self._bar.update(self._eval_every * sum(map(len, success_rate)))

    def close(self) -> None:
        """Leaves the bar where it stands."""
        self._bar.close()


def share_out(num_seeds: int) -> tuple[jax.sharding.Mesh, int]:
    """The devices that train, as a mesh with the axis "seed", and how many seeds each of them gets."""
    devices = jax.local_devices()
    share = math.ceil(num_seeds / len(devices))
    return jax.sharding.Mesh(np.asarray(devices[: math.ceil(num_seeds / share)]), ("seed",)), share


def run(config: Config) -> dict[str, Any]:
    """Trains all seeds, from where an interrupted run left off if there is one, and returns what results.json holds."""
    began = time.perf_counter()
    evaluations = config.steps // config.eval_every
    part_evaluations = evaluations
    if config.checkpoint is not None:  # A part is short, so that the next checkpoint is never far, and all are alike.
        part_evaluations = max(n for n in range(1, 11) if evaluations % n == 0)
    progress = Progress(config.steps, config.eval_every, config.seeds, show=config.progress)
    mesh, share = share_out(config.seeds)
    spec = jax.sharding.PartitionSpec("seed")
    on_devices = partial(jax.shard_map, mesh=mesh, check_vma=False, out_specs=spec)
    seeds = jnp.arange(mesh.size * share)  # Those past the last only fill up a device: they repeat it, and are not reported.
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)[jnp.minimum(seeds, config.seeds - 1)]
    keys = jax.vmap(partial(jax.random.split, num=3))(keys)  # As in `train`.

    def go_on(loop: Loop, part: Part, seed: jax.Array) -> tuple[Loop, Metrics]:
        return train_part(config, part_evaluations, loop, part, partial(jax.debug.callback, progress.report, seed))

    loops = jax.jit(on_devices(jax.vmap(partial(start, config)), in_specs=spec))(keys[:, 0])
    loops, figures = restore(config, loops)
    program = jax.jit(on_devices(jax.vmap(go_on), in_specs=spec), donate_argnums=0)
    go_on_all = program.lower(loops, Part(keys[:, 1:], jnp.zeros_like(seeds)), seeds).compile()
    progress.resume(figures["success_rate"])
    compile_seconds = time.perf_counter() - began
    saved = time.monotonic()
    while (done := len(figures["loss"][0])) < evaluations:
        began = time.perf_counter()
        loops, metrics = jax.block_until_ready(go_on_all(loops, Part(keys[:, 1:], jnp.full_like(seeds, done)), seeds))
        jax.effects_barrier()
        figures["seconds"] += time.perf_counter() - began
        for name, values in metrics._asdict().items():
            figures[name] = np.concatenate([figures[name], np.asarray(values)[: config.seeds]], axis=1).tolist()
        is_last = done + part_evaluations == evaluations
        if config.checkpoint is not None and (is_last or time.monotonic() - saved >= config.checkpoint_seconds):
            checkpoints.save(config.checkpoint, loops, settings=training_settings(config), notes=figures)
            saved = time.monotonic()
    progress.close()
    buffer = jax.eval_shape(partial(make_buffer, config))
    return {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()},
        "eval_steps": list(range(config.eval_every, config.steps + 1, config.eval_every)),
        **figures,
        "compile_seconds": compile_seconds,
        "steps_per_second": config.steps * config.seeds / figures["seconds"],
        "buffer_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer)),
        "device": jax.local_devices()[0].device_kind,
        "devices": mesh.size,
    }


def training_settings(config: Config) -> dict[str, Any]:
    """What a run must go on with; on other devices its seeds would be shared out, and rounded, differently."""
    settings = {name: value for name, value in vars(config).items() if name not in NOT_TRAINING}
    return {"devices": jax.local_device_count()} | settings


def restore(config: Config, loops: Loop) -> tuple[Loop, dict[str, Any]]:
    """Where an interrupted run stood, and its figures so far; those of a new one where nothing is saved."""
    none: list[list[float]] = [[] for _ in range(config.seeds)]
    new = (loops, {"success_rate": none, "loss": none, "seconds": 0.0})
    if config.checkpoint is None:
        return new
    try:
        return checkpoints.restore(config.checkpoint, loops, settings=training_settings(config)) or new
    except ValueError as error:
        refuse(error)


def refuse(error: object, program: str = "bitflip.py") -> NoReturn:
    """Says in one line what cannot be done, and ends the program."""
    print(f"{program}: {error}", file=sys.stderr)
    sys.exit(2)


def table(results: dict[str, Any], rows: int = 15) -> str:
    """The success rate by step, and what the run cost, as text."""
    rates = np.asarray(results["success_rate"])  # [seeds, E]
    lines = [f"{'step':>9} {'mean':>6} {'std':>6} {'min':>6} {'max':>6}"]
    shown = np.unique(np.linspace(0, rates.shape[1] - 1, rows).round().astype(int))
    for e in shown:
        at = rates[:, e]
        lines.append(f"{results['eval_steps'][e]:>9,} {at.mean():6.2f} {at.std():6.2f} {at.min():6.2f} {at.max():6.2f}")
    last = rates[:, -10:].mean(axis=1)
    lines += [
        "",
        f"last ten evaluations, each seed   {' '.join(f'{rate:.2f}' for rate in last)}",
        f"training                          {results['seconds']:.1f} s",
        f"compilation                       {results['compile_seconds']:.1f} s",
        f"steps per second, all seeds       {results['steps_per_second']:,.0f}",
        f"buffer, each seed                 {results['buffer_bytes'] / 2**20:.1f} MiB",
        f"device                            {results['devices']} x {results['device']}",
    ]
    return "\n".join(lines)


def goals_title(config: Any) -> str:
    """Which goals are replayed, for a title."""
    if config.num_goals == 0:
        return "without HER"
    share = f"k = {config.num_goals}" if config.hindsight_ratio is None else f"ratio {config.hindsight_ratio}"
    return f"HER {config.strategy}, {share}"


def plot(results: dict[str, Any], title: str, path: Path) -> None:
    """Draws the mean success rate and every seed's."""
    import matplotlib  # noqa: PLC0415 - only the end of a run needs it.

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    rates = np.asarray(results["success_rate"])
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for seed_rates in rates:
        axes.plot(results["eval_steps"], seed_rates, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(results["eval_steps"], rates.mean(axis=0), color="tab:blue", linewidth=2, label=f"mean of {len(rates)} seeds")
    axes.set(
        title=title,
        xlabel="environment steps",
        ylabel="success rate (greedy)",
        ylim=(-0.03, 1.03),
    )
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def log_scalars(results: dict[str, Any], folder: Path) -> None:
    """Writes loss and success rate of each seed for TensorBoard."""
    from tensorboardX import SummaryWriter  # noqa: PLC0415 - only where asked for.

    for seed, (rates, losses) in enumerate(zip(results["success_rate"], results["loss"], strict=True)):
        with SummaryWriter(str(folder / f"seed_{seed}")) as writer:
            for step, rate, loss in zip(results["eval_steps"], rates, losses, strict=True):
                writer.add_scalar("success_rate", rate, step)
                writer.add_scalar("loss", loss, step)


def require(config: Any, name: str, good: bool, remedy: str) -> None:
    """Raises `ValueError` that says, in one line, what is wrong with a flag and what to give instead."""
    if not good:
        raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}; give {remedy}.")


def check_numbers(config: Any, *, counts: Sequence[str], shares: Sequence[str], weights: Sequence[str]) -> None:
    """Raises `ValueError` where a flag is not the kind of number that it must be, or where goals or layers make no sense."""
    for name in counts:
        require(config, name, getattr(config, name) >= 1, "at least 1")
    for name in shares:
        require(config, name, 0 <= getattr(config, name) <= 1, "a number from 0 to 1")
    for name in weights:
        require(config, name, 0 <= getattr(config, name) < float("inf"), "a finite number >= 0")
    require(config, "hidden", min(config.hidden, default=1) >= 1, "at least 1 unit in each layer")
    require(config, "num_goals", config.num_goals >= 0, "0 for no HER, or a number of hindsight goals per transition")
    parse_strategy(config.strategy)
    require(config, "relabel", config.relabel in ("episode_end", "sample"), "episode_end or sample")
    ratio = config.hindsight_ratio
    good = ratio is None or (0 <= ratio <= 1 and config.relabel == "sample" and config.num_goals > 0)
    require(config, "hindsight_ratio", good, "a number from 0 to 1, with --relabel sample and hindsight goals")


def check(config: Config) -> None:
    """Raises `ValueError` that says, in one line, what is wrong with the flags and what to give instead."""
    check_numbers(
        config,
        counts=(
            "num_bits",
            "seeds",
            "steps",
            "batch_size",
            "num_steps",
            "target_period",
            "max_episode_length",
            "eval_every",
            "eval_episodes",
        ),
        shares=("epsilon", "discount", "beta"),
        weights=("learning_rate", "priority_exponent"),
    )
    is_folder = config.checkpoint is None or not config.checkpoint.is_file()
    require(config, "checkpoint", is_folder, "a folder, not a file")
    require(config, "steps", config.steps % config.eval_every == 0, f"a multiple of --eval-every, {config.eval_every}")
    episode = config.max_episode_length
    remedy = f"room for one episode, --max-episode-length, {episode}, at least"
    require(config, "capacity", config.capacity >= episode, remedy)
    jax.eval_shape(partial(make_buffer, config))  # The buffer itself knows how large it may get.


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains, and shows what was learned."""
    config = tyro.cli(Config, args=args)
    try:
        check(config)
    except ValueError as error:
        refuse(error)
    results = run(config)
    print(table(results))
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "results.json").write_text(json.dumps(results, indent=1))
    replay = "prioritised" if config.prioritized else "uniform"
    title = f"Bit-flipping, {config.num_bits} bits: Double DQN, {goals_title(config)}, {replay} replay"
    plot(results, title, config.out / "success_rate.png")
    print(f"written                           {config.out / 'results.json'}, {config.out / 'success_rate.png'}")
    if config.log_dir is not None:
        log_scalars(results, config.log_dir)
        print(f"TensorBoard                       {config.log_dir}")


if __name__ == "__main__":
    main()
