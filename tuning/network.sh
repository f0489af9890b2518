#!/bin/sh
# Prints what would spread the work of network cards over the cores, with the reason for each line. Changes nothing.
#
#   tuning/network.sh [--interface NAME]    (default: every interface that has a device)
#
#   --root DIR   a machine made of files below DIR (a test) in the place of this one
#
# One worker is pinned to each core, and the kernel's half of a send or receive runs where the card's interrupt does: a card
# that interrupts one core makes that core the limit of the node. Exit code: 0; 2 for wrong arguments.
set -u

root='' interface=''

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    --interface | --root)
        [ $# -ge 2 ] || die "$1 needs a value"
        case $1 in
        --interface) interface=$2 ;;
        --root) root=${2%/} ;;
        esac
        shift 2
        ;;
    *) die "unknown argument '$1'; it takes --interface NAME, --root DIR, --help" ;;
    esac
done
net=$root/sys/class/net
[ -d "$net" ] || die "there is no $net"
[ -z "$interface" ] || [ -d "$net/$interface" ] || die "--interface '$interface': there is no such interface here"

# Numbers of the cores, from a list like 0-3,8.
cores=$(tr , '\n' <"$root/sys/devices/system/cpu/online" | awk -F - '{ for (n = $1; n <= $NF; n++) print n }')
core_count=$(printf '%s\n' "$cores" | wc -l)

# mask CORE...: as the kernel reads it, in groups of 32 bits.
mask() {
    printf '%s\n' "$@" | awk '
        { bit[$1] = 1; if ($1 > last) last = $1 }
        END {
            for (group = int(last / 32); group >= 0; group--) {
                for (digit = 7; digit >= 0; digit--) {
                    value = 0
                    for (n = 3; n >= 0; n--) value = 2 * value + bit[group * 32 + digit * 4 + n]
                    text = text sprintf("%x", value)
                }
                if (group > 0) text = text ","
            }
            sub(/^0+/, "", text)
            print text == "" ? "0" : text
        }'
}

nth_core() { printf '%s\n' "$cores" | sed -n "$(($1 % core_count + 1))p"; }

count() { find "$net/$1/queues/" -maxdepth 1 -name "$2-*" 2>/dev/null | wc -l; }

# Interrupts that /proc/interrupts has by the name of an interface, or of its virtio device (virtio0-input.0): "IRQ NAME",
# NAME without that (-TxRx-3, -input.0).
by_name() {
    device=$(basename "$(readlink "$net/$1/device" || echo none)")
    awk -v name="$1" -v device="$device" '
        { last = $NF; sub(/:/, "", $1) }
        match(last, "(^|-|@)" name "([-:.]|$)") {
            rest = substr(last, RSTART + RLENGTH - 1)
            print $1, last ~ name "$" ? "-" : rest
            next
        }
        device ~ /^virtio/ && last ~ "^" device "-(input|output)" { print $1, substr(last, length(device) + 1) }
    ' "$root/proc/interrupts" 2>/dev/null
}

# The same by the numbers that the device says, or else the one that it is on (virtio's PCI device), less those that are
# for no queue (mlx5_async0).
by_device() {
    folder=$net/$1/device/msi_irqs irqs=' '
    [ -d "$folder" ] || folder=$net/$1/device/../msi_irqs
    for path in "$folder"/*; do irqs="$irqs${path##*/} "; done
    awk -v irqs="$irqs" '
        { irq = $1; sub(/:/, "", irq) }
        index(irqs, " " irq " ") && $NF !~ /async|config|mgmnt|misc|ctrl|cmd/ { print irq, $NF }
    ' "$root/proc/interrupts" 2>/dev/null
}

# "IRQ QUEUE", by queue, of lines "IRQ NAME": the number at the end of the name, before the address of a device
# (mlx5_comp0@pci:0000:00:05.0). One without a number is for no queue (a link that changes) if others have one; if none has,
# they are counted.
queues_of() {
    awk '
        { sub(/@.*/, "", $2) }
        match($2, /[0-9]+$/) { print $1, substr($2, RSTART) + 0; numbered = 1; next }
        { others[count++] = $1 }
        END { if (!numbered) for (n = 0; n < count; n++) print others[n], n }
    ' | sort -s -n -k 2
}

