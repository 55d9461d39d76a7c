"""Buffers sharded over eight devices, and the script that trains on them.

JAX settles on its devices once, so a process of its own, with eight of the CPU, runs all of these tests together.
"""

import dataclasses
import functools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflip
import herjax
import multi_device
from multi_device import AXIS

DEVICES = 8
BATCH_SIZE = 16
BETA = 0.5
SPEC = jax.sharding.PartitionSpec(AXIS)
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES)}

TINY_FLAGS = (
    "--num-bits 3 --steps 20 --eval-every 10 --capacity 20 --max-episode-length 4 --num-envs 2 --hidden 8 --batch-size 8"
)
TINY = multi_device.Config(
    num_bits=3, steps=20, eval_every=10, capacity=20, max_episode_length=4, num_envs=2, hidden=(8,), batch_size=8
)


@functools.cache
def report_from_eight_devices() -> str:
    """What pytest reports of this file where there are eight devices."""
    # With -P, `-m` does not put the working folder first on the path: PYTHONPATH alone says which herjax is under test.
    command = [sys.executable, "-P", "-m", "pytest", __file__, "-q", "-rA", "-p", "no:cacheprovider"]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(herjax.__file__).parents[1])}
    root = Path(__file__).parents[2]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False, timeout=600).stdout


def on_eight_devices(test: Callable[..., None]) -> Callable[..., None]:
    """Runs the test here if here are eight devices, else with the others in the process that has them."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        if os.environ.get("JAX_NUM_CPU_DEVICES") == str(DEVICES):
            test(*args, **kwargs)
            return
        name = os.environ["PYTEST_CURRENT_TEST"].split("::")[1].removesuffix(" (call)")
        report = report_from_eight_devices()
        if not re.search(rf"^PASSED \S*::{re.escape(name)}$", report, re.MULTILINE):
            pytest.fail(report, pytrace=False)

    return run


class Transition(NamedTuple):
    """A transition every leaf of which says which one it is."""

    name: jax.Array  # int32 []; 1000 device + 100 environment + step.
    observation: jax.Array  # float32 [3], the same.


class Data(NamedTuple):
    """What one step of a shard is fed with."""

    transition: Transition  # [n, ...]
    done: jax.Array  # bool [n]
    key: jax.Array


class Drawn(NamedTuple):
    """A batch, and what NumPy needs to weigh it."""

    batch: herjax.Sample
    priorities: jax.Array  # float32 [indices]; all the priorities stored.
    copies: jax.Array  # int32 []; copies held.


NUM_ENVS, MAX_LENGTH, STEPS = 2, 6, 60


def reward_fn(transition: Transition, goal: jax.Array) -> jax.Array:
    return transition.observation[0] - goal[0] / 2


def make(priority_exponent: float | None = 0.6, relabel: str = "episode_end", **more: Any) -> herjax.BufferState:
    return herjax.init(
        Transition(jnp.int32(0), jnp.zeros(3)),
        capacity=20 * NUM_ENVS,
        max_episode_length=MAX_LENGTH,
        goal_fn=lambda transition: transition.observation[:2],
        reward_fn=reward_fn,
        num_goals=2,
        priority_exponent=priority_exponent,
        relabel=relabel,
        **{"num_envs": NUM_ENVS, **more},
    )


def named(name: jax.Array) -> Transition:
    """Transitions of each name, int32 [...]."""
    return Transition(name, jnp.broadcast_to(name[..., None], (*name.shape, 3)).astype(jnp.float32))


def data_of_all_shards(key: jax.Array) -> Data:
    """Every field is [DEVICES, STEPS, ...]; episodes are the shorter the higher the device's number, and none is too long."""
    device, step, env = np.ogrid[:DEVICES, :STEPS, :NUM_ENVS]
    done = (step + 2 * env) % (2 + (DEVICES - device) // 2) == 0
    keys = jax.random.split(key, (DEVICES, STEPS))
    return Data(named(jnp.asarray(1000 * device + 100 * env + step, jnp.int32)), jnp.asarray(done & (step > 0)), keys)


def step(axis_name: str | None, buffer: herjax.BufferState, data: Data) -> tuple[herjax.BufferState, Drawn]:
    """A step of a training loop that needs no agent: a TD error is the device's number and the step's last digit."""
    key_goals, key_sample = jax.random.split(data.key)
    buffer = herjax.add(buffer, data.transition)
    buffer = herjax.end_episode(buffer, -data.transition.observation[:, :2], key_goals, data.done)
    batch = herjax.sample(buffer, key_sample, BATCH_SIZE, beta=BETA, axis_name=axis_name)
    drawn = Drawn(batch, jnp.zeros(0), herjax.size(buffer) * buffer.config.num_copies)
    if buffer.tree is not None:
        drawn = drawn._replace(priorities=buffer.tree[0])
        errors = batch.transition.name // 1000 + batch.transition.name % 10
        buffer = herjax.update_priorities(buffer, batch.indices, errors.astype(jnp.float32))
    return buffer, drawn


def on_each_shard(shard: Callable[..., Any]) -> Callable[..., Any]:
    """Maps `shard` over the devices: arguments and results have a leading axis of DEVICES."""

    def one(*args: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], shard(*jax.tree.map(lambda leaf: leaf[0], args)))

    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), (AXIS,))
    return jax.jit(jax.shard_map(one, mesh=mesh, in_specs=SPEC, out_specs=SPEC))


