"""Mixtures of goal sources, and the share of hindsight goals: what is drawn, how often, and what is refused.

Transition `10 * episode + step` achieves a goal of that number; what was pursued is below 0.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import herjax
from distributions import FALSE_ALARM_RATE, WITHIN_EPISODE, geometric_distribution, past
from numbered import LENGTH, make

EPISODES, DRAWS = 3, 20_000


@jax.jit
def fill(state: herjax.BufferState) -> herjax.BufferState:
    """Three episodes of five steps."""

    def step(state: herjax.BufferState, number: jax.Array) -> tuple[herjax.BufferState, None]:
        state = herjax.add(state, 10 * (number // LENGTH) + number % LENGTH)
        key = jax.random.fold_in(jax.random.key(1), number)
        return herjax.end_episode(state, -1 - number, key, number % LENGTH == LENGTH - 1), None

    return jax.lax.scan(step, state, jnp.arange(EPISODES * LENGTH, dtype=jnp.int32))[0]


def filled(strategy: object, **options: object) -> herjax.BufferState:
    """Those episodes; goals are drawn late, so that each draw is a new one."""
    return fill(make(**({"strategy": strategy, "relabel": "sample", "num_goals": 1, "capacity": 15} | options)))


DISTRIBUTIONS = dict(WITHIN_EPISODE.values()) | {herjax.geometric(d): geometric_distribution(d) for d in (0, 0.99)}


def distribution(source: object, number: int) -> np.ndarray:
    """The contract's probability of every step held as goal of `number`."""
    episode, step = divmod(number, 10)
    if source == "random":
        return np.full((EPISODES, LENGTH), 1 / (EPISODES * LENGTH))
    chances = np.zeros((EPISODES, LENGTH))
    chances[episode] = DISTRIBUTIONS[source](step, LENGTH)
    return chances


MIXTURES = {
    "two names": {"future": 0.8, "random": 0.2},
    "OGBench": {herjax.geometric(0): 0.2, herjax.geometric(0.99): 0.5, "random": 0.3},
    "all names": {"final": 3, "future": 1, "episode": 2, "random": 0.5},
    "a function": {past: 1, "final": 1, "random": 2},
    "a rare source": {"final": 0.01, "episode": 0.99},
    "a source of weight 0": {"final": 0, "future": 1, "random": 1},
}


@pytest.mark.parametrize("name", MIXTURES)
def test_goals_come_from_their_sources_in_proportion(name: str) -> None:
    """Chi-square of every transition's goals against the weighted sum of its sources' distributions."""
    weights = MIXTURES[name]
    total = sum(weights.values())
    batch = jax.device_get(herjax.sample(filled(herjax.mixture(weights)), jax.random.key(0), DRAWS, hindsight_ratio=1.0))
    for number in range(0, 10 * EPISODES, 10):
        for step in range(LENGTH):
            goals = batch.goal[batch.transition == number + step]
            counts = np.bincount(goals // 10 * LENGTH + goals % 10, minlength=EPISODES * LENGTH)
            chances = sum(weight / total * distribution(source, number + step) for source, weight in weights.items()).ravel()
            assert np.all(counts[chances == 0] == 0)
            likely = chances > 0
            if likely.sum() > 1:
                p_value = stats.chisquare(counts[likely], goals.size * chances[likely]).pvalue
                assert p_value > FALSE_ALARM_RATE / (len(MIXTURES) * EPISODES * LENGTH)


@pytest.mark.parametrize("strategy", ["future", "episode", "final", "random", herjax.geometric(0.7), past])
@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_one_source_alone_draws_as_it_does(relabel: str, strategy: str | Callable[..., jax.Array]) -> None:
    """The same batch of the same key, also beside sources of weight 0; and as many goals: final has one."""
    options = {"relabel": relabel, "num_goals": 2}
    other = "episode" if strategy != "episode" else "future"
    batches = [
        herjax.sample(filled(each, **options), jax.random.key(0), 64)
        for each in (strategy, herjax.mixture({strategy: 3, other: 0}))
    ]
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_mixtures_of_equal_content_are_equal() -> None:
    """In any order, of numbers of any kind; other weights, sources or functions make another."""
    one = herjax.mixture({"future": 0.8, "random": 0.2, herjax.geometric(0.5): 1, past: 1})
    other = herjax.mixture({past: np.float64(1), herjax.geometric(0.5): 1, "random": 0.2, "future": np.float64(0.8)})
    assert one == other
    assert hash(one) == hash(other)
    assert one != herjax.mixture({"future": 0.7, "random": 0.3, herjax.geometric(0.5): 1, past: 1})
    assert herjax.mixture({past: 1, "random": 1}) != herjax.mixture({partial(past): 1, "random": 1})
    assert repr(herjax.mixture({"random": 1, "future": 4})) == "mixture({future: 0.8, random: 0.2})"
    traced = []

    @jax.jit
    def count(state: herjax.BufferState) -> jax.Array:
        traced.append(1)
        return herjax.size(state)

    for weights in ({"future": 0.8, "random": 0.2}, {"random": 0.2, "future": 0.8}):
        count(make(strategy=herjax.mixture(weights)))
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({}, ValueError, r"weights are {}; give at least one"),
        ({"future": 0, "final": 0}, ValueError, r"weights are {'future': 0, 'final': 0}; give at least one"),
        ({"future": -1}, ValueError, "weight of 'future' is -1; give a finite number >= 0"),
        ({"future": float("nan")}, ValueError, "weight of 'future' is nan; give a finite number >= 0"),
        ({"future": float("inf")}, ValueError, "weight of 'future' is inf; give a finite number >= 0"),
        ({"future": "1"}, TypeError, "weight of 'future' is '1'; give a finite number"),
        ({"future": True}, TypeError, "weight of 'future' is True; give a finite number"),
        ({"nearest": 1}, ValueError, "strategy is 'nearest'; give 'future'"),
        ({3: 1}, TypeError, r"strategy is 3; give a function \(key, step, length\)"),
        ({herjax.mixture({"future": 1}): 1}, TypeError, "as a source; give that mixture's own sources"),
        (["future"], TypeError, r"mixture is given \['future'\]; give a dict"),
    ],
)
def test_mixtures_without_meaning_are_refused(weights: object, error: type[Exception], message: str) -> None:
    """The source, its weight, and what to give."""
    with pytest.raises(error, match=message):
        herjax.mixture(weights)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, None])
