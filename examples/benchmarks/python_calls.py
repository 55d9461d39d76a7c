"""Calls from Python, one by one, as a simulator on the host makes them: herjax beside cpprb and Stable-Baselines3.

    taskset -c 0 python examples/benchmarks/python_calls.py

Each call is timed until its result is there; the systems take turns of 100 steps. herjax's state is donated.
cpprb and herjax have priorities, Stable-Baselines3 has none; it stores bits as int8 and relabels when it samples. The last
column is one environment step: `add`, `sample` and `update_priorities`, and a share of `end_episode`. What JAX itself takes
is shown beside, as a call: a jitted function that adds 1 to a counter of herjax's state, donated.
"""

import dataclasses
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from peers import cpprb_buffer, find_peers, sb3_model, transition_at, versions

sys.path.insert(0, str(Path(__file__).parent.parent))
import bitflip
import herjax

CALLS = ("add", "end_episode", "sample", "update_priorities")
TURN = 100
"""Steps that a system makes before the next one does."""
Timed = Callable[..., Any]
"""`timed(name, function, *arguments)`: the function's result, once it is there."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times single calls from Python."""

    steps: int = 4000
    """Environment steps, of which the first quarter is not counted."""
    episode_length: int = 10
    """Steps of an episode."""
    capacity: int = 200_000
    """Transitions held, hindsight copies not counted."""
    out: Path = Path("results/python_calls.json")
    """Where the figures go."""


def herjax_step(config: bitflip.Config) -> Callable[..., None]:
    """All four calls, each jitted with its state donated."""
    add, end_episode, update = (
        jax.jit(function, donate_argnums=0) for function in (herjax.add, herjax.end_episode, herjax.update_priorities)
    )
    state = bitflip.make_buffer(config)
    keys = list(jax.random.split(jax.random.key(0), 1000))
    priorities = np.linspace(0.5, 2, config.batch_size, dtype=np.float32)

    def step(timed: Timed, number: int, transition: bitflip.Transition, *, done: bool) -> None:
        nonlocal state
        state = timed("add", add, state, transition)
        if done:
            state = timed("end_episode", end_episode, state, 1 - transition.observation, keys[number % 1000])
        batch = timed("sample", herjax.sample, state, keys[-1 - number % 1000], config.batch_size)
        state = timed("update_priorities", update, state, batch.indices, priorities)

    return step


def herjax_in_one(config: bitflip.Config) -> Callable[..., None]:
    """All four in one jitted call, as a loop makes it whose update is jitted too."""
    priorities = jnp.linspace(0.5, 2, config.batch_size, dtype=jnp.float32)

    @partial(jax.jit, donate_argnums=0)
    def all_four(state: herjax.BufferState, transition: bitflip.Transition, key: jax.Array, done: jax.Array) -> Any:
        key_goals, key_sample = jax.random.split(key)
        state = herjax.add(state, transition)
        state = herjax.end_episode(state, 1 - transition.observation, key_goals, done)
        batch = herjax.sample(state, key_sample, config.batch_size)
        return herjax.update_priorities(state, batch.indices, priorities), batch

    state = bitflip.make_buffer(config)
    keys = list(jax.random.split(jax.random.key(0), 1000))

    def step(timed: Timed, number: int, transition: bitflip.Transition, *, done: bool) -> None:
        nonlocal state
        state, _ = timed("all four", all_four, state, transition, keys[number % 1000], np.bool_(done))

    return step


def jax_step(config: bitflip.Config) -> Callable[..., None]:
    """A call that does next to nothing, with herjax's state."""
    count = jax.jit(lambda state: dataclasses.replace(state, num_dropped=state.num_dropped + 1), donate_argnums=0)
    state = bitflip.make_buffer(config)

    def step(timed: Timed, number: int, transition: bitflip.Transition, *, done: bool) -> None:
        nonlocal state
        del number, transition, done
        state = timed("a call", count, state)

    return step


