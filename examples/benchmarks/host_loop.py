"""What herjax costs in a loop on the host: a cycle of examples/fetch.py on FetchPush, part by part, and beside a peer's buffer.

    python examples/benchmarks/host_loop.py

Every round plays an episode in each simulator and trains as fetch.py does, but part by part, each waited for. Then the same
episodes are stored and drawn from in other ways: by herjax with a call from Python for each step and each batch, and by
Stable-Baselines3's HerReplayBuffer, which asks a simulator for rewards: in a process of its own, as where it trains, or in this
one. The buffers hold as much before the timing starts.

What differs, because the libraries do: herjax computes rewards by a function in JAX. Stable-Baselines3 stores float64, and what
was achieved before each action, too; whenever it draws, it looks through its whole storage for episodes that have ended.
"""

import dataclasses
import importlib.util
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import jax
import numpy as np
import tyro

from interleaved import ratio
from peers import versions

sys.path.insert(0, str(Path(__file__).parent.parent))
import ddpg
import fetch
import herjax
import planar

Name = tuple[str, str]
"""What is done, and how."""
Row = dict[str, Any]
"""A line of the table."""

HERJAX, HERJAX_CALLS = "herjax, one call", "herjax, a call for each"
PEERS = PEER, PEER_INSIDE, PEER_ONCE = "SB3, a call for each", "SB3, rewards in this process", "SB3, one call"
PLAY, SIMULATE, ACT, COPY = ("play", "fetch.py"), ("simulate", "MuJoCo"), ("act", "policy"), ("copy", "NumPy")
STORE, SAMPLE, UPDATE, TRAIN = ("store", HERJAX), ("sample", HERJAX), ("update", "DDPG"), ("store, sample, update", "one call")
CYCLE = (SIMULATE, ACT, COPY, STORE, SAMPLE, UPDATE)
"""The parts of a cycle."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times the parts of a training loop around simulators."""

    rounds: int = 11
    """Cycles that are timed."""
    fill: int = 1000
    """Episodes of each simulator in the buffers before the timing starts."""
    training: fetch.Config = dataclasses.field(default_factory=partial(fetch.Config, task="push", num_envs=16))
    """The training loop."""
    out: Path = Path("results/host_loop.json")
    """Where the figures go."""


