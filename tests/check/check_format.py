"""usage: check_format.py ROOT. Every C, C++ and CUDA file is as clang-format leaves it."""
import pathlib
import subprocess
import sys

ROOMS = ("proto", "client", "kernels", "daemon", "tests")
SUFFIXES = {".c", ".h", ".cc", ".cu", ".cuh"}


def main():
    root = pathlib.Path(sys.argv[1])
    files = sorted(p for room in ROOMS for p in (root / room).rglob("*") if p.suffix in SUFFIXES)
    if not files:
        sys.exit("no sources found under %s" % root)
    done = subprocess.run(["clang-format", "--dry-run", "-Werror", "--style=file", *files], cwd=root, text=True,
                          capture_output=True, check=False)
    bad = sorted({line.split(":")[0] for line in done.stderr.splitlines() if ": error:" in line})
    if done.returncode:
        sys.exit("run clang-format -i on:\n  " + "\n  ".join(bad or [done.stderr]))
    print("%d files are formatted" % len(files))


if __name__ == "__main__":
    main()
