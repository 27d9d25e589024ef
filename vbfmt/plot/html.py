"""Write a self-contained page: pictures as inline SVG, values under the pointer, no network access.

Text from an adapter's file is escaped everywhere: in HTML, in SVG, and in the data of the script,
which inserts it into the page as text only.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Panel:
    """A figure of the page.

    Attributes:
        name: a name in `FIGURES`.
        title, caption: as in `Drawn`.
        svg: the picture as an SVG document.
        hovers: results of `hover.as_json`.
        wide: whether it has the whole width of the page.
    """

    name: str
    title: str
    caption: str
    svg: str
    hovers: Sequence[dict[str, Any]]
    wide: bool


def page(title: str, heading: str, panels: Sequence[Panel]) -> str:
    """Return the page as text."""
    data = {panel.name: panel.hovers for panel in panels}
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_asset("page.css")}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1><p>{html.escape(heading)}</p></header>
<main>
{"".join(_figure(panel) for panel in panels)}</main>
<footer>Point at a picture for its values. A vector is named by its index in the bank.
Drawn by vbfmt.</footer>
<div id="value" role="status" hidden></div>
<script type="application/json" id="data">{_script_safe(data)}</script>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def _figure(panel: Panel) -> str:
    label = html.escape(f"{panel.title}: {panel.caption}")
    return (
        f'<figure id="{panel.name}"{" class=wide" if panel.wide else ""}>\n'
        f'<div class="picture" role="img" aria-label="{label}">\n{_inline(panel)}</div>\n'
        "</figure>\n"
    )


def _inline(panel: Panel) -> str:
    """Return the SVG for use in a page: without prologue and size, and with unique ids."""
    svg = panel.svg[panel.svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{panel.name}-', svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{panel.name}-', svg)
    return re.sub(r"url\(#", f"url(#{panel.name}-", svg)


def _script_safe(data: object) -> str:
    """Return data as JSON that cannot end the script element around it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files("vbfmt.plot").joinpath(name).read_text("utf-8")
