#!/bin/sh
# Sets this machine up for a number of Pushline's connections: sysctls now, and files that give it its limit on open files.
#
#   tuning/apply.sh --connections N             shows what would change, and why; changes nothing
#   tuning/apply.sh --connections N --yes       does it (root)
#
#   --persist     keeps the sysctls over a restart too, in /etc/sysctl.d/90-pushline.conf
#   --user NAME   who runs Pushline outside systemd, for /etc/security/limits.d (default: pushline)
#   --root DIR    a machine made of files below DIR (an image, a test) in the place of this one
#
# A value that is already enough is left alone. What was before is kept in /var/lib/pushline/tuning.state, however often
# this is run; tuning/undo.sh brings it back. tuning/check.sh tells whether it is in force, `pushline doctor` whether it is
# enough. Exit code: 0; 1 when something could not be changed; 2 for wrong arguments.
. "$(dirname "$0")/settings.sh"
arguments '--connections --yes --persist --user --root --help' "$@"
[ -z "$yes" ] || need_root

# Makes a folder, and remembers those that were not there, the outermost first.
make_folder() {
    [ -d "$root$1" ] && return
    make_folder "$(dirname "$1")"
    mkdir "$root$1" || exit 1
    made_folders="${made_folders:-}$1
"
}

remember_folders() {
    printf '%s' "${made_folders:-}" | while IFS= read -r folder; do
        state_line folder "$folder" >/dev/null || state_put folder "$folder" ''
    done
    made_folders=''
}

show() {
    printf '%s\n    why: %s\n    for: %s\n    see: %s\n' "$1" "$2" "$3" "$4"
}

visit() {
    if [ -z "$2" ]; then
        echo "$1: not here (no such sysctl in this kernel or namespace, or its module is not loaded)"
    elif [ "$2" = "$3" ]; then
        echo "$1 = $2: enough"
    else
        show "$1 = $2 -> $3" "$4" "$5" "$6"
        [ -n "$yes" ] || return 0
        # Written down first: what is cut off here can still be undone.
        if line=$(state_line sysctl "$1"); then before=$(part "$line" 3); else before=$2; fi
        state_put sysctl "$1" "$before$tab$3"
        sysctl_write "$1" "$3" || { [ "$before" != "$2" ] || state_drop sysctl "$1"; }
    fi
}

# A file of our own, whole; never one that somebody else made or changed.
visit_file() {
    text=$(cat)
    if [ -e "$root$1" ]; then
        if [ "$(cat "$root$1")" = "$text" ]; then
            echo "$1: as it should be"
            return
        fi
        if ! line=$(state_line file "$1") || [ "$(part "$line" 3)" != "$(checksum "$root$1")" ]; then
            echo "FAILED $1: is there, and was made or changed by somebody else; left alone" >&2
            failures=$((failures + 1))
            return
        fi
    fi
    printf '%s\n' "$1:"
    printf '%s\n' "$text" | sed 's/^/    /'
    [ -n "$yes" ] || return 0
    make_folder "$(dirname "$1")"
    remember_folders
    state_put file "$1" "$(printf '%s\n' "$text" | cksum | tr ' ' -)"
    printf '%s\n' "$text" >"$root$1" || failures=$((failures + 1))
}

# What was set, as it stands in the state file: also by an earlier run without --persist.
sysctl_conf() {
    echo "# Made by Pushline's tuning/apply.sh; undo.sh removes it. For: $connections connections."
    echo '# Each line with its reason: tuning/apply.sh --connections N. A - before a name: no error where it does not exist.'
    if [ -f "$state" ]; then
        awk -F "$tab" '$1 == "sysctl" { print "-" $2 " = " $4 }' "$state"
    fi
}

if [ -n "$yes" ]; then
    make_folder /var/lib/pushline
    remember_folders
    echo "# setting up for $connections connections"
else
    echo "# what would be set up for $connections connections; nothing is changed without --yes"
fi
each_setting
each_limit_file
if [ -z "$persist" ]; then
    echo '# the sysctls end with the next restart of the machine (--persist keeps them)'
elif [ -n "$yes" ]; then
    visit_file /etc/sysctl.d/90-pushline.conf <<EOF
$(sysctl_conf)
EOF
else
    echo '/etc/sysctl.d/90-pushline.conf: would have the sysctls above'
fi

needed_mib=$((connections * (kernel_bytes + user_bytes) / 1048576))
available_kib=$(meminfo_kib MemAvailable)
echo "# memory: $needed_mib MiB for $connections waiting connections ($kernel_bytes bytes each in the kernel, $user_bytes in Pushline)"
if [ -n "$available_kib" ] && [ "$needed_mib" -gt $((available_kib / 1024)) ]; then
    echo "# NOTE: only $((available_kib / 1024)) MiB are available; no setting helps"
fi
if [ "$failures" -gt 0 ]; then
    echo "# $failures could not be changed" >&2
    exit 1
fi
[ -z "$yes" ] || echo '# done. Then: systemctl daemon-reload && systemctl restart pushline (listeners and limits are taken over at start)'
