"""Which of XLA's flags this XLA knows. It aborts the process at one that it does not, so another process asks."""

import os
import subprocess
import sys

QUICK = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
"""XLA compiles quickly, rather than to fast code."""


def known(flags: tuple[str, ...]) -> str:
    """Those flags that XLA knows, as XLA_FLAGS has them. Takes a second or two."""
    if _accepts(flags):
        return " ".join(flags)
    return " ".join(flag for flag in flags if _accepts((flag,)))


def _accepts(flags: tuple[str, ...]) -> bool:
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    asked = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True, check=False
    )
    return asked.returncode == 0
