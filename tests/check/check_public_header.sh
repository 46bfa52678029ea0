#!/bin/sh
# usage: check_public_header.sh ROOT. The public headers, laid out as installed, stand alone in C and in C++.
set -eu
include=$(mktemp -d)
trap 'rm -rf "$include"' EXIT
mkdir "$include/samkv"
cp "$1"/client/samkv/*.h "$include/samkv/"
for header in "$include"/samkv/*.h; do # a header of proto/ that is installed beside the others
    shared=$1/proto/$(basename "$header")
    [ ! -f "$shared" ] || cp "$shared" "$header"
done

check() {
    language=$1
    shift
    for public in samkv samkv_llama; do
        printf '#include "samkv/%s.h"\n#include "samkv/%s.h"\nint main(void) { return 0; }\n' "$public" "$public" |
            "$@" -x "$language" -pedantic -Wall -Wextra -Werror -I"$include" -fsyntax-only -
    done
}
check c gcc -std=c11
check c++ g++ -std=c++11
check c++ g++ -std=c++20
