#!/usr/bin/env bash
# What a fresh Debian with Rust lacks before `make test` can run. Installs only what is missing, and only as
# root; otherwise says what to install. The list, and what needs it:
#   make              the Makefile
#   gcc, libc6-dev    the linker of Rust, and the C parts of the TLS library
#   util-linux        setpriv: a test starts the agent as somebody who may not read every file
#   strace            the crash test kills the agent in front of chosen system calls; does without, and says so
#   docker.io, podman, busybox-static, openssl  the tests of containers on real engines; do without, and say so
#   rustfmt, clippy   the format and the lints (components of Rust, through rustup)
set -euo pipefail

packages=()
command -v make >/dev/null || packages+=(make)
command -v cc >/dev/null || packages+=(gcc libc6-dev)
command -v setpriv >/dev/null || packages+=(util-linux)
command -v strace >/dev/null || packages+=(strace)

if ((${#packages[@]})); then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        echo "installing ${packages[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
    else
        echo "missing: ${packages[*]}; install them as root (apt-get install ${packages[*]})" >&2
        exit 1
    fi
fi

# Not as a service: the tests start dockerd themselves, with folders and a socket of its own.
if ! command -v dockerd >/dev/null && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "installing docker.io busybox-static"
    apt-get update -qq || true
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        docker.io busybox-static >/dev/null || echo "no engine could be installed: its tests will be skipped" >&2
fi

# Not as a service either. Docker may come from elsewhere, so each is asked for alone.
if ! command -v podman >/dev/null && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "installing podman"
    apt-get update -qq || true
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        podman runc busybox-static openssl >/dev/null || echo "podman could not be installed: its test will be skipped" >&2
fi

command -v cargo >/dev/null || { echo "missing: Rust 1.88 or later, see https://rustup.rs" >&2; exit 1; }
for component in fmt:rustfmt clippy:clippy; do
    cargo "${component%%:*}" --version >/dev/null 2>&1 || rustup component add "${component##*:}"
done
