"""Random calls of every public function, in any order, against lists of episodes and a dictionary of priorities.

Transition `number` achieves a goal that names it, and pursued goals are below 0, so that a drawn copy names its transition and
its goal's source. Of n environments, environment e's transitions have the numbers e, e + n, e + 2 n, ... Numbers stay so small,
and discounts such powers of 2, that float32 holds every sum of rewards exactly. `pytest -s` prints what was played.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import herjax
from any_jax import typeof
from distributions import WITHIN_EPISODE, name_of, past
from herjax.strategies import Mixture
from numbered import Pair, make, make_of_pairs, pair, reached, reward, seen
from oracle import Distribution, Episode, Oracle

CALLS_BETWEEN_LOOKS = 5
BITS = st.one_of(st.just(7), st.integers(0, 7))  # Which environments.
LONGEST = 5  # Of all configurations' `max_episode_length`.
INT32 = np.iinfo(np.int32)
Strategy = str | Callable[..., jax.Array] | Mixture


def around(key: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
    """A custom strategy that often names a step outside the episode, to be clipped into it."""
    return step + jax.random.randint(key, (), -length, length + 1)


def around_distribution(step: int, length: int) -> np.ndarray:
    """How often `around` names each step."""
    named = np.clip(step + np.arange(-length, length + 1), 0, length - 1)
    return np.bincount(named, minlength=length) / len(named)


GEOMETRIC = WITHIN_EPISODE["geometric(0.5)"][0]
# Those of the oracle, for which None is random.
DISTRIBUTIONS: dict[Strategy, Distribution | None] = {"random": None, around: around_distribution}
DISTRIBUTIONS |= dict(WITHIN_EPISODE.values())
# The weights of each mixture.
MIXTURES = {herjax.mixture(weights): weights for weights in ({"future": 0.5, "random": 0.5}, {"final": 1, past: 3})}
STRATEGIES = ("future", "episode", "final", "random", past, *MIXTURES)


@dataclass(frozen=True)
class Configuration:
    """What `init` is given; `share` is the capacity of each environment."""

    strategy: Strategy
    num_envs: int | None
    relabel: str
    priority_exponent: float | None
    num_goals: int
    share: int
    max_episode_length: int
    num_steps: int
    discount: float | None
    priority_epsilon: float = 1e-6
    sample_running: bool = False
    next_of: bool = False

    def __str__(self) -> str:
        """An id."""
        envs, exponent = self.num_envs, self.priority_exponent
        rows = f"{self.share}of{self.max_episode_length}"
        when = ("running" if self.sample_running else self.relabel) + "-next" * self.next_of
        return f"{when}-{self.name}-k{self.num_goals}-n{self.num_steps}-{envs}envs-{rows}-{exponent}"

    @property
    def name(self) -> str:
        """The names of the strategy's sources."""
        return "+".join(map(name_of, self.weights))

    @property
    def lanes(self) -> int:
        """How many environments there are, with or without an axis."""
        return self.num_envs or 1

    @property
    def weights(self) -> dict[Strategy, float]:
        """The weight of each of the strategy's sources."""
        return MIXTURES.get(self.strategy, {self.strategy: 1})

    def goal_chances(self, episode: Episode, number: int) -> Counter[int]:
        """The oracle's, of this strategy."""
        return episode.goal_chances(number, {DISTRIBUTIONS[source]: weight for source, weight in self.weights.items()})

    @property
    def goals_late(self) -> bool:
        """Whether goals are drawn when a transition is sampled."""
        return self.relabel == "sample"

    @property
    def rows(self) -> int:
        """Of an environment's ring."""
        looks_back = any(source in ("episode", past, around) for source in self.weights)
        return self.share + (self.max_episode_length if self.goals_late and self.num_goals and looks_back else 0)

    @property
    def hindsight_goals(self) -> int:
        """Hindsight goals for each transition."""
        return min(self.num_goals, 1) if self.strategy == "final" else self.num_goals

    @property
    def copies(self) -> int:
        """Indices for each transition."""
        return 1 if self.goals_late else 1 + self.hindsight_goals

    def ratio(self, key: int) -> float | None:
        """The `hindsight_ratio` of the draw with this key: a number, or None in the other configurations."""
        ratios = (0.3, 1.0, 0.0) if self.goals_late and self.num_goals and self.num_envs else (None,)
        return ratios[key % len(ratios)]

    def outcome(self, window: tuple[int, ...], goal: int) -> tuple[float, bool, bool, int, float | None]:
        """The reward, `terminated`, `is_hindsight`, `last` and discount of a copy with this window and goal."""
        discount = 1.0 if self.discount is None else self.discount
        total = sum(discount**i * reward(step, goal) for i, step in enumerate(window))
        terminated = reached(window[-1], goal)
        worth = None if self.discount is None else 0.0 if terminated else discount ** len(window)
        return total, terminated, goal >= 0, window[-1], worth

    @property
    def batch_size(self) -> int:
        """Draws that reach every copy: 2 for each are enough if stratified, else a miss has a chance below 1e-9.

        Also above every index, as is asserted.
        """
        return 4096 if self.priority_exponent is None else 512


