"""What a step costs to compile and to run: one trace, nothing copied, no key used twice."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax
from any_jax import enable_x64, needs_explicit_axes, needs_meshes
from numbered import goal, make_of_fields, transition

CAPACITY = 50_000
STEPS = 120  # The rings of 40 below turn round three times.


def make(priority_exponent: float | None, **options: object) -> herjax.BufferState:
    defaults = {"capacity": CAPACITY, "max_episode_length": 10, "num_goals": 2}
    return make_of_fields(**(defaults | {"priority_exponent": priority_exponent} | options))


def step(buffer: herjax.BufferState, key: jax.Array) -> tuple[herjax.BufferState, herjax.Sample]:
    """One step of a training loop that needs no agent: a random transition, and its reward as the TD error."""
    key_number, key_done, key_goals, key_sample = jax.random.split(key, 4)
    axis = () if buffer.config.num_envs is None else (buffer.config.num_envs,)
    number = jax.random.randint(key_number, axis, 0, 1000)
    encode = jax.vmap if axis else lambda function: function
    buffer = herjax.add(buffer, encode(transition)(number))
    done = jax.random.bernoulli(key_done, 0.2, axis)
    buffer = herjax.end_episode(buffer, encode(goal)(-1 - number), key_goals, done=done)
    batch = herjax.sample(buffer, key_sample, 16, beta=0.5)
    if buffer.tree is not None:
        buffer = herjax.update_priorities(buffer, batch.indices, jnp.abs(batch.reward))
    return buffer, batch


class Observed(NamedTuple):
    """All that a user can observe of a run: what the unused rows of a state hold is no one's business."""

    batches: herjax.Sample
    size: jax.Array
    priorities: jax.Array | None
    pending: jax.Array


def observe(buffer: herjax.BufferState, batches: herjax.Sample) -> Observed:
    return Observed(batches, herjax.size(buffer), None if buffer.tree is None else buffer.tree[0], buffer.pending)


@jax.jit
def run(key: jax.Array, buffer: herjax.BufferState) -> tuple[herjax.BufferState, herjax.Sample]:
    return jax.lax.scan(step, buffer, jax.random.split(key, STEPS))


run_each = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (0, None)))


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "future", "priority_exponent": None},
        {"strategy": "future"},
        {"strategy": "random"},
        {"strategy": "future", "relabel": "sample"},
        {"strategy": "episode", "relabel": "sample", "num_envs": 2},
    ],
    ids=str,
)
def test_eager_jitted_scanned_and_vmapped_agree(options: dict[str, object], key: jax.Array) -> None:
    """The same keys give the same batches and states, call by call or in one compiled scan, alone or vmapped."""
    buffer = make(**({"priority_exponent": 0.6, "capacity": 40} | options))
    keys = jax.random.split(key, 3)
    scanned = [observe(*run(key, buffer)) for key in keys]

    eager, batches = buffer, []
    for step_key in jax.random.split(keys[0], STEPS):
        eager, batch = step(eager, step_key)
        batches.append(batch)
    chex.assert_trees_all_close(
        observe(eager, jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)), scanned[0], rtol=1e-6
    )

    nested = jax.vmap(jax.vmap(observe))(*run_each(keys[:, None], buffer))
    for lane, alone in enumerate(scanned):
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=lane: leaf[i, 0], nested), alone, rtol=1e-6)
    assert not np.array_equal(scanned[0].batches.indices, scanned[1].batches.indices), "other keys, other batches"


@pytest.mark.parametrize(
    "options",
    [{}, {"strategy": "random"}, {"priority_exponent": None}, {"relabel": "sample", "strategy": "episode", "num_envs": 2}],
    ids=str,
)
def test_a_vmapped_buffer_is_the_buffer_alone_bit_for_bit(options: dict[str, object], key: jax.Array) -> None:
    """Over 120 steps, episodes ending at other times in each lane: all batches and all arrays of the state, unused rows too."""
    buffer = make(**({"priority_exponent": 0.6, "capacity": 40} | options))
    keys = jax.random.split(key, 3)
    together = run_each(keys[:, None], buffer)
    for lane, lane_key in enumerate(keys):
        alone = run(lane_key, buffer)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda leaf, i=lane: leaf[i, 0], together), alone)


