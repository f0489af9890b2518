# What every `start` shares; sourced by it. Says what was asked for (port, workers, connections, check), installs,
# and becomes the server. Owns bench/peers/.cache.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
name=$(basename "$here")
cache=$(dirname "$here")/.cache
port='' workers=1 connections=1000 check='' tls_port='' certificate='' key=''

while [ $# -gt 0 ]; do
    case $1 in
        --port) port=$2; shift 2 ;;
        --workers) workers=$2; shift 2 ;;
        --connections) connections=$2; shift 2 ;;
        --check) check=1; shift ;;
        # For peers that are measured by TLS too.
        --tls-port) tls_port=$2; shift 2 ;;
        --certificate) certificate=$2; shift 2 ;;
        --key) key=$2; shift 2 ;;
        *) echo "$name: $1 is none of --port P, --workers N, --connections C, --tls-port P, --certificate FILE, --key FILE, --check" >&2; exit 2 ;;
    esac
done
[ -n "$check" ] || [ -n "$port" ] || { echo "$name: --port P is missing" >&2; exit 2; }

# A peer that cannot be had here is skipped by the runner: 77, and the reason on one line.
absent() { echo "$name: $*" >&2; exit 77; }

mkdir -p "$cache"
# Two starts at once would install into each other; the descriptor is closed before the server is started.
exec 9>"$cache/lock"
flock 9
# Working folders are named by their port; those of runs of another day are nobody's.
find "$cache" -maxdepth 1 -name "$name-[0-9]*" -mmin +1440 -exec rm -rf {} +

# quietly WHAT COMMAND...: runs it; absent, with the last line that it said, when it fails.
quietly() {
    local what=$1 log=$cache/$name.log
    shift
    "$@" >"$log" 2>&1 || absent "$what failed: $(grep -v '^\s*$' "$log" | tail -1) (all of it: $log)"
}

# debian PACKAGE...: installs what is missing, without letting its service start (policy-rc.d(8)).
debian() {
    local missing=() package made=
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || absent "${missing[*]} is not installed, and there is no apt-get"
    [ "$(id -u)" -eq 0 ] || absent "not installed; as root: apt-get install ${missing[*]}"
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        made=1
    fi
    local installed=1
    {
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    } </dev/null >"$cache/$name.log" 2>&1 || installed=
    [ -z "$made" ] || rm -f /usr/sbin/policy-rc.d
    [ -n "$installed" ] || absent "apt-get install ${missing[*]} failed: $(tail -1 "$cache/$name.log")"
}

# Connections of one worker: an even share and what chance and listeners add, within what a file table holds.
share() {
    local files wanted
    files=$(ulimit -H -n)
    wanted=$((connections / workers + connections / workers / 10 + 500))
    if [ "$files" != unlimited ] && [ "$wanted" -gt "$files" ]; then wanted=$files; fi
    echo "$wanted"
}

# become COMMAND...: with all the open files that there may be, and not outliving the runner.
become() {
    exec 9>&-
    [ -z "$check" ] || exit 0
    ulimit -n "$(ulimit -H -n)"
    exec setpriv --pdeathsig TERM "$@"
}
