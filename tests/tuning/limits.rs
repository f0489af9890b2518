//! The limit on open files, as tuning/apply.sh writes it and tuning/check.sh reads it.

use std::fs;
use std::os::unix::fs::symlink;

use super::Machine;

const LOGIN: &str = "etc/security/limits.d/90-pushline.conf";
const UNIT: &str = "etc/systemd/system/pushline.service.d/90-tuning.conf";
const CONF: &str = "etc/sysctl.d/90-pushline.conf";
const SHIPPED: &str = include_str!("../../tuning/pushline.service");

#[test]
fn the_sysctls_are_kept_over_a_restart_only_when_asked_to() {
    let machine = Machine::new("persist");
    let before = machine.everything();
    machine.run("apply.sh", &["--connections", "100000", "--yes"]).expect(0);
    assert!(!machine.0.join("etc/sysctl.d/90-pushline.conf").exists());
    // What an earlier run set is kept too.
    machine.run("apply.sh", &["--connections", "1000000", "--yes", "--persist"]).expect(0);
    assert!(machine.text("etc/sysctl.d/90-pushline.conf").contains("-fs.nr_open = 1065536\n"));
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert_eq!(machine.everything(), before);
}

#[test]
fn a_limit_is_not_lowered() {
    let machine = Machine::new("not-lowered");
    let before = machine.everything();
    machine.run("apply.sh", &["--connections", "3000000", "--yes"]).expect(0);
    let (login, unit) = (machine.text(LOGIN), machine.text(UNIT));
    assert!(unit.ends_with("\nLimitNOFILE=3065536\n") && login.ends_with("hard nofile 3065536\n"), "{login}");
    let fewer = machine.run("apply.sh", &["--connections", "1000", "--yes"]).expect(0);
    assert!(fewer.out.contains(&format!("/{UNIT}: 3065536 open files: enough\n")), "{}", fewer.out);
    assert_eq!((machine.text(LOGIN), machine.text(UNIT)), (login, unit));
    machine.run("check.sh", &["--connections", "3000000"]).expect(0);
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert_eq!(machine.everything(), before);

    // Of others: the unit that comes with Pushline, whose limit is above fs.nr_open here.
    machine.write("etc/systemd/system/pushline.service", SHIPPED);
    machine.write("etc/security/limits.conf", "* hard nofile 1000000\n");
    machine.run("check.sh", &["--connections", "100000"]).expect(1);
    machine.run("apply.sh", &["--connections", "100000", "--yes"]).expect(0);
    machine.run("check.sh", &["--connections", "100000"]).expect(0);
    assert!(!machine.0.join(LOGIN).exists() && !machine.0.join(UNIT).exists());
    machine.run("apply.sh", &["--connections", "1000000", "--yes"]).expect(0);
    assert!(machine.0.join(LOGIN).exists() && !machine.0.join(UNIT).exists());
    machine.run("apply.sh", &["--connections", "2000000", "--yes"]).expect(0);
    assert!(machine.text(UNIT).contains("\nLimitNOFILE=2065536\n"));
    machine.run("check.sh", &["--connections", "2000000"]).expect(0);
}

/// A name, files, and what the line about the limit has: fine, or short.
type Case<'a> = (&'a str, &'a [(&'a str, String)], Result<&'a str, &'a str>);