def test_each_function_is_traced_once(key: jax.Array) -> None:
    """Many steps with states, keys and goals that differ trace every function one time."""
    traces = dict.fromkeys(["add", "end_episode", "sample", "update_priorities"], 0)

    def counted(name: str, *args: jax.Array) -> herjax.BufferState | herjax.Sample:
        traces[name] += 1
        return getattr(herjax, name)(*args)

    calls = {name: jax.jit(partial(counted, name), static_argnums=2 if name == "sample" else ()) for name in traces}
    buffer = make(0.6)
    for index, step_key in enumerate(jax.random.split(key, 30)):
        buffer = calls["add"](buffer, transition(index))
        buffer = calls["end_episode"](buffer, goal(index), step_key, jnp.asarray(index % 3 == 2))
        batch = calls["sample"](buffer, step_key, 8)
        buffer = calls["update_priorities"](buffer, batch.indices, jnp.full(8, index, jnp.float32))
    assert traces == dict.fromkeys(traces, 1)


@pytest.mark.parametrize("capacity", [10, 1000, 50_000])
@pytest.mark.parametrize("num_goals", [0, 4])
@pytest.mark.parametrize("priority_exponent", [None, 0.6])
@pytest.mark.parametrize("relabel", ["episode_end", "sample", "sample, looking back"])
def test_bytes_allocated_are_those_of_the_guide(
    relabel: str, priority_exponent: float | None, num_goals: int, capacity: int
) -> None:
    """The compiled `init` allocates what the formulas of the guide to memory say, to within 2 percent or 400 bytes."""

    def halves(transition: dict[str, jax.Array]) -> jax.Array:
        return transition["half"]

    transition = {"image": jnp.zeros((7, 5), jnp.uint8), "half": jnp.zeros(6, jnp.bfloat16), "done": jnp.zeros((), bool)}
    length = 10

    def init() -> herjax.BufferState:
        return herjax.init(
            transition,
            capacity=capacity,
            max_episode_length=length,
            goal_fn=halves,
            reward_fn=lambda transition, goal: jnp.sum((halves(transition) - goal).astype(jnp.float32)),
            num_goals=num_goals,
            relabel=relabel.split(",", maxsplit=1)[0],
            strategy="episode" if "back" in relabel else "future",
            priority_exponent=priority_exponent,
        )

    a_transition, a_goal = 36 + 12 + 4, 12  # Leaves are rounded up to 4 bytes.
    if relabel == "episode_end":
        rows, indices = capacity, capacity * (1 + num_goals)
        formula = rows * (a_transition + 4) + indices * (a_goal + 4)
    else:
        rows = indices = capacity + (length if "back" in relabel and num_goals > 0 else 0)
        formula = rows * (a_transition + a_goal + 4)
    if priority_exponent is not None:
        formula += indices * 4 * 8 / 7
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(init()))
    assert abs(held - formula) < max(0.02 * formula, 400)
    allocated = jax.jit(init).lower().compile().memory_analysis().output_size_in_bytes
    assert abs(allocated - formula) < max(0.02 * formula, 400)


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
@pytest.mark.parametrize("strategy", ["future", "random", herjax.geometric(0.9)])
def test_no_key_is_used_twice(strategy: str, relabel: str, key: jax.Array) -> None:
    """The key-reuse checker finds nothing in the whole loop (under `vmap` it objects to any scan over split keys)."""
    with jax.debug_key_reuse(True):
        run.trace(key, make(0.6, capacity=40, strategy=strategy, relabel=relabel))
        with pytest.raises(jax.errors.KeyReuseError):  # It would, if there were anything to find.
            jax.jit(lambda key: jax.random.bits(key) + jax.random.bits(key)).trace(key)


