"""`next_of`: what two steps share is stored once, and all that is read is as if each step had its own.

Transition `number` leads from place `number` to place `number + 1`, where its episode goes on. The next episode begins one
place further, so that none begins where another ended. Goals are places; those that were pursued are below 0.
"""

import dataclasses
import types
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from scipy import stats

import herjax
from any_jax import enable_x64
from distributions import FALSE_ALARM_RATE, WITHIN_EPISODE
from herjax import checkpoints
from oracle import Episode, Oracle

KEY, LONGEST = jax.random.key(0), 5
# What is observed at places, int32 [...]. In "single" are NaN, which only their bits tell apart.
OBSERVED = {
    "place": lambda place: place,
    "bits": lambda place: (place[..., None] >> np.arange(9)) % 2 > 0,
    "half": lambda place: np.stack([place + 0x3F80, place + 0x4000], axis=-1).astype(np.uint16).view(jnp.bfloat16),
    "single": lambda place: np.stack([place + 0x7F800001, place - 0x3FFFFF], axis=-1).astype(np.int32).view(np.float32),
    "image": lambda place: ((place[..., None, None, None] + np.arange(84 * 84 * 4).reshape(84, 84, 4)) % 251).astype(np.uint8),
}
PLAIN, ALL, WIDE = ("place",), ("place", "bits", "half", "single"), ("place", "image")
DEFAULTS = {
    "goal_fn": lambda transition: transition["next_observation"]["place"],
    "reward_fn": lambda transition, goal: 1000 * transition["observation"]["place"] + goal,
    "terminated_fn": lambda transition, goal: transition["next_observation"]["place"] == goal,
    "next_of": {"next_observation": "observation"},
} | {"capacity": 16, "max_episode_length": LONGEST, "num_goals": 2}
ENDS = np.random.default_rng(7).random((150, 3)) < 0.22  # Of some episodes there are more steps than are stored.
FIELDS = dict.fromkeys("abcd", np.zeros(2, np.float32)) | {"long": np.zeros(3, np.float32), "int": np.zeros(2, np.int32)}
FIELDS |= {"tree": {"x": FIELDS["a"]}, "twig": {"y": FIELDS["a"]}}
init = partial(herjax.init, max_episode_length=LONGEST, goal_fn=lambda t: jax.tree.leaves(t)[0], reward_fn=lambda *_: 0.0)
draw = partial(herjax.sample, key=KEY, batch_size=96)


def leading(numbers: np.ndarray | int, leaves: tuple[str, ...] = PLAIN) -> dict:
    """The transitions of these numbers."""
    now, then = ({name: OBSERVED[name](np.asarray(place, np.int32)[()]) for name in leaves} for place in (numbers, numbers + 1))
    return {"next_observation": then, "number": np.asarray(numbers, np.int32)[()], "observation": now}


def make(leaves: tuple[str, ...] = PLAIN, **options: object) -> herjax.BufferState:
    """An empty buffer of transitions with these leaves."""
    return herjax.init(leading(0, leaves), **(DEFAULTS | options))


def walks(done: np.ndarray, leaves: tuple[str, ...] = PLAIN, share: float = 0, stride: int = 1) -> dict:
    """Walks that end where `done`, bool [steps, n]; this share masked, a third of it discarded; of stride 2 none follows."""
    rng = np.random.default_rng(done.shape[1])
    mask, drop = rng.random(done.shape) >= share, rng.random(done.shape) < share / 3
    moved = stride * mask + (done | drop).astype(np.int32)
    numbers = np.cumsum(moved, axis=0, dtype=np.int32) - moved + 1000 * np.arange(done.shape[1], dtype=np.int32)
    transition = leading(np.where(mask, numbers, 77), leaves)
    return {"transition": transition, "goal": -1 - numbers, "mask": mask, "done": done, "drop": drop}