def varying(buffer: herjax.BufferState) -> herjax.BufferState:
    return jax.lax.pcast(buffer, AXIS, to="varying")


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
@on_eight_devices
def test_shards_are_buffers_of_their_own_weighed_as_one(relabel: str, key: jax.Array) -> None:
    """Each shard holds and draws, bit for bit, what it would alone; probabilities and weights are NumPy's over all shards."""
    data = data_of_all_shards(key)
    empty = make(relabel=relabel)
    sharded = on_each_shard(lambda data: jax.lax.scan(partial(step, AXIS), varying(empty), data))(data)
    alone = jax.jit(lambda data: jax.lax.scan(partial(step, None), empty, data))
    shards = [alone(jax.tree.map(lambda leaf, i=device: leaf[i], data)) for device in range(DEVICES)]
    state, drawn = jax.tree.map(lambda *leaves: np.stack(leaves), *shards)

    def unweighed(drawn: Drawn) -> Drawn:
        return drawn._replace(batch=drawn.batch._replace(probabilities=None, weights=None))

    chex.assert_trees_all_equal(sharded[0], state)
    chex.assert_trees_all_equal(unweighed(sharded[1]), unweighed(drawn))

    can_sample = drawn.copies > 0
    assert np.any(can_sample.any(axis=0) & ~can_sample.all(axis=0)), "there is a time when only some shards are empty"
    assert np.any(state.head != state.held), "rows were written again"
    mass = drawn.priorities.sum(axis=(0, 2), dtype=np.float64)[:, None]
    priorities = np.take_along_axis(drawn.priorities, drawn.batch.indices, axis=2)
    probabilities = np.divide(priorities, mass, out=np.zeros(priorities.shape), where=mass > 0)
    scaled = drawn.copies.sum(axis=0)[:, None] * probabilities
    weights = np.power(scaled, -BETA, out=np.zeros(scaled.shape), where=scaled > 0)
    largest = weights.max(axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(sharded[1].batch.probabilities, probabilities, rtol=1e-5)
    np.testing.assert_allclose(sharded[1].batch.weights, weights / np.where(largest > 0, largest, 1), rtol=1e-5)
    assert np.abs(sharded[1].batch.weights - drawn.batch.weights).max() > 0.1, "alone, a shard weighs otherwise"


@on_eight_devices
def test_uniform_shards_are_drawn_from_as_one(key: jax.Array) -> None:
    """Uniform shards draw what they would alone, each copy with probability 1 / (copies of all shards), and weight 1."""
    data = data_of_all_shards(key)
    sharded = on_each_shard(lambda data: jax.lax.scan(partial(step, AXIS), varying(make(None)), data)[1])(data)
    alone = jax.jit(jax.vmap(lambda data: jax.lax.scan(partial(step, None), make(None), data)[1]))(data)
    np.testing.assert_array_equal(sharded.batch.transition.name, alone.batch.transition.name)
    can_sample = np.asarray(alone.copies)[..., None] > 0
    expected = can_sample / np.maximum(alone.copies.sum(axis=0), 1)[:, None]
    np.testing.assert_allclose(
        sharded.batch.probabilities, np.broadcast_to(expected, (*expected.shape[:2], BATCH_SIZE)), rtol=1e-6
    )
    np.testing.assert_array_equal(sharded.batch.weights, np.broadcast_to(can_sample, sharded.batch.weights.shape))


@pytest.mark.parametrize("axis_name", [None, AXIS])
@on_eight_devices
def test_new_copies_enter_with_the_largest_priority_of(axis_name: str | None) -> None:
    """New copies enter with the largest priority accepted so far: of any device with `axis_name`, else of their own."""
    priorities = np.random.default_rng(0).uniform(0, 20, (DEVICES, 10)).astype(np.float32)
    rejected = np.full_like(priorities, np.inf)
    rejected[::2] = 1000  # Accepted, but for the index that holds nothing.
    rejected[1::3] = np.nan

    def enter_and_update(buffer: herjax.BufferState, given: tuple[jax.Array, ...]) -> tuple[herjax.BufferState, jax.Array]:
        row, accepted, rejected = given
        buffer = herjax.add(buffer, named(row))
        buffer = herjax.end_episode(buffer, jnp.zeros(2), jax.random.key(0))
        entered = jax.lax.dynamic_slice(buffer.tree[0], (row * 3,), (3,))
        indices, priorities = jnp.stack([row * 3, jnp.int32(59)]), jnp.stack([accepted, rejected])
        return herjax.update_priorities(buffer, indices, priorities, axis_name=axis_name), entered

    def shard(accepted: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array]:
        buffer = make(1.0, num_envs=None, priority_epsilon=0.0)
        given = (jnp.arange(10, dtype=jnp.int32), accepted, rejected)
        buffer, entered = jax.lax.scan(enter_and_update, varying(buffer), given)
        return buffer.num_rejected, entered

    num_rejected, entered = on_each_shard(shard)(priorities, rejected)
    so_far = np.maximum.accumulate(np.insert(priorities, 0, 1, axis=1), axis=1)[:, :10]
    if axis_name is not None:
        so_far = np.broadcast_to(so_far.max(axis=0), so_far.shape)
    np.testing.assert_allclose(entered, np.repeat(so_far[..., None], 3, axis=2), rtol=1e-6)
    np.testing.assert_array_equal(num_rejected, 10)


@pytest.mark.parametrize(
    ("priority_exponent", "axis_name", "scalars"),
    [
        (0.6, None, []),
        (None, None, []),
        (None, AXIS, ["f32[]"]),  # The copies held, over which each has its share.
        (0.6, AXIS, ["f32[]", "f32[]", "f32[]", "f32[]"]),  # The sum, largest weight and largest priority; the copies held.
    ],
)
@on_eight_devices
def test_only_what_is_asked_for_travels(
    priority_exponent: float | None, axis_name: str | None, scalars: list[str], key: jax.Array
) -> None:
    """A compiled step exchanges nothing without `axis_name`; with it, all-reduces of these scalars and nothing else."""

    def shard(buffer: herjax.BufferState, data: Data) -> herjax.BufferState:
        key_goals, key_sample = jax.random.split(data.key)
        buffer = herjax.add(buffer, data.transition)
        buffer = herjax.end_episode(buffer, data.transition.observation[:, :2], key_goals, data.done)
        batch = herjax.sample(buffer, key_sample, BATCH_SIZE, axis_name=axis_name)
        if priority_exponent is not None:
            buffer = herjax.update_priorities(buffer, batch.indices, jnp.abs(batch.reward), axis_name=axis_name)
        return buffer, batch, herjax.size(buffer), herjax.can_sample(buffer)

    buffers = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), make(priority_exponent))
    data = jax.tree.map(lambda leaf: leaf[:, 0], data_of_all_shards(key))
    text = on_each_shard(shard).lower(buffers, data).compile().as_text()
    lines = [line for line in text.splitlines() if multi_device.COLLECTIVE.search(line)]
    assert {multi_device.COLLECTIVE.search(line)[1] for line in lines} <= {"all-reduce"}
    # One all-reduce may take several operands: its type is then a tuple.
    types = [line.split(" = ")[1].split(" all-reduce")[0] for line in lines]
    assert sorted(re.findall(r"\w+\[[\d,]*\]", " ".join(types))) == scalars


