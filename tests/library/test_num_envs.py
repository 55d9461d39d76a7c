"""Many environments in one buffer, and goals drawn when a transition is sampled, against exact tables.

Transition `number` achieves a goal that names it; environment e's transitions have the numbers e, e + n, e + 2 n, ... of n.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from scipy import stats

import herjax
from any_jax import enable_x64
from distributions import WITHIN_EPISODE
from numbered import LENGTH, achieved, decode, make, play


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
@pytest.mark.parametrize("name", [*WITHIN_EPISODE, "random"])
def test_both_settings_draw_the_same_pairs_as_often(relabel: str, name: str, key: jax.Array) -> None:
    """Of the same episodes, transition and goal are drawn as one exact table says, whenever goals are drawn (chi-square, 1e-6).

    Of two environments the first ends an episode of 3, the second one of 5, or none where goals come from anywhere. The table:
    a transition uniformly, its pursued goal with probability 1 / (k + 1), else one by the strategy's distribution.
    """
    strategy, distribution = WITHIN_EPISODE.get(name, ("random", None))
    lengths = {0: 3} if name == "random" else {0: 3, 1: 5}
    k = 3
    state = make(capacity=20, num_envs=2, relabel=relabel, strategy=strategy, num_goals=k)
    for step in range(3):
        state = herjax.add(state, jnp.asarray([2 * step, 2 * step + 1], jnp.int32))
    ends: list[tuple[herjax.BufferState, jax.Array]] = [(state, jnp.asarray([True, False]))]

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_first, key_second, key_sample = jax.random.split(key, 3)
        drawn = herjax.end_episode(ends[0][0], jnp.full(2, -1), key_first, ends[0][1])
        if 1 in lengths:
            for step in (3, 4):
                drawn = herjax.add(drawn, jnp.asarray([2 * step, 2 * step + 1], jnp.int32))
            drawn = herjax.end_episode(drawn, jnp.full(2, -2), key_second, jnp.asarray([False, True]))
        batch = herjax.sample(drawn, key_sample, 1)
        return batch.transition[0], batch.goal[0]

    numbers, goals = jax.jit(jax.vmap(draw))(jax.random.split(key, 40_000))
    copies = 2 if name == "final" else k + 1
    table: dict[tuple[int, int], float] = {}
    for e, length in lengths.items():
        for step in range(length):
            chances = np.full(length, 1 / length) if distribution is None else distribution(step, length)
            number = 2 * step + e
            table[number, -1 - e] = 1 / copies
            table |= {(number, 2 * other + e): chance * (1 - 1 / copies) for other, chance in enumerate(chances) if chance > 0}
    pairs = list(zip(np.asarray(numbers).tolist(), np.asarray(goals).tolist(), strict=True))
    assert set(pairs) <= set(table)
    counts = np.asarray([pairs.count(pair) for pair in table])
    expected = np.asarray(list(table.values())) * len(pairs) / sum(lengths.values())
    assert expected.min() > 20
    assert stats.chisquare(counts, expected).pvalue > 1e-6


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_one_environment_with_an_axis_is_one_without(relabel: str, key: jax.Array) -> None:
    """`num_envs=1` and None give the same draws from the same calls, and a `done` for all is one for each."""
    options = {"relabel": relabel, "priority_exponent": 0.6}
    alone, among = make(**options), make(num_envs=1, **options)
    for number, step_key in enumerate(jax.random.split(key, 30)):
        key_end, key_sample = jax.random.split(step_key)
        alone = herjax.add(alone, jnp.int32(number))
        among = herjax.add(among, jnp.full(1, number))
        alone = herjax.end_episode(alone, jnp.int32(-number - 1), key_end, number % 4 == 0)
        among = herjax.end_episode(among, jnp.full(1, -number - 1), key_end, jnp.full(1, number % 4 == 0))
        batches = [herjax.sample(state, key_sample, 16) for state in (alone, among)]
        jax.tree.map(np.testing.assert_array_equal, *batches)
        alone, among = (herjax.update_priorities(state, batches[0].indices, batches[0].reward % 7) for state in (alone, among))


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_draws_are_uniform_over_all_that_all_environments_hold(relabel: str, key: jax.Array) -> None:
    """Of 1, 2 and 5 transitions in three environments each of the 8 is drawn as often (chi-square, false alarms 1e-6)."""
    state = make(capacity=30, num_envs=3, relabel=relabel)
    ends = {0: [True, False, False], 1: [False, True, False], 4: [False, False, True]}
    for step in range(5):
        state = herjax.add(state, 3 * step + jnp.arange(3))
        state = herjax.end_episode(state, jnp.full(3, -1), jax.random.key(step), jnp.asarray(ends.get(step, [False] * 3)))
    assert int(herjax.size(state)) == 8
    counts = np.unique(np.asarray(herjax.sample(state, key, 20_000).transition), return_counts=True)[1]
    assert len(counts) == 8
    assert stats.chisquare(counts).pvalue > 1e-6


def test_each_environment_pursued_its_own_goal() -> None:
    """Four environments end in one call: every transition is drawn with the goal of its environment, and no other's."""
    for relabel in ("episode_end", "sample"):
        state = make(capacity=40, num_envs=4, relabel=relabel, num_goals=0)
        for step in range(3):
            state = herjax.add(state, 4 * step + jnp.arange(4))
        state = herjax.end_episode(state, -1 - jnp.arange(4), jax.random.key(0))
        numbers, goals = decode(herjax.sample(state, jax.random.key(1), 512))
        assert len(np.unique(numbers)) == 12
        np.testing.assert_array_equal(goals, -1 - numbers % 4)


