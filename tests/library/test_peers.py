"""herjax beside cpprb 11 and Stable-Baselines3 2.9: the same goals, rewards and priorities, or a difference that is named here.

The same episodes and priorities go into herjax and into the peer, and both are held against a table computed in NumPy: where
they differ, each against its own. Each library is skipped alone where it is missing. What the peers' sources say:

| | herjax | cpprb (HER.py, ReplayBuffer.hh) | SB3 (her_replay_buffer.py) |
|---|---|---|---|
| goal of a step | what it achieved | `goal_func(next_state)`: the same | `next_observations["achieved_goal"]`: the same |
| future | its own step included | the same | the same |
| final | one goal, whatever k > 0 | one, with k = 0 too | k/(k+1) of a batch |
| random | transitions held, all alike | rows held: those of earlier episodes k + 1 times | none |
| relabelled | `episode_end` or `sample` | at the episode's end | when sampled |
| share of own goals | 1/(k+1), by chance | the same, by chance | the first B - int(B k/(k+1)) of a batch |
| reward of own goals | recomputed | recomputed | as stored |
| termination | recomputed | an extra field, as stored | as stored, 0 where `TimeLimit.truncated` |
| size | transitions | rows, so copies | transitions |
| makes room by | the oldest transition with all copies | the oldest row: own goals go first | the rest of the oldest episode |
| episode too long | dropped and counted | `ValueError` | no limit |
| weights over the largest of | the batch | all rows stored (`set_weights`) | no priorities |
| epsilon by default | 1e-6 | 1e-4 | |
| priority NaN | rejected and counted | every weight is NaN | |
| nothing to sample | zeros with weights 0 | (not tested) | `RuntimeError` |

Transition `100 * environment + 10 * episode + step` achieves a goal that names it, and every other field encodes the number
too; goals that were pursued are below 0, unless they were reached. Seeds are fixed, but for priorities in cpprb, which seeds
their draws from the machine: what is asserted there holds for every draw, or fails in fewer than one run in 10^9.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import herjax
from distributions import FALSE_ALARM_RATE, WITHIN_EPISODE

NUM_GOALS = 3
MAX_EPISODE_LENGTH = 4
NUM_DRAWS = 10_000
NUM_BUFFERS_OF_CPPRB = 3_000  # Each plays all episodes in Python, for one draw.
COVERING_BATCH = 4096


# Episodes, and what may come out of them.


class Episode(NamedTuple):
    """A finished episode: its transitions are `first`, `first + 1`, ..."""

    first: int
    length: int
    pursued: int

    @property
    def numbers(self) -> range:
        """Its transitions."""
        return range(self.first, self.first + self.length)


Episodes = tuple[tuple[Episode, ...], ...]
"""Those of each environment, in order."""


class Outcome(NamedTuple):
    """What a draw says of a transition under a goal."""

    number: int
    goal: int
    reward: float
    done: bool


Reward = Callable[[Any, Any], Any]
"""Of an achieved and a desired goal; of NumPy or JAX arrays, with or without a batch axis."""
Judge = Callable[[Episode, int, int], Outcome]
"""The outcome of a transition, of that episode, under a goal."""
Table = dict[Outcome, float]
"""The probability of every possible outcome of a draw."""


def episodes_of(env: int, lengths: Sequence[int]) -> tuple[Episode, ...]:
    firsts = [100 * env + 10 * episode for episode in range(1, len(lengths) + 1)]
    return tuple(Episode(first, length, pursued=-first) for first, length in zip(firsts, lengths, strict=True))


ONE_ENV: Episodes = (episodes_of(0, (2, 1, 4)),)
TWO_ENVS: Episodes = (*ONE_ENV, episodes_of(1, (4, 3, 1)))
REACHED: Episodes = ((Episode(10, 3, pursued=12), Episode(20, 2, pursued=-20)),)
"""The first episode ends because it reached its goal; the second one is cut short."""


def encoding(achieved: Any, goal: Any) -> Any:
    """Differs for every pair of a transition and a goal."""
    return 1000 * achieved[..., 0] + goal[..., 0]


def sparse(achieved: Any, goal: Any) -> Any:
    """0 at the goal and -1 elsewhere."""
    return (achieved == goal).all(-1).astype(np.float32) - 1


def recomputed(episode: Episode, number: int, goal: int) -> Outcome:
    """What herjax should say, by the encoding reward: nothing depends on what was pursued when the transition was stored."""
    del episode
    return Outcome(number, goal, 1000 * number + goal, number == goal)


def with_stored_done(episode: Episode, number: int, goal: int) -> Outcome:
    """What cpprb should say: the reward is of the goal, but `done` of the episode's end."""
    return recomputed(episode, number, goal)._replace(done=number == episode.numbers[-1])


def with_stored_own_reward(episode: Episode, number: int, goal: int) -> Outcome:
    """What Stable-Baselines3 should say: beside `done`, the reward of the pursued goal is the stored one, half a point more."""
    outcome = with_stored_done(episode, number, goal)
    return outcome._replace(reward=outcome.reward + 0.5 * (goal == episode.pursued))


def within(strategy: str) -> Callable[[Episode, int], Mapping[int, float]]:
    """The probability of each hindsight goal of a transition, by a strategy that stays in the episode."""

    def goals(episode: Episode, number: int) -> Mapping[int, float]:
        chances = WITHIN_EPISODE[strategy][1](number - episode.first, episode.length)
        return {goal: chance for goal, chance in zip(episode.numbers, chances, strict=True) if chance > 0}

    return goals


