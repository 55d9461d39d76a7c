"""What the tests need of JAX that has had other names, or is not in every JAX that herjax works with."""

import jax
import pytest

# jax.typeof and jax.enable_x64 are of JAX 0.6 and 0.8.
typeof = jax.typeof if hasattr(jax, "typeof") else jax.core.get_aval
if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64

__all__ = ["enable_x64", "needs_explicit_axes", "needs_meshes", "typeof"]

needs_meshes = pytest.mark.skipif(
    not (hasattr(jax, "set_mesh") and hasattr(jax.lax, "pcast")), reason="meshes as of JAX 0.7: set_mesh, pcast"
)
needs_explicit_axes = pytest.mark.skipif(
    jax.__version_info__ < (0, 10), reason="vmap over an Explicit axis as of JAX 0.10: older ones refuse a select between lanes"
)
