"""The Python package's picture of libsamkv's structs, field by field, against what the C compiler makes of the header.

A field that one side lacks moves all behind it, and Python then reads wherever that leads.
"""
import ctypes
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

from harness import BIN, ROOT

os.environ.setdefault("SAMKV_LIBRARY", str(BIN.parent / "lib" / "libsamkv.so.1"))
sys.path.insert(0, str(ROOT / "client" / "python" / "src"))
from samkv import _library  # noqa: E402

# The package's names that are not "samkv_" and theirs with underscores.
NAMES = {"Error": "samkv_error", "DocumentInput": "samkv_document", "FiguresInput": "samkv_figures",
         "CacheInput": "samkv_cache", "BlocksKept": "samkv_blocks_kept"}


def c_name(python_name):
    if python_name in NAMES:
        return NAMES[python_name]
    return "samkv" + "".join("_" + c.lower() if c.isupper() else c for c in python_name)


def structures():
    return {name: kind for name, kind in vars(_library).items()
            if isinstance(kind, type) and issubclass(kind, ctypes.Structure) and kind is not ctypes.Structure}


class Abi(unittest.TestCase):
    def test_every_struct_is_the_compilers(self):
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if not compiler:
            self.skipTest("no C compiler")
        lines, expected = [], []
        for name, kind in structures().items():
            c = "struct " + c_name(name)
            lines.append('printf("%%zu\\n", sizeof(%s));' % c)
            expected.append(("sizeof(%s)" % c, ctypes.sizeof(kind)))
            for field, *_ in kind._fields_:
                lines.append('printf("%%zu\\n", offsetof(%s, %s));' % (c, field))
                expected.append(("offsetof(%s, %s)" % (c, field), getattr(kind, field).offset))
        with tempfile.TemporaryDirectory() as folder:
            source, program = pathlib.Path(folder) / "abi.c", pathlib.Path(folder) / "abi"
            source.write_text('#include <stddef.h>\n#include <stdio.h>\n#include "samkv/samkv.h"\n'
                              '#include "samkv/samkv_llama.h"\nint main(void)\n{\n%s\nreturn 0;\n}\n' % "\n".join(lines))
            done = subprocess.run([compiler, "-I", str(ROOT / "client"), "-I", str(ROOT), "-o", str(program), str(source)],
                                  capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            numbers = list(map(int, subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split()))
        self.assertEqual(len(numbers), len(expected))
        wrong = ["%s is %d, Python has %d" % (what, number, ours) for (what, ours), number in zip(expected, numbers)
                 if number != ours]
        self.assertEqual(wrong, [])
        self.assertGreater(len(expected), 150)


if __name__ == "__main__":
    unittest.main()