class Watch:
    """How long each part of each round took."""

    def __init__(self) -> None:
        self.rounds: list[Counter[Name]] = []

    def timed(self, name: Name, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls are waited for and add up in the latest round."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = jax.block_until_ready(function(*args, **kwargs))
            self.rounds[-1][name] += time.perf_counter() - began
            return result

        return call

    def seconds(self, *names: Name) -> np.ndarray:
        """The parts together, float64 [rounds]; the first round, in which all is compiled, does not count."""
        return np.array([sum(times[name] for name in names) for times in self.rounds[1:]])


class Training:
    """The loop of fetch.py, part by part."""

    def __init__(self, config: fetch.Config, watch: Watch) -> None:
        self._config, self._watch = config, watch
        self.simulators = fetch.make_simulators(config)
        self._loop = fetch.start(config, self.simulators)
        calls = {name: watch.timed(SIMULATE, getattr(self.simulators, name)) for name in ("reset", "step")}
        policy = watch.timed(ACT, jax.jit(partial(fetch.behave, config)))
        self._play = watch.timed(PLAY, partial(fetch.play, SimpleNamespace(**calls), policy))
        donating = partial(jax.jit, donate_argnums=0)
        self._store = watch.timed(STORE, donating(ddpg.store))
        self._sample = watch.timed(SAMPLE, jax.jit(partial(sample, config.updates * config.batch_size)))
        self._update = watch.timed(UPDATE, donating(partial(update, config)))
        self._add = watch.timed(("store", HERJAX_CALLS), donating(herjax.add))
        self._end_episode = watch.timed(("store", HERJAX_CALLS), donating(herjax.end_episode))
        self._sample_batch = watch.timed(("sample", HERJAX_CALLS), jax.jit(partial(sample, config.batch_size)))
        self._train = watch.timed(TRAIN, donating(partial(ddpg.store_and_learn, config)))

    def cycle(self, number: int) -> fetch.Episodes:
        """Plays and trains."""
        agent, buffer = self._loop
        seeds, key = fetch.draw(self._config, 0, number)
        key_play, key_goals, key_sample = jax.random.split(key, 3)
        episodes = self._play(agent, seeds, key_play)
        times = self._watch.rounds[-1]
        times[COPY] = times[PLAY] - times[SIMULATE] - times[ACT]
        buffer = self._store(buffer, episodes.transitions, episodes.goal, key_goals)
        agent = self._update(agent, episodes, self._sample(buffer, key_sample, np.int32(0)))
        self._loop = ddpg.Loop(agent, buffer)
        return episodes

    def again(self, episodes: fetch.Episodes, number: int) -> None:
        """Stores step by step and draws batch by batch, and then does it all in one call, as fetch.py does."""
        agent, buffer = self._loop
        key_goals, key_sample, key_train = jax.random.split(fetch.draw(self._config, 2, number)[1], 3)
        for step in zip(*episodes.transitions, strict=True):
            buffer = self._add(buffer, planar.Transition(*step))
        buffer = self._end_episode(buffer, episodes.goal, key_goals)
        for batch in range(self._config.updates):
            self._sample_batch(buffer, key_sample, np.int32(batch))
        self._loop, _ = self._train(ddpg.Loop(agent, buffer), episodes.transitions, episodes.goal, key_train)

    def fill(self, episodes: fetch.Episodes, times: int) -> None:
        """Stores the same episodes again and again."""
        buffer = self._loop.buffer
        for key in jax.random.split(jax.random.key(0), times):
            buffer = self._store(buffer, episodes.transitions, episodes.goal, key)
        self._loop = self._loop._replace(buffer=buffer)


def sample(batch_size: int, buffer: herjax.BufferState, key: jax.Array, number: jax.Array) -> herjax.Sample:
    """One of several batches, for one key."""
    return herjax.sample(buffer, jax.random.fold_in(key, number), batch_size)


def update(config: fetch.Config, agent: ddpg.Agent, episodes: fetch.Episodes, drawn: herjax.Sample) -> ddpg.Agent:
    """A cycle's learning, without the buffer's part in it."""
    return ddpg.learn(config, ddpg.see(agent, episodes.transitions, episodes.goal), drawn)[0]


class Peer:
    """Stable-Baselines3's buffer, and simulators that it asks for rewards."""

    def __init__(self, config: fetch.Config, watch: Watch) -> None:
        from stable_baselines3 import HerReplayBuffer  # noqa: PLC0415 - only where it is installed.
        from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv  # noqa: PLC0415

        makers = [partial(gymnasium.make, fetch.TASKS[config.task])] * config.num_envs
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)  # As in fetch.make_simulators.
            self.simulators = SubprocVecEnv(makers, start_method="fork")
        self._buffer = HerReplayBuffer(
            config.capacity,
            self.simulators.observation_space,
            self.simulators.action_space,
            env=self.simulators,
            device="cpu",
            n_envs=config.num_envs,
            n_sampled_goal=config.num_goals,
            goal_selection_strategy=config.strategy,
        )
        self._add = watch.timed(("store", PEER), self._buffer.add)
        self._draws, calls = config.updates * config.batch_size, config.updates
        ways = {PEER: (self.simulators, calls), PEER_INSIDE: (DummyVecEnv(makers[:1]), calls), PEER_ONCE: (self.simulators, 1)}
        self._ways = [(watch.timed(("sample", name), self._buffer.sample), *way) for name, way in ways.items()]

    def again(self, episodes: fetch.Episodes) -> None:
        """Stores step by step, and draws in several ways."""
        for step in peer_steps(episodes):
            self._add(*step)
        for draw, env, calls in self._ways:
            self._buffer.env = env
            for _ in range(calls):
                draw(self._draws // calls)

    def fill(self, episodes: fetch.Episodes, times: int) -> None:
        """Stores the same episodes again and again."""
        for step in peer_steps(episodes) * times:
            self._buffer.add(*step)


def peer_steps(episodes: fetch.Episodes) -> list[tuple[Any, ...]]:
    """What Stable-Baselines3's buffer is given at each step, as float64, which is what simulators show."""
    observation, action, following, achieved = (leaf.astype(np.float64) for leaf in episodes.transitions)
    goal = episodes.goal.astype(np.float64)
    steps = []
    for step in range(fetch.STEPS):
        # What was achieved before the first step is not known; the cost is the same.
        before = {"observation": observation[step], "achieved_goal": achieved[max(step - 1, 0)], "desired_goal": goal}
        after = {"observation": following[step], "achieved_goal": achieved[step], "desired_goal": goal}
        rewards = -(np.linalg.norm(achieved[step] - goal, axis=-1) > fetch.THRESHOLD).astype(np.float32)
        is_last = np.full(len(goal), step == fetch.STEPS - 1)
        infos = [{"TimeLimit.truncated": last} for last in is_last.tolist()]
        steps.append((before, after, action[step].astype(np.float32), rewards, is_last, infos))
    return steps


def make_row(name: Name, taken: np.ndarray, cycle: np.ndarray, base: np.ndarray | None = None) -> Row:
    """A row of seconds, [rounds], beside those of whole cycles and of what herjax takes for the same."""
    return {
        "what": name[0],
        "system": name[1],
        "milliseconds": (np.percentile(taken, [50, 25, 75]) * 1e3).tolist(),
        "share": ratio(taken, cycle)[0],
        "over_herjax": None if base is None else ratio(taken, base),
    }


def make_rows(watch: Watch, with_peer: bool) -> list[Row]:
    """The parts of a cycle, and then every way to store and to draw, each over herjax's with one call."""
    cycle, parts = watch.seconds(*CYCLE), watch.seconds(STORE, SAMPLE, UPDATE)
    rows = [make_row(name, watch.seconds(name), cycle) for name in CYCLE]
    rows += [make_row(("cycle", "all of it"), cycle, cycle), make_row(TRAIN, watch.seconds(TRAIN), cycle, parts)]
    for base in (STORE, SAMPLE):
        names = [name for name in watch.rounds[-1] if name[0] == base[0] and name != base]
        rows += [make_row(name, watch.seconds(name), cycle, watch.seconds(base)) for name in names]
    for system in (HERJAX, HERJAX_CALLS, PEER)[: 2 + with_peer]:
        both = watch.seconds(("store", system), ("sample", system))
        rows.append(make_row(("store, sample", system), both, cycle, watch.seconds(STORE, SAMPLE)))
    return rows


def line(row: Row) -> str:
    """A row as text: medians and quartiles."""
    cost = "{:,.2f} ({:,.2f}-{:,.2f})".format(*row["milliseconds"])
    over = "{:.2f} ({:.2f}-{:.2f})".format(*row["over_herjax"]) if row["over_herjax"] else ""
    return f"{row['what']:>21} {row['system']:>28} {cost:>30} {row['share']:>7.2%} {over:>22}"


def main() -> None:
    """Measures, prints a table, writes JSON."""
    settings = tyro.cli(Settings)
    installed = [name for name in ("stable_baselines3",) if importlib.util.find_spec(name) is not None]
    watch = Watch()
    peers = [Peer(settings.training, watch) for _ in installed]
    training = Training(settings.training, watch)
    for number in range(settings.rounds + 1):
        watch.rounds.append(Counter())
        episodes = training.cycle(number)
        if number == 0:
            for buffer in (training, *peers):
                buffer.fill(episodes, settings.fill)
        training.again(episodes, number)
        for peer in peers:
            peer.again(episodes)
    for each in (training, *peers):
        each.simulators.close()
    rows = make_rows(watch, bool(peers))
    print(f"{'what':>21} {'system':>28} {'ms a cycle':>30} {'share':>7} {'over herjax':>22}")
    print("\n".join(map(line, rows)))
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    about = {**versions(installed), "settings": {name: str(value) for name, value in vars(settings).items()}}
    settings.out.write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
