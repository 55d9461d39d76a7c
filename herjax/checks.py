"""Checks of arguments: what is wrong is named, with its value and what to give instead."""

import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp

from herjax.rows import Pytree


def whole(name: str, value: int, least: int) -> int:
    """The same number as Python's int. `TypeError` where `value` is no whole number, `ValueError` where it is below `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; give an int >= {least}.")
    if value < least:
        raise ValueError(f"{name} is {value}; give an int >= {least}.")
    return int(value)


def number(name: str, value: float, most: float | None = None) -> float:
    """The same number as Python's float. `TypeError` where it is none, `ValueError` where it is not in [0, most], or finite."""
    wanted = "a finite number >= 0" if most is None else f"a number in [0, {most:g}]"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; give {wanted}.")
    try:
        plain = float(value)
    except OverflowError:  # Of an int of Python's.
        plain = math.inf
    if not 0 <= plain < math.inf or (most is not None and plain > most):
        raise ValueError(f"{name} is {value}; give {wanted}.")
    return plain


def real(name: str, value: jax.Array | float, wanted: str) -> jax.Array:
    """`value`, which may be traced, as an array; refused where it is not one real number."""
    if value is None:
        raise ValueError(f"{name} is None; give {wanted}.")
    array = jnp.asarray(value)
    if array.shape or not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(f"{name} is of shape {array.shape} and dtype {array.dtype}; give {wanted}.")
    return array


def function(name: str, value: Callable[..., Any], *arguments: str) -> None:
    """`TypeError` unless `value` is a function of these arguments."""
    call = f"({', '.join(arguments)})"
    if not callable(value):
        raise TypeError(f"{name} is {value!r}; give a function {call}.")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # Some functions written in C do not tell.
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"{name} is called as {name}{call}, and takes {signature} ({error}); give a function {call}, such as a lambda."
        ) from error


def result(name: str, function: Callable[..., Any], *examples: Pytree) -> Pytree:
    """The shapes that a function of these examples returns. `TypeError` where it takes them out of JAX."""
    try:
        return jax.eval_shape(function, *examples)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(f"{name} makes NumPy arrays of its arguments, which JAX traces; use jax.numpy in it.") from error


def scalar(name: str, result: Pytree) -> None:
    """`ValueError` unless the function `name` has returned one number, not batched."""
    if not isinstance(result, jax.ShapeDtypeStruct) or result.shape:
        raise ValueError(f"{name} returns {result}; return one scalar (shape ()) for one transition: herjax vmaps it.")


def key(value: jax.Array) -> None:
    """`TypeError` or `ValueError` unless `value` is one PRNG key."""
    if not hasattr(value, "dtype"):
        raise TypeError(f"key is {value!r}; give a PRNG key, such as jax.random.key(0).")
    typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not typed and value.dtype != jnp.uint32:
        raise TypeError(f"key has dtype {value.dtype}; give a PRNG key, such as jax.random.key(0).")
    if value.ndim != (0 if typed else 1):
        raise ValueError(f"key has shape {value.shape}; give one key, also for many environments: herjax splits it.")


def flags(name: str, value: jax.Array | bool, num_envs: int | None) -> jax.Array:
    """`value`, bool [], or [num_envs] if there is an axis for environments, as bool [num_envs or 1]; refuses all else."""
    value = jnp.asarray(value)
    if value.shape and value.shape != (num_envs,):
        expected = "()" if num_envs is None else f"() or ({num_envs},)"
        remedy = "one bool" if num_envs is None else "one bool for all environments, or one for each"
        raise ValueError(f"{name} has shape {value.shape}, expected {expected}; pass {remedy}.")
    if value.dtype != jnp.bool_:
        raise TypeError(f"{name} has dtype {value.dtype}, expected bool; convert it with astype(bool).")
    return jnp.broadcast_to(value, (num_envs or 1,))