@partial(jax.jit, static_argnames="see")
def play(state: herjax.BufferState, calls: dict, key: jax.Array, see: Callable = herjax.size) -> tuple:
    """The state after all steps of walks, and what `see` sees of it after each."""

    def step(state: herjax.BufferState, xs: tuple[dict, jax.Array]) -> tuple:
        now = jax.tree.map(lambda leaf: leaf[0], xs[0]) if state.config.num_envs is None else xs[0]
        by_step = {"goal": now["goal"]} if state.config.sample_running else {}
        state = herjax.add(state, now["transition"], now["mask"], **by_step)
        state = herjax.end_episode(state, None if by_step else now["goal"], xs[1], now["done"])
        return (state := herjax.discard(state, now["drop"])), see(state)

    return jax.lax.scan(step, state, (calls, jax.random.split(key, len(calls["mask"]))))


@jax.jit
def read(state: herjax.BufferState) -> tuple[herjax.Sample, herjax.Sample, herjax.Steps, list[jax.Array]]:
    """All that compiled code reads of a state."""
    batch, counts = draw(state), [herjax.size(state), herjax.can_sample(state), state.num_dropped, state.num_rejected]
    other = herjax.relabel(state, batch, jax.random.key(1), strategy="episode", hindsight_ratio=0.5)
    return batch, other, herjax.steps(state, other, range(-3, 4)), counts