def cpprb_step(config: bitflip.Config) -> Callable[..., None]:
    """The same of cpprb."""
    buffer = cpprb_buffer(config)
    priorities = np.linspace(0.5, 2, config.batch_size, dtype=np.float32)

    def step(timed: Timed, number: int, transition: bitflip.Transition, *, done: bool) -> None:
        del number
        observation, action, following = transition
        timed("add", partial(buffer.add, obs=observation, act=action, next_obs=following))
        if done:
            timed("end_episode", buffer.on_episode_end, 1 - observation)
        if buffer.get_stored_size() > 0:
            batch = timed("sample", buffer.sample, config.batch_size)
            timed("update_priorities", buffer.update_priorities, batch["indexes"], priorities)

    return step


def sb3_step(config: bitflip.Config) -> Callable[..., None]:
    """`add`, which also ends episodes, and `sample` of Stable-Baselines3's HerReplayBuffer."""
    buffer = sb3_model(config).replay_buffer

    def as_dict(bits: np.ndarray, goal: np.ndarray) -> dict[str, np.ndarray]:
        return {"observation": bits[None], "achieved_goal": bits[None], "desired_goal": goal[None]}

    def step(timed: Timed, number: int, transition: bitflip.Transition, *, done: bool) -> None:
        del number
        observation, action, following = transition
        goal, ended = np.ones_like(observation), np.asarray([done])
        now, then, reward = as_dict(observation, goal), as_dict(following, goal), np.asarray([-1.0])
        timed("add", buffer.add, now, then, action[None, None], reward, ended, [{}])
        if np.any(buffer.ep_length > 0):
            timed("sample", buffer.sample, config.batch_size)

    return step


def measure(steps: dict[str, Callable[..., None]], config: bitflip.Config, settings: Settings) -> dict[str, dict[str, float]]:
    """Median microseconds of each system's calls, and of one environment step."""
    transitions = jax.device_get(jax.vmap(partial(transition_at, config))(jnp.arange(settings.steps)))
    taken: dict[str, dict[str, list[float]]] = {system: defaultdict(list) for system in steps}

    def timed(system: str, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        taken[system][name].append(time.perf_counter() - began)
        return result

    for begin in range(0, settings.steps, TURN):
        for system, step in steps.items():
            for number in range(begin, min(begin + TURN, settings.steps)):
                transition = jax.tree.map(lambda leaf, number=number: leaf[number], transitions)
                step(partial(timed, system), number, transition, done=(number + 1) % settings.episode_length == 0)
    return {system: medians(times, settings.episode_length) for system, times in taken.items()}


def medians(taken: dict[str, list[float]], episode_length: int) -> dict[str, float]:
    """Of each call without the first quarter of its times, and of an environment step."""
    calls = {name: float(np.median(times[len(times) // 4 :])) * 1e6 for name, times in taken.items()}
    if "a call" in calls:
        return calls
    share = calls.get("end_episode", 0.0) / episode_length
    return calls | {"one step": share + sum(time for name, time in calls.items() if name != "end_episode")}


def main() -> None:
    """Measures, prints a table, writes JSON."""
    settings = tyro.cli(Settings)
    config = bitflip.Config(capacity=settings.capacity, max_episode_length=settings.episode_length)
    installed = find_peers()
    makers = {"herjax": herjax_step, "herjax, in one": herjax_in_one, "JAX alone": jax_step}
    makers |= {"cpprb": cpprb_step} if "cpprb" in installed else {}
    makers |= {"Stable-Baselines3": sb3_step} if "stable_baselines3" in installed else {}
    rows = measure({system: make(config) for system, make in makers.items()}, config, settings)
    names = (*CALLS, "a call", "one step")
    print(f"{'us':>18}" + "".join(f"{name:>18}" for name in names))
    for system, row in rows.items():
        print(f"{system:>18}" + "".join(f"{row.get(name, float('nan')):18.1f}" for name in names))
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps({**versions(installed), "microseconds": rows}, indent=1))


if __name__ == "__main__":
    main()
