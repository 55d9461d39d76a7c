"""Prioritised replay: draws in proportion, importance weights, and which priorities are taken."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from scipy import stats

import herjax
from distributions import FALSE_ALARM_RATE
from numbered import make

NUM_COPIES = 24  # What `full_buffer` holds: 12 transitions, each with its own goal and one more.
COVERING_BATCH = 4096


def buffer(num_transitions: int = 12, **options: object) -> herjax.BufferState:
    """A buffer of episodes of three, with one hindsight goal for each transition."""
    defaults = {"max_episode_length": 4, "num_goals": 1, "priority_exponent": 1.0, "priority_epsilon": 0.0}
    return add_episodes(make(**(defaults | options)), 0, num_transitions // 3)


def add_episodes(state: herjax.BufferState, start: int, count: int) -> herjax.BufferState:
    for episode in range(count):
        for number in range(3):
            state = herjax.add(state, jnp.asarray(start + 3 * episode + number, jnp.int32))
        state = herjax.end_episode(state, jnp.asarray(-1, jnp.int32), jax.random.key(start + episode))
    return state


def live_indices(state: herjax.BufferState) -> np.ndarray:
    """Every index that holds a copy, as large draws find them."""
    return np.unique(herjax.sample(state, jax.random.key(123), COVERING_BATCH).indices)


def with_priorities(state: herjax.BufferState, priorities: np.ndarray) -> tuple[herjax.BufferState, np.ndarray]:
    """The state with these priorities, in the order of its indices, and those indices."""
    indices = live_indices(state)
    assert len(indices) == len(priorities)
    return herjax.update_priorities(state, jnp.asarray(indices), jnp.asarray(priorities, jnp.float32)), indices


def probabilities(state: herjax.BufferState, seed: int = 7) -> dict[int, float]:
    """The probability at every index that a large batch reached."""
    batch = herjax.sample(state, jax.random.key(seed), COVERING_BATCH)
    return dict(zip(batch.indices.tolist(), batch.probabilities.tolist(), strict=True))


def assert_probabilities(state: herjax.BufferState, expected: dict[int, float]) -> None:
    """Draws reach exactly these indices, with probabilities in proportion to these masses."""
    drawn, total = probabilities(state), sum(expected.values())
    assert drawn.keys() == expected.keys()
    for index, mass in expected.items():
        assert drawn[index] == pytest.approx(mass / total, rel=1e-4)


@pytest.fixture(scope="module")
def full_buffer() -> herjax.BufferState:
    """24 copies that all have priority 1, stored as they are."""
    return buffer()


# Draws.


@pytest.mark.parametrize("exponent", [0.6, 1.0])
def test_single_draws_follow_the_priorities(exponent: float) -> None:
    """20,000 batches of one reach each index in proportion to p^alpha (chi-square, false alarms 1e-6)."""
    state, indices = with_priorities(buffer(priority_exponent=exponent), np.arange(1, NUM_COPIES + 1) ** 2)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.jit(jax.vmap(lambda key: herjax.sample(state, key, 1).indices[0]))(keys)
    counts = np.array([np.sum(np.asarray(drawn) == index) for index in indices])
    mass = np.arange(1, NUM_COPIES + 1) ** (2 * exponent)
    assert counts.sum() == 20_000
    assert stats.chisquare(counts, 20_000 * mass / mass.sum()).pvalue > FALSE_ALARM_RATE


def test_every_place_in_a_batch_has_its_own_share_of_the_mass(full_buffer: herjax.BufferState) -> None:
    """A stratified batch draws an index of mass P between B P - 2 and B P + 2 times, whatever the key."""
    state, indices = with_priorities(full_buffer, np.arange(1, NUM_COPIES + 1) ** 2)
    mass = np.arange(1, NUM_COPIES + 1) ** 2
    for seed in range(5):
        drawn = np.asarray(herjax.sample(state, jax.random.key(seed), COVERING_BATCH).indices)
        counts = np.array([np.sum(drawn == index) for index in indices])
        assert np.all(np.abs(counts - COVERING_BATCH * mass / mass.sum()) < 2.01)


@pytest.mark.parametrize("num_transitions", [3, 12])
def test_equal_priorities_are_drawn_once_each(num_transitions: int) -> None:
    """With as many draws as copies of one priority, every copy is drawn exactly once: full or hardly begun."""
    state = buffer(num_transitions)
    for seed in range(10):
        drawn = herjax.sample(state, jax.random.key(seed), 2 * num_transitions).indices
        assert np.unique(drawn).size == 2 * num_transitions


def test_probabilities_are_of_the_stored_priorities() -> None:
    """`probabilities` is (p + epsilon)^alpha over its sum: epsilon 0.5 shows where p is 0."""
    state, indices = with_priorities(buffer(priority_exponent=0.6, priority_epsilon=0.5), np.arange(NUM_COPIES) / 4)
    stored = (np.arange(NUM_COPIES) / 4 + 0.5) ** 0.6
    assert_probabilities(state, dict(zip(indices.tolist(), stored, strict=True)))


def test_weights_are_those_of_importance_sampling(full_buffer: herjax.BufferState) -> None:
    """Weights are (N P)^-beta over the largest in the batch, for a Python beta, the default, and a traced one."""
    state, _ = with_priorities(full_buffer, np.arange(1, NUM_COPIES + 1) / 8)
    traced = jax.jit(lambda beta: herjax.sample(state, jax.random.key(0), 32, beta=beta))
    for beta, batch in [
        (0.4, herjax.sample(state, jax.random.key(0), 32)),
        (1.0, herjax.sample(state, jax.random.key(0), 32, beta=1.0)),
        (0.0, traced(jnp.float32(0))),
        (0.7, traced(jnp.float32(0.7))),
    ]:
        expected = (NUM_COPIES * np.asarray(batch.probabilities, np.float64)) ** -beta
        np.testing.assert_allclose(batch.weights, expected / expected.max(), rtol=1e-5)
        assert np.max(batch.weights) == 1


def test_beta_may_differ_under_vmap(full_buffer: herjax.BufferState) -> None:
    """A vmapped beta gives each lane its own weights on the same draws."""
    state, _ = with_priorities(full_buffer, np.arange(1, NUM_COPIES + 1))
    betas = jnp.array([0.0, 0.5, 1.0])
    batch = jax.vmap(lambda beta: herjax.sample(state, jax.random.key(0), 32, beta=beta))(betas)
    np.testing.assert_allclose(batch.weights[1], batch.weights[2] ** 0.5, rtol=1e-5)
    np.testing.assert_array_equal(batch.weights[0], 1)


def test_uniform_draws_are_even() -> None:
    """Without priorities every copy has the same chance, probability and weight (chi-square, false alarms 1e-6)."""
    batch = herjax.sample(buffer(priority_exponent=None), jax.random.key(0), 20_000)
    _, counts = np.unique(batch.indices, return_counts=True)
    assert len(counts) == NUM_COPIES
    assert stats.chisquare(counts).pvalue > FALSE_ALARM_RATE
    np.testing.assert_allclose(batch.probabilities, 1 / NUM_COPIES, rtol=1e-6)
    np.testing.assert_array_equal(batch.weights, 1)


# Extremes.


@pytest.mark.parametrize("positive", [0, 1, 11, NUM_COPIES - 1])
@pytest.mark.parametrize("priority", [1e-30, 1.0, 1e30])
def test_zero_is_never_drawn_beside_more(full_buffer: herjax.BufferState, positive: int, priority: float) -> None:
    """Where one index has any priority and all others 0, every draw is that index: first, last or between."""
    priorities = np.zeros(NUM_COPIES)
    priorities[positive] = priority
    state, indices = with_priorities(full_buffer, priorities)
    batch = herjax.sample(state, jax.random.key(0), COVERING_BATCH)
    np.testing.assert_array_equal(batch.indices, indices[positive])
    np.testing.assert_allclose(batch.probabilities, 1, rtol=1e-6)
    np.testing.assert_allclose(batch.weights, np.ones(COVERING_BATCH) * batch.weights[0])
    assert np.all(np.isfinite(batch.weights))


def test_zeros_between_others_are_never_drawn(full_buffer: herjax.BufferState) -> None:
    """Every other index has priority 0, of the rest each another: no draw, of any key, hits a 0."""
    priorities = np.where(np.arange(NUM_COPIES) % 2, np.linspace(0.1, 1.7, NUM_COPIES), 0)
    state, indices = with_priorities(full_buffer, priorities)
    for seed in range(20):
        drawn = herjax.sample(state, jax.random.key(seed), COVERING_BATCH).indices
        assert set(drawn.tolist()) == set(indices[1::2].tolist())


def test_all_zero_is_finite(full_buffer: herjax.BufferState) -> None:
    """Where all priorities are 0, draws, probabilities and weights are finite, and a new priority is drawn at once."""
    state, indices = with_priorities(full_buffer, np.zeros(NUM_COPIES))
    batch = herjax.sample(state, jax.random.key(0), COVERING_BATCH)
    assert np.all(np.isfinite(batch.probabilities))
    assert np.all(np.isfinite(batch.weights))
    state = herjax.update_priorities(state, jnp.asarray(indices[5:6]), jnp.ones(1))
    np.testing.assert_array_equal(herjax.sample(state, jax.random.key(0), COVERING_BATCH).indices, indices[5])


def test_all_zero_draws_what_is_held() -> None:
    """Where all priorities are 0 and the running episode has taken the first row, a finished transition is drawn still."""
    functions = {"goal_fn": lambda t: t, "reward_fn": lambda t, goal: (t - goal).astype(jnp.float32)}
    options = {"capacity": 4, "max_episode_length": 4, "num_goals": 0, "priority_exponent": 1.0, "priority_epsilon": 0.0}
    state = herjax.init(jnp.int32(0), **functions, **options)
    for number in range(4):
        state = herjax.add(state, jnp.int32(number))
    state = herjax.end_episode(state, jnp.int32(0), jax.random.key(0))
    state = herjax.add(state, jnp.int32(99))  # In the place of 0.
    state = herjax.update_priorities(state, jnp.array([1, 2, 3]), jnp.zeros(3))
    batch = herjax.sample(state, jax.random.key(0), 4)
    np.testing.assert_array_equal(batch.transition, 1)
    state = herjax.update_priorities(state, batch.indices, jnp.ones(4))
    assert state.num_rejected == 0


def test_weights_are_finite_where_shards_hold_more_than_an_int32_counts() -> None:
    """2,200 shards of a million copies have weights as 2,000 do."""
    functions = {"goal_fn": lambda t: t, "reward_fn": lambda t, goal: (t - goal).astype(jnp.float32)}
    state = herjax.init(jnp.int32(0), **functions, capacity=1000, max_episode_length=1000, num_goals=999, priority_exponent=1.0)
    state = jax.lax.fori_loop(0, 1000, lambda number, state: herjax.add(state, number), state)
    state = herjax.end_episode(state, jnp.int32(0), jax.random.key(0))

    @partial(jax.vmap, axis_name="shard")
    def sample(key: jax.Array) -> herjax.Sample:
        return herjax.sample(state, key, 4, axis_name="shard")

    np.testing.assert_allclose(sample(jax.random.split(jax.random.key(0), 2200)).weights, 1, rtol=1e-5)


@pytest.mark.parametrize("priorities", [
    np.logspace(-30, 30, NUM_COPIES), np.full(NUM_COPIES, 1e-30), np.full(NUM_COPIES, 1e30),
    np.full(NUM_COPIES, np.finfo(np.float32).max),
], ids=["1e-30..1e30", "all 1e-30", "all 1e30", "all largest"])  # fmt: skip
@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_extreme_priorities_are_finite(priorities: np.ndarray, epsilon: float) -> None:
    """Any finite priorities give finite probabilities and weights in [0, 1], and draws of what is held."""
    state, indices = with_priorities(buffer(priority_epsilon=epsilon), priorities)
    batch = herjax.sample(state, jax.random.key(0), COVERING_BATCH, beta=1.0)
    assert set(batch.indices.tolist()) <= set(indices.tolist())
    for field in (batch.probabilities, batch.weights):
        assert np.all(np.isfinite(field))
        assert np.min(field) >= 0
        assert np.max(field) <= 1 + 1e-5
    if np.unique(priorities).size == 1:
        assert np.unique(batch.indices).size == NUM_COPIES
        np.testing.assert_allclose(batch.probabilities, 1 / NUM_COPIES, rtol=1e-4)


def test_the_sum_does_not_drift(full_buffer: herjax.BufferState) -> None:
    """After 3,000 updates that span eight orders of magnitude, small priorities have their exact share again."""
    indices = jnp.asarray(live_indices(full_buffer))

    def update(state: herjax.BufferState, key: jax.Array) -> tuple[herjax.BufferState, None]:
        exponent = jax.random.uniform(key, (NUM_COPIES,), minval=-4, maxval=4)
        return herjax.update_priorities(state, indices, 10.0**exponent), None

    state, _ = jax.lax.scan(update, full_buffer, jax.random.split(jax.random.key(0), 3000))
    small = np.linspace(1e-3, 1e-2, NUM_COPIES)
    state = herjax.update_priorities(state, indices, jnp.asarray(small, jnp.float32))
    assert_probabilities(state, dict(zip(indices.tolist(), small, strict=True)))


# Updates.


def test_the_last_of_equal_indices_wins(full_buffer: herjax.BufferState) -> None:
    """An index named three times, the last time with NaN, keeps its last accepted priority; one is rejected."""
    first, second, *rest = live_indices(full_buffer).tolist()
    state = herjax.update_priorities(
        full_buffer, jnp.array([first, second, first, first], jnp.int32), jnp.array([9.0, 3.0, 2.0, jnp.nan])
    )
    assert_probabilities(state, {first: 2.0, second: 3.0} | dict.fromkeys(rest, 1.0))
    assert int(state.num_rejected) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0, -1e-30])
def test_a_priority_that_is_none_is_rejected_and_counted(full_buffer: herjax.BufferState, bad: float) -> None:
    """NaN, infinite and negative priorities change nothing but the count, and spare the others in their batch."""
    first, second, *rest = live_indices(full_buffer).tolist()
    state = herjax.update_priorities(full_buffer, jnp.array([first, second], jnp.int32), jnp.array([bad, 3.0], jnp.float32))
    assert int(state.num_rejected) == 1
    assert_probabilities(state, {first: 1.0, second: 3.0} | dict.fromkeys(rest, 1.0))
    assert_probabilities(add_new(state), dict.fromkeys([first, *rest], 1.0) | {second: 3.0} | new_at_mass(state, 3.0))


def add_new(state: herjax.BufferState) -> herjax.BufferState:
    """The state after an episode of one transition."""
    state = herjax.add(state, jnp.asarray(99, jnp.int32))
    return herjax.end_episode(state, jnp.asarray(-1, jnp.int32), jax.random.key(0))


def new_at_mass(state: herjax.BufferState, mass: float) -> dict[int, float]:
    """The indices that `add_new` brings, at this mass."""
    return dict.fromkeys(set(live_indices(add_new(state)).tolist()) - set(live_indices(state).tolist()), mass)


def test_minus_zero_is_a_priority(full_buffer: herjax.BufferState) -> None:
    """-0.0 is not negative: it is accepted as 0, and never drawn."""
    first, *rest = live_indices(full_buffer).tolist()
    state = herjax.update_priorities(full_buffer, jnp.array([first], jnp.int32), jnp.array([-0.0]))
    assert int(state.num_rejected) == 0
    assert_probabilities(state, dict.fromkeys(rest, 1.0))


def test_every_index_that_holds_nothing_is_rejected_and_counted() -> None:
    """Negative, huge and unused indices, and those of a running episode's transitions, change nothing but the count."""
    state = herjax.add(buffer(6), jnp.asarray(50, jnp.int32))
    live = live_indices(state)
    dead = np.setdiff1d(np.concatenate([np.arange(-40, 80), [2**31 - 1, -(2**31), 10_000]]), live).astype(np.int32)
    after = herjax.update_priorities(state, jnp.asarray(dead), jnp.full(dead.shape, 7.0))
    assert int(after.num_rejected) == len(dead)
    assert_probabilities(after, dict.fromkeys(live.tolist(), 1.0))
    assert_probabilities(add_new(after), dict.fromkeys(live_indices(add_new(after)).tolist(), 1.0))


