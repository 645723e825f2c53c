# Sourced by every script here: where things are, and how progress and failures are told.
# shellcheck shell=bash

set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${VHOST_USER_9P_CACHE:-${HOME:-/root}/.cache/vhost-user-9p}
qemu=$cache/bin/qemu-system-x86_64

# One progress line on stderr, with the seconds since the script started, so that stdout stays the
# script's own answer and a log of an unattended run shows where the time went.
say() { printf '[%3d s] %s\n' "$SECONDS" "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# The first paragraph of comments of the calling script is its help text.
usage() { sed -n '2,/^$/ { s/^# \{0,1\}//; p; }' "$0"; }

# Where cargo puts the program (honours CARGO_TARGET_DIR as cargo does).
program() { printf '%s/%s/vhost-user-9p\n' "${CARGO_TARGET_DIR:-$repo/target}" "$1"; }

# Waits for a socket that a background process is to create; fails when the process dies first.
wait_for_socket() { # PATH PID SECONDS
    local i
    for ((i = 0; i < $3 * 20; i++)); do
        [ -S "$1" ] && return 0
        kill -0 "$2" 2>/dev/null || return 1
        sleep 0.05
    done
    return 1
}

# Has cargo build for AddressSanitizer from here on, in a directory of its own. The flag is one that
# only a nightly compiler takes of itself; the runtime is part of every toolchain. With --target the
# flags are not those of build scripts.
sanitized() { # FURTHER RUSTFLAGS...
    host_target=$(rustc -vV | sed -n 's/^host: //p')
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address $*"
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repo/target}/sanitize
    # Fds are closed by number in tests on purpose, and core dumps of a shadow memory are of no use.
    export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1:disable_coredump=1}
}
