"""Faults that only run-time values show: named where the caller wraps the loop in checkify, and nothing at all elsewhere.

`checkify.debug_check` is an effect. JAX calls a program with effects by way of Python, which takes five times as long. So a
fault rides on a value: a primitive returns the value as it is, and checkify alone has a rule for it.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

try:
    from jax._src import checkify  # Its table of rules is in no public module.
    from jax._src.checkify import FailedCheckError, assert_func, error_checks, get_traceback
except ImportError:  # Of a JAX that has moved it: faults are counted, and not named.
    error_checks = {}

_reported = Primitive("herjax_reported")


def reported(value: jax.Array, holds: jax.Array, message: str, **values: jax.Array) -> jax.Array:
    """The same `value`; under checkify, the fault `message` where `holds`, bool [], is False.

    Args:
      value: what the fault rides on. Use what is returned: else XLA drops it, and the fault is never named.
      holds: whether all is well.
      message: has a place for each of `values`.
      values: scalars, by name.
    """
    with_fault: jax.Array = _reported.bind(value, holds, *values.values(), message=message, names=tuple(values))
    return with_fault


def _checkify_rule(*arguments: Any, message: str, names: tuple[str, ...]) -> tuple[Any, jax.Array]:
    # From jax 0.11 on, a rule is given a context before all else, which `assert_func` wants back.
    with_context = hasattr(checkify, "CheckifyContext")
    context, (error, enabled, value, holds, *values) = arguments[:with_context], arguments[with_context:]
    if FailedCheckError not in enabled or on_explicit_axes():
        return error, value
    first = jnp.argmin(jnp.ravel(holds))  # Of the lanes of a vmap, the first in which it does not hold.
    found = {name: jnp.ravel(each)[first] for name, each in zip(names, values, strict=True)}
    fault = FailedCheckError(get_traceback(), message, **found)
    # Its arguments differ from JAX to JAX.
    return cast(Any, assert_func)(*context, error, ~jnp.all(holds), fault), value


def on_explicit_axes() -> bool:
    """Whether lanes are shared out over an Explicit axis of a mesh: checkify cannot put their errors together (jax 0.10.2).

    Nothing is named there.
    """
    if not hasattr(jax.sharding, "AxisType"):  # Before jax 0.5 no axis was.
        return False
    return jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def _batching_rule(arguments: list[jax.Array], axes: list[int | None], **params: object) -> tuple[jax.Array, int | None]:
    value, *rest = arguments
    (size,) = {each.shape[axis] for each, axis in zip(arguments, axes, strict=True) if axis is not None}
    rest = [
        jnp.broadcast_to(each, (size, *each.shape)) if axis is None else jnp.moveaxis(each, axis, 0)
        for each, axis in zip(rest, axes[1:], strict=True)
    ]
    return _reported.bind(value, *rest, **params), axes[0]


def _jvp_rule(primals: list[jax.Array], tangents: list[jax.Array], **params: object) -> tuple[jax.Array, jax.Array]:
    return _reported.bind(*primals, **params), tangents[0]


error_checks[_reported] = _checkify_rule
batching.primitive_batchers[_reported] = _batching_rule
ad.primitive_jvps[_reported] = _jvp_rule
_reported.def_impl(lambda value, *_, **__: value)
_reported.def_abstract_eval(lambda value, *_, **__: value)
mlir.register_lowering(_reported, lambda _, value, *__, **___: [value])
