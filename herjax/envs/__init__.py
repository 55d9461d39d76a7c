"""Goal-conditioned environments for gymnax >= 1.0; they know no buffer."""

from importlib.metadata import distributions

_found = next((gymnax.version for gymnax in distributions(name="gymnax")), "")
if _found < "1":
    raise ImportError(f"herjax.envs needs gymnax >= 1.0, but {_found or 'none'} is installed; pip install 'gymnax>=1.0'.")

from herjax.envs.bit_flip import BitFlip
from herjax.envs.planar_push import PlanarPush
from herjax.envs.planar_reach import PlanarReach
from herjax.envs.point_maze import PointMaze

__all__ = ["BitFlip", "PlanarPush", "PlanarReach", "PointMaze"]