def test_long_episodes_of_many_environments_take_several_turns() -> None:
    """40 environments end episodes of 60 steps in one call, more than a turn relabels: each copy has a goal of its own."""
    n, length = 40, 60
    state = make(capacity=n * length, max_episode_length=length, num_envs=n, num_goals=2, priority_exponent=1.0)

    def step(state: herjax.BufferState, t: jax.Array) -> tuple[herjax.BufferState, None]:
        state = herjax.add(state, t * n + jnp.arange(n, dtype=jnp.int32))
        return herjax.end_episode(state, -1 - jnp.arange(n), jax.random.key(3), t == length - 1), None

    state = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(length, dtype=jnp.int32))[0])(state)
    numbers, goals = decode(herjax.sample(state, jax.random.key(0), 3 * 3 * n * length))
    assert len(np.unique(numbers)) == n * length
    hindsight = goals >= 0
    np.testing.assert_array_equal(goals[~hindsight], -1 - numbers[~hindsight] % n)
    np.testing.assert_array_equal(goals[hindsight] % n, numbers[hindsight] % n)
    assert np.all(goals[hindsight] >= numbers[hindsight])


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_vmapped_seeds_of_many_environments_are_each_alone(relabel: str, key: jax.Array) -> None:
    """Lanes whose episodes end at other times, and in other numbers, each hold what they would hold without `vmap`."""
    start = make(capacity=30, num_envs=3, relabel=relabel, strategy="episode", priority_exponent=0.6)

    def run(key: jax.Array) -> tuple[herjax.Sample, jax.Array]:
        key_dones, key_play, key_sample = jax.random.split(key, 3)
        dones = jax.random.bernoulli(key_dones, 0.3, (12, 3))
        state = play(start, jnp.int32(0), dones, key_play)
        return herjax.sample(state, key_sample, 32), herjax.size(state)

    keys = jax.random.split(key, 4)
    together = jax.jit(jax.vmap(run))(keys)
    for lane, alone in enumerate([run(key) for key in keys]):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-6), jax.tree.map(lambda leaf, i=lane: leaf[i], together), alone
        )


