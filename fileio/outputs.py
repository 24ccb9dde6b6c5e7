"""Names of output files, and a check that prevents overwriting them by accident."""

from collections.abc import Iterable
from pathlib import Path

from utils import UserError


def accompanying_path(output: Path, name: str) -> Path:
    """Return the path of the file ``name`` that accompanies a colored film or picture: ``<output stem>_<name>``."""
    return output.with_name(f"{output.stem}_{name}")


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise UserError if one of the files exists and ``overwrite`` is False."""
    existing = next((path for path in paths if not overwrite and path.exists()), None)
    if existing is not None:
        raise UserError(f"{existing} exists already; pass --overwrite True or a different --output")
