"""The settings of a project: its film, edited cuts and references, and their file format."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from colorizer.scopes import shot_numbers

PROJECT_FORMAT = 3


@dataclass
class Reference:
    """A frame that the user colored, stored in references/."""

    file: str  # path in references/; the folder is the scope, see colorizer/scopes.py
    frame: int  # number in the film


def reference_path(scope: str, name: str) -> str:
    """Return the path in references/ of a file with a scope; the scope "" is the folder itself."""
    return f"{scope}/{name}" if scope else name


@dataclass
class ProjectSettings:
    """The contents of project.json."""

    film: str = ""  # path of the grayscale film; "" before one is chosen
    cut_at: list[int] = field(default_factory=list)  # frames that start a shot in addition to the detected ones
    join_at: list[int] = field(default_factory=list)  # detected cuts that are ignored
    references: list[Reference] = field(default_factory=list)  # oldest first

    def to_json(self) -> str:
        return json.dumps({"format": PROJECT_FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ProjectSettings":
        """Parse the result of ``to_json``.

        Raises ValueError, TypeError, KeyError, AttributeError or UserError for any other text, for example if the file
        name of a reference leads out of the folder.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("format", None) != PROJECT_FORMAT:
            raise ValueError(f"its format is not {PROJECT_FORMAT}")
        if set(content) != {f.name for f in fields(cls)}:
            raise ValueError("its entries are not those of a project")
        references = [Reference(**each) for each in content["references"]]
        frames = [*content["cut_at"], *content["join_at"], *(each.frame for each in references)]
        if not isinstance(content["film"], str) or any(type(frame) is not int or frame < 0 for frame in frames):
            raise ValueError("a value has a wrong type")
        for each in references:
            scope, _, name = each.file.rpartition("/")
            shot_numbers(scope)  # checks it
            if Path(name).name != name or name.startswith(".") or reference_path(scope, name) != each.file:
                raise ValueError("a reference is not a file name")
        return cls(**{**content, "references": references})
