"""Long episodes in many environments: DDPG with HER learns from episodes that still run, or waits until they end.

256 environments play episodes of 1,000 steps, each with one goal: 256,000 steps pass before the first episodes end. The agent
of `ddpg.py` is trained in four ways:

- whole: `end_episode` is called at the end of each episode. Until then there is nothing to sample.
- cut: it is called every 100 steps, although the episode goes on. Goals come from the transition's own piece.
- running: with `sample_running=True`, a step can be sampled at once. Goals come from the whole episode so far.
- next_of: as running, but each observation is stored once, not twice.

All of a way is one scan, with the seeds vmapped. How far ahead a hindsight goal lies is drawn geometrically: with "future", it
would mostly lie hundreds of steps ahead.

python examples/long_episodes.py --json results/long_episodes.json
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple, TypeAlias

import experiment

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import ddpg
import flags
import herjax
import planar
import returns
from flags import Count, Weight
from planar import Transition

Way: TypeAlias = Literal["whole", "cut", "running", "next_of"]

OPTIONS: dict[Way, dict[str, Any]] = {
    "whole": {},
    "cut": {},
    "running": {"sample_running": True},
    "next_of": {"sample_running": True, "next_of": {"next_observation": "observation"}},
}
"""What `herjax.init` is told in each way."""


@dataclasses.dataclass(frozen=True)
class Config(ddpg.Config):
    """Trains DDPG with HER in each way, and prints how often the goal is reached."""

    ways: tuple[Way, ...] = tuple(OPTIONS)  # Those to compare.
    task: Literal["push", "reach"] = "push"  # push: a puck to a goal; reach: the disc itself.
    episode: Count = 1_000  # Steps of an episode.
    piece: Count = 100  # Steps of a piece, where episodes are cut; episodes are a multiple of it.
    num_envs: Count = 256  # Environments, side by side.
    cycle_steps: Count = 5  # Steps of a cycle, in each environment.
    cycles: flags.Stretches = 600  # Cycles of each run; a multiple of eval-every.
    capacity: Count = 512_000  # Transitions held: two episodes of each environment, one that has ended and one that runs.
    num_steps: Count = 2  # Steps of an n-step return.
    noise: Weight = 1.0  # Standard deviation of the noise on actions: more than in ddpg.py, as starts near the puck are rare.
    action_penalty: Weight = 0.1  # Weight of the squared actions in the actor's loss: less, likewise.
    eval_every: Count = 20  # Cycles between evaluations.
    eval_episodes: Count = 100  # Greedy episodes of an evaluation, of 50 steps; a success is at its goal at the end.
    json: Path | None = None  # File for the figures; none by default.
    strategy: tyro.conf.Suppress[str] = "future"
    relabel: tyro.conf.Suppress[Literal["sample"]] = "sample"
    out: tyro.conf.Suppress[Path] = Path()
    log_dir: tyro.conf.Suppress[Path | None] = None
    checkpoint: tyro.conf.Suppress[Path | None] = None
    checkpoint_seconds: tyro.conf.Suppress[float] = 0.0
    progress: tyro.conf.Suppress[bool] = False


class Loop(NamedTuple):
    """The carry of the scan."""

    agent: ddpg.Agent
    buffer: herjax.BufferState
    env: tuple[Any, Any]  # Observations and states of the environments.


def stored_length(config: Config, way: Way) -> int:
    """Steps of what the buffer is told is an episode."""
    return config.piece if way == "cut" else config.episode


def start(config: Config, way: Way, key: jax.Array) -> Loop:
    """A seed before its first step."""
    key_agent, key_env = jax.random.split(key)
    (env, params), example = planar.make_env(config.task), planar.example(config.task)
    buffer = herjax.init(
        example,
        capacity=config.capacity,
        max_episode_length=stored_length(config, way),
        goal_fn=ddpg.achieved_goal,
        reward_fn=planar.make_reward(config.task, config.shaped),
        strategy=herjax.geometric(config.discount),
        num_goals=config.num_goals,
        relabel=config.relabel,
        num_steps=returns.stored_steps(config),
        discount=config.discount,
        num_envs=config.num_envs,
        **OPTIONS[way],
    )
    begun = jax.vmap(env.reset, (0, None))(jax.random.split(key_env, config.num_envs), params)
    return Loop(ddpg.make_agent(config, example, key_agent), buffer, begun)


def step(config: Config, way: Way, loop: Loop, key: jax.Array) -> tuple[Loop, tuple[Transition, jax.Array]]:
    """Acts once in each environment, and stores what happened; returns it with the goals, leaves [num_envs, ...]."""
    (env, params), (observation, state) = planar.make_env(config.task), loop.env
    params = params.replace(max_steps_in_episode=config.episode)
    key_policy, key_env = jax.random.split(key)
    goal = observation["desired_goal"]
    action = ddpg.behave(config, loop.agent, greedy=False)(observation["observation"], goal, key_policy)
    keys = jax.random.split(key_env, config.num_envs)
    *now, _, _, _, info = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
    then = info["final_observation"]  # Where an episode has ended, `now` is of the next one.
    transition = Transition(observation["observation"], action, then["observation"], then["achieved_goal"])
    done = (state.time + 1) % stored_length(config, way) == 0
    if "sample_running" in OPTIONS[way]:
        buffer = herjax.end_episode(herjax.add(loop.buffer, transition, goal=goal), None, None, done)
    else:
        buffer = herjax.end_episode(herjax.add(loop.buffer, transition), goal, None, done)
    return loop._replace(buffer=buffer, env=tuple(now)), (transition, goal)


def cycle(config: Config, way: Way, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """Takes some steps, and learns if there is something to sample; returns the number of updates, int32 []."""
    key_steps, key_sample = jax.random.split(key)
    loop, seen = jax.lax.scan(partial(step, config, way), loop, jax.random.split(key_steps, config.cycle_steps))

    def learn(agent: ddpg.Agent) -> ddpg.Agent:
        draws, ratio = config.updates * config.batch_size, config.hindsight_ratio
        sample = herjax.sample(loop.buffer, key_sample, draws, hindsight_ratio=ratio)
        return ddpg.learn(config, agent, sample, returns.window(config, loop.buffer, sample))[0]

    learns = herjax.in_all_runs(herjax.can_sample(loop.buffer))
    agent = jax.lax.cond(learns, learn, lambda agent: agent, ddpg.see(loop.agent, *seen))
    return loop._replace(agent=agent), config.updates * learns.astype(jnp.int32)


def advance(config: Config, way: Way, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Trains up to the next evaluation, and evaluates; returns success, float32 [], and how many updates there were."""
    key_cycles, key_episodes = jax.random.split(key)
    loop, updates = jax.lax.scan(partial(cycle, config, way), loop, jax.random.split(key_cycles, config.eval_every))
    success = planar.play(config.task, ddpg.behave(config, loop.agent, greedy=True), key_episodes, config.eval_episodes).success
    return loop, {"success_rate": jnp.mean(success.astype(jnp.float32)), "updates": jnp.sum(updates)}


