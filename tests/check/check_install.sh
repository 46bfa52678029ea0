#!/bin/sh
# usage: check_install.sh ROOT BUILD. What is installed is enough to build against libsamkv, with pkg-config and with CMake, and
# the man pages are well formed.
set -eu
root=$1
build=$2
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
DESTDIR=$work/root cmake --install "$build" >"$work/log" || { cat "$work/log"; exit 1; }
prefix=$work/root$(sed -n 's/^CMAKE_INSTALL_PREFIX:PATH=//p' "$build/CMakeCache.txt")

pc=$(find "$prefix" -name samkv.pc)
# shellcheck disable=SC2046 # a list of options
cc -Wall -Werror -o "$work/by_pkg_config" "$root/client/examples/fetch_example.c" \
    $(PKG_CONFIG_PATH=$(dirname "$pc") pkg-config --define-variable=prefix="$prefix" --cflags --libs samkv)

mkdir "$work/project"
cat >"$work/project/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.25)
project(uses_samkv C)
find_package(samkv REQUIRED)
add_executable(by_cmake $root/client/examples/fetch_example.c)
target_link_libraries(by_cmake PRIVATE samkv::samkv)
END
by_cmake() {
    cmake -S "$work/project" -B "$work/project/build" -DCMAKE_PREFIX_PATH="$prefix"
    cmake --build "$work/project/build"
}
(set -e && by_cmake) >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
libraries=$(dirname "$(find "$prefix" -name libsamkv.so.1)")
for program in "$work/by_pkg_config" "$work/project/build/by_cmake"; do
    code=0
    LD_LIBRARY_PATH=$libraries "$program" >"$work/out" 2>&1 || code=$?
    if [ "$code" -gt 3 ] || ! grep -q usage "$work/out"; then
        echo "$program does not run:" >&2
        cat "$work/out" >&2
        exit 1
    fi
done

for page in samkvctl.1 samkvd.8 samkvd.conf.5 libsamkv.3; do
    file=$(find "$prefix" -name "$page")
    [ -s "$file" ] || { echo "$page is not installed" >&2; exit 1; }
    command -v groff >/dev/null || continue
    warnings=$(groff -k -man -Tutf8 -ww -z "$file" 2>&1 | grep -v "cannot adjust" || true)
    [ -z "$warnings" ] || { printf '%s\n' "$page: $warnings" >&2; exit 1; }
done
echo "installed files are sound"
