#!/usr/bin/env bash
# Does the agent leak, lose or double anything when everything goes on at once for long? Builds what is missing
# and runs `stress::a_stress_run` of the integration tests in release mode, against an agent that counts what is on
# its heap (the feature `heap`, in target/heap, so that what is shipped stays as it is).
#
#   scripts/stress-test.sh [--duration 2m] [--workers 10] [--files 0] [--out target/stress]
#
#   --duration   30s, 10m, 2h: how long the load lasts
#   --workers    programs that write and rotate, next to the files of a moment
#   --files      so many more that are there all the time, and get a line now and then
#   --out        where samples.csv, report.txt and stress.svg are left
#
# Containers are part of it where an engine can be started for it: as root, with dockerd and busybox. Else a line says
# that they were skipped. Ends with 0 when nothing leaked, was lost or came twice. `tail -f OUT/samples.csv` shows how it goes. An hour needs
# some 2.5 GB below TMPDIR (/tmp), which go away with the run. Look at stress.svg with any browser.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
wrong() {
    echo "stress-test: $1; see --help" >&2
    exit 2
}

duration=2m
workers=10
files=0
out=
while (($#)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --duration | --workers | --files | --out)
        (($# > 1)) || wrong "$1 needs a value"
        case $1 in
        --duration) duration=$2 ;;
        --workers) workers=$2 ;;
        --files) files=$2 ;;
        --out) out=$2 ;;
        esac
        shift 2
        ;;
    *) wrong "what is $1?" ;;
    esac
done

[[ $duration =~ ^([1-9][0-9]{0,6})(s|m|h)$ ]] || wrong "--duration is like 30s, 10m or 2h, not $duration"
seconds=${BASH_REMATCH[1]}
case ${BASH_REMATCH[2]} in
m) seconds=$((seconds * 60)) ;;
h) seconds=$((seconds * 3600)) ;;
esac
[[ $workers =~ ^[1-9][0-9]{0,2}$ ]] || wrong "--workers is a number from 1 to 999, not $workers"
[[ $files =~ ^(0|[1-9][0-9]{0,4})$ ]] || wrong "--files is a number from 0 to 99999, not $files"

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$(realpath -m "${out:-$home/target/stress}")
cd "$home"
command -v cargo >/dev/null || { echo "missing: Rust 1.88 or later, see https://rustup.rs" >&2; exit 1; }

export LOG_CAPTURER_STRESS_SECONDS=$seconds LOG_CAPTURER_STRESS_WORKERS=$workers LOG_CAPTURER_STRESS_FILES=$files LOG_CAPTURER_STRESS_OUT=$out
exec cargo test --locked --release --features heap --target-dir target/heap --test it -- --exact stress::a_stress_run --nocapture --test-threads=1