def test_no_turn_repeats_the_draws_of_another() -> None:
    """Of an episode of 64 steps, relabelled in turns of 32, steps of two turns share their goals by chance only.

    Alike are 1 in 64 of at most 192 pairs; more than 20 come with a probability under 1e-8.
    """
    length, k = 64, 4
    state = make(capacity=length, max_episode_length=length, strategy="episode", num_goals=k, priority_exponent=1.0)
    for number in range(length):
        state = herjax.add(state, jnp.int32(number))
    state = herjax.end_episode(state, jnp.int32(-1), jax.random.key(0))
    batch = herjax.sample(state, jax.random.key(1), 4 * length * (k + 1))
    goals = np.full(length * (k + 1), -1)
    goals[np.asarray(batch.indices)] = batch.goal
    drawn = goals.reshape(length, k + 1)[:, 1:]
    assert np.all(drawn >= 0)
    for shift in range(16, length):
        assert np.sum(drawn[shift:] == drawn[:-shift]) <= 20


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_random_goals_come_from_all_environments_alike(relabel: str, key: jax.Array) -> None:
    """Of environments that finished 1, 2 and 4 transitions, goals of the episode ended last are any of the 7 as often."""
    state = make(capacity=30, num_envs=3, relabel=relabel, strategy="random")
    ends = {0: [True, False, False], 1: [False, True, False]}
    for step in range(4):
        state = herjax.add(state, 3 * step + jnp.arange(3))
        if step in ends:
            state = herjax.end_episode(state, jnp.full(3, -1), jax.random.key(step), jnp.asarray(ends[step]))
    last = jnp.asarray([False, False, True])

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_end, key_sample = jax.random.split(key)
        batch = herjax.sample(herjax.end_episode(state, jnp.full(3, -1), key_end, last), key_sample, 1)
        return batch.transition[0], batch.goal[0]

    numbers, goals = (np.asarray(leaf) for leaf in jax.jit(jax.vmap(draw))(jax.random.split(key, 8_000)))
    counts = np.unique(goals[(numbers % 3 == 2) & (goals >= 0)], return_counts=True)
    assert counts[0].tolist() == [0, 1, 2, 4, 5, 8, 11]
    assert stats.chisquare(counts[1]).pvalue > 1e-6


@pytest.mark.parametrize("priority_exponent", [None, 0.6])
@pytest.mark.parametrize("num_envs", [None, 3])
@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_an_empty_buffer_gives_zeros_whatever_the_reward(
    relabel: str, num_envs: int | None, priority_exponent: float | None
) -> None:
    """Before anything finishes, and after the running episode took all room, every field drawn is 0, a NaN reward's too."""
    state = herjax.init(
        jnp.int32(0),
        capacity=2 * (num_envs or 1),
        max_episode_length=2,
        goal_fn=achieved,
        reward_fn=lambda *_: jnp.float32(jnp.nan),
        terminated_fn=lambda *_: jnp.bool_(True),
        relabel=relabel,
        num_envs=num_envs,
        priority_exponent=priority_exponent,
    )
    ones = jnp.ones(() if num_envs is None else (num_envs,), jnp.int32)
    taken = herjax.end_episode(herjax.add(state, ones), ones, jax.random.key(0))
    taken = herjax.add(herjax.add(taken, ones), ones)
    for empty in (state, herjax.add(state, ones), taken):
        assert not herjax.can_sample(empty)
        batch = herjax.sample(empty, jax.random.key(1), 8)
        jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, np.zeros_like(leaf)), batch)


def test_an_update_is_accepted_where_its_own_environment_holds_something() -> None:
    """Of environments that hold 5 and 1 transitions of 10 rows each, an update of every index is accepted six times."""
    state = make(capacity=20, num_envs=2, relabel="sample", priority_exponent=1.0)
    for step in range(5):
        state = herjax.add(state, 2 * step + jnp.arange(2))
        state = herjax.end_episode(state, jnp.full(2, -1), jax.random.key(step), jnp.asarray([step == 4, step == 0]))
    every = jnp.arange(state.config.num_rows)
    assert int(herjax.update_priorities(state, every, jnp.ones(every.size)).num_rejected) == every.size - 6


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_size_is_32_bit_in_64_bit_mode(relabel: str) -> None:
    """With `jax_enable_x64` the size is an int32, as the contract says."""
    with enable_x64(True):
        assert herjax.size(make(relabel=relabel)).dtype == jnp.int32


