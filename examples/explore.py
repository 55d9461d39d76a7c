"""Goals proposed for acting: where HER alone may never get to the goal, the agent tries what it has rarely achieved.

HER learns from goals that were reached by chance. In a maze whose goal is far from the start, none is reached beyond the first
corners, and an agent that always tries for the far goal learns no more. MEGA (Pitis et al. 2020, arXiv:2007.02832) has it try
goals that it achieved before, but rarely: it gets there, acts at random from there on, and so achieves what is farther away.

`propose` is all of it: candidates from `herjax.sample`, a kernel density estimate of what was achieved, and the least dense
candidate. The goal that was tried is the one that `herjax.end_episode` is given. The agent is that of ddpg.py. Playing, replay,
proposals and updates are one scan; seeds are vmapped, and shared out among the devices that there are.

python examples/explore.py                         # goals are proposed: all seeds get to the goal
python examples/explore.py --proposal desired      # HER alone: three of five do
python examples/explore.py --plot                  # draws both, and the goals that were tried
"""

import dataclasses
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import experiment

import jax
import jax.numpy as jnp
import numpy as np

import flags
import herjax
import returns
from ddpg import Agent, AgentConfig, Loop, act, check, explore, learn, make_agent, make_buffer, see, store
from flags import Count, Share, Weight
from herjax.envs import PointMaze
from planar import Policy, Transition

Layout: TypeAlias = Literal["u", "medium", "large", "spiral"]
COLOURS = {"rare": "tab:blue", "achieved": "tab:orange", "desired": "tab:gray"}
LABELS = {"rare": "rarely achieved goals", "achieved": "achieved goals", "desired": "HER alone"}


@dataclasses.dataclass(frozen=True)
class Config(AgentConfig):
    """Trains DDPG with Hindsight Experience Replay on a maze, and proposes the goals that it tries."""

    not_training: ClassVar[tuple[str, ...]] = (*AgentConfig.not_training, "plot")

    layout: Layout = "large"  # The maze.
    proposal: Literal["rare", "achieved", "desired"] = "rare"  # What is tried: goals rarely achieved, any achieved, or desired.
    candidates: Count = 64  # Achieved goals of which each environment tries the rarest.
    neighbours: Count = 1024  # Achieved goals that their density is estimated from.
    bandwidth: Weight = 0.1  # Of the estimate's normal kernels, in standard deviations of the goals.
    wander: bool = True  # Whether actions are random once the goal of an episode was reached.
    rounds: Count = 12  # Times in a cycle that updates are made and targets follow.
    cycles: flags.Stretches = 400  # Cycles of an episode in each environment, then updates; a multiple of eval-every.
    updates: Count = 20  # Updates of a round.
    hidden: flags.Units = (128, 128)  # Units of the hidden layers of actor and critic.
    discount: flags.Below1 = 0.99  # Gamma; targets are clipped to [-1 / (1 - gamma), 0].
    target_decay: Share = 0.8  # Share of the target networks that stays at the end of a round.
    action_penalty: Weight = 0.1  # Weight of the squared actions in the actor's loss.
    plot: bool = False  # Does not train, but draws what was trained with these flags and each --proposal.
    out: Path = Path("results/explore")  # Folder for runs.json, results.json, success_rate.png and, with --plot, explore.png.


class Episodes(NamedTuple):
    """E whole episodes of T steps, played side by side; steps come first."""

    transitions: Transition  # Leaves [T, E, ...].
    goal: jax.Array  # float32 [E, 2]; what was tried.
    reached: jax.Array  # bool [E]; whether it was achieved at any step.
    success: jax.Array  # bool [E]; whether it was achieved at the end.


@cache
def make_env(layout: Layout) -> tuple[PointMaze, Any]:
    """The maze and its parameters."""
    env = PointMaze(layout)
    return env, env.default_params


@cache
def make_reward(layout: Layout) -> Any:
    """The reward of a transition under a goal."""
    env, params = make_env(layout)
    return lambda transition, goal: env.compute_reward(transition.achieved_goal, goal, params)


def steps(config: Config) -> int:
    """Of an episode."""
    return int(make_env(config.layout)[1].max_steps_in_episode)


def log_density(points: jax.Array, others: jax.Array, bandwidth: float) -> jax.Array:
    """A kernel density estimate from `others` [N, G] at points [..., G], less a constant: float32 [...]."""
    squares = jnp.sum((points[..., None, :] - others) ** 2, axis=-1)
    return jax.nn.logsumexp(-squares / (2 * bandwidth**2), axis=-1)


