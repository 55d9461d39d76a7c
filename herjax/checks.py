"""Checks of arguments: what is wrong is named, with its value and what to give instead."""

import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from herjax.faults import reported
from herjax.rows import Pytree


def whole(name: str, value: int, least: int | None = None) -> int:
    """The same number as Python's int. `TypeError` where `value` is no whole number, `ValueError` where it is below `least`."""
    wanted = "an int" if least is None else f"an int >= {least}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; give {wanted}.")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}; give {wanted}.")
    return int(value)


def number(name: str, value: float | None, most: float | None = None) -> float:
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


def number_or_array(name: str, value: jax.Array | float | None, most: float | None = None) -> jax.Array | float:
    """As `number`; or, of one number of JAX's, an array of its own, float32 [], checked as far as its value is known."""
    if isinstance(value, np.ndarray) and not value.shape:
        value = value.item()
    if not isinstance(value, jax.Array):
        return number(name, value, most)
    wanted = "a finite number >= 0" if most is None else f"a number in [0, {most:g}]"
    one = real(name, value, wanted + "; for several, vmap over init")
    if not isinstance(one, jax.core.Tracer):
        number(name, one.item(), most)
    fits = (one >= 0) & ((one < jnp.inf) if most is None else (one <= most))
    return reported(jnp.array(one, jnp.float32), fits, f"init: {name} must be {wanted}, but it is {{given}}", given=one)


def array(name: str, value: Pytree, wanted: str) -> jax.Array:
    """`value`, which may be traced, as an array; `TypeError` where it cannot be one."""
    try:
        return jnp.asarray(value if value is not None else "None")  # Some JAX take None for a NaN.
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is {value!r}; give {wanted}.") from error


def real(name: str, value: jax.Array | float, wanted: str) -> jax.Array:
    """`value`, which may be traced, as an array; refused where it is not one real number."""
    if value is None:
        raise ValueError(f"{name} is None; give {wanted}.")
    number = array(name, value, wanted)
    if number.shape or not any(jnp.issubdtype(number.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(f"{name} is of shape {number.shape} and dtype {number.dtype}; give {wanted}.")
    return number


def result(name: str, function: Callable[..., Any], **examples: Pytree) -> Pytree:
    """The shapes that a function of these examples, by position, returns; what it raises is explained.

    Raises:
      TypeError: it is no function, takes other arguments, asks for values that JAX only traces, or raises one itself.
      ValueError: it raises anything else.
    """
    call = f"({', '.join(examples)})"
    if not callable(function):
        raise TypeError(f"{name} is {function!r}; give a function {call}.")
    try:
        return jax.eval_shape(lambda *given: function(*given), *examples.values())  # noqa: PLW0108 - JAX would compare it by ==.
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_explained(name, function, examples, error)) from error


def _explained(name: str, function: Callable[..., Any], examples: dict[str, Pytree], error: Exception) -> str:
    """What is wrong with a function that raised `error` when it was given these examples."""
    call = f"({', '.join(examples)})"
    for kind, fault in _TRACED.items():
        if isinstance(error, kind):
            return f"{name} {fault}"
    if isinstance(error, TypeError) and _raised_by_the_call(error):
        try:
            takes = f"takes {inspect.signature(function)}"
        except (TypeError, ValueError):  # Some functions written in C do not tell.
            takes = "takes other arguments"
        return f"{name} is called as {name}{call}, and {takes} ({error}); give a function {call}, such as a lambda."
    shapes = ", ".join(f"{argument}: {_shapes(example)}" for argument, example in examples.items())
    return (
        f"{name} raised {type(error).__name__}: {error}. herjax calls it for one transition, without an axis for a batch, and "
        f"vmaps it; write it for {shapes}."
    )


def _raised_by_the_call(error: Exception) -> bool:
    """Whether a function's arguments were refused, rather than that something in it failed."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_code.co_filename == __file__


_TRACED: dict[type[Exception], str] = {
    jax.errors.TracerBoolConversionError: "asks whether a number is true, as `if`, `and`, `not` and `while` do, but JAX traces "
    "it and knows no number; use jnp.where, `&`, `~`.",
    jax.errors.TracerArrayConversionError: "makes NumPy arrays of its arguments, which JAX traces; use jax.numpy in it.",
    jax.errors.NonConcreteBooleanIndexError: "picks elements by a bool array, but JAX traces it and cannot say how many there "
    "are; use jnp.where.",
    jax.errors.ConcretizationTypeError: "makes a number of Python's of an array, as float() and int() do, but JAX traces it "
    "and knows no number; use jax.numpy in it, such as astype.",
    jax.errors.TracerIntegerConversionError: "takes a number for an index or a length of Python's, but JAX traces it and knows "
    "no number; use jax.numpy in it, such as jnp.take.",
}
"""What JAX refuses to do with what it traces, the special before the general."""


def _shapes(tree: Pytree) -> str:
    """Shapes and dtypes, short."""
    short = jax.tree.map(lambda leaf: _Short(f"{leaf.dtype}{list(leaf.shape)}"), tree)
    return str(short)


class _Short(str):
    """A text that is shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def scalar(name: str, result: Pytree, *kinds: type) -> None:
    """`ValueError` unless the function `name` has returned one number, not batched; `TypeError` unless of one of `kinds`."""
    if not isinstance(result, jax.ShapeDtypeStruct) or result.shape:
        raise ValueError(f"{name} returns {_shapes(result)}; return one scalar (shape ()) for one transition: herjax vmaps it.")
    if not any(jnp.issubdtype(result.dtype, kind) for kind in kinds):
        wanted = " or ".join({jnp.floating: "a float", jnp.integer: "an integer", jnp.bool_: "a bool"}[kind] for kind in kinds)
        raise TypeError(f"{name} returns dtype {result.dtype}; return {wanted}; astype converts it.")


def key(value: jax.Array | None) -> jax.Array:
    """The same. `TypeError` or `ValueError` unless `value` is one PRNG key."""
    if value is None or not hasattr(value, "dtype"):
        raise TypeError(f"key is {value!r}; give a PRNG key, such as jax.random.key(0).")
    typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not typed and value.dtype != jnp.uint32:
        raise TypeError(f"key has dtype {value.dtype}; give a PRNG key, such as jax.random.key(0).")
    if value.ndim != (0 if typed else 1):
        raise ValueError(f"key has shape {value.shape}; give one key, also for many environments: herjax splits it.")
    return value


def flags(
    name: str, value: jax.Array | bool, num_envs: int | None, remedy: str = "one bool; for n environments give init num_envs=n"
) -> jax.Array:
    """`value`, bool [], or [num_envs] if there is an axis for environments, as bool [num_envs or 1]; refuses all else."""
    expected = "()"
    if num_envs is not None:
        expected, remedy = f"() or ({num_envs},)", "one bool for all environments, or one for each"
    value = array(name, value, remedy)
    if value.shape and value.shape != (num_envs,):
        raise ValueError(f"{name} has shape {value.shape}, expected {expected}; pass {remedy}.")
    if value.dtype != jnp.bool_:
        raise TypeError(f"{name} has dtype {value.dtype}, expected bool; convert it with astype(bool).")
    return jnp.broadcast_to(value, (num_envs or 1,))
