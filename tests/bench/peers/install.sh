#!/usr/bin/env bash
# Installs into .cache/bench of the checkout what is needed of the peers, and py-spy for the profile, each once; says
# what it cannot.
#
# The versions are pinned, so that tables of different days compare. Centrifugo is compiled, which takes
# some minutes. nchan is a package of the system, installed by whoever administers it.
set -euo pipefail

node_packages=(
    @nestjs/common@12.5.1 @nestjs/core@12.5.1 @nestjs/platform-express@12.5.1
    @nestjs/platform-ws@12.1.1 @nestjs/websockets@12.1.1 ioredis@6.0.0
    reflect-metadata@0.2.2 rxjs@7.8.2 socket.io@4.8.4 ws@8.23.0
)
python_packages=(python-socketio==5.18.1)
py_spy=0.4.3
centrifugo=v5.4.9

cd "$(dirname "$0")/../../.."
python=${1:-python3}
target=$PWD/.cache/bench
mkdir -p "$target"

say() { echo "bench-peers: $*"; }

install_node_packages() {
    if ! command -v npm >/dev/null; then
        say "no npm: install Node.js to measure Socket.IO and NestJS"
        return
    fi
    say "Socket.IO, NestJS, ioredis (npm)"
    mkdir -p "$target/node"
    echo '{"private": true}' >"$target/node/package.json"
    npm install --silent --no-audit --no-fund --prefix "$target/node" "${node_packages[@]}"
}

install_python_packages() {
    say "python-socketio (PyPI)"
    "$python" -m pip install --quiet --disable-pip-version-check --upgrade \
        --target "$target/python" "${python_packages[@]}"
}

# In a folder of its own, as pip replaces what it finds in another's bin.
install_py_spy() {
    say "py-spy $py_spy (PyPI)"
    "$python" -m pip install --quiet --disable-pip-version-check --upgrade \
        --target "$target/py-spy" "py-spy==$py_spy"
}

# As a dependency of an empty module, so that neither its replace lines nor a newer release count.
install_centrifugo() {
    if ! command -v go >/dev/null; then
        say "no go: install Go to measure Centrifugo"
        return
    fi
    say "Centrifugo $centrifugo (compiled from source, some minutes)"
    local module=$target/centrifugo-build
    mkdir -p "$module"
    printf 'module bench\n\nrequire github.com/centrifugal/centrifugo/v5 %s\n' "$centrifugo" \
        >"$module/go.mod"
    (cd "$module" && go build -mod=mod -o "$target/centrifugo" github.com/centrifugal/centrifugo/v5)
}

[ -d "$target/node/node_modules/socket.io" ] || install_node_packages
[ -d "$target/python/socketio" ] || install_python_packages
[ -x "$target/py-spy/bin/py-spy" ] || install_py_spy
[ -x "$target/centrifugo" ] || install_centrifugo
if [ ! -e /usr/lib/nginx/modules/ngx_nchan_module.so ]; then
    say "nchan is a package of the system: apt-get install nginx-light libnginx-mod-nchan"
fi
