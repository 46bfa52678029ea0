#!/bin/bash
# usage: bundle.sh FOLDER: builds the fuzzers and puts them into FOLDER with all that they need: libraries (found beside
# the programs; the sanitizers are in them), seeds, corpus, dictionaries, run.sh. For a machine on which nothing is
# installed; there: FOLDER/run.sh --no-build FOLDER SECONDS
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
mkdir -p "${1:?usage: bundle.sh FOLDER}"
folder=$(cd "$1" && pwd)
cd "$root"
cmake --preset fuzz -DCMAKE_BUILD_RPATH="\$ORIGIN" -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags >/dev/null
cmake --build build/fuzz --target fuzzers
for program in build/fuzz/fuzz/fuzz_*; do
    objcopy --strip-debug "$program" "$folder/${program##*/}" # names of functions stay
    ldd "$program" | awk '$3 ~ /^\// {print $3}' | grep -vE "/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)[.]so" |
        while read -r library; do
            [ "$library" -ef "$folder/${library##*/}" ] || cp -fLu "$library" "$folder/"
        done
done
rm -rf "$folder/seeds" "$folder/corpus"
build/fuzz/fuzz/fuzz_seeds "$folder/seeds" >/dev/null
rm -f "$folder/fuzz_seeds"
cp -r "$here/corpus" "$here"/*.dict "$here/run.sh" "$folder/"
du -sh "$folder"
