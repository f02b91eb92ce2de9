"""Figures and their data lie beside the pages as files: pages that carry them in themselves are slow on a phone.

The notebooks carry them, so that each is complete; here they are written out of the built pages. The browser then
fetches the figures of one theme alone, and each when it comes near.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

FIGURE = re.compile(r'(<img class="hd-figure [^>]*?)src="data:image/svg\+xml;base64,([^"]+)"')
DATA = re.compile(r'<a download="([^"]+)" href="data:text/csv;base64,([^"]+)"')
SIZE = re.compile(rb'<svg[^>]*? width="([\d.]+)pt" height="([\d.]+)pt"')


def write_files(app, pagename, templatename, context, doctree) -> None:
    """Write what a page embeds into files, and let the page name them."""

    def beside(folder: str, name: str, content: bytes) -> str:
        path = Path(app.outdir, folder, hashlib.sha256(content).hexdigest()[:16], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return context["pathto"](path.relative_to(app.outdir).as_posix(), 1)

    def figure(found: re.Match) -> str:
        content = base64.b64decode(found[2])
        width, height = (round(float(points)) for points in SIZE.search(content).groups())  # the page does not jump
        address = beside("_images", "figure.svg", content)
        return f'{found[1]}src="{address}" width="{width}" height="{height}" loading="lazy"'

    def data(found: re.Match) -> str:
        return f'<a download="{found[1]}" href="{beside("_downloads", found[1], base64.b64decode(found[2]))}"'

    if "body" in context:
        context["body"] = DATA.sub(data, FIGURE.sub(figure, context["body"]))


def setup(app):
    app.connect("html-page-context", write_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