def assert_same(one: object, other: object) -> None:
    """Of the same structure, dtypes, shapes and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for found, must in zip(*(map(np.asarray, jax.tree.leaves(each)) for each in (one, other)), strict=True):
        assert (found.dtype, found.shape) == (must.dtype, must.shape)
        np.testing.assert_array_equal(np.ravel(found).view(np.uint8), np.ravel(must).view(np.uint8))


@pytest.mark.parametrize(
    ("next_of", "options", "named"),
    [
        (["b", "a"], {}, ("['b', 'a']", "give a dict")),
        ("b", {}, ("'b'", "give a dict")),
        ({"b": "q"}, {}, ("'q'", "no field", "'a', 'b'", "name")),
        ({"q": "a"}, {}, ("'q'", "no field", "'a', 'b'", "name")),
        ({"b": "a"}, {"transition": np.zeros(2)}, ("'b'", "no field", "name")),
        ({"b": "a", "c": "b"}, {}, ("'b'", "'c'", "give pairs")),
        ({"a": "a"}, {}, ("'a'", "next", "give pairs")),
        ({"b": "a", "c": "a"}, {}, ("'a'", "'b'", "'c'", "give one")),
        ({"twig": "tree"}, {}, ("'twig'", "'tree'", "structure", "give fields")),
        ({"long": "a"}, {}, ("'long'", "'a'", "[3]", "[2]", "give fields")),
        ({"b": "a", "int": "c"}, {}, ("'int'", "'c'", "int32", "float32", "give fields")),
        ({"b": "a"}, {"capacity": 5}, ("capacity is 5", "give", "at least 6", "max_episode_length")),
        ({"b": "a"}, {"capacity": 15, "num_envs": 3}, ("capacity", "is 5", "give", "at least 18", "max_episode_length")),
    ],
)
def test_what_is_refused_is_named(next_of: object, options: dict, named: tuple[str, ...]) -> None:
    """While tracing: `next_of`, the fields, what they are, and what to give; also where one observation more has no room."""
    with pytest.raises(ValueError if isinstance(next_of, dict) else TypeError, match="next_of") as raised:
        jax.eval_shape(lambda: init(**{"transition": FIELDS, "capacity": 16, "next_of": next_of} | options))
    assert all(name in str(raised.value) for name in named), raised.value


@pytest.mark.parametrize("kind", ["dataclass", "NamedTuple", "dict", "flax"])
def test_fields_are_those_of_any_transition(kind: str) -> None:
    """Keys or attributes, each a pytree, of which shapes are enough; several pairs; of 64 bits, and NaN whose bits differ."""
    names = ["then", "before", "start", "action", "stop"]
    kinds = {"dict": dict, "NamedTuple": NamedTuple("Named", [(name, object) for name in names])}
    kinds["dataclass"] = jax.tree_util.register_dataclass(dataclasses.make_dataclass("Made", names), names, [])
    if kind == "flax":
        kinds["flax"] = pytest.importorskip("flax.struct").dataclass(dataclasses.make_dataclass("Flax", names, init=False))

    def transition(place: int) -> object:
        half = (np.arange(place, place + 3) + 0x7FC1).astype(np.uint16).view(jnp.bfloat16)
        before, then = ({"at": (half[at:][:2], (place + at) / np.float64(3))} for at in (0, 1))
        return kinds[kind](then=then, before=before, start=np.int16(place), action=np.int8(place), stop=np.int16(place + 1))

    with enable_x64(True):
        example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), transition(0))
        state = init(example, capacity=6, next_of=types.MappingProxyType({"stop": "start", "then": "before"}))
        for place in (3, 4, 5):
            state = herjax.add(state, transition(place))
        (episode,) = herjax.episodes(herjax.end_episode(state, jax.tree.leaves(transition(0))[0], KEY))
    assert_same(episode.transitions, jax.tree.map(lambda *leaves: np.stack(leaves), *map(transition, (3, 4, 5))))


def test_settings_that_mean_the_same_are_the_same() -> None:
    """No pair is None, and several have no order: a state of one goes through a cond with that of the other, and no more."""
    for one, other in ((None, {}), ({"b": "a", "d": "c"}, {"d": "c", "b": "a"})):
        first, second = (init(FIELDS, capacity=16, next_of=each) for each in (one, other))
        assert_same(jax.lax.cond(jnp.bool_(True), lambda: second, lambda: first), first)  # noqa: B023
    assert init(FIELDS, capacity=16, next_of={"b": "c", "d": "a"}).config != first.config


SETTINGS = {
    "kept": {"strategy": "random"},
    "kept-windows": {"num_envs": 3, "priority_exponent": 0.6, "num_steps": 3, "discount": 0.5},
    "late-windows": {"relabel": "sample", "priority_exponent": 0.6, "num_steps": 2, "discount": 0.5},
    "running": {"relabel": "sample", "num_envs": 2, "strategy": "episode", "priority_exponent": 0.6, "sample_running": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_all_that_is_read_is_the_same_bit_for_bit(name: str) -> None:
    """With and without, by the same calls and keys, where neither makes room: masks, discards, drops, NaN, any dtype."""
    envs, reads = SETTINGS[name].get("num_envs") or 1, []
    for options in ({}, {"next_of": None}):
        state = make(ALL, capacity=96 * envs, **SETTINGS[name], **options)
        state, _ = play(state, walks(ENDS[:60, :envs], ALL, 0.1), KEY)
        if state.tree is not None:
            state = herjax.update_priorities(state, draw(state).indices, jnp.linspace(-1, 9, 96, dtype=jnp.float32))
        reads.append([*read(state), herjax.episodes(state)])
    assert_same(*reads)
    batch, other, around, (_, _, num_dropped, _), episodes = jax.device_get(reads[0])
    for found in (batch.transition, batch.last, other.last, around.transition, episodes[0].transitions):
        assert_same(found, leading(found["number"], ALL))
    assert (num_dropped > 0, len(episodes) > 5, around.mask.mean() > 0.3) == (True, True, True)


@pytest.mark.parametrize(
    ("strategy", "ring", "options"),
    [
        ("final", 8, {}),
        ("future", 8, {"num_envs": 2, "num_steps": 2, "discount": 0.5}),
        ("random", 8, {}),
        ("episode", 13, {"relabel": "sample"}),
        ("episode", 13, {"relabel": "sample", "sample_running": True}),
    ],
)
def test_goals_are_where_steps_led(strategy: str, ring: int, options: dict) -> None:
    """A step that may give a goal gives where the next one began, or its episode ended: wherever in a small ring that is."""
    envs, running, goals = options.get("num_envs", 1), "sample_running" in options, set()
    oracles, calls = [Oracle(7, LONGEST, next_of=True) for _ in range(envs)], walks(ENDS[:, :envs], stride=2)
    _, batches = play(make(capacity=7 * envs, strategy=strategy, **options), calls, KEY, see=draw)
    source = WITHIN_EPISODE.get(strategy, (None, None))[1]  # None stands for random.
    for at in range(len(ENDS)):
        batch, of, led = jax.tree.map(lambda leaf, at=at: np.asarray(leaf)[at], batches), {}, {}
        for env, oracle in enumerate(oracles):
            oracle.add(int(calls["transition"]["number"][at, env]))
            oracle.end_episode(int(calls["goal"][at, env]), done=bool(calls["done"][at, env]))
            for episode in (*oracle.episodes[-14:], Episode(0, tuple(oracle.pending * running), ())):
                for number, after in pairwise((*episode.transitions, 0)):
                    of[number], led[number] = episode, after or number + 1
        drawn = batch.transition["number"], batch.transition["next_observation"]["place"], batch.goal, batch.is_hindsight
        for number, later, goal, hindsight in zip(*(leaf[batch.weights > 0].tolist() for leaf in drawn), strict=True):
            sources = of[number].goal_chances(number, {source: 1}) if hindsight else ()
            assert goal in ({led[each] for each in sources} or {-1 - number if running else of[number].goal})
            assert later == led[number]
            goals |= {goal} & {led[each] for each in sources}
    lasts = np.cumsum([len(episode.transitions) + 1 for episode in oracles[0].episodes])
    lasts = lasts[[episode.transitions[-1] + 1 in goals for episode in oracles[0].episodes]]
    assert len(set(lasts % ring)) >= ring - 1
    assert {0, 1} <= set(lasts % ring), "the ring's last row, and its first"


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_draws_are_uniform_over_transitions(relabel: str) -> None:
    """Of episodes of 1 to 20 steps, of whose observations there are up to twice as many (chi-square, false alarms 1e-6)."""
    lengths = [*range(1, 21), *np.random.default_rng(0).permutation(np.arange(1, 21))]
    calls = walks(np.isin(np.arange(420), np.cumsum(lengths) - 1)[:, None])
    state, _ = play(make(capacity=300, max_episode_length=20, relabel=relabel), calls, KEY)
    assert {len(episode.transitions["number"]) for episode in herjax.episodes(state)} == set(lengths)
    numbers, counts = np.unique(herjax.sample(state, KEY, 60_000).transition["number"], return_counts=True)
    assert len(numbers) == herjax.size(state) > 250
    assert stats.chisquare(counts).pvalue > FALSE_ALARM_RATE


@pytest.mark.parametrize("length", [1, 2, 5, 13, 20])
def test_a_full_buffer_holds_what_its_observations_leave(length: int) -> None:
    """With episodes of T steps never fewer than capacity // (T + 1) * T - T, never more than fit, and what lists say."""
    done, oracle, expected = np.arange(1, 301) % length == 0, Oracle(64, 20, next_of=True), []
    _, sizes = play(make(capacity=64, max_episode_length=20), walks(done[:, None]), KEY)
    for number, ended in enumerate(done.tolist()):
        oracle.add(number)
        oracle.end_episode(-1, done=ended)
        expected.append(oracle.num_held)
    np.testing.assert_array_equal(sizes, expected)
    whole, rest = divmod(64, length + 1)
    assert (np.min(sizes[100:]) >= whole * length - length, np.max(sizes)) == (True, whole * length + max(rest - 1, 0))