def table(
    goals: Callable[[Episode, int], Mapping[int, float]], judge: Judge, *, episodes: Episodes = ONE_ENV, own: float
) -> Table:
    """A transition uniformly; with probability `own` its pursued goal, else one of its hindsight `goals`."""
    chances: Counter[Outcome] = Counter()
    every = [episode for of_env in episodes for episode in of_env]
    for episode in every:
        for number in episode.numbers:
            share = 1 / sum(episode.length for episode in every)
            chances[judge(episode, number, episode.pursued)] += own * share
            for goal, chance in goals(episode, number).items():
                chances[judge(episode, number, goal)] += (1 - own) * share * chance
    return dict(chances)


def share_of_own(strategy: str) -> float:
    """The share of copies that keep their own goal, in herjax and cpprb; `final` has one hindsight goal."""
    return 1 / 2 if strategy == "final" else 1 / (1 + NUM_GOALS)


def given_hindsight(of_all: Table, is_hindsight: bool) -> Table:
    """The table of those draws alone whose goal is, or is not, a hindsight goal."""
    kept = {outcome: chance for outcome, chance in of_all.items() if (outcome.goal >= 0) == is_hindsight}
    return {outcome: chance / sum(kept.values()) for outcome, chance in kept.items()}


def assert_follows(drawn: Sequence[Any], chances: Mapping[Any, float], rate: float = FALSE_ALARM_RATE) -> None:
    """All that is possible was drawn, nothing else, and each as often as a chi-square test allows."""
    assert set(drawn) == set(chances)
    counts = Counter(drawn)
    observed, expected = zip(*((counts[outcome], len(drawn) * chance) for outcome, chance in chances.items()), strict=True)
    assert min(expected) > 20, "too few draws for the chi-square approximation"
    if len(expected) > 1:
        assert stats.chisquare(observed, expected).pvalue > rate


# Their data, in which every field encodes the transition's number.


class Transition(NamedTuple):
    """Every field encodes the number; leading axes are the batch's."""

    observation: Any
    action: Any
    next_observation: Any


def fields(numbers: Any) -> Transition:
    numbers = np.asarray(numbers, np.float32)
    return Transition(
        observation=np.stack([numbers + 0.5, -numbers], axis=-1),
        action=2 * numbers,
        next_observation=np.stack([numbers, 1000 + numbers], axis=-1),
    )


def goal_of(ids: Any) -> np.ndarray:
    ids = np.asarray(ids, np.float32)
    return np.stack([ids, -ids], axis=-1)


def achieved(next_observation: Any) -> Any:
    return next_observation[..., :1] * np.float32([1, -1])


def outcomes(transition: Transition, *, goal: Any, reward: Any, done: Any) -> list[Outcome]:
    """One for each row, after asserting that all fields of a transition and of a goal encode the same number."""
    numbers, goals = np.asarray(transition.next_observation)[:, 0], np.asarray(goal)[:, 0]
    jax.tree.map(np.testing.assert_array_equal, transition, fields(numbers))
    np.testing.assert_array_equal(goal, goal_of(goals))
    rows = zip(numbers, goals, np.asarray(reward).reshape(-1), np.asarray(done).reshape(-1), strict=True)
    return [Outcome(int(number), int(goal), float(reward), bool(done)) for number, goal, reward, done in rows]


class Steps(NamedTuple):
    """All environments' steps in order, arrays [steps, environments]; in each an episode is still running at the end."""

    numbers: np.ndarray
    pursued: np.ndarray
    dones: np.ndarray


def steps_of(episodes: Episodes) -> Steps:
    num_steps = 1 + max(sum(episode.length for episode in of_env) for of_env in episodes)
    columns = []
    for of_env in episodes:
        running = Episode(of_env[-1].first + 10, MAX_EPISODE_LENGTH, pursued=-of_env[-1].first - 10)
        rows = [(n, e.pursued, n == e.numbers[-1]) for e in (*of_env, running) for n in e.numbers]
        columns.append(rows[:num_steps])
    numbers, pursued, dones = np.moveaxis(np.asarray(columns), 2, 0)
    return Steps(numbers.T, pursued.T, dones.T.astype(bool))


# herjax.


def goal_fn(transition: Transition) -> jax.Array:
    return achieved(transition.next_observation)


def encoding_fn(transition: Transition, goal: jax.Array) -> jax.Array:
    return encoding(goal_fn(transition), goal)


def sparse_fn(transition: Transition, goal: jax.Array) -> jax.Array:
    return sparse(goal_fn(transition), goal)


def reaches(transition: Transition, goal: jax.Array) -> jax.Array:
    return (goal_fn(transition) == goal).all()


def herjax_buffer(strategy: str, reward: Reward = encoding, **options: Any) -> herjax.BufferState:
    """An empty buffer. Its functions are those above, because what is compiled for one buffer serves those with the same."""
    defaults = {"capacity": 16, "max_episode_length": MAX_EPISODE_LENGTH, "num_goals": NUM_GOALS}
    return herjax.init(
        jax.tree.map(jnp.asarray, fields(0)),
        goal_fn=goal_fn,
        reward_fn=sparse_fn if reward is sparse else encoding_fn,
        terminated_fn=reaches,
        strategy=strategy,
        **(defaults | options),
    )


