# What a machine is set to for a number of connections: sourced by apply.sh, check.sh and undo.sh (POSIX sh).
#
# Owns the table of settings, each with its reason, the state file, and reading and writing sysctls. The three scripts
# own what is done with it, limits.sh the limit on open files. Never lowers a capacity that is already higher.
#
# shellcheck shell=sh
# shellcheck disable=SC2034 # some variables are read by one of the three alone
set -u
# Files that are made are for all to read, whatever root's umask is. Names are sorted and matched as the kernel, PAM and
# systemd do.
umask 022
export LC_ALL=C

connections='' yes='' persist='' root='' user=pushline failures=0
tab=$(printf '\t')

# Measured (bench/RESULTS.md): a waiting connection in the kernel, and in Pushline.
kernel_bytes=4096
user_bytes=300
connections_max=100000000
# Descriptors that are no connections: 64 for each worker, of which there are 1,024 at most.
files_reserve=65536
# fs.nr_open, where a machine does not say it.
nr_open_default=1048576
# Ports that a connection from this machine may need: one that ends every second leaves 60 behind it that wait.
ports_each=64

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 2
}

# arguments ACCEPTED "$@": reads the options, of which ACCEPTED lists those that this script has.
arguments() {
    accepted=$1
    shift
    while [ $# -gt 0 ]; do
        case " $accepted -h " in
        *" ${1%%=*} "*) ;;
        *) die "unknown argument '$1'; it takes $accepted (--help tells more)" ;;
        esac
        case $1 in
        -h | --help)
            sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        --yes) yes=1 ;;
        --persist) persist=1 ;;
        --connections=* | --root=* | --user=*) option_value "${1%%=*}" "${1#*=}" ;;
        --connections | --root | --user)
            [ $# -ge 2 ] || die "$1 needs a value"
            option_value "$1" "$2"
            shift
            ;;
        *) die "'$1': ${1%%=*} takes no value" ;;
        esac
        shift
    done
    case $accepted in
    *--connections*) [ -n "$connections" ] || die 'how many? --connections N is needed, like --connections 100000' ;;
    esac
    many="$connections connections"
    [ "$connections" != 1 ] || many='1 connection'
    state=$root/var/lib/pushline/tuning.state
}

option_value() {
    case $1 in
    --connections)
        case $2 in
        '' | *[!0-9]* | 0*) die "--connections '$2': must be a whole number from 1 to $connections_max, in digits alone" ;;
        esac
        at_least "$connections_max" "$2" || die "--connections $2: must be at most $connections_max"
        connections=$2
        ;;
    --root)
        [ -d "$2" ] || die "--root '$2': is no folder"
        root=${2%/}
        ;;
    --user)
        case $2 in
        '' | *[!A-Za-z0-9_-]*) die "--user '$2': must be the name of a user" ;;
        esac
        user=$2
        ;;
    esac
}

# Changing the real machine is for root.
need_root() {
    [ -n "$root" ] || [ "$(id -u)" -eq 0 ] || die 'must be run by root to change anything (without --yes it only shows)'
}

