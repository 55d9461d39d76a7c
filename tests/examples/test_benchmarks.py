"""The benchmarks measure what they say that they measure."""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflip
import contrastive
import environments
import herjax
import memory
import python_calls
import scaling
import step_cost

pytestmark = pytest.mark.usefixtures("standard_promotion")

CONFIG = bitflip.Config(num_bits=20, max_episode_length=5, capacity=100, hidden=(8,), batch_size=8, steps=40)


def test_all_operations_together_are_the_training_step() -> None:
    """With every operation, and episodes that end where the environment's do, `partial_step` is `bitflip.train_step`."""
    xs = (jnp.arange(40), jax.random.split(jax.random.key(1), (40, 4)))

    def run(step: Callable[..., bitflip.Loop]) -> bitflip.Loop:
        start = bitflip.start(CONFIG, jax.random.key(0))
        return jax.jit(lambda: jax.lax.scan(lambda loop, x: (step(loop, x), None), start, xs)[0])()

    whole = run(lambda loop, x: bitflip.train_step(CONFIG, loop, x[1])[0])
    partial_steps = [run(partial(step_cost.partial_step, CONFIG, 5, count)) for count in (1, 2, 4)]
    chex.assert_trees_all_close(*map(jax.tree.leaves, (partial_steps[-1].agent, whole.agent)), rtol=1e-4, atol=1e-6)
    assert not np.allclose(*(jax.tree.leaves(loop.agent.params)[0] for loop in (partial_steps[1], whole))), "the fixed batch"
    assert [int(loop.buffer.head[0]) for loop in partial_steps] == [0, 40, 40], "only end_episode keeps an episode"
    assert not any(int(loop.buffer.num_dropped) for loop in partial_steps), "every add writes"


def test_filled_buffers_are_full() -> None:
    """Before timing starts, both benchmarks' full buffers hold what they can."""
    loop = step_cost.filled(CONFIG, jax.random.key(0))
    assert CONFIG.capacity - CONFIG.max_episode_length <= herjax.size(loop.buffer) <= CONFIG.capacity
    point = scaling.Point(copies=500, episode_length=7)
    buffer = scaling.full_buffer(point, True, jax.random.key(0))
    assert 100 - 7 <= herjax.size(buffer) <= 100


def test_step_cost_reports_every_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each kind of replay, number of steps, batch size and number of seeds; the floor is its own measure."""
    out = tmp_path / "step_cost.json"
    flags = "--seeds 2 --batch-sizes 4 --capacities 100 --num-steps 1 3 --steps 3 --rounds 2 --full --out"
    monkeypatch.setattr(sys, "argv", ["step_cost.py", *flags.split(), str(out)])
    full: list[bitflip.Config] = []

    def filled(config: bitflip.Config, key: jax.Array) -> bitflip.Loop:
        full.append(config)
        return bitflip.start(config, key)  # Which compiles sooner. The real one is tested above.

    monkeypatch.setattr(step_cost, "filled", filled)
    step_cost.main()
    assert len(full) == 1 + 2 * 2 + 4 + 5, "with --full every program starts from a full buffer"
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 1 + 2 * 2
    assert sum(row["over_first"] == [1.0, 1.0, 1.0] for row in found["rows"]) == 3, "the floor, and one of each kind"
    assert {row["over_floor"][0] for row in found["rows"] if row["replay"] == "floor"} == {1.0}
    assert all(row["microseconds_per_seed"] > 0 for row in found["rows"])
    assert [row["operation"] for row in found["shares"]] == [*step_cost.OPERATIONS[:3], *step_cost.OPERATIONS]


def test_scaling_plots_every_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each point of each axis and kind of replay, and a plot."""
    small = scaling.Point(copies=100, episode_length=5, num_goals=1, observation=(12,))
    images = dataclasses.replace(small, observation=(4, 4, 1))
    axes = {"num_goals": (dataclasses.replace(small, num_goals=0), small), "observation": (small, images)}
    monkeypatch.setattr(scaling, "AXES", axes)
    out = tmp_path / "scaling.json"
    flags = "--axes num_goals observation --steps 3 --rounds 2 --batch-size 4 --out"
    monkeypatch.setattr(sys, "argv", ["scaling.py", *flags.split(), str(out)])
    scaling.main()
    rows = json.loads(out.read_text())["rows"]
    assert [(row["axis"], row["replay"]) for row in rows[:4]] == [("num_goals", "uniform")] * 2 + [
        ("num_goals", "prioritised")
    ] * 2
    assert len(rows) == 8
    assert (tmp_path / "scaling.png").stat().st_size > 1000


