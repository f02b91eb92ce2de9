"""Mend what this set of theme versions gets wrong: scripts that are included twice, and links that lead nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path


def drop_duplicate_scripts(app, pagename, templatename, context, doctree) -> None:
    """sphinx-thebe registers its script twice; the second inclusion is an error in the browser."""
    seen = set()
    kept = []
    for script in context.get("script_files", []):
        key = (getattr(script, "filename", None) or "", getattr(script, "attributes", {}).get("body", ""))
        if key not in seen:
            seen.add(key)
            kept.append(script)
    context["script_files"] = kept


def slim_mathjax(app, error) -> None:
    """MathJax's speech rules are 20 MB that no page loads."""
    if error is None and app.builder.format == "html":
        for folder in Path(app.outdir, "_static").rglob("sre"):
            shutil.rmtree(folder, ignore_errors=True)


def setup(app):
    app.connect("html-page-context", drop_duplicate_scripts, priority=900)
    app.connect("build-finished", slim_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
