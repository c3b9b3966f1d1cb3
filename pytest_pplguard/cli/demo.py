"""``pplguard demo``: the demo's baselines for people without a checkout."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from ..errors import UsageError
from .output import show

_PACKAGE = Path(__file__).parents[1]


def demo_baselines() -> Path:
    """The folder that holds ``demo.yaml`` and its evidence.

    The wheel carries it inside the package; a checkout has it with all other baselines.
    """
    inside = _PACKAGE / "demo" / "baselines"
    return inside if inside.is_dir() else _PACKAGE.parent / "baselines"


def copy_demo(folder: Path) -> None:
    """Copy the demo's baseline file into ``folder/baselines`` and say what to type.

    Raises:
        UsageError: another ``demo.yaml`` is there already, or nothing can be written.
    """
    source = demo_baselines()
    target = folder / "baselines"
    ours = (source / "demo.yaml").read_bytes()
    file = target / "demo.yaml"
    if file.exists() and file.read_bytes() != ours:
        raise UsageError(
            f"{file} is already there and differs from the demo's; "
            "give another folder, or remove it"
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source / "demo", target / "demo", dirs_exist_ok=True)
        file.write_bytes(ours)
    except OSError as error:
        raise UsageError(f"the demo cannot be written to {target}: {error}") from error
    show(f"wrote {file}; now run:")
    where = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    show(f"  {where}pytest baselines/demo.yaml --ppl-model demo")
