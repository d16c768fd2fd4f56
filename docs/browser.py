"""Checks the built site in headless Chromium: no page is wider than the screen, no picture is lost.

    make docs browser
    python docs/browser.py [FOLDER]

Loads every page at 400 and at 1400 pixels. With a folder, pictures of the pages are kept there.
Exits with 1 for faults, with 2 where there is no browser: PyQt6-WebEngine needs shared libraries
of the system.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--disable-gpu --single-process")

try:
    from PyQt6.QtCore import QTimer, QUrl
    from PyQt6.QtWebEngineWidgets import QWebEngineView
    from PyQt6.QtWidgets import QApplication
except ImportError as error:
    print(f"no browser: {error}", file=sys.stderr)
    sys.exit(2)

SITE = Path(__file__).parent.resolve() / "_build"
WIDTHS, HEIGHT, PAUSE = (400, 1400), 900, 150  # pixels, pixels, milliseconds
LOOK = """(() => {
  const room = document.documentElement.clientWidth;
  const wide = document.documentElement.scrollWidth > room + 1;
  const beyond = element => !element.closest('pre, table')
    && element.getBoundingClientRect().right > room + 1;
  const culprits = wide ? Array.from(document.querySelectorAll('article *')).filter(beyond) : [];
  const lost = Array.from(document.images).filter(i => !i.complete || i.naturalWidth == 0);
  return JSON.stringify({wide: wide, lost: lost.map(i => i.src),
                         culprits: culprits.slice(-2).map(e => e.textContent.slice(0, 60))});
})()"""


class Browser:
    """Loads pages one after another and collects what is wrong with them."""

    def __init__(self, pages: list[tuple[Path, int]], folder: Path | None):
        self.pages, self.folder, self.faults = list(pages), folder, []
        self.view = QWebEngineView()
        self.view.loadFinished.connect(lambda _: QTimer.singleShot(PAUSE, self.look))

    def next(self) -> None:
        """Loads the next page, or ends."""
        if not self.pages:
            return QApplication.quit()
        self.page, self.width = self.pages.pop(0)
        self.view.resize(self.width, HEIGHT)
        self.view.show()
        self.view.load(QUrl.fromLocalFile(str(self.page)))

    def look(self) -> None:
        """Measures the page."""
        self.view.page().runJavaScript(LOOK, self.found)

    def found(self, text: str) -> None:
        """Keeps the faults and the picture of the page."""
        found, name = json.loads(text), self.page.relative_to(SITE)
        if found["wide"]:
            self.faults.append(f"{name} is wider than {self.width} pixels: {found['culprits']}")
        self.faults += [f"{name}: no picture {source}" for source in found["lost"]]
        if self.folder is not None:
            picture = self.folder / f"{'-'.join(name.with_suffix('').parts)}-{self.width}.png"
            self.view.grab().save(str(picture))
        self.next()


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    found = (path for path in sorted(SITE.rglob("*.html")) if "_static" not in path.parts)
    pages = [(path, width) for path in found for width in WIDTHS]
    if not pages:
        sys.exit(f"{SITE} holds no pages; make docs builds them.")
    app = QApplication(sys.argv[:1])
    browser = Browser(pages, folder)
    QTimer.singleShot(0, browser.next)
    app.exec()
    print(f"{len(pages)} views, {len(browser.faults)} faults")
    sys.exit("\n".join(browser.faults) or 0)


if __name__ == "__main__":
    main()
