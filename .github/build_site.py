"""The site: the API as pdoc shows it, README as its front, and the other pages beside it.

python .github/build_site.py FOLDER
"""

import os
import re
import shutil
import sys
from pathlib import Path

import jinja2
import pdoc

ROOT = Path(__file__).parents[1]
MODULES = ["herjax", "herjax.envs", "herjax.checkpoints"]
FUNCTIONS = ["!herjax.steps", "!herjax.episodes"]
"""Names of `herjax` that are files, too: pdoc is to show the functions."""
SOURCES = ["README.md", "examples/README.md", "examples/results.md", *sorted(ROOT.glob("examples/*/*.md"))]
SOURCES += [".github/CHANGELOG.md", ".github/CONTRIBUTING.md"]
PAGES = {
    source: source.parent / (source.stem.lower().replace("readme", "index") + ".html") for source in map(ROOT.joinpath, SOURCES)
}
"""Each page's file, and that of the site, both in this folder."""
FRAME = """{% extends "frame.html.jinja2" %}
{% block title %}{{ title }}{% endblock %}
{% block nav %}<h2>herjax</h2><ul>
{% for name, link in links.items() %}<li><a href="{{ link }}">{{ name }}</a></li>{% endfor %}
</ul>{% endblock %}
{% block content %}<main class="pdoc"><section class="module-info">
<div class="docstring">{{ text | safe }}</div>
</section></main>{% endblock %}"""

PARTS = {
    "custom.css": ".pdoc pre { font-size: 0.7rem; }",
    "module.html.jinja2": """{% extends "default/module.html.jinja2" %}
{% block nav_title %}<h2><a href="{{ "../" * module.modulename.count(".") }}index.html">herjax</a></h2>{% endblock %}
{% block nav_submodules %}{% endblock %}
{% macro is_public(doc) %}{% if doc.qualname in counters or not doc.qualname.startswith("BufferState.") %}
{{ default_is_public(doc) }}{% endif %}{% endmacro %}""",
}
"""In place of pdoc's: lines of code fit, pages lead back to the front, and a state's inside is not shown."""
COUNTERS = ("BufferState.num_dropped", "BufferState.num_rejected")


def title(source: Path) -> str:
    """A page's heading."""
    return source.read_text().splitlines()[0].lstrip("# ")


def on_site(path: Path) -> str:
    """A page's place on the site; no folder of it is hidden."""
    return str(PAGES[path].relative_to(ROOT)).replace(".github/", "")


def link(source: Path, target: str) -> str | None:
    """Where a link of a page leads on the site, or in the repository; None where neither is known."""
    path, _, part = target.partition("#")
    found = (source.parent / path).resolve()
    if found.is_dir():
        found /= "README.md"
    if found in PAGES:
        return os.path.relpath(on_site(found), Path(on_site(source)).parent) + (f"#{part}" if part else "")
    if found.suffix == ".png":
        return path
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        return f"{server}/{repository}/{file_of_this_version(found)}"
    return None


def file_of_this_version(path: Path) -> str:
    """Where GitHub has a file, below the repository's address."""
    return f"blob/{os.environ.get('GITHUB_REF_NAME', 'main')}/{path.relative_to(ROOT)}"


def badge(notebook: Path) -> str:
    """A link that opens a notebook in Colab; nothing where the repository is not known."""
    if (repository := os.environ.get("GITHUB_REPOSITORY")) is None:
        return ""
    colab = "https://colab.research.google.com"
    return f" [![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{repository}/{file_of_this_version(notebook)})"


def page(source: Path) -> str:
    """The HTML of a page."""

    def linked(match: re.Match[str]) -> str:
        where, path = link(source, match[2]), (source.parent / match[2]).resolve()
        shown = match[1] if where is None else f"[{match[1]}]({where})"
        return shown + (badge(path) if path.suffix == ".ipynb" else "")

    text = re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", linked, source.read_text())
    folder = Path(on_site(source)).parent
    links = {title(other): os.path.relpath(on_site(other), folder) for other in PAGES}
    links |= {f"API: {module}": os.path.relpath(module.replace(".", "/") + ".html", folder) for module in MODULES}
    frame = pdoc.render.env.from_string(FRAME)
    return frame.render(title=title(source), links=links, text=pdoc.render_helpers.to_html(text))


def build(site: Path) -> None:
    """Writes the whole site into a folder."""
    pdoc.render.configure(docformat="google")
    pdoc.render.env.loader = jinja2.ChoiceLoader([jinja2.DictLoader(PARTS), pdoc.render.env.loader])
    pdoc.render.env.globals["counters"] = COUNTERS
    pdoc.pdoc(*MODULES, *FUNCTIONS, output_directory=site)
    for source in PAGES:
        written = site / on_site(source)
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(page(source))
    for picture in (ROOT / "examples").glob("*.png"):
        shutil.copy(picture, site / "examples")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
