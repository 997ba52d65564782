"""One file for one network: what is written is read, everything else is refused in one sentence."""

import dataclasses
import json
import os
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from frostbit_runtime import FileError, ProgramError, read, write
from mutate import join, split
from programs import Builder, binarynet, random_program, residual_net, token_net

PROGRAMS = {"binarynet": binarynet, "residual": residual_net, "tokens": token_net}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("name", [*PROGRAMS, *range(20)])
def test_written_is_read(name, path):
    program = PROGRAMS[name]() if name in PROGRAMS else random_program(random.Random(name), 8)
    write(program, path)
    back = read(path)
    assert back.inputs == program.inputs
    assert back.outputs == program.outputs
    assert json.dumps(dict(back.info)) == json.dumps(dict(program.info))
    for a, b in zip(program.ops, back.ops, strict=True):
        assert json.dumps(dataclasses.asdict(a)) == json.dumps(dataclasses.asdict(b))
    assert back.tensors.keys() == program.tensors.keys()
    for key, tensor in program.tensors.items():
        assert (back.tensors[key].encoding, back.tensors[key].shape) == (tensor.encoding, tensor.shape)
        np.testing.assert_array_equal(back.tensors[key].decode(), tensor.decode())
    header_and_payload = path.read_bytes()
    assert len(split(header_and_payload)[2]) == program.nbytes
    write(back, path)
    assert path.read_bytes() == header_and_payload  # the same program, the same bytes


def test_any_safetensors_reader_reads_it(path):
    numpy = pytest.importorskip("safetensors.numpy")
    program = binarynet()
    write(program, path)
    assert {name: array.nbytes for name, array in numpy.load_file(path).items()} == {
        name: tensor.nbytes for name, tensor in program.tensors.items()
    }


