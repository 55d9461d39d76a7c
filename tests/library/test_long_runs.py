"""What only shows after a long time: counters at the end of int32, memory, compilations, and rounding in the tree."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax
from herjax import sum_tree
from numbered import make, play

NEAR = 2**31 - 4
STEPS = 12  # Between two updates.


@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_full_counters_change_nothing_else(relabel: str) -> None:
    """Of two like buffers one has counters near 2^31: they stop at 2^31 - 1 and all else stays as in its twin, bit for bit."""
    low = make(capacity=15, num_envs=1, relabel=relabel, priority_exponent=0.6)
    high = dataclasses.replace(low, num_dropped=jnp.int32(NEAR), num_rejected=jnp.int32(NEAR))
    rng = np.random.default_rng(0)
    for look in range(6):
        dones = rng.random((STEPS, 1)) < 0.1
        indices = jnp.asarray(rng.integers(-5, 100, 8), jnp.int32)
        batches = []
        for state in (low, high):
            played = play(state, jnp.int32(look * STEPS), dones, jax.random.key(look))
            batches.append(herjax.sample(played, jax.random.key(look), 16))
            updated = herjax.update_priorities(played, indices, jnp.abs(batches[-1].reward[:8]).astype(jnp.float32))
            low, high = (updated, high) if state is low else (low, updated)
        jax.tree.map(np.testing.assert_array_equal, *batches)
        assert int(high.num_dropped) == min(2**31 - 1, NEAR + int(low.num_dropped))
        assert int(high.num_rejected) == min(2**31 - 1, NEAR + int(low.num_rejected))
        herjax.check(high)
    assert int(high.num_dropped) == int(high.num_rejected) == 2**31 - 1, "both had more to count"
    same = {"num_dropped": low.num_dropped, "num_rejected": low.num_rejected}
    jax.tree.map(np.testing.assert_array_equal, low, dataclasses.replace(high, **same))


def resident_bytes() -> int:
    """Memory of this process."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("only Linux tells how much memory a process has now")
    return int(statm.read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("relabel", ["episode_end", "sample"])
def test_ten_million_adds_leave_no_trace(relabel: str) -> None:
    """After 10^7 steps in 100 calls of one program memory is what it was after the first, and nothing was compiled again.

    The same for 10,000 calls of each function from the host.
    """
    traces = []
    state = make(capacity=3000, max_episode_length=7, relabel=relabel, priority_exponent=0.6)

    def step(state: herjax.BufferState, number: jax.Array) -> tuple[herjax.BufferState, None]:
        key_end, key_sample = jax.random.split(jax.random.fold_in(jax.random.key(0), number))
        state = herjax.end_episode(herjax.add(state, number), -1 - number, key_end, number % 5 == 4)
        batch = herjax.sample(state, key_sample, 4)
        return herjax.update_priorities(state, batch.indices, jnp.abs(batch.weights)), None

    def chunk(state: herjax.BufferState, first: jax.Array) -> herjax.BufferState:
        traces.append(None)
        return jax.lax.scan(step, state, first + jnp.arange(100_000))[0]

    program = jax.jit(chunk, donate_argnums=0)
    memory, arrays = [], []
    for first in range(0, 10_000_000, 100_000):
        state = jax.block_until_ready(program(state, jnp.int32(first)))
        memory.append(resident_bytes())
        arrays.append(sum(array.nbytes for array in jax.live_arrays()))
    herjax.check(state)
    assert len(traces) == 1
    assert max(arrays) == arrays[0]
    assert max(memory) - memory[1] < 16 * 2**20, "16 MiB would be 1.7 bytes a step"
    assert int(herjax.size(state)) == 3000
    functions = (herjax.add, herjax.end_episode, herjax.sample, herjax.update_priorities)
    compiled, before = None, 0
    for number in range(10_000):
        state = herjax.end_episode(herjax.add(state, jnp.int32(number)), jnp.int32(-1), jax.random.key(number), number % 5 == 4)
        batch = herjax.sample(state, jax.random.key(number), 4)
        state = herjax.update_priorities(state, batch.indices, jnp.abs(batch.weights))
        now = [function._cache_size() for function in functions]
        if compiled is None:
            compiled, before = now, resident_bytes()
        assert now == compiled
    assert sum(array.nbytes for array in jax.live_arrays()) < 2 * arrays[0]
    assert resident_bytes() - before < 16 * 2**20


def test_a_million_updates_are_those_of_float64() -> None:
    """After 10^6 updates over twelve orders of magnitude, one in eight of them to 0, every sum is float64's within 1e-5.

    So is each probability, and of 10^6 draws none has a priority of 0.
    """
    capacity, batch, updates = 2000, 64, 15_625
    state = make(capacity=capacity, num_goals=1, priority_exponent=1.0, priority_epsilon=0.0)

    def fill(state: herjax.BufferState, number: jax.Array) -> tuple[herjax.BufferState, None]:
        key = jax.random.fold_in(jax.random.key(0), number)
        return herjax.end_episode(herjax.add(state, number), -1 - number, key, number % 5 == 4), None

    state = jax.jit(lambda state: jax.lax.scan(fill, state, jnp.arange(capacity))[0])(state)
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 2 * capacity, (updates, batch)).astype(np.int32)
    priorities = (10.0 ** rng.uniform(-6, 6, (updates, batch)) * (rng.random((updates, batch)) > 0.125)).astype(np.float32)

    def update(state: herjax.BufferState, xs: tuple[jax.Array, jax.Array]) -> tuple[herjax.BufferState, None]:
        return herjax.update_priorities(state, *xs), None

    state = jax.jit(lambda state, xs: jax.lax.scan(update, state, xs)[0])(state, (indices, priorities))
    expected = np.ones(2 * capacity)
    for index, priority in zip(indices.ravel(), priorities.ravel(), strict=True):
        expected[index] = priority
    herjax.check(state)
    np.testing.assert_array_equal(state.tree[0][: 2 * capacity], expected.astype(np.float32))
    level = np.pad(expected, (0, state.tree[0].size - expected.size))
    for sums in state.tree[1:]:
        level = level.reshape(-1, sum_tree.FANOUT).sum(axis=1)
        level = np.pad(level, (0, sums.size - level.size))
        np.testing.assert_allclose(sums, level, rtol=1e-5)
    drawn = herjax.sample(state, jax.random.key(1), 1_000_000)
    assert np.all(expected[np.asarray(drawn.indices)] > 0)
    probabilities = expected[np.asarray(drawn.indices)] / expected.sum()
    np.testing.assert_allclose(drawn.probabilities, probabilities, rtol=1e-5)
