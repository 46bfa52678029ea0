"""What a client gets for hostile input, as a Markdown table: each row is sent to a daemon made for it, and says what came
back and whether the daemon still served afterwards. Not a test: those are test_hostile.py and tests/fuzz.

    SAMKV_BIN=build/release/bin python3 tests/integration/hostile_table.py
"""
import json
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile

import cases
import models
import wire
from harness import BIN, Daemon, documents_jsonl

STATUS = dict(enumerate("OK NOT_FOUND INVALID NO_MEMORY CORRUPT IO FULL BUSY CANCELLED UNSUPPORTED MISMATCH TOO_LARGE "
                        "PROTOCOL CLOSED NO_DAEMON TIMEOUT DEVICE INTERNAL DENIED".split()))


def fetch(**more):
    said = {"f2": ["d0", "d1"], "f4": wire.tokens([7, 8, 9]), "f5": 0.5}
    said.update(more)
    return wire.message(**said)


def request(kind, payload):
    return lambda c: c.send(kind, payload)


def raw(data, end=True):
    def say(c):
        c.raw(data)
        if end:
            c.socket.shutdown(socket.SHUT_WR)
    return say


def claimed(kind, size, sent=b""):
    return lambda c: c.send(kind, sent, claimed=size)


def much(kind, size):
    def say(c):
        c.send(kind, b"x" * (1 << 20), claimed=size)
        for _ in range(size // (1 << 20) - 1):
            c.raw(b"x" * (1 << 20))
    return say


NAN, FETCH, INGEST = float("nan"), wire.FETCH, wire.INGEST
# What is sent, whether after a HELLO, how.
ROWS = [
    ("100 KB of noise instead of a HELLO", False, raw(b"\xff" + bytes(range(256)) * 400)),
    ("an HTTP request", False, raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
    ("a HELLO of another protocol", False, request(wire.HELLO, wire.message(f1=b"http!", f2=1, f3=1))),
    ("a HELLO of versions 7 to 9", False, request(wire.HELLO, wire.message(f1=b"samkv", f2=7, f3=9))),
    ("a HELLO of 5,000 bytes", False, request(wire.HELLO, b"x" * 5000)),
    ("a request before the HELLO", False, request(FETCH, fetch())),
    ("a second HELLO", True, request(wire.HELLO, wire.message(f1=b"samkv", f2=1, f3=1))),
    ("noise after the HELLO", True, raw(b"\xff" * 5000)),
    ("a frame with the daemon's flags", True, lambda c: c.send(FETCH, fetch(), flags=wire.REPLY)),
    ("a request of type 999", True, request(999, b"")),
    ("a payload that is no message", True, request(FETCH, b"\x0a\xff\xff\xff\xff\x7f")),
    ("a frame that claims 4 GB", True, claimed(FETCH, 0xFFFFFFFF)),
    ("a query of 100 MB", True, much(FETCH, 100 << 20)),
    ("a query of 40 MB", True, request(FETCH, fetch(f4=wire.field(1, b"\x07" * (40 << 20))))),
    ("1,000,000 empty parts in a message", True, request(wire.REMOVE, b"\x12\x00" * 1000000)),
    ("10,000 documents in a fetch", True, request(FETCH, fetch(f2=["d%d" % (i % 4) for i in range(10000)]))),
    ("a document that is not there", True, request(FETCH, fetch(f2=["nobody"]))),
    ("no document", True, request(FETCH, fetch(f2=[]))),
    ("an id that is no UTF-8", True, request(FETCH, fetch(f2=[b"\xff\xfe"]))),
    ("an id with a NUL in it", True, request(FETCH, fetch(f2=[b"d0\0x"]))),
    ("an id with a line's end in it", True, request(INGEST, wire.message(f2="a\nb", f5=wire.tokens([5])))),
    ("an id of 256 bytes", True, request(FETCH, fetch(f2=["x" * 256]))),
    ("text and tokens at once", True, request(FETCH, fetch(f3="text too"))),
    ("a token beyond the vocabulary", True, request(FETCH, fetch(f4=wire.tokens([models.VOCABULARY])))),
    ("a negative token", True, request(FETCH, fetch(f4=wire.tokens([-1])))),
    ("no query token", True, request(FETCH, fetch(f4=wire.tokens([])))),
    ("ratio NaN", True, request(FETCH, fetch(f5=NAN))),
    ("ratio 2", True, request(FETCH, fetch(f5=2.0))),
    ("layer 4,294,967,295", True, request(FETCH, fetch(f7=[0xFFFFFFFF]))),
    ("700 layers", True, request(FETCH, fetch(f7=list(range(700))))),
    ("anchors of 4,294,967,295 tokens", True, request(FETCH, fetch(f8=0xFFFFFFFF))),
    ("theta NaN", True, request(FETCH, fetch(f10=2, f11=NAN))),
    ("an update that does not exist", True, request(FETCH, fetch(f10=7))),
    ("a document without content", True, request(INGEST, wire.message(f2="x"))),
    ("a document longer than the context", True, request(INGEST, wire.message(f2="x", f5=wire.tokens([5] * 5000)))),
    ("text for a model without tokenizer", True, request(INGEST, wire.message(f2="x", f4=b"text"))),
    ("blocks of 4,294,967,295 tokens", True,
     request(INGEST, wire.message(f1="n", f2="x", f5=wire.tokens([5]), f6=wire.message(f5=0xFFFFFFFF)))),
    ("another block size than the collection's", True,
     request(INGEST, wire.message(f2="x", f5=wire.tokens([5]), f6=wire.message(f5=4)))),
    ("a collection that is not there", True, request(FETCH, fetch(f1="no-such-collection"))),
    ("5,000 ids to pin", True, request(wire.PIN, wire.message(f2=["a"] * 5000))),
    ("an export without a descriptor", True, request(wire.EXPORT, wire.message(f1="default"))),
    ("an import of 4 KB of noise", True, None),
]


def answer_of(connection):
    """What the daemon says, in words."""
    try:
        _, flags, reply = connection.receive()
    except wire.Closed:
        return "the connection ends"
    except TimeoutError:
        return "nothing"
    if not flags & wire.ERROR:
        return "a reply"
    said = wire.fields(reply)
    text = "%s: %s" % (STATUS.get(said[1][0], said[1][0]), said[2][0].decode())
    try:
        connection.socket.settimeout(0.3)
        connection.receive()
    except wire.Closed:
        return text + "; the connection ends"
    except TimeoutError:
        pass
    return text


def ask(daemon, after_hello, say):
    with wire.Connection(daemon.socket, hello=after_hello, timeout=20) as c:
        try:
            if say is None:
                noise = tempfile.TemporaryFile()
                noise.write(bytes(range(256)) * 16)
                noise.seek(0)
                c.send_with(wire.IMPORT, b"", [noise.fileno()])
            else:
                say(c)
        except (wire.Closed, OSError):
            pass    # it need not read what it will not use
        said = answer_of(c)
    with wire.Connection(daemon.socket) as other:    # and the next client is served
        flags, _ = other.ask(FETCH, fetch())
        assert not flags & wire.ERROR and daemon.process.poll() is None, said
    return said


def file_rows(folder, model):
    """A model's file that is changed, and the line that samkvd says when it is started with it."""
    weights, config = (model / "model.safetensors").read_bytes(), (model / "config.json").read_bytes()
    count = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8:8 + count])
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[second]["data_offsets"] = [offset - 4 for offset in header[second]["data_offsets"]]
    overlapping = json.dumps(header).encode().ljust(count)
    changes = [
        ("model.safetensors that claims a header of 2^63 bytes", "model.safetensors", struct.pack("<Q", 1 << 63) + weights[8:]),
        ("model.safetensors cut in half", "model.safetensors", weights[:len(weights) // 2]),
        ("model.safetensors of which %s and %s overlap" % (first, second), "model.safetensors",
         struct.pack("<Q", len(overlapping)) + overlapping + weights[8 + count:]),
        ("an empty model.safetensors", "model.safetensors", b""),
        ("config.json with 4,294,967,297 layers", "config.json",
         config.replace(b'"num_hidden_layers": 4', b'"num_hidden_layers": 4294967297')),
        ("config.json of 100,000 opening brackets", "config.json", b"[" * 100000),
        ("config.json whose architecture has a line's end in its name", "config.json",
         config.replace(b"LlamaForCausalLM", b"Llama\\nFor")),
        ("tokenizer.json that is a list", "tokenizer.json", b"[]"),
        ("a GGUF file of 2^62 tensors", "m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0)),
        ("a GGUF file of 10 bytes", "m.gguf", b"GGUF\3\0\0\0\0\0"),
    ]
    for number, (what, name, content) in enumerate(changes):
        target = pathlib.Path(folder, "hostile%d" % number)
        target.mkdir()
        if name != "m.gguf":
            (target / "model.safetensors").write_bytes(weights)
            (target / "config.json").write_bytes(config)
        (target / name).write_bytes(content)
        path = target / name if name == "m.gguf" else target
        done = subprocess.run([BIN / "samkvd", "--store", target / "store", "--socket", target / "s", "--model", "m=%s" % path],
                              capture_output=True, text=True, timeout=60, check=False)
        line = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        yield what, "exit status %d: %s" % (done.returncode, line.replace(str(target), "…"))


def main():
    print("| input | what comes back |\n|---|---|")
    with tempfile.TemporaryDirectory(prefix="samkv-models-") as folder:
        model = pathlib.Path(models.make_model(folder + "/llama", "llama"))
        with Daemon({"llama": model}) as daemon:
            rng = cases.seeded(5)
            daemon.json("ingest", "-", "--block-size", 8, "--init-tokens", 8, "--local-tokens", 8, "--preamble-tokens",
                        "1,5,9", text=documents_jsonl({"d%d" % i: cases.tokens(rng, 120) for i in range(4)}))
            for what, after_hello, say in ROWS:
                print("| %s | %s |" % (what, ask(daemon, after_hello, say).replace("|", "\\|")))
                sys.stdout.flush()
        for what, said in file_rows(folder, model):
            print("| %s | %s |" % (what, said.replace("|", "\\|")))


if __name__ == "__main__":
    main()