def herjax_outcomes(batch: herjax.Sample) -> list[Outcome]:
    return outcomes(batch.transition, goal=batch.goal, reward=batch.reward, done=batch.terminated)


@cache
def herjax_draws(strategy: str, relabel: str, episodes: Episodes, /, reward: Reward = encoding) -> tuple[Outcome, ...]:
    """One draw from each of NUM_DRAWS buffers with the same episodes, each with a key of its own: independent draws."""
    n = len(episodes)
    empty = herjax_buffer(strategy, reward, capacity=16 * n, num_envs=n, relabel=relabel)
    numbers, pursued, dones = steps_of(episodes)

    def step(state: herjax.BufferState, xs: tuple[Transition, jax.Array, jax.Array, jax.Array]) -> Any:
        transition, goal, key, done = xs
        return herjax.end_episode(herjax.add(state, transition), goal, key, done), None

    def draw(key: jax.Array) -> herjax.Sample:
        key_ends, key_sample = jax.random.split(key)
        keys = jax.random.split(key_ends, len(dones))
        state, _ = jax.lax.scan(step, empty, (fields(numbers), goal_of(pursued), keys, dones))
        return jax.tree.map(lambda leaf: leaf[0], herjax.sample(state, key_sample, 1))

    batch = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), NUM_DRAWS))
    if episodes is not REACHED:
        np.testing.assert_array_equal(batch.is_hindsight, batch.goal[:, 0] >= 0)
    return tuple(herjax_outcomes(batch))


def add_episode(state: herjax.BufferState, episode: Episode, seed: int = 0) -> herjax.BufferState:
    for number in episode.numbers:
        state = herjax.add(state, jax.tree.map(jnp.asarray, fields(number)))
    return herjax.end_episode(state, jnp.asarray(goal_of(episode.pursued)), jax.random.key(seed))


def held(state: herjax.BufferState) -> set[tuple[int, ...]]:
    """Transitions and goals of all copies."""
    return {outcome[:2] for outcome in herjax_outcomes(herjax.sample(state, jax.random.key(0), COVERING_BATCH))}


# cpprb.


def cpprb_buffer(strategy: str, reward: Reward = encoding, **options: Any) -> Any:
    cpprb = pytest.importorskip("cpprb")
    pair: dict[str, Any] = {"shape": 2}
    buffer = cpprb.HindsightReplayBuffer(
        **{"size": 64, "additional_goals": NUM_GOALS, "prioritized": False, "strategy": strategy} | options,
        env_dict={"obs": pair, "act": {}, "next_obs": pair, "done": {}},
        max_episode_len=MAX_EPISODE_LENGTH,
        goal_shape=(2,),
        goal_func=achieved,
        reward_func=lambda next_observation, action, goal: reward(achieved(next_observation), goal),  # noqa: ARG005
    )
    buffer.rng = np.random.default_rng(0)  # Draws the goals; there is no seed to give.
    np.random.seed(0)  # Draws the rows.
    return buffer


@cache
def cpprb_steps(episode: Episode) -> dict[str, np.ndarray]:
    """An episode's transitions, the last of which is stored as done."""
    transition = fields(episode.numbers)
    dones = np.equal(episode.numbers, episode.numbers[-1])
    return {"obs": transition.observation, "act": transition.action, "next_obs": transition.next_observation, "done": dones}


def add_to_cpprb(buffer: Any, episode: Episode, *, ends: bool = True) -> None:
    """Adds an episode; unless it `ends`, it is still running."""
    buffer.add(**cpprb_steps(episode))
    if ends:
        buffer.on_episode_end(goal_of(episode.pursued))


def cpprb_outcomes(batch: Mapping[str, np.ndarray]) -> list[Outcome]:
    transition = Transition(batch["obs"], batch["act"][:, 0], batch["next_obs"])
    return outcomes(transition, goal=batch["goal"], reward=batch["rew"], done=batch["done"])


@cache
def cpprb_draws(strategy: str) -> tuple[Outcome, ...]:
    """One draw from each of many buffers with the same episodes, each with goals of its own: independent draws."""
    buffer = cpprb_buffer(strategy)
    rows = []
    for _ in range(NUM_BUFFERS_OF_CPPRB):
        buffer.clear()
        for episode in ONE_ENV[0]:
            add_to_cpprb(buffer, episode)
        add_to_cpprb(buffer, Episode(40, 1, pursued=-40), ends=False)
        rows.append(buffer.sample(1))
    return tuple(cpprb_outcomes({name: np.concatenate([row[name] for row in rows]) for name in rows[0]}))


# Stable-Baselines3.


def sb3_buffer(
    strategy: str, reward: Reward = encoding, *, num_envs: int = 1, size: int = 32, num_goals: int = NUM_GOALS
) -> Any:
    """An empty buffer beside the environments that it asks for rewards; they are never stepped."""
    gymnasium = pytest.importorskip("gymnasium")
    her = pytest.importorskip("stable_baselines3.her.her_replay_buffer")
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    pair = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    names = ("observation", "achieved_goal", "desired_goal")

    class GoalEnv(gymnasium.Env):
        """The least that Stable-Baselines3 takes for a goal environment."""

        observation_space = gymnasium.spaces.Dict(dict.fromkeys(names, pair))
        action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

        def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, infos: object) -> np.ndarray:
            """Of a batch."""
            del infos
            return reward(achieved_goal, desired_goal)

    np.random.seed(0)  # Draws rows and goals.
    return her.HerReplayBuffer(
        size * num_envs,
        GoalEnv.observation_space,
        GoalEnv.action_space,
        env=vec_env.DummyVecEnv([GoalEnv] * num_envs),
        device="cpu",
        n_envs=num_envs,
        n_sampled_goal=num_goals,
        goal_selection_strategy=strategy,
    )


