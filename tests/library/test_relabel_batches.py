"""`relabel` against lists of episodes: which goals a batch is given anew, how often, and what is recomputed for them.

All keys are fixed, and thresholds are such that a right library would fail a test under fewer than one key in a million.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from scipy import stats

import herjax
import numbered
from distributions import FALSE_ALARM_RATE, WITHIN_EPISODE, past
from numbered import decode
from oracle import Distribution
from played import BATCH, SETTINGS, Played, make, played

KEY = jax.random.key(11)
MIXED = {herjax.geometric(0.5): 1, "random": 1, past: 2}
DISTRIBUTIONS: dict[object, Distribution | None] = {"random": None} | dict(WITHIN_EPISODE.values())

relabelled = jax.jit(
    lambda state, batch, key, ratio, strategy: herjax.relabel(state, batch, key, strategy=strategy, hindsight_ratio=ratio),
    static_argnames="strategy",
)


def relabel(state, batch, strategy=None, ratio=None, key=KEY):
    """`herjax.relabel`, in a program for each strategy that serves all ratios; the result is on the host."""
    return jax.device_get(relabelled(state, batch, key, None if ratio is None else np.float32(ratio), strategy=strategy))


def some_of(batch: herjax.Sample, count: int) -> herjax.Sample:
    """Some of its draws; stratified ones come in order."""
    return jax.tree.map(lambda leaf: leaf[:: BATCH // count][:count], batch)


def weights_of(strategy: object) -> dict[object, float]:
    """The sources of a strategy and their weights."""
    return MIXED if strategy == herjax.mixture(MIXED) else {strategy: 1}


def goal_chances(buffer: Played, number: int, strategy: object, *, gone_too: bool) -> Counter[int]:
    """How likely each goal is for a transition. `gone_too`: steps that have made room give goals, too.

    Where they do not, the first step of the episode that is held gives its goal in their place.
    """
    weights = {DISTRIBUTIONS[source]: weight for source, weight in weights_of(strategy).items()}
    chances: Counter[int] = Counter()
    for goal, chance in buffer.episodes[number].goal_chances(number, weights).items():
        chances[goal if gone_too or goal in buffer.held else buffer.first_held(number)] += chance
    return chances


def assert_rest_stays(before: herjax.Sample, after: herjax.Sample) -> None:
    """All that does not depend on goals is what it was."""
    for name in ("transition", "indices", "probabilities", "weights"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))


def assert_windows(buffer: Played, batch: herjax.Sample) -> None:
    """Rewards, terminations, last transitions and discounts are of each goal's window, and pursued goals are the episode's."""
    config = buffer.state.config
    discount = 1.0 if config.discount is None else config.discount
    # A draw is its numbers; equal ones are compared once.
    draws = np.stack(
        [batch.transition, batch.goal, batch.is_hindsight, batch.reward, batch.terminated, batch.last]
        + ([] if batch.discount is None else [batch.discount]),
        axis=1,
    )
    for number, goal, is_hindsight, reward, terminated, last, *worth in np.unique(draws, axis=0).tolist():
        episode = buffer.episodes[number]
        window = episode.window(number, goal, config.num_steps)
        assert bool(is_hindsight) == (goal >= 0)
        assert goal >= 0 or goal == episode.goal
        assert reward == sum(discount**i * (1000 * step + goal) for i, step in enumerate(window))
        assert last == window[-1]
        assert bool(terminated) == (window[-1] == goal)
        assert worth in ([], [0.0 if terminated else discount ** len(window)])


def assert_share(is_hindsight: np.ndarray, share: float) -> None:
    """So many goals are hindsight goals as a share of this kind brings."""
    assert stats.binomtest(int(is_hindsight.sum()), is_hindsight.size, share).pvalue > FALSE_ALARM_RATE
    assert share not in (0, 1) or np.all(is_hindsight == share)


def assert_goals(batch: herjax.Sample, chances_of: Callable[[int], Counter[int]]) -> None:
    """Chi-square of every transition's hindsight goals."""
    numbers = np.unique(batch.transition)
    for number in numbers.tolist():
        goals = Counter(batch.goal[batch.is_hindsight & (batch.transition == number)].tolist())
        chances = chances_of(number)
        assert goals.keys() <= chances.keys()
        if len(chances) > 1:
            counts, expected = np.asarray([(goals[goal], goals.total() * chance) for goal, chance in chances.items()]).T
            rare = expected < 5
            if rare.any():
                counts, expected = (np.append(table[~rare], table[rare].sum()) for table in (counts, expected))
            assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM_RATE / len(numbers)


