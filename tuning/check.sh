#!/bin/sh
# Tells whether what tuning/apply.sh would set for a number of connections is in force. Changes nothing.
#
#   tuning/check.sh --connections N
#
#   --user NAME, --root DIR   as for apply.sh
#
# Exit code: 0 when all is; 1 when something is not (`pushline doctor` tells whether that matters); 2 for wrong arguments.
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=settings.sh
. "$here/settings.sh"
# shellcheck source=limits.sh
. "$here/limits.sh"
arguments '--connections --user --root --help' "$@"

visit() {
    if [ -z "$2" ]; then
        echo "-     $1: not here"
    elif [ "$2" = "$3" ]; then
        echo "ok    $1 = $2"
    else
        echo "SHORT $1 = $2, for $many $3"
        echo "      why: $4"
        failures=$((failures + 1))
    fi
}

# A limit is enough when it is as high as the one that apply.sh would write, whoever wrote it.
visit_limit() {
    limit_read "$1"
    whose=pushline.service
    [ "$1" = unit ] || whose="user $user"
    if at_least "$has" "$files"; then
        echo "ok    $from: $has open files for $whose"
        return
    fi
    case $said in
    '') echo "SHORT $2: nothing said for $whose, for $many $files open files" ;;
    "$has") echo "SHORT $from: $said open files for $whose, for $many $files" ;;
    *) echo "SHORT $from: $said open files for $whose, in effect $has (fs.nr_open is $nr_open), for $many $files" ;;
    esac
    failures=$((failures + 1))
}

each_setting
nr_open=$(sysctl_read fs.nr_open) || nr_open=$nr_open_default
each_limit
if [ "$failures" -gt 0 ]; then
    echo "$failures not as for $many: tuning/apply.sh --connections $connections shows what it would do"
    exit 1
fi
echo "all as for $many"
