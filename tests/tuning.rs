//! tuning/apply.sh, check.sh, undo.sh and network.sh: on machines made of files, and in a network namespace.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A machine made of files, removed when dropped.
struct Machine(PathBuf);

/// As Linux has them by default, on 16 GiB.
const SYSCTLS: &[(&str, &str)] = &[
    ("fs/nr_open", "1048576"),
    ("fs/file-max", "1600000"),
    ("net/core/somaxconn", "4096"),
    ("net/ipv4/tcp_max_syn_backlog", "2048"),
    ("net/ipv4/ip_local_port_range", "32768\t60999"),
    ("net/ipv4/tcp_mem", "190000\t254000\t380000"),
    ("net/ipv4/tcp_rmem", "4096\t131072\t6291456"),
    ("net/ipv4/tcp_wmem", "4096\t16384\t4194304"),
    ("net/ipv4/tcp_keepalive_time", "7200"),
    ("net/ipv4/tcp_keepalive_intvl", "75"),
    ("net/ipv4/tcp_keepalive_probes", "9"),
    ("net/ipv4/tcp_tw_reuse", "2"),
];

impl Machine {
    fn new(name: &str) -> Self {
        let machine = Self(
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("tuning-{name}-{}", std::process::id())),
        );
        let _ = fs::remove_dir_all(&machine.0);
        for (path, value) in SYSCTLS {
            machine.write(&format!("proc/sys/{path}"), &format!("{value}\n"));
        }
        machine.write("proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:   15728640 kB\n");
        for folder in ["etc/security/limits.d", "etc/systemd/system", "etc/sysctl.d"] {
            fs::create_dir_all(machine.0.join(folder)).expect("a folder");
        }
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("in a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    fn sysctl(&self, name: &str) -> String {
        self.text(&format!("proc/sys/{}", name.replace('.', "/"))).trim_end().replace('\t', " ")
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.0.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Everything: folders, and files with what is in them, values of sysctls as the kernel shows them.
    fn everything(&self) -> BTreeMap<PathBuf, Option<String>> {
        let (mut all, mut folders) = (BTreeMap::new(), vec![self.0.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path.clone());
                    all.insert(path, None);
                } else {
                    let text = fs::read_to_string(&path).expect("text").replace('\t', " ");
                    all.insert(path, Some(text));
                }
            }
        }
        all
    }

    fn run(&self, script: &str, args: &[&str]) -> Told {
        run(script, &[&["--root", self.0.to_str().expect("UTF-8")], args].concat())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Told {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Told {
    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self
    }
}

fn told(output: Output) -> Told {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Told { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn run(script: &str, args: &[&str]) -> Told {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(script);
    told(Command::new(script).args(args).output().expect("the script runs"))
}

#[test]
fn without_yes_nothing_changes() {
    let machine = Machine::new("dry");
    let before = machine.everything();
    let shown = machine.run("apply.sh", &["--connections", "1000000", "--persist"]).expect(0);
    assert_eq!(machine.everything(), before);
    for part in [
        "nothing is changed without --yes",
        "fs.nr_open = 1048576 -> 1065536\n    why: ",
        "net.core.somaxconn = 4096 -> 10000\n",
        "net.ipv4.tcp_rmem = 4096 131072 6291456: enough\n",
        "net.netfilter.nf_conntrack_max: not here",
        "/etc/systemd/system/pushline.service.d/90-tuning.conf:\n",
        "LimitNOFILE=1065536\n",
        "    for: 1000000 connections",
        "    see: ",
        "# memory: 4192 MiB for 1000000",
    ] {
        assert!(shown.out.contains(part), "{part:?} in {}", shown.out);
    }
    let undo = machine.run("undo.sh", &["--yes"]).expect(0);
    assert!(undo.out.contains("nothing to undo"), "{}", undo.out);
    assert_eq!(machine.everything(), before);
}

#[test]
fn what_is_applied_is_in_force_and_undone_exactly() {
    let machine = Machine::new("whole");
    let before = machine.everything();
    let short = machine.run("check.sh", &["--connections", "1000000"]).expect(1);
    assert!(
        short.out.contains("SHORT net.core.somaxconn = 4096, for 1000000 connections 10000\n"),
        "{}",
        short.out
    );
    assert!(
        short.out.contains("SHORT /etc/security/limits.d/90-pushline.conf: nothing said"),
        "{}",
        short.out
    );
    assert_eq!(machine.everything(), before, "checking changes nothing");

    machine.run("apply.sh", &["--connections", "1000000", "--yes", "--persist", "--user", "web"]).expect(0);
    for (name, want) in [
        ("fs.nr_open", "1065536"),
        ("fs.file-max", "1600000"),
        ("net.core.somaxconn", "10000"),
        ("net.ipv4.tcp_max_syn_backlog", "10000"),
        ("net.ipv4.ip_local_port_range", "10000 65535"),
        ("net.ipv4.tcp_mem", "500000 750000 1000000"),
        ("net.ipv4.tcp_rmem", "4096 131072 6291456"),
        ("net.ipv4.tcp_keepalive_time", "600"),
        ("net.ipv4.tcp_tw_reuse", "1"),
    ] {
        assert_eq!(machine.sysctl(name), want, "{name}");
    }
    let limits = machine.text("etc/security/limits.d/90-pushline.conf");
    assert!(limits.contains("web soft nofile 1065536\nweb hard nofile 1065536\n"), "{limits}");
    let unit = machine.text("etc/systemd/system/pushline.service.d/90-tuning.conf");
    assert!(unit.contains("[Service]\nLimitNOFILE=1065536\n"), "{unit}");
    let kept = machine.text("etc/sysctl.d/90-pushline.conf");
    assert!(kept.contains("-net.core.somaxconn = 10000\n") && !kept.contains("tcp_rmem"), "{kept}");
    let fine = machine.run("check.sh", &["--connections", "1000000"]).expect(0);
    assert!(!fine.out.contains("SHORT"), "{}", fine.out);
    machine.run("check.sh", &["--connections", "3000000"]).expect(1);

    // Again, for more, and for fewer: what was before the first stays known, nothing is lowered.
    machine.run("apply.sh", &["--connections", "3000000", "--yes"]).expect(0);
    assert_eq!(machine.sysctl("net.core.somaxconn"), "30000");
    assert_eq!(machine.sysctl("net.ipv4.tcp_mem"), "1048576 1572864 2097152", "half of the memory at most");
    machine.run("apply.sh", &["--connections", "1000", "--yes"]).expect(0);
    assert_eq!(machine.sysctl("net.core.somaxconn"), "30000");

    let applied = machine.everything();
    let shown = machine.run("undo.sh", &[]).expect(0);
    assert!(shown.out.contains("net.core.somaxconn = 30000 -> 4096\n"), "{}", shown.out);
    assert_eq!(machine.everything(), applied, "nothing is undone without --yes");
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert_eq!(machine.everything(), before);
    machine.run("undo.sh", &["--yes"]).expect(0);
}

#[test]
fn the_sysctls_are_kept_over_a_restart_only_when_asked_to() {
    let machine = Machine::new("persist");
    let before = machine.everything();
    machine.run("apply.sh", &["--connections", "1000000", "--yes"]).expect(0);
    assert!(!machine.0.join("etc/sysctl.d/90-pushline.conf").exists());
    // What an earlier run set is kept too.
    machine.run("apply.sh", &["--connections", "1000000", "--yes", "--persist"]).expect(0);
    assert!(machine.text("etc/sysctl.d/90-pushline.conf").contains("-fs.nr_open = 1065536\n"));
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert_eq!(machine.everything(), before);
}

#[test]
fn what_is_higher_stays() {
    let machine = Machine::new("higher");
    for (path, value) in [
        ("fs/nr_open", "2147483584"),
        ("fs/file-max", "18446744073709551615"),
        ("net/core/somaxconn", "65535"),
        ("net/ipv4/tcp_max_syn_backlog", "100000"),
        ("net/ipv4/ip_local_port_range", "1024\t65535"),
        ("net/ipv4/tcp_mem", "9000000\t9000000\t9000000"),
        ("net/ipv4/tcp_rmem", "8192\t262144\t33554432"),
        ("net/ipv4/tcp_wmem", "1024\t262144\t33554432"),
        ("net/ipv4/tcp_keepalive_time", "60"),
        ("net/netfilter/nf_conntrack_max", "1000"),
    ] {
        machine.write(&format!("proc/sys/{path}"), &format!("{value}\n"));
    }
    let before = machine.everything();
    machine.run("apply.sh", &["--connections", "100000", "--yes"]).expect(0);
    for name in ["fs.nr_open", "fs.file-max", "net.core.somaxconn", "net.ipv4.tcp_mem", "net.ipv4.tcp_rmem"] {
        let path = machine.0.join("proc/sys").join(name.replace('.', "/"));
        assert_eq!(
            Some(&machine.sysctl(name)),
            before[&path].as_deref().map(|text| text.trim_end().into()).as_ref()
        );
    }
    assert_eq!(machine.sysctl("net.ipv4.ip_local_port_range"), "1024 65535");
    assert_eq!(machine.sysctl("net.ipv4.tcp_keepalive_time"), "60", "sooner already");
    assert_eq!(machine.sysctl("net.ipv4.tcp_wmem"), "4096 262144 33554432", "each number by itself");
    assert_eq!(machine.sysctl("net.netfilter.nf_conntrack_max"), "190536", "where the module is loaded");
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert_eq!(machine.everything(), before);
}

#[test]
fn files_of_others_are_left_alone() {
    let machine = Machine::new("others");
    machine.write("etc/security/limits.d/90-pushline.conf", "pushline hard nofile 7\n");
    let refused = machine.run("apply.sh", &["--connections", "1000", "--yes"]).expect(1);
    assert!(refused.err.contains("/etc/security/limits.d/90-pushline.conf"), "{}", refused.err);
    assert_eq!(machine.text("etc/security/limits.d/90-pushline.conf"), "pushline hard nofile 7\n");
    // One of ours that somebody has changed since stays too, and stays written down.
    let unit = "etc/systemd/system/pushline.service.d/90-tuning.conf";
    machine.write(unit, "[Service]\nLimitNOFILE=9\n");
    let refused = machine.run("undo.sh", &["--yes"]).expect(1);
    assert!(refused.err.contains("90-tuning.conf"), "{}", refused.err);
    assert_eq!(machine.text(unit), "[Service]\nLimitNOFILE=9\n");
    assert_eq!(machine.sysctl("net.ipv4.tcp_keepalive_time"), "7200", "the rest is undone");
    fs::remove_file(machine.0.join(unit)).expect("removed");
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert!(!machine.0.join("var").exists());
}

#[test]
fn wrong_arguments_are_told_and_change_nothing() {
    let machine = Machine::new("wrong");
    let before = machine.everything();
    for (script, args, part) in [
        ("apply.sh", &["--yes"][..], "--connections N is needed"),
        ("apply.sh", &["--connections"], "--connections needs a value"),
        ("apply.sh", &["--connections", "0", "--yes"], "'0': must be a whole number from 1"),
        ("apply.sh", &["--connections", "-5", "--yes"], "'-5': must be a whole number"),
        ("apply.sh", &["--connections", "1e6", "--yes"], "'1e6': must be a whole number"),
        ("apply.sh", &["--connections", "010", "--yes"], "'010': must be a whole number"),
        ("apply.sh", &["--connections=", "--yes"], "'': must be a whole number"),
        ("apply.sh", &["--connections=100000001", "--yes"], "at most 100000000"),
        ("apply.sh", &["--connections", "99999999999999999999999", "--yes"], "at most 100000000"),
        ("apply.sh", &["--connections", "5", "--yes=1"], "--yes takes no value"),
        ("apply.sh", &["--connections", "5", "--force"], "unknown argument '--force'"),
        ("apply.sh", &["--connections", "5", "--user", "a b", "--yes"], "must be the name of a user"),
        ("check.sh", &[], "--connections N is needed"),
        ("check.sh", &["--connections", "5", "--yes"], "unknown argument '--yes'"),
        ("undo.sh", &["--connections", "5"], "unknown argument '--connections'"),
        ("undo.sh", &["yes"], "unknown argument 'yes'"),
        ("network.sh", &["--yes"], "unknown argument '--yes'"),
    ] {
        let refused = machine.run(script, args).expect(2);
        assert!(
            refused.err.contains(part) && refused.err.starts_with(script),
            "{script} {args:?}: {}",
            refused.err
        );
    }
    assert_eq!(machine.everything(), before);
    run("apply.sh", &["--root", "/nowhere", "--connections", "5"]).expect(2);
    for script in ["apply.sh", "check.sh", "undo.sh", "network.sh"] {
        let help = run(script, &["--help"]).expect(0);
        assert!(help.out.contains(&format!("tuning/{script}")), "{}", help.out);
    }
}

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

#[test]
fn network_advice_is_printed_and_nothing_else() {
    let machine = Machine::new("network");
    machine.write("sys/devices/system/cpu/online", "0-3,40\n");
    for queue in ["rx-0", "rx-1", "tx-0", "tx-1"] {
        machine.write(&format!("sys/class/net/eth7/queues/{queue}/placeholder"), "");
    }
    machine.write("sys/class/net/lo/queues/rx-0/placeholder", "");
    fs::create_dir_all(machine.0.join("sys/devices/virtio2")).expect("a folder");
    std::os::unix::fs::symlink("../../../devices/virtio2", machine.0.join("sys/class/net/eth7/device"))
        .expect("a link");
    machine.write(
        "proc/interrupts",
        "           CPU0       CPU1\n 37:  0  0 PCI-MSIX 0-edge  virtio2-config\n 38:  1  2 PCI-MSIX 1-edge  \
         virtio2-input.0\n 39:  1  2 PCI-MSIX 2-edge  virtio2-output.0\n 40:  1  2 PCI-MSIX 2-edge  virtio3-input.0\n",
    );
    let before = machine.everything();
    let advice = machine.run("network.sh", &[]).expect(0);
    assert_eq!(machine.everything(), before);
    let lines: Vec<&str> = advice.out.lines().filter(|line| !line.starts_with('#')).collect();
    let want = [
        "== eth7: 2 receive and 2 send queues, 5 cores",
        "ethtool -L eth7 combined 5",
        "ethtool -G eth7 rx 4096 tx 4096",
        "ethtool -C eth7 adaptive-rx on adaptive-tx on",
        "systemctl disable --now irqbalance",
        "echo 0 >/proc/irq/38/smp_affinity_list",
        "echo 1 >/proc/irq/39/smp_affinity_list",
        "sysctl -w net.core.rps_sock_flow_entries=65536",
        "echo 100,0000000f >/sys/class/net/eth7/queues/rx-0/rps_cpus",
        "echo 32768 >/sys/class/net/eth7/queues/rx-0/rps_flow_cnt",
        "echo 100,0000000f >/sys/class/net/eth7/queues/rx-1/rps_cpus",
        "echo 32768 >/sys/class/net/eth7/queues/rx-1/rps_flow_cnt",
        "echo 1 >/sys/class/net/eth7/queues/tx-0/xps_cpus",
        "echo 2 >/sys/class/net/eth7/queues/tx-1/xps_cpus",
    ];
    assert_eq!(lines, want);
    machine.run("network.sh", &["--interface", "eth9"]).expect(2);
    // This machine's own, whatever it has.
    run("network.sh", &[]).expect(0);
}
