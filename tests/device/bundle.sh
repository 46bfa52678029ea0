#!/bin/bash
# bundle.sh FOLDER MODULE PROGRAM: copies the module, and the libraries of PROGRAM that a bare machine lacks, into FOLDER.
set -euo pipefail
cp -f "$2" "$1/"
ldd "$3" | awk '$3 ~ /(dnnl|OpenCL|gomp|protobuf-c)/ {print $3}' | while read -r library; do
    [ "$library" -ef "$1/${library##*/}" ] || cp -fL "$library" "$1/"
done
