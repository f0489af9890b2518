//! tuning/apply.sh, check.sh, undo.sh and network.sh: on machines made of files, and in a network namespace.

mod limits;
mod namespace;
mod network;
mod undo;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
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
        "/etc/sysctl.d/90-pushline.conf: would have the sysctls above\n",
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
    let fine = machine.run("check.sh", &["--connections", "1000000", "--user", "web"]).expect(0);
    assert!(!fine.out.contains("SHORT"), "{}", fine.out);
    machine.run("check.sh", &["--connections", "3000000", "--user", "web"]).expect(1);

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
        for flag in ["--help", "-h"] {
            let help = run(script, &[flag]).expect(0);
            assert!(help.out.contains(&format!("tuning/{script}")), "{}", help.out);
        }
    }
}

/// What is for proxies, and queues longer than all connections, is not for few.
#[test]
fn a_fresh_machine_is_enough_for_few() {
    let machine = Machine::new("few");
    machine.write("etc/security/limits.d/50-site.conf", "* - nofile 100000\n");
    machine.write("etc/systemd/system/pushline.service", "[Service]\nLimitNOFILE=100000\n");
    let before = machine.everything();
    for (connections, words) in [("1", "all as for 1 connection\n"), ("441", "all as for 441 connections\n")]
    {
        let fine = machine.run("check.sh", &["--connections", connections]).expect(0);
        assert!(fine.out.ends_with(words), "{}", fine.out);
        let shown = machine.run("apply.sh", &["--connections", connections]).expect(0);
        assert!(!shown.out.contains(" -> ") && !shown.out.contains(" 1 connections"), "{}", shown.out);
    }
    let short = machine.run("check.sh", &["--connections", "442"]).expect(1);
    for name in ["ip_local_port_range", "tcp_keepalive_time", "tcp_tw_reuse"] {
        assert!(short.out.contains(&format!("SHORT net.ipv4.{name}")), "{}", short.out);
    }
    assert_eq!(machine.everything(), before);
}

/// As an operator has them in a folder of programs, whatever root's umask is.
#[test]
fn through_a_link_and_with_a_strict_umask_files_are_for_all_to_read() {
    let machine = Machine::new("umask");
    let root = machine.0.to_str().expect("UTF-8");
    let bin = machine.0.join("usr/bin");
    fs::create_dir_all(&bin).expect("a folder");
    for script in ["apply.sh", "check.sh", "undo.sh"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(script);
        symlink(path, bin.join(script)).expect("a link");
    }
    let linked = |script: &str, args: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(bin.join(script)).args(["--root", root]);
        told(command.args(args).output().expect("the script runs"))
    };
    linked("apply.sh", &["--connections", "1000", "--yes", "--persist"]).expect(0);
    for path in [
        "etc/sysctl.d/90-pushline.conf",
        "etc/security/limits.d/90-pushline.conf",
        "etc/systemd/system/pushline.service.d/90-tuning.conf",
    ] {
        let mode = fs::metadata(machine.0.join(path)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{path}");
    }
    linked("check.sh", &["--connections", "1000"]).expect(0);
    linked("undo.sh", &["--yes"]).expect(0);
}
