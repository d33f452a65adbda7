#!/usr/bin/env bash
# Installs Autobahn|Testsuite into .cache/autobahn of the checkout, once.
#
# The suite is Python 2 code: its newest release installs on Python 3 and fails at the first import.
# So this looks for a Python 2.7 (PYTHON27 names one) that has pip; some dependencies are compiled,
# which takes a C compiler and a minute or two. Nothing outside .cache/autobahn is written.
# `.cache/autobahn/wstest` appears last: where it stands, the installation is whole. Exit code 2 if
# there is no Python 2.7.
set -euo pipefail

version=25.10.1
# The last release that still runs on Python 2.7.
virtualenv_version=20.15.1

cd "$(dirname "$0")/../.."
target=.cache/autobahn

if [ -x "$target/wstest" ] && [ "$(cat "$target/version" 2>/dev/null)" = "$version" ]; then
    exit 0
fi

# A name on the PATH proves nothing: version managers leave shims there that only print an error.
find_python27() {
    local candidate
    for candidate in "${PYTHON27:-}" python2.7 python2 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7*/bin/python2.7; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys, pip; sys.exit(sys.version_info[:2] != (2, 7))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

if ! python=$(find_python27); then
    echo "Autobahn needs Python 2.7 with pip, and none was found." >&2
    echo "Install one (pyenv install 2.7.18) or name it: PYTHON27=/path/to/python2.7 $0" >&2
    exit 2
fi

echo "Installing Autobahn|Testsuite $version into $target (a minute or two)"
export PYTHONWARNINGS=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_PYTHON_VERSION_WARNING=1
rm -rf "$target"
mkdir -p "$target"
"$python" -m pip install --quiet --target "$target/virtualenv" "virtualenv==$virtualenv_version"
PYTHONPATH="$target/virtualenv" "$python" -m virtualenv --quiet --no-periodic-update "$target/venv"
"$target/venv/bin/pip" install --quiet "autobahntestsuite==$version"
echo "$version" >"$target/version"
ln -s venv/bin/wstest "$target/wstest"
