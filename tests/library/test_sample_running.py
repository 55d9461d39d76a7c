"""Running episodes that are sampled: what is there from the first `add` on, and what is said of wrong calls.

That every batch is right, whatever is called before, is in test_random_calls.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax
from numbered import make

KEY = jax.random.key(0)


def running(**options: object) -> herjax.BufferState:
    return make(**({"relabel": "sample", "sample_running": True, "capacity": 8} | options))


def added(state: herjax.BufferState, numbers: range) -> herjax.BufferState:
    """Each step pursues a goal of its own, -1 - number."""
    for number in numbers:
        state = herjax.add(state, jnp.int32(number), goal=jnp.int32(-1 - number))
    return state


def drawn(state: herjax.BufferState) -> set[tuple[int, int]]:
    """Transitions and goals."""
    batch = herjax.sample(state, KEY, 512)
    return set(zip(batch.transition.tolist(), batch.goal.tolist(), strict=True))


@pytest.mark.parametrize("exponent", [None, 0.6])
def test_steps_are_drawn_from_the_first_on(exponent: float | None) -> None:
    """With the goal that they pursue, or with one achieved since, of the steps so far; the same when the episode has ended."""
    state = running(priority_exponent=exponent)
    assert not bool(herjax.can_sample(state))
    for count in (1, 3):
        state = added(state, range(int(herjax.size(state)), count))
        assert int(herjax.size(state)) == count
        expected = {(number, goal) for number in range(count) for goal in (-1 - number, *range(number, count))}
        assert drawn(state) == expected
    assert drawn(herjax.end_episode(state, None, None)) == expected


def test_final_is_the_newest_step() -> None:
    """Of the episode so far."""
    state = added(running(strategy="final"), range(3))
    assert drawn(state) == {(number, goal) for number in range(3) for goal in (-1 - number, 2)}


def test_a_window_ends_with_the_newest_step() -> None:
    """What is learned goes on from there: discount^m of the steps that are there."""
    state = added(
        running(num_steps=3, discount=0.5, num_goals=0, reward_fn=lambda t, _: 1.0 + 0 * t.astype(jnp.float32)), range(4)
    )
    batch = jax.device_get(herjax.sample(state, KEY, 64))
    lengths = np.minimum(3, 4 - batch.transition)
    np.testing.assert_array_equal(batch.last, batch.transition + lengths - 1)
    np.testing.assert_array_equal(batch.discount, 0.5**lengths)
    np.testing.assert_array_equal(batch.reward, 2 - 0.5 ** (lengths - 1.0))


def test_each_environment_has_its_steps_and_goals() -> None:
    """Of those that are masked nothing is there; one that has ended is drawn beside one that runs."""
    state = running(num_envs=2, num_goals=0, capacity=10)
    for first, mask in ((0, [True, True]), (2, [False, True])):
        numbers = first + jnp.arange(2, dtype=jnp.int32)
        state = herjax.add(state, numbers, jnp.array(mask), goal=-1 - numbers)
    assert drawn(state) == {(0, -1), (1, -2), (3, -4)}
    state = herjax.end_episode(state, None, None, jnp.array([True, False]))
    numbers = 4 + jnp.arange(2, dtype=jnp.int32)
    state = herjax.discard(herjax.add(state, numbers, goal=-1 - numbers), jnp.array([False, True]))
    assert drawn(state) == {(0, -1), (4, -5)}


@pytest.mark.parametrize("exponent", [None, 1.0])
def test_what_is_discarded_is_gone(exponent: float | None) -> None:
    """It is neither drawn nor counted, its indices hold nothing, and what had ended stays."""
    state = herjax.end_episode(added(running(priority_exponent=exponent), range(2)), None, None)
    state = added(state, range(2, 5))
    old = herjax.sample(state, KEY, 64)
    state = herjax.discard(state)
    assert int(herjax.size(state)) == 2
    assert {number for number, _ in drawn(state)} == {0, 1}
    herjax.check(state)
    if exponent is not None:
        gone = int(jnp.sum(old.transition >= 2))
        assert 0 < gone == int(herjax.update_priorities(state, old.indices, jnp.ones(64)).num_rejected)


def test_steps_relabel_and_episodes_see_what_runs() -> None:
    """`steps` and `relabel` reach the newest step; `episodes` has only what has ended, with the goal of each step."""
    state = added(herjax.end_episode(added(running(), range(2)), None, None), range(2, 4))
    batch = herjax.sample(state, KEY, 64)
    after = herjax.steps(state, batch, [1])
    np.testing.assert_array_equal(after.mask[:, 0], batch.transition % 2 == 0)
    assert set(herjax.relabel(state, batch, KEY, strategy="final", hindsight_ratio=1.0).goal.tolist()) == {1, 3}
    (episode,) = herjax.episodes(state)
    assert (episode.transitions.tolist(), episode.goal.tolist()) == ([0, 1], [-1, -2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: make(sample_running=True),
            ValueError,
            r"sample_running is True, and relabel is 'episode_end'; give relabel='sample'",
        ),
        (lambda: running(sample_running="yes"), TypeError, "sample_running is 'yes'; give True or False"),
        (lambda: herjax.add(running(), jnp.int32(0)), ValueError, "goal is missing.*give it to add as `goal=goal`; the third"),
        (lambda: herjax.add(running(), jnp.int32(0), jnp.int32(0)), ValueError, "goal is missing.*third argument is `mask`"),
        (lambda: herjax.add(make(), jnp.int32(0), goal=jnp.int32(0)), ValueError, "goal is given.*pass None to add"),
        (lambda: herjax.end_episode(running(), jnp.int32(0), KEY), ValueError, "goal is given.*pass None to end_episode"),
        (lambda: herjax.end_episode(make(), None, KEY), ValueError, r"goal is missing.*give it to end_episode\.\s"),
        (lambda: herjax.add(running(), jnp.int32(0), goal=jnp.zeros(2)), ValueError, r"goal has shape \(2,\)"),
        (lambda: herjax.end_episode(make(), jnp.int32(0), None), TypeError, "key is None; give a PRNG key"),
    ],
)
def test_wrong_calls_are_named(call: object, error: type[Exception], message: str) -> None:
    """Where the goal goes, and what to give."""
    with pytest.raises(error, match=message):
        call()