def test_every_call_of_many_environments_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call has a row in both settings; bytes are counted."""
    monkeypatch.setattr(environments, "flashbax_bytes", lambda *_: 1000)
    monkeypatch.setattr(environments, "CALLS", 3)
    out = tmp_path / "environments.json"
    flags = "--num-envs 8 --episode-length 5 --capacity 160 --few 2 --batch-size 4 --rounds 1 --out"
    monkeypatch.setattr(sys, "argv", ["environments.py", *flags.split(), str(out)])
    environments.main()
    found = json.loads(out.read_text())
    calls = ["add", "end_episode, none ends", "sample", "end_episode, 2 end", "end_episode, all end"]
    assert [row["call"] for row in found["calls"][:5]] == calls
    assert len(found["calls"]) == 2 * (5 + 6)
    assert all(row["microseconds"][0] > 0 for row in found["calls"])
    assert [row["ratio"] for row in found["bytes"]] == [row["bytes"] / 1000 for row in found["bytes"]]


def test_as_many_episodes_end_as_the_row_says() -> None:
    """Nothing ends where none does; a few end in each call, of other environments; where all do none is left running."""
    settings = environments.Settings(num_envs=8, episode_length=5, capacity=160, few=2, batch_size=4)
    calls = environments.Calls(settings, "episode_end", prioritized=False)
    calls.run("add", 5, 0)
    running = []
    for name, number in (("none ends", 3), ("2 end", 1), ("2 end", 4), ("all end", 1)):
        calls.run(f"end_episode, {name}", number, 0)
        running.append(int(np.count_nonzero(calls.state.pending)))
    assert running == [8, 6, 0, 0]
    for number in range(2):
        calls.round(number)
    assert herjax.size(calls.state) == settings.capacity, "full before the timing starts"


def test_every_part_of_a_host_loop_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of a cycle add up; every way to store and to draw has a row, beside herjax's with one call."""
    pytest.importorskip("gymnasium_robotics")
    import host_loop  # noqa: PLC0415 - imports what is skipped where it is missing.

    out = tmp_path / "host_loop.json"
    agent = "--training.num-envs 2 --training.updates 2 --training.batch-size 4 --training.hidden 8 --training.capacity 1000"
    monkeypatch.setattr(sys, "argv", ["host_loop.py", *agent.split(), "--rounds", "1", "--fill", "1", "--out", str(out)])
    host_loop.main()
    rows = json.loads(out.read_text())["rows"]
    parts, cycle = rows[: len(host_loop.CYCLE)], rows[len(host_loop.CYCLE)]
    assert cycle["what"] == "cycle"
    assert sum(row["milliseconds"][0] for row in parts) == pytest.approx(cycle["milliseconds"][0])
    assert all(row["milliseconds"][0] > 0 for row in rows)
    compared = {row["system"] for row in rows if row["over_herjax"]}
    assert {host_loop.HERJAX, host_loop.HERJAX_CALLS} < compared
    assert compared.issuperset(host_loop.PEERS) == (importlib.util.find_spec("stable_baselines3") is not None)


