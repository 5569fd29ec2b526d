"""Pages that are made before the site is built: the front page from the README, the notebooks, tables of results, the reference.
They go into folders of `.docs` that git ignores. Nothing about Sphinx may live here.

What is a page of the site stands in one place of the repository; links to it are turned to where the site has it.
"""

import os
import re
from pathlib import Path

from _ext import api

ROOT = Path(__file__).parents[2]
DOCS = ROOT / ".docs"
MADE = {"notebooks": ROOT / "notebooks", "results": ROOT / "scripts" / "results", "api": None}
"""Folders of `.docs` that are made, and those that their pages come from."""
PAGES_OF = {"notebooks": "*.ipynb", "results": "*.md"}

FRONT = (None, "Install", "Learn it", "What is measured, and where")
"""The parts of the README that the front page has; the first is what stands before any heading."""

CONTENTS = [
    ("Guides", ["first_steps", "sequences", "cells", "own_cell", "long_sequences"]),
    ("Move here", ["moving", "conventions", "trained_networks", "production"]),
    ("Train", ["training_scripts", "text", "forecasting", "policies"]),
    ("Scale and speed", ["scale", "precision", "speed", "engine"]),
    ("Help", ["errors", "glossary"]),
]
"""The guides in the order of the menu; those named nowhere come at the end of the last part."""

LINK = re.compile(r"(\]\()([^)\s\"\\]+)(\))")
IMAGE = (".png", ".svg", ".gif", ".jpg")


def make() -> None:
    """Write every page that is made, and remove those that are no longer."""
    for folder, source in MADE.items():
        (DOCS / folder).mkdir(exist_ok=True)
        wanted = reference() if source is None else copies(source, PAGES_OF[folder])
        for old in (DOCS / folder).iterdir():
            if old.name not in wanted:
                old.unlink()
        for name, text in wanted.items():
            write_if_changed(DOCS / folder / name, text)
    write_if_changed(DOCS / "index.md", front_page((ROOT / "README.md").read_text(encoding="utf-8")))


def write_if_changed(path: Path, text: str) -> None:
    """So that what is as before need not be built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def reference() -> dict[str, str]:
    return {f"{page.module}.rst": api.write(page) for page in api.pages()}


def copies(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern))}


def source_of(page: Path) -> Path:
    """Where the page at this path of `.docs` stands in the repository."""
    folder = MADE.get(page.relative_to(DOCS).parts[0])
    return (ROOT / "README.md") if page == DOCS / "index.md" else page if folder is None else folder / page.name


def page_of(file: Path) -> Path:
    """Where the site has what stands at this path of the repository."""
    for folder, source in MADE.items():
        if source is not None and file.parent == source and file.match(PAGES_OF[folder]):
            return DOCS / folder / file.name
    return DOCS / "index.md" if file == ROOT / "README.md" else file


def turn_links(text: str, page: Path) -> str:
    """The text of a page with its links, which are right from where the page stands in the repository, right on the site."""
    source = source_of(page)

    def turn(found: re.Match) -> str:
        target, hash_, part = found[2].partition("#")
        if not target or "://" in target or target.startswith(("mailto:", "attachment:", "data:")):
            return found[0]
        file = Path(os.path.normpath(source.parent / target))
        if not file.exists():
            return found[0]
        turned = os.path.relpath(page_of(file), page.parent).replace(os.sep, "/")
        return f"{found[1]}{turned}{hash_}{part}{found[3]}"

    return LINK.sub(turn, text)


def front_page(readme: str) -> str:
    """The parts of the README that `FRONT` names, and the menu."""
    parts = {None: readme.partition("\n## ")[0]}
    for part in re.split(r"^(?=## )", readme, flags=re.MULTILINE)[1:]:
        heading, _, _ = part.partition("\n")
        parts[heading.removeprefix("## ").strip()] = part
    missing = [name for name in FRONT if name not in parts]
    if missing:
        raise ValueError(f"front_page: `FRONT` should name headings of the README, which has none called {missing}.")
    text = "\n".join(parts[name].rstrip() + "\n" for name in FRONT)
    return text + "\n" + "\n".join(toctree(pages, f":caption: {caption}") for caption, pages in contents())


def contents() -> list[tuple[str, list[str]]]:
    """The menu: captions and pages."""
    guides = [path.stem for path in sorted((DOCS / "guides").glob("*.md"))]
    named = {name for _, names in CONTENTS for name in names}
    made = [(caption, [f"guides/{name}" for name in names if name in guides]) for caption, names in CONTENTS]
    made[-1][1].extend([f"guides/{name}" for name in guides if name not in named])
    made.append(("Reference", [f"api/{page.module}" for page in api.pages()]))
    made.append(("More", ["notebooks", "changes", *(f"results/{p.stem}" for p in sorted(MADE["results"].glob("*.md")))]))
    return made


def toctree(pages: list[str], *options: str) -> str:
    return "\n".join(["```{toctree}", ":hidden:", *options, "", *pages, "```", ""])


def below(docname: str) -> str:
    """What a page has at its end on the site: that of the notebooks, the menu of them."""
    notebooks = [f"notebooks/{path.stem}" for path in sorted(MADE["notebooks"].glob("*.ipynb"))]
    return "\n" + toctree(notebooks) if docname == "notebooks" else ""
