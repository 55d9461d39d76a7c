"""`steps` against lists of episodes: which steps stand around a batch's transitions, and which of them the buffer holds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import herjax
import numbered
from numbered import LENGTH, decode
from played import BATCH, SETTINGS, Played, make, played

KEY = jax.random.key(7)
AROUND = tuple(range(-6, 7))
COUNT = 512


def some_of(batch: herjax.Sample) -> herjax.Sample:
    """Some of its draws; stratified ones come in order."""
    return jax.tree.map(lambda leaf: leaf[:: BATCH // COUNT], batch)


def nearest(buffer: Played, number: int, offset: int) -> tuple[int, bool]:
    """The step of this transition's episode at an offset that is held, or the nearest that is; and whether it is the one."""
    episode = buffer.episodes[number].transitions
    held = [step for step, other in enumerate(episode) if other in buffer.held]
    wanted = episode.index(number) + offset
    step = min(held, key=lambda step: abs(step - wanted))
    return episode[step], step == wanted


def assert_around(buffer: Played, batch: herjax.Sample, around: herjax.Steps, offsets: tuple[int, ...]) -> None:
    """Every step is the one that the lists name, under the goal of the batch, without what follows it."""
    numbers, goals = np.asarray(batch.transition), np.asarray(batch.goal)[:, None]
    expected = [[nearest(buffer, number, offset) for offset in offsets] for number in numbers.tolist()]
    transitions, mask = np.asarray(expected)[..., 0], np.asarray(expected)[..., 1] > 0
    np.testing.assert_array_equal(around.transition, transitions)
    np.testing.assert_array_equal(around.mask, mask)
    np.testing.assert_array_equal(around.reward, 1000 * transitions + goals)
    np.testing.assert_array_equal(around.terminated, transitions == goals)
    assert around.mask.dtype == around.terminated.dtype == jnp.bool_
    assert around.reward.dtype == batch.reward.dtype


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_those_of_the_episode(name: str) -> None:
    """Before its start, past its end, where the first have made room, at the youngest's end: the nearest, and no mask."""
    buffer = played(name)
    batch = some_of(buffer.batch)
    assert set(batch.transition.tolist()) == buffer.held
    assert_around(buffer, batch, herjax.steps(buffer.state, batch, AROUND), AROUND)


def test_every_step_held_is_found_and_no_other() -> None:
    """The case above is not empty: every offset within an episode is held somewhere, and an episode has lost steps."""
    buffer = played("late-back")
    around = herjax.steps(buffer.state, some_of(buffer.batch), AROUND)
    assert np.any(around.mask, axis=0).tolist() == [abs(offset) < LENGTH for offset in AROUND]
    oldest = min(buffer.held)
    assert buffer.episodes[oldest].transitions[0] < oldest == buffer.first_held(oldest)


@pytest.mark.parametrize("offsets", [range(4), range(-3, 1), [8], np.arange(-1, 2), (np.int8(2), np.int64(-2), 0), [2, 2, -1]])
def test_offsets_are_any_ints_in_any_order(offsets: object) -> None:
    """A range, a list, NumPy's ints; far ones, single ones, one twice."""
    buffer = played("kept")
    batch = some_of(buffer.batch)
    assert_around(buffer, batch, herjax.steps(buffer.state, batch, offsets), tuple(int(offset) for offset in offsets))


def test_offsets_of_any_size_lie_beyond_the_episode() -> None:
    """No int overflows: the first step or the last."""
    buffer = played("kept")
    batch = some_of(buffer.batch)
    offsets = (-(2**31), 2**31 - 1, 2**31, -(2**40), 2**70)
    assert_around(buffer, batch, herjax.steps(buffer.state, batch, offsets), offsets)


def test_offsets_may_come_from_a_generator() -> None:
    """They are taken once."""
    buffer = played("kept")
    batch = some_of(buffer.batch)
    found = herjax.steps(buffer.state, batch, (offset for offset in range(4)))
    jax.tree.map(np.testing.assert_array_equal, found, herjax.steps(buffer.state, batch, range(4)))


@pytest.mark.parametrize("name", ["kept-windows", "late-back"])
def test_rewards_are_under_the_goal_that_the_batch_has_now(name: str) -> None:
    """After `relabel`, those of the new goals, one step's also where the batch's are of windows."""
    buffer = played(name)
    old = some_of(buffer.batch)
    batch = herjax.relabel(buffer.state, old, KEY, strategy="random", hindsight_ratio=1.0)
    assert np.mean(np.asarray(batch.goal) != old.goal) > 0.5
    assert_around(buffer, batch, herjax.steps(buffer.state, batch, AROUND), AROUND)


def test_every_field_is_in_its_place() -> None:
    """Of transitions and goals of several leaves: each step is whole, of its dtypes, and under one goal."""
    buffer, offsets = played("fields"), range(-2, 3)
    batch = some_of(buffer.batch)
    around = jax.device_get(herjax.steps(buffer.state, batch, offsets))
    shape = (COUNT, len(offsets))

    def repeated(leaf: np.ndarray) -> np.ndarray:
        return np.broadcast_to(leaf[:, None], (*shape, *leaf.shape[1:]))

    kept = {"goal": jax.tree.map(repeated, batch.goal), "is_hindsight": repeated(batch.is_hindsight)}
    read = {"transition": around.transition, "reward": around.reward, "terminated": around.terminated}
    numbers, _ = decode(batch._replace(**kept, **read))
    expected = [[nearest(buffer, number, offset) for offset in offsets] for number in batch.transition.number.tolist()]
    np.testing.assert_array_equal(np.stack([numbers, around.mask], axis=-1), np.asarray(expected))
    assert around.mask.shape == around.reward.shape == around.terminated.shape == shape

    def assert_shaped(leaf: np.ndarray, example: jax.ShapeDtypeStruct) -> None:
        assert (leaf.shape, leaf.dtype) == ((*shape, *example.shape), example.dtype)

    jax.tree.map(assert_shaped, around.transition, jax.eval_shape(numbered.transition, 0))


