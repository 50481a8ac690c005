#!/bin/sh
# Run a command with the C parts built with AddressSanitizer and UBSan, which end a process at its first fault. They are
# built as usual again behind it.
#
#     tools/sanitized.sh python -m pytest tests/accel tests/conformance
set -eu
cd "$(dirname "$0")/.."
flags='-fsanitize=address,undefined -fno-sanitize-recover=undefined'
libraries="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
python=$(command -v "$1")
site=$(mktemp -d)

# setuptools builds only what is older than its sources.
build() { touch kvmpy/softcpu/src/*.c kvmpy/kvm/src/*.c && "$python" -m pip install -q --no-deps -e .; }

trap 'rm -r "$site"; build' EXIT
trap 'exit 130' INT TERM
CFLAGS="-g -O1 $flags" LDFLAGS=$flags build
echo 'import os; del os.RTLD_DEEPBIND' >"$site/sitecustomize.py"  # capstone uses it, and AddressSanitizer refuses it
# The interpreter leaks; memory that is freed must come back, for tests measure that.
LD_PRELOAD=$libraries PYTHONPATH=$site ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=1 "$@"
