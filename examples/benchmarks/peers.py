"""herjax beside cpprb, Stable-Baselines3 and flashbax, on bit-flipping: training steps, calls of the buffer, bytes held.

    taskset -c 0 python examples/benchmarks/peers.py

What differs between them, because the peers do: Stable-Baselines3 learns by DQN without the second network's choice, clips
gradients, has no prioritised replay and relabels when it samples, from bits held as int8. flashbax knows no hindsight: it takes
one row a step where herjax adds five on average, and gives no importance weights. Training starts with
empty buffers; the calls of the buffer are timed after `--fill` steps.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from interleaved import digest, ratio, scan_program, seconds

sys.path.insert(0, str(Path(__file__).parent.parent))
import bitflip
import herjax

PEERS = {"cpprb": "cpprb", "stable_baselines3": "stable-baselines3", "flashbax": "flashbax"}
"""Modules, and the distributions they come in."""

Row = dict[str, Any]
"""A line of the table."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times herjax and its peers on the same work."""

    steps: int = 1000
    """Steps in one timed call."""
    rounds: int = 11
    """Timed calls of each program."""
    runs: int = 8
    """Runs that are vmapped where the buffer's calls are timed, beside a single one."""
    fill: int = 30_000
    """Steps before the buffer's calls are timed: they take longer once what is held no longer fits the caches."""
    episode_length: int = 10
    """Steps after which an episode ends where the buffer's calls are timed."""
    capacity: int = 200_000
    """Transitions held, hindsight copies not counted."""
    peers: tuple[str, ...] = tuple(PEERS)
    """Modules of those to time beside herjax, where they are installed."""
    out: Path = Path("results/peers.json")
    """Where the figures go."""


# Training.


def herjax_training(config: bitflip.Config, settings: Settings) -> Callable[[], None]:
    """`bitflip.train_step` in a scan."""

    def step(loop: bitflip.Loop, index_and_keys: tuple[jax.Array, jax.Array]) -> bitflip.Loop:
        return bitflip.train_step(config, loop, index_and_keys[1])[0]

    return scan_program(step, partial(bitflip.start, config), settings.steps, num_keys=4)


def cpprb_buffer(config: bitflip.Config) -> Any:
    """A buffer of cpprb, with room for as many copies as herjax holds."""
    import cpprb  # noqa: PLC0415 - only where it is installed.

    bits = {"shape": config.num_bits, "dtype": np.float32}
    return cpprb.HindsightReplayBuffer(
        config.capacity * (1 + config.num_goals),
        {"obs": bits, "act": {"dtype": np.int32}, "next_obs": bits},
        max_episode_len=config.max_episode_length,
        reward_func=lambda following, _, goal: np.all(following == goal, axis=1).astype(np.float32) - 1,
        strategy=config.strategy,
        additional_goals=config.num_goals,
        prioritized=True,
        alpha=config.priority_exponent,
    )


def cpprb_training(config: bitflip.Config, settings: Settings) -> Callable[[], None]:
    """A loop in Python around cpprb's buffer: one jitted function acts and steps the environment, another updates."""
    buffer = cpprb_buffer(config)
    without_buffer = dataclasses.replace(config, capacity=config.max_episode_length, prioritized=False)
    loop = jax.jit(partial(bitflip.start, without_buffer))(jax.random.key(0))._replace(buffer=None)
    agent, env = loop.agent, loop.env
    root = jax.random.key(1)
    calls = 0

    @jax.jit
    def interact(agent: bitflip.Agent, env: Any, step: jax.Array) -> Any:
        return bitflip.interact(config, agent, env, jax.random.split(jax.random.fold_in(root, step)))

    @partial(jax.jit, donate_argnums=0)
    def learn(agent: bitflip.Agent, batch: Mapping[str, jax.Array]) -> tuple[bitflip.Agent, jax.Array]:
        agent, errors, _ = bitflip.update(config, agent, sample_of(config, batch))
        return agent, jnp.abs(errors)

    def call() -> None:
        nonlocal agent, env, calls
        for step in range(calls * settings.steps, (calls + 1) * settings.steps):
            env, *outcome = interact(agent, env, np.int32(step))
            transition, goal, done = jax.device_get(outcome)
            buffer.add(obs=transition.observation, act=transition.action, next_obs=transition.next_observation)
            if done:
                buffer.on_episode_end(goal)
            if buffer.get_stored_size() > 0:
                batch = buffer.sample(config.batch_size, beta=config.beta + (1 - config.beta) * step / config.steps)
                indices = batch.pop("indexes")
                agent, priorities = learn(agent, batch)
                buffer.update_priorities(indices, np.asarray(priorities))
        jax.block_until_ready(agent)
        calls += 1

    return call


