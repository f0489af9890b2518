#!/bin/sh
# Tells whether what tuning/apply.sh would set for a number of connections is in force. Changes nothing.
#
#   tuning/check.sh --connections N
#
#   --user NAME, --root DIR   as for apply.sh
#
# Exit code: 0 when all is; 1 when something is not (`pushline doctor` tells whether that matters); 2 for wrong arguments.
. "$(dirname "$0")/settings.sh"
arguments '--connections --user --root --help' "$@"

visit() {
    if [ -z "$2" ]; then
        echo "-     $1: not here"
    elif [ "$2" = "$3" ]; then
        echo "ok    $1 = $2"
    else
        echo "SHORT $1 = $2, for $connections connections $3"
        echo "      why: $4"
        failures=$((failures + 1))
    fi
}

# A limit is enough when it is as high as the one that apply.sh would write, whoever wrote it.
visit_file() {
    wanted=$(sed -n 's/.*nofile \([0-9]*\)$/\1/p; s/^LimitNOFILE=//p' | head -n 1)
    found=$(sed -n 's/^[^#]*hard nofile \([0-9]*\)$/\1/p; s/^LimitNOFILE=//p' "$root$1" 2>/dev/null | tail -n 1)
    if [ -n "$found" ] && at_least "$found" "$wanted"; then
        echo "ok    $1: $found open files"
    else
        echo "SHORT $1: ${found:-nothing said}, for $connections connections $wanted open files"
        failures=$((failures + 1))
    fi
}

each_setting
each_limit_file
if [ "$failures" -gt 0 ]; then
    echo "$failures not as for $connections connections: tuning/apply.sh --connections $connections shows what it would do"
    exit 1
fi
echo "all as for $connections connections"
