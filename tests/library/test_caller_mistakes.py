"""What callers do without meaning harm: functions that are equal, numbers of NumPy, keys too many, gradients, checkify."""

import dataclasses
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import herjax
from any_jax import enable_x64
from numbered import make


@dataclasses.dataclass
class Model:
    """A reward model: equal to all others, whatever it returns; it has no hash."""

    value: float = dataclasses.field(compare=False)

    def __call__(self, number: jax.Array, goal: jax.Array) -> jax.Array:
        """The same reward for all."""
        del number, goal
        return jnp.float32(self.value)

    def method(self, number: jax.Array, goal: jax.Array) -> jax.Array:
        """The same as a method."""
        return self(number, goal)


@dataclasses.dataclass(frozen=True)
class Hashable:
    """The same with a hash."""

    value: float = dataclasses.field(compare=False)
    __call__ = Model.__call__


def ended(state: herjax.BufferState) -> herjax.BufferState:
    """With one episode of one step."""
    return herjax.end_episode(herjax.add(state, jnp.int32(0)), jnp.int32(-1), jax.random.key(0))


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
@pytest.mark.parametrize("make_reward", [Model, Hashable, lambda value: Model(value).method])
def test_functions_that_are_equal_are_two(relabel: str, make_reward: Callable[[float], Callable[..., jax.Array]]) -> None:
    """Each buffer has the rewards of its own function, though JAX keeps what it has compiled for an equal one."""
    for value in (1.0, 5.0):
        state = ended(make(reward_fn=make_reward(value), relabel=relabel))
        np.testing.assert_array_equal(herjax.sample(state, jax.random.key(0), 4).reward, value)


def test_a_bound_method_is_its_object_and_its_function() -> None:
    """Two of the same object are one, and compile once; those of equal objects are two. geometric compares by content."""
    one, other = Model(1.0), Model(1.0)
    assert make(reward_fn=one.method).config == make(reward_fn=one.method).config
    assert hash(make(reward_fn=one.method).config) == hash(make(reward_fn=one.method).config)
    assert make(reward_fn=one.method).config != make(reward_fn=other.method).config
    assert make(reward_fn=one).config != make(reward_fn=other).config
    assert make(strategy=herjax.geometric(0.5)).config == make(strategy=herjax.geometric(np.float64(0.5))).config
    assert make(strategy=herjax.geometric(0.5)).config != make(strategy=herjax.geometric(0.25)).config


def test_a_function_is_not_taken_for_the_strategy_of_its_name() -> None:
    """Of the name "final", a user's function has num_goals goals; the strategy "final" has one."""

    def final(key: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
        del key, step
        return length - 1

    final.__qualname__ = "final"
    assert make(strategy=final, num_goals=4).config.num_goals == 4
    assert make(strategy="final", num_goals=4).config.num_goals == 1


@pytest.mark.parametrize("x64", [False, True])
def test_numbers_of_numpy_become_pythons(x64: bool) -> None:
    """They compile nothing anew, and make nothing wider, with 64-bit numbers enabled too."""
    plain = {"capacity": 20, "max_episode_length": 5, "num_goals": 2, "num_envs": 2, "num_steps": 3}
    real = {"priority_exponent": 0.5, "priority_epsilon": 0.25, "discount": 0.5}
    with enable_x64(x64):
        state = make(**plain, **real)
        other = make(**{n: np.int64(v) for n, v in plain.items()}, **{n: np.float64(v) for n, v in real.items()})
        assert state.config == other.config
        assert {type(getattr(other.config, name)) for name in plain} == {int}
        assert {type(getattr(other.config, name)) for name in real} == {float}
        other = herjax.add(other, np.arange(2, dtype=np.int32))
        other = herjax.end_episode(other, np.arange(2, dtype=np.int32), jax.random.key(0))
        batch = herjax.sample(other, jax.random.key(0), np.int64(4), beta=np.float64(0.5))
        other = herjax.update_priorities(other, batch.indices, np.ones(4))
        assert batch.indices.shape == (4,)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(other)} == {"uint32", "int32", "float32"}
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(batch)} == {"int32", "float32", "bool"}


