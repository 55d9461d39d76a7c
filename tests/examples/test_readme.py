"""What the README prints."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import herjax
import pages

README = (pages.ROOT / "README.md").read_text()
QUICKSTART, CALLS = pages.blocks(README)

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def quickstart() -> dict[str, object]:
    """The names that the quickstart defines; it is not run."""
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(QUICKSTART[: QUICKSTART.index("print(")], namespace)
    return namespace


def test_the_quickstart_learns_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the success that the page says, with HER and without, within 20 seconds of one core's time."""
    before = time.process_time()
    exec(QUICKSTART, {"__name__": "readme"})
    assert time.process_time() - before < 20
    with_her, without = (float(number) for number in capsys.readouterr().out.split()[-2:])
    assert with_her > 0.98
    assert without < 0.05
    assert "prints about 1.0 with HER and 0.0 without" in README


@pytest.mark.slow
def test_the_quickstart_learns_with_another_reward() -> None:
    """A reader who changes the reward to 1 at the goal, and 0 elsewhere, sees it learned, too, by each of four seeds."""
    changed = QUICKSTART[: QUICKSTART.index("print(")].replace("reached(t, goal) - 1.0", "1.0 * reached(t, goal)")
    namespace: dict[str, object] = {"__name__": "readme"}
    exec(changed, namespace)
    success = jax.jit(jax.vmap(lambda key: namespace["train"](key, 4)))(jax.random.split(jax.random.key(7), 4))
    assert float(success.min()) > 0.9


def test_many_seeds_as_it_says(quickstart: dict[str, object]) -> None:
    """`jax.vmap(train, (0, None))` takes many keys."""
    train = jax.vmap(quickstart["train"], (0, None))
    assert jax.eval_shape(lambda keys: train(keys, 4), jax.random.split(jax.random.key(0), 3)).shape == (3,)


def test_the_loop_is_in_place(quickstart: dict[str, object]) -> None:
    """Its temporaries are the buffer that it makes, and little more."""
    compiled = jax.jit(quickstart["train"], static_argnums=1).lower(jax.random.key(0), 4).compile()
    buffer = jax.eval_shape(
        lambda: herjax.init(bits(), capacity=8000, max_episode_length=15, discount=0.95, **quickstart["task"])
    )
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer))
    assert held < compiled.memory_analysis().temp_size_in_bytes < 1.5 * held


def bits() -> dict[str, jax.Array]:
    """A transition of the quickstart's."""
    return {"bits": jnp.zeros(10), "action": jnp.int32(0), "next_bits": jnp.zeros(10)}


def test_the_calls_and_the_functions_run_as_printed(quickstart: dict[str, object], key: jax.Array) -> None:
    """The second block makes an ended episode of one step, learns from it, and defines three functions that fit together."""
    buffer = herjax.init(bits(), capacity=40, max_episode_length=4, priority_exponent=0.6, discount=0.9, **quickstart["task"])
    names = {"herjax": herjax, "jnp": jnp, "jax": jax, "key": key, "done": True, "goal": jnp.ones(10)}
    names |= {"buffer": buffer, "transition": bits(), "value": lambda observation, goal: jnp.sum(observation * goal, axis=-1)}
    exec(CALLS, names)
    batch = names["batch"]
    np.testing.assert_array_equal(names["target"][batch.is_hindsight], 0)
    np.testing.assert_allclose(names["td_error"][~batch.is_hindsight], -1)
    assert float(names["buffer"].max_priority) == 1
    position = {"position": jnp.zeros(2)}
    assert [float(names["reward_fn"](position, jnp.full(2, far))) for far in (0.01, 1.0)] == [0, -1]
    functions = {name: names[name] for name in ("goal_fn", "reward_fn", "terminated_fn")}
    herjax.init(position, capacity=40, max_episode_length=4, **functions)


def test_the_options_are_those_of_init(quickstart: dict[str, object]) -> None:
    """`init` takes every option as the page spells it, and so do the calls for running episodes."""
    options = README[README.index("## Five options") :]
    found = re.findall(r"`(\w+=(?:\{.*?\}|[^`]*))`", options[: options.index("**When")])
    assert len(found) == 7
    for option in found:
        given = eval(f"dict({option})", {"n": 4})
        herjax.init(bits(), capacity=80, max_episode_length=15, **given, **quickstart["task"])
    (given,) = re.findall(r"`(sample_running=[^`]*)`", options)
    names = {"herjax": herjax, "t": bits(), "goal": jnp.ones(10), "key": jax.random.key(0), "done": True}
    running = herjax.init(bits(), capacity=80, max_episode_length=15, **eval(f"dict({given})"), **quickstart["task"])
    for call in re.findall(r"`(herjax\.\w+\(buffer, .*?\))`", options):
        running = eval(call, names | {"buffer": running})
        assert int(herjax.size(running)) == 1
    assert not running.pending.any()


def test_conditions_are_one_bool(quickstart: dict[str, object]) -> None:
    """Those of the third rule: not yet met by an empty buffer, in any of two runs."""
    rules = README[README.index("## Three rules") : README.index("## Five options")]
    conditions = re.findall(r"herjax\.in_all_runs\([^`]*?\)+(?=`|, \.\.\.)", rules)
    assert len(conditions) == 2
    make = jax.vmap(lambda _: herjax.init(bits(), capacity=80, max_episode_length=15, **quickstart["task"]))
    for condition in conditions:
        met = jax.vmap(lambda buffer, condition=condition: eval(condition, {"herjax": herjax, "buffer": buffer}))
        assert met(make(jnp.arange(2))).tolist() == [False, False]


def test_memory_is_what_it_says() -> None:
    """The worked example's buffer takes 344 MB."""
    example = jnp.zeros(60)
    functions = {
        "goal_fn": lambda t: t[:3],
        "reward_fn": lambda t, goal: t[0] - goal[0],
        "terminated_fn": lambda t, goal: t[0] == goal[0],
    }
    buffer = jax.eval_shape(lambda: herjax.init(example, capacity=1_000_000, max_episode_length=50, **functions))
    megabytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer)) / 1e6
    assert abs(megabytes - 344) < 1
    assert "take 344 MB" in README


def test_it_is_short() -> None:
    """A landing page has at most 110 lines and 1,000 words, and its text no line above 140 characters."""
    assert len(README.splitlines()) <= 110
    assert len(README.split()) <= 1000
    assert max(map(len, pages.text_lines(README))) <= 140
    assert max(map(len, README.splitlines())) <= 140


def test_its_commands_name_what_is_there() -> None:
    """The two commands to install name an extra of the project's, and a program."""
    (commands,) = pages.blocks(README, "bash")
    assert len(commands.splitlines()) == 2
    for extra in re.findall(r'"\.\[(\w+)\]"', commands):
        assert f"\n{extra} = [" in (pages.ROOT / "pyproject.toml").read_text()
    for program in re.findall(r"python (examples/\S+)", commands):
        assert (pages.ROOT / program).exists()