def test_an_index_that_has_made_room_is_rejected_or_is_anothers() -> None:
    """An update of all indices ever seen is accepted exactly where something is held now."""
    state, seen = buffer(0), set()
    for episode in range(12):
        state = add_episodes(state, 10 * episode, 1)
        state = herjax.add(state, jnp.asarray(-5, jnp.int32))
        live = set(live_indices(state).tolist())
        seen |= live
        everything = np.array(sorted(seen) + [-1] * (64 - len(seen)), np.int32)
        after = herjax.update_priorities(state, jnp.asarray(everything), jnp.full(64, 2.0))
        assert int(after.num_rejected) == 64 - len(live)
        assert_probabilities(after, dict.fromkeys(live, 2.0))


def test_new_copies_enter_with_the_largest_priority_so_far(full_buffer: herjax.BufferState) -> None:
    """1 at first, though all others are lower; 5 once that was accepted, also after it is lowered again."""
    indices = live_indices(full_buffer)
    low, _ = with_priorities(full_buffer, np.full(NUM_COPIES, 0.25))
    masses = dict.fromkeys(indices.tolist(), 0.25)
    assert_probabilities(add_new(low), masses | new_at_mass(low, 1.0))
    raised = herjax.update_priorities(low, jnp.asarray(indices[:1]), jnp.array([5.0]))
    assert_probabilities(add_new(raised), masses | {int(indices[0]): 5.0} | new_at_mass(low, 5.0))
    lowered = herjax.update_priorities(raised, jnp.asarray(indices[:1]), jnp.array([0.25]))
    assert_probabilities(add_new(lowered), masses | new_at_mass(low, 5.0))


