# The limit on open files of a login and of the service, whoever set it: sourced by apply.sh and check.sh, after settings.sh
# (POSIX sh).
#
# Owns reading what pam_limits and systemd read, in their order. Reads the hard limit: Pushline raises its soft one to it.
# Does not know limits of groups of a directory service, nor systemd's own default: `pushline doctor` reads what a process
# has in the end.
#
# shellcheck shell=sh
# shellcheck disable=SC2034,SC2154 # settings.sh and the scripts have the others

# Calls `visit_limit KIND FILE` where this machine has such a folder: KIND is login or unit, FILE the one that is ours.
each_limit() {
    files=$((connections + files_reserve))
    [ ! -d "$root/etc/security/limits.d" ] || visit_limit login /etc/security/limits.d/90-pushline.conf
    [ ! -d "$root/etc/systemd/system" ] || visit_limit unit /etc/systemd/system/pushline.service.d/90-tuning.conf
}

# limit_read KIND: what is said, from which file, and how many files that makes now.
limit_read() {
    line=$("$1_limit")
    said=${line%%"$tab"*} from=${line#*"$tab"} has=0
    [ -z "$said" ] || has=$("$1_has" "$said")
}

# What pam_limits takes for $user: a line for the user counts more than one for a group, that more than one for all; of
# those that count the same, the last. Lines for all and for groups are not for root.
login_limit() {
    groups=''
    [ "$user" = root ] || groups=" $(login_groups | tr '\n' ' ')"
    for path in "$root/etc/security/limits.conf" "$root"/etc/security/limits.d/*.conf; do
        [ -f "$path" ] || continue
        awk -v user="$user" -v groups="$groups" -v path="${path#"$root"}" '
            { sub(/#.*/, "") }
            $3 == "nofile" && ($2 == "hard" || $2 == "-") {
                rank = $1 == user ? 3 : index(groups, " " $1 " ") ? 2 : $1 == "*" && user != "root" ? 1 : 0
                if (rank) print rank "\t" $4 "\t" path
            }' "$path"
    done | awk -F "$tab" '$1 >= rank { rank = $1; line = $2 "\t" $3 } END { if (rank) print line }'
}

# The groups of $user, each with the @ of limits.conf.
login_groups() {
    gid=$(awk -F : -v user="$user" '$1 == user { print $4 }' "$root/etc/passwd" 2>/dev/null)
    awk -F : -v user="$user" -v gid="$gid" '$3 == gid || index("," $4 ",", "," user ",") { print "@" $1 }' \
        "$root/etc/group" 2>/dev/null
}

# One above fs.nr_open is refused to pam_limits; without a bound it takes fs.nr_open.
login_has() {
    case $1 in
    unlimited | infinity | -1) echo "$nr_open" ;;
    *[!0-9]*) echo 0 ;;
    *) if at_least "$nr_open" "$1"; then echo "$1"; else echo 0; fi ;;
    esac
}

# What systemd takes for pushline.service: the last LimitNOFILE= of [Service], in the order of its files. Of SOFT:HARD, HARD.
unit_limit() {
    unit_files | while IFS= read -r path; do
        awk -v path="${path#"$root"}" '
            /^[ \t]*\[/ { service = /^[ \t]*\[Service\]/ }
            service && sub(/^[ \t]*LimitNOFILE[ \t]*=[ \t]*/, "") {
                sub(/^([0-9]+|infinity):/, "")
                sub(/[ \t]+$/, "")
                if (/^([0-9]+|infinity)$/) print $0 "\t" path
            }' "$path"
    done | tail -n 1
}

# The unit, and then its drop-ins by name; a file hides those of its name in a later folder (systemd.unit(5)).
unit_files() {
    for folder in $unit_folders; do
        [ ! -e "$root$folder/pushline.service" ] || echo "$root$folder/pushline.service"
    done | head -n 1
    for drop_ins in pushline.service.d service.d; do
        for folder in $unit_folders; do
            for path in "$root$folder/$drop_ins"/*.conf; do
                [ ! -e "$path" ] || printf '%s\t%s\n' "${path##*/}" "$path"
            done
        done
    done | awk -F "$tab" '!seen[$1]++' | sort | cut -f 2
}

unit_folders='/etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system /usr/lib/systemd/system /lib/systemd/system'

# In the place of one above fs.nr_open, or of none, systemd gives its own limit: fs.nr_open as it was when systemd started.
unit_has() {
    if [ "$1" != infinity ] && at_least "$nr_open" "$1"; then
        echo "$1"
    else
        own=$(awk '/^Max open files/ { print $5 }' "$root/proc/1/limits" 2>/dev/null)
        smaller "${own:-$nr_open}" "$nr_open"
    fi
}