def play_in_sb3(buffer: Any, steps: Steps, rewards: np.ndarray, *, truncated: np.ndarray | None = None) -> Any:
    """The buffer after these steps; the goal achieved before a step is that of the number before it."""
    truncated = np.zeros_like(steps.dones) if truncated is None else truncated
    for numbers, pursued, done, reward, cut in zip(*steps, rewards, truncated, strict=True):
        transition = fields(numbers)
        desired = {"desired_goal": goal_of(pursued)}
        buffer.add(
            {"observation": transition.observation, "achieved_goal": goal_of(numbers - 1), **desired},
            {"observation": transition.next_observation, "achieved_goal": goal_of(numbers), **desired},
            transition.action[:, None],
            reward,
            done,
            [{"TimeLimit.truncated": bool(one)} for one in cut],
        )
    return buffer


def sb3_outcomes(batch: Any) -> list[Outcome]:
    """One for each row, after asserting that the achieved goals are the transition's, and both observations desire the same."""
    before, after = ({name: leaf.numpy() for name, leaf in of.items()} for of in (batch.observations, batch.next_observations))
    numbers = after["observation"][:, 0]
    np.testing.assert_array_equal(before["achieved_goal"], goal_of(numbers - 1))
    np.testing.assert_array_equal(after["achieved_goal"], goal_of(numbers))
    np.testing.assert_array_equal(before["desired_goal"], after["desired_goal"])
    transition = Transition(before["observation"], batch.actions.numpy()[:, 0], after["observation"])
    return outcomes(transition, goal=before["desired_goal"], reward=batch.rewards, done=batch.dones)


def sb3_draws(strategy: str, *, episodes: Episodes = ONE_ENV, num_goals: int = NUM_GOALS) -> list[Outcome]:
    """A batch of NUM_DRAWS; the rewards stored are half a point more than those of the function."""
    steps = steps_of(episodes)
    stored = encoding(goal_of(steps.numbers), goal_of(steps.pursued)) + 0.5
    buffer = play_in_sb3(sb3_buffer(strategy, num_envs=len(episodes), num_goals=num_goals), steps, stored)
    return sb3_outcomes(buffer.sample(NUM_DRAWS))


# The same goals and rewards, as often.


either_relabel = pytest.mark.parametrize("relabel", ["episode_end", "sample"])
each_strategy = pytest.mark.parametrize("strategy", ["future", "episode", "final"])


@either_relabel
@each_strategy
def test_cpprb_draws_the_same_outcomes_as_often(strategy: str, relabel: str) -> None:
    """Transition, goal and reward of a draw follow one table in both (chi-square); cpprb alone keeps the stored `done`."""
    peer = cpprb_draws(strategy)
    own = share_of_own(strategy)
    assert_follows(herjax_draws(strategy, relabel, ONE_ENV), table(within(strategy), recomputed, own=own))
    assert_follows(peer, table(within(strategy), with_stored_done, own=own))


@pytest.mark.parametrize(
    ("episodes", "relabel"),
    [(ONE_ENV, "episode_end"), (ONE_ENV, "sample"), (TWO_ENVS, "sample")],
    ids=["one-episode_end", "one-sample", "two-sample"],
)
@each_strategy
def test_sb3_draws_the_same_outcomes_as_often(strategy: str, episodes: Episodes, relabel: str) -> None:
    """Both follow one table, of one environment or two (chi-square), but that SB3 keeps stored dones and own goals' rewards.

    It also takes an exact share of own goals, where herjax throws a coin for each: its two shares are tested apart.
    """
    peer = sb3_draws(strategy, episodes=episodes, num_goals=1 if strategy == "final" else NUM_GOALS)
    own = share_of_own(strategy)
    assert_follows(herjax_draws(strategy, relabel, episodes), table(within(strategy), recomputed, episodes=episodes, own=own))
    expected = table(within(strategy), with_stored_own_reward, episodes=episodes, own=own)
    num_own = round(own * NUM_DRAWS)
    assert_follows(peer[:num_own], given_hindsight(expected, False))
    assert_follows(peer[num_own:], given_hindsight(expected, True))


def random_goals(weight_of_earlier: int) -> Callable[[Episode, int], Mapping[int, float]]:
    """Goals of all episodes so far, an earlier one's with a weight."""

    def goals(episode: Episode, number: int) -> Mapping[int, float]:
        del number
        seen = [other for other in ONE_ENV[0] if other.first <= episode.first]
        weights = {n: 1 if other is episode else weight_of_earlier for other in seen for n in other.numbers}
        return {n: weight / sum(weights.values()) for n, weight in weights.items()}

    return goals


def test_cpprbs_random_prefers_earlier_episodes() -> None:
    """Both draw from the same finished transitions; herjax from all alike, cpprb from rows (chi-square of each).

    The ended episode has one row for each transition by then, the earlier ones k + 1.
    """
    peer = cpprb_draws("random")
    own = share_of_own("random")
    at_episode_end = herjax_draws("random", "episode_end", ONE_ENV)
    assert_follows(at_episode_end, table(random_goals(1), recomputed, own=own))
    assert_follows(peer, table(random_goals(1 + NUM_GOALS), with_stored_done, own=own))
    assert {outcome[:3] for outcome in peer} == {outcome[:3] for outcome in at_episode_end}


