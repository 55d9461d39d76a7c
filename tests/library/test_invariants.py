"""`herjax.check`: silent about every state that the functions return, and naming what is broken in one that they cannot."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax
from numbered import make, play

Break = Callable[[herjax.BufferState], herjax.BufferState]

KEPT, LATE, BACK, LARGE = "kept goals", "late goals", "late goals, looking back", "many copies"
STEPS = 12  # Between two updates.
SETTINGS = {
    KEPT: {"relabel": "episode_end", "num_envs": 2, "capacity": 30, "num_goals": 2},
    LATE: {"relabel": "sample", "num_envs": 2, "capacity": 30, "strategy": "future"},
    BACK: {"relabel": "sample", "num_envs": 2, "capacity": 30, "strategy": "episode"},
    LARGE: {"num_envs": 2, "capacity": 2000},  # The only one whose tree stores sums.
}


def wrapped(setting: str, looks: int = 5) -> herjax.BufferState:
    """A prioritised buffer of two environments that has wrapped around several times and has an episode running in each."""
    state = make(priority_exponent=0.6, **SETTINGS[setting])
    rng = np.random.default_rng(1)
    for look in range(looks):
        dones = rng.random((STEPS, 2)) < 0.3
        dones[-2:] = [[True, True], [False, False]] if look == looks - 1 else dones[-2:]
        state = play(state, jnp.int32(look * STEPS), dones, jax.random.key(look))
        indices = herjax.sample(state, jax.random.key(look), 16).indices
        priorities = 10.0 ** rng.uniform(-6, 6, indices.size)
        state = herjax.update_priorities(state, indices, jnp.asarray(priorities, jnp.float32))
    return state


def added(name: str, amount: float, where: int | tuple[int, ...] = 0) -> Break:
    """Adds to one element of an array of the state."""

    def broken(state: herjax.BufferState) -> herjax.BufferState:
        leaf = getattr(state, name)
        changed = leaf + leaf.dtype.type(amount) if leaf.ndim == 0 else leaf.at[where].add(leaf.dtype.type(amount))
        return dataclasses.replace(state, **{name: changed})

    return broken


def of_tree(height: int, where: str, value: float) -> Break:
    """Sets a node of the tree: above the first leaf held, or a leaf that holds nothing."""

    def broken(state: herjax.BufferState) -> herjax.BufferState:
        leaf = int(jnp.argmax(state.tree[0] > 0)) if where == "held" else int(jnp.argmax(state.tree[0] == 0))
        tree = list(state.tree)
        tree[height] = tree[height].at[leaf // 8**height].set(value)
        return dataclasses.replace(state, tree=tuple(tree))

    return broken


def longer_episodes(state: herjax.BufferState) -> herjax.BufferState:
    """Says that episodes may have 2 steps at most, after they had more."""
    return dataclasses.replace(state, config=dataclasses.replace(state.config, max_episode_length=2))


def slightly(name: str) -> Break:
    """A sum, or a priority, that is off by a thousandth."""

    def broken(state: herjax.BufferState) -> herjax.BufferState:
        tree = list(state.tree)
        if name == "sum":
            top = tree[-1]
            tree[-1] = top.at[jnp.argmax(top)].multiply(1.001)
        else:
            most = (state.max_priority + 1e-6) ** 0.6
            tree = list(herjax.sum_tree.set_windows(state.tree, jnp.argmax(tree[0] > 0)[None], most[None, None] * 1.001))
        return dataclasses.replace(state, tree=tuple(tree))

    return broken


def first_held(state: herjax.BufferState) -> int:
    """The place, in the ring of the first environment, of its oldest transition."""
    return int((state.head - state.held)[0] % state.config.rows_per_env)


def of_place(place: int, part: int, amount: int) -> Break:
    """Adds to the step (0) or the length (1) of what is stored with a transition; `place` 0: the oldest."""

    def broken(state: herjax.BufferState) -> herjax.BufferState:
        row = (first_held(state) + place) % state.config.rows_per_env
        parts = state.config.place.unpack(state.places[row][None])
        changed = state.config.place.pack(parts.at[part].add(jnp.asarray(amount).astype(parts.dtype)))
        return dataclasses.replace(state, places=state.places.at[row].set(changed[0]))

    return broken


def not_over(state: herjax.BufferState) -> herjax.BufferState:
    """The first environment's youngest episode is one step longer than what is held of it."""
    row = int(state.head[0] - 1) % state.config.rows_per_env
    longer = 1 << 16  # A place is two uint16, the length last.
    length = int(state.places[row]) // longer
    rows = (row - np.arange(length)) % state.config.rows_per_env
    return dataclasses.replace(state, places=state.places.at[rows].add(jnp.uint32(longer)))


