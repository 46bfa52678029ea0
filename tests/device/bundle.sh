#!/bin/bash
# bundle.sh FOLDER MODULE PROGRAM...: copies the module, the programs and the libraries that they need besides libc's into
# FOLDER, for a machine on which nothing can be installed. There, LD_LIBRARY_PATH=FOLDER.
set -euo pipefail
folder=$1
cp -fu "$2" "$folder/"
shift 2
for program in "$@"; do
    [ "$program" -ef "$folder/${program##*/}" ] || cp -fu "$program" "$folder/"
    ldd "$program" | awk '$3 ~ /^\// {print $3}' | grep -vE "/(libc|libm|libdl|libpthread|librt|libgcc_s|libstdc\+\+|ld-linux[^/]*)[.]so" |
        while read -r library; do
            [ "$library" -ef "$folder/${library##*/}" ] || cp -fLu "$library" "$folder/"
        done
done
