#!/bin/sh
# Print the first interpreter that is Python >= 3.11 and can make virtual environments. Arguments: the one to use instead.
set -eu

usable='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
[ $# -gt 0 ] || set -- python3.13 python3.12 python3.11 python3 python
for candidate in "$@"; do
    # run it: a version manager's stub may stand in the path and fail
    if "$candidate" -c "$usable" >/dev/null 2>&1; then
        echo "$candidate"
        exit 0
    fi
done
cat >&2 <<EOF
unmask needs Python 3.11 or newer with the venv and ensurepip modules; tried: $*.
Install it (Debian, Ubuntu: apt install python3 python3-venv), or name one: make quickstart PYTHON=/path/to/python3.12
EOF
exit 1