# Whether $1 >= $2. Some kernels say 2^64 - 1, more than a shell counts to.
at_least() {
    [ ${#1} -gt 18 ] || { [ ${#2} -le 18 ] && [ "$1" -ge "$2" ]; }
}

larger() { if at_least "$1" "$2"; then echo "$1"; else echo "$2"; fi; }
smaller() { if at_least "$1" "$2"; then echo "$2"; else echo "$1"; fi; }

sysctl_file() { printf '%s/proc/sys/%s' "$root" "$(printf %s "$1" | tr . /)"; }

# The value of a sysctl, with single spaces; fails where this kernel or namespace does not have it.
sysctl_read() {
    value_file=$(sysctl_file "$1")
    [ -r "$value_file" ] || return 1
    tr -s '\t ' ' ' <"$value_file"
}

# sysctl_write NAME VALUE: the kernel's own word when it refuses.
sysctl_write() {
    refused=$({ printf '%s\n' "$2" >"$(sysctl_file "$1")"; } 2>&1) || {
        echo "FAILED $1 = $2: ${refused##*: } (in a container or namespace, set it on the host)" >&2
        failures=$((failures + 1))
        return 1
    }
    got=$(sysctl_read "$1")
    [ "$got" = "$2" ] || {
        echo "FAILED $1 = $2: the kernel made it $got" >&2
        failures=$((failures + 1))
        return 1
    }
}

meminfo_kib() { awk -v name="$1:" '$1 == name { print $2 }' "$root/proc/meminfo" 2>/dev/null; }

# Calls `visit NAME NOW WANTED WHY FOR SEE` for each setting. NOW is empty where there is no such thing here; WANTED is
# NOW where that is enough already.
each_setting() {
    files=$((connections + files_reserve))
    # No longer than all connections.
    queue=$(smaller "$connections" "$(larger 4096 "$(smaller 65535 $((connections / 100)))")")
    proxy_settings=needed
    ! ports_suffice || proxy_settings=''

    setting fs.nr_open floor "$files" \
        'the most open files that a process can be given; each connection is one' \
        "$many and $files_reserve other files" 'sysctl fs.nr_open; pushline doctor'
    setting fs.file-max floor $((connections + 4 * files_reserve)) \
        'open files of the whole machine' "$many and $((4 * files_reserve)) other files" 'cat /proc/sys/fs/file-nr'
    setting net.core.somaxconn floor "$queue" \
        "connections that wait to be accepted, in one worker's queue: a hundredth of all, when they come back within 10 s and the worker looks away for 0.1 s; a listener takes it over when it starts" \
        "$many that come back at once" 'ss -ltn (Send-Q); nstat -az TcpExtListenOverflows stays the same'
    setting net.ipv4.tcp_max_syn_backlog floor "$queue" \
        'half-open connections, as many as may wait to be accepted; without tcp_syncookies more are dropped' \
        "$many that come back at once" 'nstat -az TcpExtTCPReqQFullDrop stays the same'
    setting net.ipv4.ip_local_port_range "${proxy_settings:+range}" '10000 65535' \
        'ports for connections FROM this machine, such as those of a proxy to Pushline: one for each, for one source address; clients elsewhere need none. From 10000: the ports of common services stay out' \
        '55536 connections from each address of a proxy on this machine' 'ss -s on the proxy; pushline doctor'
    setting net.ipv4.tcp_mem floors "$(tcp_mem)" \
        'pages for the buffers of all sockets: a message on its way to all takes up to one for each; at most half of the memory' \
        "$many that a message is on its way to" 'grep TCP: /proc/net/sockstat (mem); nstat -az TcpExtTCPMemoryPressures'
    setting net.ipv4.tcp_rmem floors '4096 131072 6291456' \
        'receive buffers, Linux'"'"'s defaults (min, at first, max): a publish of 64 KiB arrives without waiting; an idle socket uses none' \
        'any number of connections' 'ss -tmi (rb)'
    setting net.ipv4.tcp_wmem floors '4096 16384 4194304' \
        'send buffers, Linux'"'"'s defaults: a reader that catches up is sent 1 MiB of history without waiting; slow.kernel_bytes bounds the slow ones' \
        'any number of connections' 'ss -tmi (tb)'
    setting net.ipv4.tcp_keepalive_time "${proxy_settings:+ceiling}" 600 \
        'seconds until the peer of a silent connection is asked whether it lives, where a program asks for that, as proxies do; Pushline pings by itself' \
        'any number of connections through a proxy on this machine' 'ss -to (timer:keepalive)'
    setting net.ipv4.tcp_keepalive_intvl "${proxy_settings:+ceiling}" 30 'seconds between such questions' \
        'any number of connections through a proxy on this machine' 'ss -to'
    setting net.ipv4.tcp_keepalive_probes "${proxy_settings:+ceiling}" 5 'questions without an answer until the peer is taken for dead' \
        'any number of connections through a proxy on this machine' 'ss -to'
    setting net.ipv4.tcp_tw_reuse "${proxy_settings:+exact}" 1 \
        'a proxy on this machine may use the port of a connection that just ended; 2, the default, is for loopback alone, and a proxy in a container is not there' \
        'any number of short polls through a proxy on this machine' 'ss -s (timewait)'
    setting net.netfilter.nf_conntrack_max floor $((connections + connections / 4 + 65536)) \
        'connections that the firewall tracks, where a rule asks for it: each is one, and those that just ended' \
        "$many, a quarter more that just ended, and 65536 others" \
        'sysctl net.netfilter.nf_conntrack_count; dmesg has no "nf_conntrack: table full"'
}

# Whether the ports that this machine's proxy has now suffice, whatever its connections do: then neither more ports nor
# sooner ends are needed.
ports_suffice() {
    ports=$(sysctl_read net.ipv4.ip_local_port_range) && at_least $((${ports#* } - ${ports% *} + 1)) $((connections * ports_each))
}

# setting NAME RULE VALUE WHY FOR SEE. Without a rule, what is there is enough.
setting() {
    if ! now=$(sysctl_read "$1"); then
        visit "$1" '' '' "$4" "$5" "$6"
        return
    fi
    case $2 in
    '') wanted=$now ;;
    floor) wanted=$(larger "$now" "$3") ;;
    ceiling) wanted=$(smaller "$now" "$3") ;;
    exact) wanted=$3 ;;
    floors) wanted=$(fieldwise larger "$now" "$3") ;;
    range) wanted="$(smaller "${now% *}" "${3% *}") $(larger "${now#* }" "${3#* }")" ;;
    esac
    visit "$1" "$now" "$wanted" "$4" "$5" "$6"
}