def test_updating_what_an_empty_buffer_gave_is_no_fault() -> None:
    """Before the first episode ends, updates of what was drawn change nothing, are not counted and not reported."""
    for state in (buffer(0), herjax.add(buffer(0), jnp.asarray(1, jnp.int32))):
        drawn = herjax.sample(state, jax.random.key(0), 8).indices
        for priority in (5.0, np.nan):
            priorities = jnp.full(8, priority, jnp.float32)
            error, after = checkify.checkify(jax.jit(herjax.update_priorities))(state, drawn, priorities)
            error.throw()
            assert int(after.num_rejected) == 0
            filled = add_new(add_new(after))
            assert_probabilities(filled, dict.fromkeys(live_indices(filled).tolist(), 1.0))


@pytest.mark.parametrize(("index", "priority", "message"), [
    (None, -3.5, r"priorities.*-3\.5"), (None, np.nan, "priorities.*nan"), (None, np.inf, "priorities.*inf"),
    (12345, 1.0, "indices.*12345"), (-7, 1.0, "indices.*-7"),
])  # fmt: skip
def test_checkify_names_what_is_rejected(
    full_buffer: herjax.BufferState, index: int | None, priority: float, message: str
) -> None:
    """The error names the argument and its value; without checkify the same call only counts."""
    good = int(live_indices(full_buffer)[3])
    indices = jnp.array([good, good if index is None else index], jnp.int32)
    priorities = jnp.array([1.0, priority], jnp.float32)
    error, after = checkify.checkify(jax.jit(herjax.update_priorities))(full_buffer, indices, priorities)
    assert int(after.num_rejected) == 1
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()


