"""The console's files, as they lie in `static/`: read once, named by what is in them, compressed when first asked for.

Hidden here: the digest over all files, which stands in their paths. A file that imports another by a relative path thereby
gets that of the same release, and a browser may keep all of them for ever.
"""

from __future__ import annotations

import gzip
import hashlib
from html import escape
from pathlib import Path
from typing import NamedTuple

STATIC = Path(__file__).with_name("static")

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_LEVEL = 9
_PAGE = "index.html"
_LATER = ("app.js", "pages/", "lib/markdown.js", "vendor/marked/")
"""What the first page does not need at once, or names itself."""


class Asset(NamedTuple):
    """One file. `etag` as HTTP writes it; `packed` is the body in gzip."""

    body: bytes
    packed: bytes
    kind: str
    etag: str


class Assets:
    """All of them. Nothing is read before something is asked for."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._made: dict[str, Asset] = {}
        self._digest = ""

    @property
    def digest(self) -> str:
        """Of all files, in 16 hexadecimal digits."""
        if not self._digest:
            self._read()
        return self._digest

    def find(self, path: str) -> Asset | None:
        """A file by its path below `static/`; None if there is none."""
        if not self._digest:
            self._read()
        if path not in self._files or path == _PAGE:
            return None
        if path not in self._made:
            self._made[path] = _asset(self._files[path], _TYPES[Path(path).suffix])
        return self._made[path]

    def page(self, root: str) -> Asset:
        """The one page that shows all others, for a server that the world knows under the prefix `root`."""
        name = f"page of {root}"
        if name not in self._made:
            base = f"{escape(root)}/console/assets/{self.digest}"
            modules = "".join(
                f'<link rel="modulepreload" href="{base}/{path}">'
                for path in sorted(self._files)
                if path.endswith((".js", ".mjs")) and ".min." not in path and not path.startswith(_LATER)
            )
            styles = "".join(
                f'<link rel="stylesheet" href="{base}/{path}">' for path in sorted(self._files) if path.endswith(".css")
            )
            text = self._files[_PAGE].decode()
            for mark, given in (("{{base}}", base), ("{{modules}}", modules), ("{{styles}}", styles)):
                text = text.replace(mark, given)
            self._made[name] = _asset(text.encode(), _TYPES[".html"])
        return self._made[name]

    def _read(self) -> None:
        every = {path.relative_to(STATIC).as_posix(): path for path in sorted(STATIC.rglob("*")) if path.is_file()}
        self._files = {name: path.read_bytes() for name, path in every.items() if path.suffix in _TYPES}
        digest = hashlib.sha256()
        for name, body in self._files.items():
            digest.update(b"%s\0%d\0%s" % (name.encode(), len(body), body))
        self._digest = digest.hexdigest()[:16]


def _asset(body: bytes, kind: str) -> Asset:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Asset(body, gzip.compress(body, _LEVEL, mtime=0), kind, etag)
