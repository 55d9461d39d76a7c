"""Plants semantic bugs in a copy of herjax, one by one, and tells which test fell: `python tests/planted_bugs.py`.

Each is one that a replay buffer could have for years: it raises nothing, and learning is only a little worse.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
TESTS = "tests/library"


@dataclasses.dataclass(frozen=True)
class Bug:
    """A change of one place in one file of herjax, and the test files that should notice, the likeliest first."""

    claim: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


RELABELLING = ("test_relabel", "test_num_envs", "test_buffer")
STORAGE = ("test_buffer", "test_random_calls")
ENVIRONMENTS = ("test_num_envs", "test_random_calls")
PRIORITIES = ("test_priorities", "test_sum_tree")
WINDOWS = ("test_n_steps", "test_random_calls")
MIXTURES = ("test_mixtures", "test_random_calls")
SIMULATORS = ("test_simulators", "test_random_calls")
FUNCTIONS = ("test_functions",)
RUNNING = ("test_sample_running", "test_random_calls")
SAVED = ("test_checkpoints",)
RELABELLED = ("test_relabel_batches",)
AROUND = ("test_steps",)
WHOLE = ("test_episodes",)
NEXT = ("test_next_of", "test_random_calls")

BUGS = (
    Bug(
        "future goals come from the past too",
        "strategies.py",
        "return step + _below(length - step, quantile)",
        "return _below(length, quantile)",
        RELABELLING,
    ),
    Bug(
        "future never takes the step's own achieved goal",
        "strategies.py",
        "return step + _below(length - step, quantile)",
        "return jnp.minimum(step + 1, length - 1) + _below(jnp.maximum(length - step - 1, 1), quantile)",
        RELABELLING,
    ),
    Bug(
        "final takes the second-to-last step",
        "strategies.py",
        "del quantile, step\n    return length - 1",
        "del quantile, step\n    return jnp.maximum(length - 2, 0)",
        RELABELLING,
    ),
    Bug(
        "geometric is not truncated but heaped on the last step",
        "strategies.py",
        "mass = -jnp.expm1(rate * remaining.astype(jnp.float32))",
        "mass = jnp.float32(1)",
        RELABELLING,
    ),
    Bug(
        "all goals of a step are the same",
        "hindsight.py",
        "number, low = uniform(draws.words[0]), 0.0",
        "number, low = jnp.broadcast_to(uniform(draws.words[0][:, :1]), draws.words[0].shape), 0.0",
        RELABELLING,
    ),
    Bug(
        "the number that says whether a goal is a transition's own says which goal, too",
        "hindsight.py",
        "Draws(draws.words[1:, :, None], draws.key)",
        "Draws(draws.words[:, :, None], draws.key)",
        MIXTURES,
    ),
    Bug(
        "the number that says which transition is drawn says whether its goal is its own, too",
        "sampling.py",
        "draws._replace(words=draws.words[1:])",
        "draws",
        RELABELLING,
    ),
    Bug(
        "two draws have the same random bits",
        "randomness.py",
        "jax.random.key_data(keys).ravel()[:size]",
        "jnp.tile(jax.random.key_data(keys)[..., :1], width).ravel()[:size]",
        RELABELLING,
    ),
    Bug(
        "rewards are those of the goal that was achieved, not of the goal drawn",
        "hindsight.py",
        "jax.vmap(config.reward_fn, (0, None))(window, goal)",
        "jax.vmap(lambda t, _: config.reward_fn(t, config.goal_fn(t)), (0, None))(window, goal)",
        RELABELLING,
    ),
    Bug(
        "termination is not relabelled",
        "hindsight.py",
        "jax.vmap(config.terminated_fn, (0, None))(window, goal)",
        "jax.vmap(lambda t, _: config.terminated_fn(t, config.goal_fn(t)), (0, None))(window, goal)",
        RELABELLING,
    ),
    Bug(
        "goals come from the step after, across the end of the episode",
        "hindsight.py",
        "visits.step[:, None], steps)",
        "visits.step[:, None], steps + 1)",
        RELABELLING,
    ),
    Bug(
        "random draws from the first environment alone",
        "hindsight.py",
        "below(draws.words[-1], size(state))",
        "below(draws.words[-1], state.held[0])",
        ("test_num_envs", "test_relabel"),
    ),
    Bug(
        "each turn of relabelling repeats the draws of the first",
        "ending.py",
        "jax.random.fold_in(key, turn)",
        "jax.random.fold_in(key, 0)",
        ENVIRONMENTS,
    ),
    Bug(
        "every environment is given the goal that the first pursued",
        "ending.py",
        "jnp.zeros_like(rows), goals[steps.env], steps.valid",
        "jnp.zeros_like(rows), goals[jnp.zeros_like(steps.env)], steps.valid",
        ENVIRONMENTS,
    ),
    Bug(
        "the goal pursued counts as a hindsight goal",
        "sampling.py",
        "jax.lax.sign(indices - rows * config.num_copies)",
        "jax.lax.sign(1 + indices - rows * config.num_copies)",
        STORAGE,
    ),
    Bug(
        "late goals: hindsight with probability 1 / (k + 1) and not k / (k + 1)",
        "relabelling.py",
        "return jnp.asarray(config.num_goals / (config.num_goals + 1), jnp.float32)",
        "return jnp.asarray(1 / (config.num_goals + 1), jnp.float32)",
        ENVIRONMENTS,
    ),
    Bug(
        "steps of the running episode are sampled",
        "drawing.py",
        "below(words, size(state) * num_copies)",
        "below(words, (size(state) + state.pending[-1]) * num_copies)",
        STORAGE,
    ),
    Bug(
        "where all priorities are 0, the first row is drawn, whatever it holds",
        "drawing.py",
        "indices = jnp.where((priority_sum > 0) | ~can_sample(state), indices, oldest)",
        "del oldest",
        PRIORITIES,
    ),
    Bug(
        "the copies of all shards are counted in 32 bits",
        "drawing.py",
        "jax.lax.psum((copies_held.astype(jnp.float32), priority_sum), axis_name)",
        "jax.lax.psum((copies_held, priority_sum), axis_name)",
        PRIORITIES,
    ),
    Bug(
        "an episode may be one step longer than its greatest length",
        "adding.py",
        "dropped = mask & (state.pending >= config.max_episode_length)",
        "dropped = mask & (state.pending > config.max_episode_length)",
        STORAGE,
    ),
    Bug(
        "episodes end whether done or not",
        "ending.py",
        'lengths = jnp.where(checks.flags("done", done, config.num_envs), state.pending, 0)\n    head',
        "lengths = state.pending\n    head",
        STORAGE,
    ),
    Bug(
        "what has made room keeps its priority",
        "adding.py",
        "jnp.where(full, oldest, config.num_rows)",
        "jnp.full_like(oldest, config.num_rows)",
        ("test_buffer", "test_num_envs", "test_priorities"),
    ),
    Bug(
        "the second-oldest transition makes room, the oldest stays",
        "adding.py",
        "state.head - state.held)\n    state = prioritized.leave",
        "state.head - state.held + 1)\n    state = prioritized.leave",
        ("test_priorities", "test_buffer", "test_num_envs"),
    ),
    Bug(
        "late goals that look back come from what has taken the place of steps that made room",
        "config.py",
        "return self.relabels_when_sampled and self.num_goals > 0 and self.strategy.looks_back",
        "return False",
        ENVIRONMENTS,
    ),
    Bug(
        "a full buffer makes room one step late",
        "adding.py",
        "full = stored & (used >= config.capacity_per_env)",
        "full = stored & (used > config.capacity_per_env)",
        STORAGE,
    ),
    Bug(
        "a transition past the greatest length makes room",
        "adding.py",
        "_room_made(state, stored)\n    rows",
        "_room_made(state, mask)\n    rows",
        STORAGE,
    ),
    Bug(
        "late goals: a step is taken for the one after it",
        "reading.py",
        "return Visits(rows, step, jnp.maximum(length, 1)",
        "return Visits(rows, jnp.minimum(step + 1, jnp.maximum(length, 1) - 1), jnp.maximum(length, 1)",
        ENVIRONMENTS,
    ),
    Bug(
        "late goals: what is called a hindsight copy has the goal pursued",
        "hindsight.py",
        "return is_hindsight, _copies(state, visits, goals[:, None])[:, 0]",
        "return is_hindsight, _copies(state, visits, visits.goal[:, None])[:, 0]",
        ENVIRONMENTS,
    ),
    Bug(
        "narrow values of a leaf lie in its words in another order than they are read in",
        "rows.py",
        "jax.lax.bitcast_convert_type(words, narrow).ravel()[:size]",
        "jax.lax.bitcast_convert_type(words, narrow)[:, ::-1].ravel()[:size]",
        STORAGE,
    ),
    Bug(
        "the oldest transition held counts as gone",
        "rings.py",
        "(age <= state.drawable[env])",
        "(age < state.drawable[env])",
        ("test_priorities", "test_num_envs"),
    ),
    Bug(
        "all environments hold as much as the first",
        "rings.py",
        "(age <= state.drawable[env])",
        "(age <= state.drawable[0])",
        ENVIRONMENTS,
    ),
    Bug(
        "counters pass 2^31 and turn negative",
        "state.py",
        "return counter + jnp.minimum(increment.astype(jnp.int32), INT32_MAX - counter)",
        "return counter + increment.astype(jnp.int32)",
        ("test_long_runs",),
    ),
    Bug(
        "NaN and infinite priorities are accepted",
        "prioritized.py",
        "valid = jnp.isfinite(priorities) & (priorities >= 0)",
        "valid = ~(priorities < 0)",
        PRIORITIES,
    ),
    Bug(
        "indices that hold nothing are accepted",
        "prioritized.py",
        "held = (indices >= 0) & is_held(",
        "held = (indices >= 0) | is_held(",
        PRIORITIES,
    ),
    Bug(
        "of an index that comes twice the first priority wins",
        "sum_tree.py",
        "lateness = jnp.arange(leaves.size, dtype=jnp.float32)",
        "lateness = jnp.arange(leaves.size, dtype=jnp.float32)[::-1]",
        PRIORITIES,
    ),
    Bug(
        "new copies enter with priority 1 for ever",
        "prioritized.py",
        "_set_rows(state, rows, _stored(state, state.max_priority))",
        "_set_rows(state, rows, _stored(state, jnp.ones_like(state.max_priority)))",
        PRIORITIES,
    ),
    Bug(
        "the largest priority so far falls again",
        "prioritized.py",
        "max_priority = jnp.max(accepted_priorities, initial=state.max_priority)",
        "max_priority = jnp.max(accepted_priorities, initial=0)",
        PRIORITIES,
    ),
    Bug(
        "the exponent is applied before epsilon is added",
        "prioritized.py",
        'powers = (priorities + epsilon) ** state.number("priority_exponent")',
        'powers = priorities ** state.number("priority_exponent") + epsilon',
        PRIORITIES,
    ),
    Bug(
        "importance weights make frequent samples heavier",
        "prioritized.py",
        "scaled ** -jnp.asarray(beta, jnp.float32)",
        "scaled ** jnp.asarray(beta, jnp.float32)",
        PRIORITIES,
    ),
    Bug(
        "draws are proportional but not stratified",
        "prioritized.py",
        "target = jnp.arange(words.size, dtype=jnp.float32) + coarse.astype(jnp.float32) * 2.0**-coarse_bits",
        "target = words.size * (coarse.astype(jnp.float32) * 2.0**-coarse_bits)",
        PRIORITIES,
    ),
    Bug(
        "the last copy of a row leaves its parents' sums as they were",
        "sum_tree.py",
        "sorted({*range(0, width, FANOUT**height), width - 1})",
        "sorted({*range(0, width, FANOUT**height)})",
        ("test_sum_tree", "test_priorities"),
    ),
    Bug(
        "a rejected priority takes the place of the accepted one before it",
        "prioritized.py",
        "targets = jnp.where(accepted, indices,",
        "targets = jnp.where(held, indices,",
        PRIORITIES,
    ),
    Bug(
        "a leaf of 0 is found at the edge of the one before it",
        "sum_tree.py",
        "go_right = (rest >= 0) & (right > 0)",
        "go_right = rest >= 0",
        ("test_sum_tree", "test_priorities"),
    ),
    Bug(
        "a window goes on past the goal",
        "hindsight.py",
        "        ends |= terminated",
        "        ends |= terminated & False",
        WINDOWS,
    ),
    Bug(
        "a window goes on past the end of the episode, into the next",
        "hindsight.py",
        "dtype=jnp.int32) == remaining - 1",
        "dtype=jnp.int32) == config.longest_window",
        WINDOWS,
    ),
    Bug(
        "rewards of a window are discounted from the second power on",
        "hindsight.py",
        "powers(state)[:-1]",
        "powers(state)[1:]",
        WINDOWS,
    ),
    Bug(
        "what comes after a window is discounted once too little",
        "batches.py",
        "jnp.reshape(window, (-1, 1)) ==",
        "jnp.reshape(window - 1, (-1, 1)) ==",
        WINDOWS,
    ),
    Bug(
        "a value is looked up past the end of the task",
        "batches.py",
        "worth = there if copy.terminated is None else there & ~copy.terminated",
        "worth = there",
        WINDOWS,
    ),
    Bug(
        "the last transition of a window is that after it",
        "batches.py",
        "jnp.maximum(windows - 1, 0)",
        "windows",
        WINDOWS,
    ),
    Bug(
        "a mixture's sources all have the same share",
        "strategies.py",
        "(source, share / total) for",
        "(source, 1 / len(shares)) for",
        MIXTURES,
    ),
    Bug(
        "each source of a mixture is drawn from by a part of its quantiles",
        "hindsight.py",
        "jnp.clip((number - low) / share, 0, _BELOW_ONE)",
        "number",
        MIXTURES,
    ),
    Bug(
        "what a mixture draws from anywhere comes from the episode",
        "hindsight.py",
        "jnp.where(anywhere, held_row(state, ",
        "jnp.where(anywhere & False, held_row(state, ",
        MIXTURES,
    ),
    Bug(
        "the share of hindsight goals asked for is ignored",
        "relabelling.py",
        "jnp.clip(ratio, 0, 1).astype(jnp.float32)",
        "jnp.full_like(ratio, config.num_goals / (config.num_goals + 1)).astype(jnp.float32)",
        MIXTURES,
    ),
    Bug(
        "a masked transition is stored all the same",
        "adding.py",
        "stored = mask & ~dropped",
        "stored = ~dropped & (state.pending < config.max_episode_length)",
        SIMULATORS,
    ),
    Bug(
        "a masked transition counts as dropped",
        "adding.py",
        "dropped = mask & (state.pending >= config.max_episode_length)",
        "dropped = state.pending >= config.max_episode_length",
        SIMULATORS,
    ),
    Bug(
        "to discard one episode discards those of all environments",
        "ending.py",
        "return dataclasses.replace(state, pending=state.pending - lengths)",
        "return dataclasses.replace(state, pending=jnp.where(jnp.any(lengths > 0), 0, state.pending))",
        SIMULATORS,
    ),
    Bug(
        "what a discarded episode made room for counts as held",
        "ending.py",
        "return dataclasses.replace(state, pending=state.pending - lengths)",
        "room = jnp.maximum(state.held + state.pending - state.config.capacity_per_env + 1, 0)"
        "\n    back = jnp.where(room > 0, lengths, 0)"
        "\n    return dataclasses.replace(state, held=state.held + back, pending=state.pending - lengths)",
        SIMULATORS,
    ),
    Bug(
        "functions compare by ==",
        "functions.py",
        "isinstance(other, Function) and self._identity == other._identity",
        "isinstance(other, Function) and self.call == other.call",
        ("test_caller_mistakes",),
    ),
    Bug(
        "a checkpoint of another configuration is restored",
        "checkpoints.py",
        "        if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):",
        "        if False:",
        ("test_checkpoints",),
    ),
    Bug(
        "a checkpoint is said to be saved before it is",
        "checkpoints.py",
        "    with ocp.StandardCheckpointer() as checkpointer:  # Has",
        "    _write_record(folder, record | {'name': name, 'files': {}})\n"
        "    with ocp.StandardCheckpointer() as checkpointer:  # Has",
        ("test_checkpoints",),
    ),
    Bug(
        "a wrapper that passes attributes on counts as the method behind it",
        "functions.py",
        "if type(self.call) is MethodType:",
        'if hasattr(self.call, "__func__"):',
        FUNCTIONS,
    ),
    Bug(
        "a deep copy has functions of its own",
        "functions.py",
        'def __deepcopy__(self, memo: dict[int, Any]) -> "Function":',
        'def deep_copied(self, memo: dict[int, Any]) -> "Function":',
        FUNCTIONS,
    ),
    Bug(
        "a condition of all runs holds where it does in one",
        "lanes.py",
        "~max_over_lanes(~jax.lax.stop_gradient(one))",
        "max_over_lanes(jax.lax.stop_gradient(one))",
        ("test_compilation",),
    ),
    Bug(
        "an infinite reward counts where the discount's power is 0",
        "hindsight.py",
        "jnp.where(inside & (weights > 0), ",
        "jnp.where(inside, ",
        WINDOWS,
    ),
    Bug(
        "powers below every normal float32 stay",
        "hindsight.py",
        "jnp.where(found < np.finfo(np.float32).tiny, 0, found)",
        "found",
        WINDOWS,
    ),
    Bug(
        "settings are compared by the text that NumPy prints",
        "records.py",
        '"threshold": sys.maxsize, "floatmode": "unique", "precision": 8, ',
        "",
        SAVED,
    ),
    Bug(
        "two arrays of a saved state have one name",
        "records.py",
        "    if name in named:",
        "    if name in named and not name:",
        SAVED,
    ),
    Bug(
        "notes of float32 are rounded",
        "records.py",
        "np.asarray(value, np.float64 if",
        "np.asarray(value, np.float16 if",
        SAVED,
    ),
    Bug(
        "the first step held is the one after it",
        "rings.py",
        "return jnp.clip(step - older, 0, step)",
        "return jnp.clip(step - older + 1, 0, step)",
        AROUND,
    ),
    Bug(
        "steps that have made room count as held",
        "rings.py",
        "return jnp.clip(step - older, 0, step)",
        "return jnp.zeros_like(step)",
        AROUND,
    ),
    Bug(
        "steps beyond an episode's end are masked as held",
        "steps.py",
        "mask = (wanted == nearest) & is_held(state, rows)[:, None]",
        "mask = (wanted >= nearest) & is_held(state, rows)[:, None]",
        AROUND,
    ),
    Bug(
        "the mask forgets which steps have made room",
        "steps.py",
        "mask = (wanted == nearest) & is_held(state, rows)[:, None]",
        "mask = (wanted >= 0) & (wanted < here.length[:, None]) & is_held(state, rows)[:, None]",
        AROUND,
    ),
    Bug(
        "the step past an episode's end is the next episode's first",
        "steps.py",
        "here.length[:, None] - 1)",
        "here.length[:, None])",
        AROUND,
    ),
    Bug(
        "the nearest step held is always the transition itself",
        "steps.py",
        "mask = (wanted == nearest)",
        "nearest = jnp.where(wanted == nearest, nearest, here.step[:, None])\n    mask = (wanted == nearest)",
        AROUND,
    ),
    Bug(
        "the farthest offsets are cut short",
        "steps.py",
        "-longest, longest)",
        "-longest, longest - 2)",
        AROUND,
    ),
    Bug(
        "rewards of steps are under the goal that was pursued",
        "steps.py",
        "_under_goals(config.reward_fn, transition, batch.goal)",
        "_under_goals(config.reward_fn, transition, jax.vmap(config.goal.unpack)(here.goal))",
        AROUND,
    ),
    Bug(
        "steps around an empty batch are terminated",
        "steps.py",
        "_under_goals(config.terminated_fn, transition, batch.goal) & there",
        "_under_goals(config.terminated_fn, transition, batch.goal)",
        AROUND,
    ),
    Bug(
        "relabel ignores the share given",
        "relabelling.py",
        'share(config, "relabel", hindsight_ratio)',
        'share(config, "relabel", None)',
        RELABELLED,
    ),
    Bug(
        "relabel ignores the strategy given",
        "relabelling.py",
        "chosen = config_of(state).strategy if strategy is None else as_mixture(strategy)",
        "chosen = config_of(state).strategy",
        RELABELLED,
    ),
    Bug(
        "relabel takes init's default where init's strategy is asked for",
        "relabelling.py",
        "chosen = config_of(state).strategy if strategy is None else as_mixture(strategy)",
        'chosen = as_mixture("future" if strategy is None else strategy)',
        RELABELLED,
    ),
    Bug(
        "relabel keeps the last transitions of the old goals",
        "relabelling.py",
        "is_hindsight, copies, last))",
        'is_hindsight, copies, last) | {"last": batch.last})',
        RELABELLED,
    ),
    Bug(
        "relabel keeps the rewards of the old goals",
        "relabelling.py",
        "is_hindsight, copies, last))",
        'is_hindsight, copies, last) | {"reward": batch.reward})',
        RELABELLED,
    ),
    Bug(
        "relabel keeps the discounts of the old goals",
        "relabelling.py",
        "is_hindsight, copies, last))",
        'is_hindsight, copies, last) | {"discount": batch.discount})',
        RELABELLED,
    ),
    Bug(
        "relabel keeps what is a hindsight goal",
        "relabelling.py",
        "is_hindsight, copies, last))",
        'is_hindsight, copies, last) | {"is_hindsight": batch.is_hindsight})',
        RELABELLED,
    ),
    Bug(
        "without goals of init's a share is ignored",
        "relabelling.py",
        "None if hindsight_ratio is None and config.num_goals == 0 else strategy",
        "None if config.num_goals == 0 else strategy",
        RELABELLED,
    ),
    Bug(
        "only where init's strategy looks back do goals come from steps held",
        "hindsight.py",
        "if strategy.looks_back:",
        "if config.strategy.looks_back:",
        RELABELLED,
    ),
    Bug(
        "all goals drawn late come from steps that have made room",
        "reading.py",
        "if config.keeps_oldest else",
        "if config.relabels_when_sampled else",
        RELABELLED,
    ),
    Bug(
        "steps kept for goals give none",
        "reading.py",
        "jnp.zeros_like(step) if config.keeps_oldest else first_held(state, rows, step)",
        "first_held(state, rows, step)",
        RELABELLED,
    ),
    Bug(
        "an episode that has lost its first steps comes out",
        "episodes.py",
        "np.flatnonzero(step == 0)",
        "np.flatnonzero((step == 0) | (np.arange(len(step)) == 0))",
        WHOLE,
    ),
    Bug(
        "episodes have the next one's goal",
        "episodes.py",
        "goal = steps if goal_by_step else first",
        "goal = steps if goal_by_step else steps.stop % len(step)",
        WHOLE,
    ),
    Bug(
        "episodes come in the order of their rows",
        "episodes.py",
        "np.arange(head[env] - held[env], head[env]) % config.rows_per_env",
        "np.sort(np.arange(head[env] - held[env], head[env]) % config.rows_per_env)",
        WHOLE,
    ),
    Bug(
        "all episodes are the first environment's",
        "episodes.py",
        "_part(goals, goal), env)",
        "_part(goals, goal), 0)",
        WHOLE,
    ),
    Bug(
        "running steps are of an episode",
        "episodes.py",
        "np.arange(head[env] - held[env], head[env])",
        "np.arange(head[env] - held[env], head[env] + 1)",
        WHOLE,
    ),
    Bug(
        "a running episode's goals come from steps that are not there yet",
        "rings.py",
        "offset - state.head[env]), state.pending[env]",
        "offset - state.head[env]), state.pending[env] + 1",
        RUNNING,
    ),
    Bug(
        "a running step is taken for what its row held before",
        "reading.py",
        "runs = running_step < running_length",
        "runs = running_step < running_length - 1",
        RUNNING,
    ),
    Bug(
        "the newest running step is not sampled",
        "state.py",
        "return self.held + self.pending if",
        "return self.held + jnp.maximum(self.pending - 1, 0) if",
        RUNNING,
    ),
    Bug(
        "a discarded running episode keeps its priorities",
        "ending.py",
        "if config.sample_running and state.tree is not None:",
        "if config.sample_running and state.tree is None:",
        RUNNING,
    ),
    Bug(
        "running steps have the goal of the first environment",
        "adding.py",
        "copies=config.stored.write(state.copies, rows, goals[:, None])",
        "copies=config.stored.write(state.copies, rows, goals[jnp.zeros_like(rows), None])",
        RUNNING,
    ),
    Bug(
        "running steps enter without a priority",
        "adding.py",
        "        state = prioritized.enter(state, rows)\n",
        "",
        RUNNING,
    ),
    Bug(
        "a traced epsilon is forgotten",
        "prioritized.py",
        'epsilon = state.number("priority_epsilon")',
        "epsilon = 0.0",
        ("test_traced_numbers", "test_priorities"),
    ),
    Bug(
        "a traced discount is that of the first power",
        "hindsight.py",
        "found = discount ** exponents.astype(np.float32)",
        "found = discount ** np.minimum(exponents, 1).astype(np.float32)",
        ("test_traced_numbers",),
    ),
    Bug(
        "the next of an episode's last step is the next episode's first",
        "ending.py",
        "observations.head + lengths + jnp.sign(lengths))",
        "observations.head + lengths)",
        NEXT,
    ),
    Bug(
        "all environments' episodes end where one ends",
        "ending.py",
        "observations.head + lengths + jnp.sign(lengths))",
        "observations.head + lengths + jnp.max(jnp.sign(lengths)))",
        NEXT,
    ),
    Bug(
        "an observation lies in the ring of the first environment",
        "adding.py",
        "observation_at(config, jnp.arange(config.envs, dtype=jnp.int32), ",
        "observation_at(config, jnp.zeros(config.envs, jnp.int32), ",
        NEXT,
    ),
    Bug(
        "where an episode ends is not stored",
        "adding.py",
        "for row in (now, observation_after(config, now))",
        "for row in (now, jnp.zeros_like(now))",
        NEXT,
    ),
    Bug(
        "of two that should be one the earlier holds",
        "adding.py",
        "zip(shared if column.later else (rows,), words, strict=True)",
        "zip((jnp.where(state.pending == 0, shared[0], 0), shared[1]) if column.later else (rows,), words, strict=True)",
        NEXT,
    ),
    Bug(
        "a masked step writes its observations",
        "adding.py",
        "jnp.where(stored, row, 0) for row",
        "row for row",
        NEXT,
    ),
    Bug(
        "the last observation of an episode makes no room",
        "ending.py",
        "& (used > config.capacity_per_env)",
        "& (used > config.observations_per_env)",
        NEXT,
    ),
    Bug(
        "an episode of one step takes three places",
        "adding.py",
        "jnp.minimum(state.observations.episodes, state.held)",
        "state.observations.episodes",
        NEXT,
    ),
    Bug(
        "an episode that is gone keeps the place of its last observation",
        "ending.py",
        "jnp.where(lengths > 0, used - held, observations.episodes)",
        "observations.episodes + (lengths > 0)",
        NEXT,
    ),
    Bug(
        "of the last observations one has no place",
        "adding.py",
        "used += jnp.minimum(state.observations.episodes, state.held)",
        "used += jnp.minimum(state.observations.episodes - 1, state.held)",
        NEXT,
    ),
    Bug(
        "the second-oldest transition tells what is taken",
        "ending.py",
        "oldest = row_at(config, envs, ended.head - held)",
        "oldest = row_at(config, envs, ended.head - held + 1)",
        NEXT,
    ),
    Bug(
        "each turn of an ending makes room for the last observation anew",
        "ending.py",
        "held=held - gone.astype(jnp.int32)",
        "held=ended.held - gone.astype(jnp.int32)",
        NEXT,
    ),
    Bug(
        "a run whose steps end before another's makes room by what it has not read",
        "ending.py",
        "materialized(jnp.any(lengths > 0), observation_of",
        "materialized(jnp.any(steps.valid), observation_of",
        NEXT,
    ),
    Bug(
        "what makes room for a last observation keeps its priority",
        "ending.py",
        "return prioritized.leave(ended, jnp.where(leaving, oldest[steps.env], config.num_rows)), first",
        "return ended, first",
        NEXT,
    ),
    Bug(
        "a step that is not stored is named where it does not follow",
        "adding.py",
        "stored & (state.pending > 0))",
        "state.pending > 0)",
        NEXT,
    ),
    Bug(
        "an episode's first step is named where it does not follow the last one",
        "adding.py",
        "stored & (state.pending > 0))",
        "stored)",
        NEXT,
    ),
    Bug(
        "of what does not follow the first leaf alone is looked at",
        "adding.py",
        "part = slice(leaf.start, leaf.start + leaf.words)",
        "part = slice(0, column.layout.leaves[0].words)",
        NEXT,
    ),
    Bug(
        "where a step does not follow another environment is named",
        "adding.py",
        "env=jnp.argmin(alike)",
        "env=jnp.argmax(alike)",
        NEXT,
    ),
    Bug(
        "what a step began at and what it led to change places",
        "storage.py",
        "pairs = zip(self.parts, rows, strict=True)",
        "pairs = zip(self.parts, rows[::-1], strict=True)",
        NEXT,
    ),
    Bug(
        "what comes after a batch may come before it in the second ring",
        "state.py",
        "jnp.where(state.held >= 0, observations.head, later)",
        "observations.head",
        ("test_compiled_loops",),
    ),
    Bug(
        "an empty run has another's images",
        "rings.py",
        "return 1 + env * config.observations_per_env",
        "return env * config.observations_per_env",
        NEXT,
    ),
    Bug(
        "images are read from the row of their transition",
        "reading.py",
        "lambda: [_words(state, *each, images) for each in addresses]",
        "lambda: [_words(state, each[0], each[0] * 2, images) for each in addresses]",
        NEXT,
    ),
    Bug(
        "of several pairs each has the next of another",
        "storage.py",
        "tuple(later_of[leaf] for leaf in group if leaf in later_of)",
        "tuple(later_of[leaf] for leaf in group[::-1] if leaf in later_of)",
        NEXT,
    ),
    Bug(
        "pairs in another order are other settings",
        "storage.py",
        "tuple(sorted(next_of.items(), key=lambda pair: fields[pair[1]].start)) or None",
        "tuple(next_of.items()) or None",
        NEXT,
    ),
    Bug(
        "a field may be next of one and have a next",
        "storage.py",
        "        if now in next_of:",
        "        if now == later:",
        NEXT,
    ),
    Bug(
        "the row after a ring's last is the next ring's first",
        "rings.py",
        "jnp.where(ends, rows, 0)",
        "jnp.where(row == config.num_observations, rows, 0)",
        NEXT,
    ),
    Bug(
        "an observation is read from the row of its transition",
        "reading.py",
        "materialized(there, observation_of(state, rows))",
        "materialized(there, rows)",
        NEXT,
    ),
    Bug(
        "the least capacity has no room for where an episode ends",
        "config.py",
        'least, more = least + 1, "',
        'least, more = least, "',
        NEXT,
    ),
    Bug(
        "check allows one observation more than the capacity",
        "invariants.py",
        "fits = taken <= config.capacity_per_env",
        "fits = taken <= config.capacity_per_env + 1",
        NEXT,
    ),
    Bug(
        "check allows fewer episodes than are held",
        "invariants.py",
        "_require(episodes[env] >= held,",
        "_require(episodes[env] >= 0,",
        NEXT,
    ),
    Bug(
        "check looks at no running step's observation",
        "invariants.py",
        '_require(found == must, "observation of row"',
        '_require((found == must)[: len(offset)], "observation of row"',
        NEXT,
    ),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Plants bugs, one by one, and tells which test fell."""

    only: str = ""
    """Plant those whose claim holds this text."""
    tests: tuple[str, ...] = ()
    """Test files to run, such as test_random_calls, instead of each bug's own."""
    jobs: int = 1
    """Bugs tried side by side."""
    json: Path | None = None
    """File for the results; none by default."""


