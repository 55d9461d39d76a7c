"""A pytree stored as one row of machine words.

Leaves of one width lie side by side in one array, so that writing a transition is one update and reading a sampled one is
one gather, however many fields it has. Values are kept bit for bit, whatever their dtype, so long as rows and not values are
chosen among: XLA may compute in float32 on a bfloat16 and lose the bits of a NaN.
"""

import dataclasses
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Pytree: TypeAlias = Any
"""A pytree of arrays; JAX has no type for one."""

Rows: TypeAlias = dict[str, jax.Array]
"""Words by their dtype's name ("uint8", "uint16", "uint32"): each [..., words]."""

_PACKED = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn")  # Two and more of these share a byte.
_NARROW_LEAF = 4  # A leaf of fewer elements is widened to 32-bit words rather than bringing an array of its own.


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one leaf of the pytree lies in a row, and what it looks like outside."""

    path: str
    shape: tuple[int, ...]
    dtype: jnp.dtype
    group: str  # The dtype of the words that it is stored in.
    start: int  # Its first word in that group.
    words: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a pytree of fixed structure, shapes and dtypes maps to a row. Static and hashable."""

    treedef: jax.tree_util.PyTreeDef
    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, name: str, tree: Pytree) -> "Layout":
        """The layout of `tree`, called `name` in messages, whose leaves are arrays, scalars or `jax.ShapeDtypeStruct`s.

        Raises:
          TypeError: a leaf's dtype cannot be stored as words (a typed PRNG key, a 4-bit integer, an object).
        """
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
        used: dict[str, int] = {}
        leaves = []
        for path, value in paths_and_leaves:
            leaf_path = name + jax.tree_util.keystr(path)
            shape, dtype = _aval(leaf_path, value)
            size = math.prod(shape)
            word = _word(leaf_path, dtype)
            group = word if size >= _NARROW_LEAF else "uint32"
            words = size * max(1, dtype.itemsize // 4)
            start = used.get(group, 0)
            used[group] = start + words
            leaves.append(Leaf(leaf_path, shape, dtype, group, start, words))
        return cls(treedef, tuple(leaves))

    def struct(self) -> Pytree:
        """The pytree of `jax.ShapeDtypeStruct`s that this layout stores."""
        return self.treedef.unflatten([jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.leaves])

    def zeros(self, num_rows: int) -> Rows:
        """`num_rows` rows of zeros, each array [num_rows, words]."""
        widths: dict[str, int] = {}
        for leaf in self.leaves:
            widths[leaf.group] = widths.get(leaf.group, 0) + leaf.words
        return {group: jnp.zeros((num_rows, words), group) for group, words in widths.items() if words}

    def check(self, name: str, tree: Pytree, num_envs: int | None = None) -> None:
        """Raises `ValueError` or `TypeError`, naming the leaf, where `tree` is not of this layout, or not `num_envs` of it."""
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
        if treedef != self.treedef:
            raise ValueError(f"{name} has the structure {treedef}, but init was given {self.treedef}; pass the same pytree.")
        leading = () if num_envs is None else (num_envs,)
        remedy = "pass one, unbatched" if num_envs is None else f"pass one of each of the {num_envs} environments"
        for (path, value), leaf in zip(paths_and_leaves, self.leaves, strict=True):
            leaf_path = name + jax.tree_util.keystr(path)
            shape, dtype = _aval(leaf_path, value)
            if shape != leading + leaf.shape:
                raise ValueError(f"{leaf_path} has shape {shape}, expected {leading + leaf.shape} as at init; {remedy}.")
            if dtype != leaf.dtype:
                raise TypeError(f"{leaf_path} has dtype {dtype}, expected {leaf.dtype} as at init; convert it with astype.")

    def pack(self, tree: Pytree) -> Rows:
        """One pytree of this layout as one row: each array [words]."""
        groups: dict[str, list[jax.Array]] = {}
        for leaf, value in zip(self.leaves, self.treedef.flatten_up_to(tree), strict=True):
            if leaf.words:
                values = jnp.asarray(value, leaf.dtype)
                if jnp.iscomplexobj(values):
                    values = jnp.stack([values.real, values.imag], axis=-1)
                bits = values.ravel().view(_word(leaf.path, leaf.dtype))
                groups.setdefault(leaf.group, []).append(bits.astype(leaf.group))
        return {group: jnp.concatenate(parts) for group, parts in groups.items()}

    def unpack(self, row: Rows) -> Pytree:
        """The pytree that `pack` made this row (each array [words]) from."""
        return self.treedef.unflatten([_leaf(leaf, row) for leaf in self.leaves])


def read(rows: Pytree, indices: jax.Array) -> Pytree:
    """The rows at `indices`, int32 of any shape, all of which must be there."""
    return jax.tree.map(lambda words: words.at[indices].get(mode="promise_in_bounds", wrap_negative_indices=False), rows)


def write(rows: Pytree, indices: jax.Array, values: Pytree) -> Pytree:
    """Puts values in the rows at `indices`, int32 [n] >= 0; those past the end are dropped."""
    return jax.tree.map(lambda words, new: words.at[indices].set(new, mode="drop", wrap_negative_indices=False), rows, values)


def _leaf(leaf: Leaf, row: Rows) -> jax.Array:
    if not leaf.words:
        return jnp.zeros(leaf.shape, leaf.dtype)
    words = row[leaf.group][leaf.start : leaf.start + leaf.words]
    bits = words.astype(_word(leaf.path, leaf.dtype))
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        parts = bits.view(f"float{4 * leaf.dtype.itemsize}").reshape(*leaf.shape, 2)
        return jax.lax.complex(parts[..., 0], parts[..., 1])
    return bits.view(leaf.dtype).reshape(leaf.shape)


def _aval(path: str, value: Pytree) -> tuple[tuple[int, ...], jnp.dtype]:
    try:
        aval = jax.eval_shape(jnp.asarray, value) if not isinstance(value, jax.ShapeDtypeStruct) else value
    except TypeError as error:
        raise TypeError(f"{path} is {value!r}, which is no array; give arrays, scalars or jax.ShapeDtypeStruct.") from error
    return tuple(aval.shape), aval.dtype


def _word(path: str, dtype: jnp.dtype) -> str:
    """The unsigned words that hold a value's bits."""
    numeric = dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.number)
    if not numeric or dtype.name in _PACKED:
        remedy = "use jax.random.key_data for keys, astype for integers or floats of less than 8 bits"
        raise TypeError(f"{path} has dtype {dtype}, which cannot be stored; convert it ({remedy}).")
    return {1: "uint8", 2: "uint16"}.get(dtype.itemsize, "uint32")
