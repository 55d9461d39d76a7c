"""The docstrings are the reference: the example of every public name runs, and `help(herjax)` says where to begin."""

import doctest
import inspect
import pydoc
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import herjax
from herjax import checkpoints, envs

NAMES = [name for name in herjax.__all__ if name != "__version__"]
SAVING = [name for name in checkpoints.__all__ if inspect.isfunction(getattr(checkpoints, name))]
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in ((herjax, NAMES), (checkpoints, SAVING), (envs, envs.__all__))
    for name in names
}


def wrong_with_example(name: str, documented: object) -> str:
    """What is wrong with the example in a docstring: nothing if it is there, uses the name, shows a result, and is right."""
    # Not by doctest's finder, which passes by jitted functions. And no globals: an example must import what it uses.
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(documented) or "", {}, name, None, None)
    uses = re.compile(rf"\b{name.rpartition('.')[2]}\(|herjax\.{name.rpartition('.')[2]}\b")
    if not any(uses.search(line.source) for line in example.examples):
        return f"{name} has no example that uses it"
    if not any(line.want for line in example.examples):
        return f"the example of {name} shows no result"
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pasted into a new interpreter, the example in the docstring prints what the docstring says."""
    monkeypatch.chdir(tmp_path)
    wrong = wrong_with_example(name, PUBLIC[name])
    assert not wrong, wrong


def documented_as(docstring: str) -> Callable[[], None]:
    """A function with this docstring."""

    def add() -> None:
        pass

    add.__doc__ = docstring
    return add


@pytest.mark.parametrize(
    ("docstring", "wrong"),
    [
        ("Adds.", "no example"),
        ("Adds.\n\n>>> 1 + 1\n2", "no example"),
        ("Adds.\n\n>>> import herjax\n>>> _ = herjax.add", "no result"),
        ("Adds.\n\n>>> import herjax\n>>> herjax.add is None\nTrue", "Expected"),
        ("Adds.\n\n>>> herjax.add is None\nFalse", "NameError"),
        ("Adds.\n\n>>> import herjax\n>>> herjax.add is None\nFalse", ""),
    ],
    ids=["none", "of something else", "without a result", "with a wrong result", "without its import", "right"],
)
def test_a_wrong_example_is_found(docstring: str, wrong: str) -> None:
    """The test above fails for an example that is missing, shows nothing, or shows what is not so."""
    found = wrong_with_example("herjax.add", documented_as(docstring))
    assert wrong in found
    assert bool(found) == bool(wrong)


@pytest.mark.parametrize("name", PUBLIC)
def test_help_shows_the_docstring(name: str) -> None:
    """`help(herjax.add)` prints the docstring, though jax.jit has wrapped the function."""
    docstring = inspect.getdoc(PUBLIC[name])
    shown = [line.strip(" |") for line in pydoc.plain(pydoc.render_doc(PUBLIC[name])).splitlines()]
    start = shown.index(docstring.splitlines()[0])
    assert shown[start : start + len(docstring.splitlines())] == [line.strip() for line in docstring.splitlines()]


def test_help_of_the_package_says_where_to_begin() -> None:
    """In under 30 lines it names everything in `__all__`, as code, and shows a loop's calls in their order."""
    docstring = inspect.getdoc(herjax)
    assert len(docstring.splitlines()) < 30
    for name in herjax.__all__:
        assert re.search(rf"(`|herjax\.){name}\b", docstring), f"{name} is missing from help(herjax)"
    calls = re.findall(r"= herjax\.(\w+)\(", docstring)
    assert calls == ["init", "add", "end_episode", "sample", "update_priorities"]
