"""Windows of n steps against plain loops over episodes: `reward`, `terminated`, `last` and `discount` of every copy.

Transition `number` achieves the goal `number`; what was pursued is below 0. Rewards differ for every pair of the two.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax
import numbered
from numbered import play, reached
from oracle import Oracle

LENGTH, STEPS, BATCH = 6, 40, 4096


def reward(number: jax.Array, goal: jax.Array) -> jax.Array:
    return number.astype(jnp.float32) + goal.astype(jnp.float32) / 128  # Exact, as sums are.


def often(number: jax.Array, goal: jax.Array) -> jax.Array:
    """Ends some windows of the goal that was pursued, too."""
    return (number == goal) | (number % 7 == 3)


def make(**options: object) -> herjax.BufferState:
    return numbered.make(**({"capacity": 27, "max_episode_length": LENGTH, "reward_fn": reward, "num_goals": 2} | options))


@dataclasses.dataclass(frozen=True)
class Window:
    """What a copy's window brings."""

    reward: float
    terminated: bool
    last: int
    length: int


def window_of(steps: tuple[int, ...], goal: int, n: int, *, discount: float, ends: Callable[..., bool]) -> Window:
    """Of the first of some steps, those to the end of its episode, under a goal, step by step."""
    total, length, terminated, last = 0.0, 0, False, -1
    for last in steps:
        total += discount**length * (last + goal / 128)
        length += 1
        terminated = ends(last, goal)
        if terminated or length == n:
            break
    return Window(total, terminated, last, length)


@pytest.mark.parametrize("discount", [0.0, 1e-30, 1e-39])
@pytest.mark.parametrize("next_reward", [-np.inf, np.inf, np.nan])
def test_a_reward_without_weight_does_not_count(discount: float, next_reward: float) -> None:
    """Not even an infinite one: where the discount's power is below every normal float32, the sum is what comes before."""

    def fn(number: jax.Array, goal: jax.Array) -> jax.Array:
        del goal
        return jnp.array([5.0, 1.0, next_reward])[number] if discount == 1e-30 else jnp.array([5.0, next_reward, 1.0])[number]

    steps = 3 if discount == 1e-30 else 2  # 1e-60 underflows.
    state = make(num_steps=steps, discount=discount, reward_fn=fn, terminated_fn=None, num_goals=0)
    state = play(state, jnp.int32(0), jnp.array([False, False, True])[:, None], jax.random.key(0))
    batch = herjax.sample(state, jax.random.key(1), 64)
    np.testing.assert_array_equal(batch.reward[batch.transition == 0], 5)
    assert np.any(batch.transition == 0)


SETTINGS = [
    {"num_steps": 1, "num_envs": None, "terminated_fn": reached, "priority_exponent": None, "relabel": "episode_end"},
    {"num_steps": 1, "num_envs": 3, "terminated_fn": reached, "priority_exponent": 0.6, "relabel": "sample"},
    {"num_steps": 2, "num_envs": 3, "terminated_fn": reached, "priority_exponent": 0.6, "relabel": "episode_end"},
    {"num_steps": 2, "num_envs": None, "terminated_fn": often, "priority_exponent": None, "relabel": "sample", "discount": 1},
    {"num_steps": 3, "num_envs": None, "terminated_fn": often, "priority_exponent": None, "relabel": "episode_end"},
    {"num_steps": 3, "num_envs": 3, "terminated_fn": reached, "priority_exponent": None, "relabel": "sample"},
    {"num_steps": 3, "num_envs": None, "terminated_fn": None, "priority_exponent": 0.6, "relabel": "sample"},
    {
        "num_steps": 4,
        "num_envs": 3,
        "terminated_fn": reached,
        "priority_exponent": None,
        "relabel": "episode_end",
        "discount": 0,
    },
    {"num_steps": 5, "num_envs": 3, "terminated_fn": None, "priority_exponent": 0.6, "relabel": "episode_end"},
    {"num_steps": 5, "num_envs": 3, "terminated_fn": often, "priority_exponent": 0.6, "relabel": "sample"},
    {"num_steps": 9, "num_envs": None, "terminated_fn": reached, "priority_exponent": 0.6, "relabel": "episode_end"},
]


