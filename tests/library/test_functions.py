"""The user's functions: which two are one, what they may do, and what is said of those that fail."""

import copy
import dataclasses
import re
import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax
from numbered import make, play

KEY = jax.random.key(0)


class Forwards:
    """Passes every attribute on to another callable, as wrappers of models and of jitted functions do."""

    def __init__(self, wrapped: Callable[..., Any], scale: float) -> None:
        self.wrapped, self.scale = wrapped, scale

    def __getattr__(self, name: str) -> Any:
        """Of the wrapped callable."""
        if name == "wrapped":  # Not there yet: a copy is being made.
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __call__(self, transition: jax.Array, goal: jax.Array) -> jax.Array:
        """Its result, scaled."""
        return self.scale * self.wrapped(transition, goal)


class Model:
    """Rewards of an object."""

    def reward(self, transition: jax.Array, goal: jax.Array) -> jax.Array:
        """Always 1."""
        del transition, goal
        return jnp.float32(1)

    def early(self, key: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
        """A strategy: the first step."""
        del key, step, length
        return jnp.int32(0)


MODEL = Model()


def ended(**options: Any) -> herjax.BufferState:
    """A buffer with two episodes of two steps."""
    return play(make(**options), jnp.int32(0), jnp.array([False, True, False, True])[:, None], KEY)


@pytest.mark.parametrize("argument", ["reward_fn", "goal_fn", "terminated_fn", "strategy"])
def test_wrappers_that_forward_attributes_are_as_many_as_there_are(argument: str) -> None:
    """Two around one bound method look like that method, whose `__self__` and `__func__` they pass on, and are two."""
    arguments = {"goal_fn": 1, "strategy": 3}.get(argument, 2)
    results = {"reward_fn": jnp.float32, "goal_fn": jnp.int32, "terminated_fn": jnp.bool_, "strategy": jnp.int32}

    class Constant(Forwards):
        def __call__(self, *given: jax.Array) -> jax.Array:
            assert len(given) == arguments
            return results[argument](self.scale)

    first, second = (make(**{argument: Constant(MODEL.reward, scale)}).config for scale in (0, 1))
    assert first != second


def test_rewards_of_wrappers_around_one_method() -> None:
    """Scaled by 2, then by 5: each buffer has its own."""
    for scale in (2.0, 5.0):
        np.testing.assert_array_equal(herjax.sample(ended(reward_fn=Forwards(MODEL.reward, scale)), KEY, 4).reward, scale)


class SaysYes:
    """Has every attribute, each of them a function."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_: len(name)

    def __call__(self, transition: jax.Array, goal: jax.Array) -> jax.Array:
        """Fails inside, with the error that wrong arguments have."""
        return len(transition, goal)


def test_an_error_within_a_wrapper_is_told() -> None:
    """Not that of its signature, which is none of its own."""
    with pytest.raises(TypeError, match=r"reward_fn raised TypeError: .*len\(\) takes exactly one argument"):
        make(reward_fn=SaysYes())
    with pytest.raises(TypeError, match=r"goal_fn is called as goal_fn\(transition\), and takes"):
        make(goal_fn=SaysYes())
    wrapped = Forwards(MODEL.reward, 1.0)
    assert "Forwards" in repr(make(reward_fn=wrapped).config) or "Model.reward" in repr(make(reward_fn=wrapped).config)


def takes_more(transition: jax.Array, goal: jax.Array, info: object) -> jax.Array:
    del transition, goal, info
    return jnp.float32(3)


@wraps(takes_more)
def fits(transition: jax.Array, goal: jax.Array) -> jax.Array:
    return takes_more(transition, goal, None)


class ForwardsLess(Forwards):
    """Gives the wrapped function one argument more than it takes itself."""

    def __call__(self, transition: jax.Array, goal: jax.Array) -> jax.Array:
        """As above."""
        return self.wrapped(transition, goal, None)


@pytest.mark.parametrize("reward_fn", [ForwardsLess(takes_more, 1.0), fits, partial(takes_more, info=None), jax.jit(fits)])
def test_what_can_be_called_is_accepted(reward_fn: Callable[..., jax.Array]) -> None:
    """Whatever `inspect.signature` says of what lies behind it."""
    np.testing.assert_array_equal(herjax.sample(ended(reward_fn=reward_fn), KEY, 4).reward, 3)


def branches(transition: jax.Array, goal: jax.Array) -> jax.Array:
    return jnp.float32(0) if transition == goal else jnp.float32(-1)


EXAMPLE = {"position": jnp.zeros(2), "step": jnp.int32(0)}


def init(**options: Any) -> herjax.BufferState:
    functions = {"goal_fn": lambda t: t["position"], "reward_fn": lambda t, goal: -jnp.sum(jnp.abs(t["position"] - goal))}
    return herjax.init(EXAMPLE, capacity=8, max_episode_length=4, **functions | options)


FAILS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "if": (lambda: make(reward_fn=branches), TypeError, r"reward_fn asks whether a number is true, as `if`.*use jnp\.where"),
    "if, terminated_fn": (lambda: make(terminated_fn=branches), TypeError, r"terminated_fn asks whether .* jnp\.where"),
    "and": (lambda: make(terminated_fn=lambda t, goal: t > 0 and goal > 0), TypeError, r"terminated_fn asks.*`and`.*`&`"),
    "if, strategy": (
        lambda: make(strategy=lambda key, step, length: step if step > 0 else length - 1),  # noqa: ARG005
        TypeError,
        r"strategy asks whether .* jnp\.where",
    ),
    "float": (lambda: make(reward_fn=lambda t, goal: float(t - goal)), TypeError, "reward_fn makes a number of Python's"),
    "range": (
        lambda: make(reward_fn=lambda t, goal: jnp.float32(sum(range(t)) + goal)),
        TypeError,
        "reward_fn takes a number for an index or a length",
    ),
    "bool mask": (
        lambda: init(reward_fn=lambda t, goal: jnp.sum(t["position"][t["position"] > goal])),
        ValueError,
        r"reward_fn picks elements by a bool array",
    ),
    "axis of a batch": (
        lambda: init(reward_fn=lambda t, goal: -jnp.linalg.norm(t["position"] - goal, axis=1)),
        ValueError,
        r"reward_fn raised .*herjax calls it for one transition, without an axis for a batch.*'position': float32\[2\]",
    ),
    "index of a batch": (
        lambda: init(goal_fn=lambda t: t["position"][:, 0]),
        ValueError,
        r"goal_fn raised IndexError.*for one transition, without an axis for a batch",
    ),
    "unknown field": (
        lambda: init(goal_fn=lambda t: t["achieved_goal"]),
        ValueError,
        r"goal_fn raised KeyError: 'achieved_goal'.*write it for transition: \{'position': float32\[2\], 'step': int32\[\]\}",
    ),
    "its own error": (lambda: make(reward_fn=lambda t, goal: t + "a"), TypeError, "reward_fn raised TypeError"),  # noqa: ARG005
    "a vector reward": (
        lambda: make(reward_fn=lambda t, goal: jnp.stack([t, goal]).astype(jnp.float32)),
        ValueError,
        r"reward_fn returns float32\[2\]; return one scalar",
    ),
    "a pair of rewards": (
        lambda: make(reward_fn=lambda t, goal: {"far": jnp.float32(0), "near": t + goal}),
        ValueError,
        r"reward_fn returns \{'far': float32\[\], 'near': int32\[\]\}; return one scalar",
    ),
    "a vector of steps": (
        lambda: make(strategy=lambda key, step, length: jnp.stack([step, length])),  # noqa: ARG005
        ValueError,
        r"strategy returns int32\[2\]; return one scalar",
    ),
    "a bool reward": (lambda: make(reward_fn=lambda t, goal: t == goal), TypeError, "reward_fn returns dtype bool; return a"),
    "a complex reward": (
        lambda: make(reward_fn=lambda t, goal: (t - goal).astype(jnp.complex64)),
        TypeError,
        "reward_fn returns dtype complex64; return a float or an integer",
    ),
    "a complex reward of n steps": (
        lambda: make(reward_fn=lambda t, goal: (t - goal).astype(jnp.complex64), num_steps=2, discount=0.5),
        TypeError,
        "reward_fn returns dtype complex64",
    ),
    "geometric by name": (lambda: make(strategy="geometric"), ValueError, r"herjax\.geometric\(0\.99\)"),
    "mixture by name": (lambda: make(strategy="mixture"), ValueError, r"herjax\.mixture"),
    "a batched transition": (
        lambda: herjax.add(make(), jnp.zeros(3, jnp.int32)),
        ValueError,
        r"transition has shape \(3,\).*for n environments give init num_envs=n",
    ),
    "a batched goal": (
        lambda: herjax.end_episode(make(), jnp.zeros(3, jnp.int32), KEY),
        ValueError,
        r"goal has shape \(3,\).*num_envs=n",
    ),
    "a batched done": (
        lambda: herjax.end_episode(make(), jnp.int32(0), KEY, jnp.zeros(3, bool)),
        ValueError,
        r"done has shape \(3,\).*num_envs=n",
    ),
    "a mask of None": (lambda: herjax.add(make(), jnp.int32(0), None), TypeError, "mask is None; give one bool"),
    "a done of None": (lambda: herjax.end_episode(make(), jnp.int32(0), KEY, None), TypeError, "done is None; give one bool"),
    "discard None": (lambda: herjax.discard(make(), None), TypeError, "done is None; give one bool"),
    "indices of None": (
        lambda: herjax.update_priorities(make(priority_exponent=1.0), None, jnp.ones(2)),
        TypeError,
        "indices is None; give the integers that sample returned",
    ),
    "priorities of None": (
        lambda: herjax.update_priorities(make(priority_exponent=1.0), jnp.zeros(2, jnp.int32), None),
        TypeError,
        "priorities is None; give absolute TD errors",
    ),
    "a condition of None": (lambda: herjax.in_all_runs(None), TypeError, "condition is None; give one bool"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILS)
def test_what_fails_is_named(case: str) -> None:
    """The argument, what is wrong, and what to do; never a message of JAX's alone."""
    call, error, message = FAILS[case]
    with pytest.raises(error, match=re.compile(message, re.DOTALL)) as raised:
        call()
    assert "unknown>" not in str(raised.value)


def test_two_settings_read_differently_where_only_functions_differ() -> None:
    """JAX's message for states that do not fit names both functions, where they were defined, and is short."""
    first, second = (make(reward_fn=lambda t, goal: (t - goal).astype(jnp.float32)) for _ in range(2))
    third = make(
        reward_fn=lambda t, goal: (goal - t).astype(jnp.float32),
    )
    line = sys._getframe().f_lineno - 2
    for other in (second, third):
        with pytest.raises((TypeError, ValueError)) as raised:
            jax.lax.scan(lambda _, __, other=other: (other, None), first, length=1)
        places = set(re.findall(r"reward_fn=[^(]*\(([^)]*)\)", str(raised.value)))
        assert len(places) == 2
        assert all(place.startswith("test_functions.py:") for place in places)
        assert len(str(raised.value)) < 2400
    assert f"<lambda> (test_functions.py:{line} " in repr(third.config)


@pytest.mark.parametrize(
    "options",
    [
        {"reward_fn": MODEL.reward},
        {"reward_fn": Forwards(MODEL.reward, 2.0)},
        {"reward_fn": partial(takes_more, info=None)},
        {"strategy": MODEL.early},
        {"strategy": herjax.mixture({MODEL.early: 1, "future": 1})},
    ],
)
def test_a_deep_copy_fits_to_its_original(options: dict[str, Any]) -> None:
    """Both keep the same functions, so that a scan takes one for the other and compiles once."""
    state = make(**options)
    copied = copy.deepcopy({"buffer": state})["buffer"]
    assert copied.config == state.config
    jax.tree.map(np.testing.assert_array_equal, copied, state)
    chosen = jax.lax.cond(True, lambda one, _: one, lambda _, other: other, state, copied)
    assert chosen.config == state.config


def test_a_shallow_copy_fits_too() -> None:
    """`copy.copy` and `dataclasses.replace` keep the settings."""
    state = ended(reward_fn=MODEL.reward)
    assert copy.copy(state).config == dataclasses.replace(state, num_dropped=state.num_rejected).config == state.config


def test_a_nan_reward_is_found_in_the_function_that_makes_it() -> None:
    """As the guide to semantics says: by `jax.debug_nans` without jit, `end_episode` stops at the user's line."""
    state = herjax.add(
        make(transition=jnp.float32(0), goal_fn=lambda t: t, reward_fn=lambda t, goal: jnp.log(t - goal)), jnp.float32(1)
    )
    with jax.debug_nans(True), jax.disable_jit(), pytest.raises(FloatingPointError, match="nan") as raised:
        herjax.end_episode(state, jnp.float32(5), KEY)
    assert any("jnp.log(t - goal)" in str(entry.statement) for entry in raised.traceback)


def test_a_config_goes_on_in_another_buffer_and_another_process() -> None:
    """One made with the functions of another is equal. Pickled, it leaves its hash behind: another process finds another."""
    config = make().config
    again = make(goal_fn=config.goal_fn, reward_fn=config.reward_fn).config
    assert (again, hash(again)) == (config, hash(config))
    assert "_hash" not in config.__getstate__()
    assert config.__getstate__().keys() < vars(config).keys()
