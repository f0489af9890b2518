//! The scripts on a real kernel: in a network namespace.

use std::path::Path;
use std::process::Command;

use super::told;

/// The kernel's own sysctls, in a network namespace; those of the whole machine (fs) are covered by files, and folders
/// that are written to by empty ones.
const IN_NAMESPACE: &str = r#"
set -e
mount -t tmpfs none /var
mkdir /var/cover
# Debian's awk is a link through it.
if [ -d /etc/alternatives ]; then cp -a /etc/alternatives /var/cover; fi
mount -t tmpfs none /etc
if [ -d /var/cover/alternatives ]; then mv /var/cover/alternatives /etc; fi
mkdir -p /etc/security/limits.d /etc/systemd/system /etc/sysctl.d
for name in fs/nr_open fs/file-max net/netfilter/nf_conntrack_max; do
    [ -e "/proc/sys/$name" ] || continue
    echo 1000 >"/var/cover/${name##*/}"
    mount --bind "/var/cover/${name##*/}" "/proc/sys/$name"
done
echo 128 >/proc/sys/net/core/somaxconn
echo '4096 16384 65536' >/proc/sys/net/ipv4/tcp_wmem
state() {
    for name in fs/nr_open fs/file-max net/core/somaxconn net/ipv4/tcp_max_syn_backlog net/ipv4/ip_local_port_range \
        net/ipv4/tcp_rmem net/ipv4/tcp_wmem net/ipv4/tcp_keepalive_time net/ipv4/tcp_tw_reuse; do
        echo "$1 $name $(tr -s '\t' ' ' <"/proc/sys/$name")"
    done
    echo "$1 files $(find /etc /var -path /etc/alternatives -prune -o -path /var/cover -prune -o -print | sort | tr '\n' ' ')"
}
run() {
    code=0
    "$@" >&2 || code=$?
    echo "$1 ${2:-} $code"
}
cd "$1"
state before
run ./check.sh --connections 500000
run ./apply.sh --connections 500000
state dry
run ./apply.sh --connections 500000 --yes --persist
state applied
run ./check.sh --connections 500000
# Something else may be short here: the exit code is not asked for.
"$2" doctor --connections 500000 --json >/var/cover/doctor || true
tr '{' '\n' </var/cover/doctor | grep 'core.somaxconn' || true
run ./undo.sh --yes
state after
run ./check.sh --connections 500000
"#;

#[test]
fn in_a_namespace_the_kernel_takes_all_of_it_and_gives_it_back() {
    let tuning = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning");
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--mount", "sh", "-c", IN_NAMESPACE, "sh"]).arg(tuning);
    command.arg(env!("CARGO_BIN_EXE_pushline")).env_remove("PUSHLINE_BIN").env_remove("PUSHLINE_DRIVER");
    let told = told(command.output().expect("unshare runs")).expect(0);
    let state = |when: &str| -> Vec<&str> {
        told.out.lines().filter_map(|line| line.strip_prefix(when)?.strip_prefix(' ')).collect()
    };
    let before = state("before");
    assert!(before.contains(&"net/core/somaxconn 128") && before.len() == 10, "{}{}", told.out, told.err);
    assert_eq!(state("dry"), before);
    let applied = state("applied");
    for line in [
        "fs/nr_open 565536",
        "fs/file-max 762144",
        "net/core/somaxconn 5000",
        "net/ipv4/tcp_max_syn_backlog 5000",
        "net/ipv4/ip_local_port_range 10000 65535",
        "net/ipv4/tcp_wmem 4096 16384 4194304",
        "net/ipv4/tcp_keepalive_time 600",
        "net/ipv4/tcp_tw_reuse 1",
    ] {
        assert!(applied.contains(&line), "{line} in {applied:#?}\n{}", told.err);
    }
    assert!(
        applied.last().is_some_and(|files| files.contains("/etc/sysctl.d/90-pushline.conf")),
        "{applied:#?}"
    );
    assert_eq!(state("after"), before, "{}", told.err);
    let codes: Vec<&str> = told.out.lines().filter(|line| line.starts_with("./")).collect();
    let want = [
        "./check.sh --connections 1",
        "./apply.sh --connections 0",
        "./apply.sh --connections 0",
        "./check.sh --connections 0",
        "./undo.sh --yes 0",
        "./check.sh --connections 1",
    ];
    assert_eq!(codes, want, "{}", told.err);
    assert!(
        told.out.contains(r#""name":"net.core.somaxconn","level":"ok""#),
        "the doctor agrees: {}",
        told.out
    );
}
