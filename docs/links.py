"""Links of a built site that lead nowhere: `python docs/links.py docs/_build/html` prints them and ends with 1."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Where a page can be entered, and where it leads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the tag's anchors and targets."""
        for key, value in attrs:
            if key == "id" or (tag == "a" and key == "name"):
                self.anchors.add(value or "")
            elif key in ("href", "src"):
                self.targets.append(value or "")


def dead(site: Path) -> list[str]:
    """`page: target` of every link within the site whose file or anchor is missing."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for target in page.targets:
            link = urlsplit(target)
            if link.scheme or link.netloc:
                continue
            there = (path.parent / unquote(link.path)).resolve() if link.path else path
            there = there / "index.html" if there.is_dir() else there
            known = pages.get(there)
            if not there.is_file() or (known is not None and unquote(link.fragment) not in known.anchors):
                found.append(f"{path.relative_to(site.resolve())}: {target}")
    return found


if __name__ == "__main__":
    if missing := dead(Path(sys.argv[1])):
        sys.exit("dead links:\n" + "\n".join(missing))
