#!/usr/bin/env bash
# Is anything lost or doubled when the agent is killed over and over; or, in the second form, when many files are
# rotated at full load? Builds what is missing and runs `crash::killed_over_and_over` or
# `crash::many::many_files_with_random_rotations` of the integration tests in release mode.
#
#   scripts/crash-test.sh [--rounds 100] [--seed N]
#   scripts/crash-test.sh --files 1000 --minutes 10 [--seed N]
#
#   --rounds     how often the agent is ended: by SIGKILL at random moments, by SIGKILL in front of a chosen system
#                call (with strace), by SIGTERM
#   --seed       of the first ten rounds; every ten have a room and a seed of their own, which is printed. Without it
#                one is chosen.
#   --files, --minutes   nobody is killed: so many files for so long, with random rotations. A minute needs some
#                600 MB below TMPDIR (/tmp), which go away with the run.
#
# Ends with 0 when nothing was lost and nothing came twice. A hundred rounds take some two minutes.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
wrong() {
    echo "crash-test: $1; see --help" >&2
    exit 2
}

rounds=100
seed=
files=
minutes=
while (($#)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --rounds | --seed | --files | --minutes)
        (($# > 1)) || wrong "$1 needs a value"
        [[ $2 =~ ^[0-9]{1,9}$ ]] || wrong "$1 is a number of at most nine digits, not $2"
        case $1 in
        --rounds) rounds=$2 ;;
        --seed) seed=$2 ;;
        --files) files=$2 ;;
        --minutes) minutes=$2 ;;
        esac
        shift 2
        ;;
    *) wrong "what is $1?" ;;
    esac
done
((rounds > 0)) || wrong "--rounds is at least 1"
test=crash::killed_over_and_over
if [[ -n $files$minutes ]]; then
    test=crash::many::many_files_with_random_rotations
    ((${files:=1000} > 0 && ${minutes:=10} > 0)) || wrong "--files and --minutes are at least 1"
    export LOG_CAPTURER_MANY_FILES=$files LOG_CAPTURER_MANY_MINUTES=$minutes
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v cargo >/dev/null || { echo "missing: Rust 1.88 or later, see https://rustup.rs" >&2; exit 1; }

export LOG_CAPTURER_CRASH_ROUNDS=$rounds
[[ -z $seed ]] || export LOG_CAPTURER_CRASH_SEED=$seed
exec cargo test --locked --release --test it -- --exact $test --nocapture --test-threads=1