STRATEGIES = {
    "None": None,
    "future": "future",
    "episode": "episode",
    "final": "final",
    "random": "random",
    "geometric": WITHIN_EPISODE["geometric(0.5)"][0],
    "past": past,
    "mixture": herjax.mixture(MIXED),
}
CASES = [
    *(("kept", strategy) for strategy in STRATEGIES),
    *(("kept-windows", strategy) for strategy in ("episode", "mixture")),
    *(("late", strategy) for strategy in ("None", "random", "past")),
    *(("late-windows", strategy) for strategy in ("geometric", "mixture")),
    *(("late-back", strategy) for strategy in ("None", "past", "mixture")),
    *(("kept-none", strategy) for strategy in ("future", "episode")),
    *(("late-none", strategy) for strategy in ("None", "mixture")),
]


@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_goals_are_those_of_the_strategy_given(name: str, strategy: str) -> None:
    """Of each transition with its chances, in the share asked for; all that follows from them is recomputed, the rest stays.

    The oldest episode has lost its first steps, the youngest is followed by one that runs on. Only where init's own strategy
    looks back, and draws late, are steps that have made room kept for goals.
    """
    buffer, strategy = played(name), STRATEGIES[strategy]
    source = SETTINGS[name].get("strategy", "future") if strategy is None else strategy
    for ratio in (1, 0.5, 0):
        batch = relabel(buffer.state, buffer.batch, strategy, ratio)
        assert_rest_stays(buffer.batch, batch)
        assert_windows(buffer, batch)
        assert_share(batch.is_hindsight, ratio)
        if ratio:
            assert_goals(batch, lambda number: goal_chances(buffer, number, source, gone_too=name == "late-back"))


def test_the_oldest_steps_kept_give_goals() -> None:
    """The cases above are not empty: steps that have made room are goals with "late-back", and nowhere else."""
    for name in ("late-back", "late", "kept"):
        buffer = played(name)
        goals = set(relabel(buffer.state, buffer.batch, "episode", 1).goal.tolist())
        assert bool(goals - buffer.held) == (name == "late-back")


@pytest.mark.parametrize("name", ["kept", "late-windows", "kept-none", "late-none"])
def test_the_share_is_that_of_init_unless_one_is_given(name: str) -> None:
    """Two of three goals with `num_goals=2`; of `num_goals=0` the pursued goals alone, whatever the strategy."""
    buffer = played(name)
    none = buffer.state.config.num_goals == 0
    for strategy in (None, "final") if none else (None,):
        batch = relabel(buffer.state, buffer.batch, strategy)
        assert_share(batch.is_hindsight, 0 if none else 2 / 3)
        assert_windows(buffer, batch)


def test_every_field_is_in_its_place() -> None:
    """Of transitions and goals of several leaves: all that is read belongs to one transition and one goal."""
    buffer = played("fields")
    batch = relabel(buffer.state, buffer.batch, "episode", 0.5)
    assert_rest_stays(buffer.batch, batch)
    numbers, goals = decode(batch)
    jax.tree.map(np.testing.assert_array_equal, batch.last, batch.transition)
    assert batch.discount is None
    assert_share(batch.is_hindsight, 0.5)
    for number, goal in np.unique(np.stack([numbers, goals], axis=1), axis=0).tolist():
        episode = buffer.episodes[number]
        assert goal in episode.transitions if goal >= 0 else goal == episode.goal
    assert jax.tree.map(jnp.shape, batch) == jax.tree.map(jnp.shape, buffer.batch)
    jax.tree.map(lambda one, other: np.testing.assert_equal(one.dtype, other.dtype), batch, buffer.batch)


