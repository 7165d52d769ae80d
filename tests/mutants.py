"""Bytes spoilt on purpose: what broken disks, torn downloads and attackers make of a file."""

import contextlib
import io
import re
import struct
import zipfile

import numpy as np

ODD = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x100000000, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
WORDS = ("0", "-1", "1e999", "NaN", "null", "99999999999999999999", "", "\x00", '"', "../../../../etc/hostname", "/vsicurl/http://127.0.0.1:9/x", "1" * 5000, "[" * 2000, "é", "true", "{}")


def spoilt(content, others, rng, most=3):
    """A mutant of a file's bytes, and a line on what was done to them.

    Args:
        others: files of the same kind, of which a part may be put in. rng: numpy's Generator; the same one makes the same mutant.
    """
    plain, found, done = is_text(content), bytearray(content), []
    for _ in range(1 + int(rng.integers(most))):
        ways = [*WAYS, *[words] * 6 * plain]
        way = ways[rng.integers(len(ways))]
        done.append(f"{way.__name__} {way(found, others, rng)}")
    return bytes(found), "; ".join(done)


def is_text(content):
    return b"\0" not in content and content[:1].isascii()


def hot(content):
    """Places that decide how a file is read, (N,) int: the tags of a TIFF, the directories of a zip, else whatever is not 0."""
    found = np.frombuffer(bytes(content), np.uint8).nonzero()[0]
    if content[:2] in (b"II", b"MM"):
        found = tag_places(bytes(content))
    elif content[:2] == b"PK":
        found = np.array([place + i for match in re.finditer(rb"PK[\1-\7][\1-\10]", bytes(content)) for place in [match.start()] for i in range(50)])
    found = found[found < len(content)]
    return found if len(found) else np.arange(len(content))


def tag_places(content):
    """The header of a TIFF, its directories, and what their tags point to but for pixels."""
    spans, order, big = [(0, 16)], "<" if content[:1] == b"I" else ">", content[2:4] in (b"+\0", b"\0+")
    head, entry, offset = ("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")
    size, at = struct.calcsize(order + entry), 8 if big else 4
    with contextlib.suppress(struct.error, OverflowError):  # an earlier change has spoilt the rest
        for _ in range(9):
            (first,) = struct.unpack_from(order + offset, content, at)
            (count,) = struct.unpack_from(order + head, content, first)
            begin = first + struct.calcsize(head)
            at = begin + min(count, 99) * size
            spans.append((first, at + 8))
            spans += [(value, value + 64) for _, _, _, value in struct.iter_unpack(order + entry, content[begin:at]) if value < len(content)]
    return np.unique(np.concatenate([np.arange(*span) for span in spans]))


def place(content, rng):
    """Anywhere, or, as often, where it tells most."""
    if not content:
        content.append(0)
    if rng.integers(2):
        return int(rng.integers(len(content)))
    return int(rng.choice(hot(content)))


def span(content, rng, longest=400):
    first = place(content, rng)
    return slice(first, first + 1 + int(rng.integers(longest)))


# ---------------------------------------------------------------- ways to spoil; each changes a bytearray in place


def bits(content, others, rng):
    places = [(place(content, rng), int(rng.integers(8))) for _ in range(1 + int(rng.integers(4)))]
    for at, bit in places:
        content[at] ^= 1 << bit
    return places


def over(content, others, rng):
    """Overwrite a few bytes by 0, 255, or anything."""
    part = span(content, rng, 16)
    length = len(content[part])
    content[part] = [bytes(length), b"\xff" * length, rng.bytes(length)][rng.integers(3)]
    return part


def cut(content, others, rng):
    at = place(content, rng)
    del content[at:]
    return at


def drop(content, others, rng):
    part = span(content, rng)
    del content[part]
    return part


def double(content, others, rng):
    part, at = span(content, rng), place(content, rng)
    content[at:at] = content[part]
    return part, at


def swap(content, others, rng):
    length = 1 + int(rng.integers(200))
    one, other = (slice(at, at + length) for at in (place(content, rng), place(content, rng)))
    content[one], content[other] = content[other], content[one]
    return one, other


def splice(content, others, rng):
    """Go on with the rest of another file, or put a part of one in."""
    other = others[rng.integers(len(others))]
    at = place(content, rng)
    if rng.integers(2):
        content[at:] = other[at:]
    else:
        part = span(bytearray(other), rng)
        content[at : at + len(other[part])] = other[part]
    return at


def count(content, others, rng):
    """Arithmetic on a whole number of 2, 4 or 8 bytes."""
    size, order = int(rng.choice([2, 4, 8])), "big" if content[:2] == b"MM" else "little"
    at = place(content, rng) // 2 * 2
    value = int.from_bytes(content[at : at + size], order)
    value = ODD[rng.integers(len(ODD))] if rng.integers(2) else value + int(rng.integers(-35, 36))
    content[at : at + size] = (value % 256**size).to_bytes(size, order)
    return at, value


WAYS = [bits, bits, over, cut, drop, double, swap, splice, count, count, count]


def words(content, others, rng):
    """Another number or word in a text."""
    found = [match.span() for match in re.finditer(rb'-?\d+(?:\.\d+)?|"[^"\n]*"|\w+', bytes(content))]
    if not found:
        return ""
    first, after = found[rng.integers(len(found))]
    word = WORDS[rng.integers(len(WORDS))]
    kept = content[first : first + 1] == b'"' and rng.integers(2)
    content[first:after] = f'"{word}"'.encode() if kept else word.encode()
    return first, word[:30]


def inside(content, others, rng):
    """A checkpoint whose pickle is spoilt, while its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    records[name], done = spoilt(records[name], [records[name]], rng, 2)
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return found.getvalue(), done