/// In the order of systemd and pam_limits, in all forms that they take; 66536 are needed.
#[test]
fn the_limit_that_counts_is_found() {
    const ETC: &str = "etc/systemd/system/pushline.service";
    const LIB: &str = "usr/lib/systemd/system/pushline.service";
    let unit = |limit: &str| format!("[Unit]\nLimitNOFILE=7\n[Service]\n{limit}\n");
    let cases: &[Case] = &[
        ("no unit", &[], Err("90-tuning.conf: nothing said")),
        ("a unit that says nothing", &[(ETC, unit("Type=notify"))], Err("90-tuning.conf: nothing said")),
        ("the unit", &[(ETC, unit("LimitNOFILE=66536"))], Ok("service: 66536 ")),
        ("one too few", &[(ETC, unit("LimitNOFILE = 66535"))], Err("service: 66535 ")),
        ("soft and hard", &[(ETC, unit("LimitNOFILE=1024:524288"))], Ok("service: 524288 ")),
        ("hard is short", &[(ETC, unit("LimitNOFILE=1024:4096"))], Err("service: 4096 ")),
        ("no bound", &[(ETC, unit("LimitNOFILE=infinity"))], Ok("service: 1048576 ")),
        ("no hard bound", &[(ETC, unit("LimitNOFILE=1024:infinity"))], Ok("service: 1048576 ")),
        (
            "no bound but systemd's own",
            &[
                (ETC, unit("LimitNOFILE=infinity")),
                ("proc/1/limits", "Max open files            1024    4096      files\n".into()),
            ],
            Err("infinity open files for pushline.service, in effect 4096 (fs.nr_open is 1048576)"),
        ),
        ("over fs.nr_open", &[(ETC, unit("LimitNOFILE=9999999"))], Ok("service: 1048576 ")),
        (
            "the package's",
            &[(LIB, unit("LimitNOFILE=70000"))],
            Ok("usr/lib/systemd/system/pushline.service: 70000 "),
        ),
        ("hidden by the site's", &[(LIB, unit("LimitNOFILE=70000")), (ETC, unit(""))], Err("nothing said")),
        (
            "a drop-in of the site",
            &[
                (ETC, unit("LimitNOFILE=1024")),
                ("etc/systemd/system/pushline.service.d/10-files.conf", unit("LimitNOFILE=90000")),
            ],
            Ok("10-files.conf: 90000 "),
        ),
        (
            "the last drop-in by name, in any folder",
            &[
                ("etc/systemd/system/pushline.service.d/10-files.conf", unit("LimitNOFILE=90000")),
                (
                    "run/systemd/system/pushline.service.d/99-less.conf",
                    unit("LimitNOFILE=infinity\nLimitNOFILE=3"),
                ),
            ],
            Err("99-less.conf: 3 "),
        ),
        (
            "a drop-in for all services",
            &[("etc/systemd/system/service.d/50-all.conf", unit("LimitNOFILE=90000"))],
            Ok("50-all.conf: 90000 "),
        ),
        ("a comment", &[(ETC, unit("#LimitNOFILE=90000"))], Err("nothing said")),
    ];
    for (name, files, want) in cases {
        let machine = Machine::new("unit-limit");
        fs::remove_dir_all(machine.0.join("etc/security")).expect("removed");
        files.iter().for_each(|(path, text)| machine.write(path, text));
        let told = machine.run("check.sh", &["--connections", "1000"]);
        expect_line(name, &told.out, "pushline.service", *want);
        assert!(told.err.is_empty(), "{name}: {}", told.err);
    }

    let cases = [
        ("for all", "* hard nofile 70000", "web", Ok("50-site.conf: 70000 ")),
        ("both", "web - nofile 70000", "web", Ok("50-site.conf: 70000 ")),
        ("soft alone", "web soft nofile 70000", "web", Err("90-pushline.conf: nothing said")),
        ("of somebody else", "app hard nofile 70000", "web", Err("90-pushline.conf: nothing said")),
        ("commented out", "# web hard nofile 70000", "web", Err("nothing said")),
        ("the last", "web hard nofile 70000\nweb hard nofile 4", "web", Err("50-site.conf: 4 ")),
        ("the user before all", "web hard nofile 70000 # why\n* hard nofile 4", "web", Ok(": 70000 ")),
        ("a group before all", "@www - nofile 70000\n* - nofile 4", "web", Ok(": 70000 ")),
        ("another group", "@adm - nofile 70000", "web", Err("nothing said")),
        ("the first group", "@staff - nofile 70000", "web", Ok(": 70000 ")),
        ("all but root", "* - nofile 70000", "root", Err("nothing said")),
        ("no bound", "web - nofile unlimited", "web", Ok(": 1048576 ")),
        (
            "over fs.nr_open",
            "web - nofile 1048577",
            "web",
            Err(": 1048577 open files for user web, in effect 0 "),
        ),
    ];
    for (name, text, user, want) in cases {
        let machine = Machine::new("login-limit");
        fs::remove_dir_all(machine.0.join("etc/systemd")).expect("removed");
        machine.write("etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:7:50::/:/bin/sh\n");
        machine.write("etc/group", "www:x:33:app,web\nstaff:x:50:\nadm:x:4:website\n");
        machine.write("etc/security/limits.d/50-site.conf", &format!("{text}\n"));
        let told = machine.run("check.sh", &["--connections", "1000", "--user", user]);
        expect_line(name, &told.out, &format!("user {user}"), want);
    }
}

#[track_caller]
fn expect_line(name: &str, out: &str, whose: &str, want: Result<&str, &str>) {
    let line = out.lines().find(|line| line.contains(&format!("for {whose}"))).unwrap_or_default();
    let (level, part) = want.map_or_else(|part| ("SHORT ", part), |part| ("ok ", part));
    assert!(line.starts_with(level) && line.contains(part), "{name}: {want:?} in {out}");
}

#[test]
fn a_limit_that_counts_more_than_ours_is_told() {
    let machine = Machine::new("counts-more");
    machine.write("etc/systemd/system/pushline.service.d/99-site.conf", "[Service]\nLimitNOFILE=1024\n");
    let told = machine.run("apply.sh", &["--connections", "1000", "--yes"]).expect(1);
    assert!(told.err.contains("99-site.conf: says 1024 open files, and counts more than"), "{}", told.err);
    machine.run("check.sh", &["--connections", "1000"]).expect(1);
}

