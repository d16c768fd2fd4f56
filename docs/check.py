"""Checks the built site: every internal link and picture of every page leads to something."""

import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

SITE = Path(__file__).parent / "_build"


class Page(HTMLParser):
    """What a page links to, and the anchors that others can link to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found[name] or "" for name in ("id", "name") if name in found}
        target = found.get(
            {"a": "href", "img": "src", "link": "href", "script": "src"}.get(tag, "")
        )
        self.links += [target] if target else []


def broken(pages: dict[Path, Page]) -> list[str]:
    """The links that lead nowhere, with their pages."""
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
            target = path if not parts.path else target
            lost = (
                parts.fragment and target in pages and parts.fragment not in pages[target].anchors
            )
            if not target.exists() or lost:
                found.append(f"{path.relative_to(SITE)}: {link}")
    return found


def main() -> None:
    pages = {
        path: Page(path)
        for path in sorted(SITE.resolve().rglob("*.html"))
        if "_static" not in path.parts
    }
    found = broken(pages)
    print(f"{len(pages)} pages, {sum(len(p.links) for p in pages.values())} links")
    sys.exit("\n".join(["broken:", *found]) if found else 0)


if __name__ == "__main__":
    main()
