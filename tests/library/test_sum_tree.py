"""The sum tree against float64."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from herjax import sum_tree

FILL = jax.jit(lambda tree, start, values: sum_tree.set_windows(tree, start[None], values[None]))
SET = jax.jit(lambda tree, indices, values: sum_tree.set_windows(tree, indices, values[:, None]))
UPDATE = jax.jit(sum_tree.set_leaves)
FIND = jax.jit(sum_tree.find)


def tree_of(values: np.ndarray) -> sum_tree.SumTree:
    """A tree with these leaves."""
    return FILL(sum_tree.init(len(values)), jnp.int32(0), jnp.asarray(values, jnp.float32))


def check_sums(tree: sum_tree.SumTree) -> None:
    """Every node is the float64 sum of its leaves, to a few roundings of float32."""
    sums = np.asarray(tree[0], np.float64)
    for level in tree[1:]:
        sums = sums.reshape(-1, sum_tree.FANOUT).sum(axis=1)
        np.testing.assert_allclose(level[: sums.size], sums, rtol=1e-6)
        assert not np.any(level[sums.size :]), "padding carries no value"
        sums = np.pad(sums, (0, level.size - sums.size))


@pytest.mark.parametrize("num_leaves", [1, 7, 8, 9, 64, 65, 1000])
def test_finds_the_leaf_that_holds_the_target(num_leaves: int) -> None:
    """`find` agrees with a search in float64 cumulative sums, wherever the target lies."""
    values = np.random.default_rng(num_leaves).integers(0, 9, num_leaves).astype(np.float32)
    values[num_leaves // 2] = 3  # At least one is not zero.
    targets = np.arange(values.sum(), dtype=np.float32) + 0.5
    leaves, found = FIND(tree_of(values), targets, jnp.zeros_like(targets))
    np.testing.assert_array_equal(leaves, np.searchsorted(np.cumsum(values, dtype=np.float64), targets, side="right"))
    np.testing.assert_array_equal(found, values[leaves])


@pytest.mark.parametrize("num_leaves", [300, 20_000])  # Levels that are recomputed whole, and larger ones.
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_any_sequence_of_writes_keeps_every_sum(num_leaves: int, data: st.DataObject) -> None:
    """After windows and single leaves written in any order, leaves are as in NumPy and nodes are the float64 sums."""
    window, batch = 37, 5
    tree, leaves = sum_tree.init(num_leaves), np.zeros(num_leaves, np.float32)
    magnitudes = st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 1e3, 1e6])
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):
            start = data.draw(st.integers(0, num_leaves - window))
            values = np.float32(data.draw(magnitudes)) * np.arange(window, dtype=np.float32)
            tree = FILL(tree, jnp.int32(start), values)
            leaves[start : start + window] = values
        else:
            indices = np.asarray(data.draw(st.lists(st.integers(0, num_leaves - 1), min_size=batch, max_size=batch)))
            magnitude = np.float32(data.draw(magnitudes))
            values = (indices % 7).astype(np.float32) * magnitude  # Alike for an index that comes twice.
            tree = SET(tree, jnp.asarray(indices, jnp.int32), values)
            leaves[indices] = values
    np.testing.assert_array_equal(tree[0][:num_leaves], leaves)
    check_sums(tree)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_the_last_value_of_a_leaf_wins(data: st.DataObject) -> None:
    """In any order, and however often one comes, each leaf holds its last value, as NumPy's writes one by one leave it."""
    num_leaves, batch = 5_000, 24
    near = st.integers(0, 9) | st.integers(0, num_leaves - 1)
    tree = tree_of(np.full(num_leaves, 2.0))
    leaves = np.full(num_leaves, 2.0, np.float32)
    for turn in range(3):
        indices = np.asarray(data.draw(st.lists(near, min_size=batch, max_size=batch)), np.int32)
        values = np.float32(turn + 1) * np.arange(batch, dtype=np.float32)
        tree = UPDATE(tree, indices, values)
        for index, value in zip(indices, values, strict=True):
            leaves[index] = value
    np.testing.assert_array_equal(tree[0][:num_leaves], leaves)
    check_sums(tree)


def test_a_leaf_of_zero_is_never_found(key: jax.Array) -> None:
    """Where half the leaves are zero and the rest span twelve orders of magnitude, every draw has a value."""
    rng = np.random.default_rng(0)
    values = 10.0 ** rng.uniform(-6, 6, 100_000) * (rng.random(100_000) < 0.5)
    tree = tree_of(values)
    mass = sum_tree.total(tree)
    edges = jnp.asarray([0.0, 1.0, 1.0 - 2.0**-24, 2.0], jnp.float32) * mass  # The last two at and past the end.
    targets = jnp.concatenate([jax.random.uniform(key, (100_000,)) * mass, edges])
    leaves, found = FIND(tree, targets, jnp.zeros_like(targets))
    assert np.all(found > 0)
    np.testing.assert_array_equal(found, np.asarray(tree[0])[leaves])


def test_no_rounding_builds_up(key: jax.Array) -> None:
    """Twenty thousand updates that go from large to small priorities leave sums as exact as fresh ones."""
    size, batch = 4096, 64

    def update(tree: sum_tree.SumTree, key: jax.Array) -> tuple[sum_tree.SumTree, None]:
        key_index, key_value = jax.random.split(key)
        indices = (jax.random.randint(key_index, (), 0, size) + 61 * jnp.arange(batch)) % size  # All different.
        return SET(tree, indices, 10 ** jax.random.uniform(key_value, (batch,), minval=-6, maxval=6)), None

    keys = jax.random.split(key, 20_000)
    tree, _ = jax.jit(lambda tree: jax.lax.scan(update, tree, keys))(tree_of(np.full(size, 1e6)))
    check_sums(tree)
    tree = FILL(tree, jnp.int32(0), jnp.full(size, 1e-3))
    check_sums(tree)


def test_every_one_of_a_million_leaves_is_reached() -> None:
    """With a residue, targets on a fine grid reach each leaf in proportion; float32 targets alone would miss some."""
    size = 3_000_000
    values = np.ones(size, np.float32) + 0.5 * (np.arange(size) % 3)
    tree = tree_of(values)
    first = size - 5_000  # Where one float32 is coarsest: a step there is worth 0.25.
    cumulative = np.cumsum(values, dtype=np.float64)
    exact = np.linspace(cumulative[first - 1], cumulative[-1], 200_000, endpoint=False) + 1e-3
    targets = exact.astype(np.float32)
    leaves, _ = FIND(tree, targets, (exact - targets).astype(np.float32))
    counts = np.bincount(leaves, minlength=size)[first:]
    expected = 200_000 * values[first:] / values[first:].sum()
    np.testing.assert_allclose(counts, expected, atol=3)