def propose(config: Config, loop: Loop, desired: jax.Array, key: jax.Array) -> jax.Array:
    """The goals to try, [n, G]: for each environment the candidate of the least density; those desired before there is any."""
    if config.proposal == "desired":
        return desired
    number = len(desired) * config.candidates
    achieved = herjax.sample(loop.buffer, key, number + config.neighbours).transition.achieved_goal
    candidates = achieved[:number].reshape(len(desired), config.candidates, -1)
    density = jnp.zeros(candidates.shape[:2])  # All alike: the first one.
    if config.proposal == "rare":
        normalized = loop.agent.goals.normalize(achieved)
        density = log_density(normalized[:number].reshape(candidates.shape), normalized[number:], config.bandwidth)
    rarest = jnp.argmin(density, axis=1)[:, None, None]
    return jnp.where(herjax.can_sample(loop.buffer), jnp.take_along_axis(candidates, rarest, axis=1)[:, 0], desired)


def play(config: Config, policy: Policy, key: jax.Array, episodes: int, loop: Loop | None = None) -> Episodes:
    """Plays whole episodes that try the desired goals, or, given the state of training, those proposed."""
    env, params = make_env(config.layout)
    key_reset, key_goals, key_steps = jax.random.split(key, 3)
    observation, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(key_reset, episodes), params)
    goal = state.goal if loop is None else propose(config, loop, state.goal, key_goals)
    state = state.replace(goal=goal)
    wander = loop is not None and config.wander

    def step(carry: tuple[Any, Any, jax.Array], key: jax.Array) -> tuple[tuple[Any, Any, jax.Array], Transition]:
        observation, state, reached = carry
        key_policy, key_random, key_env = jax.random.split(key, 3)
        action = policy(observation["observation"], goal, key_policy)
        at_random = jax.random.uniform(key_random, action.shape, minval=-1, maxval=1)
        action = jnp.where(reached[:, None] & wander, at_random, action)
        keys = jax.random.split(key_env, episodes)
        then, state, reward, _, _ = jax.vmap(env.step_env, (0, 0, 0, None))(keys, state, action, params)
        transition = Transition(observation["observation"], action, then["observation"], then["achieved_goal"])
        return (then, state, reached | (reward == 0)), transition

    carry = (observation, state, jnp.zeros(episodes, bool))
    (_, _, reached), transitions = jax.lax.scan(step, carry, jax.random.split(key_steps, steps(config)))
    success = env.compute_reward(transitions.achieved_goal[-1], goal, params) == 0
    return Episodes(transitions, goal, reached, success)


def behave(config: Config, agent: Agent, greedy: bool) -> Policy:
    """The policy, with the noise of exploration unless it is greedy."""

    def policy(observation: jax.Array, goal: jax.Array, key: jax.Array) -> jax.Array:
        action = act(config, agent, observation, goal)
        return action if greedy else explore(config, action, key)

    return policy


def start(config: Config, key: jax.Array) -> Loop:
    """A seed before its first cycle."""
    example = Transition(*(jnp.zeros(2) for _ in Transition._fields))  # In a maze all of them are points of the plane.
    buffer = make_buffer(config, example, make_reward(config.layout), (config.num_envs, steps(config)))
    return Loop(make_agent(config, example, key), buffer)