# fieldwise CHOOSE 'A B C' 'X Y Z': the choice of each pair.
fieldwise() {
    choose=$1 left=$2 chosen=''
    for right in $3; do
        chosen="$chosen $("$choose" "${left%% *}" "$right")"
        left=${left#* }
    done
    echo "${chosen# }"
}

# tcp_mem for all connections: low, pressure, high, in pages.
tcp_mem() {
    page_kib=$(($(getconf PAGESIZE 2>/dev/null || echo 4096) / 1024))
    memory_kib=$(meminfo_kib MemTotal)
    pages=$connections
    [ -z "$memory_kib" ] || pages=$(smaller "$pages" $((memory_kib / 2 / page_kib)))
    echo "$((pages / 2)) $((pages * 3 / 4)) $pages"
}

# The line of the state file of a kind and name, if there is one.
state_line() {
    [ -f "$state" ] || return 1
    awk -F "$tab" -v kind="$1" -v name="$2" '$1 == kind && $2 == name { print; found = 1; exit } END { exit !found }' "$state"
}

# state_put KIND NAME REST: in the place of that line, or at the end. Renamed into place, so that it is whole at any time;
# nothing goes on without it.
state_put() {
    {
        if [ -f "$state" ]; then
            awk -F "$tab" -v kind="$1" -v name="$2" '!($1 == kind && $2 == name)' "$state" || exit 1
        else
            echo '# What tuning/apply.sh changed, and what was before: undo.sh reads it.'
        fi
        printf '%s\t%s\t%s\n' "$1" "$2" "$3" || exit 1
    } >"$state.new" && mv "$state.new" "$state" || exit 1
}

state_drop() {
    awk -F "$tab" -v kind="$1" -v name="$2" '!($1 == kind && $2 == name)' "$state" >"$state.new" && mv "$state.new" "$state"
}

# The third and later parts of a line of the state file, by number.
part() { printf '%s\n' "$1" | cut -f "$2"; }

checksum() { cksum <"$1" | tr ' ' -; }