def sample_of(config: bitflip.Config, batch: Mapping[str, jax.Array]) -> herjax.Sample:
    """A batch of cpprb as herjax would return it, as far as an update reads it."""
    reward = batch["rew"][:, 0]
    transition = bitflip.Transition(batch["obs"], batch["act"][:, 0], batch["next_obs"])
    return herjax.Sample(
        transition=transition,
        goal=batch["goal"],
        reward=reward,
        terminated=reward == 0,
        is_hindsight=jnp.zeros(reward.shape, bool),
        indices=jnp.zeros(reward.shape, jnp.int32),
        probabilities=batch["weights"],
        weights=batch["weights"],
        last=transition,
        discount=config.discount * (reward < 0),
    )


def sb3_model(config: bitflip.Config) -> Any:
    """Stable-Baselines3's DQN with its hindsight buffer, on its own bit-flipping."""
    import torch  # noqa: PLC0415 - only where it is installed.
    from stable_baselines3 import DQN, HerReplayBuffer  # noqa: PLC0415
    from stable_baselines3.common.envs import BitFlippingEnv  # noqa: PLC0415

    torch.set_num_threads(1)
    return DQN(
        "MultiInputPolicy",
        BitFlippingEnv(n_bits=config.num_bits, continuous=False, max_steps=config.max_episode_length),
        learning_rate=config.learning_rate,
        buffer_size=config.capacity,
        learning_starts=config.max_episode_length,
        batch_size=config.batch_size,
        gamma=config.discount,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=config.target_period,
        exploration_initial_eps=config.epsilon,
        exploration_final_eps=config.epsilon,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": config.num_goals, "goal_selection_strategy": config.strategy},
        policy_kwargs={"net_arch": list(config.hidden)},
        device="cpu",
        seed=0,
    )


def sb3_training(config: bitflip.Config, settings: Settings) -> Callable[[], None]:
    """Stable-Baselines3's own loop."""
    model = sb3_model(config)

    def call() -> None:
        model.learn(settings.steps, log_interval=None, reset_num_timesteps=False)

    return call


def training_rows(config: bitflip.Config, settings: Settings, installed: list[str]) -> list[Row]:
    """A training step of each system, one run."""
    programs = {"herjax": herjax_training(config, settings)}
    if "cpprb" in installed:
        programs["cpprb, jitted update"] = cpprb_training(config, settings)
    if "stable_baselines3" in installed:
        programs["Stable-Baselines3, uniform"] = sb3_training(config, settings)
    taken = seconds(programs, settings.rounds)
    return [
        time_row("training step", name, 1, times / settings.steps, taken["herjax"] / settings.steps)
        for name, times in taken.items()
    ]


# Calls of the buffer.


def transition_at(config: bitflip.Config, index: jax.Array) -> bitflip.Transition:
    """A transition made of the bits of `index` and of the number after it: no randomness, which would take time."""

    def bits(number: jax.Array) -> jax.Array:
        return ((number >> jnp.arange(config.num_bits)) & 1).astype(jnp.float32)

    return bitflip.Transition(bits(index), index.astype(jnp.int32) % config.num_bits, bits(index + 1))