/// A limit is a user's: one of them says nothing of another, and stays when another comes.
#[test]
fn each_user_has_a_limit() {
    let machine = Machine::new("users");
    machine.run("apply.sh", &["--connections", "1000", "--yes", "--user", "web"]).expect(0);
    machine.run("check.sh", &["--connections", "1000", "--user", "web"]).expect(0);
    let other = machine.run("check.sh", &["--connections", "1000", "--user", "app"]).expect(1);
    assert!(other.out.contains("90-pushline.conf: nothing said for user app"), "{}", other.out);
    machine.run("apply.sh", &["--connections", "1000", "--yes", "--user", "app"]).expect(0);
    for user in ["web", "app"] {
        machine.run("check.sh", &["--connections", "1000", "--user", user]).expect(0);
    }
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert!(!machine.0.join(LOGIN).exists());
}

/// The files with the limit stay over a restart: what they need does too.
#[test]
fn nr_open_is_kept_as_long_as_the_limit_is() {
    let machine = Machine::new("lasting");
    let before = machine.everything();
    let shown = machine.run("apply.sh", &["--connections", "1000000"]).expect(0);
    assert!(shown.out.contains(&format!("\n/{CONF}: would have fs.nr_open\n")), "{}", shown.out);
    assert!(shown.out.contains("fs.nr_open, where raised, is kept for the limits\n"), "{}", shown.out);
    assert_eq!(machine.everything(), before);
    let fewer = machine.run("apply.sh", &["--connections", "100000"]).expect(0);
    assert!(!fewer.out.contains(CONF), "{}", fewer.out);
    machine.run("apply.sh", &["--connections", "1000000", "--yes"]).expect(0);
    let settings = |conf: String| conf.lines().filter(|line| line.starts_with('-')).count();
    let kept = machine.text(CONF);
    assert!(kept.contains("\n-fs.nr_open = 1065536\n") && settings(kept.clone()) == 1, "{kept}");
    // What --persist keeps stays kept.
    machine.run("apply.sh", &["--connections", "1000000", "--yes", "--persist"]).expect(0);
    let all = settings(machine.text(CONF));
    assert!(all > 5);
    machine.run("apply.sh", &["--connections", "2000000", "--yes"]).expect(0);
    let kept = machine.text(CONF);
    assert!(kept.contains("\n-fs.nr_open = 2065536\n") && kept.contains("\n-net.core.somaxconn = 20000\n"));
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert_eq!(machine.everything(), before);
}

#[test]
fn no_limit_is_written_that_could_not_be_given() {
    // A sysctl of 65536 that not even root can write.
    let machine = Machine::new("nr-open");
    let nr_open = machine.0.join("proc/sys/fs/nr_open");
    fs::remove_file(&nr_open).expect("removed");
    symlink("/proc/sys/kernel/ngroups_max", &nr_open).expect("a link");
    let told = machine.run("apply.sh", &["--connections", "1000", "--yes", "--persist"]).expect(1);
    for path in [LOGIN, UNIT] {
        let line = format!(
            "FAILED /{path}: not written: 66536 open files are more than fs.nr_open (65536 now, 65536 after a restart)\n"
        );
        assert!(told.err.contains(&line), "{}", told.err);
        assert!(!machine.0.join(path).exists());
    }
    assert!(!machine.text(CONF).contains("nr_open"));
    machine.run("undo.sh", &["--yes"]).expect(0);

    // One that cannot be kept.
    let machine = Machine::new("nr-open-later");
    machine.write(CONF, "vm.swappiness = 1\n");
    let before = machine.everything();
    for args in [&["--connections", "1000000"][..], &["--connections", "1000000", "--yes"]] {
        let told = machine.run("apply.sh", args).expect(1);
        assert!(told.err.contains("fs.nr_open (1065536 now, 1048576 after a restart)"), "{}", told.err);
        assert!(told.err.contains(&format!("FAILED /{CONF}: is there")), "{}", told.err);
        assert!(!machine.0.join(LOGIN).exists() && !machine.0.join(UNIT).exists());
    }
    machine.run("undo.sh", &["--yes"]).expect(0);
    assert_eq!(machine.everything(), before);

    // An image, of which no sysctl is known.
    let machine = Machine::new("image");
    fs::remove_dir_all(machine.0.join("proc")).expect("removed");
    machine.run("apply.sh", &["--connections", "1000000", "--yes"]).expect(1);
    assert!(!machine.0.join(UNIT).exists());
    machine.run("apply.sh", &["--connections", "900000", "--yes"]).expect(0);
    assert!(machine.text(UNIT).contains("\nLimitNOFILE=965536\n"));
}
