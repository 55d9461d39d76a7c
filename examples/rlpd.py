"""Half a batch from old data, half from new: the exact mix of RLPD (Ball et al. 2023, arXiv:2302.02948), with two buffers.

A point played in the maze some time ago, without our goal. Now an agent tries for a goal that is far away. With its own
episodes alone it gets there late. With the old ones alone it does not stay there, as they do not show where it errs. `mix`
draws half of every batch from each buffer: the agent is there sooner, and stays.

The agent is that of ddpg.py, and the maze that of explore.py. Of RLPD this is the mix alone, without ensemble and layer
normalisation.

python examples/rlpd.py                    # both
python examples/rlpd.py --data online      # its own episodes alone
python examples/rlpd.py --data prior       # the old ones alone
python examples/rlpd.py --plot             # draws all three
"""

import dataclasses
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import experiment

import jax
import jax.numpy as jnp
import numpy as np

import explore
import flags
import herjax
from ddpg import Agent, AgentConfig, check, learn, make_agent, make_buffer, see, store
from flags import Count, Share, Weight
from planar import Transition

COLOURS = {"both": "tab:blue", "online": "tab:gray", "prior": "tab:orange"}
LABELS = {"both": "half of each", "online": "its own episodes", "prior": "old episodes"}


@dataclasses.dataclass(frozen=True)
class Config(AgentConfig):
    """Trains DDPG with Hindsight Experience Replay on a maze, from old episodes and new ones."""

    not_training: ClassVar[tuple[str, ...]] = (*AgentConfig.not_training, "plot")

    layout: explore.Layout = "medium"  # The maze.
    data: Literal["both", "online", "prior"] = "both"  # What batches are drawn from.
    prior_episodes: Count = 40  # Old episodes, from anywhere to anywhere.
    prior_noise: Weight = 0.5  # Standard deviation of the noise on their actions, whose range is -1 to 1.
    cycles: flags.Stretches = 100  # Cycles of an episode in each environment, then updates; a multiple of eval-every.
    eval_every: Count = 5  # Cycles between evaluations.
    num_envs: Count = 4  # Episodes of a cycle, side by side.
    rounds: Count = 4  # Times in a cycle that updates are made and targets follow.
    updates: Count = 20  # Updates of a round.
    hidden: flags.Units = (64, 64)  # Units of the hidden layers of actor and critic.
    capacity: Count = 100_000  # Transitions held of the agent's own.
    discount: flags.Below1 = 0.98  # Gamma; targets are clipped to [-1 / (1 - gamma), 0].
    target_decay: Share = 0.8  # Share of the target networks that stays at the end of a round.
    action_penalty: Weight = 0.1  # Weight of the squared actions in the actor's loss.
    plot: bool = False  # Does not train, but draws what was trained with these flags and each --data.
    out: Path = Path("results/rlpd")  # Folder for runs.json, results.json, success_rate.png and, with --plot, rlpd.png.


class Loop(NamedTuple):
    """The carry of the scan."""

    agent: Agent
    buffer: herjax.BufferState  # The agent's own episodes.
    prior: herjax.BufferState  # The old ones.


@cache
def next_cells(layout: explore.Layout) -> np.ndarray:
    """Of each free cell, and each that one may want to be in: the next one on the way. int32 [cells, cells]."""
    free = explore.make_env(layout)[0].free
    far = np.abs(free[:, None] - free).sum(axis=-1)  # 1 between neighbours.
    moves = np.where(far <= 1, far, np.inf)
    for _ in range(len(free).bit_length()):
        moves = (moves[:, :, None] + moves).min(axis=1)
    return np.where((far == 1)[:, :, None], moves[None], np.inf).argmin(axis=1).astype(np.int32)


def play_prior(config: Config, key: jax.Array) -> tuple[Transition, jax.Array]:
    """Episodes from anywhere to anywhere, cell by cell, in noisy steps: leaves [T, E, 2], and their goals [E, 2]."""
    env, params = explore.make_env(config.layout)
    free, number = jnp.asarray(env.free), config.prior_episodes
    key_reset, key_steps = jax.random.split(key)
    params = params.replace(random_start=True, random_goal=True)
    _, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(key_reset, number), params)

    def nearest(points: jax.Array) -> jax.Array:
        """The cells that points [E, 2] are in: int32 [E]."""
        return jnp.argmin(jnp.sum((points[:, None] - free) ** 2, axis=-1), axis=1)

    def step(state: Any, key: jax.Array) -> tuple[Any, Transition]:
        key_noise, key_env = jax.random.split(key)
        cells, wanted = nearest(state.hand), nearest(state.goal)
        there = jnp.where((cells == wanted)[:, None], state.goal, free[jnp.asarray(next_cells(config.layout))[cells, wanted]])
        noise = config.prior_noise * jax.random.normal(key_noise, there.shape)
        action = jnp.clip((there - state.hand) / params.max_speed, -1, 1) + noise
        action = jnp.clip(action, -1, 1)
        keys = jax.random.split(key_env, number)
        then, after, *_ = jax.vmap(env.step_env, (0, 0, 0, None))(keys, state, action, params)
        return after, Transition(state.hand, action, then["observation"], then["achieved_goal"])

    _, transitions = jax.lax.scan(step, state, jax.random.split(key_steps, explore.steps(config)))
    return transitions, state.goal


