"""Goal-conditioned environments for gymnax >= 1.0; they know no buffer."""

from herjax.envs.bit_flip import BitFlip
from herjax.envs.planar_push import PlanarPush
from herjax.envs.planar_reach import PlanarReach

__all__ = ["BitFlip", "PlanarPush", "PlanarReach"]