@pytest.mark.parametrize("name", ["half", "bits", "single"])
def test_what_does_not_follow_is_named(name: str) -> None:
    """Under checkify: the field, the environment, and what it is not the next of; where it is stored, and none comes first."""
    numbers, every, others = np.asarray([10, 20, 30]), np.ones(3, bool), np.arange(3) != 1
    state, good = herjax.add(make(ALL, capacity=18, num_envs=3), leading(numbers, ALL)), leading(numbers + 1, ALL)
    leaf, add = np.copy(good["observation"][name]), jax.jit(checkify.checkify(herjax.add))
    leaf[1].view(np.uint8)[0] ^= 1
    bad = good | {"observation": good["observation"] | {name: leaf}}
    named = rf"\['observation'\]\['{name}'\] of environment 1 is not .*\['next_observation'\]\['{name}'\].*next_of"
    with pytest.raises(checkify.JaxRuntimeError, match=named):
        add(state, bad, every)[0].throw()
    for silent in ((state, good, every), (state, bad, others), (herjax.discard(state), bad, every)):
        assert add(*silent)[0].get() is None


@pytest.mark.parametrize("name", ["kept-windows", "running"])
def test_no_check_of_checkify_raises_a_false_alarm(name: str) -> None:
    """Walks follow on, through masks, discards, ends and what makes room."""
    ends = np.arange(40)[:, None] % LONGEST == np.arange(SETTINGS[name]["num_envs"])
    checked = jax.jit(checkify.checkify(partial(play, see=draw), errors=checkify.all_checks))
    assert checked(make(**SETTINGS[name], capacity=9 * ends.shape[1]), walks(ends, share=0.1), KEY)[0].get() is None


