"""A cache file of fixed-size records, each validated by its key and checksum.

Records of changed inputs, of other program versions and of damaged or truncated files are all treated alike: a record
whose key is not requested or whose checksum is wrong is not used, and missing records are made again.
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

_CHECKSUM, _KEY = 4, 32  # bytes of the checksum and of the key at the start of a record


def record_key(*facts: object) -> bytes:
    """Return a key (32 bytes) that differs for different facts (plain values)."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=_KEY // 2).hexdigest().encode()


def load_or_make_records(path: Path | None, fields: list[tuple], keys: Sequence[bytes],
                         make: Callable[[Sequence[int]], Iterable[tuple | None]],
                         budget: float) -> tuple[np.ndarray, list[int]]:
    """Return one record per key, read from the cache file ``path`` if it is there, else made and added to the file.

    Args:
        path: the cache file; records of other keys are dropped from it. With None, or if the file cannot be written
            (which prints a warning), all records are made and held in memory.
        fields: fields of a record, as for ``np.dtype``.
        keys: distinct keys.
        make: called with indices into ``keys``; yields, in order, the values of each record, or None if it cannot be
            made.
        budget: maximum size, in bytes, of the records to hold in memory; larger files are memory-mapped. Changes of the
            array are not written to the file.

    Returns:
        A structured array of the records and the list of their indices into ``keys``.
    """
    dtype = np.dtype([("checksum", "u4"), ("key", f"S{_KEY}"), *fields], align=True)

    def made(indices):
        for index, values in zip(indices, make(indices), strict=True):
            if values is not None:
                yield index, _pack(dtype, keys[index], values)

    if path is None:
        return _collect(dtype, made(range(len(keys))))
    old, positions = _open(path, dtype, budget)
    found = [index for index, key in enumerate(keys) if key in positions]
    missing = [index for index, key in enumerate(keys) if key not in positions]
    new = made(missing)
    first = next(new, None)
    if first is None and [positions[keys[index]] for index in found] == list(range(len(old))):
        return old, found

    def merged(new):
        kept = ((index, old[positions[keys[index]]].tobytes()) for index in found)
        return heapq.merge(kept, new, key=itemgetter(0))

    indices = []
    try:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid4().hex}")  # another run may write the same file
        with open(temporary, "w+b") as file:
            try:
                for index, record in merged(itertools.chain([first] if first else [], new)):
                    file.write(record)
                    indices.append(index)
                file.flush()
                temporary.replace(path)
            except BaseException:
                temporary.unlink()
                raise
            return _load(file, dtype, len(indices), budget), indices
    except OSError as error:
        warn(f"cannot write the cache in {path.parent} ({error.strerror or error}); it is kept in memory and made "
             "again in the next run")
    return _collect(dtype, merged(made(missing)))


def _pack(dtype, key, values):
    """Return the bytes of a record: checksum, key and ``values``."""
    record = np.zeros((), dtype)
    record["key"] = key
    for name, value in zip(dtype.names[2:], values, strict=True):
        record[name] = value
    record["checksum"] = zlib.crc32(record.tobytes()[_CHECKSUM:])
    return record.tobytes()


def _collect(dtype, packed):
    """Return (array of records, their indices) from pairs (index, bytes of a record)."""
    records, indices = bytearray(), []
    for index, record in packed:
        records += record
        indices.append(index)
    return np.frombuffer(records, dtype), indices


def _open(path, dtype, budget):
    """Return (records of a file, {key: position} of those with a correct checksum)."""
    positions, count = {}, 0
    try:
        with open(path, "rb") as file:
            while len(record := file.read(dtype.itemsize)) == dtype.itemsize:
                if int.from_bytes(record[:_CHECKSUM], sys.byteorder) == zlib.crc32(memoryview(record)[_CHECKSUM:]):
                    positions[record[_CHECKSUM:_CHECKSUM + _KEY]] = count
                count += 1
            return _load(file, dtype, count, budget), positions
    except OSError:  # missing or unreadable; writing the file reports real problems
        return np.zeros(0, dtype), {}


def _load(file, dtype, count, budget):
    """Return the first ``count`` records of an open file, memory-mapped if they take more than ``budget`` bytes."""
    file.seek(0)
    if not count or count * dtype.itemsize <= budget:
        return np.fromfile(file, dtype, count)
    return np.memmap(file, dtype, "c", shape=(count,))