def test_64_bit_mode_changes_nothing_but_the_users_leaves(key: jax.Array) -> None:
    """With `jax_enable_x64` a 64-bit leaf keeps every bit, and everything that is herjax's own stays 32-bit."""
    with enable_x64(True):
        number = jnp.int64(2**40 + 1)
        buffer = herjax.init(
            number,
            capacity=7,
            max_episode_length=5,
            goal_fn=lambda transition: transition,
            reward_fn=lambda transition, goal: (transition - goal).astype(jnp.float64),
            num_goals=2,
            priority_exponent=0.6,
        )

        def step(buffer: herjax.BufferState, key: jax.Array) -> tuple[herjax.BufferState, herjax.Sample]:
            key_goals, key_sample = jax.random.split(key)
            buffer = herjax.end_episode(herjax.add(buffer, number), jnp.int64(1), key_goals, buffer.pending[0] == 3)
            batch = herjax.sample(buffer, key_sample, 8)
            return herjax.update_priorities(buffer, batch.indices, jnp.abs(batch.reward)), batch

        buffer, batches = jax.jit(lambda buffer: jax.lax.scan(step, buffer, jax.random.split(key, 20)))(buffer)
        assert set(np.unique(batches.transition[5:])) == {2**40 + 1}
        assert set(np.unique(batches.reward[5:])) == {0.0, 2.0**40}
        assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer)} == {4}
        wide = herjax.update_priorities(buffer, jnp.int64(2**32) + batches.indices[-1].astype(jnp.int64), jnp.full(8, 9.0))
        assert wide.num_rejected == buffer.num_rejected + 8, "an index past int32 names nothing"
        chex.assert_trees_all_equal(wide.tree, buffer.tree)
        assert batches.weights.dtype == batches.probabilities.dtype == jnp.float32
        assert batches.indices.dtype == jnp.int32


@needs_meshes
def test_shard_map_over_devices_equals_each_alone(key: jax.Array) -> None:
    """Under `shard_map`, one buffer a device, each device's run is the run of its own key."""
    mesh = jax.make_mesh((1,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("seed")

    def one(keys: jax.Array) -> jax.Array:
        buffer = jax.lax.pcast(make(0.6, capacity=40), "seed", to="varying")
        return run(keys[0], buffer)[1].indices[None]

    keys = jax.random.split(key, 1)
    sharded = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec))(keys)
    np.testing.assert_array_equal(sharded[0], run(keys[0], make(0.6, capacity=40))[1].indices)


MESHED = [{}, {"num_envs": 2}, {"relabel": "sample"}, {"relabel": "sample", "strategy": "episode", "num_envs": 2}]
MESHED += [{"num_steps": 3, "discount": 0.5}, {"relabel": "sample", "num_steps": 3, "discount": 0.5}]


@pytest.fixture(scope="module")
def without_mesh() -> list[jax.Array]:
    """What is drawn without a mesh, of all of `MESHED`: beside one, nothing of what is compiled here can be used."""
    keys = jax.random.split(jax.random.key(0), 3)
    return [run_each(keys[:, None], make(0.6, capacity=40, **options))[1].indices[:, 0] for options in MESHED]


@needs_explicit_axes
@pytest.mark.parametrize("setting", range(len(MESHED)))
def test_seeds_on_an_explicit_mesh_are_those_of_vmap_alone(setting: int, without_mesh: list[jax.Array], key: jax.Array) -> None:
    """With keys shared out over an Explicit axis, `jit(vmap)` gives what it gives without a mesh, and keeps the axis."""

    def train(key: jax.Array) -> jax.Array:
        buffer = make(0.6, capacity=40, **MESHED[setting])
        return jax.lax.scan(step, buffer, jax.random.split(key, STEPS))[1].indices

    jax.clear_caches()  # JAX keeps what it traced without the mesh.
    mesh = jax.make_mesh((1,), ("seed",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        keys = jax.device_put(jax.random.split(key, 3), jax.NamedSharding(mesh, jax.P("seed")))
        sharded = jax.jit(jax.vmap(train))(keys)
        assert jax.typeof(sharded).sharding.spec[0] == "seed"
    np.testing.assert_array_equal(sharded, without_mesh[setting])


@pytest.mark.parametrize("values", ["batch", "key", "nothing", "odd"])
def test_after_changes_nothing(values: str, key: jax.Array) -> None:
    """Whatever the values are, NaN and keys too, the state is the same bit for bit, jitted, vmapped and outright."""
    buffer = jax.lax.scan(step, make(0.6, capacity=40), jax.random.split(key, 20))[0]
    given = {
        "batch": herjax.sample(buffer, key, 8),
        "key": key,
        "nothing": (None, jnp.zeros((0, 3))),
        "odd": [jnp.nan, np.int64(-3), True, 1j, jnp.full(3, -jnp.inf, jnp.bfloat16)],
    }[values]
    for after in (herjax.after, jax.jit(herjax.after)):
        chex.assert_trees_all_equal(after(buffer, given), buffer)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), buffer)
    chex.assert_trees_all_equal(jax.vmap(herjax.after, (0, None))(many, given), many)


