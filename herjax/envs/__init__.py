"""Goal-conditioned environments for gymnax >= 1.0; they know no buffer."""

from herjax.envs.bit_flip import BitFlip

__all__ = ["BitFlip"]