def planted(bug: Bug, folder: Path) -> Path:
    """Copies the project there, with the bug in it; returns the copy."""
    copy = folder / "project"
    for name in ("herjax", "tests", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    file = copy / "herjax" / bug.file
    text = file.read_text()
    if text.count(bug.old) != 1:
        raise ValueError(
            f"{bug.file} has {text.count(bug.old)} places for {bug.claim!r}, expected 1; bring the table up to date."
        )
    file.write_text(text.replace(bug.old, bug.new))
    return copy


def fallen_test(bug: Bug, tests: Sequence[str]) -> str | None:
    """The first test that falls with the bug planted; None where all pass."""
    with tempfile.TemporaryDirectory() as folder:
        copy = planted(bug, Path(folder))
        for name in tests:
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=no_shrink"]
            done = subprocess.run([*command, f"{TESTS}/{name}.py"], cwd=copy, capture_output=True, text=True, check=False)
            if done.returncode == 1 and (failed := re.search(rf"^FAILED {TESTS}/(\S+)", done.stdout, re.MULTILINE)):
                return failed[1]
            if done.returncode != 0:
                raise RuntimeError(f"{bug.claim!r}: the tests did not run\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return None


def main(settings: Settings) -> int:
    """Prints a table of bugs and the tests that fell; the number of bugs that no test noticed."""
    bugs = [bug for bug in BUGS if settings.only in bug.claim]
    rows = []
    with ThreadPoolExecutor(settings.jobs) as pool:
        for bug, fallen in zip(bugs, pool.map(lambda bug: fallen_test(bug, settings.tests or bug.tests), bugs), strict=True):
            rows.append({"file": bug.file, "bug": bug.claim, "fell": fallen})
            print(f"{len(rows):>3}  {bug.file:<15} {bug.claim:<75} {fallen or 'NO TEST FELL'}", flush=True)
    if settings.json is not None:
        settings.json.write_text(json.dumps(rows, indent=1))
    missed = sum(row["fell"] is None for row in rows)
    print(f"{len(rows)} bugs planted, {len(rows) - missed} noticed")
    return missed


if __name__ == "__main__":
    sys.exit(min(main(tyro.cli(Settings)), 1))