KEY = jax.random.key(0)
REFUSED = {
    "goal_fn, a name": (lambda: make(goal_fn="next"), TypeError, r"goal_fn is 'next'; give a function \(transition\)"),
    "reward_fn, a name": (lambda: make(reward_fn="sparse"), TypeError, "reward_fn is 'sparse'; give a function"),
    "reward_fn, of Gymnasium": (
        lambda: make(reward_fn=lambda achieved, desired, info: 0),  # noqa: ARG005
        TypeError,
        r"reward_fn is called as reward_fn\(transition, goal\), and takes \(achieved, desired, info\)",
    ),
    "terminated_fn, a number": (lambda: make(terminated_fn=1), TypeError, r"terminated_fn is 1; give a function"),
    "strategy, a number": (lambda: make(strategy=4), TypeError, r"strategy is 4; give a function \(key, step, length\)"),
    "strategy, of two": (lambda: make(strategy=lambda key, step: step), TypeError, "strategy is called as"),  # noqa: ARG005
    "capacity, a float": (lambda: make(capacity=16.0), TypeError, r"capacity is 16\.0; give an int >= 1"),
    "batch_size, an array": (lambda: herjax.sample(make(), KEY, jnp.int32(4)), TypeError, "batch_size is .*4.*; give an int"),
    "batch_size, a float": (lambda: herjax.sample(make(), KEY, 4.0), TypeError, r"batch_size is 4\.0; give an int"),
    "key, for each environment": (
        lambda: herjax.end_episode(
            make(num_envs=2), jnp.zeros(2, jnp.int32), jax.random.split(KEY, 2)
        ),
        ValueError,
        r"key has shape \(2,\); give one key, also for many",
    ),
    "keys, of numbers": (
        lambda: herjax.sample(make(), jax.random.split(jax.random.PRNGKey(0), 3), 4),
        ValueError,
        r"key has shape \(3, 2\); give one key",
    ),
    "key, floats": (lambda: herjax.sample(make(), jnp.zeros(2), 4), TypeError, "key has dtype float32; give a PRNG key"),
    "key, a seed": (
        lambda: herjax.end_episode(make(), jnp.int32(0), 3),
        TypeError,
        r"key has dtype int32; give a PRNG key, such as jax\.random\.key\(0\)",
    ),
    "reward_fn, of NumPy": (
        lambda: make(reward_fn=lambda number, goal: np.float32(np.asarray(number) == goal)),
        TypeError,
        r"reward_fn makes NumPy arrays of its arguments, which JAX traces; use jax\.numpy in it",
    ),
    "beta, several": (
        lambda: herjax.sample(make(priority_exponent=0.6), KEY, 4, beta=jnp.ones((3, 1))),
        ValueError,
        r"beta is of shape \(3, 1\) and dtype float32; give one number",
    ),
    "beta, none": (lambda: herjax.sample(make(), KEY, 4, beta=None), ValueError, "beta is None; give one number"),
    "discount, too large for a float": (lambda: make(num_steps=2, discount=10**400), ValueError, "discount is 1"),
    "a weight, too large for a float": (lambda: herjax.mixture({"future": 10**400}), ValueError, "give a finite number >= 0"),
    "transition, without elements": (
        lambda: herjax.init(
            jnp.zeros(0), capacity=4, max_episode_length=4, goal_fn=lambda _: 0, reward_fn=lambda t, goal: 0.0  # noqa: ARG005
        ),
        ValueError,
        "transition holds no element",
    ),
    "priorities, complex": (
        lambda: herjax.update_priorities(make(priority_exponent=0.6), jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.complex64)),
        TypeError,
        "priorities have dtype complex64; give absolute TD errors",
    ),
    "key, none": (lambda: herjax.sample(make(), None, 4), TypeError, "key is None; give a PRNG key"),
    "key, a name": (lambda: herjax.sample(make(), "key", 4), TypeError, "key"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_function_number_or_key_is_refused(case: str) -> None:
    """The argument is named, its value, and what to give."""
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


def test_lists_are_taken_as_arrays() -> None:
    """Indices and priorities from Python."""
    state = ended(make(priority_exponent=1.0, priority_epsilon=0.0, num_goals=1))
    state = herjax.update_priorities(state, [0, 1], [3.0, 1.0])
    batch = herjax.sample(state, KEY, 4)
    np.testing.assert_array_equal(batch.probabilities, np.where(batch.indices == 0, 0.75, 0.25))


def test_an_example_of_64_bits_is_one_of_32_where_jax_has_no_more() -> None:
    """A specification of a simulator's float64 takes what the simulator shows, which JAX makes a float32."""
    functions = {"goal_fn": lambda t: t, "reward_fn": lambda t, goal: jnp.sum(t - goal)}
    state = herjax.init(jax.ShapeDtypeStruct((2,), np.float64), capacity=4, max_episode_length=4, **functions)
    state = herjax.end_episode(herjax.add(state, np.array([0.25, 0.5])), np.zeros(2), KEY)
    np.testing.assert_array_equal(herjax.sample(state, KEY, 3).transition, [[0.25, 0.5]] * 3)


def test_environments_and_checkpoints_are_there_without_an_import() -> None:
    """After `import herjax` alone, and imported only then."""
    pytest.importorskip("gymnax")
    pytest.importorskip("orbax.checkpoint")
    program = "import herjax, sys; assert 'gymnax' not in sys.modules; herjax.envs.BitFlip; herjax.checkpoints.save"
    environment = os.environ | {"PYTHONPATH": str(Path(herjax.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    with pytest.raises(AttributeError, match="no attribute 'env'"):
        herjax.env  # noqa: B018


def test_keys_of_both_kinds_are_taken() -> None:
    """Typed ones, and two numbers as before."""
    for key in (KEY, jax.random.PRNGKey(0), np.asarray(jax.random.PRNGKey(0))):
        assert herjax.sample(make(), key, 4).indices.shape == (4,)


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
@pytest.mark.parametrize(("exponent", "num_steps"), [(None, 1), (0.6, 3)])
def test_gradients_pass_by(relabel: str, exponent: float | None, num_steps: int) -> None:
    """What is read is a constant, in forward and reverse mode, though transitions, goals, priorities and beta depend on it."""
    empty = herjax.init(
        jnp.zeros(2),
        capacity=20,
        max_episode_length=4,
        goal_fn=lambda position: position,
        reward_fn=lambda position, goal: -jnp.sum(jnp.abs(position - goal)),
        relabel=relabel,
        priority_exponent=exponent,
        num_steps=num_steps,
        discount=0.5,
    )

    def loss(rate: jax.Array, constant: jax.Array) -> jax.Array:
        """Of a loop over the buffer, which is filled by `constant`, and whose samples are multiplied by `rate`."""

        def step(carry: tuple, key: jax.Array) -> tuple:
            state, total = carry
            state = herjax.add(state, jax.random.normal(key, (2,)) * constant)
            key_goal, key_sample = jax.random.split(jax.random.fold_in(key, 1))
            state = herjax.end_episode(state, jnp.ones(2) * constant, key_goal, state.pending[0] == 4)
            ratio = constant if relabel == "sample" else None
            batch = herjax.sample(state, key_sample, 8, beta=constant, hindsight_ratio=ratio)
            if exponent is not None:
                state = herjax.update_priorities(state, batch.indices, jnp.abs(batch.reward * constant))
            return (state, total + jnp.sum(batch.weights * batch.reward) * rate), None

        return jax.lax.scan(step, (empty, jnp.float32(0)), jax.random.split(KEY, 12))[0][1]

    rate = jnp.float32(0.5)
    value, (by_rate, by_constant) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(rate, rate)
    assert value < 0
    assert by_rate == pytest.approx(float(value / rate), rel=1e-5)
    assert by_constant == 0
    both = lambda rate: jax.jvp(lambda rate: loss(rate, rate), (rate,), (jnp.float32(1),))  # noqa: E731
    assert jax.jit(both)(rate)[1] == pytest.approx(float(value / rate), rel=1e-5)


def loop(state: herjax.BufferState, keys: jax.Array) -> tuple[herjax.BufferState, jax.Array]:
    """Episodes of three steps; the first updates come before anything can be sampled."""

    def step(state: herjax.BufferState, key: jax.Array) -> tuple[herjax.BufferState, jax.Array]:
        key_goal, key_sample = jax.random.split(key)
        state = herjax.add(state, state.pending[0])
        state = herjax.end_episode(state, jnp.int32(-1), key_goal, state.pending[0] == 3)
        batch = herjax.sample(state, key_sample, 4)
        return herjax.update_priorities(state, batch.indices, batch.weights), batch.reward

    return jax.lax.scan(step, state, keys)


def test_no_check_of_checkify_raises_a_false_alarm() -> None:
    """A correct loop on a ring that turns round, windows and mixtures included, under all of checkify's own checks."""
    strategy = herjax.mixture({"future": 0.5, "random": 0.5})
    state = make(priority_exponent=0.6, strategy=strategy, num_steps=2, discount=0.5, capacity=7)
    error, _ = jax.jit(checkify.checkify(loop, errors=checkify.all_checks))(state, jax.random.split(KEY, 20))
    assert error.get() is None


def overlong(state: herjax.BufferState, many: jax.Array) -> herjax.BufferState:
    """Six transitions where five fit, where `many`; else five."""
    for number in range(6):
        state = herjax.add(state, jnp.int32(number), many | (number < 5))
    return state


def bad_priority(state: herjax.BufferState, bad: jax.Array) -> herjax.BufferState:
    """NaN, where `bad`."""
    return herjax.update_priorities(ended(state), jnp.zeros(1, jnp.int32), jnp.where(bad, jnp.nan, 1.0)[None])


def bad_index(state: herjax.BufferState, bad: jax.Array) -> herjax.BufferState:
    """One that holds nothing, where `bad`."""
    return herjax.update_priorities(ended(state), jnp.where(bad, 40, 0)[None], jnp.ones(1))


def bad_ratio(state: herjax.BufferState, bad: jax.Array) -> herjax.Sample:
    """2, where `bad`."""
    return herjax.sample(ended(state), KEY, 4, hindsight_ratio=jnp.where(bad, 2.0, 0.5))


FAULTS = {
    "an episode too long": (overlong, {}, "environment 0 is longer than max_episode_length, which is 5"),
    "a priority": (bad_priority, {"priority_exponent": 0.6}, "priorities must be .* but that of index 0 is nan"),
    "an index": (bad_index, {"priority_exponent": 0.6}, "indices must come from sample, but 40 holds nothing"),
    "a share": (bad_ratio, {"relabel": "sample"}, r"hindsight_ratio must lie in \[0, 1\], but it is 2\.0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_wherever_they_happen(fault: str) -> None:
    """In a jitted function, in a cond, in one lane of a vmap inside or outside of checkify; without fault there is silence."""
    function, options, message = FAULTS[fault]
    state = make(**options)

    def in_cond(happens: jax.Array) -> object:
        return jax.lax.cond(happens, lambda: function(state, happens), lambda: function(state, jnp.bool_(False)))

    checked = checkify.checkify(lambda happens: function(state, happens))
    lanes = checkify.checkify(jax.vmap(lambda happens: function(state, happens)))
    alone, branched, within, around = map(jax.jit, (checked, checkify.checkify(in_cond), lanes, jax.vmap(checked)))
    for flag in (False, True):
        happens, several = jnp.bool_(flag), jnp.asarray([False, flag, False])
        of_second = jax.tree.map(lambda leaf: leaf[1], around(several)[0])
        errors = [alone(happens)[0], branched(happens)[0], within(several)[0], of_second]
        for error in errors:
            if flag:
                with pytest.raises(checkify.JaxRuntimeError, match=message):
                    error.throw()
            else:
                assert error.get() is None


def test_checks_are_no_effect() -> None:
    """A program that can have faults has no effects, which would keep it off JAX's fast dispatch."""
    state = make(priority_exponent=0.6, strategy=lambda key, step, length: step)  # noqa: ARG005
    assert not jax.make_jaxpr(loop)(state, jax.random.split(KEY, 3)).effects


def calls_on(state: object, key: jax.Array) -> list[Callable[[], object]]:
    """A call of each function that takes a state alone."""
    return [
        lambda: herjax.add(state, 0),
        lambda: herjax.end_episode(state, 0, key),
        lambda: herjax.discard(state),
        lambda: herjax.sample(state, key, 2),
        lambda: herjax.update_priorities(state, jnp.zeros(1, int), jnp.zeros(1)),
        lambda: herjax.size(state),
        lambda: herjax.can_sample(state),
        lambda: herjax.after(state, 0),
        lambda: herjax.episodes(state),
    ]


@pytest.mark.parametrize("state", [None, {"buffer": 1.0}, (1.0, 2.0)])
def test_what_is_no_state_is_refused_by_name(state: object, key: jax.Array) -> None:
    """Arguments in another order, an agent, or None: each function says what it was given, and what to give."""
    for call in (*calls_on(state, key), lambda: herjax.check(state)):
        with pytest.raises(TypeError, match=f"state is a {type(state).__name__}; give, first, the BufferState that init"):
            call()


@pytest.mark.parametrize("runs", [(2,), (3, 2)])
def test_a_state_of_many_runs_is_refused_outside_of_vmap(runs: tuple[int, ...], key: jax.Array) -> None:
    """By every function but `check`, with the number of runs and what to do: sums over all runs would mean nothing."""
    many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*runs, *leaf.shape)), make(priority_exponent=0.6))
    for call in calls_on(many, key):
        with pytest.raises(ValueError, match=f"state is that of {' x '.join(map(str, runs))} runs; call this under jax.vmap"):
            call()
    herjax.check(many)


SAMPLED = [
    {},
    {"priority_exponent": 0.6},
    {"relabel": "sample"},
    {"num_steps": 2, "discount": 0.5, "reward_fn": lambda t, goal: (t - goal).astype(jnp.float32)},
    {"discount": 0.5, "terminated_fn": None},
]


@pytest.mark.parametrize("options", SAMPLED)
def test_a_batch_can_be_donated(options: dict[str, object]) -> None:
    """No two of its arrays are one."""
    batch = herjax.sample(ended(make(**options)), KEY, 4)
    doubled = jax.jit(
        lambda batch: jax.tree.map(lambda leaf: leaf | leaf if leaf.dtype == bool else 2 * leaf, batch), donate_argnums=0
    )
    expected = jax.tree.map(lambda leaf: np.asarray(leaf) * (1 if leaf.dtype == bool else 2), batch)
    jax.tree.map(np.testing.assert_array_equal, doubled(batch), expected)


@pytest.mark.parametrize("options", SAMPLED[:3])
def test_no_default_is_moved_to_the_device(options: dict[str, object]) -> None:
    """Called from Python with arrays of JAX, no function moves anything there."""
    state, number, indices, priorities = make(**options), jnp.int32(0), jnp.zeros(3, jnp.int32), jnp.ones(3)
    with jax.transfer_guard("disallow"):
        state = herjax.end_episode(herjax.add(state, number), number, KEY)
        batch = herjax.sample(herjax.discard(state), KEY, 4)
        herjax.after(state, batch), herjax.size(state), herjax.in_all_runs(herjax.can_sample(state))
        if "priority_exponent" in options:
            herjax.update_priorities(state, indices, priorities)


def test_a_state_of_64_bits_is_refused_where_jax_has_32() -> None:
    """By name, in every function; where 64 bits are enabled it works."""
    functions = {"goal_fn": lambda t: t, "reward_fn": lambda t, goal: jnp.sum(t - goal)}
    with enable_x64(True):
        state = herjax.init(jnp.zeros(2), capacity=4, max_episode_length=4, priority_exponent=1.0, **functions)
        state = herjax.end_episode(herjax.add(state, jnp.ones(2)), jnp.ones(2), KEY)
        assert herjax.sample(state, KEY, 3).transition.dtype == jnp.float64
    for call in (
        lambda: herjax.add(state, jnp.ones(2)),
        lambda: herjax.end_episode(state, jnp.ones(2), KEY),
        lambda: herjax.sample(state, KEY, 3),
        lambda: herjax.update_priorities(state, jnp.zeros(1, jnp.int32), jnp.ones(1)),
        lambda: herjax.check(state),
    ):
        with pytest.raises(ValueError, match="state was made with 64-bit numbers enabled: transition is float64"):
            call()


UNNAMED = """
import sys, types
import jax.experimental.checkify as checkify
if sys.argv[1] == "gone":
    sys.modules["jax._src.checkify"] = types.ModuleType("jax._src.checkify")
import jax.numpy as jnp, herjax
buffer = herjax.init(jnp.int32(0), capacity=1, max_episode_length=1, goal_fn=lambda t: t, reward_fn=lambda t, goal: t - goal)
add = checkify.checkify(herjax.add)
error, buffer = add(add(buffer, jnp.int32(0))[1], jnp.int32(1))
print(int(buffer.num_dropped), "max_episode_length" in str(error.get()))
"""


@pytest.mark.parametrize(("checkify_is", "printed"), [("there", "1 True"), ("gone", "1 False")])
def test_a_jax_that_has_moved_checkify_leaves_faults_unnamed(checkify_is: str, printed: str) -> None:
    """They are counted still: what herjax asks of JAX's private modules may go."""
    environment = os.environ | {"PYTHONPATH": str(Path(herjax.__file__).parents[1])}
    command = [sys.executable, "-c", UNNAMED, checkify_is]
    assert subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout.strip() == printed


def test_environments_name_the_gymnax_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 1.0 it has another interface; the core does not need it."""
    pytest.importorskip("gymnax")

    class Old:
        version = "0.0.9"

    for found, named in (([Old], "0.0.9"), ([], "none")):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "distributions", lambda found=found, **_: iter(found))
            with pytest.raises(ImportError, match=rf"herjax\.envs needs gymnax >= 1\.0, but {named} is installed; pip install"):
                importlib.reload(herjax.envs)
    importlib.reload(herjax.envs)
