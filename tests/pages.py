"""The pages of the documentation: their blocks of code, their links, and how hard they are to read."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "examples/guides").glob("*.md"))
ALL = [ROOT / "README.md", *sorted((ROOT / "examples").rglob("*.md")), *sorted((ROOT / ".github").glob("*.md"))]


def blocks(page: str, language: str = "python") -> list[str]:
    """The blocks of code in that language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def text_lines(page: str) -> list[str]:
    """All lines but those of code."""
    return re.sub(r"```.*?```", "", page, flags=re.DOTALL).splitlines()


def sentences(page: str) -> list[str]:
    """The sentences of the prose: no headings, tables or code. A span of code counts as one word, a link as its text."""
    prose = [line for line in text_lines(page) if not re.match(r"\s*(#|\||!\[)", line)]
    text = re.sub(r"`[^`\n]*`", "code", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", "\n".join(prose)))
    items = re.sub(r"\n\s*(?:[-*]|\d+\.) ", "\n\n", "\n" + text.replace("**", ""))
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", items)]
    return [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?])\s+", paragraph) if sentence]


def links(page: str) -> list[str]:
    """Relative links, without the part of the page."""
    return re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page)
