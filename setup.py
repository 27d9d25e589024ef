"""The project's page on PyPI: the README with absolute links.

PyPI shows the README alone, so that links to other files of the repository would not work there.
The rest of the project's metadata is in pyproject.toml.
"""

import re
from pathlib import Path

REPOSITORY = "https://github.com/vbfmt/vbfmt"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]*)\)")


def absolute(text: str) -> str:
    """Return Markdown text with links into the repository instead of relative ones."""

    def link(found: re.Match[str]) -> str:
        image, words, path = found.groups()
        return f"{image}[{words}]({REPOSITORY}/{'raw' if image else 'blob'}/main/{path})"

    return _LINK.sub(link, text)


if __name__ == "__main__":
    from setuptools import setup

    setup(
        long_description=absolute(Path(__file__).with_name("README.md").read_text("utf-8")),
        long_description_content_type="text/markdown",
    )
