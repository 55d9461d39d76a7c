"""A discount, an exponent and an epsilon that are arrays: a sweep over them is a vmap, and each run as with it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import herjax
from numbered import make

NUMBERS = {"discount": [0.5, 0.0, 1.0], "priority_exponent": [0.6, 1.0, 0.0], "priority_epsilon": [1e-6, 0.25, 0.0]}


def reward(number: jax.Array, goal: jax.Array) -> jax.Array:
    return number.astype(jnp.float32) + goal.astype(jnp.float32) / 128


def run(numbers: dict[str, jax.Array | float], key: jax.Array) -> tuple[herjax.Sample, herjax.BufferState]:
    """A batch after an update of priorities, and the state."""
    state = make(reward_fn=reward, num_steps=3, **numbers)
    for number in range(4):
        state = herjax.add(state, jnp.int32(number))
    state = herjax.end_episode(state, jnp.int32(-1), key)
    batch = herjax.sample(state, key, 64)
    state = herjax.update_priorities(state, batch.indices, jnp.arange(64, dtype=jnp.float32))
    return herjax.sample(state, key, 64), state


def test_a_sweep_is_its_runs(key: jax.Array) -> None:
    """Vmapped over three of each, every run is that of the plain numbers, to float32's last bits."""
    swept, states = jax.jit(jax.vmap(run, (0, None)))({name: jnp.array(values) for name, values in NUMBERS.items()}, key)
    for place in range(3):
        alone, _ = run({name: values[place] for name, values in NUMBERS.items()}, key)
        mine = jax.tree.map(lambda leaf, place=place: leaf[place], swept)
        jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-5), mine, alone)
        herjax.check(jax.tree.map(lambda leaf, place=place: leaf[place], states))
    assert not np.allclose(swept.reward[0], swept.reward[1])
    assert not np.allclose(swept.probabilities[0], swept.probabilities[1])


@pytest.mark.parametrize("name", NUMBERS)
def test_an_array_is_checked_as_far_as_it_is_known(name: str, key: jax.Array) -> None:
    """One out of range is refused where its value is known, and named under checkify where it is not; so are many in one."""
    fine = {"discount": 0.5, "priority_exponent": 0.6}
    with pytest.raises(ValueError, match=rf"{name} is -1\.0; give a"):
        run(fine | {name: jnp.float32(-1)}, key)
    with pytest.raises(ValueError, match=rf"{name} is of shape \(2,\)"):
        run(fine | {name: jnp.ones(2)}, key)

    def start(value: jax.Array) -> herjax.BufferState:
        return make(**(fine | {name: value}))

    error, _ = checkify.checkify(jax.jit(start))(jnp.float32(-1))
    assert f"init: {name} must be" in error.get()
    assert "-1" in error.get()
    assert checkify.checkify(jax.jit(start))(jnp.float32(0.5))[0].get() is None


def test_the_state_has_an_array_of_its_own() -> None:
    """So that it can be donated, and the caller's is there still."""
    number = jnp.float32(0.5)
    state = make(discount=number, priority_exponent=number, priority_epsilon=number)
    jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)(state)
    assert float(number) == 0.5


def test_check_names_a_number_out_of_range() -> None:
    """On the host, where a traced one went wrong unseen."""
    states = jax.vmap(lambda discount: make(discount=discount))(jnp.array([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"buffer \(1,\) .*numbers\['discount'\] is 1\.5; it must lie in 0 \.\. 1"):
        herjax.check(states)
