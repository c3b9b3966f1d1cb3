"""Methods of other packages: found by entry point, imported late, refused in words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_pplguard.errors import UsageError
from pytest_pplguard.protocols import Gptq, Registry, Wanda
from pytest_pplguard.protocols.registry import GROUP, listed

GOOD = (
    "from pytest_pplguard.protocols import Cut, CutProtocol\n"
    "class Mine(CutProtocol):\n    name = 'mine'\n    cut = Cut(tail='kept')\n"
)
FEW = (
    "from pytest_pplguard.protocols import Protocol\n"
    "class Mine(Protocol):\n    name = 'mine'\n"
)


class Installed:
    """A folder of packages on ``sys.path``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, package: str, module: str, code: str, **points: str) -> None:
        (self.folder / f"{module}.py").write_text(code, encoding="utf-8")
        info = self.folder / f"{package}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n"
        )
        lines = [f"[{GROUP}]", *(f"{name} = {value}" for name, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("ppl_x_")]:
        monkeypatch.delitem(sys.modules, name)
    return Installed(tmp_path)


def registry() -> Registry:
    return Registry(Wanda(), Gptq())


def test_nothing_is_installed(installed: Installed) -> None:
    methods = registry()
    assert (list(methods), len(methods)) == (["wanda", "gptq"], 2)
    assert isinstance(methods["gptq"], Gptq)
    assert "mine" not in methods
    with pytest.raises(KeyError):
        methods["mine"]


def test_a_class_and_an_instance(installed: Installed) -> None:
    code = GOOD + "class Yours(Mine):\n    name = 'yours'\nyours = Yours()\n"
    installed.add("x", "ppl_x_a", code, yours="ppl_x_a:yours", mine="ppl_x_a:Mine")
    methods = registry()
    assert list(methods) == ["wanda", "gptq", "mine", "yours"]
    assert "yours" in methods
    assert "ppl_x_a" not in sys.modules  # names alone import nothing
    assert methods["wanda"] is methods["wanda"]
    assert "ppl_x_a" not in sys.modules
    module = sys.modules
    assert methods["yours"] is module["ppl_x_a"].yours
    assert type(methods["mine"]) is module["ppl_x_a"].Mine
    assert methods["mine"] is methods["mine"]


@pytest.mark.parametrize(
    ("code", "point", "message"),
    [
        (
            "import nowhere_at_all\n",
            "ppl_x_b:Mine",
            "the method 'mine' of x (ppl_x_b:Mine) cannot be imported: "
            "ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        (
            "",
            "ppl_x_b:Mine",
            "the method 'mine' of x (ppl_x_b:Mine) cannot be imported: "
            "AttributeError: module 'ppl_x_b' has no attribute 'Mine'",
        ),
        (
            "raise RuntimeError('first\\nsecond')\n",
            "ppl_x_b:Mine",
            "the method 'mine' of x (ppl_x_b:Mine) cannot be imported: RuntimeError: "
            "first",
        ),
        (
            "raise RuntimeError\n",
            "ppl_x_b:Mine",
            "the method 'mine' of x (ppl_x_b:Mine) cannot be imported: RuntimeError",
        ),
        (
            "Mine = 7\n",
            "ppl_x_b:Mine",
            "the method 'mine' of x (ppl_x_b:Mine) is no "
            "pytest_pplguard.protocols.Protocol, but 7",
        ),
        (
            "class Mine:\n    name = 'mine'\n",
            "ppl_x_b:Mine",
            "the method 'mine' of x (ppl_x_b:Mine) is no "
            "pytest_pplguard.protocols.Protocol, but <class 'ppl_x_b.Mine'>",
        ),
        (
            GOOD.replace("'mine'", "'other'"),
            "ppl_x_b:Mine",
            "the method 'mine' of x (ppl_x_b:Mine) calls itself 'other': its name and "
            "that of its entry point must be the same",
        ),
        (
            GOOD.replace("name = 'mine'", "pass"),
            "ppl_x_b:Mine",
            "the method 'mine' of x (ppl_x_b:Mine) calls itself None: its name and "
            "that of its entry point must be the same",
        ),
    ],
)
def test_what_cannot_be_used_is_told(
    installed: Installed, code: str, point: str, message: str
) -> None:
    installed.add("x", "ppl_x_b", code, mine=point)
    methods = registry()
    assert list(methods) == ["wanda", "gptq", "mine"]
    assert isinstance(methods["wanda"], Wanda)  # the others go on
    with pytest.raises(UsageError) as caught:
        methods["mine"]
    assert str(caught.value) == message


def test_a_method_that_leaves_questions_open(installed: Installed) -> None:
    installed.add("x", "ppl_x_c", FEW, mine="ppl_x_c:Mine")
    with pytest.raises(UsageError) as caught:
        registry()["mine"]
    said = str(caught.value)
    assert said.startswith(
        "the method 'mine' of x (ppl_x_c:Mine) cannot be made: TypeError: Can't "
        "instantiate abstract class Mine "
    )
    for question in ("check", "corpus", "key_for", "properties", "windows"):
        assert question in said


def test_a_name_of_our_own(installed: Installed) -> None:
    code = GOOD.replace("'mine'", "'gptq'")
    installed.add("x", "ppl_x_d", code, gptq="ppl_x_d:Mine")
    methods = registry()
    assert list(methods) == ["wanda", "gptq"]
    with pytest.raises(UsageError) as caught:
        methods["gptq"]
    assert str(caught.value) == (
        "x (ppl_x_d:Mine) registers the method 'gptq', which is a name of "
        "pytest-pplguard's own: rename its entry point in pytest_pplguard.protocols, "
        "or uninstall the package"
    )
    assert "ppl_x_d" not in sys.modules


def test_two_packages_with_one_method(installed: Installed) -> None:
    installed.add("x", "ppl_x_e", GOOD, mine="ppl_x_e:Mine")
    installed.add("y", "ppl_x_f", GOOD, mine="ppl_x_f:Mine")
    methods = registry()
    assert list(methods) == ["wanda", "gptq", "mine"]
    with pytest.raises(UsageError) as caught:
        methods["mine"]
    said = (
        str(caught.value)
        .replace("y (ppl_x_f:Mine)", "_")
        .replace("x (ppl_x_e:Mine)", "_")
    )
    assert said == (
        "the method 'mine' is registered by _ and by _: uninstall one of them"
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_names_for_people(names: list[str], said: str) -> None:
    assert listed(names) == said