def test_goals_may_be_drawn_again_and_again() -> None:
    """From a batch that is relabelled already, too: the goals it had do not matter."""
    buffer = played("kept-windows")
    once = relabel(buffer.state, buffer.batch, None, 1)
    own = relabel(buffer.state, once, None, 0)
    assert_windows(buffer, own)
    jax.tree.map(np.testing.assert_array_equal, own, relabel(buffer.state, buffer.batch, None, 0))
    jax.tree.map(np.testing.assert_array_equal, relabel(buffer.state, own, None, 1), once)


def test_the_key_decides() -> None:
    """The same one draws the same goals, in either style; another draws others."""
    buffer = played("late")
    batch = relabel(buffer.state, buffer.batch, "random", 0.5)
    jax.tree.map(np.testing.assert_array_equal, batch, relabel(buffer.state, buffer.batch, "random", 0.5))
    old = jax.jit(partial(herjax.relabel, strategy="random"))(
        buffer.state, buffer.batch, jax.random.PRNGKey(11), hindsight_ratio=np.float32(0.5)
    )
    jax.tree.map(np.testing.assert_array_equal, batch, jax.device_get(old))
    other = relabel(buffer.state, buffer.batch, "random", 0.5, jax.random.key(12))
    assert np.mean(batch.goal == other.goal) < 0.5
    # Independent coins: a draw's second goal is a hindsight goal as often, whatever the first was.
    assert_share(other.is_hindsight[batch.is_hindsight], 0.5)


# Many goals for each transition.


