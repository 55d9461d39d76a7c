"""Static mistakes raise while tracing, and the message names the argument or leaf, the value given, and the remedy."""

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax

MISTAKE = (ValueError, TypeError)
REMEDY = re.compile(
    r"must|\breturn\b|expected|use |pass |give |call |set |choose|one of|instead|need|at least|like ", re.IGNORECASE
)


class Transition(NamedTuple):
    """Two leaves whose names, shapes and dtypes differ."""

    velocity: jax.Array
    action: jax.Array


EXAMPLE = Transition(velocity=jnp.zeros(3), action=jnp.zeros((), jnp.int32))
GOAL = jnp.zeros(3)


def velocity(transition):
    return transition.velocity


def distance(transition, goal):
    return -jnp.sum(jnp.abs(transition.velocity - goal))


def never(transition, goal):
    del transition, goal
    return jnp.array(False)


def init(**changed):
    arguments = {"transition": EXAMPLE, "capacity": 8, "max_episode_length": 4, "goal_fn": velocity, "reward_fn": distance}
    arguments = {**arguments, "terminated_fn": never, "num_goals": 2, "priority_exponent": 0.6, **changed}
    return herjax.init(arguments.pop("transition"), **arguments)


def assert_explained(call, *named: str) -> None:
    """Tracing the call, without running it, raises a message that has each of these names, and a remedy.

    Where `named` has alternatives, as "(3,)|[3]", one of them is enough.
    """
    with pytest.raises(MISTAKE) as error:
        jax.eval_shape(call)
    message = str(error.value)
    for name in named:
        assert any(alternative in message for alternative in name.split("|")), f"{name!r} is missing from: {message}"
    assert REMEDY.search(message), f"no remedy in: {message}"


@pytest.fixture(scope="module")
def buffer():
    """A prioritised buffer that holds an episode of 2 transitions, and 1 pending transition."""
    buffer = herjax.add(herjax.add(init(), EXAMPLE), EXAMPLE)
    return herjax.add(herjax.end_episode(buffer, GOAL, jax.random.key(0)), EXAMPLE)


@pytest.mark.parametrize(
    ("argument", "value", "named"),
    [
        ("strategy", "furture", "furture"),
        ("strategy", 7, "7"),
        ("relabel", "episode_start", "episode_start"),
        ("capacity", 3, "3"),
        ("capacity", 0, "0"),
        ("capacity", -7, "-7"),
        ("capacity", 8.5, "8.5"),
        ("capacity", 8.0, "8.0"),
        ("capacity", 2**30, str(2**30)),
        ("capacity", 2**40, str(2**40)),
        ("max_episode_length", 0, "0"),
        ("max_episode_length", -3, "-3"),
        ("max_episode_length", 2.5, "2.5"),
        ("num_goals", -1, "-1"),
        ("num_goals", 1.5, "1.5"),
        ("priority_exponent", -0.5, "-0.5"),
        ("priority_exponent", math.nan, "nan"),
        ("priority_exponent", math.inf, "inf"),
        ("priority_epsilon", -0.25, "-0.25"),
        ("priority_epsilon", math.nan, "nan"),
        ("priority_exponent", "a", "a"),
        ("priority_exponent", True, "True"),
        ("goal_fn", lambda transition: transition.velocity[:0], "no element"),
    ],
)
def test_init_names_the_wrong_argument(argument, value, named):
    """A wrong setting is named with its value before anything is allocated."""
    assert_explained(lambda: init(**{argument: value}), argument, named)


def test_init_names_both_sizes_when_an_episode_does_not_fit():
    """A capacity of 8 below an episode of 9: the message has both names and both numbers."""
    assert_explained(lambda: init(max_episode_length=9), "capacity", "8", "max_episode_length", "9")


def test_capacity_of_one_episode_is_enough():
    """`capacity == max_episode_length` is no mistake."""
    jax.eval_shape(lambda: init(capacity=4))


@pytest.mark.parametrize(
    ("transition", "named"),
    [
        ((), "transition"),
        (EXAMPLE._replace(velocity="fast"), "velocity"),
        (EXAMPLE._replace(action=jax.random.key(0)), "action"),
        ({"nested": {"label": "fast"}, "velocity": jnp.zeros(3)}, "label"),
    ],
    ids=["no leaves", "string", "typed key", "nested string"],
)
def test_init_names_the_leaf_that_is_no_array(transition, named):
    """An example without leaves, with a string, or with a typed PRNG key in it cannot be stored."""

    def first_leaf(transition):
        return jax.tree.leaves(transition)[0]

    def no_reward(transition, goal):
        del transition, goal
        return jnp.float32(0)

    assert_explained(lambda: init(transition=transition, goal_fn=first_leaf, reward_fn=no_reward), named)


def vector(transition, goal):
    return transition.velocity - goal


def half(transition, goal):
    del transition, goal
    return jnp.float32(0.5)


def halfway(key, step, length):
    del key, length
    return step.astype(jnp.float32) / 2


@pytest.mark.parametrize(
    ("argument", "function", "named"),
    [
        ("reward_fn", vector, "(3,)|[3]"),
        ("terminated_fn", half, "float32|f32"),
        ("terminated_fn", lambda t, g: jnp.zeros(3, bool) | never(t, g)[None], "(3,)|[3]"),
        ("strategy", halfway, "float32|f32"),
        ("strategy", lambda key, step, length: jnp.stack([step, length]), "(2,)|[2]"),  # noqa: ARG005
    ],
    ids=["reward vector", "terminated float", "terminated vector", "strategy float", "strategy vector"],
)
def test_a_function_that_returns_the_wrong_thing_is_named(argument, function, named):
    """The message names the argument and the shape or dtype that the function returned, at the latest in `end_episode`."""

    def lived():
        return herjax.end_episode(herjax.add(init(**{argument: function}), EXAMPLE), GOAL, jax.random.key(0))

    assert_explained(lived, argument, named)