def test_checkify_is_silent_about_sound_updates(full_buffer: herjax.BufferState) -> None:
    """Zeros, duplicates and large priorities are sound."""
    indices = jnp.asarray(live_indices(full_buffer)[[0, 0, 1]])
    error, _ = checkify.checkify(jax.jit(herjax.update_priorities))(full_buffer, indices, jnp.array([0.0, 1e30, 0.0]))
    error.throw()


def test_a_uniform_buffer_has_no_priorities() -> None:
    """Updating a buffer without `priority_exponent` raises `ValueError` that names the argument, also while tracing."""
    state = buffer(3, priority_exponent=None)
    for update in (herjax.update_priorities, jax.jit(herjax.update_priorities)):
        with pytest.raises(ValueError, match="priority_exponent"):
            update(state, jnp.zeros(1, jnp.int32), jnp.ones(1))


def test_updates_under_vmap_reach_their_own_buffers(full_buffer: herjax.BufferState) -> None:
    """Three buffers given different priorities in one vmapped call hold what each would hold alone."""
    indices = jnp.asarray(live_indices(full_buffer))
    priorities = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (3, NUM_COPIES)), jnp.float32)
    states = jax.vmap(lambda p: herjax.update_priorities(full_buffer, indices, p))(priorities)
    batch = jax.vmap(lambda s: herjax.sample(s, jax.random.key(0), 256))(states)
    for lane in range(3):
        alone = herjax.sample(herjax.update_priorities(full_buffer, indices, priorities[lane]), jax.random.key(0), 256)
        np.testing.assert_array_equal(batch.indices[lane], alone.indices)
        np.testing.assert_allclose(batch.weights[lane], alone.weights, rtol=1e-5)


