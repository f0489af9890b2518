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
# A value or limit that is already enough is left alone, whoever set it. fs.nr_open is kept over a restart without --persist
# too where it had to be raised: the files with the limit stay, and one above it cannot be given. What was before is kept in
# /var/lib/pushline/tuning.state, however often this is run; tuning/undo.sh brings it back. tuning/check.sh tells whether it
# is in force, `pushline doctor` whether it is enough. Exit code: 0; 1 when something could not be changed; 2 for wrong
# arguments.
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=settings.sh
. "$here/settings.sh"
# shellcheck source=limits.sh
. "$here/limits.sh"
arguments '--connections --yes --persist --user --root --help' "$@"
[ -z "$yes" ] || need_root
conf=/etc/sysctl.d/90-pushline.conf

failed() {
    echo "FAILED $1" >&2
    failures=$((failures + 1))
}

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
        # What somebody else has set since is no longer ours to bring back.
        [ -z "$yes" ] || ours_now "$1" "$2" || state_drop sysctl "$1"
    else
        show "$1 = $2 -> $3" "$4" "$5" "$6"
        [ -z "$yes" ] || change "$1" "$2" "$3"
    fi
}

# Whether a sysctl has no line in the state file, or the value that its line says.
ours_now() { ! line=$(state_line sysctl "$1") || [ "$(part "$line" 4)" = "$2" ]; }

# change NAME NOW WANTED. Written down first: what is cut off here can still be undone.
change() {
    before=$2
    if ours_now "$1" "$2" && [ -n "$line" ]; then before=$(part "$line" 3); fi
    state_put sysctl "$1" "$before$tab$3"
    sysctl_write "$1" "$3" && return
    # Down as it is: as it was, or as the kernel made it.
    is=$(sysctl_read "$1")
    if [ "$is" = "$before" ]; then state_drop sysctl "$1"; else state_put sysctl "$1" "$before$tab$is"; fi
}

# Whether a file is not there, or is as this script made it.
ours() {
    [ ! -e "$root$1" ] || { line=$(state_line file "$1") && [ "$(part "$line" 3)" = "$(checksum "$root$1")" ]; }
}

# A file of our own, whole; never one that somebody else made or changed. The text is on standard input.
write_file() {
    text=$(cat)
    if [ -e "$root$1" ] && [ "$(cat "$root$1")" = "$text" ]; then
        echo "$1: as it should be"
        return
    fi
    if ! ours "$1"; then
        failed "$1: is there, and was made or changed by somebody else; left alone"
        return
    fi
    printf '%s\n' "$1:"
    printf '%s\n' "$text" | sed 's/^/    /'
    [ -n "$yes" ] || return 0
    make_folder "$(dirname "$1")"
    remember_folders
    state_put file "$1" "$(printf '%s\n' "$text" | cksum | tr ' ' -)"
    printf '%s\n' "$text" >"$root$1" || failures=$((failures + 1))
}

# What was set, as it stands in the state file: with --persist all, also by an earlier run without it; else what is kept
# already, and fs.nr_open.
kept_sysctls() {
    [ -f "$state" ] || return 0
    names=$(sed -n 's/^-\([^ ]*\) = .*/\1/p' "$root$conf" 2>/dev/null | tr '\n' ' ')
    awk -F "$tab" -v all="$persist" -v names=" fs.nr_open $names" \
        '$1 == "sysctl" && (all || index(names, " " $2 " ")) { print "-" $2 " = " $4 }' "$state"
}

keep_sysctls() {
    kept=$(kept_sysctls)
    [ -n "$kept" ] || [ -e "$root$conf" ] || return 0
    write_file "$conf" <<END
# Made by Pushline's tuning/apply.sh; undo.sh removes it. For: $many.
# Each line with its reason: tuning/apply.sh --connections N. A - before a name: no error where it does not exist.
$kept
END
}

