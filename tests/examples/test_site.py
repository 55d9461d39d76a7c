"""The site: every public name, README as its front, the other pages beside it."""

import html
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import herjax
import pages
from herjax import checkpoints, envs

pytest.importorskip("pdoc")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """What builds the site."""
    spec = importlib.util.spec_from_file_location("build_site", pages.ROOT / ".github/build_site.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


@pytest.fixture(scope="module")
def site(program: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the site was built in."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # Where no folder is called herjax, for which pdoc could take the module.
        program.build(folder)
    return folder


@pytest.mark.parametrize("module", [herjax, checkpoints, envs], ids=lambda module: module.__name__)
def test_every_public_name_is_on_its_page(site: Path, module: object) -> None:
    """With a place to link to."""
    page = (site / f"{module.__name__.replace('.', '/')}.html").read_text()
    for name in module.__all__:
        assert f'id="{name}"' in page, name


def test_what_is_no_users_is_not_shown(site: Path) -> None:
    """Of a state, two counters."""
    fields = re.findall(r'id="BufferState\.(\w+)"', (site / "herjax.html").read_text())
    assert fields == ["num_dropped", "num_rejected"]


def test_the_front_is_readme_and_every_page_is_there(site: Path) -> None:
    """Each begins with its heading."""
    for source in pages.ALL:
        heading = source.read_text().splitlines()[0].lstrip("# ")
        found = [path for path in site.rglob("*.html") if f">{html.escape(heading)}</h1>" in path.read_text()]
        assert found, source
    assert ">herjax</h1>" in (site / "index.html").read_text()


def test_no_link_is_broken(site: Path) -> None:
    """Every relative link and picture of every page leads to a file of the site."""
    for path in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="(?!https?:|#|data:|mailto:)([^"#$]+)', path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(site)}: {target}"


def test_a_notebook_opens_in_colab(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that the site is of, where the repository is known; its other files have links, too."""
    readme, notebook = pages.ROOT / "README.md", "github/someone/herjax/blob/v1/examples/quickstart.ipynb"
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert "colab" not in program.page(readme)
    for name, value in {"REPOSITORY": "someone/herjax", "REF_NAME": "v1", "SERVER_URL": "https://github.com"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    page = program.page(readme)
    assert f'href="https://colab.research.google.com/{notebook}"' in page
    assert f'href="https://{notebook.replace("github", "github.com", 1)}"' in page