def test_failed_write_leaves_the_old_file(path):
    write(binarynet(), path)
    before = path.read_bytes()
    program = binarynet()
    for info in ({"a": {1, 2}}, {"a": float("nan")}, {1: 2}):
        with pytest.raises(ProgramError, match="info must be"):
            write(dataclasses.replace(program, info=info), path)
    clash = Builder(np.random.default_rng(0))
    x = clash.op("dense", clash.input((None, 4)), weight=clash.reals(4, 4, encoding="int8"))
    program = clash.program(clash.op("dense", x, weight=clash.reals(4, 4)))
    tensors = {"a": program.tensors["v0.weight"], "a/scale": program.tensors["v1.weight"]}
    names = [{"weight": "a"}, {"weight": "a/scale"}]
    ops = tuple(dataclasses.replace(op, tensors=roles) for op, roles in zip(program.ops, names, strict=True))
    with pytest.raises(ProgramError, match="two tensors share a name"):
        write(dataclasses.replace(program, ops=ops, tensors=tensors), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def edited(change):
    """Return a function from valid bytes to bytes whose document was changed, checksums right."""

    def edit(data):
        header, document, payload = split(data)
        return join(header, change(document) or document, payload)

    return edit


def retabled(change):
    """Return a function from valid bytes to bytes whose table of tensors was changed."""

    def edit(data):
        header, document, payload = split(data)
        change(header)
        return join(header, document, payload)

    return edit


def text(words):
    """Return a function from valid bytes to bytes whose document is any text."""

    def edit(data):
        header, _, payload = split(data)
        return join(header, None, payload, words)

    return edit


def metadata(**entries):
    def edit(data):
        header, _, payload = split(data)
        header["__metadata__"] |= entries
        header["__metadata__"] = {k: v for k, v in header["__metadata__"].items() if v is not None}
        head = json.dumps(header).encode()
        return struct.pack("<Q", len(head)) + head + payload

    return edit


def flip_payload(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def set_bits_beyond_the_end(data):
    b = Builder(np.random.default_rng(0))
    x = b.op("binary_dense", b.op("sign", b.input((None, 3))), weight=b.signs(1, 3))
    header, document, _ = split(written(b.program(x)))
    document["tensors"]["v1.weight"]["crc32"] = [f"{zlib.crc32(bytes([255])):08x}"]
    return join(header, document, bytes([255]))


def written(program):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(program, os.path.join(folder, "a"))
        with open(os.path.join(folder, "a"), "rb") as file:
            return file.read()


def header_length(count):
    return lambda data: struct.pack("<Q", count) + data[8:]


def op(index, **changes):
    return edited(lambda document: document["ops"][index].update(changes))


DEEP = 100_000
CASES = {
    "empty": (lambda data: b"", "expected at least 8 bytes, found 0"),
    "seven bytes": (lambda data: data[:7], "expected at least 8 bytes, found 7"),
    "half": (lambda data: data[: len(data) // 2], "expected a safetensors file|expected a header"),
    "one byte short": (lambda data: data[:-1], "expected a safetensors file"),
    "trailing byte": (lambda data: data + b"\0", "expected a safetensors file"),
    "text": (lambda data: b"hello world, this is not it", "truncated, or of other kind"),
    "header beyond the end": (header_length(2**40), "expected a header of 1099511627776 bytes"),
    "header of all ones": (header_length(2**64 - 1), "expected a header of"),
    "huge header": (
        lambda data: struct.pack("<Q", 2**21) + b" " * 2**21,
        "the header has 2097152 bytes, at most 1048576 are allowed",
    ),
    "empty header": (header_length(0), "expected a safetensors file"),
    "header not UTF-8": (lambda data: data[:9] + b"\xff\xfe" + data[11:], "expected a safetensors file"),
    "flipped payload": (flip_payload, "the checksum of tensor"),
    "flipped document": (metadata(frostbit="{}"), "the header's checksum is"),
    "no document": (metadata(frostbit=None), "no entry 'frostbit': not a packed network"),
    "more metadata": (metadata(more="1"), "found 3 entries"),
    "bits beyond": (set_bits_beyond_the_end, "bits set beyond its last entry"),
    "no JSON": (text("{"), "no valid JSON"),
    "deep arrays": (text("[" * DEEP + "]" * DEEP), "no valid JSON: maximum recursion"),
    "deep objects": (text('{"a":' * DEEP + "1" + "}" * DEEP), "no valid JSON: maximum recursion"),
    "NaN": (text('{"format": NaN}'), "NaN is no number"),
    "infinite": (text('{"format": 1e999}'), "1e999 is too large"),
    "long integer": (text('{"format": ' + "9" * 5000 + "}"), "no valid JSON"),
    "key twice": (text('{"format": 1, "format": 2}'), "a key appears twice"),
    "a list": (text("[]"), "must be a JSON object"),
    "other format": (edited(lambda d: d.update(format="frost")), "expected format 'frostbit', found 'frost'"),
    "newer": (edited(lambda d: {"format": "frostbit", "version": 7}), "has version 7, this runtime reads up to 1"),
    "version 0": (edited(lambda d: d.update(version=0)), "expected a version, found 0"),
    "version true": (edited(lambda d: d.update(version=True)), "expected a version, found True"),
    "more keys": (edited(lambda d: d.update(code="import os")), "unknown entries \\['code'\\]"),
    "fewer keys": (edited(lambda d: d.pop("info") and None), "lacks \\['info'\\]"),
    "ops no list": (edited(lambda d: d.update(ops={})), "ops must be a list, found {}"),
    "op no object": (edited(lambda d: d.update(ops=[1])), "an operation must be an object, found 1"),
    "op with more": (op(0, code="x"), "unknown entries \\['code'\\]"),
    "unknown op": (op(1, kind="exec"), "is of unknown kind 'exec'"),
    "kind no string": (op(1, kind=["sign"]), "an operation's kind must be a string"),
    "lone surrogate": (op(1, name="\ud800"), "printable characters"),
    "cycle": (op(0, inputs=["v3"]), "input 'v3' is not computed before it"),
    "value twice": (op(1, output="v0"), "value 'v0' is written twice"),
    "attrs no object": (op(0, attrs=[]), "attrs of .* must be an object"),
    "tensors no names": (op(0, tensors={"weight": 3}), "must be an object of strings"),
    "input null": (edited(lambda d: d["inputs"].__setitem__(0, None)), "an input must be an object, found None"),
    "shape no list": (edited(lambda d: d["inputs"][0].update(shape=5)), "an input's shape must be a list, found 5"),
    "negative size": (edited(lambda d: d["inputs"][0].update(shape=[-1, 3, 14, 14])), "integers >= 1 or null"),
    "huge input": (edited(lambda d: d["inputs"][0].update(shape=[None, 3, 2**30, 2**30])), "would hold"),
    "bomb": (
        edited(
            lambda d: d["ops"].insert(
                0,
                {"kind": "pad", "name": "bomb", "inputs": ["x0"], "output": "b", "tensors": {},
                 "attrs": {"padding": [[0, 2**31 - 1]] * 4, "value": 0}},
            )
        ),
        "operation 'bomb' \\(pad\\): the result would hold",
    ),
    "output unknown": (edited(lambda d: d.update(outputs=["y"])), "output 'y' is never computed"),
    "huge tensor": (
        edited(lambda d: d["tensors"]["v0.weight"].update(shape=[2**31 - 1] * 4)),
        "is too large|does not fit|reads",
    ),
    "tensor of other size": (
        edited(lambda d: d["tensors"]["v13.at"].update(encoding="int32")),
        "tensor 'v13.at' must be I32 \\[128\\], found I16 \\[128\\]",
    ),
    "encoding unknown": (edited(lambda d: d["tensors"]["v13.at"].update(encoding="int4")), "has encoding 'int4'"),
    "checksum no list": (edited(lambda d: d["tensors"]["v13.at"].update(crc32=5)), "must be a list of strings"),
    "checksum wrong": (edited(lambda d: d["tensors"]["v13.at"].update(crc32=["0"])), "the checksum of tensor 'v13.at'"),
    "labels": (edited(lambda d: d["info"].update(labels=3)), "labels must be a list"),
    "info a list": (edited(lambda d: d.update(info=[])), "info must be a table"),
    "tensor missing": (edited(lambda d: d["tensors"].pop("v13.at") and None), "reads tensor 'v13.at', which is not"),
    "tensor renamed": (
        retabled(lambda h: h.__setitem__("other", h.pop("v13.at"))),
        "tensor 'v13.at' is not in the file",
    ),
    "overlap": (
        retabled(lambda h: h["v13.at"].update(data_offsets=h["v13.flip"]["data_offsets"])),
        "expected a safetensors file",
    ),
    "hole": (
        lambda data: retabled(lambda h: [t.update(data_offsets=[n + 4 for n in t["data_offsets"]])
                                         for k, t in h.items() if k != "__metadata__"])(data) + b"\0" * 4,
        "expected a safetensors file",
    ),
    "negative offset": (retabled(lambda h: h["v13.at"].update(data_offsets=[-4, 4])), "expected a safetensors file"),
    "other dtype": (retabled(lambda h: h["v13.at"].update(dtype="F16")), "must be I16 \\[128\\], found F16"),
    "unknown dtype": (retabled(lambda h: h["v13.at"].update(dtype="PY")), "expected a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_refused_in_one_sentence(name, path):
    damage, words = CASES[name]
    data = damage(written(binarynet()))
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match=words) as caught:
            read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is None
    assert peak < 2 * len(data) + 2**24


def test_what_is_no_file(path):
    with pytest.raises(FileError, match="cannot be read: No such file"):
        read(path)
    with pytest.raises(FileError, match="expected a regular file"):
        read(path.parent)
    os.mkfifo(path)
    with pytest.raises(FileError, match="expected a regular file"):
        read(path)


@pytest.mark.parametrize("unit", ["[]", "{}", "[[]]", '{"a":{"b":{}}}', "[0]", "1e5"])
def test_memory_of_the_largest_header(unit, path):
    count = (2**20 - 2000) // (len(json.dumps(unit)) - 1)
    path.write_bytes(join({}, None, b"", '{"format":[' + ",".join([unit] * count) + "]}"))
    tracemalloc.start()
    with pytest.raises(FileError, match="expected format"):
        read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2**20


def test_memory_of_a_large_file_that_is_refused_at_its_end(path):
    b = Builder(np.random.default_rng(0))
    x = b.op("dense", b.input((None, 2048)), weight=b.reals(2048, 2048))
    write(b.program(x), path)
    data = flip_payload(path.read_bytes())
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(FileError, match="checksum"):
        read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * len(data)  # and as much again that the system maps
