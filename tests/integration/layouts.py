"""A C program that prints how the compiler lays out the client library's structures, to compare with ctypes'."""
import ctypes
import json
import pathlib
import shutil
import subprocess
import tempfile

from harness import ROOT

def of_ctypes(module):
    """struct → {"": size, member: [offset, size]}"""
    out = {}
    for c, kind in module.STRUCTS.items():
        out[c] = {name: [getattr(kind, name).offset, getattr(kind, name).size] for name, _ in kind._fields_}
        out[c][""] = [0, ctypes.sizeof(kind)]
    return out


def of_compiler(module):
    """The same members, from the headers. None without a compiler."""
    compiler = shutil.which("cc")
    if not compiler:
        return None
    lines = []
    for c, kind in module.STRUCTS.items():
        lines.append('P("%s", "", 0, sizeof(struct %s));' % (c, c))
        for name, _ in kind._fields_:
            lines.append('P("%s", "%s", offsetof(struct %s, %s), sizeof(((struct %s *)0)->%s));' %
                         (c, name, c, name, c, name))
    source = ('#include <stdio.h>\n#include "samkv/samkv_llama.h"\n#define P(s, m, o, n) '
              'printf("[\\"%%s\\", \\"%%s\\", %%zu, %%zu]\\n", s, m, (size_t)(o), (size_t)(n))\n'
              'int main(void) { %s return 0; }\n' % "\n".join(lines))
    out = {c: {} for c in module.STRUCTS}
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "layouts"
        subprocess.run([compiler, "-I", str(ROOT), "-I", str(ROOT / "client"), "-x", "c", "-", "-o", str(program)],
                       input=source.encode(), check=True)
        said = subprocess.run([str(program)], stdout=subprocess.PIPE, check=True).stdout
    for line in said.decode().splitlines():
        struct, member, offset, size = json.loads(line)
        out[struct][member] = [offset, size]
    return out
