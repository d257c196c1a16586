#!/usr/bin/env bash
# How long a stop takes in every phase of the work, from the release binary: real hangs on loopback, real full
# disks. Prints one line for each phase and each stop_timeout (300 ms, 1 s, 10 s); OVER is above the budget, which
# is stop_timeout and 250 ms, or 100 ms with nothing pending. Fails when a test does.
#
#   scripts/stop-times.sh        some minutes; as root, or the phases that mount something are skipped
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT

echo "stop | phase                                                | timeout  | measured    | exit   | budget   |"
code=0
# One at a time: they must not disturb each other's figures.
LOG_CAPTURER_STOPS_FULL=1 cargo test --locked --release --test it -- phases:: --nocapture --test-threads=1 2>&1 |
    tee "$log" | grep --line-buffered -ao -e 'stop | .*' -e '^       .*' || code=$?
if ! grep -q '^test result: ok' "$log"; then
    grep -av '^stop |' "$log" >&2
    exit 1
fi
over=$(grep -ac '| OVER' "$log" || true)
echo "$(grep -ac 'stop | .* ms |' "$log") figures, $over of them over their budget, $(grep -ac SKIPPED "$log" || true) skipped"
exit "$code"
