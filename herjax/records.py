"""A training state as JSON, without its arrays: settings, notes, and the shapes of its parts."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import jax
import numpy as np

from herjax.functions import Function
from herjax.rows import Layout, Pytree, dotted
from herjax.state import BufferState
from herjax.strategies import Mixture

Json: TypeAlias = dict[str, Any]
"""What JSON can say, by name."""

_STORED = (np.number, np.bool_, jax.dtypes.prng_key)  # Kinds of arrays.
_NOT_STORED = {np.dtype(np.longdouble), np.dtype(np.clongdouble)} - {np.dtype(np.float64), np.dtype(np.complex128)}
_WHOLE: dict[str, Any] = {"threshold": sys.maxsize, "floatmode": "unique", "precision": 8, "suppress": False, "linewidth": 75}
_WHOLE |= {"sign": "-", "nanstr": "nan", "infstr": "inf", "formatter": None, "legacy": False}
"""How NumPy prints all of an array, whatever the caller's settings."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe(tree: Pytree) -> Json:
    """What must be alike for one state to go on as another: each buffer's settings, and each array's shape and dtype.

    Functions count by their names, so give those that differ different ones. `restore` compares it; where orbax is used by
    itself, it can be kept beside the state.

    Example:
      >>> import jax.numpy as jnp, herjax.checkpoints as checkpoints
      >>> checkpoints.describe({"steps": jnp.int32(3), "weights": jnp.zeros((2, 4))})
      {'steps': 'int32[]', 'weights': 'float32[2, 4]'}
    """
    found: Json = {}
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, BufferState))
    for path, buffer in nodes:
        if isinstance(buffer, BufferState):
            for field in dataclasses.fields(buffer.config):
                _put(found, _dotted(path, field.name), _described(field.name, getattr(buffer.config, field.name)))
    for name, leaf in leaves_by_name(tree).items():
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jax.numpy.result_type(leaf)
        _put(found, name, f"{dtype}{list(np.shape(leaf))}")
    return found


def leaves_by_name(tree: Pytree) -> Json:
    """The arrays of a tree. `TypeError` where one cannot be stored, `ValueError` where two have one name."""
    leaves: Json = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = _dotted(path) or "array"
        stored = _is_array(leaf, *_STORED) or isinstance(leaf, jax.ShapeDtypeStruct | bool | int | float)
        if not stored or getattr(leaf, "dtype", None) in _NOT_STORED:
            raise TypeError(f"{name} is {leaf!r}, which cannot be stored; give arrays, numbers or keys.")
        _put(leaves, name, leaf)
    return leaves


def _put(named: Json, name: str, value: Any) -> None:
    if name in named:
        raise ValueError(f"two parts of the tree are called {name}; give one of them another name.")
    named[name] = value


def settings_as_json(settings: Json) -> Json:
    """Settings, so that they can be compared: as they are, or by a text that is the same in each process."""
    found: Json = _as_json("settings", settings, _described)
    return found


def notes_as_json(notes: Json) -> Json:
    """Notes, as they come back. `TypeError` where one would not."""
    found: Json = _as_json("notes", notes, _refuse)
    return found


def _as_json(name: str, value: Any, otherwise: Callable[[str, Any], Any]) -> Any:
    """The same as JSON brings it back: numbers and arrays of NumPy's and JAX's as Python's, a tuple as a list.

    Args:
      name: what it is called in messages.
      value: what to keep.
      otherwise: gives, by its name, what JSON has no word for.
    """
    if isinstance(value, str | bool | int | float | None):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{name} has the key {key!r}; give names as keys.")
        return {key: _as_json(f"{name}[{key!r}]", each, otherwise) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(f"{name}[{place}]", each, otherwise) for place, each in enumerate(value)]
    if _is_array(value, np.floating, np.integer, np.bool_):
        return np.asarray(value, np.float64 if _is_array(value, np.floating) else None).tolist()
    return otherwise(name, value)


def _is_array(value: Any, *kinds: Any) -> bool:
    """Whether it is an array of NumPy's or JAX's, or a scalar, of one of these kinds of numbers."""
    arrays = isinstance(value, np.ndarray | np.generic | jax.Array)
    return arrays and any(jax.numpy.issubdtype(value.dtype, kind) for kind in kinds)


def _refuse(name: str, value: Any) -> NoReturn:
    raise TypeError(f"{name} is {value!r}, which would not come back; give numbers, text, arrays of numbers, lists or dicts.")


def _described(name: str, value: Any) -> Any:
    """A setting as JSON, the same in each process; of functions their name, since where they lie in memory tells nothing."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if _is_array(value, np.complexfloating):
        return [_as_json(name, part, _refuse) for part in (np.real(value), np.imag(value))]
    if isinstance(value, set | frozenset):
        return sorted((_as_json(name, each, _described) for each in value), key=json.dumps)
    if callable(value) and not isinstance(value, Function):
        value = Function(value)
    named = isinstance(value, Function | Mixture | Layout)
    if dataclasses.is_dataclass(value) and not named:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
        return {type(value).__qualname__: _as_json(name, fields, _described)}
    with np.printoptions(**_WHOLE):
        text = str(value)
    found = _ADDRESS.sub("", text)
    if found != text and not named:
        raise TypeError(f"{name} is {value!r}, whose text differs in each process; give numbers, text, arrays or functions.")
    return found


def _dotted(path: tuple[Any, ...], *names: str) -> str:
    return ".".join([part for part in [dotted(path), *names] if part])