spread_interrupts() {
    irqs=$(by_name "$1" | queues_of) found_by=''
    if [ -z "$irqs" ]; then
        irqs=$(by_device "$1" | queues_of)
        found_by="# none has the name of $1 in /proc/interrupts: these are the ones that /sys/class/net/$1/device says (msi_irqs); see there which queue each is for"
    fi
    if [ -n "$irqs" ]; then
        [ -z "$found_by" ] || echo "$found_by"
        echo '# the interrupts of queue n, receive and send, to core n, as XPS below (grep . /proc/irq/*/smp_affinity_list; watch them in /proc/interrupts); irqbalance would move them again'
        echo 'systemctl disable --now irqbalance'
        printf '%s\n' "$irqs" | while read -r irq queue; do
            echo "echo $(nth_core "$queue") >/proc/irq/$irq/smp_affinity_list"
        done
    elif [ $((rx + tx)) -gt 0 ] && [ -e "$net/$1/device" ]; then
        echo "# no interrupts of $1 were found. Look for its driver (ethtool -i $1) or its address (readlink /sys/class/net/$1/device) in /proc/interrupts; then, for those of queue n: echo n >/proc/irq/NUMBER/smp_affinity_list"
    fi
}

advise() {
    rx=$(count "$1" rx) tx=$(count "$1" tx)
    echo "== $1: $rx receive and $tx send queues, $core_count cores"
    if [ "$rx" -lt "$core_count" ]; then
        echo "# a queue for each core, if the card has so many (ethtool -l $1 tells); else RPS, below, spreads in software"
        echo "ethtool -L $1 combined $core_count"
    elif [ "$rx" -gt "$core_count" ]; then
        echo '# no more queues than cores: others only add interrupts'
        echo "ethtool -L $1 combined $core_count"
    fi
    echo '# longer rings, so that a burst of reconnects is not dropped while a core is busy (ethtool -g tells the most; ethtool -S, rx_missed or rx_no_buffer, whether it was needed)'
    echo "ethtool -G $1 rx 4096 tx 4096"
    echo '# fewer interrupts under load, none late when idle'
    echo "ethtool -C $1 adaptive-rx on adaptive-tx on"
    spread_interrupts "$1"
    if [ "$rx" -gt 0 ] && [ "$rx" -lt "$core_count" ]; then
        # shellcheck disable=SC2086 # a list of numbers
        all=$(mask $cores)
        echo '# fewer queues than cores: packets are spread in software (RPS), each to the core of its socket (RFS)'
        echo 'sysctl -w net.core.rps_sock_flow_entries=65536'
        n=0
        while [ "$n" -lt "$rx" ]; do
            echo "echo $all >/sys/class/net/$1/queues/rx-$n/rps_cpus"
            echo "echo $((65536 / rx)) >/sys/class/net/$1/queues/rx-$n/rps_flow_cnt"
            n=$((n + 1))
        done
    fi
    if [ "$tx" -gt 1 ]; then
        echo '# each core sends on a queue of its own (XPS): no lock between workers'
        n=0
        while [ "$n" -lt "$tx" ]; do
            echo "echo $(mask "$(nth_core "$n")") >/sys/class/net/$1/queues/tx-$n/xps_cpus"
            n=$((n + 1))
        done
    fi
}

echo '# Advice alone: nothing was changed. Each line ends with the next restart. Measure before and after: mpstat -P ALL 1 (%soft'
echo '# should be even), bench/run.'
found=''
for path in "$net"/*; do
    name=${path##*/}
    if [ "$name" = "$interface" ] || { [ -z "$interface" ] && [ -e "$path/device" ]; }; then
        found=1
        advise "$name"
    fi
done
[ -n "$found" ] || echo '# no interface here has a device: nothing to spread (--interface NAME for one without)'
