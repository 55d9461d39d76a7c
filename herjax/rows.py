"""A pytree stored as one row of 32-bit words.

Writing a transition is then one update, and reading a sampled one is one gather, however many leaves it has. Values are kept
bit for bit, whatever their dtype, as long as selects act on rows, not on unpacked values: XLA may compute in float32 on a
bfloat16 and lose the bits of a NaN.
"""

import dataclasses
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from herjax import windows

Pytree: TypeAlias = Any
"""A pytree of arrays; JAX has no type for one."""

INT32_MAX = 2**31 - 1
_PACKED = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn")  # Two and more of these share a byte.
_MANY = 128  # Words of 32 bits.


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one leaf of the pytree lies in a row, and what it looks like outside."""

    path: str
    shape: tuple[int, ...]
    dtype: jnp.dtype
    start: int  # Its first word.
    words: int

    def __str__(self) -> str:
        """Its path, dtype and shape."""
        return f"{self.path} {self.dtype}{list(self.shape)}"

    @property
    def is_image(self) -> bool:
        """Whether it is many bytes, such as an image: they are read faster if they are not made words."""
        return self.dtype.itemsize == 1 and self.words >= _MANY


@dataclasses.dataclass(frozen=True, repr=False)
class Layout:
    """How a pytree of fixed structure, shapes and dtypes maps to a row. Static and hashable."""

    treedef: jax.tree_util.PyTreeDef
    leaves: tuple[Leaf, ...]
    unit: int = 4  # Bytes of a word: 4, or 1 if all leaves are of bytes.

    @classmethod
    def of(cls, name: str, tree: Pytree, unit: int = 4) -> "Layout":
        """The layout of `tree`, called `name` in messages, whose leaves are arrays, scalars or `jax.ShapeDtypeStruct`s.

        Raises:
          TypeError: a leaf's dtype cannot be stored as words (a typed PRNG key, a 4-bit integer, an object).
        """
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
        leaves: list[Leaf] = []
        start = 0
        for path, value in paths_and_leaves:
            leaf_path = name + jax.tree_util.keystr(path)
            shape, dtype = _aval(leaf_path, value)
            words = math.ceil(math.prod(shape) * _bytes(leaf_path, dtype) / unit)
            leaves.append(Leaf(leaf_path, shape, dtype, start, words))
            start += words
        return cls(treedef, tuple(leaves), unit)

    def __repr__(self) -> str:
        """Each leaf's path, dtype and shape."""
        return ", ".join(map(str, self.leaves))

    @property
    def words(self) -> int:
        """Words of a row."""
        return sum(leaf.words for leaf in self.leaves)

    def struct(self) -> Pytree:
        """The pytree of `jax.ShapeDtypeStruct`s that this layout stores."""
        return self.treedef.unflatten([jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.leaves])

    def check(self, name: str, tree: Pytree, num_envs: int | None = None) -> None:
        """Raises `ValueError` or `TypeError`, naming the leaf, where `tree` is not of this layout, or not `num_envs` of it."""
        paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
        if treedef != self.treedef:
            raise ValueError(f"{name} has the structure {treedef}, but init was given {self.treedef}; pass the same pytree.")
        leading = () if num_envs is None else (num_envs,)
        remedy = "pass one, unbatched; for n environments give init num_envs=n"
        if num_envs is not None:
            remedy = f"pass one of each of the {num_envs} environments, and init an example without that axis"
        for (path, value), leaf in zip(paths_and_leaves, self.leaves, strict=True):
            leaf_path = name + jax.tree_util.keystr(path)
            shape, dtype = _aval(leaf_path, value)
            if shape != leading + leaf.shape:
                raise ValueError(f"{leaf_path} has shape {shape}, expected {leading + leaf.shape} as at init; {remedy}.")
            if dtype != leaf.dtype:
                raise TypeError(f"{leaf_path} has dtype {dtype}, expected {leaf.dtype} as at init; convert it with astype.")

    def pack(self, tree: Pytree) -> jax.Array:
        """One pytree of this layout as one row, uint32 [words], or uint8."""
        values = self.treedef.flatten_up_to(tree)
        parts = [_to_words(jnp.asarray(value, leaf.dtype), self.unit) for leaf, value in zip(self.leaves, values, strict=True)]
        return jnp.concatenate(parts)

    def unpack(self, row: jax.Array) -> Pytree:
        """The pytree that `pack` made this row, [words], from."""
        parts = [_from_words(row[leaf.start : leaf.start + leaf.words], leaf) for leaf in self.leaves]
        return self.treedef.unflatten(parts)

    # Rows are stored one after another in an array without an axis for them, unless they are too many for an int32: a TPU pads
    # narrow rows with an axis of their own, and lays wide ones out anew to write them.

    def zeros(self, num_rows: int) -> jax.Array:
        """Rows of zeros, [num_rows * words] or [num_rows, words], uint32 or uint8."""
        flat = num_rows * self.words <= INT32_MAX
        return jnp.zeros(num_rows * self.words if flat else (num_rows, self.words), f"uint{8 * self.unit}")

    def read(self, rows: jax.Array, indices: jax.Array) -> jax.Array:
        """The rows at `indices`, int32 [n], all of which must be there: [n, words]."""
        return windows.read(rows, indices * self.words if rows.ndim == 1 else indices, self.words)

    def write(self, rows: jax.Array, starts: jax.Array, values: jax.Array) -> jax.Array:
        """Puts `values`, [n, k, words], in the k rows from each of `starts`, int32 [n], on. All rows must be there."""
        if rows.ndim == 1:
            starts, values = starts * self.words, values.reshape(values.shape[0], -1)
        return windows.write(rows, starts, values)