# Sparse rewards and termination.


def judged_sparsely(*, stored_done: bool) -> Judge:
    """Reward 0 and termination at the goal; or, as in the peers, where the episode was terminated when it was stored."""

    def judge(episode: Episode, number: int, goal: int) -> Outcome:
        del episode
        return Outcome(number, goal, 0.0 if number == goal else -1.0, number == 12 if stored_done else number == goal)

    return judge


def assert_sparse_outcomes(peer: Sequence[Outcome], relabel: str) -> None:
    """Both give every reward by the function, herjax terminates exactly at goals, and the peer where it was stored."""
    of_herjax = herjax_draws("episode", relabel, REACHED, reward=sparse)
    for drawn, stored_done in ((of_herjax, False), (peer, True)):
        judge = judged_sparsely(stored_done=stored_done)
        assert set(drawn) == set(table(within("episode"), judge, episodes=REACHED, own=share_of_own("episode")))
    assert {outcome[:3] for outcome in of_herjax} == {outcome[:3] for outcome in peer}
    assert {Outcome(21, 21, 0.0, True), Outcome(12, 10, -1.0, False)} <= set(of_herjax)
    assert {Outcome(21, 21, 0.0, False), Outcome(12, 10, -1.0, True)} <= set(peer)


def test_cpprb_relabels_a_sparse_reward_but_not_done() -> None:
    """Rewards are 0 at the goal and -1 elsewhere in both; cpprb keeps `done`, where 21 reaches 21 and where 12 misses 10."""
    buffer = cpprb_buffer("episode", sparse)
    peer = []
    for _ in range(100):
        buffer.clear()
        for episode in REACHED[0]:
            buffer.add(**(cpprb_steps(episode) | {"done": np.equal(episode.numbers, 12)}))
            buffer.on_episode_end(goal_of(episode.pursued))
        peer += cpprb_outcomes(buffer.get_all_transitions())
    assert_sparse_outcomes(peer, "episode_end")


def test_sb3_relabels_a_sparse_reward_but_not_done() -> None:
    """Rewards are 0 at the goal and -1 elsewhere in both; SB3 keeps `done`, as 0 where time ran out."""
    steps = steps_of(REACHED)
    rewards = sparse(goal_of(steps.numbers), goal_of(steps.pursued))
    buffer = play_in_sb3(sb3_buffer("episode", sparse), steps, rewards, truncated=steps.numbers == 21)
    assert_sparse_outcomes(sb3_outcomes(buffer.sample(COVERING_BATCH)), "sample")


# How many goals, and which transitions.


def test_cpprbs_final_ignores_0_goals() -> None:
    """With k = 0 `final` has no hindsight goal in herjax, and one in cpprb, whose `future` has none."""
    state = herjax_buffer("final", num_goals=0)
    final, future = (cpprb_buffer(strategy, additional_goals=0) for strategy in ("final", "future"))
    for episode in ONE_ENV[0]:
        state = add_episode(state, episode)
        add_to_cpprb(final, episode)
        add_to_cpprb(future, episode)
    both = set(table(within("final"), with_stored_done, own=1 / 2))
    own = {outcome for outcome in both if outcome.goal < 0}
    assert held(state) == {outcome[:2] for outcome in own}
    assert set(cpprb_outcomes(future.get_all_transitions())) == own
    assert set(cpprb_outcomes(final.get_all_transitions())) == both


def test_sb3_takes_an_exact_share_of_own_goals() -> None:
    """Of a batch of 10 with k = 3 SB3 takes 3 own goals, first, and of a batch of 1 one; herjax throws a coin for each draw.

    So their number in a batch of 10 is binomial in herjax (chi-square; 6 and more together).
    """
    steps = steps_of(ONE_ENV)
    buffer = play_in_sb3(sb3_buffer("future"), steps, np.zeros(steps.dones.shape))
    for batch_size, num_own in ((10, 3), (1, 1)):
        for _ in range(50):
            goals = np.asarray([outcome.goal for outcome in sb3_outcomes(buffer.sample(batch_size))])
            np.testing.assert_array_equal(goals < 0, np.arange(batch_size) < num_own)

    state = herjax_buffer("future", relabel="sample", capacity=6)
    for episode in ONE_ENV[0]:
        state = add_episode(state, episode)
    keys = jax.random.split(jax.random.key(0), 4_000)
    is_hindsight = jax.vmap(lambda key: herjax.sample(state, key, 10).is_hindsight)(keys)
    num_own = np.minimum(np.sum(~np.asarray(is_hindsight), axis=1), 6)
    chances = stats.binom.pmf(np.arange(7), 10, 1 / 4) + np.where(np.arange(7) == 6, stats.binom.sf(6, 10, 1 / 4), 0)
    assert_follows(num_own.tolist(), dict(enumerate(chances)))


