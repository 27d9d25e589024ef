"""Write a self-contained page: pictures as inline SVG, values under the pointer, no network access.

Text from an adapter's file is escaped everywhere: in HTML, in SVG, and in the data of the script,
which inserts it into the page as text only.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(
    title: str, heading: str, figures: Sequence[str], hovers: Mapping[str, Sequence[object]]
) -> str:
    """Return the page as text.

    Args:
        figures: results of `figure`.
        hovers: name of a figure → results of `as_json`.
    """
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
{"".join(figures)}</main>
<footer>Point at a picture for its values. A vector is named by its index in the bank.
Drawn by vbfmt.</footer>
<div id="value" role="status" hidden></div>
<script type="application/json" id="data">{_script_safe(hovers)}</script>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def figure(name: str, label: str, svg: str, *, wide: bool) -> str:
    """Return a figure of a page as HTML.

    Args:
        name: a name in `FIGURES`.
        label: the figure in words, for readers who cannot see it.
        svg: the picture as an SVG document.
        wide: whether it has the whole width of the page.
    """
    return (
        f'<figure id="{name}"{" class=wide" if wide else ""}>\n'
        f'<div class="picture" role="img" aria-label="{html.escape(label)}">\n'
        f"{_inline(svg, name)}</div>\n"
        "</figure>\n"
    )


def _inline(svg: str, name: str) -> str:
    """Return an SVG for use in a page: without prologue and size, and with unique ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{name}-', svg)
    return re.sub(r"url\(#", f"url(#{name}-", svg)


def _script_safe(data: object) -> str:
    """Return data as JSON that cannot end the script element around it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files("vbfmt.plot").joinpath(name).read_text("utf-8")