def cycle(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Plays episodes that try proposed goals, stores them, and learns."""
    key_play, key_goals, key_learn = jax.random.split(key, 3)
    episodes = play(config, behave(config, loop.agent, greedy=False), key_play, config.num_envs, loop)
    buffer = store(loop.buffer, episodes.transitions, episodes.goal, key_goals)

    def learn_some(agent: Agent, key: jax.Array) -> tuple[Agent, jax.Array]:
        sample = herjax.sample(buffer, key, config.updates * config.batch_size, hindsight_ratio=config.hindsight_ratio)
        agent, losses = learn(config, agent, sample, returns.window(config, buffer, sample))
        return agent, losses["critic_loss"]

    agent = see(loop.agent, episodes.transitions, episodes.goal)
    agent, losses = jax.lax.scan(learn_some, agent, jax.random.split(key_learn, config.rounds))
    tried = {"tried_reached": jnp.mean(episodes.reached.astype(jnp.float32)), "goals": episodes.goal}
    return Loop(agent, buffer), {"critic_loss": jnp.mean(losses), **tried}


def advance(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Trains up to the next evaluation, and evaluates at the desired goals.

    Returns metrics, float32 []; and `goals`, float32 [num_envs, 2], which the last cycle tried.
    """
    key_cycles, key_episodes = jax.random.split(key)
    loop, metrics = jax.lax.scan(partial(cycle, config), loop, jax.random.split(key_cycles, config.eval_every))
    success = play(config, behave(config, loop.agent, greedy=True), key_episodes, config.eval_episodes).success
    goals = metrics.pop("goals")[-1]
    return loop, {"success_rate": jnp.mean(success.astype(jnp.float32)), "goals": goals, **jax.tree.map(jnp.mean, metrics)}


def train(config: Config, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """One whole run, in one scan: its last state, and metrics, [evaluations, ...] each. Jit it and vmap it over keys."""
    return experiment.scan(config, partial(start, config), partial(advance, config), key)


def train_seeds(config: Config) -> dict[str, Any]:
    """The figures of all seeds, each trained as `train` does."""
    training = experiment.over_seeds(config, partial(start, config), partial(advance, config))
    _, results = experiment.run(config, training, steps=config.eval_every * config.num_envs * steps(config))
    return {name: value for name, value in results.items() if name != "config"}  # `kept` adds those that count.


def draw(config: Config, runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Success by steps for each proposal, and a maze with the goals that the first seed tried, coloured by step."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - only a picture needs it.

    shown = runs.get("rare") or next(iter(runs.values()))
    env, _ = make_env(config.layout)
    with experiment.axes(path, panels=2, figsize=(9, 3.4)) as (drawn, place):
        for proposal, results in runs.items():
            rates = np.asarray(results["success_rate"])  # [seeds, E]
            drawn.plot(results["eval_steps"], rates.T, color=COLOURS[proposal], alpha=0.25, linewidth=0.8)
            drawn.plot(results["eval_steps"], rates.mean(axis=0), color=COLOURS[proposal], linewidth=2, label=LABELS[proposal])
        title = f'PointMaze "{config.layout}", DDPG and HER'
        drawn.set(title=title, xlabel="environment steps", ylabel=f"success rate (greedy), {config.seeds} seeds")
        drawn.legend(loc="upper left")
        place.remove()  # Its axis is that of success.
        maze = drawn.get_figure().add_subplot(place.get_subplotspec())
        for low, high in env.walls:
            maze.add_patch(Rectangle(low, *(high - low), color="0.75", linewidth=0))
        goals = np.asarray(shown["goals"][0])  # [E, num_envs, 2]
        colours = np.repeat(shown["eval_steps"], goals.shape[1])
        points = maze.scatter(*goals.reshape(-1, 2).T, c=colours, s=7, cmap="viridis")
        for cell, text in ((env.start, "S"), (env.goal, "G")):
            maze.text(*cell, text, ha="center", va="center", color="tab:red", weight="bold")
        maze.set(title="goals tried", xlim=(0, env.size[0]), ylim=(0, env.size[1]), aspect="equal", xticks=[], yticks=[])
        maze.get_figure().colorbar(points, ax=maze, label="environment steps", shrink=0.8)


def plot(config: Config) -> None:
    """Draws what runs.json holds of each proposal."""
    runs = {}
    for record in experiment.read_records(config.out / "runs.json"):
        for proposal in LABELS:
            if record["config"] == flags.counted(dataclasses.replace(config, proposal=proposal)):
                runs[proposal] = record
    if not runs:
        flags.refuse(f"{config.out / 'runs.json'} holds no run with these flags; train first, without --plot.")
    draw(config, runs, config.out / "explore.png")
    print(f"written {config.out / 'explore.png'}: {', '.join(runs)}")


def try_out(config: Config) -> None:
    """Raises `ValueError` if these flags do not fit together."""
    check(config, steps(config))
    jax.eval_shape(partial(start, config), jax.random.key(0))  # The buffer itself knows how large it may get.


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains what is not in runs.json yet, and shows what was learned; or draws what is there."""
    config = flags.parse(Config, try_out, args)
    if config.plot:
        plot(config)
    else:
        results = experiment.kept(config.out, config, train_seeds)
        experiment.show(config, results, f'PointMaze "{config.layout}": DDPG, {LABELS[config.proposal]}', "runs.json")


if __name__ == "__main__":
    main()
