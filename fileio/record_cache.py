"""TODO: module docstring."""

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


def record_key(*facts: object) -> bytes:
    """A key, bytes (32,), that differs for different facts (plain values)."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=_KEY // 2).hexdigest().encode()


def load_or_make_records(path: Path | None, fields: list[tuple], keys: Sequence[bytes],
           make: Callable[[Sequence[int]], Iterable[tuple | None]], budget: float) -> tuple[np.ndarray, list[int]]:
    """Records of ``fields`` (as for np.dtype), one for each of the distinct ``keys``: read from the file ``path`` if
    they are there, else made and added to it. Records of other keys are dropped from the file.

    ``make(indices)`` yields, in order, a tuple of values for each of these indices into ``keys``, or None where no
    record can be made. Returns a structured array of the records, and the list of the indices they belong to. The array
    is in memory if it takes at most ``budget`` bytes, else mapped from the file; changes to it stay in this process.
    With ``path`` None, or one that cannot be written (which is warned about), it is always in memory.
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
    """The bytes of a record of dtype ``kind``: checksum, key and ``values``."""
    record = np.zeros((), kind)
    record["key"] = key
    for name, value in zip(kind.names[2:], values, strict=True):
        record[name] = value
    record["checksum"] = zlib.crc32(record.tobytes()[_CHECKSUM:])
    return record.tobytes()


def _in_memory(kind, sealed, most):
    """(array of records, their indices) from an iterable of at most ``most`` pairs (index, bytes of a record)."""
    records, indices = np.zeros(most, kind), []
    for index, record in sealed:
        records[len(indices)] = np.frombuffer(record, kind)[0]
        indices.append(index)
    return records[:len(indices)], indices


def _open(path, kind, budget):
    """(records of a file, {key: position} of those whose checksum is right)."""
    places, count = {}, 0
    try:
        with open(path, "rb") as file:
            while len(record := file.read(kind.itemsize)) == kind.itemsize:
                if int.from_bytes(record[:_CHECKSUM], sys.byteorder) == zlib.crc32(memoryview(record)[_CHECKSUM:]):
                    places[record[_CHECKSUM:_CHECKSUM + _KEY]] = count
                count += 1
            return _load(file, kind, count, budget), places
    except OSError:  # missing or unreadable: if something is wrong, writing will report it
        return np.zeros(0, kind), {}


def _load(file, kind, count, budget):
    """The first ``count`` records of an open file: in memory up to ``budget`` bytes, else mapped."""
    file.seek(0)
    if not count or count * kind.itemsize <= budget:
        return np.fromfile(file, kind, count)
    return np.memmap(file, kind, "c", shape=(count,))

_CHECKSUM, _KEY = 4, 32  # bytes at the head of a record