@cache
def start(configuration: Configuration) -> herjax.BufferState:
    """An empty buffer, made once: the functions that it is passed to are then compiled once."""
    c = configuration
    return (make_of_pairs if c.next_of else make)(
        capacity=c.share * c.lanes,
        max_episode_length=c.max_episode_length,
        strategy=c.strategy,
        num_goals=c.num_goals,
        relabel=c.relabel,
        num_steps=c.num_steps,
        discount=c.discount,
        priority_exponent=c.priority_exponent,
        priority_epsilon=c.priority_epsilon,
        num_envs=c.num_envs,
        sample_running=c.sample_running,
    )


# One step, a few or many, and their discount.
WINDOWS = (((1, None), (1, 0.5)), ((2, 0.5), (3, 0.5)), ((5, 1.0), (4, 0.5)))


def pairwise() -> list[Configuration]:
    """Every two values of any two options meet: strategy s and environments j do, and the rest are sums of s and j.

    In `WINDOWS` a row counts as one value.
    """
    options = []
    for (s, strategy), (j, num_envs) in itertools.product(enumerate(STRATEGIES), enumerate((None, 2, 3))):
        relabel = ("episode_end", "sample")[(s // 3 + j) % 2]
        exponent = (None, 0.6, 1.0)[(s + j) % 3]
        num_goals = (2, 0, 1)[(s + 2 * j) % 3]
        longest = (5, 3, 4)[j]
        share = longest if (s + j) % 2 else (8, 7, 6)[j]
        window = WINDOWS[(s // 3 + s + j) % 3][s % 2]
        epsilon = 0.0 if strategy == "episode" else 1e-6
        options.append(Configuration(strategy, num_envs, relabel, exponent, num_goals, share, longest, *window, epsilon))
    return options


def wider() -> list[Configuration]:
    """Each strategy and setting with options drawn from wider ranges, the same in every run."""
    rng = np.random.default_rng(0)
    options = []
    for strategy, relabel, _ in itertools.product((*STRATEGIES, GEOMETRIC, around), ("episode_end", "sample"), range(3)):
        longest = int(rng.integers(1, LONGEST + 1))
        options.append(
            Configuration(
                strategy,
                (None, 1, 2, 3)[rng.integers(4)],
                relabel,
                (None, 0.6, 1.0)[rng.integers(3)],
                int(rng.integers(3)),
                int(rng.choice([longest, longest + 1, 2 * longest, 13])),
                longest,
                *WINDOWS[rng.integers(3)][rng.integers(2)],
                (1e-6, 0.0, 0.25)[rng.integers(3)],
            )
        )
    return options


# What was played.


@dataclass
class Coverage:
    """Counts of what one run of all machines played."""

    pool: tuple[Configuration, ...]
    played: set[Configuration] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Pairs of an index and a priority that were to be rejected, and other extremes of an update."""
    lengths: Counter[tuple[Configuration, int]] = field(default_factory=Counter)
    """Episodes by how many transitions they were given, 1 more than the greatest length standing for all that are longer."""
    ends: Counter[tuple[Configuration, int]] = field(default_factory=Counter)
    """Episodes by how many transitions their environment then had finished, modulo its share: where in a ring they end."""
    wraps: Counter[tuple[Configuration, int]] = field(default_factory=Counter)
    """Those that go on at a ring's beginning, by where they begin."""
    lasts: Counter[tuple[Configuration, int]] = field(default_factory=Counter)
    """Those whose observations are stored once, by where in their ring the last one of them is."""
    full: Counter[Configuration] = field(default_factory=Counter)
    """Calls after which the capacity was used up exactly."""
    crowded: Counter[Configuration] = field(default_factory=Counter)
    """Ends after which an environment's share was used up by episodes of one step each, as many as can be."""
    goals: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Hindsight goals by strategy and where they came from, for which step of how long an episode."""
    unlike: Counter[Configuration] = field(default_factory=Counter)
    """Transitions seen with hindsight goals that differ."""
    windows: Counter[tuple[int, int, str]] = field(default_factory=Counter)
    """Windows by how many steps they may have, how many they have, and why no more."""
    ratios: Counter[float | None] = field(default_factory=Counter)
    """Draws by their `hindsight_ratio`."""

    def window(self, num_steps: int, window: tuple[int, ...], goal: int) -> None:
        """Count the window of a copy with this goal."""
        why = "a goal" if window[-1] == goal else "the end" if len(window) < num_steps else "full"
        self.windows[num_steps, len(window), why] += 1

    def end_episode(self, configuration: Configuration, oracle: Oracle, dropped: int) -> None:
        """Count the end of an environment's last episode, which lost `dropped` transitions."""
        share, length = configuration.share, len(oracle.episodes[-1].transitions)
        begin = (len(oracle.finished) - length) % share
        self.lengths[configuration, length + min(dropped, 1)] += 1
        self.ends[configuration, (begin + length) % share] += 1
        if begin + length > share:
            self.wraps[configuration, begin] += 1
        self.lasts[configuration, (len(oracle.finished) + len(oracle.episodes) - 1) % (configuration.rows + 1)] += 1
        most = share // 2 if configuration.next_of else share
        newest = oracle.episodes[-most:]
        self.crowded[configuration] += sum(len(episode.transitions) == 1 for episode in newest) == oracle.num_held == most

    def least(self) -> dict[str, int]:
        """How often the rarest item of each kind was seen, over all configurations."""
        return {
            "length": min(self.lengths[c, length] for c in self.pool for length in range(1, c.max_episode_length + 2)),
            "ring offset of an end": min(self.ends[c, offset] for c in self.pool for offset in range(c.share)),
            "ring offset of a wrap": min(
                self.wraps[c, c.share - left] for c in self.pool for left in range(1, c.max_episode_length)
            ),
            "ring offset of a last observation": min(
                self.lasts[c, offset] for c in self.pool if c.next_of for offset in range(c.rows + 1)
            ),
            "exactly full": min(self.full[c] for c in self.pool),
            "full of single steps": min(self.crowded[c] for c in self.pool),
            "goals unlike each other": min(self.unlike[c] for c in self.pool if c.copies > 2 and c.max_episode_length > 1),
            "place of a goal": min(self.goals[source] for source in self.places()),
            "window": min(self.windows[window] for c in self.pool for window in ends_of_windows(c.num_steps)),
        }

    def places(self) -> set[tuple[str, str]]:
        """Where the goals of each strategy should come from."""
        found = set()
        for c in self.pool:
            elsewhere = ["from another episode"] + ["from another environment"] * (c.lanes > 1)
            if c.hindsight_goals and "random" in c.weights:
                found |= {(c.name, place) for place in elsewhere}
            for length in range(1, c.max_episode_length + 1) if c.hindsight_goals else ():
                episode = Episode(-1, tuple(range(length)), tuple(range(length)))
                for step in range(length):
                    sources = c.goal_chances(episode, step)
                    found |= {(c.name, f"from {source} for {step} of {length}") for source in sources}
        return found


def ends_of_windows(num_steps: int) -> set[tuple[int, int, str]]:
    """All ways in which windows of at most so many steps end."""
    lengths = range(1, num_steps + 1)
    return {(num_steps, m, why) for m in lengths for why in ("a goal", "full" if m == num_steps else "the end")}


FAULTS = {"nan", "inf", "-inf", "negative", "negative index", "huge index", "holds nothing", "made room"}
UPDATES = {"accepted", "both at once", "zero", "of an empty buffer", "all rejected", "last of duplicates rejected"}
CALLS = {
    "add",
    "add, masked",
    *(f"{call}{suffix}" for call in ("end_episode", "discard") for suffix in ("", " not done", ", nothing pending")),
    "sample",
    "update_priorities",
    "round_trip",
}
# What is not among the pairs: a single row; and hindsight goals of one source alone, in a share of more than three episodes.
EDGES = (
    Configuration("final", None, "episode_end", None, 3, share=1, max_episode_length=1, num_steps=1, discount=None),
    Configuration("future", 3, "episode_end", 0.6, 2, share=7, max_episode_length=2, num_steps=1, discount=None),
    Configuration("final", 2, "sample", 0.6, 2, share=7, max_episode_length=2, num_steps=1, discount=None),
    Configuration("random", 3, "sample", None, 2, share=7, max_episode_length=2, num_steps=1, discount=None),
)
# Steps of running episodes are sampled.
RUNNING = tuple(
    Configuration(*options, sample_running=True)
    for options in (
        ("future", None, "sample", None, 2, 8, 5, 1, None),
        ("episode", 2, "sample", 0.6, 1, 5, 5, 3, 0.5, 0.0),
        ("random", 3, "sample", 1.0, 2, 6, 4, 2, 0.5),
        ("final", None, "sample", 0.6, 1, 4, 4, 1, 0.5),
        (herjax.mixture({"final": 1, past: 3}), 2, "sample", None, 2, 7, 3, 4, 0.5),
    )
)
# Observations are stored once.
NEXT = tuple(
    Configuration(*options, next_of=True)
    for options in (
        ("future", None, "episode_end", 0.6, 2, 8, 5, 1, None),
        ("random", 2, "episode_end", None, 1, 6, 4, 3, 0.5),
        ("final", None, "episode_end", 1.0, 1, 3, 2, 1, 0.5),
        (herjax.mixture({"future": 0.5, "random": 0.5}), 3, "episode_end", 0.6, 2, 4, 3, 2, 0.5, 0.0),
        ("episode", None, "sample", None, 2, 6, 5, 5, 1.0),
        (past, 3, "sample", 0.6, 1, 7, 4, 1, None),
        ("future", 2, "sample", 1.0, 0, 7, 3, 4, 0.5),
        ("episode", None, "sample", 0.6, 1, 5, 4, 3, 0.5, 0.0, True),
        ("future", 2, "sample", None, 2, 8, 5, 1, None, 1e-6, True),
    )
)
DEFAULT, WIDER = (Coverage(tuple(pool)) for pool in ([*pairwise(), *EDGES, *RUNNING, *NEXT], wider()))


# The machine.


@dataclass(frozen=True)
class Finished:
    """What is fixed for a transition when its episode ends."""

    episode: Episode
    """Its episode; what was held is that of all environments."""
    priority: float
    """With which its copies entered."""

    def place(self, number: int, goal: int, lanes: int) -> str:
        """Where that goal of this transition, `number`, comes from."""
        steps = self.episode.transitions
        if goal in steps:
            return f"from {steps.index(goal)} for {steps.index(number)} of {len(steps)}"
        return "from another episode" if goal % lanes == number % lanes else "from another environment"


@dataclass(frozen=True)
class Copies:
    """What a buffer holds, as a batch that reaches all of it shows."""

    transition: dict[int, int]
    """By index."""
    goal: dict[int, int]
    """By index; empty where goals are drawn late."""


class Machine(RuleBasedStateMachine):
    """Calls on one buffer, and what it should then hold: an `Oracle` for each environment, and every copy's priority."""

    configuration: ClassVar[Configuration]
    coverage: ClassVar[Coverage]

    def __init__(self) -> None:
        super().__init__()
        c = self.configuration
        self.state = start(c)
        self.oracles = [Oracle(c.share, c.max_episode_length, c.next_of) for _ in range(c.lanes)]
        self.num_dropped_before = [0] * c.lanes  # The running episode.
        self.steps = 0
        self.finished: dict[int, Finished] = {}
        self.entered: dict[int, float] = {}  # The priority that each transition entered with, where running ones are sampled.
        self.largest = 1.0
        self.priorities: dict[tuple[int, int], float] = {}  # Of updated copies, by transition and index.
        self.num_rejected = 0
        self.seen = Copies({}, {})
        self.indices_seen: set[int] = set()
        self.calls_since_look = 0
        self.coverage.played.add(c)

    # Rules.

    @initialize(
        episodes=st.sampled_from([0, 8, 24, 24]), singles=st.sampled_from([False, True, True]), draw=st.integers(0, 2**16)
    )
    def begin(self, episodes: int, draw: int, *, singles: bool) -> None:
        """Some runs begin with an empty buffer, others with a past, and some with as many episodes as can be held."""
        rng = np.random.default_rng(draw)
        for count, bits, key in rng.integers((1, 0, 0), (LONGEST + 3, 24, 2**16), (episodes, 3)).tolist():
            self.add(count, 7, shared=False)
            self.end_episode(min(bits, 7), key, shared=False, look=False)
        for key in range(self.configuration.share if singles else 0):
            self.add(1, 7, shared=True)
            self.end_episode(7, key, shared=True, look=False)

    @rule(count=st.integers(1, LONGEST + 2), bits=BITS, shared=st.booleans())
    def add(self, count: int, bits: int, *, shared: bool) -> None:
        """One transition of some of the environments, up to two more often than an episode is long."""
        mask, argument = self.flags(bits, shared=shared)
        for _ in range(1 + (count - 1) % (self.configuration.max_episode_length + 2)):
            numbers = self.next_numbers()
            goal = {"goal": self.batched(-1 - numbers)} if self.configuration.sample_running else {}
            given = self.batched(numbers)
            self.state = herjax.add(self.state, pair(given) if self.configuration.next_of else given, argument, **goal)
            for oracle, number in itertools.compress(zip(self.oracles, numbers, strict=True), mask):
                oracle.add(int(number))
                self.entered[int(number)] = self.largest
            self.made("add" if np.all(mask) else "add, masked")

    @rule(bits=BITS, shared=st.booleans(), key=st.integers(0, 2**16), look=st.booleans())
    def end_episode(self, bits: int, key: int, *, shared: bool, look: bool) -> None:
        """Of any of the environments, or of all by one flag; what was ended may be looked at at once."""
        done, argument = self.flags(bits, shared=shared)
        goals = -1 - self.next_numbers()
        ended, suffix = self.running(done)
        before = None if ended else self.draw(self.state, key)
        given = (None, None) if self.configuration.sample_running else (self.batched(goals), jax.random.key(key))
        self.state = herjax.end_episode(self.state, *given, argument)
        for e in ended:
            oracle = self.oracles[e]
            oracle.end_episode(int(goals[e]))
            self.coverage.end_episode(self.configuration, oracle, oracle.num_dropped - self.num_dropped_before[e])
            self.num_dropped_before[e] = oracle.num_dropped
        self.remember(ended)
        if before is not None:
            jax.tree.map(np.testing.assert_array_equal, before, self.draw(self.state, key))
        self.made(f"end_episode{suffix}")
        if ended and look:
            self.look(key)
            for e in ended:
                assert set(self.oracles[e].episodes[-1].transitions) <= set(self.seen.transition.values())

    @rule(count=st.integers(0, LONGEST), bits=BITS, shared=st.booleans(), key=st.integers(0, 2**16))
    def discard(self, count: int, bits: int, key: int, *, shared: bool) -> None:
        """The running episodes of some of the environments, after so many more steps; what is drawn else stays the same."""
        if count:
            self.add(count, 7, shared=False)
        done, argument = self.flags(bits, shared=shared)
        dropped, suffix = self.running(done)
        before = self.draw(self.state, key)
        self.state = herjax.discard(self.state, argument)
        for e in dropped:
            self.oracles[e].discard()
            self.num_dropped_before[e] = self.oracles[e].num_dropped
        if not (dropped and self.configuration.sample_running):
            jax.tree.map(np.testing.assert_array_equal, before, self.draw(self.state, key))
        self.made(f"discard{suffix}")

    @rule(key=st.integers(0, 2**16), beta=st.sampled_from([0.4, 0.0, 1.0]))
    def sample(self, key: int, beta: float) -> None:
        """A batch from what is then looked at whole."""
        self.made("sample")
        self.look(key, beta)

    @precondition(lambda self: self.configuration.priority_exponent is not None)
    @rule(
        draw=st.integers(0, 2**16),
        distinct=st.sampled_from([1, 3, 512]),
        exponent=st.integers(-5, 6),
        faults=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    )
    def update_priorities(self, draw: int, distinct: int, exponent: int, faults: float) -> None:
        """Of some of what was drawn, up to a power of ten, each named often; of these pairs a share are faults."""
        rng = np.random.default_rng(draw)
        self.look(draw)
        drawn = np.unique(self.draw(self.state, draw).indices)
        if self.seen.transition and not any(self.stored().values()):
            drawn = np.asarray(list(self.seen.transition))  # Where all priorities are 0, draws are unspecified.
        size = self.configuration.batch_size
        indices = rng.choice(rng.choice(drawn, min(distinct, len(drawn)), replace=False), size)
        priorities = np.where(rng.random(size) < 0.05, 0, 10 ** rng.uniform(-6, exponent, size)).astype(np.float32)
        where = np.flatnonzero(rng.random(size) < faults)
        if self.seen.transition:
            self.inject(rng, where, indices, priorities)
            self.accept(indices.tolist(), priorities.tolist())
        else:
            # No fault whatever the priorities: a training loop makes this call before its first episode ends.
            priorities[where] = np.nan
            self.coverage.faults["of an empty buffer"] += 1
        self.state = herjax.update_priorities(self.state, indices.astype(np.int32), priorities)
        self.made("update_priorities")

    @rule(key=st.integers(0, 2**16))
    def round_trip(self, key: int) -> None:
        """To the host and back, as a checkpoint goes; the same batch comes of it."""
        leaves, treedef = jax.tree.flatten(jax.device_get(self.state))
        restored = jax.tree.unflatten(treedef, [jnp.asarray(np.copy(leaf)) for leaf in leaves])
        assert [typeof(leaf) for leaf in jax.tree.leaves(restored)] == [typeof(leaf) for leaf in jax.tree.leaves(self.state)]
        jax.tree.map(np.testing.assert_array_equal, self.draw(self.state, key), self.draw(restored, key))
        self.state = restored
        self.made("round_trip")

    def teardown(self) -> None:
        """A last look, unless something has been found already: it would be reported in its place."""
        if sys.exc_info()[0] is None:
            self.look(self.steps)

    # The model.

    def next_numbers(self) -> np.ndarray:
        """The next number of each environment."""
        lanes = self.configuration.lanes
        self.steps += 1
        return (self.steps * lanes + np.arange(lanes)).astype(np.int32)

    def batched(self, numbers: np.ndarray) -> np.ndarray:
        """With an axis of environments where there is one."""
        return numbers[0] if self.configuration.num_envs is None else numbers

    def flags(self, bits: int, *, shared: bool) -> tuple[np.ndarray, np.ndarray | np.bool_]:
        """A bool of each environment, and these as an argument: one for all, if it is to be shared and they agree."""
        flags = (bits >> np.arange(self.configuration.lanes)) % 2 == 1
        alone = self.configuration.num_envs is None
        return flags, flags[0] if alone or (shared and np.all(flags == flags[0])) else flags

    def running(self, done: np.ndarray) -> tuple[list[int], str]:
        """The environments that are done and have a running episode; where there are none, why, for the name of a call."""
        pending = [bool(oracle.pending) for oracle in self.oracles]
        ended = np.flatnonzero(done & pending).tolist()
        return ended, "" if ended else " not done" if any(pending) else ", nothing pending"

    def held_of(self, oracle: Oracle) -> list[int]:
        """The transitions of an environment that can be drawn."""
        return oracle.held + oracle.pending if self.configuration.sample_running else oracle.held

    @property
    def held(self) -> tuple[int, ...]:
        """Those of all environments."""
        return tuple(number for oracle in self.oracles for number in self.held_of(oracle))

    def about(self, number: int) -> Finished:
        """Of a transition that can be drawn; if its episode still runs, as if that ended now."""
        if not self.configuration.sample_running:
            return self.finished[number]
        pending = self.oracles[number % self.configuration.lanes].pending
        episode = Episode(-1, tuple(pending), ()) if number in pending else self.finished[number].episode
        return Finished(replace(episode, goal=-1 - number), self.entered[number])  # Each step pursues a goal of its own.

    def remember(self, ended: Iterable[int]) -> None:
        """Fix what is fixed when the episodes of these environments have ended, all in one call."""
        held = self.held
        for e in ended:
            episode = replace(self.oracles[e].episodes[-1], held=held)
            self.finished |= dict.fromkeys(episode.transitions, Finished(episode, self.largest))

    def goal_chances(self, number: int) -> Counter[int]:
        """By goal: how likely it is as a hindsight goal of this transition; goals drawn late are of what is held now."""
        c, episode = self.configuration, self.about(number).episode
        return c.goal_chances(replace(episode, held=self.held) if c.goals_late else episode, number)

    def inject(self, rng: np.random.Generator, where: np.ndarray, indices: np.ndarray, priorities: np.ndarray) -> None:
        """Turn the pairs at these places into faults of all kinds, some twice: an index and a priority of no use."""
        empty = np.setdiff1d(np.arange(len(indices)), list(self.seen.transition))
        gone = np.intersect1d(empty, list(self.indices_seen))
        kinds = sorted(FAULTS if len(gone) else FAULTS - {"made room"})
        for at in [*where, *where[rng.random(len(where)) < 0.3]]:
            kind = kinds[rng.integers(len(kinds))]
            match kind:
                case "nan" | "inf" | "-inf":
                    priorities[at] = float(kind)
                case "negative":
                    priorities[at] = -(10 ** rng.uniform(-30, 30))
                case "negative index":
                    indices[at] = rng.choice([-1, -2, -len(indices), INT32.min])
                case "huge index":
                    indices[at] = rng.choice([len(indices), 10**6, INT32.max])
                case "holds nothing":
                    indices[at] = rng.choice(empty)
                case "made room":
                    indices[at] = rng.choice(gone)
            self.coverage.faults[kind] += 1

    def accept(self, indices: list[int], priorities: list[float]) -> None:
        """Take every sound pair in turn, and count the rest."""
        num_accepted, last_accepted = 0, {}
        for index, priority in zip(indices, priorities, strict=True):
            held = index in self.seen.transition
            sound = np.isfinite(priority) and priority >= 0
            last_accepted[index] = held and sound
            self.coverage.faults["both at once"] += not held and not sound
            if last_accepted[index]:
                self.priorities[self.seen.transition[index], index] = priority
                self.largest = max(self.largest, priority)
                num_accepted += 1
                self.coverage.faults["zero"] += priority == 0
        self.num_rejected += len(indices) - num_accepted
        self.coverage.faults["accepted"] += num_accepted
        self.coverage.faults["all rejected"] += num_accepted == 0
        rejected_last = {index for index in last_accepted if index in self.seen.transition and not last_accepted[index]}
        self.coverage.faults["last of duplicates rejected"] += len(rejected_last)

    def made(self, call: str) -> None:
        """Count a call, and assert what is cheap to see after it."""
        self.coverage.calls[call] += 1
        size, c = int(herjax.size(self.state)), self.configuration
        assert size == len(self.held)
        assert bool(herjax.can_sample(self.state)) == (size > 0)
        assert int(self.state.num_dropped) == sum(oracle.num_dropped for oracle in self.oracles)
        assert int(self.state.num_rejected) == self.num_rejected
        self.coverage.full[c] += not any(oracle.pending or oracle.places_taken != c.share for oracle in self.oracles)
        self.calls_since_look += 1
        if self.calls_since_look == CALLS_BETWEEN_LOOKS:
            self.look(self.steps)

    # Looks.

    def draw(self, state: herjax.BufferState, key: int, beta: float = 0.4) -> herjax.Sample:
        """A batch that reaches every copy if priorities are equal, on the host."""
        c, ratio = self.configuration, self.configuration.ratio(key)
        batch = herjax.sample(state, jax.random.key(key), c.batch_size, beta=beta, hindsight_ratio=ratio)
        batch = jax.device_get(batch)
        if not c.next_of:
            return batch
        return batch._replace(
            **{name: self.number_of(getattr(batch, name), batch.weights > 0) for name in ("transition", "last")}
        )

    def number_of(self, pairs: Pair, there: np.ndarray) -> np.ndarray:
        """The number of each, after asserting that its observations are those that the buffer was given."""
        later = {}
        for number in np.unique(pairs.number[there]).tolist():
            episode = self.about(number).episode.transitions
            after = episode[episode.index(number) + 1 :]
            later[number] = 2 * after[0] if after else 2 * number + 1
        expected = seen(2 * pairs.number[there]), seen(np.asarray([later[number] for number in pairs.number[there].tolist()]))
        found = jax.tree.map(lambda leaf: leaf[there], (pairs.observation, pairs.next_observation))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        return pairs.number

    def look(self, key: int, beta: float = 0.4) -> None:
        """Assert that what is held is what the model holds, and that it is drawn as often as its priorities say."""
        c = self.configuration
        self.coverage.looks += 1
        self.calls_since_look = 0
        if self.steps % 3 == 0:  # Of all that a look does this takes longest.
            herjax.check(self.state)
        size = int(herjax.size(self.state))
        if size == 0:
            jax.tree.map(
                lambda leaf: np.testing.assert_array_equal(leaf, np.zeros_like(leaf)), self.draw(self.state, key, beta)
            )
            self.seen = Copies({}, {})
            return
        alike = self.state
        if c.priority_exponent is not None:
            every_index = np.arange(c.batch_size, dtype=np.int32)
            alike = herjax.update_priorities(self.state, every_index, np.ones(c.batch_size, np.float32))
            assert int(alike.num_rejected) == self.num_rejected + c.batch_size - c.copies * size
        batch = self.draw(alike, key, beta)
        before, self.seen = self.seen, self.copies(batch)
        self.indices_seen |= self.seen.transition.keys()
        assert len(self.seen.transition) == c.copies * size
        self.assert_held()
        self.assert_kept(before)
        self.assert_drawn(batch, dict.fromkeys(self.seen.transition, 1.0), beta)
        self.assert_goals_drawn(batch, key)
        if c.priority_exponent is not None:
            self.assert_priorities(key, beta)

    def copies(self, batch: herjax.Sample) -> Copies:
        """What was drawn, by index, after asserting that each field is its transition's and its goal's."""
        c, indices = self.configuration, batch.indices.tolist()
        assert 0 <= min(indices) <= max(indices) < c.batch_size
        transition = dict(zip(indices, batch.transition.tolist(), strict=True))
        assert len(set(zip(indices, batch.transition.tolist(), strict=True))) == len(transition), "one index, two transitions"
        fields = batch.goal, batch.reward, batch.terminated, batch.is_hindsight, batch.last, batch.discount
        lists = [[None] * c.batch_size if values is None else values.tolist() for values in fields]
        drawn = set(zip(indices, *lists, strict=True))
        chances = {number: self.goal_chances(number) for number in transition.values()}
        for index, goal, *outcome in drawn:
            number = transition[index]
            self.assert_goal(number, goal, chances[number])
            window = self.about(number).episode.window(number, goal, c.num_steps)
            assert tuple(outcome) == c.outcome(window, goal)
            self.coverage.window(c.num_steps, window, goal)
        if c.goals_late:
            return Copies(transition, {})
        assert len(drawn) == len(transition), "one index, two goals"
        return Copies(transition, {index: goal for index, goal, *_ in drawn})

    def assert_goal(self, number: int, goal: int, chances: Counter[int]) -> None:
        """It is the one that was pursued, or one that may be a hindsight goal of this transition."""
        finished, c = self.about(number), self.configuration
        if goal < 0:
            assert goal == finished.episode.goal
        else:
            assert c.hindsight_goals > 0
            assert goal in chances
            self.coverage.goals[c.name, finished.place(number, goal, c.lanes)] += 1

    def assert_goals_drawn(self, batch: herjax.Sample, key: int) -> None:
        """Of goals drawn late as many are hindsight goals as they should be, and these have the mean of their strategy."""
        c, ratio = self.configuration, self.configuration.ratio(key)
        self.coverage.ratios[ratio] += 1
        if not c.goals_late:
            return
        ratio = c.hindsight_goals / (1 + c.hindsight_goals) if ratio is None else ratio
        assert abs(np.mean(batch.is_hindsight) - ratio) <= 6 * np.sqrt(ratio * (1 - ratio) / c.batch_size)
        error = variance = 0.0
        for number in np.unique(batch.transition[batch.is_hindsight]).tolist():
            drawn = batch.goal[batch.is_hindsight & (batch.transition == number)]
            goals, chances = np.asarray(list(self.goal_chances(number).items())).T
            mean = chances @ goals
            error += np.sum(drawn - mean)
            variance += len(drawn) * (chances @ (goals - mean) ** 2)
        assert abs(error) <= 1e-3 + 6 * np.sqrt(variance)

    def assert_held(self) -> None:
        """Of each environment the newest transitions are held, of each all copies, one with the goal that was pursued."""
        c, held = self.configuration, Counter(self.seen.transition.values())
        assert set(held.values()) == {c.copies}
        for e, oracle in enumerate(self.oracles):
            assert sorted(number for number in held if number % c.lanes == e) == self.held_of(oracle)
        if not c.goals_late:
            pursued = Counter(self.seen.transition[index] for index, goal in self.seen.goal.items() if goal < 0)
            assert pursued == dict.fromkeys(held, 1)
            distinct = {(self.seen.transition[index], goal) for index, goal in self.seen.goal.items()}
            self.coverage.unlike[c] += sum(count > 2 for count in Counter(number for number, _ in distinct).values())

    def assert_kept(self, before: Copies) -> None:
        """What was held and still is has the indices, and the goals of its own, that it had."""
        old, new = set(before.transition.values()), set(self.seen.transition.values())
        for index in before.transition.keys() | self.seen.transition.keys():
            if before.transition.get(index) in new or self.seen.transition.get(index) in old:
                assert before.transition.get(index) == self.seen.transition.get(index)
                assert before.goal.get(index) == self.seen.goal.get(index)

    def stored(self) -> dict[int, float]:
        """By index: the stored priority of every copy held."""
        c = self.configuration
        raw = {
            index: self.priorities.get((number, index), self.about(number).priority)
            for index, number in self.seen.transition.items()
        }
        return {index: (priority + c.priority_epsilon) ** c.priority_exponent for index, priority in raw.items()}

    def assert_drawn(self, batch: herjax.Sample, stored: dict[int, float], beta: float) -> None:
        """Only what has a priority is drawn, with its share as probability, and the weight of that."""
        c, total = self.configuration, sum(stored.values())
        expected = np.asarray([stored[index] for index in batch.indices.tolist()]) / total
        assert np.all(expected > 0)
        np.testing.assert_allclose(batch.probabilities, expected, rtol=1e-4)
        weights = (len(stored) * expected) ** -beta
        np.testing.assert_allclose(batch.weights, weights / weights.max(), rtol=1e-4)
        _, first, counts = np.unique(batch.indices, return_index=True, return_counts=True)
        if len(stored) == len(first):
            assert np.sum(batch.probabilities[first]) == pytest.approx(1, rel=1e-4)
        if c.priority_exponent is not None:
            # Draws are stratified: all strata but the two at the ends of an index's share of the mass lie inside it or outside.
            assert np.all(np.abs(counts - c.batch_size * expected[first]) < 2.01)

    def assert_priorities(self, key: int, beta: float) -> None:
        """Every copy's share is that of its priority: what was drawn gets priority 0, until the least has been drawn too."""
        state, stored, c = self.state, self.stored(), self.configuration
        unseen = {index for index, priority in stored.items() if priority > 0}
        if not unseen:
            assert all(
                np.all(np.isfinite(field)) for field in (self.draw(state, key).probabilities, self.draw(state, key).weights)
            )
        while unseen:
            batch = self.draw(state, key, beta)
            drawn = self.copies(batch)
            assert drawn.transition.items() <= self.seen.transition.items()
            assert drawn.goal.items() <= self.seen.goal.items()
            self.assert_drawn(batch, stored, beta)
            self.assert_goals_drawn(batch, key)
            assert unseen & drawn.transition.keys()
            unseen -= drawn.transition.keys()
            stored |= dict.fromkeys(drawn.transition, c.priority_epsilon**c.priority_exponent)
            state = herjax.update_priorities(state, batch.indices, np.zeros(c.batch_size, np.float32))


# Runs.


def play(configuration: Configuration, coverage: Coverage, runs: int) -> None:
    """Plays this many runs on one configuration, the same in every session."""
    attributes = {"configuration": configuration, "coverage": coverage}
    machine = seed(coverage.pool.index(configuration))(type("Buffer", (Machine,), attributes))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=20,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def assert_covered(coverage: Coverage, num_calls: int) -> None:
    """All calls, faults and turns of the ring were played, on every configuration."""
    if coverage.played != set(coverage.pool):
        pytest.skip("not all machines ran here before")
    print(f"\n{coverage.calls.total()} calls: {dict(coverage.calls)}, {coverage.looks} looks")
    print(f"pairs in updates: {dict(coverage.faults)}")
    print(f"{len(coverage.pool)} configurations, each saw each of these at least so often: {coverage.least()}")
    assert coverage.calls.total() >= num_calls
    assert coverage.calls.keys() == CALLS
    assert coverage.ratios.keys() == {None, 0.0, 0.3, 1.0}
    assert {fault for fault, count in coverage.faults.items() if count} == FAULTS | UPDATES
    assert min(coverage.least().values()) > 0


@pytest.mark.parametrize("configuration", DEFAULT.pool, ids=str)
def test_any_calls_do_what_lists_and_a_dictionary_do(configuration: Configuration) -> None:
    """Whatever is called, all that can be seen of a buffer is what the model holds."""
    play(configuration, DEFAULT, 10)


def test_the_machines_played_everything() -> None:
    """At least 2,000 calls, every kind of fault, episode lengths and ring offsets all: the claim above is not empty."""
    assert_covered(DEFAULT, 2_000)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", WIDER.pool, ids=str)
def test_any_calls_in_more_settings(configuration: Configuration) -> None:
    """The same of more and odder settings, and longer."""
    play(configuration, WIDER, 36)


@pytest.mark.slow
def test_the_longer_machines_played_everything() -> None:
    """At least 100,000 calls, and all that is to be covered."""
    assert_covered(WIDER, 100_000)
