"""Check a built site: `python .docs/check_links.py FOLDER`.

Every link within it leads to a file and a part that are there, and no page loads a script, a style or a picture from elsewhere.
Each fault is a line, and makes the status 1.
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """The links of a page, what it loads, and the parts that a link may lead to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.parts: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.parts |= {value for name, value in attrs if value and (name == "id" or (tag == "a" and name == "name"))}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag in LOADED and found.get(LOADED[tag]):
            self.loaded.append(found[LOADED[tag]])


def faults(site: Path) -> Iterator[str]:
    """What is wrong, a line each."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no pages"
    for path, page in pages.items():
        for address in (*page.links, *page.loaded):
            at = urlsplit(address)
            if at.scheme or at.netloc:
                if address in page.loaded and at.scheme != "data":
                    yield f"{path.relative_to(site)}: loads {address}"
                continue
            target = (path.parent / unquote(at.path)).resolve() if at.path else path
            part = unquote(at.fragment)
            if not target.is_file():
                yield f"{path.relative_to(site)}: {address} leads nowhere"
            elif part and target in pages and part not in pages[target].parts:
                yield f"{path.relative_to(site)}: {address} leads to a part that is not there"


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1]).resolve()))
    print("\n".join(found) or "every link leads somewhere")
    sys.exit(bool(found))