def test_runs_side_by_side_are_as_each_alone() -> None:
    """Under vmap over seeds and jit; a run that holds nothing gives zeros beside others."""
    buffer = played("late-windows")
    other = numbered.play(buffer.state, jnp.int32(60), np.ones((4, 3), np.bool_), KEY)
    states = [buffer.state, make("late-windows"), other]
    batches = [herjax.sample(state, key, 64) for state, key in zip(states, jax.random.split(KEY, 3), strict=True)]
    stacked, stacked_batches = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in (states, batches))
    together = jax.jit(jax.vmap(partial(herjax.steps, offsets=range(-1, 3))))(stacked, stacked_batches)
    alone = [herjax.steps(state, batch, range(-1, 3)) for state, batch in zip(states, batches, strict=True)]
    jax.tree.map(lambda leaf, *leaves: np.testing.assert_array_equal(leaf, np.stack(leaves)), together, *alone)
    assert np.any(together.mask[0])
    assert not any(np.any(leaf[1]) for leaf in jax.tree.leaves(together))


@pytest.mark.parametrize("options", [{"relabel": "episode_end"}, {"relabel": "sample", "num_steps": 3, "discount": 0.5}])
def test_nothing_stands_around_an_empty_batch(options: dict[str, object]) -> None:
    """Zeros, all finite, however the functions of zeros are, and no mask; in mid-episode too."""
    state = numbered.make(transition=jnp.float32(0), reward_fn=lambda number, goal: goal / number, **options)
    running = herjax.add(state, jnp.float32(1))
    batch = herjax.sample(running, KEY, 8)
    full = herjax.sample(herjax.end_episode(running, jnp.float32(-1), KEY), KEY, 8)
    for empty in (state, running):
        for each in (batch, full):
            around = herjax.steps(empty, each, range(-1, 2))
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(around))


def test_a_stale_batch_gives_what_is_finite() -> None:
    """Of a state that has gone on since, at each step until all that was drawn is gone."""
    options = {"transition": jnp.float32(0), "reward_fn": lambda number, goal: (1000 + goal) / number, "capacity": 12}
    state = numbered.make(**options)

    @jax.jit
    def act(state, number, done):
        return herjax.end_episode(herjax.add(state, number), -number, KEY, done=done)

    for number in range(1, 13):
        state = act(state, jnp.float32(number), number % 4 == 0)
    batch = herjax.sample(state, KEY, 64)
    for number in range(13, 34):
        state = act(state, jnp.float32(number), number % 7 in (1, 5))
        around = jax.device_get(herjax.steps(state, batch, (-1, 0, 1)))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(around))


def test_no_check_of_checkify_raises_a_false_alarm() -> None:
    """Not one of `all_checks`, of a full buffer and of an empty one."""
    look = checkify.checkify(jax.jit(partial(herjax.steps, offsets=(-9, 0, 9))), errors=checkify.all_checks)
    for state in (played("late-back").state, make("late-back")):
        assert look(state, herjax.sample(state, KEY, 16))[0].get() is None


def test_without_terminated_fn_there_is_none() -> None:
    """`terminated` is None, as `sample` gives it."""
    state = numbered.make(terminated_fn=None)
    look = jax.eval_shape(lambda state: herjax.steps(state, herjax.sample(state, KEY, 4), [0, 1]), state)
    assert look.terminated is None
    assert look.mask.shape == (4, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"offsets": []}, ValueError, "offsets hold no number; give at least one"),
        ({"offsets": range(0)}, ValueError, "offsets hold no number; give at least one"),
        ({"offsets": 3}, TypeError, "offsets is 3; give several ints"),
        ({"offsets": None}, TypeError, "offsets is None; give several ints"),
        ({"offsets": [0.5]}, TypeError, r"offsets is 0\.5; give an int"),
        ({"offsets": [0, 2.0]}, TypeError, r"offsets is 2\.0; give an int"),
        ({"offsets": [True]}, TypeError, "offsets is True; give an int"),
        ({"offsets": "ab"}, TypeError, "offsets is 'a'; give an int"),
        ({"offsets": [[1, 2]]}, TypeError, r"offsets is \[1, 2\]; give an int"),
        ({"batch": None}, TypeError, "batch is a NoneType; give the Sample that sample returned"),
        ({"batch": {"goal": np.zeros(3)}}, TypeError, "batch is a dict; give the Sample"),
        ({"state": np.zeros(3)}, TypeError, "state is"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    """The argument, what it is, and what to give."""
    buffer = played("kept")
    given = {"state": buffer.state, "batch": buffer.batch, "offsets": [0]} | options
    with pytest.raises(error, match=message):
        herjax.steps(**given)


def test_offsets_are_static() -> None:
    """Traced ones are refused by name."""
    buffer = played("kept")
    with pytest.raises(TypeError, match="offsets"):
        jax.jit(herjax.steps)(buffer.state, buffer.batch, jnp.arange(3))
