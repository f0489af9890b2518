#!/usr/bin/env bash
# The Autobahn test suite against the raw WebSocket of a channel, which is its echo server: a frame published comes back
# to its sender. All sections but 12 and 13 (compression, which Pushline does not offer).
#
# PUSHLINE_BIN: the binary. PUSHLINE_DRIVER: its driver. AUTOBAHN_CASES: a JSON list of cases, default ["*"].
# The suite runs only under Python 2.7; where there is none this says so and ends well.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$PWD
cache=$root/tests/.cache/autobahn
bin=$(realpath "${PUSHLINE_BIN:-target/debug/pushline}")

python=
for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/2.7*/bin/python2.7 /root/.pyenv/versions/2.7*/bin/python2.7 "$(command -v python2.7 || true)"; do
    if [ -x "$candidate" ] && "$candidate" -c '' 2>/dev/null; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "autobahn: skipped, no Python 2.7 here (the suite runs under no other)"
    exit 0
fi

# Installed once, whole or not at all.
if ! cmp -s tests/clients/autobahn-requirements.txt "$cache/requirements.txt"; then
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        echo "autobahn: skipped, $python has no pip"
        exit 0
    fi
    rm -rf "$cache"
    mkdir -p "$cache"
    "$python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location --no-deps \
        --target "$cache/lib" -r tests/clients/autobahn-requirements.txt 2>&1 | grep -v '^DEPRECATION' || true
    touch "$cache/lib/zope/__init__.py" # pip --target leaves a namespace package without one
    "$python" -c 'import sys; sys.path.insert(0, sys.argv[1]); import autobahntestsuite.wstest' "$cache/lib"
    cp tests/clients/autobahn-requirements.txt "$cache/requirements.txt"
fi

work=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || { kill -KILL "$server" && wait "$server"; } 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# Section 9 echoes messages of 16 MiB: every limit that a message passes is raised with limits.message_bytes.
settings=(
    limits.message_bytes=33554432 limits.batch_bytes=33554432 limits.mailbox_bytes=268435456
    history.bytes=268435456 history.node_bytes=1073741824 feed.bytes=268435456 log.format=json
)
mapfile -t flags < <(printf -- '--set\n%s\n' "${settings[@]}")
[ -z "${PUSHLINE_DRIVER:-}" ] || flags+=(--driver "$PUSHLINE_DRIVER")
(cd "$work" && exec env -u PUSHLINE_BIN -u PUSHLINE_DRIVER "$bin" serve --listen 127.0.0.1:0 --workers 2 "${flags[@]}") >/dev/null 2>"$work/log" </dev/null &
server=$!
port=
for _ in $(seq 200); do
    port=$(sed -nE '/"serving"/s/.*"listen":"[^"]*:([0-9]+)".*/\1/p' "$work/log" | head -n 1)
    [ -z "$port" ] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
if [ -z "$port" ]; then
    echo "autobahn: the server did not serve:"
    cat "$work/log"
    exit 1
fi

cat >"$work/spec.json" <<JSON
{
    "outdir": "$cache/reports",
    "servers": [{ "agent": "pushline", "url": "ws://127.0.0.1:$port/channels/autobahn" }],
    "cases": ${AUTOBAHN_CASES:-[\"*\"]},
    "exclude-cases": ["12.*", "13.*"],
    "exclude-agent-cases": {}
}
JSON
rm -rf "$cache/reports"
PYTHONPATH=$cache/lib timeout --kill-after=10 900 "$python" "$cache/lib/bin/wstest" -m fuzzingclient -s "$work/spec.json" >"$work/wstest" 2>&1 </dev/null || {
    echo "autobahn: wstest failed:"
    tail -n 20 "$work/wstest"
    exit 1
}
if ! kill -0 "$server" 2>/dev/null; then
    echo "autobahn: the server ended under the suite:"
    tail -n 20 "$work/log"
    exit 1
fi

"$python" - "$cache/reports/index.json" "$work/wstest" <<'PYTHON'
import json, sys
GOOD = ("OK", "NON-STRICT", "INFORMATIONAL")
results = json.load(open(sys.argv[1]))["pushline"]
bad = sorted((tuple(map(int, case.split("."))), case) for case, r in results.items() if r["behavior"] not in GOOD or r["behaviorClose"] not in GOOD)
for _, case in bad:
    r = results[case]
    print("case %s: %s, closing: %s, close code %s (tests/.cache/autobahn/reports/%s)" % (case, r["behavior"], r["behaviorClose"], r["remoteCloseCode"], r["reportfile"].replace(".json", ".html")))
# A case that was begun and has no result is a failure too.
begun = set(line.split()[4] for line in open(sys.argv[2]) if line.startswith("Running test case ID"))
lost = sorted(begun - set(results))
for case in lost:
    print("case %s: no result" % case)
failed = len(bad) + len(lost)
print("autobahn: %d passed, %d failed" % (len(results) - len(bad), failed))
sys.exit(1 if failed or not results else 0)
PYTHON