@pytest.mark.parametrize(
    ("transition", "named"),
    [
        (EXAMPLE._replace(velocity=jnp.zeros(2)), ("velocity", "(2,)|[2]", "(3,)|[3]")),
        (EXAMPLE._replace(velocity=jnp.zeros((1, 3))), ("velocity", "(1, 3)|[1,3]", "(3,)|[3]")),
        (EXAMPLE._replace(velocity=jnp.zeros(3, jnp.int32)), ("velocity", "int32|i32", "float32|f32")),
        (EXAMPLE._replace(action=jnp.zeros((), jnp.float32)), ("action", "float32|f32", "int32|i32")),
        (tuple(EXAMPLE), ("transition", "tuple|(*", "Transition")),
        ({"velocity": EXAMPLE.velocity}, ("transition", "dict|{", "Transition")),
    ],
    ids=["shape", "batched", "dtype", "other leaf", "tuple", "dict"],
)
def test_add_names_the_leaf_that_differs_from_the_example(transition, named, buffer):
    """A transition unlike the example is named by its leaf, with what was given and what was expected."""
    assert_explained(lambda: herjax.add(buffer, transition), *named)


@pytest.mark.parametrize(
    ("goal", "named"),
    [
        (jnp.zeros(2), ("goal", "(2,)|[2]", "(3,)|[3]")),
        (jnp.zeros(3, jnp.int32), ("goal", "int32|i32", "float32|f32")),
        ({"position": jnp.zeros(3)}, ("goal", "dict|{|position")),
    ],
    ids=["shape", "dtype", "structure"],
)
def test_end_episode_names_a_goal_unlike_goal_fns(goal, named, buffer):
    """`goal` must match `goal_fn`'s output."""
    assert_explained(lambda: herjax.end_episode(buffer, goal, jax.random.key(0)), *named)


def test_end_episode_names_done_of_the_wrong_shape(buffer):
    """Without `num_envs`, `done` is a scalar."""
    done = jnp.zeros(2, bool)
    assert_explained(lambda: herjax.end_episode(buffer, GOAL, jax.random.key(0), done), "done", "(2,)|[2]")


def test_end_episode_names_done_that_is_no_bool(buffer):
    """A number for a flag raises `TypeError` and says how to convert it."""
    with pytest.raises(TypeError, match=r"done has dtype int32, expected bool; convert it with astype\(bool\)"):
        herjax.end_episode(buffer, GOAL, jax.random.key(0), jnp.int32(1))


@pytest.mark.parametrize("batch_size", [0, -5, 2.5, "many"])
def test_sample_names_a_wrong_batch_size(batch_size, buffer):
    """`batch_size` is an integer of at least 1."""
    assert_explained(lambda: herjax.sample(buffer, jax.random.key(0), batch_size), "batch_size", str(batch_size))


@pytest.mark.parametrize(
    ("indices", "priorities", "named"),
    [
        (jnp.zeros(4, jnp.int32), jnp.ones(3), ("indices", "priorities", "(4,)|[4]", "(3,)|[3]")),
        (jnp.zeros(4), jnp.ones(4), ("indices", "float32|f32")),
        (jnp.zeros(4, bool), jnp.ones(4), ("indices", "bool")),
    ],
    ids=["shapes", "float indices", "bool indices"],
)
def test_update_priorities_names_wrong_arrays(indices, priorities, named, buffer):
    """Indices are integers, one for each priority."""
    assert_explained(lambda: herjax.update_priorities(buffer, indices, priorities), *named)


def test_update_priorities_names_how_many_are_too_many(buffer):
    """float32 tells 2^24 indices apart, which says whose priority is the last; one more is refused."""

    def update(n):
        return herjax.update_priorities(buffer, jnp.zeros(n, jnp.int32), jnp.ones(n))

    jax.eval_shape(lambda: update(2**24))
    assert_explained(lambda: update(2**24 + 1), "indices", "16777217", "2^24")


def test_update_priorities_of_a_uniform_buffer_names_priority_exponent():
    """A uniform buffer has no priorities to update; the message says which argument of `init` gives it some."""
    buffer = init(priority_exponent=None)
    assert_explained(
        lambda: herjax.update_priorities(buffer, jnp.zeros(4, jnp.int32), jnp.ones(4)), "priority_exponent", "None|uniform"
    )


def test_no_mistake_costs_the_state(buffer):
    """After a mistake in each function, called outright, the state that was passed in is whole and goes on."""
    before = jax.tree.map(np.asarray, buffer)
    key = jax.random.key(0)
    for mistake in (
        lambda: herjax.add(buffer, EXAMPLE._replace(velocity=jnp.zeros(2))),
        lambda: herjax.end_episode(buffer, jnp.zeros(2), key),
        lambda: herjax.end_episode(buffer, GOAL, key, jnp.zeros(2, bool)),
        lambda: herjax.sample(buffer, key, 0),
        lambda: herjax.update_priorities(buffer, jnp.zeros(4, jnp.int32), jnp.ones(3)),
    ):
        with pytest.raises(MISTAKE):
            mistake()
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, buffer), before)
    assert herjax.size(herjax.end_episode(buffer, GOAL, key)) == 3
    assert np.isfinite(herjax.sample(buffer, key, 4).reward).all()


@pytest.mark.parametrize("discount", ["a", True, None, 1.5])
def test_geometric_names_a_wrong_discount(discount):
    """A discount that is no number, or lies outside [0, 1], is named with its value."""
    assert_explained(lambda: herjax.geometric(discount), "discount", str(discount), "[0, 1]")