def dotted(path: tuple[Any, ...]) -> str:
    """A path in a pytree as names with dots between them, as the keystr of later JAX writes it."""
    return ".".join(str(name_of(key)) for key in path)


def name_of(key: Any) -> Any:
    """The name of a step of a path: a dict's key, an attribute, an element's number."""
    return next((getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)), key)


def _to_words(values: jax.Array, unit: int) -> jax.Array:
    if unit == 1:
        return values.ravel().view(jnp.uint8)
    if jnp.iscomplexobj(values):
        values = jnp.stack([values.real, values.imag], axis=-1)
    values = values.ravel()
    per_word = 4 // min(4, values.dtype.itemsize)
    bits = values.view(f"uint{32 // per_word}")
    if per_word == 1 or bits.size == 1:
        return bits.astype(jnp.uint32)
    padded = jnp.pad(bits, (0, -bits.size % per_word))
    return jax.lax.bitcast_convert_type(padded.reshape(-1, per_word), jnp.uint32)


def _from_words(words: jax.Array, leaf: Leaf) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        parts = words.view(f"float{4 * leaf.dtype.itemsize}").reshape(*leaf.shape, 2)
        return jax.lax.complex(parts[..., 0], parts[..., 1])
    bits, size = words, math.prod(leaf.shape)
    if leaf.dtype.itemsize < words.dtype.itemsize:
        narrow = f"uint{8 * leaf.dtype.itemsize}"
        bits = words.astype(narrow) if size == 1 else jax.lax.bitcast_convert_type(words, narrow).ravel()[:size]
    return bits.view(leaf.dtype).reshape(leaf.shape)


def _aval(path: str, value: Pytree) -> tuple[tuple[int, ...], jnp.dtype]:
    try:
        aval = jax.eval_shape(jnp.asarray, value) if not isinstance(value, jax.ShapeDtypeStruct) else value
    except TypeError as error:
        raise TypeError(f"{path} is {value!r}, which is no array; give arrays, scalars or jax.ShapeDtypeStruct.") from error
    extended = jnp.issubdtype(aval.dtype, jax.dtypes.extended)  # A key's.
    return tuple(aval.shape), aval.dtype if extended else jax.dtypes.canonicalize_dtype(aval.dtype)


def _bytes(path: str, dtype: jnp.dtype) -> int:
    """Bytes of one value."""
    numeric = dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.number)
    if not numeric or dtype.name in _PACKED:
        remedy = "use jax.random.key_data for keys, astype for integers or floats of less than 8 bits"
        raise TypeError(f"{path} has dtype {dtype}, which cannot be stored; convert it ({remedy}).")
    return int(dtype.itemsize)