def test_the_share_of_hindsight_goals_is_the_one_asked_for(ratio: float | None) -> None:
    """Also traced, and 4 of 5 by default; of 1 and 0 there is no exception."""
    state = filled("future", num_goals=4)
    draw = jax.jit(lambda ratio: herjax.sample(state, jax.random.key(0), DRAWS, hindsight_ratio=ratio))
    is_hindsight = np.asarray(draw(ratio).is_hindsight)
    chance = 0.8 if ratio is None else ratio
    assert stats.binomtest(int(is_hindsight.sum()), DRAWS, chance).pvalue > FALSE_ALARM_RATE
    if ratio is not None:
        alone = herjax.sample(state, jax.random.key(0), DRAWS, hindsight_ratio=ratio)
        np.testing.assert_array_equal(alone.is_hindsight, is_hindsight)
        np.testing.assert_array_equal(alone.goal >= 0, is_hindsight)


@pytest.mark.parametrize("options", [{"relabel": "episode_end"}, {"num_goals": 0}])
def test_a_share_is_refused_where_goals_are_not_drawn(options: dict[str, object]) -> None:
    """The settings that stand in the way are named; a share that is no number is, too."""
    with pytest.raises(ValueError, match="hindsight_ratio is given, but init had relabel="):
        herjax.sample(filled("future", **options), jax.random.key(0), 4, hindsight_ratio=0.5)
    with pytest.raises(ValueError, match=r"hindsight_ratio is of shape \(2,\)"):
        herjax.sample(filled("future"), jax.random.key(0), 4, hindsight_ratio=jnp.ones(2))


def test_kept_goals_are_mixed_too() -> None:
    """With relabel="episode_end" each of k goals has a source of its own."""
    state = make(
        capacity=2000,
        max_episode_length=1000,
        strategy=herjax.mixture({"final": 0.25, herjax.geometric(0): 0.75}),
        num_goals=4,
        priority_exponent=1.0,
    )
    state, _ = jax.lax.scan(lambda state, number: (herjax.add(state, number), None), state, jnp.arange(1000, dtype=jnp.int32))
    batch = herjax.sample(herjax.end_episode(state, jnp.int32(-1), jax.random.key(0)), jax.random.key(1), 5000)
    own, final = batch.goal == batch.transition, batch.goal == 999
    assert bool(jnp.all(own | final | ~batch.is_hindsight))
    assert stats.binomtest(int(jnp.sum(final & ~own)), int(batch.is_hindsight.sum()), 0.25).pvalue > FALSE_ALARM_RATE


def test_weights_may_be_as_large_and_as_small_as_floats() -> None:
    """Only their ratios count; a source that would never be drawn is left out."""
    assert herjax.mixture({"future": 1e308, "episode": 1e308}) == herjax.mixture({"future": 1, "episode": 1})
    assert herjax.mixture({"future": 1.0, "episode": 1e-46}) == herjax.mixture({"future": 1})