def test_any_sequence_of_updates_is_a_dictionarys() -> None:
    """Over random updates and episodes that wrap around, every probability is that of a dictionary of priorities."""
    exponent, epsilon, width = 0.6, 0.25, 12
    empty = buffer(0, priority_exponent=exponent, priority_epsilon=epsilon)
    values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0, -1.0, np.nan, np.inf])
    updates = st.lists(st.tuples(st.integers(0, 10**6), values), min_size=1, max_size=width)

    @settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(updates, min_size=6, max_size=12))
    def is_a_dictionarys(rounds: list[list[tuple[int, float]]]) -> None:
        state, held, largest, num_rejected = empty, {}, 1.0, 0
        for number, pairs in enumerate(rounds):
            before = numbers_at(state)
            state = add_episodes(state, 100 * number, 1)
            after = numbers_at(state)
            held = {index: held[index] if before.get(index) == after[index] else largest for index in after}
            choices = [*after, *after, -1, 10_000]
            named = [(choices[at % len(choices)], priority) for at, priority in pairs] + [(-1, 1.0)] * (width - len(pairs))
            for index, priority in named:
                if index in held and np.isfinite(priority) and priority >= 0:
                    held[index], largest = priority, max(largest, priority)
                else:
                    num_rejected += 1
            indices, priorities = zip(*named, strict=True)
            state = herjax.update_priorities(state, jnp.array(indices, jnp.int32), jnp.array(priorities, jnp.float32))
            assert int(state.num_rejected) == num_rejected
            assert_probabilities(state, {index: (p + epsilon) ** exponent for index, p in held.items()})

    is_a_dictionarys()


