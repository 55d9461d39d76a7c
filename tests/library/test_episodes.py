"""`episodes` against lists of episodes: which come out, in which order, and what another buffer makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax
import numbered
from numbered import LENGTH
from played import SETTINGS, Played, make, played

KEY = jax.random.key(3)


def expected(buffer: Played) -> list[list[tuple[tuple[int, ...], int]]]:
    """Of each environment: the transitions and goal of each episode that is held whole, the oldest first."""
    return [
        [(episode.transitions, episode.goal) for episode in oracle.episodes if set(episode.transitions) <= set(oracle.held)]
        for oracle in buffer.oracles
    ]


def found(episodes: list[herjax.Episode], envs: int) -> list[list[tuple[tuple[int, ...], int]]]:
    """The same of episodes of numbers."""
    assert {episode.env for episode in episodes} <= set(range(envs))
    return [
        [(tuple(episode.transitions.tolist()), int(episode.goal)) for episode in episodes if episode.env == env]
        for env in range(envs)
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_whole_episodes_come_out(name: str) -> None:
    """With the goals they pursued, and their environments; none that runs, and none that has lost a step."""
    buffer = played(name)
    episodes = herjax.episodes(buffer.state)
    assert found(episodes, len(buffer.oracles)) == expected(buffer)
    held = [sum(len(transitions) for transitions, _ in each) for each in expected(buffer)]
    assert all(0 < count < len(oracle.held) or oracle.held[0] for count, oracle in zip(held, buffer.oracles, strict=True))
    assert sum(held) < len(buffer.held)


def test_they_are_numpy_arrays_of_every_field() -> None:
    """In the structure and the dtypes of the example, an axis for the steps in front; goals as they were given."""
    buffer = played("fields")
    episodes = herjax.episodes(buffer.state)
    lists = [(env, *episode) for env, each in enumerate(expected(buffer)) for episode in each]
    by_number = {int(episode.transitions.number[0]): episode for episode in episodes}
    assert len(by_number) == len(episodes) == len(lists)
    for env, numbers, goal in lists:
        episode = by_number[numbers[0]]
        assert isinstance(episode, herjax.Episode)
        assert episode.env == env
        whole = jax.vmap(numbered.transition)(np.asarray(numbers))
        for got, wanted in ((episode.transitions, whole), (episode.goal, numbered.goal(goal))):
            assert jax.tree.structure(got) == jax.tree.structure(wanted)
            for leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
                assert isinstance(leaf, np.ndarray | np.generic)
                assert leaf.dtype == other.dtype
                np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("name", ["kept", "late-back"])
def test_they_come_and_go_step_by_step(name: str) -> None:
    """From the empty buffer on, at every step: an episode comes with its end, whole, and goes when its first step does."""
    state, played_so_far = make(name), Played(make(name), [type(played(name).oracles[0])(12, LENGTH)])
    (oracle,) = played_so_far.oracles
    assert herjax.episodes(state) == []
    for number in range(40):
        done = number % 9 in (0, 3, 4, 8)
        state = numbered.play(state, jnp.int32(number), np.array([[done]]), KEY)
        oracle.add(number)
        oracle.end_episode(-1 - number, done=done)
        assert found(herjax.episodes(state), 1) == expected(played_so_far)
    state = herjax.discard(herjax.add(state, jnp.int32(99)))
    oracle.add(99)
    oracle.discard()
    assert found(herjax.episodes(state), 1) == expected(played_so_far)


def add_again(state: herjax.BufferState, episodes: list[herjax.Episode]) -> herjax.BufferState:
    """Plays episodes into another buffer, one after the other, of one environment."""

    @jax.jit
    def step(state, transition, goal, done):
        return herjax.end_episode(herjax.add(state, transition), goal, KEY, done)

    for episode in episodes:
        length = len(jax.tree.leaves(episode.transitions)[0])
        for at in range(length):
            transition = jax.tree.map(lambda leaf, at=at: leaf[at], episode.transitions)
            state = step(state, transition, episode.goal, at == length - 1)
    return state


def test_another_buffer_takes_them() -> None:
    """One with other settings, of one environment rather than three, holds the same episodes, and its draws are sound."""
    buffer = played("fields")
    episodes = herjax.episodes(buffer.state)
    state = numbered.make_of_fields(capacity=64, num_goals=3, max_episode_length=9, strategy="final")
    state = add_again(state, episodes)
    herjax.check(state)
    assert int(herjax.size(state)) == sum(len(transitions) for each in expected(buffer) for transitions, _ in each)
    again = herjax.episodes(state)
    assert [episode.env for episode in again] == [0] * len(episodes)
    jax.tree.map(np.testing.assert_array_equal, again, [episode._replace(env=0) for episode in episodes])
    numbered.decode(jax.device_get(herjax.sample(state, KEY, 256)))


def test_the_state_is_left_as_it_is() -> None:
    """Looking changes nothing, and what is found may be written to: it belongs to the caller."""
    buffer = played("kept")
    before = jax.tree.map(np.array, buffer.state)
    episode = herjax.episodes(buffer.state)[0]
    episode.transitions[...] = -7
    jax.tree.map(np.testing.assert_array_equal, buffer.state, before)
    assert found(herjax.episodes(buffer.state), 1) == expected(buffer)


def test_a_state_of_numpy_arrays_is_one() -> None:
    """Such as `jax.device_get` returns."""
    buffer = played("kept")
    assert found(herjax.episodes(jax.device_get(buffer.state)), 1) == expected(buffer)


def test_only_a_state_of_one_run_outside_of_programs_is_read() -> None:
    """The others are refused by name: traced, of many runs, and what is no state."""
    state = make("kept")
    with pytest.raises(TypeError, match="state is traced; call episodes outside of jit"):
        jax.jit(herjax.episodes)(state)
    for runs in ((2,), (2, 3)):
        many = jax.tree.map(lambda leaf, runs=runs: jnp.broadcast_to(leaf, (*runs, *leaf.shape)), state)
        with pytest.raises(ValueError, match=r"state is that of .*runs"):
            herjax.episodes(many)
        assert herjax.episodes(jax.tree.map(lambda leaf, runs=runs: leaf[(0,) * len(runs)], many)) == []
    with pytest.raises(TypeError, match="state is traced"):
        jax.vmap(lambda state: len(herjax.episodes(state)))(jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state))
