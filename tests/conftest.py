"""Settings that every test runs under."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import Phase, settings

import herjax
import xla_flags

# `.ci/run` names the virtual environment that it installed the wheel into: no test may import the folder's herjax instead.
if (prefix := os.environ.get("HERJAX_INSTALLED_IN")) and Path(prefix).resolve() not in Path(herjax.__file__).resolve().parents:
    raise pytest.UsageError(f"herjax was imported from {herjax.__file__}, not from {prefix}; run pytest, not python -m pytest.")

# Most of the tests' time is XLA's, which compiles some thousand small programs: let it be quick, rather than make fast code.
# With XLA_FLAGS set, such as to "--xla_backend_optimization_level=3", it does as it does for users.
if "XLA_FLAGS" not in os.environ:  # Worker processes inherit it.
    os.environ["XLA_FLAGS"] = xla_flags.known(xla_flags.QUICK)

# To note where each operation was written takes JAX a fifth of the time.
jax.config.update("jax_traceback_in_locations_limit", 0)

# JAX leaves millions of objects behind, which Python would search for garbage again and again.
gc.set_threshold(100_000, 50, 1000)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# `--hypothesis-profile=no_shrink`: a failure is reported as found, for those who only want to know that there is one.
settings.register_profile("no_shrink", phases=[Phase.explicit, Phase.generate])


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_file() -> Iterator[None]:
    """Compiled programs are forgotten at the end of a file: XLA fails where one process has too many of them mapped."""
    yield
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    """A fixed key."""
    return jax.random.key(0)


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For tests of scripts: optax promotes an integer step count, and flax the rank of a bias."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
