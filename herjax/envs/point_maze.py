"""A point in a maze, after the PointMaze tasks of D4RL (Fu et al. 2020, arXiv:2004.07219) and OGBench (arXiv:2410.20092)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces

from herjax.envs.table import Observation, Table, TableParams, TableState, commanded, observe

LAYOUTS = {
    "u": "##### #S..# ###.# #G..# #####",
    "medium": "######## #S.##..# #..#...# ##...### #..#...# #.#..#.# #...#.G# ########",
    "large": "############ #....#.....# #.##.#.#.#.# #......#...# #.####.###.#"
    " #..#G#.....# ##.#.#.#.### #S.#...#...# ############",
    "spiral": "######### #.......# #.#####.# #.#...#.# #.#.#.#.# #.#.#G#.# #.#.###.# #S#.....# #########",
}
"""Rows from the top: "#" a wall, "." free, "S" where episodes start, "G" where the goal is. The first three are as in D4RL."""


@struct.dataclass
class EnvParams(TableParams):
    """Parameters that may vary without recompilation. The unit of length is a cell's side, of time one step."""

    max_speed: float = 0.25  # length / step; of each component of the point's velocity.
    hand_radius: float = 0.1  # length; how near the point comes to a wall.
    tolerance: float = 0.5  # length; a goal no farther off is achieved.
    noise: float = 0.25  # length; of each component of start and goal, uniform around the middle of their cells.
    random_start: bool = False  # Whether episodes start in any free cell, all equally probable, and not in "S".
    random_goal: bool = False  # Whether goals are in any free cell, and not in "G".