@pytest.mark.parametrize(
    ("name", "at", "amount", "message"),
    [
        (".columns[0]", -1, 1, r"observation of row \d+ is \d+; it must follow that of the row before"),
        (".columns[0]", 0, 1, r"observation of row \d+ is \d+; it must follow that of the row before"),
        (".observations.episodes", 0, 9, "observations of environment 0 in use is [0-9]+; it must be <= 15, the capacity"),
        (".observations.episodes", 1, -2, r"observations\.episodes of environment 1 is \d; it must be >= \d, as rows say"),
        (".observations.head", 1, -16, r"observations\.head of environment 1 is -\d+; it must lie in 0 \.\. 15"),
        (".observations.head", 0, 16, r"observations\.head of environment 0 is \d+; it must lie in 0 \.\. 15"),
        (".observations.head", 0, 1, r"observation of row \d+ is \d+; it must follow that of the row before"),
        (".pending", 0, 3, "observations of environment 0 in use is [0-9]+; it must be <= 15, the capacity"),
    ],
)
def test_what_is_broken_is_named(name: str, at: int, amount: int, message: str) -> None:
    """In a full buffer of two environments, in mid-episode: the array, the place, the value, and what it must be."""
    ends = np.indices((32, 2)).sum(axis=0) % 4 == 1
    state, _ = play(make(capacity=30, num_envs=2, priority_exponent=1), walks(ends), KEY)
    herjax.check(state)
    if name == ".columns[0]":  # Of the newest row that has finished, or the first that runs: where its observation lies.
        at = int(state.head[0] + at) % 15 * state.config.storage.columns[0].layout.words
    paths, treedef = jax.tree_util.tree_flatten_with_path(state)
    leaves = [leaf.at[at].add(amount) if jax.tree_util.keystr(path) == name else leaf for path, leaf in paths]
    with pytest.raises(ValueError, match=message):
        herjax.check(treedef.unflatten(leaves))


@pytest.mark.parametrize("next_of", [None, {"next_observation": "observation"}])
@pytest.mark.parametrize("options", [{}, {"relabel": "sample", "num_steps": 2, "discount": 0.5}])
def test_a_run_that_holds_nothing_gives_zeros_beside_others(options: dict, next_of: dict | None) -> None:
    """Images, too, which are read apart; and each run has what it has alone, also in its first episode."""
    calls = walks(np.arange(8)[:, None] % 4 == 3, WIDE)
    one = play(make(WIDE, **options, next_of=next_of, num_envs=1), calls, KEY)[0]
    none = herjax.add(make(WIDE, **options, next_of=next_of, num_envs=1), leading(np.array([3]), WIDE))
    runs = jax.tree.map(lambda *leaves: jnp.stack(leaves), none, one)
    read = lambda state: (batch := herjax.sample(state, KEY, 16), herjax.steps(state, batch, [0, 1]))  # noqa: E731
    found = jax.vmap(read)(runs)
    assert not any(np.any(leaf[0]) for leaf in jax.tree.leaves(found))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda leaf: leaf[1], found), read(one))


