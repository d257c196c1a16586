#!/usr/bin/env bash
# The figures of an idle agent, from the release binary: its size, the time from its start until /readyz says
# 200, and the time of a stop with nothing pending. Medians of ten. Prints; judges nothing.
#
#   scripts/figures.sh [binary]        PORT=18401 by default
set -euo pipefail
export LC_ALL=C # a decimal point, whatever the language

cd "$(dirname "${BASH_SOURCE[0]}")/.."
binary=${1:-target/release/log-capturer}
port=${PORT:-18401}
rounds=10
give_up_us=20000000

home=$(mktemp -d)
agent=
finish() {
    [[ -z $agent ]] || kill -KILL "$agent" 2>/dev/null || true
    rm -rf "$home"
}
trap finish EXIT

mkdir "$home/logs"
seq 1000 >"$home/logs/app.log"
cat >"$home/config.json" <<JSON
{ "status": { "listen": "127.0.0.1:$port" },
  "sources": [ { "type": "file", "include": ["logs/*.log"] } ],
  "sinks": [ { "type": "file", "path": "out.txt" } ] }
JSON

now_us() { echo "${EPOCHREALTIME/./}"; }

# In a group, since a connection that is refused must not end the script.
ready() {
    local first=
    {
        printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
        IFS= read -r -t 5 first <&3 || true
    } 3<>"/dev/tcp/127.0.0.1/$port" || return 1
    [[ $first == *" 200 "* ]]
}

median_ms() { printf '%s\n' "$@" | sort -n | awk '{ us[NR] = $1 } END { printf "%.1f ms", (us[int((NR + 1) / 2)] + us[int(NR / 2) + 1]) / 2000 }'; }

starts=()
stops=()
for ((round = 0; round < rounds; round++)); do
    began=$(now_us)
    "$binary" run --config "$home/config.json" 2>"$home/stderr.txt" </dev/null &
    agent=$!
    until ready 2>/dev/null; do
        if (($(now_us) - began > give_up_us)) || ! kill -0 "$agent" 2>/dev/null; then
            echo "the agent did not get ready; it said:" >&2
            cat "$home/stderr.txt" >&2
            exit 1
        fi
    done
    starts+=($(($(now_us) - began)))

    # Nothing pending: everything that was written has arrived.
    until cmp -s "$home/logs/app.log" "$home/out.txt"; do
        if (($(now_us) - began > 2 * give_up_us)); then
            echo "the lines did not arrive" >&2
            exit 1
        fi
    done
    began=$(now_us)
    kill -TERM "$agent"
    code=0
    wait "$agent" || code=$?
    stops+=($(($(now_us) - began)))
    agent=
    ((code == 0)) || { echo "the stop ended with $code; the agent said:" >&2; cat "$home/stderr.txt" >&2; exit 1; }
done

bytes=$(stat -c %s "$binary")
echo "binary, stripped            $(awk -v b="$bytes" 'BEGIN { printf "%.2f MiB (%d bytes)", b / 1048576, b }')"
echo "start until /readyz 200     $(median_ms "${starts[@]}") (median of $rounds)"
echo "stop with nothing pending   $(median_ms "${stops[@]}") (median of $rounds)"