def test_contrastive_batches_are_of_the_same_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a step's transitions are drawn, with goals of their own episode, later ones mostly; and there are figures."""
    settings = contrastive.Settings(num_envs=4, episode_length=10, inserted=5, observation=2, action=1)
    program = contrastive.herjax_program(settings)
    buffer = program.start()
    for first in range(0, 20, 5):
        steps, envs = jnp.meshgrid(first + jnp.arange(5.0), jnp.arange(4.0), indexing="ij")
        experience = contrastive.Experience(jnp.stack([steps, envs], axis=-1), steps[..., None])
        buffer = jax.jit(program.store)(buffer, experience, jnp.int32(first), jax.random.key(first))
    assert herjax.size(buffer) == 4 * 10 * 2
    batch = herjax.sample(buffer, jax.random.key(1), settings.draws, hindsight_ratio=1.0)
    (now, env), (then, goal_env) = batch.transition.observation.T, batch.goal.observation.T
    np.testing.assert_array_equal(env, goal_env)
    np.testing.assert_array_equal(now // 10, then // 10)
    assert (then >= now).all()
    assert (then > now).any()
    flags = "--num-envs 3 --episode-length 8 --inserted 4 --rounds 2 --out"
    monkeypatch.setattr(sys, "argv", ["contrastive.py", *flags.split(), str(tmp_path / "found.json")])
    contrastive.main()
    assert json.loads((tmp_path / "found.json").read_text())["rows"]["herjax"]["seconds"] > 0


def test_observations_stored_once_take_hardly_more_than_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `next_of`, at most 1.1 times the least, of vectors and of images; pairs of images take twice as much."""
    monkeypatch.setattr(sys, "argv", ["memory.py", "--out", str(tmp_path / "found.json")])
    memory.main()
    found = json.loads((tmp_path / "found.json").read_text())
    over = {system: {name: size / found["least"][name] for name, size in row.items()} for system, row in found["rows"].items()}
    for system in ("herjax, next_of", "the same, sample_running"):
        assert over[system].keys() == memory.KINDS.keys()
        assert all(1 <= ratio <= 1.1 for ratio in over[system].values())
    assert over["herjax, pairs"]["84x84x4 bytes"] > 1.9
    assert "the least" in capsys.readouterr().out


def test_every_call_from_python_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each system: an environment step is the calls that it makes, and its share of an episode's end."""
    out = tmp_path / "calls.json"
    flags = "--steps 250 --episode-length 5 --capacity 100 --out"
    monkeypatch.setattr(sys, "argv", ["python_calls.py", *flags.split(), str(out)])
    python_calls.main()
    rows = json.loads(out.read_text())["microseconds"]
    peers = {"cpprb": "cpprb", "Stable-Baselines3": "stable_baselines3"}
    installed = {system for system, package in peers.items() if importlib.util.find_spec(package) is not None}
    assert set(rows) == {"herjax", "herjax, in one", "JAX alone"} | installed
    herjax_row = rows["herjax"]
    each_step = sum(herjax_row[name] for name in ("add", "sample", "update_priorities"))
    assert herjax_row["one step"] == pytest.approx(each_step + herjax_row["end_episode"] / 5)
    assert rows["herjax, in one"]["one step"] == rows["herjax, in one"]["all four"] > rows["JAX alone"]["a call"] > 0


@pytest.mark.parametrize(
    ("make", "last"), [(python_calls.herjax_step, "update_priorities"), (python_calls.herjax_in_one, "all four")]
)
def test_calls_from_python_end_episodes_and_update_what_they_draw(
    make: Callable[[bitflip.Config], Callable[..., None]], last: str
) -> None:
    """After twelve steps, in episodes of five, two episodes are held, and each step has drawn a batch and updated it."""
    config = dataclasses.replace(CONFIG, batch_size=4)
    transitions = jax.device_get(jax.vmap(partial(python_calls.transition_at, config))(jnp.arange(12)))
    calls, states = [], []

    def timed(name: str, function: Callable[..., object], *arguments: object) -> object:
        result = function(*arguments)
        calls.append(name)
        if name == last:
            states.append(jax.tree.map(jnp.copy, result[0] if name == "all four" else result))
        return result

    step = make(config)
    for number in range(12):
        step(timed, number, jax.tree.map(lambda leaf, number=number: leaf[number], transitions), done=number % 5 == 4)
    assert calls.count(last) == 12
    assert last == "all four" or (calls.count("sample"), calls.count("end_episode")) == (12, 2)
    assert [int(herjax.size(state)) for state in states] == [0] * 4 + [5] * 5 + [10] * 3
    drawn = herjax.sample(states[-1], jax.random.key(0), 1000)
    assert len(set(drawn.probabilities.tolist())) > 2, "priorities differ"
    assert int(jnp.sum(states[-1].num_dropped)) == 0
