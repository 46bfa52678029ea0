"""usage: check_includes.py ROOT. Enforces which room may include which, line by line.

Own headers are included by their path from the root, so an include names the room it comes from. System libraries
have a home too: only the store sees LMDB, only the net room and main.c see libuv, and so on.
"""
import pathlib
import re
import sys

# Room → rooms it may include (itself always). A room is the longest of these folders that a path begins with.
ALLOWED = {
    "proto": [],
    "client": ["proto"],
    "client/ctl": ["client", "proto", "daemon/store/bundle.h"],
    "kernels": ["proto/status.h", "proto/tensor.h"],
    "daemon/base": ["proto"],
    "daemon/model": ["kernels", "daemon/base", "proto"],
    "daemon/store": ["daemon/base", "proto"],
    "daemon/samkv": ["daemon/model", "kernels", "daemon/base", "proto"],
    "daemon/ingest": ["daemon/store", "daemon/samkv", "daemon/model", "kernels", "daemon/base", "proto"],
    "daemon/fetch": ["daemon/ingest", "daemon/store", "daemon/samkv", "daemon/model", "kernels", "daemon/base", "proto"],
    "daemon/net": ["daemon/ingest", "daemon/fetch", "daemon/store", "daemon/samkv", "daemon/model", "kernels",
                   "daemon/base", "proto"],
    "daemon": ["daemon/net", "daemon/ingest", "daemon/fetch", "daemon/store", "daemon/samkv", "daemon/model",
               "kernels", "daemon/base", "proto"],
    "tests": ["client", "client/ctl/ctl_source.h", "daemon/net", "daemon/ingest", "daemon/fetch", "daemon/store", "daemon/samkv", "daemon/model",
              "kernels", "daemon/base", "proto"],
}

# Library header (regular expression) → the only rooms that may see it. Tests may see everything.
LIBRARIES = {
    r"lmdb\.h": ["daemon/store"],
    r"z(std|dict)(_errors)?\.h": ["daemon/store"],
    r"uv\.h": ["daemon/net", "daemon"],
    r"xxhash\.h": ["daemon/store", "daemon/model"],
    r"pcre2.*\.h": ["daemon/model"],
    r"utf8proc\.h": ["daemon/model", "daemon/net"],
    r"jansson\.h": ["daemon/model", "client/ctl"],
    r"ini\.h": ["daemon/base"],
    r"microhttpd\.h": ["daemon/net"],
    r"systemd/.*": ["daemon/net", "daemon"],
    r"protobuf-c/.*": ["proto", "client", "daemon/net"],
    r"(dnnl.*|oneapi/.*|cblas.*|omp)\.h.*": ["kernels"],
    r"immintrin\.h": ["kernels", "daemon/store"],
    r"(cuda.*|cublas.*)\.h": ["kernels"],
    r"(llama|ggml.*)\.h": ["client"],
}

SUFFIXES = {".c", ".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def room_of(path):
    """The room of a file's path from the root, None for one that belongs to none."""
    fits = [room for room in ALLOWED if path.startswith(room + "/")]
    return max(fits, key=len) if fits else None


def own_path(name):
    """The public header is included as engines include it; everything else by its path from the root."""
    return "client/" + name if name.startswith("samkv/") else name


def may_include(room, target):
    """Whether a file of `room` may include the own header `target`."""
    there = room_of(target)
    if there is None:
        return False
    if there == room:
        return True
    return any(allowed in (there, target) for allowed in ALLOWED[room])


def complaints(path, text, exists):
    """What is wrong with the include lines of one file; exists(path) tells whether the root has that header."""
    room, out = room_of(path), []
    if room is None:
        return ["%s: belongs to no room" % path]
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        own, name = match.group(1) == '"', match.group(2)
        where = "%s:%d: " % (path, number)
        if own:
            target = own_path(name)
            if not exists(target) and not target.endswith(".pb-c.h"):
                out.append(where + '"%s" is not a path from the root' % name)
            elif not may_include(room, target):
                out.append(where + "%s may not include %s" % (room, name))
            continue
        for library, rooms in LIBRARIES.items():
            if re.fullmatch(library, name) and room != "tests" and room not in rooms:
                out.append(where + "<%s> belongs to %s, not to %s" % (name, ", ".join(rooms), room))
    return out


def self_test():
    """The rules refuse what they are there to refuse."""
    bad = {
        "daemon/store/x.c": '#include "daemon/samkv/select.h"',
        "daemon/samkv/x.c": '#include "daemon/store/store.h"',
        "daemon/ingest/x.c": '#include "daemon/fetch/fetch.h"',
        "kernels/cpu/x.c": '#include "proto/frame.h"',
        "daemon/base/x.c": "#include <uv.h>",
        "daemon/fetch/x.c": "  #  include <lmdb.h>",
        "client/x.c": '#include "daemon/base/log.h"',
        "client/y.c": "#include <jansson.h>",
        "proto/x.c": '#include "status.h"',
        "daemon/net/x.c": '#include "../base/log.h"',
        "proto/y.c": '#include "daemon/base/nothing.h"',
    }
    missing = {"status.h", "../base/log.h", "daemon/base/nothing.h"}
    for path, line in bad.items():
        assert complaints(path, line, lambda p: p not in missing), "not refused: %s in %s" % (line, path)
    good = {
        "daemon/store/x.c": '#include <lmdb.h>\n#include "daemon/base/log.h"\n#include "proto/status.h"',
        "client/ctl/x.c": '#include "samkv/samkv.h"\n#include <jansson.h>\n#include "proto/samkv.pb-c.h"',
        "kernels/cpu/x.c": '#include "kernels/kernels.h"\n#include "proto/tensor.h"\n#include <dnnl.h>',
        "daemon/main.c": '#include <uv.h>\n#include "daemon/net/server.h"',
    }
    for path, lines in good.items():
        assert not complaints(path, lines, lambda p: True), complaints(path, lines, lambda p: True)


def main():
    self_test()
    root, bad, count = pathlib.Path(sys.argv[1]), [], 0
    for top in sorted({room.split("/")[0] for room in ALLOWED}):
        for file in sorted(p for p in (root / top).rglob("*") if p.suffix in SUFFIXES):
            count += 1
            bad += complaints(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8"),
                              lambda p: (root / p).is_file())
    if bad:
        sys.exit("\n".join(bad))
    if not count:
        sys.exit("no sources found under %s" % root)
    print("%d files include only what their room may" % count)


if __name__ == "__main__":
    main()
