"""Palette files: the named colors of characters, as INI text, GIMP palette (.gpl) or Adobe Swatch Exchange (.ase).

An INI file has a section for each character, and an entry for each color::

    [ruby]
    fur = #ee6c80                             a name; the color is not changed
    nose = #603040 locked                     pixels of this color get exactly this color
    scarf = #1040c0 replaces #a01020          pixels of the second color get exactly the first one

The other formats store no options; their colors count as locked. They store sRGB: .gpl has 8 bits, .ase floats.
"""

import configparser
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fileio.atomic import atomic_write
from utils import UserError

SERIES = "series"  # group of the colors that belong to no character
SYNTAX = "write a color such as #a01020, alone or followed by 'locked' or by 'replaces' and another color"
INI_HEADER = """\
; Colors of a series, most frequent first, in a section for each character. Rename colors and sections as you like.
;   hair = #a01020                      is a name and changes nothing
;   hair = #a01020 locked               gives pixels of this color exactly this color
;   hair = #1040c0 replaces #a01020     gives pixels of the second color exactly the first one
"""


class NamedColor(NamedTuple):
    """A color of a character. Colors are "#rrggbb" in lower case, sRGB."""

    character: str
    name: str
    color: str
    locked: bool = False  # whether pixels of this color get exactly this color
    replaces: str | None = None  # pixels of this color get ``color`` instead; such a color is locked


class _Problem(Exception):
    """States why a file cannot be read, and what to change."""


def read_palette(path: Path) -> list[NamedColor]:
    """Read a palette file, in the format given by its suffix.

    Raises UserError, naming the line or the entry, if the file cannot be read or contradicts itself.
    """
    try:
        colors = _format(path)[0](path.read_bytes())
        if not colors:
            raise _Problem("it contains no color; add one or leave --palette out")
        _refuse_contradictions(colors)
    except OSError as error:
        raise UserError(f"cannot read the palette {path}: {error.strerror}; pass an existing file") from error
    except (_Problem, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the palette {path}: {error}") from error
    return colors


def write_palette(path: Path, colors: Sequence[NamedColor]) -> None:
    """Write a palette file atomically, in the format given by its suffix. Locks are written to .ini only.

    Raises UserError for a name that the format cannot store, and for colors that contradict each other.
    """
    read, write = _format(path)
    groups = list(dict.fromkeys(color.character for color in colors))
    colors = sorted(colors, key=lambda color: groups.index(color.character))
    data = write(colors)
    try:
        _refuse_contradictions(colors)
        stored = {color[:3] for color in read(data)}
    except _Problem as error:
        raise UserError(f"cannot write {path}: {error}") from error
    for color in colors:
        if color[:3] not in stored:
            raise UserError(f"cannot write {path}: the format cannot store the name {color.name!r} of "
                            f"{color.character!r}; use letters, digits and spaces")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def check_palette_suffix(path: Path) -> None:
    """Raise UserError if no palette format has the suffix of ``path``."""
    _format(path)


def _format(path):
    """Return the functions that read and write the format of ``path``. Raises UserError for an unknown suffix."""
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path} is not a palette file; use the suffix {', '.join(_FORMATS)}")
    return _FORMATS[path.suffix.lower()]


def _refuse_contradictions(colors):
    """Raise _Problem if two colors replace the same color, or if a color is locked and replaced by another one."""
    owners: dict[str, NamedColor] = {}
    for each in (color for color in colors if color.locked):
        other = owners.setdefault(each.replaces or each.color, each)
        if other.color != each.color:
            raise _Problem(f"{other.name!r} of {other.character!r} and {each.name!r} of {each.character!r} give "
                           f"{each.replaces or each.color} two different colors; remove one of them")


# ---------------------------------------------------------------------------------------------------------------------
# INI


def _read_ini(data):
    parser = configparser.ConfigParser(delimiters="=", interpolation=None, empty_lines_in_values=False,
                                       default_section="")
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keeps the case of names
    try:
        parser.read_string(data.decode("utf-8-sig"))
    except configparser.MissingSectionHeaderError as error:
        raise _Problem(f"line {error.lineno} is not in a section; begin with the name of a character, such as "
                       "[ruby]") from error
    except configparser.ParsingError as error:
        raise _Problem(f"line {error.errors[0][0]} is not an entry; write a name, = and a color") from error
    except configparser.DuplicateSectionError as error:
        raise _Problem(f"line {error.lineno} begins [{error.section}] a second time; join the sections") from error
    except configparser.DuplicateOptionError as error:
        raise _Problem(f"line {error.lineno} is a second {error.option!r} of [{error.section}]; rename it") from error
    return [_parse_entry(character, name, value) for character in parser.sections()
            for name, value in parser.items(character)]


def _parse_entry(character, name, value):
    color = "#[0-9a-f]{6}"
    match = re.fullmatch(rf"({color})(?:[\s,]+(locked))?(?:[\s,]+replaces\s+({color}))?", value.lower())
    if not match:
        raise _Problem(f"{name!r} of [{character}] is {value!r:.60}; {SYNTAX}")
    return NamedColor(character, name, match[1], bool(match[2] or match[3]), match[3])