def train(config: Config, way: Way) -> dict[str, Any]:
    """All seeds in one scan: success [seeds][evaluations], updates so far [evaluations], and what it took."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    run = partial(experiment.scan, config, partial(start, config, way), partial(advance, config, way))
    program = jax.jit(jax.vmap(lambda key: run(key)[1])).lower(keys).compile()
    began = perf_counter()
    figures = jax.block_until_ready(program(keys))
    seconds = perf_counter() - began
    facts = experiment.describe(jax.eval_shape(partial(start, config, way), keys[0]).buffer, 1)
    print(f"{way}: {seconds:.0f} s, buffer {facts['buffer_bytes']:,} bytes a seed", flush=True)
    updates = np.cumsum(figures["updates"][0]).tolist()  # Of every seed.
    return {"success_rate": figures["success_rate"].tolist(), "updates": updates, "seconds": seconds, **facts}


def table(label: str, rows: np.ndarray, found: dict[Way, dict[str, Any]], counts: dict[Way, np.ndarray]) -> str:
    """Success in each way, mean and standard deviation of the seeds, where `counts` [evaluations] come to each of the rows."""

    def cell(way: Way, row: int) -> str:
        rates = [np.interp(row, counts[way], seed, right=np.nan) for seed in found[way]["success_rate"]]
        return "-" if np.isnan(rates[0]) else f"{np.mean(rates):.2f} ± {np.std(rates):.2f}"

    lines = [f"| {label} | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    return "\n".join(lines + [f"| {row:,} | {' | '.join(cell(way, row) for way in found)} |" for row in rows])


def try_out(config: Config) -> None:
    """Raises `ValueError` if these flags do not fit together."""
    flags.require(config, "piece", config.episode % config.piece == 0, f"a divisor of --episode, {config.episode}")
    for way in config.ways:
        jax.eval_shape(partial(start, config, way), jax.random.key(0))  # The buffer itself knows how large it must be.


def main(args: Sequence[str] | None = None) -> None:
    """Trains in each way, and prints success by steps and by updates."""
    config = flags.parse(Config, try_out, args)
    found = {way: train(config, way) for way in config.ways}
    cycles = np.arange(config.eval_every, config.cycles + 1, config.eval_every)
    rows, steps = cycles[:: -max(len(cycles) // 15, 1)][::-1], cycles * config.cycle_steps
    print(table("steps of each environment", rows * config.cycle_steps, found, dict.fromkeys(found, steps)), end="\n\n")
    print(table("updates", rows * config.updates, found, {way: np.asarray(found[way]["updates"]) for way in found}))
    if config.json is not None:
        results = {"config": flags.plain(config), "eval_steps": (steps * config.num_envs).tolist(), "ways": found}
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