@functools.cache
def tiny_training() -> jax.stages.Compiled:
    """The script's training at its tiniest, compiled once for all tests."""
    with jax.numpy_dtype_promotion("standard"):  # Optax promotes an integer step count.
        return multi_device.compile_training(TINY, jax.random.key(TINY.seed))


@on_eight_devices
def test_agents_of_all_devices_stay_the_same() -> None:
    """After training, every device holds the same bits of parameters, target and optimiser's state, and they have changed."""
    agent, _ = tiny_training()(jax.random.key(TINY.seed))
    for leaf in jax.tree.leaves(agent):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == DEVICES
        assert all(np.array_equal(copies[0], copy) for copy in copies)
    key_start, _ = jax.random.split(jax.random.key(TINY.seed))
    first = bitflip.start(TINY, jax.random.split(key_start)[0]).agent
    moved = jax.tree.map(lambda old, new: np.abs(old - new).max(), first.params, agent.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def unsharded(config: multi_device.Config, key: jax.Array) -> tuple[bitflip.Agent, jax.Array]:
    """The script's training without any device axis: buffers stacked, weighed here, and one update on all batches put together.

    Returns:
      The agent, and the losses of each step.
    """
    key_start, key_run = jax.random.split(key)
    key_agent, key_devices = jax.random.split(key_start)
    env, params = bitflip.make_env(config)
    env_keys = jax.vmap(lambda device: jax.random.split(jax.random.fold_in(key_devices, device), config.num_envs))(
        jnp.arange(DEVICES)
    )
    env_loop = jax.vmap(jax.vmap(env.reset, (0, None)), (0, None))(env_keys, params)
    buffers = jax.vmap(lambda _: bitflip.make_buffer(config, config.num_envs))(jnp.arange(DEVICES))
    loop = bitflip.Loop(bitflip.start(config, key_agent).agent, buffers, env_loop)

    def act_and_draw(loop: bitflip.Loop, key: jax.Array) -> tuple[bitflip.Loop, herjax.Sample, jax.Array]:
        key_act, key_goals, key_sample = jax.random.split(key, 3)
        act = jax.vmap(partial(bitflip.interact, config, loop.agent))
        env, transition, goal, done = act(loop.env, jax.random.split(key_act, (config.num_envs, 2)))
        buffer = herjax.end_episode(herjax.add(loop.buffer, transition), goal, key_goals, done)
        loop = loop._replace(buffer=buffer, env=env)
        batch = herjax.sample(buffer, key_sample, config.batch_size)
        return loop, batch, jnp.sum(buffer.tree[0])

    def step(loop: bitflip.Loop, xs: tuple[jax.Array, jax.Array]) -> tuple[bitflip.Loop, jax.Array]:
        number, keys = xs
        axes = bitflip.Loop(None, 0, 0)
        loop, batch, mass = jax.vmap(act_and_draw, (axes, 0), (axes, 0, 0))(loop, keys)
        copies = jnp.sum(jax.vmap(herjax.size)(loop.buffer)) * (1 + config.num_goals)
        scaled = batch.probabilities * mass[:, None] * copies / jnp.maximum(jnp.sum(mass), 1e-9)
        beta = config.beta + (1 - config.beta) * (number / config.steps)
        weights = jnp.where(scaled > 0, scaled**-beta, 0)
        batch = batch._replace(weights=weights / jnp.maximum(jnp.max(weights), 1e-9))
        together = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
        agent, errors, loss = bitflip.update(config, loop.agent, together)
        buffer = jax.vmap(herjax.update_priorities)(loop.buffer, batch.indices, jnp.abs(errors).reshape(DEVICES, -1))
        largest = jnp.broadcast_to(jnp.max(buffer.max_priority), DEVICES)
        return loop._replace(agent=agent, buffer=dataclasses.replace(buffer, max_priority=largest)), loss

    def keys_of(number: jax.Array, device: jax.Array) -> jax.Array:
        key_steps, _ = jax.random.split(jax.random.fold_in(key_run, number))
        return jax.random.split(jax.random.fold_in(key_steps, device), config.eval_every)

    numbers, devices = jnp.arange(config.evaluations), jnp.arange(DEVICES)
    step_keys = jax.vmap(jax.vmap(keys_of, (None, 0)), (0, None))(numbers, devices)  # [evaluations, DEVICES, eval_every]
    step_keys = jnp.moveaxis(step_keys, 1, 2).reshape(config.steps, DEVICES)
    loop, losses = jax.lax.scan(step, loop, (jnp.arange(config.steps), step_keys))
    return loop.agent, losses


@on_eight_devices
def test_training_is_that_of_one_buffer_on_one_device() -> None:
    """Agent and losses are, to rounding, those of a loop that knows no devices and learns from all batches put together."""
    key = jax.random.key(TINY.seed)
    agent, metrics = tiny_training()(key)
    with jax.numpy_dtype_promotion("standard"):
        expected, losses = jax.jit(partial(unsharded, TINY))(key)
    assert losses[-1] > 0
    np.testing.assert_allclose(metrics["loss"], losses.reshape(-1, TINY.eval_every).mean(axis=1), rtol=1e-4)
    leaves = (jax.tree.leaves(jax.device_get(each)) for each in (agent, expected))
    chex.assert_trees_all_close(*leaves, rtol=1e-3, atol=1e-5)


@on_eight_devices
def test_main_writes_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The script prints a table and writes results.json, with steps of all environments on all devices."""
    training = tiny_training()
    monkeypatch.setattr(multi_device, "compile_training", lambda *_: training)
    multi_device.main([*TINY_FLAGS.split(), "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["devices"] == DEVICES
    assert results["eval_steps"] == [10 * 2 * DEVICES, 20 * 2 * DEVICES]
    assert np.shape(results["success_rate"]) == np.shape(results["loss"]) == (1, 2)
    assert results["steps_per_second"] == pytest.approx(20 * 2 * DEVICES / results["seconds"])
    assert 1 <= results["collectives_per_update"] <= 5, "gradients, and at most one for each scalar of the replay"
    shown = capsys.readouterr().out
    assert "steps per second" in shown
    assert f"{20 * 2 * DEVICES}" in shown
    assert {name: results["config"][name] for name in ("num_envs", "capacity")} == {"num_envs": 2, "capacity": 20}


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        ("--num-envs 0", "--num-envs is 0; give at least 1."),
        ("--capacity 30 --num-envs 4", "capacity is 30, not a multiple of num_envs, which is 4; give a multiple of it."),
        ("--steps 15", "--steps is 15; give a multiple of --eval-every, 10."),
    ],
)
@on_eight_devices
def test_bad_flags_get_one_line_and_status_2(flags: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that cannot work is refused in one line that says what to give instead."""
    with pytest.raises(SystemExit) as exit_info:
        multi_device.main([*TINY_FLAGS.split(), *flags.split()])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.partition(": ")[2] == f"{remedy}\n"


@pytest.mark.parametrize(
    ("cluster", "remedy"),
    [
        ({"devices": 0}, "--devices is 0; give at least 1."),
        ({"num_processes": 2, "process_id": 2}, "--process-id is 2; give one from 0 to --num-processes - 1, 1."),
        ({"num_processes": 2}, "--num-processes is 2; give --coordinator too, or 1 process."),
    ],
)
def test_bad_clusters_get_one_line_and_status_2(
    cluster: dict[str, int], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Devices and processes that cannot be are refused, before JAX is told of them, in one line that says what to give."""
    with pytest.raises(SystemExit) as exit_info:
        multi_device.Cluster(**cluster).connect()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.partition(": ")[2] == f"{remedy}\n"


def start_script(out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, multi_device.__file__, *TINY_FLAGS.split(), "--out", str(out), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_find_what_two_devices_find(tmp_path: Path) -> None:
    """Two processes of one device each give the figures of one process of two, bit for bit; only process 0 says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cluster = ["--devices", "1", "--num-processes", "2", "--coordinator", f"127.0.0.1:{free.getsockname()[1]}"]
    outs = [tmp_path / name for name in ("first", "second", "alone")]
    pair = [start_script(out, *cluster, "--process-id", str(number)) for number, out in enumerate(outs[:2])]
    shown = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], shown
    assert "processes                         2" in shown[0][0]
    assert "success" not in shown[1][0]
    assert not outs[1].exists()
    alone = start_script(outs[2], "--devices", "2")
    assert "processes                         1" in alone.communicate(timeout=300)[0]
    two, one = (json.loads((out / "results.json").read_text()) for out in (outs[0], outs[2]))
    assert two["devices"] == one["devices"] == 2
    assert len(set(one["loss"][0])) == 2
    for figure in ("eval_steps", "success_rate", "loss", "collectives_per_update"):
        assert two[figure] == one[figure]
