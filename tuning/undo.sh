#!/bin/sh
# Brings back what was before tuning/apply.sh: values of sysctls, and the files and folders that it made.
#
#   tuning/undo.sh         shows what would be brought back; changes nothing
#   tuning/undo.sh --yes   does it (root)
#
#   --root DIR   as for apply.sh
#
# A sysctl that has another value now than apply.sh gave it is somebody else's, and left alone, as is a file that somebody
# else changed.
#
# Exit code: 0, also when there is nothing to undo; 1 when something could not be brought back (it stays written down); 2 for
# wrong arguments.
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=settings.sh
. "$here/settings.sh"
arguments '--yes --root --help' "$@"

if [ ! -f "$state" ]; then
    echo "nothing to undo: there is no $state"
    exit 0
fi
[ -z "$yes" ] || need_root

# undo_sysctl NAME BEFORE APPLIED
undo_sysctl() {
    if ! now=$(sysctl_read "$1"); then
        echo "$1: not here any more (its module is not loaded); nothing to bring back"
    elif [ "$now" = "$2" ]; then
        echo "$1 = $now: as before"
    elif [ "$now" != "$3" ]; then
        echo "$1 = $now: was changed by somebody else (apply.sh: $2 -> $3); left alone"
    else
        echo "$1 = $now -> $2"
        [ -z "$yes" ] || sysctl_write "$1" "$2" || return 0
    fi
    [ -z "$yes" ] || state_drop sysctl "$1"
}

# undo_file PATH CHECKSUM
undo_file() {
    if [ -e "$root$1" ] && [ "$(checksum "$root$1")" != "$2" ]; then
        echo "FAILED $1: was changed by somebody else; left alone" >&2
        failures=$((failures + 1))
        return
    fi
    echo "$1: removed"
    [ -n "$yes" ] || return 0
    rm -f "$root$1" && state_drop file "$1"
}

# The last change first. Read whole before anything is dropped from it.
lines=$(grep -v '^#' "$state" | awk '{ line[NR] = $0 } END { for (n = NR; n > 0; n--) print line[n] }')
[ -n "$yes" ] || echo '# what would be brought back; nothing is changed without --yes'
for kind in sysctl file; do
    while IFS="$tab" read -r what name before applied; do
        [ "$what" = "$kind" ] || continue
        "undo_$kind" "$name" "$before" "$applied"
    done <<EOF
$lines
EOF
done
[ -n "$yes" ] || exit 0
if grep -q "^\(sysctl\|file\)$tab" "$state"; then
    echo "# not all could be brought back; what is left stands in $state" >&2
    exit 1
fi
folders=$(printf '%s\n' "$lines" | awk -F "$tab" '$1 == "folder" { print length($2), $2 }' | sort -rn | cut -d ' ' -f 2-)
rm -f "$state"
printf '%s\n' "$folders" | while IFS= read -r folder; do
    # One that others use now stays.
    [ -z "$folder" ] || rmdir "$root$folder" 2>/dev/null || true
done
echo '# undone. Then: systemctl daemon-reload, where the unit had a limit'
