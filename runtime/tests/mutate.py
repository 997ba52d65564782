"""Damaged and hostile files: a valid file's bytes, changed blindly or with its structure in mind."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib

ODD_VALUES = [
    *[None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, -(2**31), 2**63, 10**30, 0.5, -0.0, 1e308],
    *["", "x", "x0", "v0", "bits", "float32", "int8", "sign", "\n", "\ud800", "a" * 600, [], [[]], {}, [0], [1, 1]],
    *[[[0, 0], [0, 0]], [[1, 2**31 - 1]] * 2, [2**31 - 1] * 4, [None], [None, None, None, None], {"a": 1}],
]


def split(data: bytes) -> tuple[dict, dict, bytes]:
    """Return the safetensors header, the document in it, and the payload."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["frostbit"]), data[8 + size :]


def join(header: dict, document: object, payload: bytes, text: str | None = None) -> bytes:
    """Put a file together again, the document's checksum made right."""
    text = json.dumps(document) if text is None else text
    crc = f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
    header = {**header, "__metadata__": {"frostbit": text, "crc32": crc}}
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + payload


def blind(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flip bits, cut, splice, repeat, overwrite."""
    kind, changed = rng.randrange(7), bytearray(data)
    if kind <= 1:
        for _ in range(rng.randint(1, 8)):
            # half of the flips go to the header, where the structure is
            at = rng.randrange(min(len(data), 400) if rng.random() < 0.5 else len(data))
            changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed)
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    if kind == 2:
        return data[:begin]
    if kind == 3:
        return data + bytes(rng.randrange(256) for _ in range(rng.randint(1, 40)))
    if kind == 4:
        return data[:begin] + other[rng.randrange(len(other)) :]
    if kind == 5:
        return data[:begin] + data[begin:end] * 2 + data[end:]
    end = min(end, begin + 64)
    changed[begin:end] = bytes(rng.choice([0, 255]) for _ in range(end - begin))
    return bytes(changed)


def _places(node: object) -> list[tuple[object, object]]:
    """Return every (container, key) of a JSON tree."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    return [(node, key) for key, _ in items] + [place for _, child in items for place in _places(child)]


def _change(rng: random.Random, tree: dict, depth: int = 1) -> None:
    for _ in range(depth):
        places = _places(tree)
        if not places:
            return
        node, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1:
            node[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif kind == 2:  # a value from somewhere else in the tree
            other, at = rng.choice(places)
            node[key] = copy.deepcopy(other[at])
        elif kind == 3 and isinstance(node, list):
            node.insert(key, copy.deepcopy(rng.choice([node[key], *ODD_VALUES])))
        elif kind == 4 and isinstance(node, dict):
            node[str(rng.choice(["x", "stride", "axis", "scale", key]))] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif type(node[key]) is int:
            node[key] += rng.choice([-1, 1, 1, 2, 100])


def structured(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change the document, the tensor table, or tensor bytes, with every checksum made right again."""
    header, document, payload = split(data)
    kind = rng.randrange(10)
    if kind <= 5:
        _change(rng, document, rng.choice([1, 1, 2, 3]))
    elif kind == 6:
        header = {name: row for name, row in header.items() if name != "__metadata__"}
        _change(rng, header)
    elif kind == 7:  # the graph of one file with the tensors of another
        document = {**document, rng.choice(["ops", "tensors", "inputs"]): split(other)[1]["ops"]}
    elif kind == 8:
        text = json.dumps(document)
        at = rng.randrange(len(text))
        junk = rng.choice(["NaN", "Infinity", "1e999", "[" * 100_000, '{"a":' * 50_000, "9" * 5000, "\x00", '"', "-"])
        return join(header, document, payload, text[:at] + junk + text[at + rng.randint(0, 3) :])
    else:
        payload = _new_payload(rng, header, document, payload)
    try:
        return join(header, document, payload)
    except (ValueError, UnicodeError):  # not even JSON: leave the document as bytes cannot say it
        return data[:-1]


def _new_payload(rng: random.Random, header: dict, document: dict, payload: bytes) -> bytes:
    changed = bytearray(payload)
    for _ in range(rng.randint(1, 16)):
        changed[rng.randrange(len(changed))] = rng.choice([0, 127, 128, 255, rng.randrange(256)])
    for name, row in document["tensors"].items():
        names = [name, f"{name}/scale"] if row["encoding"] == "int8" else [name]
        spans = [header[part]["data_offsets"] for part in names]
        row["crc32"] = [f"{zlib.crc32(changed[begin:end]):08x}" for begin, end in spans]
    return bytes(changed)


def mutate(rng: random.Random, files: list[bytes]) -> bytes:
    """Return one damaged file."""
    data, other = rng.choice(files), rng.choice(files)
    for _ in range(rng.choice([1, 1, 1, 2])):
        try:
            data = rng.choice([blind, structured, structured])(rng, data, other)
        except Exception:  # the first round left nothing that has structure
            data = blind(rng, data or other, other)
    return data
