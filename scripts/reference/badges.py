"""The README's badges, from pyproject.toml: what they say is what is declared."""

from __future__ import annotations

import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

_GREY, _BLUE = "#4a5160", "#2f5fb3"
_CHARACTER, _PADDING, _HEIGHT = 6.6, 8, 20


def badges(root: Path) -> dict[str, str]:
    """The pictures by path; ``root`` is the folder of pyproject.toml."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    versions = [
        words.rpartition(" ")[2]
        for words in project["classifiers"]
        if words.startswith("Programming Language :: Python :: 3.")
    ]
    (pytest,) = [name for name in project["dependencies"] if name.startswith("pytest>")]
    assert settings["tool"]["mypy"]["strict"] is True
    assert (root / "pytest_pplguard" / "py.typed").exists()
    said = {
        "python": ("python", " | ".join(versions)),
        "pytest": ("pytest", f"≥ {pytest.partition('>=')[2]}"),
        "licence": ("licence", project["license"]),
        "typed": ("typed", "mypy --strict"),
    }
    return {
        f"docs/images/badge-{name}.svg": _badge(*words) for name, words in said.items()
    }


def _badge(left: str, right: str) -> str:
    widths = [round(len(text) * _CHARACTER + 2 * _PADDING) for text in (left, right)]
    total = sum(widths)
    texts = "".join(
        f'<text x="{x}" y="14" textLength="{width - 2 * _PADDING}">'
        f"{escape(text)}</text>"
        for text, x, width in (
            (left, _PADDING, widths[0]),
            (right, widths[0] + _PADDING, widths[1]),
        )
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{_HEIGHT}" '
        f'role="img" aria-label="{escape(f"{left}: {right}")}">'
        f"<title>{escape(f'{left}: {right}')}</title>"
        f'<rect width="{total}" height="{_HEIGHT}" rx="3" fill="{_BLUE}"/>'
        f'<path fill="{_GREY}" d="M3 0H{widths[0]}V{_HEIGHT}H3A3 3 0 0 1 0 '
        f'{_HEIGHT - 3}V3A3 3 0 0 1 3 0Z"/>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f"{texts}</g></svg>\n"
    )
