"""The heat map holds the numbers of the table, as labels and as colours."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree
from pathlib import Path

import pytest

from pytest_pplguard.checkpoints import ZeroTable
from pytest_pplguard.errors import UsageError
from pytest_pplguard.report import check_plot, write_heatmap

TABLE = ZeroTable(
    ("q_proj", "up_proj"),
    {
        "0": {"q_proj": (0, 8), "up_proj": (8, 8)},
        "1": {"q_proj": (4, 8)},
        "12": {"q_proj": (2, 8), "up_proj": (6, 8)},
    },
)
SVG = "{http://www.w3.org/2000/svg}"


def test_labels_and_numbers_of_an_svg(tmp_path: Path) -> None:
    file = check_plot(str(tmp_path / "zeros.svg"), option="--heatmap")
    write_heatmap(file, TABLE, "out/w50")
    root = xml.etree.ElementTree.parse(file).getroot()
    texts = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
    assert texts[:5] == ["q_proj", "up_proj", "0", "1", "12"]
    assert {"layer", "share of zeros", "out/w50", "0.0", "1.0"} <= set(texts)
    assert sorted(t for t in texts if t.count(".") == 1 and len(t) == 4) == [
        "0.00", "0.25", "0.50", "0.75", "1.00",
    ]  # fmt: skip
    # The ends of cividis: no zeros, and only zeros.
    drawn = file.read_text()
    assert "#00224e" in drawn
    assert "#fee838" in drawn
    write_heatmap(tmp_path / "again.svg", TABLE, "out/w50")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_png_and_pdf(tmp_path: Path) -> None:
    for suffix, magic in ((".png", b"\x89PNG\r\n"), (".pdf", b"%PDF-")):
        file = check_plot(str(tmp_path / f"zeros{suffix}"), option="--heatmap")
        write_heatmap(file, TABLE, "m")
        assert file.read_bytes().startswith(magic)


def test_each_of_80_layers_has_a_label(tmp_path: Path) -> None:
    cells = {str(layer): {"q_proj": (1, 2)} for layer in range(80)}
    write_heatmap(tmp_path / "m.svg", ZeroTable(("q_proj",), cells), "m")
    root = xml.etree.ElementTree.parse(tmp_path / "m.svg").getroot()
    texts = ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]
    assert [text for text in texts if text.isdecimal()] == list(cells)


def test_what_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError) as caught:
        check_plot("zeros.jpg", option="--heatmap")
    assert str(caught.value) == (
        "--heatmap zeros.jpg: the suffix says what to write: .png, .svg, .pdf"
    )
    with pytest.raises(UsageError, match="there is no folder"):
        check_plot(str(tmp_path / "nowhere" / "zeros.png"), option="--heatmap")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, package in (("zeros.png", "matplotlib"), ("zeros.html", "plotly")):
        with pytest.raises(UsageError) as caught:
            check_plot(name, option="--plot", or_page=True)
        assert str(caught.value) == (
            f"--plot {name} needs the package {package}: "
            "pip install 'pytest-pplguard[plots]'"
        )