def equations(jaxpr: object) -> Iterator[object]:
    """All equations, those inside of others too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_many_keys_give_many_goals() -> None:
    """Under vmap over keys each is what its key gives alone."""
    buffer, keys = played("late-windows"), jax.random.split(KEY, 5)
    batch = some_of(buffer.batch, 96)
    draw = partial(herjax.relabel, buffer.state, batch, hindsight_ratio=1.0)
    many = jax.jit(jax.vmap(draw))(keys)
    jax.tree.map(lambda leaf, *leaves: np.testing.assert_array_equal(leaf, np.stack(leaves)), many, *map(draw, keys))
    assert len({tuple(goals) for goals in many.goal.tolist()}) == len(keys)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_many_goals_read_the_rows_of_each_window_once(num_steps: int, *, late: bool) -> None:
    """Under vmap over G keys the windows of B transitions are read for B, not for G B; only what differs by goal is."""
    state = numbered.make_of_fields(num_steps=num_steps, discount=0.5, relabel="sample" if late else "episode_end")
    batch = herjax.sample(state, KEY, 96)
    draw = jax.vmap(lambda key: herjax.relabel(state, batch, key, hindsight_ratio=1.0))
    reads = Counter(
        equation.outvars[0].aval.size // state.config.transition.words
        for equation in equations(jax.make_jaxpr(draw)(jax.random.split(KEY, 5)).jaxpr)
        if equation.primitive.name == "gather" and equation.invars[0].aval.shape == state.columns[0].shape
    )
    # The steps whose goals are taken and, of windows of several steps, the last ones.
    assert reads == Counter({num_steps * 96: 1, 5 * 96: 1 if num_steps == 1 else 2})


# Under transformations.


def test_runs_side_by_side_are_as_each_alone() -> None:
    """Under vmap over seeds, with a share of its own for each; one that holds nothing gives zeros beside them."""
    buffer = played("late-windows")
    other = numbered.play(buffer.state, jnp.int32(60), np.ones((4, 3), np.bool_), KEY)
    states = [buffer.state, make("late-windows"), other]
    ratios, keys = jnp.array([0.5, 1.0, 0.0]), jax.random.split(KEY, 3)
    batches = [herjax.sample(state, key, 64) for state, key in zip(states, keys, strict=True)]
    stacked, stacked_batches = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in (states, batches))
    draw = partial(herjax.relabel, strategy="random")
    together = jax.jit(jax.vmap(lambda state, batch, key, ratio: draw(state, batch, key, hindsight_ratio=ratio)))(
        stacked, stacked_batches, keys, ratios
    )
    alone = [draw(*each, hindsight_ratio=ratio) for *each, ratio in zip(states, batches, keys, ratios, strict=True)]
    jax.tree.map(lambda leaf, *leaves: np.testing.assert_array_equal(leaf, np.stack(leaves)), together, *alone)
    empty = jax.tree.map(lambda leaf: leaf[1], together)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(empty))
    assert np.any(together.is_hindsight[0])


def test_in_a_loop_of_many_runs_it_is_what_it_is_call_by_call() -> None:
    """In a scan, in a cond, vmapped over seeds: act, then draw, relabel and look around, at every step."""

    def learn(state, key):
        batch = herjax.sample(state, key, 8)
        batch = herjax.relabel(state, batch, key, strategy="episode", hindsight_ratio=0.5)
        return batch, herjax.steps(state, batch, [-1, 1])

    def act(state, number, key):
        return herjax.end_episode(herjax.add(state, number), -1 - number, key, done=number % 5 == 2)

    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(learn, make("kept"), KEY))

    def step(state, xs):
        state = act(state, *xs)
        ready = herjax.in_all_runs(herjax.can_sample(state))
        return state, jax.lax.cond(ready, learn, lambda *_: nothing, state, xs[1])

    def run(key):
        xs = (jnp.arange(30, dtype=jnp.int32), jax.random.split(key, 30))
        return jax.lax.scan(step, make("kept"), xs)[1]

    seeds = jax.random.split(KEY, 2)
    together = jax.jit(jax.vmap(run))(seeds)
    act_once, learn_once, state = jax.jit(act), jax.jit(learn), make("kept")
    for number, key in enumerate(jax.random.split(seeds[1], 30)):
        state = act_once(state, jnp.int32(number), key)
        expected = learn_once(state, key)
        jax.tree.map(lambda leaf, one, at=number: np.testing.assert_array_equal(leaf[1, at], one), together, expected)
    assert np.unique(together[0].goal[1]).size > 10


def test_nothing_comes_of_an_empty_buffer() -> None:
    """Zeros, all finite, however the functions of zeros are; in mid-episode too. So it is with a batch of another state."""
    for options in ({"relabel": "episode_end"}, {"relabel": "sample", "num_steps": 3, "discount": 0.5}):
        state = numbered.make(transition=jnp.float32(0), reward_fn=lambda number, goal: goal / number, **options)
        running = herjax.add(state, jnp.float32(1))
        batch = herjax.sample(running, KEY, 8)
        for empty in (state, running):
            drawn = herjax.relabel(empty, batch, KEY, strategy="random", hindsight_ratio=1.0)
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(drawn))
        full = herjax.end_episode(running, jnp.float32(-1), KEY)
        stale = herjax.relabel(state, herjax.sample(full, KEY, 8), KEY, strategy="random", hindsight_ratio=1.0)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(stale))


@pytest.mark.parametrize("name", ["kept", "late-windows", "late-back"])
def test_a_stale_batch_gives_what_is_finite(name: str) -> None:
    """Of a state that has gone on since, at each step until all that was drawn is gone."""

    def inverse(number, goal):
        return (1000 + goal) / number  # No transition is 0.

    options = {"transition": jnp.float32(0), "reward_fn": inverse, "capacity": 36, "num_goals": 2}
    state = numbered.make(**(SETTINGS[name] | options))
    envs = state.config.num_envs or 1

    def act(state, number, done):
        numbers = (number * envs + jnp.arange(1, envs + 1)).astype(jnp.float32)
        numbers = numbers if state.config.num_envs else numbers[0]
        return herjax.end_episode(herjax.add(state, numbers), -numbers, KEY, done=done)

    @jax.jit
    def look(state, batch):
        return [herjax.relabel(state, batch, KEY, strategy=each, hindsight_ratio=0.5) for each in ("episode", "random")]

    act = jax.jit(act)
    state = act(act(act(state, 0, done=False), 1, done=True), 2, done=True)
    batch = herjax.sample(state, KEY, 32)
    for number in range(3, 3 + 50 // envs):
        state = act(state, number, done=number % 7 in (1, 5))
        for stale in look(state, batch):
            assert_rest_stays(batch, stale)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(stale))


def outside(key, step, length):
    """A strategy's mistake."""
    del key, step
    return length + 7776