BROKEN: dict[str, tuple[str, Break, str]] = {
    "negative counter": (KEPT, added("num_dropped", -(2**30)), r"num_dropped is -\d+; it must be >= 0"),
    "rejected below 0": (KEPT, added("num_rejected", -1), r"num_rejected is -1; it must be >= 0"),
    "head past the ring": (KEPT, added("head", 15, 1), r"head of environment 1 is \d+; it must lie in 0 \.\. 14"),
    "head below 0": (KEPT, added("head", -15), r"head of environment 0 is -\d+; it must lie in 0 \.\. 14"),
    "too many held": (KEPT, added("held", 15), r"held of environment 0 is \d+; it must lie in 0 \.\. 15, the capacity"),
    "held below 0": (KEPT, added("held", -16), r"held of environment 0 is -\d+; it must lie"),
    "too long": (
        "kept goals",
        added("pending", 5, 1),
        r"pending of environment 1 is 6; it must lie in 0 \.\. 5, the max_episode",
    ),
    "more than the capacity": (
        "kept goals",
        added("pending", 2),
        r"held \+ pending of environment 0 is 1[67]; it must lie in 0 \.\. 15",
    ),
    "NaN maximum": (KEPT, added("max_priority", np.nan), r"max_priority is nan; it must be finite"),
    "maximum below 1": (KEPT, added("max_priority", -1e9), r"max_priority is -\S+; it must be finite and >= 1"),
    "maximum too low": (
        "kept goals",
        lambda s: dataclasses.replace(s, max_priority=jnp.float32(1)),
        r"priority of index .* <=",
    ),
    "negative priority": (KEPT, of_tree(0, "held", -1.0), r"priority of index \d+ is -1\.0; it must be >= "),
    "zero priority": (KEPT, of_tree(0, "held", 0.0), r"priority of index \d+ is 0\.0; it must be >= "),
    "NaN priority": (KEPT, of_tree(0, "held", np.nan), r"priority of index \d+ is nan; it must be >= "),
    "infinite priority": (KEPT, of_tree(0, "held", np.inf), r"priority of index \d+ is inf; it must be <= "),
    "priority of nothing": (
        "kept goals",
        of_tree(0, "free", 1.0),
        r"priority of index \d+ is 1\.0; it must be 0: it holds nothing",
    ),
    "wrong sum": (LARGE, of_tree(1, "held", 1e7), r"tree\[1\] at \d+ is 10000000\.0; it must be \S+, the sum"),
    "sum of zero": (LARGE, of_tree(1, "held", 0.0), r"tree\[1\] at \d+ is 0\.0; it must be \S+, the sum"),
    "sum off by little": (LARGE, slightly("sum"), r"tree\[\d\] at \d+ is \S+; it must be \S+, the sum of its children"),
    "priority off by little": (KEPT, slightly("priority"), r"priority of index \d+ is \S+; it must be <= "),
    "episode too long": (LATE, longer_episodes, r"length of the episode of row \d+ is [345]; it must lie in 1 \.\. 2"),
    "length below 1": (LATE, of_place(0, 1, -9), r"length of the episode of row \d+ is \d+; it must lie in 1 \.\. 5"),
    "step past the end": (LATE, of_place(0, 0, 9), r"step of row \d+ is \d+; it must lie within its episode"),
    "step below 0": (LATE, of_place(0, 0, -9), r"step of row \d+ is \d+; it must lie within its episode"),
    "a step out of turn": (BACK, of_place(1, 0, -1), r"step of row \d+ is -?\d+; it must (be the one after|lie within)"),
    "an episode that is not over": (LATE, not_over, r"step of row \d+ is \d; it must be an episode's last|length of the"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str) -> None:
    """One element changed in a sound state: the array, the place, the value, and what it must be."""
    setting, broken, message = BROKEN[name]
    state = wrapped(setting)
    herjax.check(state)
    with pytest.raises(ValueError, match=message):
        herjax.check(broken(state))


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_count_of_a_ring_can_be_off_by_one(setting: str) -> None:
    """Where a ring begins, and how much it holds and runs: one more or less is noticed.

    A running episode may have any number of steps: no step tells that it belongs to one.
    """
    state = wrapped(setting)
    for name, amount in itertools.product(("head", "held"), (-1, 1)):
        for env in range(2):
            with pytest.raises(ValueError, match="it must"):
                herjax.check(added(name, amount, env)(state))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("num_envs", [None, 2])
@pytest.mark.parametrize("priority_exponent", [None, 0.6])
def test_every_state_of_a_run_is_sound(setting: str, num_envs: int | None, priority_exponent: float | None) -> None:
    """From the empty buffer on, through wrap-arounds, drops and rejected updates, no state breaks an invariant."""
    state = make(**SETTINGS[setting] | {"num_envs": num_envs, "priority_exponent": priority_exponent, "capacity": 24})
    shape = () if num_envs is None else (num_envs,)
    rng = np.random.default_rng(0)
    herjax.check(state)
    for number in range(80):
        state = herjax.add(state, jnp.full(shape, number))
        state = herjax.end_episode(state, jnp.full(shape, -1), jax.random.key(number), jnp.asarray(rng.random(shape) < 0.2))
        if priority_exponent is not None:
            priorities = rng.choice([1e-6, 1.0, 1e6, np.nan, -1.0], 8).astype(np.float32)
            state = herjax.update_priorities(state, jnp.asarray(rng.integers(-3, 99, 8), jnp.int32), jnp.asarray(priorities))
        herjax.check(state)
    assert int(state.num_dropped) > 0
    assert (int(state.num_rejected) > 0) == (priority_exponent is not None)


def test_priorities_of_zero_are_sound_where_they_may_be() -> None:
    """With `priority_epsilon=0` a priority of 0 is no fault."""
    state = herjax.end_episode(
        herjax.add(make(priority_exponent=1.0, priority_epsilon=0.0), jnp.int32(0)), jnp.int32(-1), jax.random.key(0)
    )
    herjax.check(herjax.update_priorities(state, jnp.arange(5), jnp.zeros(5)))


def measured(value: float, reward: float) -> herjax.BufferState:
    """A buffer of one finished and one running transition, of a float pair that achieves its second; the first is `value`."""
    state = herjax.init(
        {"a": jnp.zeros(()), "b": jnp.zeros(3)},
        capacity=4,
        max_episode_length=2,
        goal_fn=lambda t: {"goal": t["b"]},
        reward_fn=lambda *_: jnp.float32(reward),
    )
    state = herjax.add(state, {"a": jnp.float32(value), "b": jnp.ones(3)})
    state = herjax.end_episode(state, {"goal": jnp.ones(3)}, jax.random.key(0))
    return herjax.add(state, {"a": jnp.float32(0), "b": jnp.ones(3)})


def test_values_that_are_no_numbers_are_named() -> None:
    """NaN in a transition, finished or running, in a goal, and a reward that is NaN or infinite, by leaf and place."""
    herjax.check(measured(np.inf, -1.0))  # An infinite observation may be meant.
    with pytest.raises(ValueError, match=r"transition\.a of row 0 is no number; it must hold no NaN"):
        herjax.check(measured(np.nan, -1.0))
    for reward in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"reward of index 0 is no number; it must be finite"):
            herjax.check(measured(0.0, reward))
    state = measured(0.0, 0.0)
    running = herjax.add(state, {"a": jnp.float32(0), "b": jnp.asarray([0, np.nan, 0], jnp.float32)})
    with pytest.raises(ValueError, match=r"transition\.b of row 2 is no number"):
        herjax.check(running)
    with pytest.raises(ValueError, match=r"goal\.goal of index 5 is no number"):
        herjax.check(herjax.end_episode(state, {"goal": jnp.full(3, np.nan)}, jax.random.key(0)))