def start(config: Config, key: jax.Array) -> Loop:
    """A seed before its first cycle, with old episodes of its own."""
    key_agent, key_play, key_goals = jax.random.split(key, 3)
    example = Transition(*(jnp.zeros(2) for _ in Transition._fields))  # In a maze all of them are points of the plane.
    reward, steps = explore.make_reward(config.layout), explore.steps(config)
    own = make_buffer(config, example, reward, (config.num_envs, steps))
    room = dataclasses.replace(config, capacity=config.prior_episodes * steps)
    prior = make_buffer(room, example, reward, (config.prior_episodes, steps))
    transitions, goal = play_prior(config, key_play)
    agent = make_agent(config, example, key_agent)
    agent = agent if config.data == "online" else see(agent, transitions, goal)
    return Loop(agent, own, store(prior, transitions, goal, key_goals))


def mix(config: Config, buffers: Sequence[herjax.BufferState], key: jax.Array) -> herjax.Sample:
    """All batches of a round, one after the other: an equal share of each from every buffer."""
    share = config.batch_size // len(buffers)
    keys = jax.random.split(key, len(buffers))
    samples = [herjax.sample(each, key, config.updates * share) for each, key in zip(buffers, keys, strict=True)]

    def join(*leaves: jax.Array) -> jax.Array:
        """A batch is a row, and a part of it from each buffer."""
        rows = [leaf.reshape(config.updates, share, *leaf.shape[1:]) for leaf in leaves]
        return jnp.concatenate(rows, axis=1).reshape(-1, *leaves[0].shape[1:])

    return jax.tree.map(join, *samples)


def cycle(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, jax.Array]:
    """Plays episodes and stores them, unless it learns from old ones alone; and learns. The critic's loss."""
    key_play, key_goals, key_learn = jax.random.split(key, 3)
    agent, buffer, prior = loop
    if config.data != "prior":
        policy = explore.behave(config, agent, greedy=False)
        episodes = explore.play(config, policy, key_play, config.num_envs)
        buffer = store(buffer, episodes.transitions, episodes.goal, key_goals)
        agent = see(agent, episodes.transitions, episodes.goal)
    buffers = {"both": (buffer, prior), "online": (buffer,), "prior": (prior,)}[config.data]

    def learn_some(agent: Agent, key: jax.Array) -> tuple[Agent, jax.Array]:
        agent, losses = learn(config, agent, mix(config, buffers, key))
        return agent, losses["critic_loss"]

    agent, losses = jax.lax.scan(learn_some, agent, jax.random.split(key_learn, config.rounds))
    return Loop(agent, buffer, prior), jnp.mean(losses)


def advance(config: Config, loop: Loop, key: jax.Array) -> tuple[Loop, dict[str, jax.Array]]:
    """Trains up to the next evaluation, and evaluates at the far goal."""
    key_cycles, key_episodes = jax.random.split(key)
    loop, losses = jax.lax.scan(partial(cycle, config), loop, jax.random.split(key_cycles, config.eval_every))
    greedy = explore.behave(config, loop.agent, greedy=True)
    success = explore.play(config, greedy, key_episodes, config.eval_episodes).success
    return loop, {"success_rate": jnp.mean(success.astype(jnp.float32)), "critic_loss": jnp.mean(losses)}


def train_seeds(config: Config) -> dict[str, Any]:
    """The figures of all seeds."""
    training = experiment.over_seeds(config, partial(start, config), partial(advance, config))
    steps = config.eval_every * config.num_envs * explore.steps(config)
    _, results = experiment.run(config, training, steps=steps)
    return {name: value for name, value in results.items() if name != "config"}  # `kept` adds those that count.


def plot(config: Config) -> None:
    """Draws what runs.json holds of each kind of data."""
    records = experiment.read_records(config.out / "runs.json")
    runs = {
        data: [r for r in records if r["config"] == flags.counted(dataclasses.replace(config, data=data))] for data in LABELS
    }
    if not any(runs.values()):
        flags.refuse(f"{config.out / 'runs.json'} holds no run with these flags; train first, without --plot.")
    with experiment.axes(config.out / "rlpd.png", figsize=(6, 3.4)) as drawn:
        for data, (record, *_) in ((data, found) for data, found in runs.items() if found):
            rates = np.asarray(record["success_rate"])  # [seeds, E]
            drawn.plot(record["eval_steps"], rates.T, color=COLOURS[data], alpha=0.25, linewidth=0.8)
            drawn.plot(record["eval_steps"], rates.mean(axis=0), color=COLOURS[data], linewidth=2, label=LABELS[data])
        label = f"success rate (greedy), {config.seeds} seeds"
        drawn.set(
            title=f'PointMaze "{config.layout}"', xlabel="environment steps; for old episodes, as many updates", ylabel=label
        )
        drawn.legend()
    print(f"written {config.out / 'rlpd.png'}: {', '.join(data for data, found in runs.items() if found)}")


def try_out(config: Config) -> None:
    """Raises `ValueError` if these flags do not fit together."""
    check(config, explore.steps(config))
    jax.eval_shape(partial(start, config), jax.random.key(0))  # The buffer itself knows how large it may get.
    flags.require(config, "batch_size", config.batch_size % 2 == 0, "an even number, half of it for each buffer")


def main(args: Sequence[str] | None = None) -> None:
    """Reads the flags, trains what is not in runs.json yet, and shows what was learned; or draws what is there."""
    config = flags.parse(Config, try_out, args)
    if config.plot:
        plot(config)
    else:
        results = experiment.kept(config.out, config, train_seeds)
        experiment.show(config, results, f'PointMaze "{config.layout}": DDPG, {LABELS[config.data]}', "runs.json")


if __name__ == "__main__":
    main()