# fs.nr_open after a restart.
nr_open_later() {
    if [ -z "$yes" ] && ours "$conf"; then
        echo "$nr_open"
        return
    fi
    later=$(sed -n 's/^-\{0,1\}fs\.nr_open *= *\([0-9]*\) *$/\1/p' "$root$conf" 2>/dev/null | tail -n 1)
    if [ -n "$later" ]; then
        echo "$later"
    elif line=$(state_line sysctl fs.nr_open); then
        part "$line" 3
    else
        sysctl_read fs.nr_open || echo "$nr_open_default"
    fi
}

visit_limit() {
    limit_read "$1"
    if at_least "$has" "$files"; then
        echo "$from: $has open files: enough"
        return
    fi
    later=$(nr_open_later)
    if ! at_least "$(smaller "$nr_open" "$later")" "$files"; then
        failed "$2: not written: $files open files are more than fs.nr_open ($nr_open now, $later after a restart)"
        return
    fi
    before=$failures
    write_file "$2" <<END
$("$1_text" "$2")
END
    [ -n "$yes" ] && [ "$failures" -eq "$before" ] || return 0
    limit_read "$1"
    at_least "$has" "$files" || failed "$from: says $said open files, and counts more than $2; left alone"
}

login_text() {
    cat <<END
# Made by Pushline's tuning/apply.sh; undo.sh removes it.
# Why: each connection is an open file. For: $many, and $files_reserve other files, of one process that
# $user starts in a session of its own (ssh, su -). See: ulimit -Hn in such a session.
END
    # Those of a user of an earlier run stay.
    grep -v "^#\|^$user " "$root$1" 2>/dev/null
    printf '%s\n' "$user soft nofile $files" "$user hard nofile $files"
}

unit_text() {
    cat <<END
# Made by Pushline's tuning/apply.sh; undo.sh removes it.
# Why: each connection is an open file. For: $many, and $files_reserve other files, of the service.
# See: systemctl show pushline -p LimitNOFILE; grep 'open files' /proc/\$(pidof pushline)/limits
[Service]
LimitNOFILE=$files
END
}

if [ -n "$yes" ]; then
    make_folder /var/lib/pushline
    remember_folders
    echo "# setting up for $many"
else
    echo "# what would be set up for $many; nothing is changed without --yes"
fi
each_setting
# What the limits below may be: in a dry run, what fs.nr_open would be.
raised=''
if ! nr_open=$(sysctl_read fs.nr_open); then
    nr_open=$nr_open_default
elif [ -z "$yes" ] && ! at_least "$nr_open" "$files"; then
    nr_open=$files raised=1
fi
[ -n "$persist" ] ||
    echo '# the sysctls end with the next restart of the machine (--persist keeps them); fs.nr_open, where raised, is kept for the limits'
if [ -n "$yes" ]; then
    keep_sysctls
elif [ -n "$persist$raised" ]; then
    if ! ours "$conf"; then
        failed "$conf: is there, and was made or changed by somebody else; left alone"
    elif [ -n "$persist" ]; then
        echo "$conf: would have the sysctls above"
    else
        echo "$conf: would have fs.nr_open"
    fi
fi
each_limit

needed_mib=$((connections * (kernel_bytes + user_bytes) / 1048576))
available_kib=$(meminfo_kib MemAvailable)
echo "# memory: $needed_mib MiB for $many that wait ($kernel_bytes bytes each in the kernel, $user_bytes in Pushline)"
if [ -n "$available_kib" ] && [ "$needed_mib" -gt $((available_kib / 1024)) ]; then
    echo "# NOTE: only $((available_kib / 1024)) MiB are available; no setting helps"
fi
if [ "$failures" -gt 0 ]; then
    echo "# $failures could not be changed" >&2
    exit 1
fi
[ -z "$yes" ] || echo '# done. Then: systemctl daemon-reload && systemctl restart pushline (listeners and limits are taken over at start)'
