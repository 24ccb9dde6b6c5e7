"""Cache files of fixed-size records, each validated by a key and a checksum.

The key of a record is a hash of everything that its values depend on, such as the input file and the program version.
Stored records with a requested key and a correct checksum are used; all other requested records are computed.
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

_CHECKSUM, _KEY = 4, 32  # size in bytes of the checksum and of the key, which begin each record


def record_key(*values: object) -> bytes:
    """Return a hash (32 bytes) of plain values, as the key of a record that is computed from them."""
    return hashlib.blake2b(repr(values).encode(), digest_size=_KEY // 2).hexdigest().encode()


def load_or_make_records(path: Path | None, fields: list[tuple], keys: Sequence[bytes],
                         compute: Callable[[Sequence[int]], Iterable[tuple | None]],
                         budget: float) -> tuple[np.ndarray, list[int]]:
    """Load the records with the given keys from a cache file; compute missing records and add them to the file.

    Args:
        path: the cache file; records with other keys are removed from it. With None, or if the file cannot be written
            (a warning is printed), all records are held in memory.
        fields: fields of a record, as for ``np.dtype``.
        keys: distinct keys.
        compute: function of indices into ``keys`` that yields, in order, the values of each record, or None for a
            record that cannot be computed.
        budget: maximum size, in bytes, of a file that is read into memory; larger files are memory-mapped.

    Returns:
        A structured array of the records, without those that cannot be computed, and the list of their indices into
        ``keys``. Changes to the array are not written to the file.
    """
    dtype = np.dtype([("checksum", "u4"), ("key", f"S{_KEY}"), *fields], align=True)

    def computed(indices):
        for index, values in zip(indices, compute(indices), strict=True):
            if values is not None:
                yield index, _pack(dtype, keys[index], values)

    if path is None:
        return _collect(dtype, computed(range(len(keys))))
    old, positions = _open(path, dtype, budget)
    found = [index for index, key in enumerate(keys) if key in positions]
    missing = [index for index, key in enumerate(keys) if key not in positions]
    new = computed(missing)
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
        warn(f"cannot write the cache in {path.parent} ({error.strerror or error}); its content is kept in memory "
             "and computed again in the next run")
    return _collect(dtype, merged(computed(missing)))


def _pack(dtype, key, values):
    """Return the bytes of a record: checksum, key and ``values``."""
    record = np.zeros((), dtype)
    record["key"] = key
    for name, value in zip(dtype.names[2:], values, strict=True):
        record[name] = value
    record["checksum"] = zlib.crc32(record.tobytes()[_CHECKSUM:])
    return record.tobytes()


def _collect(dtype, packed):
    """Return (array of records, list of indices) of ``packed``, pairs (index, bytes of a record)."""
    records, indices = bytearray(), []
    for index, record in packed:
        records += record
        indices.append(index)
    return np.frombuffer(records, dtype), indices


def _open(path, dtype, budget):
    """Return (all records of a file, {key: position} of those with a correct checksum); both empty if unreadable."""
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
    """Return the first ``count`` records of an open file, memory-mapped if their size exceeds ``budget`` bytes."""
    file.seek(0)
    if not count or count * dtype.itemsize <= budget:
        return np.fromfile(file, dtype, count)
    return np.memmap(file, dtype, "c", shape=(count,))