def reported(function, *arguments, **options) -> str:
    """What checkify reports of this call; empty when it reports nothing."""
    return checkify.checkify(jax.jit(function), **options)(*arguments)[0].get() or ""


def test_faults_are_named_under_checkify() -> None:
    """A share out of range, with its value; a strategy that leaves the episode. Without checkify both are clipped."""
    buffer = played("kept")
    batch = some_of(buffer.batch, 64)

    def draw(ratio):
        return herjax.relabel(buffer.state, batch, KEY, hindsight_ratio=ratio)

    report = partial(reported, draw)
    for ratio, shown in ((1.5, "1.5"), (-0.25, "-0.25"), (float("nan"), "nan")):
        assert "hindsight_ratio" in report(jnp.float32(ratio))
        assert shown in report(jnp.float32(ratio))
    for ratio in (0.0, 0.5, 1.0):
        assert report(jnp.float32(ratio)) == ""
    assert "1.5" in reported(jax.vmap(draw), jnp.array([0.5, 1.5]))
    assert np.all(relabel(buffer.state, batch, None, 1.5).is_hindsight)
    assert not np.any(relabel(buffer.state, batch, None, -0.5).is_hindsight)

    astray = jax.jit(lambda batch: herjax.relabel(buffer.state, batch, KEY, strategy=outside, hindsight_ratio=1.0))
    last = [buffer.episodes[number].transitions[-1] for number in batch.transition.tolist()]
    np.testing.assert_array_equal(astray(batch).goal, last)
    assert "strategy" in reported(astray, batch)


@pytest.mark.parametrize("name", ["kept-windows", "late-back"])
def test_no_check_of_checkify_raises_a_false_alarm(name: str) -> None:
    """Not one of `all_checks`, of a full buffer and of an empty one."""
    look = partial(herjax.relabel, strategy=herjax.mixture(MIXED))
    for state in (played(name).state, make(name)):
        batch = herjax.sample(state, KEY, 16)
        assert reported(look, state, batch, KEY, errors=checkify.all_checks) == ""


def test_gradients_pass_by() -> None:
    """What is relabelled is a constant: nothing flows from state, batch and share, in reverse or forward."""
    options = {"transition": jnp.float32(0), "reward_fn": lambda number, goal: number * goal, "discount": 0.5}
    state = numbered.make(num_steps=3, priority_exponent=0.6, **options)
    state = herjax.end_episode(herjax.add(herjax.add(state, jnp.float32(1)), jnp.float32(2)), jnp.float32(-1), KEY)
    batch = herjax.sample(state, KEY, 16)

    def loss(scale):
        scaled = batch._replace(transition=batch.transition * scale, goal=batch.goal * scale, weights=batch.weights * scale)
        drawn = herjax.relabel(state, scaled, KEY, strategy="episode", hindsight_ratio=0.5 * scale)
        around = herjax.steps(state, scaled, [0, 1])
        return sum(jnp.sum(leaf) for leaf in (drawn.goal, drawn.reward, drawn.last, drawn.discount, around.reward))

    value, slope = jax.value_and_grad(loss)(jnp.float32(1))
    assert value != 0
    assert slope == 0
    assert jax.jvp(loss, (jnp.float32(1),), (jnp.float32(1),))[1] == 0


# What is given.


class Equal:
    """A strategy that is equal to all of its kind, whatever it does."""

    def __init__(self, place: int) -> None:
        self.place = place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    def __hash__(self) -> int:
        return 0

    def __call__(self, key: jax.Array, step: jax.Array, length: jax.Array) -> jax.Array:
        """The first step of an episode, or its last."""
        del key, step
        return length * self.place - self.place


