//! tuning/undo.sh where something has changed since tuning/apply.sh.

use std::fs;

use super::Machine;

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

/// A value is whole: one that somebody else has set since is theirs, and nothing is left to undo.
#[test]
fn sysctls_of_others_are_left_alone() {
    let machine = Machine::new("other-sysctls");
    machine.run("apply.sh", &["--connections", "1000000", "--yes"]).expect(0);
    machine.write("proc/sys/net/core/somaxconn", "20000\n");
    machine.write("proc/sys/net/ipv4/ip_local_port_range", "2000\t65000\n");
    // Ours, as the kernel writes it.
    machine.write("proc/sys/net/ipv4/tcp_mem", "500000\t750000\t1000000\n");
    let told = machine.run("undo.sh", &["--yes"]).expect(0);
    for line in [
        "net.core.somaxconn = 20000: was changed by somebody else (apply.sh: 4096 -> 10000); left alone\n",
        "net.ipv4.ip_local_port_range = 2000 65000: was changed by somebody else (apply.sh: 32768 60999 -> ",
        "net.ipv4.tcp_mem = 500000 750000 1000000 -> 190000 254000 380000\n",
    ] {
        assert!(told.out.contains(line), "{line} in {}", told.out);
    }
    assert_eq!(machine.sysctl("net.core.somaxconn"), "20000");
    assert_eq!(machine.sysctl("net.ipv4.ip_local_port_range"), "2000 65000");
    assert_eq!(machine.sysctl("net.ipv4.tcp_mem"), "190000 254000 380000");
    assert!(!machine.0.join("var").exists(), "finished");
}

/// What somebody else set between two runs is what was before the second.
#[test]
fn a_second_run_knows_what_was_set_in_between() {
    let machine = Machine::new("between");
    machine.run("apply.sh", &["--connections", "1000000", "--yes"]).expect(0);
    machine.write("proc/sys/net/core/somaxconn", "5000\n");
    machine.write("proc/sys/net/ipv4/tcp_max_syn_backlog", "99999\n");
    machine.run("apply.sh", &["--connections", "1000000", "--yes", "--persist"]).expect(0);
    let kept = machine.text("etc/sysctl.d/90-pushline.conf");
    assert!(kept.contains("-net.core.somaxconn = 10000\n") && !kept.contains("backlog"), "{kept}");
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert_eq!(machine.sysctl("net.core.somaxconn"), "5000");
    assert_eq!(machine.sysctl("net.ipv4.tcp_max_syn_backlog"), "99999");
    assert_eq!(machine.sysctl("fs.nr_open"), "1048576");
}

#[test]
fn a_sysctl_that_is_gone_needs_no_undoing() {
    let machine = Machine::new("gone");
    machine.write("proc/sys/net/netfilter/nf_conntrack_max", "1000\n");
    machine.run("apply.sh", &["--connections", "100000", "--yes"]).expect(0);
    fs::remove_dir_all(machine.0.join("proc/sys/net/netfilter")).expect("removed");
    let before = machine.everything();
    let gone = "net.netfilter.nf_conntrack_max: not here any more (its module is not loaded); nothing to bring back\n";
    let shown = machine.run("undo.sh", &[]).expect(0);
    assert!(shown.out.contains(gone), "{}", shown.out);
    assert_eq!(machine.everything(), before);
    let told = machine.run("undo.sh", &["--yes"]).expect(0);
    assert!(told.out.contains(gone) && told.err.is_empty(), "{}{}", told.out, told.err);
    assert!(!machine.0.join("var").exists(), "finished");
    assert_eq!(machine.sysctl("net.ipv4.tcp_keepalive_time"), "7200", "the rest is undone");
}