def numbers_at(state: herjax.BufferState) -> dict[int, int]:
    """The transition held at each index."""
    if not bool(herjax.can_sample(state)):
        return {}
    batch = herjax.sample(state, jax.random.key(123), COVERING_BATCH)
    return dict(zip(batch.indices.tolist(), batch.transition.tolist(), strict=True))


# A million copies.

MILLION = 1_000_000


@pytest.fixture(scope="module")
def million() -> herjax.BufferState:
    """A buffer of 1e6 copies, in episodes of 1,000 transitions with three hindsight goals each."""
    options = {"num_goals": 3, "priority_exponent": 1.0, "priority_epsilon": 0.0}
    state = make(capacity=MILLION // 4, max_episode_length=1000, **options)

    def episode(state: herjax.BufferState, start: jax.Array) -> tuple[herjax.BufferState, None]:
        numbers = start + jnp.arange(1000)
        state, _ = jax.lax.scan(lambda s, number: (herjax.add(s, number), None), state, numbers)
        return herjax.end_episode(state, jnp.asarray(-1, jnp.int32), jax.random.key(start)), None

    fill = jax.jit(lambda state: jax.lax.scan(episode, state, 1000 * jnp.arange(MILLION // 4000))[0])
    return fill(state)


@jax.jit
def batches_of_64(state: herjax.BufferState, keys: jax.Array) -> jax.Array:
    """Indices [num_keys, 64]."""
    return jax.lax.map(lambda key: herjax.sample(state, key, 64).indices, keys, batch_size=4096)


def many_draws(state: herjax.BufferState, num_draws: int, seed: int = 0) -> np.ndarray:
    """The indices of this many draws, in batches of 64 with a key each."""
    return np.asarray(batches_of_64(state, jax.random.split(jax.random.key(seed), num_draws // 64))).ravel()


def test_each_of_a_million_copies_has_its_share(million: herjax.BufferState) -> None:
    """Of 4e6 draws at equal priorities each copy gets about four, none more than its share (false alarms 1e-6)."""
    drawn = many_draws(million, 4 * MILLION)
    _, counts = np.unique(drawn, return_counts=True)
    assert abs(len(counts) / MILLION - (1 - np.exp(-4))) < 1e-3
    counts = np.concatenate([counts, np.zeros(MILLION - len(counts))])
    expected = drawn.size / MILLION
    statistic = np.sum((counts - expected) ** 2) / expected
    assert abs(statistic - MILLION) < 5 * np.sqrt(2 * MILLION)


def test_tiny_priorities_among_a_million_are_all_reachable(million: herjax.BufferState) -> None:
    """Copies of 1 % of their neighbours' priority are drawn in proportion, each as likely as any other of them.

    Were the draws a grid too coarse for them, only some could be reached, and those would come twice too often.
    """
    indices = np.unique(np.asarray(jax.jit(herjax.sample, static_argnums=2)(million, jax.random.key(1), MILLION).indices))
    assert len(indices) > 0.99 * MILLION
    priorities = np.where(np.arange(len(indices)) % 2, 0.01, 1.0)
    padding = np.full(MILLION - len(indices), -1)
    state = herjax.update_priorities(
        million,
        jnp.asarray(np.concatenate([indices, padding]), jnp.int32),
        jnp.asarray(np.concatenate([priorities, np.ones(len(padding))]), jnp.float32),
    )
    assert int(state.num_rejected) == len(padding)
    drawn = many_draws(state, 4 * MILLION, seed=2)
    tiny = drawn[np.isin(drawn, indices[1::2])]
    num_tiny = len(indices) // 2
    total = priorities.sum() + len(padding)
    share = 0.01 * num_tiny / total
    assert abs(len(tiny) - drawn.size * share) < 5 * np.sqrt(drawn.size * share)
    _, counts = np.unique(tiny, return_counts=True)
    twice, expected = np.sum(counts * (counts - 1)) / 2, len(tiny) ** 2 / (2 * num_tiny)
    assert abs(twice - expected) < 5 * np.sqrt(expected)


def step(state: herjax.BufferState, key: jax.Array) -> tuple[herjax.BufferState, jax.Array]:
    """One turn of a training loop whose episodes have two steps."""
    key_goals, key_sample = jax.random.split(key)
    state = herjax.add(state, jnp.int32(1))
    state = herjax.end_episode(state, jnp.int32(2), key_goals, state.pending[0] == 2)
    batch = herjax.sample(state, key_sample, 4)
    return herjax.update_priorities(state, batch.indices, jnp.ones(4)), batch.reward


@pytest.mark.parametrize("outer", ["checkify", "vmap"])
def test_the_whole_loop_runs_under_checkify_and_vmap(outer: str) -> None:
    """A sound prioritised loop over vmapped seeds is checked, inside or outside of the `vmap`, without a complaint."""
    state = make(capacity=6, max_episode_length=2, num_goals=1, priority_exponent=0.6)

    def run(key: jax.Array) -> jax.Array:
        return jax.lax.scan(step, state, jax.random.split(key, 9))[1]

    keys = jax.random.split(jax.random.key(0), 3)
    checked = checkify.checkify(jax.vmap(run)) if outer == "checkify" else jax.vmap(checkify.checkify(run))
    error, rewards = jax.jit(checked)(keys)
    error.throw()
    assert set(np.unique(rewards[:, 1:])) == {1001, 1002}


def test_no_priorities_change_nothing() -> None:
    """An update of no index at all gives the state back."""
    state = make(priority_exponent=0.6)
    updated = herjax.update_priorities(state, jnp.zeros(0, jnp.int32), jnp.zeros(0))
    assert int(updated.num_rejected) == 0