def empty_calls(config: bitflip.Config, settings: Settings, runs: int) -> Callable[[], None]:
    """The scan without a buffer: makes a transition and keys, and digests a batch."""

    def step(priorities: jax.Array, index_and_keys: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, keys = index_and_keys
        drawn = jnp.sum(jax.random.key_data(keys).astype(jnp.float32)) * 2.0**-40
        transition = transition_at(config, index)
        batch = jax.tree.map(lambda leaf: leaf + priorities.reshape(-1, *[1] * leaf.ndim), transition)
        return digest(batch) / 4 + drawn

    return scan_program(step, lambda _: jnp.ones(config.batch_size), settings.steps, runs)


def herjax_calls(config: bitflip.Config, settings: Settings, runs: int) -> Callable[[], None]:
    """herjax: add, end_episode, sample, update_priorities."""

    def step(state: herjax.BufferState, index_and_keys: tuple[jax.Array, jax.Array]) -> herjax.BufferState:
        index, keys = index_and_keys
        transition = transition_at(config, index)
        state = herjax.add(state, transition)
        done = (index + 1) % settings.episode_length == 0
        state = herjax.end_episode(state, 1 - transition.observation, keys[0], done=done)
        batch = herjax.sample(state, keys[1], config.batch_size)
        return herjax.update_priorities(state, batch.indices, digest(batch._replace(indices=None)))

    return scan_program(step, lambda _: bitflip.make_buffer(config), settings.steps, runs)


def flashbax_row(config: bitflip.Config, index: jax.Array) -> dict[str, jax.Array]:
    """What flashbax stores of a step: a copy's fields but the next observation, which is that of the row behind it."""
    transition = transition_at(config, index)
    return {
        "observation": transition.observation,
        "action": transition.action,
        "goal": 1 - transition.observation,
        "reward": -jnp.ones(()),
        "terminated": jnp.zeros((), bool),
    }


def flashbax_buffer(config: bitflip.Config) -> tuple[Any, Callable[[], Any]]:
    """A buffer of flashbax, with a row for each copy that herjax holds, and what makes its state."""
    import flashbax  # noqa: PLC0415 - only where it is installed.

    buffer = flashbax.make_prioritised_flat_buffer(
        max_length=config.capacity * (1 + config.num_goals),
        min_length=config.batch_size,
        sample_batch_size=config.batch_size,
        priority_exponent=config.priority_exponent,
        device=jax.default_backend(),
    )
    return buffer, lambda: buffer.init(flashbax_row(config, jnp.int32(0)))


def flashbax_calls(config: bitflip.Config, settings: Settings, runs: int) -> Callable[[], None]:
    """flashbax: add, sample, set_priorities."""
    buffer, empty = flashbax_buffer(config)

    def init(_: jax.Array) -> Any:
        # Sampled before it can be, it returns a leaf past the rows, whose priority would then be the only one ever drawn.
        rows = jax.vmap(partial(flashbax_row, config))(jnp.arange(config.batch_size + 1))
        return jax.lax.scan(lambda state, row: (buffer.add(state, row), None), empty(), rows)[0]

    def step(state: Any, index_and_keys: tuple[jax.Array, jax.Array]) -> Any:
        index, keys = index_and_keys
        state = buffer.add(state, flashbax_row(config, index))
        batch = buffer.sample(state, keys[1])
        used = (batch.experience.first, batch.experience.second["observation"], batch.probabilities)
        return buffer.set_priorities(state, batch.indices, digest(used))

    return scan_program(step, init, settings.steps, runs)


def cpprb_calls(config: bitflip.Config, settings: Settings) -> tuple[Callable[[], None], dict[str, list[float]]]:
    """cpprb: every call timed by itself, from Python; seconds of each call of the program are appended by name."""
    buffer = cpprb_buffer(config)
    priorities = np.linspace(0.5, 2, config.batch_size, dtype=np.float32)
    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        transitions = jax.device_get(jax.vmap(partial(transition_at, config))(jnp.arange(settings.steps)))
    taken: dict[str, list[float]] = {name: [] for name in ("add", "on_episode_end", "sample", "update_priorities")}

    def timed(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        taken[name][-1] += time.perf_counter() - began
        return result

    def call() -> None:
        for times in taken.values():
            times.append(0.0)
        for index, (observation, action, following) in enumerate(zip(*transitions, strict=True)):
            timed("add", buffer.add, obs=observation, act=action, next_obs=following)
            if (index + 1) % settings.episode_length == 0:
                timed("on_episode_end", buffer.on_episode_end, 1 - observation)
            if buffer.get_stored_size() > 0:
                batch = timed("sample", buffer.sample, config.batch_size)
                timed("update_priorities", buffer.update_priorities, batch["indexes"], priorities)

    return call, taken


def call_rows(config: bitflip.Config, settings: Settings, installed: list[str]) -> list[Row]:
    """The buffer's calls of one step, for one run and for some that are vmapped; of cpprb, also each call by itself."""
    makers = {"empty": empty_calls, "herjax": herjax_calls}
    if "flashbax" in installed:
        makers["flashbax, no hindsight"] = flashbax_calls
    several = sorted({1, settings.runs})
    programs = {f"{name} {runs}": make(config, settings, runs) for runs in several for name, make in makers.items()}
    by_call: dict[str, list[float]] = {}
    if "cpprb" in installed:
        programs["cpprb"], by_call = cpprb_calls(config, settings)
    for program in programs.values():
        for _ in range(settings.fill // settings.steps):
            program()
    taken = seconds(programs, settings.rounds)

    def a_step(name: str, runs: int) -> np.ndarray:
        return (taken[f"{name} {runs}"] - taken[f"empty {runs}"]) / settings.steps / runs

    rows = [
        time_row("buffer, one step", name, runs, a_step(name, runs), a_step("herjax", runs))
        for runs in several
        for name in makers
        if name != "empty"
    ]
    counted = {name: np.asarray(times[-settings.rounds :]) / settings.steps for name, times in by_call.items()}
    if counted:
        rows.append(time_row("buffer, one step", "cpprb", 1, sum(counted.values()), a_step("herjax", 1)))
    for name, times in counted.items():
        a_call = times * (settings.episode_length if name == "on_episode_end" else 1)
        rows.append(time_row("buffer, one call", f"cpprb {name}", 1, a_call))
    return rows


# Memory.


def nbytes(arrays: Any) -> int:
    """Bytes of all leaves."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def cpprb_bytes(config: bitflip.Config) -> int:
    """Its rows, the running episode's rows, and two segment trees.

    The rows' arrays are out of reach, so a stored row is weighed. The trees (sums and minima, float32, twice the next power of
    two of nodes each) are C++; the process's memory grows by just that much where `prioritized` is True.
    """
    buffer = cpprb_buffer(config)
    bits = np.zeros(config.num_bits, np.float32)
    buffer.add(obs=bits, act=0, next_obs=bits)
    episode_row = nbytes(buffer.episode_rb.get_all_transitions())
    buffer.on_episode_end(bits)
    row = nbytes(buffer.get_all_transitions()) // buffer.get_stored_size()
    nodes = 2 * 2 ** (buffer.get_buffer_size() - 1).bit_length()
    return row * buffer.get_buffer_size() + episode_row * config.max_episode_length + 2 * 4 * nodes


def sb3_bytes(config: bitflip.Config) -> int:
    """The buffer's arrays; of `infos` the references, not the empty dictionaries that they lead to."""
    return nbytes([value for value in jax.tree.leaves(vars(sb3_model(config).replay_buffer)) if isinstance(value, np.ndarray)])


def memory_rows(config: bitflip.Config, installed: list[str]) -> list[Row]:
    """Bytes held, for each copy of a transition that can be drawn, its own goal's and its hindsight goals'."""
    held = {"herjax": nbytes(jax.eval_shape(partial(bitflip.make_buffer, config)))}
    if "cpprb" in installed:
        held["cpprb"] = cpprb_bytes(config)
    if "stable_baselines3" in installed:
        held["Stable-Baselines3, uniform, int8"] = sb3_bytes(config)
    if "flashbax" in installed:
        held["flashbax"] = nbytes(jax.eval_shape(flashbax_buffer(config)[1]))
    copies = config.capacity * (1 + config.num_goals)
    return [
        {"what": "bytes a copy", "system": name, "runs": 1, "bytes": size / copies, "over_herjax": [size / held["herjax"]]}
        for name, size in held.items()
    ]


# The table.


def time_row(what: str, system: str, runs: int, times: np.ndarray, herjax_times: np.ndarray | None = None) -> Row:
    """A row of seconds a step or a call, [rounds], with the ratio to herjax where there is something to compare."""
    quartiles = np.percentile(times * 1e6, [50, 25, 75])
    return {
        "what": what,
        "system": system,
        "runs": runs,
        "microseconds": quartiles.tolist(),
        "per_second": 1e6 / float(quartiles[0]),
        "over_herjax": None if herjax_times is None else ratio(times, herjax_times),
    }


def line(row: Row) -> str:
    """A row as text: medians, and the quartiles of ratios."""
    figure = (
        f"{row['bytes']:10.1f} {'':>10}" if "bytes" in row else f"{row['microseconds'][0]:10.1f} {row['per_second']:10,.0f}"
    )
    over = row["over_herjax"] or ()
    ratios = f"{over[0]:.2f}" + (f" ({over[1]:.2f}-{over[2]:.2f})" if len(over) > 1 else "") if over else ""
    return f"{row['what']:>16} {row['system']:>32} {row['runs']:4} {figure} {ratios:>22}"


def find_peers(asked: Sequence[str] = tuple(PEERS)) -> list[str]:
    """Those of the peers asked for that are installed; says how to get the others."""
    installed = [module for module in asked if importlib.util.find_spec(module) is not None]
    for distribution in (PEERS[module] for module in asked if module not in installed):
        print(f'{distribution} is not installed and is skipped; pip install "herjax[benchmark]" brings it.')
    return installed


def versions(installed: list[str]) -> dict[str, str]:
    """What ran, and on what."""
    names = ["jax", "numpy", *(PEERS[module] for module in installed)]
    if "stable_baselines3" in installed:
        names.append("torch")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"device": jax.devices()[0].device_kind, "herjax": herjax.__version__, **found}


def main() -> None:
    """Measures, prints a table, writes JSON."""
    settings = tyro.cli(Settings)
    config = bitflip.Config(capacity=settings.capacity, steps=settings.steps * (settings.rounds + 1))
    installed = find_peers(settings.peers)
    print(f"{'what':>16} {'system':>32} {'runs':>4} {'us | bytes':>10} {'per second':>10} {'over herjax':>22}")
    rows = []
    for measure in (
        partial(training_rows, config, settings, installed),
        partial(call_rows, config, settings, installed),
        partial(memory_rows, config, installed),
    ):
        found = measure()
        print("\n".join(map(line, found)), flush=True)
        rows += found
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps({**versions(installed), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
