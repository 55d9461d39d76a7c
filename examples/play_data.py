"""Play data in OGBench's format (arXiv:2410.20092): files, mazes to play in, and the five tasks of each maze.

Mazes need `pip install ".[ogbench]"`; files need nothing.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import experiment

import numpy as np

Maze: TypeAlias = Literal["medium", "large", "giant"]
TASKS = 5
STEPS = 1000  # Of an episode that is played, or evaluated.
PAPER = {"large": {"gciql": 0.34, "hiql": 0.58}, "medium": {"gciql": 0.53, "hiql": 0.79}}  # OGBench's own success, by navigate.
COLOURS = {"gciql": "tab:blue", "hiql": "tab:orange"}


class Transition(NamedTuple):
    """One step; observations are goals, too."""

    observation: Any  # float32 [D]
    action: Any  # float32 [A]; in [-1, 1].
    next_observation: Any  # float32 [D]


def load(path: Path) -> tuple[Transition, np.ndarray]:
    """Reads E episodes of at most T steps from a file in OGBench's format.

    Its rows are steps; the last one of an episode, marked in `terminals`, has the state that the episode ended in.

    Returns:
      Transitions, leaves float32 [E, T, ...], and which of them there are, bool [E, T].
    """
    with np.load(path) as file:
        observations, actions = np.float32(file["observations"]), np.float32(file["actions"])
        ends = np.flatnonzero(file["terminals"])
    starts = np.concatenate([[0], ends[:-1] + 1])
    rows = starts[:, None] + np.arange((ends - starts).max())
    mask = rows < ends[:, None]
    rows = np.where(mask, rows, 0)
    return Transition(observations[rows], actions[rows], observations[rows + 1]), mask


@cache
def make_env(maze: Maze, number: int, plays: bool) -> Any:
    """The maze, and others like it by other numbers; where one plays, episodes go on at a goal."""
    import gymnasium  # noqa: PLC0415 - training alone needs no simulator.
    import ogbench  # noqa: F401, PLC0415 - registers its environments.

    del number
    settings = {"terminate_at_goal": False, "max_episode_steps": STEPS + 1} if plays else {}
    return gymnasium.make(f"pointmaze-{maze}-v0", disable_env_checker=True, **settings)


def junctions(walls: np.ndarray) -> np.ndarray:
    """The free cells [n, 2] that are no piece of a straight corridor; `walls` [rows, columns] is 1 where a wall is."""
    free = [(i, j) for i, j in np.argwhere(walls == 0)]
    beside = [[walls[i - 1, j], walls[i + 1, j], walls[i, j - 1], walls[i, j + 1]] for i, j in free]
    corridor = [up == down and left == right and up != left for up, down, left, right in beside]
    return np.asarray(free)[~np.asarray(corridor)]


def play(name: Maze, episodes: int, seed: int) -> dict[str, np.ndarray]:
    """Plays as in OGBench's `navigate`: from anywhere to one junction after the other, in noisy steps.

    Returns:
      The columns of a file, with 1,001 rows for each episode of 1,000 steps.
    """
    maze = make_env(name, 0, plays=True).unwrapped
    ends, free, rng = junctions(maze.maze_map), np.argwhere(maze.maze_map == 0), np.random.default_rng(seed)
    np.random.seed(seed)  # The mazes draw from NumPy's own generator.
    towards = cache(lambda *cells: maze.get_oracle_subgoal(*map(maze.ij_to_xy, cells))[0])  # A search in the maze's cells.
    data: dict[str, list[Any]] = {"observations": [], "actions": [], "terminals": []}
    for _ in range(episodes):
        task = {"init_ij": rng.choice(free), "goal_ij": rng.choice(ends)}
        observation, _ = maze.reset(options={"task_info": task})
        for step in range(STEPS + 1):
            way = towards(*map(maze.xy_to_ij, (maze.get_xy(), maze.cur_goal_xy))) - maze.get_xy()
            action = np.clip(way / (np.linalg.norm(way) + 1e-6) + rng.normal(0, 0.5, 2), -1, 1)
            for column, each in zip(data.values(), (observation, action, step == STEPS), strict=True):
                column.append(each)
            observation, *_, info = maze.step(action)
            if info["success"]:
                maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(rng.choice(ends))))
    kinds = {"observations": np.float32, "actions": np.float32, "terminals": bool}
    return {column: np.asarray(data[column], kind) for column, kind in kinds.items()}


def find(data: str | None, out: Path, maze: Maze, episodes: int, seed: int) -> Path:
    """The file to learn from: the one that is given, or one in `out`, which is played first unless it is there."""
    path = Path(data) if data else out / f"pointmaze-{maze}-navigate-{episodes}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **play(maze, episodes, seed))
    return path


def evaluate(maze: Maze, policy: Callable[[np.ndarray, np.ndarray], Any], seeds: int, episodes: int, seed: int) -> np.ndarray:
    """Plays each of the five tasks some times with each seed's policy, all side by side.

    Args:
      maze: where.
      policy: gives actions [seeds, n, 2] for observations and goals, float32 [seeds, n, 2] each.
      seeds: how many policies there are.
      episodes: of each task.
      seed: of starts and goals, which are drawn around the task's.

    Returns:
      The shares of episodes that got to their goal, float64 [seeds, 5].
    """
    shape = (seeds, TASKS, episodes)
    mazes = [make_env(maze, number, plays=False) for number in range(np.prod(shape))]
    np.random.seed(seed)  # The mazes draw from NumPy's own generator.
    begun = [maze.reset(options={"task_id": 1 + task}) for maze, (_, task, _) in zip(mazes, np.ndindex(shape), strict=True)]
    observations = np.float32([observation for observation, _ in begun])
    goals = np.float32([info["goal"] for _, info in begun]).reshape(seeds, -1, 2)
    success, running = np.zeros(len(mazes), bool), np.ones(len(mazes), bool)
    while running.any():
        actions = np.asarray(policy(observations.reshape(goals.shape), goals)).reshape(-1, 2)
        for i in np.flatnonzero(running):
            observations[i], _, terminated, truncated, info = mazes[i].step(actions[i])
            success[i], running[i] = info["success"], not (terminated or truncated)
    return success.reshape(shape).mean(axis=-1)


def draw(maze: Maze, runs: dict[str, Any], path: Path) -> None:
    """Success by updates of each algorithm, dotted the paper's, and of each task at the end."""
    with experiment.axes(path, panels=2, figsize=(9, 3.4)) as (curves, bars):
        for place, (agent, run) in enumerate(sorted(runs.items())):
            rates, tasks, colour = np.asarray(run["success_rate"]), np.asarray(run["tasks"])[:, -1], COLOURS[agent]
            curves.plot(run["eval_steps"], rates.T, color=colour, alpha=0.25, linewidth=0.8)
            curves.plot(run["eval_steps"], rates.mean(axis=0), color=colour, linewidth=2, label=agent.upper())
            numbers = 1 + np.arange(TASKS) + 0.4 * place - 0.2
            bars.bar(numbers, tasks.mean(axis=0), 0.38, yerr=tasks.std(axis=0), color=colour, alpha=0.8)
            if maze in PAPER:
                curves.axhline(PAPER[maze][agent], color=colour, linestyle=":", linewidth=1)
        curves.set(title=f"pointmaze-{maze}, from play data", xlabel="updates", ylabel=f"success rate, {len(rates)} seeds")
        curves.legend(loc="upper left")
        bars.set(title="at the end", xlabel="task")