def test_sharded_probabilities_are_those_of_the_whole(key: jax.Array) -> None:
    """With `axis_name`, probabilities are over the sum of all shards and the largest weight of any shard is 1."""

    def shard(key: jax.Array, priority: jax.Array) -> tuple[herjax.Sample, herjax.Sample]:
        buffer = make(1.0, capacity=40)
        for index in range(4):
            buffer = herjax.add(buffer, transition(index))
        buffer = herjax.end_episode(buffer, goal(-1), key)
        buffer = herjax.update_priorities(buffer, jnp.arange(12), jnp.broadcast_to(priority, 12))
        return herjax.sample(buffer, key, 12, beta=1.0, axis_name="shard"), herjax.sample(buffer, key, 12, beta=1.0)

    priorities = jnp.asarray([1.0, 3.0])
    whole, alone = jax.vmap(shard, axis_name="shard")(jax.random.split(key, 2), priorities)
    np.testing.assert_allclose(alone.probabilities, np.full((2, 12), 1 / 12), rtol=1e-5)
    np.testing.assert_allclose(whole.probabilities, np.repeat([[1 / 48], [3 / 48]], 12, axis=1), rtol=1e-5)
    np.testing.assert_allclose(whole.weights, np.repeat([[1.0], [1 / 3]], 12, axis=1), rtol=1e-5)
    np.testing.assert_allclose(alone.weights, np.ones((2, 12)), rtol=1e-5)


@pytest.mark.parametrize(
    "ready", [[[True, True], [True, True]], [[True, False], [True, True]], [[False, False], [False, False]]]
)
def test_in_all_runs_is_the_same_in_all(ready: list[list[bool]]) -> None:
    """True where all are, through nested vmaps, jit, scan and gradients; of a bool of Python or NumPy, that bool."""
    runs = jnp.array(ready)

    def choose(ready: jax.Array, value: jax.Array) -> jax.Array:
        def step(value: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.cond(herjax.in_all_runs(ready), lambda value: 2 * value, lambda value: 3 * value, value), None

        return jax.lax.scan(step, value, None, length=2)[0]

    expected = np.full((2, 2), 4.0 if all(map(all, ready)) else 9.0)
    for function in (choose, jax.grad(choose, argnums=1)):
        np.testing.assert_array_equal(jax.jit(jax.vmap(jax.vmap(function)))(runs, jnp.ones((2, 2))), expected)
    for one in (ready[0][0], np.bool_(ready[0][0]), runs[0, 0]):
        assert bool(herjax.in_all_runs(one)) == ready[0][0]


def test_a_conditional_on_in_all_runs_stays_one() -> None:
    """Under vmap, of the same conditional on the condition itself nothing is left but a select."""

    def choose(ready: jax.Array, value: jax.Array, *, same: bool) -> jax.Array:
        condition = herjax.in_all_runs(ready) if same else ready
        return jax.lax.cond(condition, lambda value: jnp.sin(value), lambda value: jnp.cos(value), value)  # noqa: PLW0108

    for same in (True, False):
        jaxpr = jax.make_jaxpr(jax.vmap(partial(choose, same=same)))(jnp.array([True, False]), jnp.ones(2))
        assert ("cond[" in str(jaxpr)) == same


@pytest.mark.parametrize("condition", [jnp.zeros(2, bool), jnp.int32(1), 1.0, "ready", None])
def test_in_all_runs_names_a_condition_that_is_none(condition: object) -> None:
    """One bool, or an error that says so."""
    with pytest.raises((TypeError, ValueError), match="condition"):
        herjax.in_all_runs(condition)