def test_a_shared_observation_that_is_no_number_is_named() -> None:
    """Finished or running, also where only the end of an episode has it; not once another holds, or it has made room."""
    end, real = partial(herjax.end_episode, goal=jnp.float32(-1), key=KEY), np.float32
    running = herjax.add(init([real(0), real(0)], capacity=6, next_of={1: 0}), [real(0), real(np.nan)])
    for state in (running, ended := end(running)):
        with pytest.raises(ValueError, match=r"transition\.1 of row 0 is no number; it must hold no NaN"):
            herjax.check(state)
    herjax.check(end(herjax.add(running, [real(1), real(2)])))
    for number in range(6):
        ended = end(herjax.add(ended, [real(number), real(number)]))
    herjax.check(ended)


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_a_restored_state_goes_on_bit_for_bit(relabel: str, tmp_path: Path) -> None:
    """Images too, in rows of 7,057 words, of which the oldest made room; another template's `next_of` is refused."""
    options, calls = {"num_envs": 2, "capacity": 2 * 13, "relabel": relabel}, walks(ENDS[:60, :2], WIDE, 0.1)
    first, rest = (jax.tree.map(lambda leaf, half=half: leaf[half], calls) for half in np.split(np.arange(60), 2))
    whole, _ = play(make(WIDE, **options), first, KEY)
    checkpoints.save(tmp_path, whole)
    restored = checkpoints.restore(tmp_path, make(WIDE, **options)).tree
    whole, restored = (play(state, rest, KEY)[0] for state in (whole, restored))
    assert_same(restored, whole)
    for found in (draw(restored).transition, herjax.episodes(restored)[1].transitions):
        assert_same(jax.device_get(found), leading(np.asarray(found["number"]), WIDE))
    for next_of in (None, {"observation": "next_observation"}):
        with pytest.raises(ValueError, match="next_of"):
            checkpoints.restore(tmp_path, make(WIDE, **options, next_of=next_of))


def test_runs_side_by_side_are_as_each_alone() -> None:
    """Of three vmapped seeds, whose episodes end at different times, each holds what it holds by itself."""
    state, keys = make(**SETTINGS["kept-windows"], capacity=3 * 9), jax.random.split(KEY, 3)
    runs = [walks(ENDS[at : at + 50], share=0.1) for at in (0, 1, 2)]
    together = jax.vmap(play, (None, 0, 0))(state, jax.tree.map(lambda *leaves: np.stack(leaves), *runs), keys)[0]
    alone = [read(play(state, calls, key)[0]) for calls, key in zip(runs, keys, strict=True)]
    assert_same(jax.vmap(read)(together), jax.tree.map(lambda *leaves: np.stack(leaves), *alone))


@pytest.mark.parametrize("options", [{}, {"relabel": "sample"}, {"relabel": "sample", "sample_running": True}])
def test_runs_whose_endings_take_more_turns_than_others_are_runs_alone(options: dict) -> None:
    """Episodes of 40 steps end beside episodes of four and eight, in full buffers: vmapped, each run is what it is alone."""
    ends = np.arange(1, 241)[:, None] % [40, 4, 8] == 0
    runs = jax.tree.map(lambda leaf: np.moveaxis(leaf, 1, 0)[:, :, None], walks(ends))
    empty = make(capacity=64, max_episode_length=40, priority_exponent=0.6, **options)
    keys = jax.random.split(KEY, 3)
    vmapped, sizes = jax.vmap(partial(play, empty))(runs, keys)
    herjax.check(vmapped)
    for run in range(3):
        of_run = partial(jax.tree.map, lambda leaf, run=run: leaf[run])
        state, size = play(empty, of_run(runs), keys[run])
        np.testing.assert_array_equal(sizes[run], size)
        assert_same(of_run(vmapped), state)


def test_loops_of_other_forms_come_to_the_same() -> None:
    """A host loop that donates its state and gives NumPy's scalars; a cond where others mask. No key is used twice."""
    state = make(capacity=np.int64(9), max_episode_length=np.int8(LONGEST), relabel="sample")
    calls, keys = walks(ENDS[:30, :1], share=0.1), jax.random.split(KEY, 30)
    full, expected = play(state, calls, KEY)[0], read(play(state, calls, KEY)[0])
    for mask in (True, False):
        branched = jax.lax.cond(mask, herjax.add, lambda state, _: state, full, leading(999))
        ended = (herjax.end_episode(each, -1, KEY) for each in (branched, herjax.add(full, leading(999), mask)))
        assert_same(*map(read, ended))
    with jax.debug_key_reuse(True):
        play.trace(make(), calls, KEY)
    add, end = (jax.jit(each, donate_argnums=0) for each in (herjax.add, herjax.end_episode))
    for at, key in enumerate(keys):
        now, before = jax.tree.map(lambda leaf, at=at: leaf[at, 0], calls), state
        state = end(add(state, now["transition"], now["mask"]), now["goal"], key, now["done"])
        state = herjax.discard(state, now["drop"])
        assert before.columns[0].is_deleted()
    assert_same(read(state), expected)
