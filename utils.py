"""What the scripts share: errors and flags, pictures, checkpoints, metrics and logs."""

import argparse
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv")
MAX_PIXELS = 200_000_000  # refuse a picture by its header before its pixels are allocated (600 MB as RGB)


# ---------------------------------------------------------------------------------------------------------------------
# Errors and flags


class UserError(Exception):
    """Something the user can mend. The message is one sentence: what is wrong and what to change."""


def run_cli(main, argv=None):
    """Run ``main(argv)`` as a script: exit code 0 done, 1 a user's error in one sentence, 130 interrupted.

    ``--debug`` anywhere on the command line shows the traceback of a user's error.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        main(argv)
    except UserError as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with our conventions: defaults shown in ``--help``, a wrong flag is a user's error (exit code 1)."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **kwargs)
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                          help="show the traceback of an error")

    def error(self, message):
        raise UserError(f"{message} (see --help)")


def boolean(text):
    """The value of a flag that takes True or False. ``type=bool`` would make every non-empty text True."""
    if text in ("True", "true"):
        return True
    if text in ("False", "false"):
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got '{text}'")


def warn(message):
    """Tell the user on stderr, in one line, about something that does not stop the work."""
    print(f"warning: {message}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Files and pictures


def natural_key(name):
    """Sort key that puts ``a_2`` before ``a_10``."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", str(name))]


def list_files(folder, suffixes):
    """Files directly in ``folder`` with one of ``suffixes`` (any case), in natural order. Hidden files are left out."""
    return sorted((path for path in Path(folder).iterdir()
                   if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(".")),
                  key=lambda path: natural_key(path.name))


@contextmanager
def replace_when_done(path):
    """Yield a temporary path beside ``path``; it takes ``path``'s name only when the block ends without an error.

    Raises UserError when the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_image(path):
    """Read PNG, JPEG, WebP or BMP as RGB uint8 of shape (H, W, 3), turned the way its EXIF tag says.

    Grey, palette and 16-bit pictures become 8-bit RGB; transparent places become white, as most viewers show them.
    Raises UserError, naming the file, for anything that cannot be read whole or is larger than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS below is our own limit
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"{path} is {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels")
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith("I"):  # 16 bits of grey; Pillow would clip them to white
                    grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                    return np.repeat(grey[:, :, None], 3, axis=2)
                if image.has_transparency_data:
                    image = image.convert("RGBA")
                    white = Image.new("RGBA", image.size, "white")
                    image = Image.alpha_composite(white, image)
                return np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read {path} as a picture: {error}") from error


def write_image(path, rgb):
    """Write RGB uint8 of shape (H, W, 3) in the format of ``path``'s suffix; it appears whole or not at all."""
    with replace_when_done(path) as temporary:
        Image.fromarray(rgb).save(temporary, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}))