def test_a_goal_drawn_late_is_drawn_afresh() -> None:
    """With `relabel="sample"` one index brings many goals, with "episode_end" always the one it was given."""
    distinct = {}
    for relabel in ("episode_end", "sample"):
        state = make(relabel=relabel, num_goals=1, strategy="episode")
        for number in range(5):
            state = herjax.add(state, jnp.int32(number))
        batch = herjax.sample(herjax.end_episode(state, jnp.int32(-1), jax.random.key(0)), jax.random.key(1), 2000)
        distinct[relabel] = len(np.unique(np.stack([batch.indices, batch.goal]), axis=1).T)
    assert distinct == {"episode_end": 10, "sample": 30}


@pytest.mark.parametrize("num_envs", [None, 2])
def test_a_late_goal_may_be_of_a_step_that_has_made_room(num_envs: int | None) -> None:
    """Of an episode of 5 the last 3 are held, when 2 of the next one have come: goals are still any of its 5, as often each."""
    state = make(capacity=5 * (num_envs or 1), num_envs=num_envs, relabel="sample", strategy="episode", num_goals=1)
    shape = () if num_envs is None else (num_envs,)
    for number in range(12):  # The ring of 10 rows goes round its end in the midst of it.
        state = herjax.add(state, jnp.full(shape, number, jnp.int32))
        state = herjax.end_episode(state, jnp.full(shape, -1), jax.random.key(number), jnp.bool_(number in (4, 9)))
    assert int(herjax.size(state)) == 3 * (num_envs or 1)
    batch = herjax.sample(state, jax.random.key(0), 20_000)
    assert set(batch.transition.tolist()) == {7, 8, 9}
    goals = np.asarray(batch.goal)[np.asarray(batch.is_hindsight)]
    assert set(goals.tolist()) == {5, 6, 7, 8, 9}
    assert stats.chisquare(np.bincount(goals)[5:]).pvalue > 1e-6


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_a_dropped_transition_names_its_environment(relabel: str) -> None:
    """Under checkify the environment whose episode is too long is named, and only its own transition is dropped."""
    state = make(capacity=30, num_envs=3, relabel=relabel)
    for step in range(LENGTH):
        state = herjax.add(state, 3 * step + jnp.arange(3))
        state = herjax.end_episode(state, jnp.full(3, -1), jax.random.key(step), jnp.asarray([True, True, False]))
    error, after = checkify.checkify(herjax.add)(state, jnp.full(3, 99))
    assert "environment 2" in str(error.get())
    assert f"max_episode_length, which is {LENGTH}" in str(error.get())
    assert int(after.num_dropped) == 1
    ended = herjax.end_episode(after, jnp.full(3, -1), jax.random.key(9))
    assert np.sum(np.unique(herjax.sample(ended, jax.random.key(0), 512).indices) >= 0) > 0
    assert int(herjax.size(ended)) == 3 * LENGTH + 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"capacity": 16, "num_envs": 3}, ["capacity", "16", "num_envs", "3", "multiple"]),
        ({"capacity": 12, "num_envs": 3}, ["capacity", "4", "num_envs", "3", "max_episode_length", "5", "15"]),
        ({"num_envs": 0}, ["num_envs", "0"]),
    ],
)
def test_capacity_and_environments_must_fit(options: dict[str, int], named: list[str]) -> None:
    """A capacity that no whole share of each environment makes up, or whose share is below one episode, is refused."""
    with pytest.raises(ValueError, match="give") as error:
        make(**options)
    assert all(word in str(error.value) for word in named)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda state: herjax.add(state, jnp.int32(0)), ["transition", "()", "(3,)", "3 environments"]),
        (lambda state: herjax.end_episode(state, jnp.int32(0), jax.random.key(0)), ["goal", "()", "(3,)"]),
        (lambda state: herjax.end_episode(state, jnp.zeros(3, int), jax.random.key(0), jnp.zeros(2, bool)), ["done", "(2,)"]),
    ],
)
def test_a_missing_axis_is_named(call: Callable[[herjax.BufferState], herjax.BufferState], named: list[str]) -> None:
    """Arguments without the axis of environments, or with one of another length, raise and name it."""
    with pytest.raises(ValueError, match="expected") as error:
        call(make(capacity=30, num_envs=3))
    assert all(word in str(error.value) for word in named)