@pytest.mark.parametrize("name", ["kept", "late"])
def test_strategies_that_are_equal_are_two(name: str) -> None:
    """Functions are told apart by identity: the second call does not get the program of the first."""
    buffer = played(name)
    batch = some_of(buffer.batch, 64)
    first, last = Equal(0), Equal(1)
    drawn = [herjax.relabel(buffer.state, batch, KEY, strategy=each, hindsight_ratio=1.0).goal for each in (first, last)]
    numbers = batch.transition.tolist()
    np.testing.assert_array_equal(drawn[0], [buffer.first_held(number) for number in numbers])
    np.testing.assert_array_equal(drawn[1], [buffer.episodes[number].transitions[-1] for number in numbers])


def test_equal_strategies_share_a_program() -> None:
    """Herjax's own by content, a function by identity, and shares of any value."""
    traced = []

    def counted(number, goal):
        traced.append(1)
        return number - goal

    state = numbered.make(reward_fn=counted, relabel="sample")
    batch = herjax.sample(state, KEY, 4)
    for strategy in (lambda: herjax.geometric(0.5), lambda: herjax.mixture({"final": 1, past: 1}), lambda: past):
        herjax.relabel(state, batch, KEY, strategy=strategy(), hindsight_ratio=0.25)
        calls = len(traced)
        herjax.relabel(state, batch, jax.random.key(1), strategy=strategy(), hindsight_ratio=0.75)
        assert len(traced) == calls


@pytest.mark.parametrize("ratio", [1, np.float64(1), np.int64(1), jnp.float32(1), jnp.int32(1), jnp.ones((), jnp.bfloat16)])
def test_a_share_is_any_number(ratio: object) -> None:
    """Python's, NumPy's or JAX's, whole or not."""
    buffer = played("kept")
    batch = some_of(buffer.batch, 4)
    assert np.all(herjax.relabel(buffer.state, batch, KEY, hindsight_ratio=ratio).is_hindsight)


def test_without_terminated_fn_there_is_none() -> None:
    """`terminated` is None, as `sample` gives it."""
    state = numbered.make(terminated_fn=None, relabel="sample")
    batch = jax.eval_shape(lambda state: herjax.sample(state, KEY, 4), state)
    assert jax.eval_shape(lambda state, batch: herjax.relabel(state, batch, KEY), state, batch) == batch
    assert batch.terminated is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": None}, TypeError, "batch is a NoneType; give the Sample that sample returned"),
        ({"batch": {"goal": np.zeros(3)}}, TypeError, "batch is a dict; give the Sample"),
        ({"state": np.zeros(3)}, TypeError, "state is"),
        ({"key": 3}, TypeError, "key"),
        ({"key": jnp.zeros(2)}, TypeError, "key has dtype float32; give a PRNG key"),
        ({"key": jax.random.split(KEY, 3)}, ValueError, r"key has shape \(3,\); give one key"),
        ({"strategy": "nearest"}, ValueError, "strategy is 'nearest'; give 'future'"),
        ({"strategy": 3}, TypeError, r"strategy is 3; give a function \(key, step, length\)"),
        ({"strategy": lambda step: step}, TypeError, "strategy is called as strategy"),
        ({"hindsight_ratio": jnp.ones(2)}, ValueError, r"hindsight_ratio is of shape \(2,\)"),
        ({"hindsight_ratio": jnp.array(True)}, ValueError, "hindsight_ratio is of shape .* and dtype bool"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    """The argument, what it is, and what to give."""
    buffer = played("kept")
    given = {"state": buffer.state, "batch": buffer.batch, "key": KEY} | options
    with pytest.raises(error, match=message):
        herjax.relabel(given.pop("state"), given.pop("batch"), given.pop("key"), **given)


def test_all_but_the_state_and_its_arguments_is_keyword_only() -> None:
    """As the contract writes it."""
    buffer = played("kept")
    with pytest.raises(TypeError):
        herjax.relabel(buffer.state, buffer.batch, KEY, "final")
