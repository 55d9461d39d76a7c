"""How a transition is stored: in columns. With `next_of`, two steps share some of them, and the first says where they are."""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from herjax.functions import Transition
from herjax.rows import Layout, Pytree, name_of

Words: TypeAlias = tuple[tuple[jax.Array, ...], ...]
"""A transition as it is stored: its row of each column; of a column that two steps share, the next row, too."""


class Column(NamedTuple):
    """Leaves of a transition, named by their numbers, that are stored in one array. One more number stands for `at`."""

    layout: Layout
    leaves: tuple[int, ...]
    later: tuple[int, ...] = ()  # Each the next of one of `leaves`, and not stored; none where steps do not share the column.

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """The leaves of its row of a transition, and, if steps share the column, those of the next row."""
        return (self.leaves, self.later) if self.later else (self.leaves,)

    def pack(self, leaves: list[Pytree]) -> tuple[jax.Array, ...]:
        """Its rows of a transition's leaves."""
        return tuple(self.layout.pack([leaves[leaf] for leaf in part]) for part in self.parts)

    def unpack(self, rows: tuple[jax.Array, ...]) -> dict[int, jax.Array]:
        """The leaves that `pack` made these rows from, by their numbers."""
        pairs = zip(self.parts, rows, strict=True)
        return {leaf: value for part, row in pairs for leaf, value in zip(part, self.layout.unpack(row), strict=True)}


@dataclasses.dataclass(frozen=True)
class Storage:
    """How a transition is stored. Static."""

    transition: Layout
    columns: tuple[Column, ...]
    images: int  # Of the columns, how many come before those of bytes.

    @classmethod
    def of(cls, transition: Layout, next_of: tuple[tuple[Hashable, Hashable], ...]) -> "Storage":
        """The storage of a transition, of whose fields each pair has a field and the one that it is the next of."""
        fields = _fields(transition)
        later_of = {now: later for pair in next_of for later, now in zip(*(fields[field] for field in pair), strict=True)}
        shared = list(later_of)
        alone = [leaf for leaf in range(len(transition.leaves)) if leaf not in {*shared, *later_of.values()}]
        images = [leaf for leaf in alone + shared if transition.leaves[leaf].is_image]
        words = [[leaf for leaf in part if transition.leaves[leaf].words and leaf not in images] for part in (alone, shared)]
        leaves = [*jax.tree.leaves(transition.struct()), jax.ShapeDtypeStruct((), jnp.int32)]
        if shared:
            words[0].insert(0, len(leaves) - 1)
        words = [group for group in words if group]

        def column(group: list[int], unit: int) -> Column:
            layout = Layout.of("column", [leaves[leaf] for leaf in group], unit)
            return Column(layout, tuple(group), tuple(later_of[leaf] for leaf in group if leaf in later_of))

        columns = [*(column(group, 4) for group in words), *(column([image], 1) for image in images)]
        return cls(transition, tuple(columns), len(words))

    def pack(self, transition: Transition, at: jax.Array | None) -> Words:
        """A transition as it is stored; `at`, int32 [], is where what two steps share is; None where there is no such thing."""
        leaves = [*self.transition.treedef.flatten_up_to(transition), at]
        return tuple(column.pack(leaves) for column in self.columns)

    def unpack(self, words: Words) -> Transition:
        """The transition that `pack` was given."""
        leaves = {
            number: jnp.zeros(leaf.shape, leaf.dtype) for number, leaf in enumerate(self.transition.leaves) if not leaf.words
        }
        for column, rows in zip(self.columns, words, strict=True):
            leaves |= column.unpack(rows)
        return self.transition.treedef.unflatten([leaves[leaf] for leaf in range(len(self.transition.leaves))])


def next_pairs(transition: Layout, next_of: Mapping[Any, Any] | None) -> tuple[tuple[Hashable, Hashable], ...] | None:
    """The fields of `next_of`, each with the one that it is the next of; None if there are none. Raises as `init` does."""
    if next_of is None:
        return None
    if not isinstance(next_of, Mapping):
        raise TypeError(f"next_of is {next_of!r}; give a dict, such as {{'next_observation': 'observation'}}.")
    fields = _fields(transition)
    for name in (*next_of, *next_of.values()):
        if not isinstance(name, Hashable) or name not in fields:
            there = f"its fields with arrays are {', '.join(map(repr, fields))}" if fields else "it has no fields"
            raise ValueError(f"next_of names {name!r}, which is no field of the transition: {there}; name two of its fields.")
    for later, now in next_of.items():
        if now in next_of:
            raise ValueError(
                f"next_of names {now!r} as a next field, and as the one that {later!r} is the next of; give pairs."
            )
        if twins := [other for other in next_of if next_of[other] == now and other != later]:
            raise ValueError(f"next_of has two fields, {later!r} and {twins[0]!r}, as the next of {now!r}; give one.")
        _check_alike(transition, later, now, fields)
    return tuple(sorted(next_of.items(), key=lambda pair: fields[pair[1]].start)) or None


def _check_alike(transition: Layout, later: Hashable, now: Hashable, fields: dict[Hashable, range]) -> None:
    """Raises unless both fields have one structure, and leaves of the same shapes and dtypes."""
    nodes = dict(zip(fields, (node for node in transition.treedef.children() if node.num_leaves), strict=True))
    if nodes[later] != nodes[now]:
        raise ValueError(
            f"next_of: {later!r} has the structure {nodes[later]}, and {now!r} has {nodes[now]}; give fields of one structure."
        )
    for pair in zip(fields[later], fields[now], strict=True):
        first, second = (transition.leaves[leaf] for leaf in pair)
        if (first.shape, first.dtype) != (second.shape, second.dtype):
            raise ValueError(f"next_of: {first}, and {second}; give fields whose arrays have the same shapes and dtypes.")


def _fields(transition: Layout) -> dict[Hashable, range]:
    """The numbers of the leaves of each field of a transition that has any, by its key or name."""
    fields: dict[Hashable, range] = {}
    paths, _ = jax.tree_util.tree_flatten_with_path(transition.struct())
    for number, (path, _) in enumerate(paths):
        if not path:
            return {}
        name = name_of(path[0])
        fields[name] = range(fields.get(name, range(number, number)).start, number + 1)
    return fields