@pytest.mark.parametrize(
    "setting", SETTINGS, ids=lambda setting: "-".join(str(getattr(value, "__name__", value)) for value in setting.values())
)
def test_every_window_is_that_of_its_goal(setting: dict[str, object]) -> None:
    """At ends of episodes, at goals in mid-window, after the ring has turned round: the window is what a loop over it gives."""
    setting = {"discount": 0.5} | setting
    n, discount, terminated_fn = setting["num_steps"], setting["discount"], setting["terminated_fn"]
    envs = setting["num_envs"] or 1
    state = make(**setting)
    dones = np.random.default_rng(n).random((STEPS, envs)) < 0.3
    oracles = [Oracle(27 // envs, LENGTH) for _ in range(envs)]
    for number, done in enumerate(dones):
        for env, oracle in enumerate(oracles):
            oracle.add(number * envs + env)
            oracle.end_episode(-1, done=bool(done[env]))
    state = play(state, jnp.int32(0), dones, jax.random.key(n))
    herjax.check(state)
    episodes = {number: episode for o in oracles for episode in o.episodes for number in episode.transitions}
    episodes = {number: episode.transitions for number, episode in episodes.items()}
    ends = (lambda *_: False) if terminated_fn is None else lambda *pair: bool(terminated_fn(*map(np.int32, pair)))
    batch = jax.device_get(herjax.sample(state, jax.random.key(0), BATCH))
    assert len(np.unique(batch.indices)) == int(herjax.size(state)) * state.config.num_copies
    seen = set()
    for at, (number, goal) in enumerate(zip(batch.transition.tolist(), batch.goal.tolist(), strict=True)):
        remaining = episodes[number][episodes[number].index(number) :]
        window = window_of(remaining, goal, n, discount=discount, ends=ends)
        assert batch.reward[at] == window.reward
        assert batch.last[at] == window.last
        if terminated_fn is not None:
            assert batch.terminated[at] == window.terminated
        assert batch.discount[at] == np.float32(0 if window.terminated else discount**window.length)
        cut = window.terminated and window.length < min(n, len(remaining))
        seen.add("goal" if cut else "end" if window.length < n else "full")
    expected = {"full"} if n == 1 else {"end"} | ({"goal"} if terminated_fn else set()) | ({"full"} if n < 5 else set())
    assert expected <= seen


def test_one_step_is_as_ever() -> None:
    """With one step `last` is `transition`, the reward keeps its dtype, and without a discount there is none."""

    def whole(number: jax.Array, goal: jax.Array) -> jax.Array:
        return number - goal

    state = make(reward_fn=whole)
    state = herjax.end_episode(herjax.add(state, jnp.int32(5)), jnp.int32(-1), jax.random.key(0))
    batch = herjax.sample(state, jax.random.key(1), 8)
    assert batch.discount is None
    assert batch.reward.dtype == jnp.int32
    np.testing.assert_array_equal(batch.last, batch.transition)
    windows = herjax.sample(
        herjax.end_episode(
            herjax.add(make(reward_fn=whole, num_steps=3, discount=0.5), jnp.int32(5)), jnp.int32(-1), jax.random.key(0)
        ),
        jax.random.key(1),
        8,
    )
    assert windows.reward.dtype == jnp.float32
    np.testing.assert_array_equal(windows.reward, batch.reward)


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_an_empty_buffer_gives_zeros(relabel: str, num_steps: int) -> None:
    """Also as discount and as last transition, in mid-episode too."""
    state = herjax.add(make(num_steps=num_steps, discount=0.5, relabel=relabel), jnp.int32(5))
    batch = herjax.sample(state, jax.random.key(0), 4)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(batch))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": 3}, ValueError, r"discount is None, and num_steps is 3; give a discount in \[0, 1\]"),
        ({"num_steps": 0, "discount": 0.9}, ValueError, "num_steps is 0; give an int >= 1"),
        ({"num_steps": 2.0, "discount": 0.9}, TypeError, r"num_steps is 2\.0; give an int"),
        ({"discount": 1.5}, ValueError, r"discount is 1\.5; give a number in \[0, 1\]"),
        ({"discount": float("nan")}, ValueError, r"discount is nan; give a number in \[0, 1\]"),
        ({"discount": "0.9"}, TypeError, r"discount is '0\.9'; give a number in \[0, 1\]"),
    ],
)
def test_settings_without_meaning_are_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    """The argument, its value, and what to give."""
    with pytest.raises(error, match=message):
        make(**options)
