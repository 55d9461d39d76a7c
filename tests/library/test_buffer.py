"""The buffer call by call: what it holds, what it draws, and what leaves it as it was. test_random_calls.py mixes all calls."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from scipy import stats

import herjax
from any_jax import typeof
from herjax.randomness import below, words
from numbered import achieved_of_fields, decode, goal, make_of_fields, reward_of_fields, transition

empty_buffer = partial(make_of_fields, max_episode_length=4)


def add_episode(state: herjax.BufferState, numbers: list[int], pursued: int, seed: int = 0) -> herjax.BufferState:
    """Add the transitions of these ids, and end their episode."""
    for number in numbers:
        state = herjax.add(state, transition(number))
    return herjax.end_episode(state, goal(pursued), jax.random.key(seed))


def draws(state: herjax.BufferState, batch_size: int = 1024, seed: int = 0) -> set[tuple[int, int, int]]:
    """The distinct (index, id, source) of a large batch."""
    batch = herjax.sample(state, jax.random.key(seed), batch_size)
    numbers, sources = decode(batch)
    return set(zip(batch.indices.tolist(), numbers.tolist(), sources.tolist(), strict=True))


def has_nonzero(tree: object) -> bool:
    """Whether any entry of any leaf is not 0 (NaN is not)."""
    return any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(tree))


def assert_same_batch(left: herjax.Sample, right: herjax.Sample) -> None:
    """The same transitions, goals, rewards and indices, exactly; probabilities and weights up to rounding."""
    assert jax.tree.map(typeof, left) == jax.tree.map(typeof, right)
    for exact in ("transition", "goal", "reward", "terminated", "is_hindsight", "indices"):
        jax.tree.map(np.testing.assert_array_equal, getattr(left, exact), getattr(right, exact))
    np.testing.assert_allclose(left.probabilities, right.probabilities, rtol=1e-5)
    np.testing.assert_allclose(left.weights, right.weights, rtol=1e-5)


def assert_same_observables(left: herjax.BufferState, right: herjax.BufferState) -> None:
    """Two states that no function tells apart, now or after one more episode."""
    for _ in range(2):
        assert int(herjax.size(left)) == int(herjax.size(right))
        assert bool(herjax.can_sample(left)) == bool(herjax.can_sample(right))
        assert int(left.num_dropped) == int(right.num_dropped)
        for seed in range(3):
            key = jax.random.key(seed)
            assert_same_batch(herjax.sample(left, key, 64), herjax.sample(right, key, 64))
        left, right = (add_episode(state, [901, 902, 903], -90) for state in (left, right))


# What is held, and what is not.


def test_an_unfinished_episode_is_never_drawn() -> None:
    """Only ids 1 and 2 have finished: 3 and 4 are neither drawn nor goal sources."""
    state = add_episode(empty_buffer(strategy="random", num_goals=2), [1, 2], -1)
    for number in (3, 4):
        state = herjax.add(state, transition(number))
    assert int(herjax.size(state)) == 2
    assert {n for _, n, _ in draws(state)} == {1, 2}
    assert {s for _, _, s in draws(state)} <= {-1, 1, 2}


def test_an_end_that_is_not_done_changes_nothing() -> None:
    """After `done=False`, static or traced, the running episode goes on and pursues the goal it ends with."""
    state = add_episode(empty_buffer(capacity=7, priority_exponent=0.6), [1, 2, 3], -1)
    state = herjax.add(herjax.add(state, transition(4)), transition(5))
    for done in (False, jnp.asarray(False)):
        after = herjax.end_episode(state, goal(-77), jax.random.key(5), done=done)
        assert_same_observables(state, after)
        assert_same_observables(
            *(herjax.end_episode(s, goal(-2), jax.random.key(6)) for s in (state, after)),
        )


@pytest.mark.parametrize("numbers", [[], [1, 2, 3, 4]])
def test_an_end_with_nothing_pending_changes_nothing(numbers: list[int]) -> None:
    """Ending twice is ending once, and an empty episode is none: on a fresh buffer and on a full one."""
    state = empty_buffer(capacity=4)
    if numbers:
        state = add_episode(state, numbers, -1)
    assert_same_observables(state, herjax.end_episode(state, goal(-77), jax.random.key(5)))


def test_a_transition_past_the_greatest_length_is_counted_and_dropped() -> None:
    """An episode of 6 where 4 fit keeps its first 4, and no goal comes from the rest; the next one is whole."""
    state = add_episode(empty_buffer(num_goals=3), [1, 2, 3, 4, 5, 6], -1)
    assert int(state.num_dropped) == 2
    assert {n for _, n, _ in draws(state)} == {1, 2, 3, 4}
    assert max(s for _, _, s in draws(state)) == 4
    state = add_episode(state, [7, 8, 9, 10], -2)
    assert int(state.num_dropped) == 2
    assert {n for _, n, _ in draws(state)} == {1, 2, 3, 4, 7, 8, 9, 10}


def test_a_dropped_transition_leaves_the_rest_as_it_was() -> None:
    """A fifth transition where 4 fit changes the count, and neither the size nor any draw, then or after the end."""
    state = add_episode(empty_buffer(capacity=5), [1, 2, 3, 4], -1)
    for number in (5, 6, 7, 8):
        state = herjax.add(state, transition(number))
    after = herjax.add(state, transition(9))
    for s, t in [(state, after), tuple(herjax.end_episode(x, goal(-2), jax.random.key(1)) for x in (state, after))]:
        assert int(herjax.size(s)) == int(herjax.size(t))
        assert draws(s) == draws(t)


@pytest.mark.parametrize("strategy", ["final", "future", "episode", "random"])
def test_no_goals_turn_hindsight_off(strategy: str) -> None:
    """With `num_goals=0` every transition is drawn with the goal it pursued, and with no other."""
    state = add_episode(add_episode(empty_buffer(strategy=strategy, num_goals=0), [1, 2], -1), [3], -2)
    assert {(n, s) for _, n, s in draws(state)} == {(1, -1), (2, -1), (3, -2)}
    assert not np.any(herjax.sample(state, jax.random.key(0), 64).is_hindsight)


def test_final_has_one_goal_whatever_their_number() -> None:
    """`final` with three goals holds two copies of a transition: its own and the last achieved goal."""
    state = add_episode(empty_buffer(strategy="final", num_goals=3), [1, 2, 3], -1)
    reached = draws(state)
    assert {(n, s) for _, n, s in reached} == {(n, s) for n in (1, 2, 3) for s in (-1, 3)}
    assert len(reached) == 6


@pytest.mark.parametrize(("strategy", "first_source"), [("future", [1, 2, 3, 4]), ("episode", [1, 1, 1, 1])])
def test_goals_come_evenly_from_the_steps_of_the_strategy(strategy: str, first_source: list[int]) -> None:
    """Of an episode 1..4, `future` takes step..4 and `episode` 1..4, each alike (chi-square, false alarms 1e-6)."""
    pending = empty_buffer(strategy=strategy, num_goals=8)
    for number in (1, 2, 3, 4):
        pending = herjax.add(pending, transition(number))
    ends = jax.vmap(lambda key: herjax.sample(herjax.end_episode(pending, goal(-1), key), key, 8))
    batch = ends(jax.random.split(jax.random.key(0), 4000))
    numbers, sources = np.asarray(batch.transition.number), np.asarray(batch.goal["number"])
    for number, first in zip((1, 2, 3, 4), first_source, strict=True):
        # One draw of each end at most, so that the counts are independent.
        here = (numbers == number) & (sources > 0)
        ended = here.any(axis=1)
        of_number = sources[ended, here[ended].argmax(axis=1)]
        counts = np.bincount(of_number, minlength=5)
        assert counts[:first].sum() == 0
        assert counts.size == 5
        if first < 4:
            assert stats.chisquare(counts[first:]).pvalue > 1e-6


def test_random_goals_come_evenly_from_every_finished_transition() -> None:
    """The ended episode's transitions are sources as often as those of the episodes before (false alarms: 1e-6)."""
    before = add_episode(add_episode(empty_buffer(strategy="random", num_goals=8), [1, 2, 3], -1), [4, 5], -2)
    for number in (6, 7, 8, 9):
        before = herjax.add(before, transition(number))

    def goals_of_last(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = herjax.end_episode(before, goal(-3), key)
        batch = herjax.sample(state, key, 256)
        return batch.indices, jnp.where(batch.transition.number >= 6, batch.goal["number"], -1)

    indices, sources = (np.asarray(x) for x in jax.vmap(goals_of_last)(jax.random.split(jax.random.key(0), 200)))
    counts = np.zeros(10, int)
    for of_index, source in zip(indices, sources, strict=True):
        _, first = np.unique(of_index, return_index=True)
        counts += np.bincount(source[first][source[first] > 0], minlength=10)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-6


def test_random_never_takes_a_goal_that_has_made_room() -> None:
    """In a buffer of one episode the only goals left are the ended episode's own."""
    state = empty_buffer(capacity=4, strategy="random", num_goals=6)
    for e in range(5):
        numbers = list(range(10 * e + 1, 10 * e + 5))
        state = add_episode(state, numbers, -1 - e, seed=e)
        assert {s for _, _, s in draws(state) if s > 0} <= set(numbers)


# Data.


def test_an_example_of_arrays_and_one_of_shapes_are_the_same() -> None:
    """`init` reads only shapes and dtypes: the values of an example transition never show."""
    options = {"capacity": 8, "max_episode_length": 4, "goal_fn": achieved_of_fields, "reward_fn": reward_of_fields}
    of_arrays = herjax.init(transition(123), **options)
    of_shapes = herjax.init(jax.eval_shape(transition, 0), **options)
    jax.tree.map(np.testing.assert_array_equal, of_arrays, of_shapes)
    assert herjax.sample(of_arrays, jax.random.key(0), 4).terminated is None


BITS = {
    "image": np.arange(27, dtype=np.uint8).reshape(3, 3, 3) + 200,
    "int8": np.array(-128, np.int8),
    "bool": np.array([True, False, True]),
    "int32": np.array([-(2**31), 2**31 - 1], np.int32),
    "uint32": np.array(2**32 - 1, np.uint32),
    "float32": np.array([0x7FC12345, 0xFFC00001, 0x80000000, 0x7F800000, 0x00000001], np.uint32).view(np.float32),
    "float16": np.array([0x7E31, 0xFE01, 0x8000, 0x0001], np.uint16).view(np.float16),
    "bfloat16": np.array([0x7FC5, 0xFFC1, 0x8000, 0x0001], np.uint16).view(jnp.bfloat16),
    "complex64": np.array([0x7FC12345, 0x80000000], np.uint32).view(np.complex64),
    "nothing": np.zeros((0, 2), np.float32),
}


def bits(array: jax.Array | np.ndarray) -> bytes:
    return np.asarray(array).tobytes()


@pytest.mark.parametrize("priority_exponent", [None, 0.6])
def test_every_dtype_comes_back_bit_for_bit(priority_exponent: float | None) -> None:
    """Integers at their limits, signed zeros, subnormals and the payloads of NaNs survive, in transitions and goals."""
    example = jax.tree.map(jnp.asarray, BITS)
    state = herjax.init(
        example,
        capacity=4,
        max_episode_length=2,
        goal_fn=lambda t: t,
        reward_fn=lambda t, _: t["bfloat16"][3],
        num_goals=1,
        priority_exponent=priority_exponent,
    )
    for _ in range(3):
        for _ in range(2):
            state = herjax.add(state, example)
        state = herjax.end_episode(state, example, jax.random.key(0))
    batch = herjax.sample(state, jax.random.key(1), 16)
    assert np.unique(batch.is_hindsight).size == 2
    for name, array in BITS.items():
        for drawn in (batch.transition[name], batch.goal[name]):
            assert drawn.dtype == array.dtype, name
            assert drawn.shape == (16, *array.shape), name
            assert all(bits(row) == bits(array) for row in np.asarray(drawn)), name


def test_the_reward_has_the_dtype_of_its_function() -> None:
    """A reward in float16 stays float16 and one in int32 stays int32, as does that of an empty buffer."""
    for dtype in (jnp.float16, jnp.int32):
        state = herjax.init(
            jnp.zeros((), jnp.int32),
            capacity=2,
            max_episode_length=2,
            goal_fn=lambda t: t,
            reward_fn=lambda t, g: (t - g).astype(dtype),  # noqa: B023
        )
        assert herjax.sample(state, jax.random.key(0), 2).reward.dtype == dtype
        state = herjax.end_episode(herjax.add(state, jnp.array(5)), jnp.array(3), jax.random.key(0))
        batch = herjax.sample(state, jax.random.key(0), 32)
        assert batch.reward.dtype == dtype
        assert set(np.asarray(batch.reward).tolist()) == {0, 2}


@pytest.mark.parametrize("priority_exponent", [None, 0.6])
def test_an_empty_buffer_gives_zeros(priority_exponent: float | None) -> None:
    """Before an episode has finished, fresh or with one pending, a batch is zeros of the usual shapes and dtypes."""
    fresh = empty_buffer(priority_exponent=priority_exponent)
    full = add_episode(fresh, [1, 2], -1)
    for state in (fresh, herjax.add(fresh, transition(7))):
        assert not bool(herjax.can_sample(state))
        assert int(herjax.size(state)) == 0
        batch = herjax.sample(state, jax.random.key(0), 8)
        usual = herjax.sample(full, jax.random.key(0), 8)
        assert jax.tree.map(typeof, batch) == jax.tree.map(typeof, usual)
        assert not has_nonzero(batch._replace(indices=0, probabilities=0))
        assert np.all(np.isfinite(batch.probabilities))
    assert bool(herjax.can_sample(full))


def test_a_batch_has_the_documented_shapes_and_dtypes() -> None:
    """Each field leads with batch_size; the counters and the size are int32 scalars, `can_sample` a bool one."""
    state = add_episode(empty_buffer(priority_exponent=0.6), [1, 2], -1)
    batch = herjax.sample(state, jax.random.key(0), 5)
    assert batch.transition.next_observation["pixels"].shape == (5, 2, 3)
    assert batch.goal["code"].shape == (5, 3)
    for name, dtype in [
        ("reward", "float32"), ("terminated", "bool"), ("is_hindsight", "bool"),
        ("indices", "int32"), ("probabilities", "float32"), ("weights", "float32"),
    ]:  # fmt: skip
        assert (getattr(batch, name).shape, getattr(batch, name).dtype) == ((5,), dtype), name
    for scalar in (herjax.size(state), state.num_dropped, state.num_rejected):
        assert (scalar.shape, scalar.dtype) == ((), "int32")
    assert (herjax.can_sample(state).shape, herjax.can_sample(state).dtype) == ((), "bool")


def test_one_draw_is_a_batch_too() -> None:
    """`batch_size=1` reaches every copy over many keys, with weight 1."""
    state = add_episode(empty_buffer(num_goals=1, priority_exponent=0.6), [1, 2], -1)
    batch = jax.vmap(lambda key: herjax.sample(state, key, 1))(jax.random.split(jax.random.key(0), 256))
    assert batch.reward.shape == (256, 1)
    assert np.unique(batch.indices).size == 4
    np.testing.assert_array_equal(batch.weights, 1)


# Transformations.

CHUNK = 40


def random_steps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and episode ends of 40 steps: five times a capacity of 8."""
    random = np.random.default_rng(seed)
    return np.arange(1, CHUNK + 1, dtype=np.int32) + 100 * seed, random.random(CHUNK) < 0.4


def step(
    state: herjax.BufferState, number: jax.Array, end: jax.Array, make_key: object = jax.random.key
) -> tuple[herjax.BufferState, jax.Array]:
    state = herjax.add(state, transition(number))
    state = herjax.end_episode(state, goal(-number), make_key(number), done=end)
    return state, herjax.sample(state, make_key(number), 3).indices


@partial(jax.jit, static_argnames="make_key")  # Once for all tests: it takes longer to compile than to run.
def rollout(
    state: herjax.BufferState, numbers: jax.Array, ends: jax.Array, make_key: object = jax.random.key
) -> tuple[herjax.Sample, jax.Array, jax.Array]:
    """A batch after all steps, what was drawn on the way, and the size."""
    state, drawn = jax.lax.scan(lambda s, x: step(s, *x, make_key), state, (numbers, ends))
    return herjax.sample(state, make_key(9), 64), drawn, herjax.size(state)


@pytest.fixture(params=[None, 0.6], ids=["uniform", "prioritised"])
def small_buffer(request: pytest.FixtureRequest) -> herjax.BufferState:
    """A buffer that 40 steps fill five times."""
    return empty_buffer(capacity=8, max_episode_length=4, num_goals=2, priority_exponent=request.param)


def test_a_scan_is_its_steps_one_by_one(small_buffer: herjax.BufferState) -> None:
    """`lax.scan` under jit draws what a Python loop of eager calls draws, step by step."""
    numbers, ends = random_steps(0)
    batch, drawn, size = rollout(small_buffer, numbers, ends)
    state, one_by_one = small_buffer, []
    for number, end in zip(numbers, ends, strict=True):
        state, indices = step(state, number, end)
        one_by_one.append(indices)
    np.testing.assert_array_equal(drawn, np.stack(one_by_one))
    assert int(size) == int(herjax.size(state))
    assert_same_batch(batch, herjax.sample(state, jax.random.key(9), 64))
    decode(batch)


def test_buffers_under_vmap_are_buffers_alone(small_buffer: herjax.BufferState) -> None:
    """Six buffers under a nested vmap, each with episodes of its own, draw what each draws alone."""
    seeds = range(6)
    numbers, ends = (np.stack(x).reshape(2, 3, CHUNK) for x in zip(*map(random_steps, seeds), strict=True))
    together = jax.jit(jax.vmap(jax.vmap(partial(rollout, small_buffer))))(numbers, ends)
    for i, j in np.ndindex(2, 3):
        batch, drawn, size = jax.tree.map(lambda leaf, at=(i, j): leaf[at], together)
        expected_batch, expected_drawn, expected_size = rollout(small_buffer, numbers[i, j], ends[i, j])
        np.testing.assert_array_equal(drawn, expected_drawn)
        assert int(size) == int(expected_size)
        assert_same_batch(batch, expected_batch)
        assert set(decode(batch)[0].tolist()) <= set(numbers[i, j].tolist())


def test_states_made_under_vmap_go_on_under_vmap() -> None:
    """A vmapped `init` gives states whose every function can be vmapped, sizes and counters apart."""
    states = jax.vmap(lambda _: empty_buffer(max_episode_length=2, priority_exponent=0.6))(jnp.arange(3))
    for count in (3, 2, 1):
        number = jnp.arange(3) + 10 * count
        added = jax.vmap(lambda s, n: herjax.add(s, transition(n)))(states, number)
        states = jax.vmap(lambda a, s, c=count: jax.tree.map(partial(jnp.where, c), a, s))(added, states)
    states = jax.vmap(lambda s, g, d: herjax.end_episode(s, goal(g), jax.random.key(0), done=d))(
        states, -jnp.arange(1, 4), jnp.array([True, False, True])
    )
    np.testing.assert_array_equal(jax.vmap(herjax.size)(states), [2, 0, 2])
    np.testing.assert_array_equal(jax.vmap(herjax.can_sample)(states), [True, False, True])
    np.testing.assert_array_equal(states.num_dropped, [1, 1, 1])


def test_raw_keys_are_as_good_as_typed_ones(small_buffer: herjax.BufferState) -> None:
    """`jax.random.PRNGKey(s)` and `jax.random.key(s)` lead to the same goals and draws, eagerly and under vmap."""
    numbers, ends = random_steps(1)
    typed, raw = (rollout(small_buffer, numbers, ends, make_key=make)
                  for make in (jax.random.key, jax.random.PRNGKey))  # fmt: skip
    np.testing.assert_array_equal(typed[1], raw[1])
    assert_same_batch(typed[0], raw[0])
    state = add_episode(small_buffer, [1, 2, 3], -1)
    typed_keys, raw_keys = (jax.vmap(make)(jnp.arange(5)) for make in (jax.random.key, jax.random.PRNGKey))
    assert_same_batch(*(jax.vmap(lambda k: herjax.sample(state, k, 4))(keys) for keys in (typed_keys, raw_keys)))


def test_different_keys_draw_differently(small_buffer: herjax.BufferState) -> None:
    """A key decides the draws of `sample` and the goals of `end_episode`: another key, other ones."""
    pending = small_buffer
    for number in (1, 2, 3, 4):
        pending = herjax.add(pending, transition(number))
    ended = [herjax.end_episode(pending, goal(-1), jax.random.key(seed)) for seed in range(8)]
    assert len({frozenset(draws(state)) for state in ended}) > 1
    batches = {tuple(herjax.sample(ended[0], jax.random.key(seed), 8).indices.tolist()) for seed in range(8)}
    assert len(batches) > 1


def test_a_donated_state_is_used_up_and_nothing_else(small_buffer: herjax.BufferState) -> None:
    """With `donate_argnums=0` every function that returns a state takes its memory, and draws stay the same."""
    kept = add_episode(add_episode(small_buffer, [1, 2, 3], -1), [4, 5], -2)
    add = jax.jit(herjax.add, donate_argnums=0)
    end_episode = jax.jit(herjax.end_episode, donate_argnums=0)
    example = transition(1)
    state = first = jax.tree.map(jnp.copy, small_buffer)
    for numbers, pursued in [([1, 2, 3], -1), ([4, 5], -2)]:
        for number in numbers:
            state = add(state, transition(number))
        state = end_episode(state, goal(pursued), jax.random.key(0))
    storage = [*first.columns, first.copies, *([] if first.tree is None else first.tree[:1])]
    assert all(leaf.is_deleted() for leaf in storage)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((example, small_buffer)))
    assert_same_batch(herjax.sample(kept, jax.random.key(0), 64), herjax.sample(state, jax.random.key(0), 64))


def test_a_fresh_state_can_be_donated_whole() -> None:
    """No two leaves of what `init` returns share memory, with each other or with the example."""
    example = transition(0)
    state = herjax.init(example, capacity=8, max_episode_length=4, goal_fn=achieved_of_fields, reward_fn=reward_of_fields)
    jax.block_until_ready(jax.jit(herjax.add, donate_argnums=0)(state, transition(1)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(example))


def test_the_caller_keeps_the_state_given(small_buffer: herjax.BufferState) -> None:
    """A state is immutable: without donation the old one draws as before, whatever follows from it."""
    state = add_episode(small_buffer, [1, 2, 3], -1)
    before = herjax.sample(state, jax.random.key(0), 32)
    add_episode(add_episode(state, [4, 5, 6, 7], -2), [8, 9, 10, 11], -3)
    assert_same_batch(before, herjax.sample(state, jax.random.key(0), 32))


@pytest.mark.parametrize("length", [4, 5])
def test_checkify_reports_an_episode_that_is_too_long(length: int) -> None:
    """The fifth transition of an episode of at most 4 is reported with the bound's name and value; the fourth is not."""

    def episode(state: herjax.BufferState) -> herjax.BufferState:
        for number in range(1, length + 1):
            state = herjax.add(state, transition(number))
        return herjax.end_episode(state, goal(-1), jax.random.key(0))

    error, state = checkify.checkify(jax.jit(episode))(empty_buffer())
    assert int(herjax.size(state)) == 4
    assert int(state.num_dropped) == length - 4
    if length == 4:
        error.throw()
    else:
        with pytest.raises(checkify.JaxRuntimeError, match=r"max_episode_length.*4"):
            error.throw()


def test_checkify_is_silent_about_a_sound_loop(small_buffer: herjax.BufferState) -> None:
    """A loop with episode ends not done, none too long, and draws from the first step on reports nothing."""
    numbers, _ = random_steps(2)
    error, _ = checkify.checkify(rollout)(small_buffer, numbers, numbers % 3 == 0)
    error.throw()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_words_are_all_different(impl: str) -> None:
    """Of keys of each kind, typed and raw: no two of a thousand; by another key all others."""
    typed = jax.random.key(0, impl=impl)
    found = [words(key, 500, 2) for key in jax.random.split(typed)]
    assert len(np.unique(found)) == 2000
    with jax.default_prng_impl(impl):
        np.testing.assert_array_equal(words(jax.random.key_data(typed), 7), words(typed, 7))


def test_numbers_below_a_bound_are_the_exact_upper_half() -> None:
    """Random and extreme products of 32 bits and a bound have the upper half that 64-bit integers give."""
    rng = np.random.default_rng(0)
    extreme = np.array([0, 1, 2**16 - 1, 2**16, 2**31 - 1, 2**32 - 1], np.uint64)
    bits = np.concatenate([rng.integers(0, 2**32, 10_000, np.uint64), np.repeat(extreme, extreme.size)])
    bounds = np.concatenate([rng.integers(0, 2**31, 10_000, np.uint64), np.tile(extreme, extreme.size)])
    bits, bounds = bits[bounds < 2**31], bounds[bounds < 2**31]
    np.testing.assert_array_equal(
        jax.jit(below)(bits.astype(np.uint32), bounds.astype(np.int32)), (bits * bounds) >> np.uint64(32)
    )
