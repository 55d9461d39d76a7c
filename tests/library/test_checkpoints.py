"""Checkpoints: what is saved at any moment goes on bit for bit, survives a kill, and is refused where it does not fit."""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import herjax
import saver
from herjax import checkpoints
from herjax.records import settings_as_json

CAPACITY = 64
MOMENTS = {"empty": 0, "first episode": 2, "episode just ended": 4, "filling up": 31, "exactly full": 64, "wrapped": 203}


def assert_same(first: object, second: object) -> None:
    """Same structure, static parts included, and the same bits."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(lambda *pair: np.testing.assert_array_equal(*(np.ravel(leaf).view(np.uint8) for leaf in pair)), first, second)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority_exponent": None, "strategy": "random"},
        {"relabel": "sample", "strategy": "episode", "num_envs": 2},
    ],
    ids=["prioritised", "uniform", "late goals"],
)
def test_a_restored_state_goes_on_bit_for_bit(options: dict[str, object], moment: str, tmp_path: Path) -> None:
    """Saved before any step, in mid-episode, exactly full or wrapped, a state and what follows from it are the same."""
    whole = saver.start(**options)
    for number in range(MOMENTS[moment]):
        whole = saver.step(whole, jnp.int32(number))
    if moment == "exactly full":
        assert int(herjax.size(whole)) == CAPACITY
    checkpoints.save(tmp_path / "state", whole, notes={"number": MOMENTS[moment]})
    restored, notes = checkpoints.restore(tmp_path / "state", saver.start(**options))
    herjax.check(restored)
    assert_same(restored, whole)
    for number in range(notes["number"], notes["number"] + 30):
        whole, restored = (saver.step(state, jnp.int32(number)) for state in (whole, restored))
    assert_same(restored, whole)


def test_a_training_loop_is_saved_whole(tmp_path: Path) -> None:
    """Parameters, optimiser, typed keys and vmapped buffers come back together, and the newest save is the one restored."""
    params = {"w": jnp.arange(3.0)}
    buffers = jax.vmap(lambda number: saver.step(saver.start(), number))(jnp.arange(3, dtype=jnp.int32))
    loop = {"agent": (params, optax.adam(1e-3).init(params)), "buffers": buffers, "key": jax.random.key(7)}
    nothing = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros_like(leaf), loop)
    assert checkpoints.restore(tmp_path, nothing) is None
    checkpoints.save(tmp_path, nothing)
    checkpoints.save(tmp_path, loop, settings={"lr": 1e-3}, notes={"curve": [0.5, 1.0]})
    restored, notes = checkpoints.restore(tmp_path, nothing, settings={"lr": 1e-3})
    key, saved_key = (jax.random.key_data(tree.pop("key")) for tree in (restored, loop))
    assert_same(key, saved_key)
    assert_same(restored, loop)
    assert notes == {"curve": [0.5, 1.0]}
    assert len(list(tmp_path.glob("state-*"))) == 1, "older states are deleted"


def other_reward(number: jax.Array, goal: jax.Array) -> jax.Array:
    """A reward of the same shape and another meaning."""
    return number - goal


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"capacity": 65}, ("capacity 64", "capacity 65")),
        ({"max_episode_length": 6}, ("max_episode_length 5", "max_episode_length 6")),
        ({"num_goals": 3}, ("num_goals 4", "num_goals 3")),
        ({"strategy": "episode"}, ("strategy future", "strategy episode")),
        ({"strategy": herjax.geometric(0.9)}, ("strategy future", "strategy geometric(0.9)")),
        ({"relabel": "sample"}, ("relabel episode_end", "relabel sample")),
        ({"priority_exponent": 0.7}, ("priority_exponent 0.6", "priority_exponent 0.7")),
        ({"priority_exponent": None}, ("priority_exponent 0.6", "priority_exponent None")),
        ({"priority_epsilon": 0.0}, ("priority_epsilon 1e-06", "priority_epsilon 0.0")),
        ({"num_envs": 1}, ("num_envs None", "num_envs 1")),
        ({"reward_fn": other_reward}, ("reward_fn reward", "reward_fn other_reward")),
        ({"terminated_fn": lambda *_: jnp.bool_(False)}, ("terminated_fn None", "<lambda>")),
        ({"transition": jnp.int16(0)}, ("transition int32[]", "transition int16[]")),
    ],
)
def test_another_configuration_is_refused(options: dict[str, object], values: tuple[str, str], tmp_path: Path) -> None:
    """Where any setting differs, though every array has the same shape, both values are named; what is saved stays."""
    buffer = saver.step(saver.start(), jnp.int32(3))
    checkpoints.save(tmp_path, buffer)
    with pytest.raises(ValueError, match="give what it was saved with, or another folder") as error:
        checkpoints.restore(tmp_path, saver.start(**options))
    assert all(value in str(error.value) for value in values)
    assert_same(checkpoints.restore(tmp_path, saver.start()).tree, buffer)


def test_other_settings_of_the_caller_and_other_arrays_are_refused(tmp_path: Path) -> None:
    """A learning rate, or the width of a network, that is not the saved one is refused, with both values."""
    checkpoints.save(tmp_path, {"w": jnp.zeros((2, 3))}, settings={"lr": 0.1, "hidden": (64, 64)})
    for width, settings, message in (
        (3, {"lr": 0.2, "hidden": (64, 64)}, r"lr 0\.1, and lr 0\.2 is asked for"),
        (3, {"hidden": (64, 64)}, r"lr 0\.1, and lr absent is asked for"),
        (4, {"lr": 0.1, "hidden": (64, 64)}, r"w float32\[2, 3\], and w float32\[2, 4\] is asked for"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(tmp_path, {"w": jnp.zeros((2, width))}, settings=settings)
    assert checkpoints.restore(tmp_path, {"w": jnp.ones((2, 3))}, settings={"lr": 0.1, "hidden": (64, 64)}) is not None


def truncated(data: bytes) -> bytes:
    """Half of it."""
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """One bit of it changed."""
    return bytes([data[0] ^ 1]) + data[1:]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Each file, cut in half, changed by a bit, or gone, is refused by name, with what it is and what was written."""
    buffer = saver.step(saver.start(), jnp.int32(3))
    checkpoints.save(tmp_path, buffer)
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "saved.json"]
    assert len(files) > 5
    for file in files:
        data = file.read_bytes()
        for damage in (truncated, flipped):
            file.write_bytes(damage(data))
            with pytest.raises(
                ValueError, match=f"{file.name} is {len(damage(data))} bytes .* but {len(data)} bytes .* written"
            ):
                checkpoints.restore(tmp_path, saver.start())
        file.unlink()
        with pytest.raises(ValueError, match=f"{file.name} is missing, but {len(data)} bytes"):
            checkpoints.restore(tmp_path, saver.start())
        file.write_bytes(data)
    file = tmp_path / "saved.json"
    record = file.read_text()
    for damaged in (record[: len(record) // 2], record.replace("5", "6", 1), "{}", "null", ""):
        file.write_text(damaged)
        for call in (partial(checkpoints.restore, tmp_path), partial(checkpoints.save, tmp_path)):
            with pytest.raises(ValueError, match=r"saved\.json (is no record of a state|has the checksum).* it is damaged"):
                call(saver.start())
    file.write_text(record)
    assert_same(checkpoints.restore(tmp_path, saver.start()).tree, buffer)


class Full(Exception):  # noqa: N818 - what a disk is.
    """No room is left."""


@pytest.mark.parametrize("function", ["_fingerprint", "_write_record", "os.fsync", "Path.replace"])
def test_a_save_that_fails_changes_nothing(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off at any of its moments, a save leaves the state before; and the next one succeeds over what was left behind."""
    before, after = saver.start(), saver.step(saver.start(), jnp.int32(0))
    checkpoints.save(tmp_path, before, notes={"number": 0})

    def fail(*_: object) -> None:
        raise Full

    with monkeypatch.context() as patch:
        patch.setattr(f"herjax.checkpoints.{function}", fail)
        with pytest.raises(Full):
            checkpoints.save(tmp_path, after, notes={"number": 1})
    restored, notes = checkpoints.restore(tmp_path, saver.start())
    assert notes == {"number": 0}
    assert_same(restored, before)
    checkpoints.save(tmp_path, after, notes={"number": 1})
    assert_same(checkpoints.restore(tmp_path, saver.start()).tree, after)
    assert len(list(tmp_path.iterdir())) == 2


def test_only_what_is_its_own_is_deleted(tmp_path: Path) -> None:
    """Files and folders of other names stay, also such as begin alike, and a checkpoint in a folder within."""
    (tmp_path / "state-dumps").mkdir()
    (tmp_path / "state-notes.txt").write_text("mine")
    checkpoints.save(tmp_path / "state-eval", saver.start())
    for _ in range(2):
        checkpoints.save(tmp_path, saver.start())
    checkpoints.discard(tmp_path)
    assert checkpoints.restore(tmp_path, saver.start()) is None
    assert {path.name for path in tmp_path.iterdir()} == {"state-dumps", "state-notes.txt", "state-eval"}
    assert checkpoints.restore(tmp_path / "state-eval", saver.start()) is not None
    checkpoints.discard(tmp_path / "state-eval")
    checkpoints.discard(tmp_path / "state-eval")
    assert not (tmp_path / "state-eval").exists()


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward function that is no function."""

    scale: float

    def __call__(self, number: jax.Array, goal: jax.Array) -> jax.Array:
        """Tells scales apart."""
        return jnp.where(number == goal, jnp.float32(self.scale), 0)


def test_settings_are_compared_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of NumPy, NaN, paths, tuples, partial functions and objects are like themselves in another process; dtypes count.

    Neither do the caller's settings hide behind the state's, nor those behind the caller's.
    """
    settings = {"lr": np.float32(0.5), "clip": float("nan"), "out": Path("a"), "hidden": (8, 8), "x": jnp.float32(2)}
    checkpoints.save(tmp_path, {"lr": jnp.zeros(2)}, settings=settings, notes={"best": np.float64(0.25)})
    assert checkpoints.restore(tmp_path, {"lr": jnp.ones(2)}, settings=settings).notes == {"best": 0.25}
    with pytest.raises(ValueError, match=r"lr 0\.5, and lr 0\.75 is asked for"):
        checkpoints.restore(tmp_path, {"lr": jnp.zeros(2)}, settings=settings | {"lr": 0.75})
    checkpoints.save(tmp_path, {"x": np.arange(3) + 2**40})
    with pytest.raises(ValueError, match=r"x int64\[3\], and x int32\[3\] is asked for"):
        checkpoints.restore(tmp_path, {"x": np.arange(3, dtype=np.int32)})
    functions = [partial(other_reward), Reward(1.0), lambda *_: jnp.float32(0)]
    described = [checkpoints.describe(saver.start(reward_fn=function))["reward_fn"] for function in functions]
    assert described[0].startswith("functools.partial(<function other_reward")
    assert " at 0x" not in described[0]
    assert described[1] == "Reward(scale=1.0)"
    assert checkpoints.describe(saver.start(priority_exponent=np.float32(0.5)))["priority_exponent"] == 0.5
    monkeypatch.setattr(checkpoints, "_FORMAT", 6)
    with pytest.raises(ValueError, match="format 5, and format 6 is asked for"):
        checkpoints.restore(tmp_path, {"x": np.arange(3)})


def test_arrays_in_settings_are_compared_exactly(tmp_path: Path) -> None:
    """Each element counts, to the last bit, in the middle of many too, and however NumPy prints; also within functions."""
    many = np.linspace(0, 1, 5000)
    other, near = many.copy(), many.copy()
    other[2500], near[0] = 2.0, 1e-300
    for wrap in (lambda array: array, jnp.asarray, lambda array: {"of": [array]}, lambda array: partial(other_reward, array)):
        checkpoints.save(tmp_path, {"x": jnp.zeros(2)}, settings={"array": wrap(many)})
        with np.printoptions(precision=2, threshold=5):
            assert checkpoints.restore(tmp_path, {"x": jnp.zeros(2)}, settings={"array": wrap(many)}) is not None
        with pytest.raises(ValueError, match="array"):
            checkpoints.restore(tmp_path, {"x": jnp.zeros(2)}, settings={"array": wrap(other)})
    checkpoints.save(tmp_path, {"x": jnp.zeros(2)}, settings={"array": many})
    with pytest.raises(ValueError, match="array"):
        checkpoints.restore(tmp_path, {"x": jnp.zeros(2)}, settings={"array": near})


def test_functions_in_settings_are_compared_by_name(tmp_path: Path) -> None:
    """As those of a buffer: where they lie in memory, which differs in each process, does not count."""

    def program(scale: float) -> Callable[..., float]:
        return lambda number: scale * number

    for one, same in (
        (program(1), program(2)),
        (Reward(1.0).__call__, Reward(1.0).__call__),
        (jax.jit(program(1)), jax.jit(program(2))),
    ):
        checkpoints.save(tmp_path, {"x": jnp.zeros(2)}, settings={"function": one, "in": [one]})
        assert checkpoints.restore(tmp_path, {"x": jnp.zeros(2)}, settings={"function": same, "in": [same]}) is not None
        with pytest.raises(ValueError, match="function"):
            checkpoints.restore(tmp_path, {"x": jnp.zeros(2)}, settings={"function": other_reward, "in": [same]})


@dataclasses.dataclass
class Options:
    """A caller's settings that hold an array."""

    of: np.ndarray


@pytest.mark.parametrize(
    ("setting", "other"),
    [
        ({"names": {"ab", "cd", "ef"}}, {"names": {"ab", "cd"}}),
        ({"dtype": jnp.float32}, {"dtype": jnp.bfloat16}),
        ({"dtype": np.dtype("float32")}, {"dtype": np.dtype("float64")}),
        ({"rate": Fraction(1, 3)}, {"rate": Fraction(1, 4)}),
        ({"of": Options(np.arange(40.0) / 3)}, {"of": Options(np.arange(40.0))}),
        ({"of": np.arange(40) * (1 + 2j)}, {"of": np.arange(40) * (1 + 3j)}),
        ({"of": {"a": 1, "b": 2}}, {"of": {"a": 1, "b": 3}}),
        ({"of": Options(np.array([np.nan, 1.0]))}, {"of": Options(np.array([np.nan, 2.0]))}),
    ],
)
def test_settings_of_any_kind_are_like_themselves(setting: dict[str, object], other: dict[str, object], tmp_path: Path) -> None:
    """However NumPy prints, in whatever order a dict has its keys; and unlike others."""
    checkpoints.save(tmp_path, {"x": jnp.zeros(2)}, settings=setting)
    with np.printoptions(linewidth=30, sign="+", nanstr="NN", threshold=3):
        again = {name: dict(reversed(value.items())) if isinstance(value, dict) else value for name, value in setting.items()}
        assert checkpoints.restore(tmp_path, {"x": jnp.zeros(2)}, settings=again) is not None
    with pytest.raises(ValueError, match=next(iter(setting))):
        checkpoints.restore(tmp_path, {"x": jnp.zeros(2)}, settings=other)
    if "names" in setting:
        assert settings_as_json(setting) == {"names": ["ab", "cd", "ef"]}, "the same in each process"


def test_notes_come_back_as_numbers(tmp_path: Path) -> None:
    """Arrays as lists, to the last bit, NumPy's and JAX's scalars as numbers."""
    rates = np.random.default_rng(0).random(2000)
    notes = {
        "success": rates,
        "by": {"seed": [jnp.float32(0.5), np.int64(3)]},
        "flags": np.array([True]),
        "half": jnp.bfloat16(1.5),
    }
    checkpoints.save(tmp_path, {"x": jnp.zeros(2)}, notes=notes)
    back = checkpoints.restore(tmp_path, {"x": jnp.zeros(2)}).notes
    assert back == {"success": rates.tolist(), "by": {"seed": [0.5, 3]}, "flags": [True], "half": 1.5}


@pytest.mark.parametrize(
    "leaf",
    [
        np.float32(2),
        np.int64(2**40),
        np.bool_(True),
        3,
        0.1,
        True,
        np.array(2.0),
        np.zeros((0, 3)),
        jnp.zeros(0),
        jnp.bfloat16(1.5),
        jax.random.key(3),
        jax.random.PRNGKey(3),
    ],
    ids=lambda leaf: f"{type(leaf).__name__} {jnp.result_type(leaf)}",
)
def test_every_kind_of_number_comes_back_as_it_was(leaf: object, tmp_path: Path) -> None:
    """Of the same type, dtype, shape and value; so does a tree that is one array."""
    for tree in ({"best": leaf, "x": jnp.ones(2)}, leaf):
        checkpoints.save(tmp_path, tree)
        back = checkpoints.restore(tmp_path, tree).tree
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
            assert type(one) is type(other)
            assert (getattr(one, "dtype", None), np.shape(one)) == (getattr(other, "dtype", None), np.shape(other))
            assert bool(jnp.all(one == other))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"tree": {"x": 1j}}, TypeError, "x is 1j, which cannot be stored"),
        ({"tree": {"x": np.longdouble(1)}}, TypeError, "x is .*cannot be stored"),
        ({"notes": {"a": jnp.float32}}, TypeError, r"notes\['a'\] is .*float32.*, which would not come back"),
        ({"tree": {"x": "float32"}}, TypeError, "x is 'float32', which cannot be stored"),
        ({"tree": {"a": {"x": np.array(["text"])}}}, TypeError, r"a\.x is array\(\['text'\].*cannot be stored"),
        ({"tree": {"a.b": jnp.zeros(1), "a": {"b": jnp.ones(1)}}}, ValueError, r"two parts of the tree are called a\.b"),
        ({"tree": {"buffer.capacity": jnp.zeros(1), "buffer": saver.start()}}, ValueError, r"called buffer\.capacity"),
        ({"notes": {"a": {"f": len}}}, TypeError, r"notes\['a'\]\['f'\] is <built-in function len>, which would not come back"),
        ({"notes": {"a": [{3}]}}, TypeError, r"notes\['a'\]\[0\] is \{3\}"),
        ({"notes": {"a": 1j}}, TypeError, r"notes\['a'\] is 1j"),
        ({"notes": {3: 1}}, TypeError, "notes has the key 3; give names as keys"),
        (
            {"settings": {"a": object()}},
            TypeError,
            r"settings\['a'\] is <object object.* give numbers, text, arrays or functions",
        ),
        ({"settings": {"a": {3: 1}}}, TypeError, r"settings\['a'\] has the key 3"),
    ],
)
def test_what_would_not_come_back_is_refused_before_anything_is_written(
    given: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """By name, and what was saved before stays."""
    checkpoints.save(tmp_path, {"x": jnp.ones(2)})
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(error, match=message):
        checkpoints.save(tmp_path, **({"tree": {"x": jnp.zeros(2)}} | given))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among several processes there is no one who may say that all have saved: orbax's own manager is named instead."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    call: Callable[..., object]
    for call in (checkpoints.save, checkpoints.restore):
        with pytest.raises(RuntimeError, match="2 processes, and checkpoints knows one; use orbax's CheckpointManager"):
            call(tmp_path, saver.start())


def killed_again_and_again(folder: Path, kills: int) -> dict[str, int]:
    """Runs `saver.py` and kills it, `kills` times; asserts that nothing is lost that it had said was saved."""
    expected, state = [saver.digest(saver.start())], saver.start()
    rng = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": str(Path(herjax.__file__).parents[1])}  # The herjax under test, wherever it is.
    acknowledged, counts = 0, {"while saving": 0, "saves": 0}
    for _ in range(kills + 1):  # What the last one leaves behind nobody looks at.
        command = [sys.executable, saver.__file__, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        word, number, digest = process.stdout.readline().split()
        assert word == "restored"
        assert int(number) in (acknowledged, acknowledged + 1), "the last one may have been saved, and not yet said so"
        while len(expected) <= int(number):
            state = saver.step(state, jnp.int32(len(expected) - 1))
            expected.append(saver.digest(state))
        assert digest == expected[int(number)], "bit for bit what it would have been without any kill"
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        lines = [line.split() for line in process.communicate()[0].splitlines() if line.startswith("saved ")]
        acknowledged = int(lines[-1][1]) if lines else int(number)
        counts["saves"] += len(lines)
        leftovers = [path for path in folder.glob("*") if path.name not in ("saved.json", newest(folder))]
        counts["while saving"] += bool(leftovers)
    return counts


def newest(folder: Path) -> str:
    """The name of the state saved last."""
    record = folder / "saved.json"
    return json.loads(record.read_text())["record"]["name"] if record.exists() else ""


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    """Killed three times at random moments, a loop that saves every step goes on from the last that it said was saved."""
    counts = killed_again_and_again(tmp_path, 3)
    assert counts["saves"] > 0


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    """The same for a hundred kills, most of them in the midst of saving."""
    counts = killed_again_and_again(tmp_path, 100)
    print(counts)
    assert counts["while saving"] >= 50