def test_a_goal_that_is_no_number_is_named_where_goals_are_late() -> None:
    """With `relabel="sample"` an episode's goal is looked at as long as a step of it is held."""
    state = herjax.init(
        jnp.zeros(2),
        capacity=4,
        max_episode_length=2,
        goal_fn=lambda t: t,
        reward_fn=lambda *_: jnp.float32(0),
        relabel="sample",
    )
    state = herjax.end_episode(herjax.add(state, jnp.ones(2)), jnp.full(2, jnp.nan), jax.random.key(0))
    with pytest.raises(ValueError, match=r"goal of index 0 is no number; it must hold no NaN"):
        herjax.check(state)
    for number in range(4):
        state = herjax.end_episode(herjax.add(state, jnp.ones(2)), jnp.zeros(2), jax.random.key(number))
    herjax.check(state)


def test_what_is_not_held_may_be_anything() -> None:
    """Rows that hold nothing are not looked at: what made room may have been NaN."""
    state = measured(np.nan, -1.0)
    for _ in range(4):
        state = herjax.add(herjax.end_episode(state, {"goal": jnp.ones(3)}, jax.random.key(0)), {"a": 0.0, "b": jnp.ones(3)})
    herjax.check(state)


def test_it_needs_no_cpu_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where JAX knows no CPU, as with `JAX_PLATFORMS=cuda`, it works all the same."""

    def none(**_: object) -> None:
        raise RuntimeError("Unknown backend cpu")

    state = wrapped(BACK, looks=1)
    monkeypatch.setattr(jax, "local_devices", none)
    herjax.check(state)
    with pytest.raises(ValueError, match="held of environment 0"):
        herjax.check(added("held", 20)(state))


def test_of_many_buffers_the_broken_one_is_named() -> None:
    """A state made under `vmap` is checked buffer by buffer."""
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, 3, *leaf.shape)), wrapped(KEPT))
    herjax.check(state)
    with pytest.raises(ValueError, match=r"buffer \(1, 2\) of \(2, 3\): state\.held of environment 1 is -"):
        herjax.check(added("held", -20, (1, 2, 1))(state))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda s: dataclasses.replace(s, head=s.head[:1]), r"state\.head has shape \(1,\); it must have \(2,\)"),
        (lambda s: dataclasses.replace(s, head=s.head.astype(jnp.int16)), r"state\.head has dtype int16; it must have int32"),
        (lambda s: dataclasses.replace(s, tree=None), r"state\.tree has the structure .*; it must have "),
        (lambda s: dataclasses.replace(s, copies=None), r"state\.copies has the structure .*; it must have "),
        (lambda s: dataclasses.replace(s, tree=(s.tree[0][:-1], *s.tree[1:])), r"state\.tree\[0\] has shape"),
    ],
)
def test_arrays_of_another_shape_are_named(broken: Break, message: str) -> None:
    """What does not fit the configuration is named, with both shapes."""
    with pytest.raises(ValueError, match=message):
        herjax.check(broken(wrapped(KEPT, looks=1)))


def test_what_is_no_state_is_refused() -> None:
    """Something else than a state, or a traced one, raises `TypeError` and says what to do."""
    with pytest.raises(TypeError, match="state is a tuple; give, first, the BufferState"):
        herjax.check((1, 2))
    with pytest.raises(TypeError, match=r"state\.num_dropped is a int; it must be an array"):
        herjax.check(dataclasses.replace(wrapped(KEPT, looks=1), num_dropped=3))
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(herjax.check)(wrapped(KEPT, looks=1))