def test_sb3s_final_has_k_goals() -> None:
    """With `final` and k = 3 SB3 relabels 3 of 4 draws, herjax 1 of 2: for it one goal is one goal (chi-square of each)."""
    peer = sb3_draws("final")
    expected = table(within("final"), with_stored_own_reward, own=1 / 4)
    assert_follows(peer[: NUM_DRAWS // 4], given_hindsight(expected, False))
    assert_follows(peer[NUM_DRAWS // 4 :], given_hindsight(expected, True))
    assert_follows(herjax_draws("final", "sample", ONE_ENV), table(within("final"), recomputed, own=1 / 2))


EVICTING = episodes_of(0, (3, 3, 1))
"""With room for 6 transitions, the last one needs another's."""


def test_cpprb_evicts_rows_and_herjax_transitions() -> None:
    """Where a transition of 2 copies makes room, herjax loses the oldest, cpprb 2 of the first episode's own goals.

    cpprb's size counts copies.
    """
    buffer = cpprb_buffer("final", size=12)
    state = herjax_buffer("final", capacity=6)
    for episode in EVICTING:
        add_to_cpprb(buffer, episode)
        state = add_episode(state, episode)
    copies = {(n, goal) for episode in EVICTING for n in episode.numbers for goal in (episode.pursued, episode.numbers[-1])}
    assert held(state) == copies - {(10, -10), (10, 12)}
    assert herjax.size(state) == 6
    assert {outcome[:2] for outcome in cpprb_outcomes(buffer.get_all_transitions())} == copies - {(10, -10), (11, -10)}
    assert buffer.get_stored_size() == 12


@pytest.mark.parametrize("strategy", ["future", "episode"])
def test_sb3_evicts_episodes_and_herjax_only_where_goals_look_back(strategy: str) -> None:
    """One transition too many costs SB3 all of the oldest episode, herjax so with `episode`, else the oldest transition."""
    numbers = np.asarray([[n] for episode in EVICTING for n in episode.numbers])
    pursued = np.asarray([[episode.pursued] for episode in EVICTING for _ in episode.numbers])
    steps = Steps(numbers, pursued, np.isin(numbers, [episode.numbers[-1] for episode in EVICTING]))
    buffer = play_in_sb3(sb3_buffer(strategy, size=6), steps, np.zeros(numbers.shape))
    state = herjax_buffer(strategy, relabel="sample", capacity=6)
    for episode in EVICTING:
        state = add_episode(state, episode)
    gone = {10, 11, 12}
    finished = set(numbers[:, 0].tolist())
    assert {outcome.number for outcome in sb3_outcomes(buffer.sample(COVERING_BATCH))} == finished - gone
    assert {number for number, _ in held(state)} == finished - (gone if strategy == "episode" else {10})


def test_cpprb_refuses_too_long_an_episode() -> None:
    """The 5th step of at most 4 raises in cpprb; herjax drops and counts it, and both go on with the first 4."""
    buffer = cpprb_buffer("final")
    add_to_cpprb(buffer, Episode(10, 4, pursued=-10), ends=False)
    with pytest.raises(ValueError, match="Max Episode Length"):
        add_to_cpprb(buffer, Episode(14, 1, pursued=-10))
    buffer.on_episode_end(goal_of(-10))
    state = add_episode(herjax_buffer("final", capacity=6), Episode(10, 5, pursued=-10))
    assert state.num_dropped == 1
    copies = {(number, goal) for number in range(10, 14) for goal in (-10, 13)}
    assert held(state) == copies
    assert {outcome[:2] for outcome in cpprb_outcomes(buffer.get_all_transitions())} == copies


def test_sb3_cannot_sample_a_running_episode() -> None:
    """Before an episode has ended SB3 raises; herjax draws weights 0, and `can_sample` says so."""
    steps = Steps(np.asarray([[10]]), np.asarray([[-10]]), np.asarray([[False]]))
    buffer = play_in_sb3(sb3_buffer("future"), steps, np.zeros((1, 1)))
    with pytest.raises(RuntimeError, match="before the end of the first episode"):
        buffer.sample(1)
    state = herjax.add(herjax_buffer("future", relabel="sample", capacity=6), jax.tree.map(jnp.asarray, fields(10)))
    assert not herjax.can_sample(state)
    np.testing.assert_array_equal(herjax.sample(state, jax.random.key(0), COVERING_BATCH).weights, 0)


# Priorities.


def number_of(item: Mapping[str, jax.Array]) -> jax.Array:
    return item["number"]


def minus(item: Mapping[str, jax.Array], goal: jax.Array) -> jax.Array:
    del goal
    return item["minus"]


@dataclass
class Both:
    """A prioritised buffer of herjax and one of cpprb, both of numbers, beside the priorities that NumPy would give them."""

    capacity: int
    alpha: float
    epsilon: float
    priorities: dict[int, float] = field(default_factory=dict)
    largest: float = 1.0

    def __post_init__(self) -> None:
        cpprb = pytest.importorskip("cpprb")
        self.peer = cpprb.PrioritizedReplayBuffer(
            self.capacity, {"number": {}, "minus": {}}, alpha=self.alpha, eps=self.epsilon
        )
        self.state = herjax.init(
            {"number": jnp.int32(0), "minus": jnp.float32(0)},
            capacity=self.capacity,
            max_episode_length=1,
            goal_fn=number_of,
            reward_fn=minus,
            num_goals=0,
            priority_exponent=self.alpha,
            priority_epsilon=self.epsilon,
        )

    def add(self, number: int) -> None:
        """Adds an item to all; the oldest makes room."""
        self.peer.add(number=number, minus=-number)
        self.state = herjax.add(self.state, {"number": jnp.int32(number), "minus": jnp.float32(-number)})
        self.state = herjax.end_episode(self.state, jnp.int32(-1), jax.random.key(number))
        self.priorities[number] = self.largest
        self.priorities.pop(number - self.capacity, None)

    def update(self, numbers: Sequence[int], priorities: Sequence[float]) -> None:
        """Updates all, in this order."""
        self.peer.update_priorities(np.asarray(numbers) % self.capacity, priorities)
        batch = self.sample(COVERING_BATCH, seed=0)
        index_of = dict(zip(batch.transition["number"].tolist(), batch.indices.tolist(), strict=True))
        indices = jnp.asarray([index_of[number] for number in numbers])
        self.state = herjax.update_priorities(self.state, indices, jnp.asarray(priorities, jnp.float32))
        self.priorities.update(zip(numbers, priorities, strict=True))
        self.largest = max(self.largest, *priorities)

    def probabilities(self) -> dict[int, float]:
        """Of each number, by the formula."""
        stored = {number: (priority + self.epsilon) ** self.alpha for number, priority in self.priorities.items()}
        return {number: power / sum(stored.values()) for number, power in stored.items()}

    def sample(self, batch_size: int, *, seed: int, **options: Any) -> herjax.Sample:
        """A batch of herjax, whose fields are one transition's."""
        batch = herjax.sample(self.state, jax.random.key(seed), batch_size, **options)
        np.testing.assert_array_equal(batch.transition["minus"], -np.asarray(batch.transition["number"]))
        return batch

    def sample_peer(self, batch_size: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and weights of a batch of cpprb, whose fields are one transition's."""
        batch = self.peer.sample(batch_size, **options)
        numbers = batch["number"][:, 0].astype(int)
        np.testing.assert_array_equal(batch["minus"][:, 0], -numbers)
        np.testing.assert_array_equal(batch["indexes"], numbers % self.capacity)
        return numbers, batch["weights"].copy()

    def assert_probabilities(self) -> None:
        """Both give each item held its probability: cpprb by its weights for beta 1, which are over the largest of all."""
        expected = self.probabilities()
        assert min(expected.values()) * COVERING_BATCH > 3, "stratified draws reach all of these"
        batch = self.sample(COVERING_BATCH, seed=1)
        numbers, weights = self.sample_peer(COVERING_BATCH, beta=1.0)
        assert set(batch.transition["number"].tolist()) == set(numbers.tolist()) == set(expected)
        of_batch = [expected[number] for number in batch.transition["number"].tolist()]
        np.testing.assert_allclose(batch.probabilities, of_batch, rtol=1e-4)
        of_batch = [min(expected.values()) / expected[number] for number in numbers.tolist()]
        np.testing.assert_allclose(weights, of_batch, rtol=1e-4)


def test_cpprb_has_the_same_probabilities_whatever_is_updated() -> None:
    """After 40 rounds of new items and updates, duplicates and zeros among them, both have the formula's probabilities.

    New items enter with the largest priority so far, which never falls: both keep p itself, and apply epsilon and alpha once.
    """
    both = Both(16, alpha=0.6, epsilon=1e-2)
    rng = np.random.default_rng(0)
    next_number = 0
    for _ in range(40):
        for _ in range(rng.integers(1, 4)):
            both.add(next_number)
            next_number += 1
        both.assert_probabilities()
        numbers = rng.choice(list(both.priorities), 6)
        priorities = np.where(rng.random(6) < 0.1, 0, rng.uniform(0.1, 1.5, 6)).astype(np.float32)
        both.update(numbers.tolist(), priorities.tolist())
        both.assert_probabilities()
        assert both.peer.get_max_priority() == pytest.approx(float(both.state.max_priority))
    assert next_number > 2 * both.capacity


def uneven() -> Both:
    """Twelve items, priorities 1 .. 12 squared over 16, alpha 0.6: the rarest is missing in small batches."""
    both = Both(16, alpha=0.6, epsilon=1e-2)
    for number in range(12):
        both.add(number)
    both.update(range(12), (np.arange(1, 13) ** 2 / 16).tolist())
    return both


@pytest.mark.parametrize("beta", [None, 0.0, 0.4, 0.7, 1.0])
def test_cpprbs_weights_are_over_the_largest_of_all(beta: float | None) -> None:
    """Weights are P^-beta over the largest: of the batch in herjax, of the whole buffer in cpprb.

    So herjax's are cpprb's, over the largest that cpprb gives to any of the batch. By default beta is 0.4 in both.
    """
    both = uneven()
    options = {} if beta is None else {"beta": beta}
    raw = {number: p ** -(0.4 if beta is None else beta) for number, p in both.probabilities().items()}
    numbers, weights = both.sample_peer(COVERING_BATCH, **options)
    np.testing.assert_allclose(weights, [raw[number] / max(raw.values()) for number in numbers.tolist()], rtol=1e-4)
    of_cpprb = dict(zip(numbers.tolist(), weights, strict=True))
    assert set(of_cpprb) == set(raw)

    largest_of_batch = set()
    for seed in range(10):
        batch = both.sample(4, seed=seed, **options)
        drawn = batch.transition["number"].tolist()
        np.testing.assert_allclose(batch.weights, [raw[n] / max(raw[m] for m in drawn) for n in drawn], rtol=1e-4)
        largest = max(of_cpprb[number] for number in drawn)
        np.testing.assert_allclose(batch.weights * largest, [of_cpprb[number] for number in drawn], rtol=1e-4)
        largest_of_batch.add(min(drawn))
    assert len(largest_of_batch) > 1, "this test needs batches without the rarest"


def test_cpprb_draws_by_priority_as_often() -> None:
    """Single draws of both follow the same probabilities (chi-square); a large batch has B P of each, give or take 2, in both.

    cpprb's own generator cannot be seeded: its chi-square fails in one run of 10^9, and the strata hold for every draw.
    """
    both = uneven()
    expected = both.probabilities()
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    draw = jax.jit(jax.vmap(lambda key: herjax.sample(both.state, key, 1).transition["number"][0]))
    assert_follows(draw(keys).tolist(), expected)
    assert_follows([int(both.peer.sample(1)["number"][0, 0]) for _ in range(NUM_DRAWS)], expected, rate=1e-9)

    for drawn in (both.sample(COVERING_BATCH, seed=2).transition["number"], both.sample_peer(COVERING_BATCH)[0]):
        counts = np.bincount(drawn, minlength=12)
        assert np.all(np.abs(counts - COVERING_BATCH * np.asarray(list(expected.values()))) < 2.01)


def test_cpprbs_default_epsilon_is_larger() -> None:
    """By default a priority of 0 beside one of 1 is drawn with probability 1e-6 in herjax and 1e-4 in cpprb."""
    cpprb = pytest.importorskip("cpprb")
    peer = cpprb.PrioritizedReplayBuffer(2, {"number": {}}, alpha=1.0)
    peer.add(number=[0, 1])
    peer.update_priorities([0], [0.0])
    weights = peer.sample(COVERING_BATCH, beta=1.0)["weights"]
    assert min(weights) == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-4)

    state = herjax_buffer("future", num_goals=0, priority_exponent=1.0)
    state = add_episode(state, Episode(10, 2, pursued=-10))
    batch = herjax.sample(state, jax.random.key(0), 2)
    assert sorted(batch.transition.next_observation[:, 0].tolist()) == [10, 11]
    state = herjax.update_priorities(state, batch.indices[:1], jnp.zeros(1))
    other = herjax.sample(state, jax.random.key(0), 2)
    assert 1 - float(other.probabilities[0]) == pytest.approx(1e-6, abs=1.2e-7)


def test_a_nan_priority_spoils_cpprb() -> None:
    """A NaN is rejected and counted in herjax, and no weight changes; after one every weight of cpprb is NaN."""
    both = uneven()
    before = both.sample(COVERING_BATCH, seed=0)
    both.peer.update_priorities([3], [np.nan])
    assert np.isnan(both.sample_peer(64)[1]).all()
    both.state = herjax.update_priorities(both.state, before.indices[:1], jnp.full(1, jnp.nan))
    assert both.state.num_rejected == 1
    jax.tree.map(np.testing.assert_array_equal, both.sample(COVERING_BATCH, seed=0), before)


def test_cpprb_prioritises_hindsight_copies_alike() -> None:
    """With `final` both hold the same copies, and the same priorities of these give the same probabilities and weights.

    All copies of a later episode enter with the largest priority so far, in both.
    """
    alpha, epsilon = 0.6, 1e-3
    buffer = cpprb_buffer("final", prioritized=True, alpha=alpha, eps=epsilon)
    state = herjax_buffer("final", priority_exponent=alpha, priority_epsilon=epsilon)
    priorities: dict[tuple[int, ...], float] = {}

    def copies_of(batch: herjax.Sample) -> list[tuple[int, ...]]:
        return [outcome[:2] for outcome in herjax_outcomes(batch)]

    def check() -> None:
        stored = {copy: (priority + epsilon) ** alpha for copy, priority in priorities.items()}
        chances = {copy: power / sum(stored.values()) for copy, power in stored.items()}
        batch = herjax.sample(state, jax.random.key(0), COVERING_BATCH, beta=0.7)
        assert set(copies_of(batch)) == set(chances)
        np.testing.assert_allclose(batch.probabilities, [chances[copy] for copy in copies_of(batch)], rtol=1e-4)
        expected = np.asarray([(min(chances.values()) / chances[copy]) ** 0.7 for copy in copies_of(batch)])
        np.testing.assert_allclose(batch.weights, expected, rtol=1e-4)  # The rarest is among so many.
        peer = buffer.sample(COVERING_BATCH, beta=0.7)
        copies = [outcome[:2] for outcome in cpprb_outcomes(peer)]
        assert set(copies) == set(chances)
        expected = np.asarray([(min(chances.values()) / chances[copy]) ** 0.7 for copy in copies])
        np.testing.assert_allclose(peer["weights"], expected, rtol=1e-4)

    largest = 1.0
    for episode in episodes_of(0, (2, 1, 4, 3)):
        state = add_episode(state, episode)
        add_to_cpprb(buffer, episode)
        priorities |= {(n, goal): largest for n in episode.numbers for goal in (episode.pursued, episode.numbers[-1])}
        check()
        batch, peer = herjax.sample(state, jax.random.key(1), COVERING_BATCH), buffer.sample(COVERING_BATCH)
        new = {copy: 0.2 + copy[0] % 7 / 4 + 0.3 * (copy[1] >= 0) for copy in priorities}
        state = herjax.update_priorities(state, batch.indices, jnp.asarray([new[copy] for copy in copies_of(batch)]))
        buffer.update_priorities(peer["indexes"], [new[outcome[:2]] for outcome in cpprb_outcomes(peer)])
        priorities |= new
        largest = max(largest, *new.values())
        check()
