"""What simulators do: steps that are none, episodes that never end, goals that change. Transitions and goals are numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax
from numbered import make, play, reached

gymnasium = pytest.importorskip("gymnasium")

SETTINGS = [
    {"relabel": relabel, "num_envs": num_envs, "priority_exponent": exponent}
    for relabel in ("episode_end", "sample")
    for num_envs, exponent in ((None, 0.6), (3, None), (3, 0.6))
]


def held(state: herjax.BufferState, num_draws: int = 2048) -> set[int]:
    """The transitions that are drawn."""
    return set(np.unique(herjax.sample(state, jax.random.key(0), num_draws).transition).tolist())


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_masked_transition_changes_nothing(options: dict[str, object]) -> None:
    """The whole state is what it was, bit for bit; unmasked, it is what it is without a mask: in a scan, in a cond, vmapped."""
    envs = options["num_envs"]
    state = make(capacity=15, num_goals=2, **options)
    if envs:
        state = play(state, jnp.int32(0), jnp.ones((12, envs), bool), jax.random.key(0))
    numbers = jnp.int32(7) if envs is None else jnp.arange(7, 7 + envs, dtype=jnp.int32)
    state = herjax.add(state, numbers)
    equal = lambda one, other: jax.tree.map(np.testing.assert_array_equal, one, other)  # noqa: E731
    for nothing in (False, np.bool_(False), jnp.zeros(() if envs is None else (envs,), bool)):
        equal(herjax.add(state, numbers + 9, nothing), state)
    equal(herjax.add(state, numbers + 9, True), herjax.add(state, numbers + 9))
    scanned, _ = jax.lax.scan(
        lambda s, mask: (herjax.add(s, numbers + 9, mask), None), state, jnp.asarray([False, True, False])
    )
    equal(scanned, herjax.add(state, numbers + 9))
    lanes = jax.vmap(lambda mask: herjax.add(state, numbers + 9, mask))(jnp.asarray([True, False]))
    equal(jax.tree.map(lambda leaf: leaf[0], lanes), herjax.add(state, numbers + 9))
    equal(jax.tree.map(lambda leaf: leaf[1], lanes), state)
    branch = jax.jit(lambda s, go: jax.lax.cond(go, lambda s: herjax.add(s, numbers + 9, go), lambda s: s, s))
    equal(branch(state, jnp.bool_(False)), state)
    for _ in range(5):
        state = herjax.add(state, numbers + 9)
    assert int(state.num_dropped) == (envs or 1)
    assert int(herjax.add(state, numbers, False).num_dropped) == (envs or 1)


def test_environments_wait_for_each_other() -> None:
    """A mask for each environment: each has its own transitions, in order."""
    state = make(num_envs=2, num_goals=0, capacity=10)
    for number, mask in enumerate(([True, False], [False, True], [True, True], [False, False])):
        state = herjax.add(state, 10 * number + jnp.arange(2, dtype=jnp.int32), np.asarray(mask))
    state = herjax.end_episode(state, jnp.full(2, -1), jax.random.key(0))
    assert held(state) == {0, 11, 20, 21}


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_discarded_episode_never_was(options: dict[str, object]) -> None:
    """What is drawn afterwards is the others; what it made room for stays gone; and `check` finds nothing."""
    envs = options["num_envs"] or 1
    state = make(capacity=6 * envs, num_goals=1, **options)
    batched = (lambda numbers: numbers[0]) if options["num_envs"] is None else lambda numbers: numbers
    step = jnp.arange(envs, dtype=jnp.int32)

    def episode(state: herjax.BufferState, first: int, length: int) -> herjax.BufferState:
        for number in range(first, first + length):
            state = herjax.add(state, batched(number * envs + step))
        return state

    goal, key = batched(jnp.full(envs, -1)), jax.random.key(0)
    state = herjax.end_episode(episode(state, 0, 5), goal, key)
    running = episode(state, 5, 3)  # One fits, two make room.
    dropped = herjax.discard(running)
    herjax.check(dropped)
    assert held(dropped) == set(range(2 * envs, 5 * envs))
    jax.tree.map(np.testing.assert_array_equal, herjax.end_episode(dropped, goal, key), dropped)
    jax.tree.map(np.testing.assert_array_equal, herjax.discard(running, np.bool_(False)), running)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(herjax.discard)(running), dropped)
    lanes = jax.vmap(lambda done: herjax.discard(running, done))(jnp.asarray([True, False]))
    jax.tree.map(lambda leaf, one: np.testing.assert_array_equal(leaf[0], one), lanes, dropped)
    again = herjax.end_episode(episode(dropped, 8, 5), goal, key)
    herjax.check(again)
    assert held(again) == set(range(4 * envs, 5 * envs)) | set(range(8 * envs, 13 * envs))
    if options["num_envs"]:
        first_only = herjax.discard(running, jnp.arange(envs) == 0)
        ended = herjax.end_episode(first_only, goal, key)
        others = {number for number in range(5 * envs, 8 * envs) if number % envs}
        assert held(ended) & set(range(5 * envs, 8 * envs)) == others


@pytest.mark.parametrize("name", ["mask", "done"])
@pytest.mark.parametrize(
    ("flag", "num_envs", "error", "message"),
    [
        (np.ones(2, bool), 3, ValueError, r"has shape \(2,\), expected \(\) or \(3,\)"),
        (np.ones(1, bool), None, ValueError, r"has shape \(1,\), expected \(\); pass one bool"),
        (1, 3, TypeError, r"has dtype int32, expected bool; convert it with astype\(bool\)"),
    ],
)
def test_flags_of_another_kind_are_refused(
    name: str, flag: object, num_envs: int | None, error: type[Exception], message: str
) -> None:
    """`mask` and `done`: the argument, its shape or dtype, and what to pass."""
    state = make(num_envs=num_envs, capacity=15)
    number = jnp.int32(0) if num_envs is None else jnp.zeros(num_envs, jnp.int32)
    with pytest.raises(error, match=f"{name} {message}"):
        herjax.add(state, number, flag) if name == "mask" else herjax.discard(state, flag)


class Counting(gymnasium.Env):
    """Episodes of three steps: states `100 * environment + 10 * episode + step`, of which a reset gives step 0."""

    def __init__(self, first: int) -> None:
        box = gymnasium.spaces.Box(-1000, 1000, (), np.int32)
        self.observation_space = gymnasium.spaces.Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), box))
        self.action_space = gymnasium.spaces.Discrete(2)
        self.state = first - 10

    def observed(self) -> dict[str, np.ndarray]:
        """The state, and the goal of its episode."""
        return {
            "observation": np.int32(self.state),
            "achieved_goal": np.int32(self.state),
            "desired_goal": np.int32(-1 - self.state // 10),
        }

    def reset(self, **_: object) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """Starts the next episode."""
        self.state = 10 * (self.state // 10) + 10
        return self.observed(), {}

    def step(self, _: object) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, object]]:
        """Goes on."""
        self.state += 1
        return self.observed(), -1.0, False, self.state % 10 == 3 + self.state // 100, {}


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_reset_steps_of_gymnasium_are_masked(relabel: str) -> None:
    """At the default autoreset mode no sample is a reset step, no goal a reset state, and each goal is that pursued."""
    envs = gymnasium.vector.SyncVectorEnv([lambda: Counting(0), lambda: Counting(100)])
    assert envs.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.NEXT_STEP
    pair = {"now": jnp.int32(0), "then": jnp.int32(0)}
    state = herjax.init(
        pair,
        capacity=60,
        max_episode_length=4,
        num_envs=2,
        relabel=relabel,
        strategy="episode",
        goal_fn=lambda pair: pair["then"],
        reward_fn=lambda pair, goal: pair["then"] - goal,
    )
    observation, _ = envs.reset()
    ended = np.zeros(2, bool)
    for step in range(30):
        following, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
        pairs = {"now": observation["observation"], "then": following["observation"]}
        state = herjax.add(state, pairs, mask=~ended)
        done = (terminated | truncated) & ~ended
        state = herjax.end_episode(state, observation["desired_goal"], jax.random.key(step), done)
        observation, ended = following, terminated | truncated
    batch = jax.device_get(herjax.sample(state, jax.random.key(0), 4096))
    np.testing.assert_array_equal(batch.transition["then"], batch.transition["now"] + 1)
    assert np.all(batch.goal[batch.is_hindsight] % 10 > 0)
    np.testing.assert_array_equal(batch.goal[batch.is_hindsight] // 10, batch.transition["now"][batch.is_hindsight] // 10)
    np.testing.assert_array_equal(batch.goal[~batch.is_hindsight], -1 - batch.transition["now"][~batch.is_hindsight] // 10)


def test_a_restart_discards_the_running_episode() -> None:
    """A buffer saved in mid-episode goes on with an environment that starts anew: no sample has a goal of the other episode."""
    state = make(strategy="final", num_goals=1)
    for number in range(3):
        state = herjax.add(state, jnp.int32(number))
    state = jax.tree.map(jnp.asarray, jax.device_get(state))
    state = herjax.discard(state)
    for number in range(10, 13):
        state = herjax.add(state, jnp.int32(number))
    state = herjax.end_episode(state, jnp.int32(-1), jax.random.key(0))
    assert held(state) == {10, 11, 12}


def test_a_new_goal_ends_an_episode() -> None:
    """Within an environment's episode: own copies have the goal that was pursued, hindsight goals come from its time."""
    state = make(strategy="episode", num_goals=2, terminated_fn=reached)
    for number in range(8):
        state = herjax.add(state, jnp.int32(number))
        state = herjax.end_episode(state, jnp.int32(-1 - number // 4), jax.random.key(number), number % 4 == 3)
    batch = jax.device_get(herjax.sample(state, jax.random.key(0), 1024))
    pursued = ~batch.is_hindsight
    np.testing.assert_array_equal(batch.goal[pursued], -1 - batch.transition[pursued] // 4)
    np.testing.assert_array_equal(batch.goal[~pursued] // 4, batch.transition[~pursued] // 4)