def _write_ini(colors):
    lines = [INI_HEADER]
    for character in dict.fromkeys(color.character for color in colors):
        lines.append(f"\n[{character}]\n")
        for each in (color for color in colors if color.character == character):
            option = f" replaces {each.replaces}" if each.replaces else " locked" if each.locked else ""
            lines.append(f"{each.name} = {each.color}{option}\n")
    return "".join(lines).encode()


# ---------------------------------------------------------------------------------------------------------------------
# GIMP palette: lines of red, green, blue and a name, here "character: name"


def _read_gpl(data):
    lines = data.decode("utf-8-sig").splitlines()
    if not lines or lines[0].strip() != "GIMP Palette":
        raise _Problem("line 1 is not 'GIMP Palette'; export the palette from GIMP again")
    colors = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip() or re.match(r"\s*#|(Name|Columns):", line):
            continue
        match = re.match(r"\s*(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})(?:\s+(.*?))?\s*$", line)
        rgb = [int(value) for value in match.groups()[:3]] if match else []
        if not match or max(rgb) > 255:
            raise _Problem(f"line {number} is {line!r:.60}; write red, green and blue from 0 to 255, then a name")
        character, colon, name = (match[4] or f"color {len(colors) + 1}").partition(": ")
        character, name = (character, name) if colon else (SERIES, character)
        colors.append(NamedColor(character, name, _hex(rgb), locked=True))
    return colors


def _write_gpl(colors):
    lines = [f"{' '.join(f'{value:3d}' for value in bytes.fromhex(each.color[1:]))}\t{each.character}: {each.name}\n"
             for each in colors]
    return "".join(["GIMP Palette\n", "Name: series\n", "#\n", *lines]).encode()


def _hex(rgb: Iterable[int]) -> str:
    return "#" + bytes(rgb).hex()


# ---------------------------------------------------------------------------------------------------------------------
# Adobe Swatch Exchange: big-endian blocks of a type and a length; groups are characters

_ASE_HEADER = struct.Struct(">4sHHI")  # signature, version 1.0, number of blocks
_ASE_BLOCK = struct.Struct(">HI")
_ASE_COLOR, _ASE_GROUP, _ASE_GROUP_END = 0x0001, 0xC001, 0xC002


def _read_ase(data):
    damaged = _Problem("it is not a complete .ase file; export it again")
    if data[:4] != b"ASEF" or len(data) < _ASE_HEADER.size:
        raise damaged
    colors, character, position = [], SERIES, _ASE_HEADER.size
    for _ in range(_ASE_HEADER.unpack_from(data)[3]):
        if position + _ASE_BLOCK.size > len(data):
            raise damaged
        kind, length = _ASE_BLOCK.unpack_from(data, position)
        position += _ASE_BLOCK.size + length
        if position > len(data):
            raise damaged
        block = data[position - length:position]
        if kind == _ASE_GROUP_END:
            character = SERIES
        elif kind in (_ASE_GROUP, _ASE_COLOR):
            if len(block) < 2 or len(block) < (end := 2 + 2 * struct.unpack_from(">H", block)[0]):
                raise damaged
            name = block[2:end].decode("utf-16-be").rstrip("\0")
            if kind == _ASE_GROUP:
                character = name
            else:
                colors.append(NamedColor(character, name, _ase_hex(name, block[end:]), locked=True))
    return colors


def _ase_hex(name, data):
    model = data[:4]
    count = {b"RGB ": 3, b"Gray": 1}.get(model)
    if count is None:
        raise _Problem(f"{name!r} has the color model {model.decode('latin-1')!r}; convert the swatches to RGB")
    if len(data) < 4 + 4 * count:
        raise _Problem(f"{name!r} is incomplete; export the swatches again")
    values = struct.unpack_from(f">{count}f", data, 4)
    if not all(0 <= value <= 1 for value in values):
        raise _Problem(f"{name!r} is {values}, outside of [0, 1]; export the swatches again")
    return _hex(round(255 * value) for value in values * (3 // count))


def _write_ase(colors):
    blocks = []
    for character in dict.fromkeys(color.character for color in colors):
        blocks.append(_ase_block(_ASE_GROUP, _ase_text(character)))
        for each in (color for color in colors if color.character == character):
            rgb = (value / 255 for value in bytes.fromhex(each.color[1:]))
            blocks.append(_ase_block(_ASE_COLOR, _ase_text(each.name) + struct.pack(">4s3fH", b"RGB ", *rgb, 2)))
        blocks.append(_ase_block(_ASE_GROUP_END, b""))
    return _ASE_HEADER.pack(b"ASEF", 1, 0, len(blocks)) + b"".join(blocks)


def _ase_block(kind, data):
    return _ASE_BLOCK.pack(kind, len(data)) + data


def _ase_text(text):
    data = f"{text}\0".encode("utf-16-be")
    return struct.pack(">H", len(data) // 2) + data


_FORMATS = {".ini": (_read_ini, _write_ini), ".gpl": (_read_gpl, _write_gpl), ".ase": (_read_ase, _write_ase)}
PALETTE_SUFFIXES = tuple(_FORMATS)
