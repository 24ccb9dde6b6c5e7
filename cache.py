"""What need not be computed twice? Records of one kind, each under a key, in a file that is reused from run to run.

A record is believed only when its key is asked for and its checksum is right, so a changed input, another version of
the program, a file cut short or a damaged one are all alike: what is missing is made again.
"""

import hashlib
import heapq
import itertools
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from uuid import uuid4

import numpy as np

from utils import warn

_CHECKSUM, _KEY = 4, 32  # bytes at the head of a record


def key_of(*facts: object) -> bytes:
    """A key, bytes (32,), that differs for different facts (plain values)."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=_KEY // 2).hexdigest().encode()


def cached(path: Path | None, fields: list[tuple], keys: Sequence[bytes],
           make: Callable[[Sequence[int]], Iterable[tuple | None]], budget: float) -> tuple[np.ndarray, list[int]]:
    """Records of ``fields`` (as for np.dtype) for the distinct ``keys``: from the file ``path`` (a Path) as far as it
    has them, else made and kept there.

    ``make(indices)`` yields, in order, a tuple of values for each of these places in ``keys``, or None where there can
    be no record. Returns a structured array of the records there are and the list of their places in ``keys``. The
    array is in memory if it takes at most ``budget`` bytes, else it is mapped from the file; changes to it stay in this
    process. With ``path`` None, or where it cannot be written, which is warned about, all is in memory.
    """
    kind = np.dtype([("checksum", "u4"), ("key", f"S{_KEY}"), *fields], align=True)

    def made(indices):
        for index, values in zip(indices, make(indices), strict=True):
            if values is not None:
                yield index, _seal(kind, keys[index], values)

    if path is None:
        return _in_memory(kind, made(range(len(keys))), len(keys))
    old, places = _open(path, kind, budget)
    there = [index for index, key in enumerate(keys) if key in places]
    missing = [index for index, key in enumerate(keys) if key not in places]
    new = made(missing)
    first = next(new, None)
    if first is None and [places[keys[index]] for index in there] == list(range(len(old))):
        return old, there

    kept = ((index, old[places[keys[index]]].tobytes()) for index in there)
    indices = []
    try:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid4().hex}")  # another run may be writing too
        with open(temporary, "w+b") as file:
            try:
                for index, record in heapq.merge(kept, itertools.chain([first] if first else [], new),
                                                 key=itemgetter(0)):
                    file.write(record)
                    indices.append(index)
                file.flush()
                temporary.replace(path)
            except BaseException:
                temporary.unlink()
                raise
            return _load(file, kind, len(indices), budget), indices
    except OSError as error:
        warn(f"cannot keep what is prepared in {path.parent} ({error.strerror or error}); it is held in memory, and "
             "prepared again in the next run")
    rest = heapq.merge(((index, old[places[keys[index]]].tobytes()) for index in there), made(missing),
                       key=itemgetter(0))
    return _in_memory(kind, rest, len(keys))


def _seal(kind, key, values):
    """The bytes of a record."""
    record = np.zeros((), kind)
    record["key"] = key
    for name, value in zip(kind.names[2:], values, strict=True):
        record[name] = value
    record["checksum"] = zlib.crc32(record.tobytes()[_CHECKSUM:])
    return record.tobytes()


def _in_memory(kind, sealed, most):
    """The array and the places of at most ``most`` pairs (place, bytes of a record)."""
    records, indices = np.zeros(most, kind), []
    for index, record in sealed:
        records[len(indices)] = np.frombuffer(record, kind)[0]
        indices.append(index)
    return records[:len(indices)], indices


def _open(path, kind, budget):
    """The records of a file, and the places of those that are whole by their keys."""
    places, count = {}, 0
    try:
        with open(path, "rb") as file:
            while len(record := file.read(kind.itemsize)) == kind.itemsize:
                if int.from_bytes(record[:_CHECKSUM], sys.byteorder) == zlib.crc32(memoryview(record)[_CHECKSUM:]):
                    places[record[_CHECKSUM:_CHECKSUM + _KEY]] = count
                count += 1
            return _load(file, kind, count, budget), places
    except OSError:  # not there, or not to be read: then writing it will tell
        return np.zeros(0, kind), {}


def _load(file, kind, count, budget):
    """The first ``count`` records of an open file."""
    file.seek(0)
    if not count or count * kind.itemsize <= budget:
        return np.fromfile(file, kind, count)
    return np.memmap(file, kind, "c", shape=(count,))