class PointMaze(Table[TableState, EnvParams]):
    """Move a point through a maze to a goal. The reward is -1, and 0 within the tolerance.

    The cell in the lower left corner is [0, 1]^2. An action is the point's velocity in units of `params.max_speed`; the point
    goes along x first, then along y, as far as the walls let it, so that it slides along a wall that it meets aslant. No goal
    terminates an episode, which lasts twice as long as the shortest way from "S" to "G", cell by cell, takes. To draw a scene:
    `walls` has the rectangles, the `hand` of `TableState` is the point.

    Observed, float32 [2]: the point's position, which is also the achieved goal. An action is float32 [2].

    After the PointMaze tasks of D4RL (arXiv:2004.07219) and OGBench (arXiv:2410.20092), whose point is accelerated.

    Args:
      layout: "u", "medium", "large", "spiral", or the rows of another maze from the top, with blanks between them: "#" is a
        wall, "." free, "S" the start and "G" the goal. Walls must enclose it.

    Raises:
      ValueError: `layout` is no name and no such maze, or no way leads from "S" to "G".

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from herjax.envs import PointMaze
      >>> env = PointMaze("##### #S.G# #####")
      >>> params = env.default_params.replace(noise=0.0)
      >>> _, state = env.reset(jax.random.key(0), params)
      >>> state.hand.tolist(), state.goal.tolist()
      ([1.5, 1.5], [3.5, 1.5])
      >>> *_, info = env.step(jax.random.key(1), state, jnp.array([0.4, -1.0]), params)
      >>> [round(x, 3) for x in info["final_observation"]["achieved_goal"].tolist()]
      [1.6, 1.25]
    """

    def __init__(self, layout: str = "large") -> None:
        super().__init__()
        rows = LAYOUTS.get(layout, layout).split()
        cells = np.array([list(row) for row in rows][::-1]) if len(set(map(len, rows))) == 1 else np.full((1, 1), "?")
        edge = "".join([*cells[[0, -1]].ravel(), *cells[:, [0, -1]].ravel()])
        if set(cells.ravel()) - set("#.SG") or edge.strip("#") or any((cells == end).sum() != 1 for end in "SG"):
            names = ", ".join(LAYOUTS)
            raise ValueError(f'layout is {layout!r}; give {names}, or rows of "#" and "." with one "S" and one "G", walled in.')
        self.distance: int = _distance(cells)  # Moves from cell to cell from "S" to "G".
        if self.distance < 0:
            raise ValueError(f'layout is {layout!r}, in which no way leads from "S" to "G"; open one.')
        self.size: tuple[int, int] = (cells.shape[1], cells.shape[0])  # Width and height, in cells.
        corners = np.stack(np.meshgrid(*map(np.arange, self.size)), axis=-1).astype(np.float32)  # Lower left, of each cell.
        self.walls: np.ndarray = np.stack([corners, corners + 1], axis=2)[cells == "#"]  # float32 [walls, 2, 2]; two corners.
        self.free: np.ndarray = corners[cells != "#"] + 0.5  # float32 [cells, 2]; the middles of cells that are no walls.
        self.start, self.goal = (corners[cells == end][0] + 0.5 for end in "SG")

    @property
    def default_params(self) -> EnvParams:
        """The point crosses a cell in four steps; an episode has time for twice the way from "S" to "G"."""
        return EnvParams(max_steps_in_episode=int(2 * self.distance / EnvParams.max_speed))

    def step_env(
        self, key: jax.Array, state: TableState, action: int | float | jax.Array, params: EnvParams
    ) -> tuple[Observation, TableState, jax.Array, jax.Array, dict[Any, Any]]:
        """Moves the point by `params.max_speed * action`, float32 [2]; actions are clipped to [-1, 1], `key` is not used."""
        del key
        hand, motion = state.hand, commanded(action, params)
        low, high = self.walls[:, 0] - params.hand_radius, self.walls[:, 1] + params.hand_radius
        for axis in (0, 1):
            beside = (low[:, 1 - axis] < hand[1 - axis]) & (hand[1 - axis] < high[:, 1 - axis])  # Walls in the way.
            least = jnp.max(high[:, axis], where=beside & (high[:, axis] <= hand[axis]), initial=-jnp.inf)
            most = jnp.min(low[:, axis], where=beside & (low[:, axis] >= hand[axis]), initial=jnp.inf)
            hand = hand.at[axis].set(jnp.clip(hand[axis] + motion[axis], least, most))
        state = state.replace(time=state.time + 1, hand=hand)
        reward = self.compute_reward(hand, state.goal, params)
        return self.get_obs(state), state, reward, self.is_terminated(state, params), {}

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[Observation, TableState]:
        """Draws start and goal; `key` is used up."""
        drawn = jax.random.uniform(key, (2, 3), jnp.float32)
        anywhere = jnp.asarray(self.free)[(drawn[:, 0] * len(self.free)).astype(jnp.int32)]
        start = jnp.where(params.random_start, anywhere[0], self.start)
        goal = jnp.where(params.random_goal, anywhere[1], self.goal)
        hand, goal = jnp.stack([start, goal]) + params.noise * (2 * drawn[:, 1:] - 1)
        state = TableState(time=jnp.int32(0), hand=hand, goal=goal)
        return self.get_obs(state), state

    def get_obs(self, state: TableState, params: EnvParams | None = None, key: jax.Array | None = None) -> Observation:
        """What the agent sees of a state."""
        del params, key
        return observe(state.hand, state.hand, state.goal)

    @property
    def name(self) -> str:
        """The environment's name."""
        return "PointMaze-herjax"

    def observation_space(self, params: EnvParams) -> spaces.Dict:
        """Three positions in the maze."""
        del params
        return spaces.Dict({name: self._space() for name in ("observation", "achieved_goal", "desired_goal")})

    def state_space(self, params: EnvParams) -> spaces.Dict:
        """The fields of `TableState`."""
        time = spaces.Discrete(params.max_steps_in_episode + 1)
        return spaces.Dict({"time": time, "hand": self._space(), "goal": self._space()})

    def _space(self) -> spaces.Box:
        return spaces.Box(jnp.zeros(2), jnp.asarray(self.size, jnp.float32), (2,), jnp.float32)


def _distance(cells: np.ndarray) -> int:
    """Moves from "S" to "G"; -1 if no way leads there."""
    reached, free = cells == "S", cells != "#"
    for moves in range(cells.size):
        if reached[cells == "G"].any():
            return moves
        beside = [np.roll(reached, by, axis) for by in (-1, 1) for axis in (0, 1)]  # Nothing goes round: it is walled in.
        reached = free & np.any([reached, *beside], axis=0)
    return -1
