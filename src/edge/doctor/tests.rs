//! Invented machines, and what is said of them.

use super::*;
use crate::edge::machine::Cgroup;

const MIB: usize = 1 << 20;

/// A machine on which a million connections find nothing in their way.
fn ample() -> Machine {
    Machine {
        cpus: 4,
        files_max: Some(2_000_000),
        own_files_refused: None,
        io_uring: Some(Ok(())),
        nr_open: Some(4_000_000),
        file_max: Some(Usage { max: 10_000_000, used: 1_000 }),
        somaxconn: Some(65_535),
        syn_backlog: Some(65_535),
        syncookies: Some(true),
        ports: Some((1_024, 65_535)),
        memory: None,
        memory_available: Some(64 << 30),
        tcp_pages_max: Some(2_000_000),
        conntrack: None,
        cgroups: Vec::new(),
    }
}

fn wanted(connections: usize) -> Wanted {
    Wanted {
        connections,
        limit: 1_000_000,
        workers: 4,
        files: FilesChoice::Auto,
        driver: DriverChoice::Auto,
        history_bytes: 512 * MIB,
        memory_bytes: None,
        tls: false,
        quota: None,
        address_quota: None,
        local_listeners: None,
    }
}

fn refused(by: By) -> Option<Result<(), Refused>> {
    Some(Err(Refused::new("the send ring", by)))
}

fn find<'a>(report: &'a Report, name: &str) -> &'a Finding {
    let all = || report.findings.iter().map(|finding| finding.name).collect::<Vec<_>>();
    report
        .findings
        .iter()
        .filter(|finding| finding.name == name)
        .max_by_key(|finding| finding.level as u8)
        .unwrap_or_else(|| panic!("{name} in {:?}", all()))
}

fn group(limit_file: &str, max: usize, is_own: bool) -> Cgroup {
    Cgroup { limit_file: limit_file.into(), memory: Usage { max, used: 7 }, is_own }
}

#[test]
fn an_ample_machine_is_left_alone() {
    let report = examine(&ample(), &wanted(1_000_000));
    for finding in &report.findings {
        assert_eq!((finding.level, &finding.remedy), (Level::Ok, &None), "{finding}");
    }
    assert_eq!((report.stops, report.holds, report.files), (0, 1_000_000, "shared"));
    assert!(report.to_string().ends_with("nothing found that would stop 1,000,000 connections\n"));
}

type Change = fn(&mut Machine, &mut Wanted);
/// Name, what is changed, the finding, its level, what it allows, a part of its remedy.
type Case = (&'static str, Change, &'static str, Level, Option<usize>, &'static str);

/// One thing wrong at a time: what is named, how bad it is, what it allows, and what the remedy says.
#[test]
fn each_shortage_is_named_with_its_remedy() {
    use Level::{Note, Ok, Stop};
    let cases: &[Case] = &[
        (
            "asked for more than configured",
            |_, w| w.limit = 10_000,
            "limits.connections",
            Stop,
            Some(10_000),
            "--set limits.connections=1000000",
        ),
        // A reserve of 64 for each of four workers; they share the rest.
        (
            "files, shared",
            |m, w| (m.files_max, w.files) = (Some(20_000), FilesChoice::Shared),
            "open files",
            Stop,
            Some(20_000 - 256),
            "LimitNOFILE=1000256 ",
        ),
        (
            "files, each worker's own",
            |m, _| m.files_max = Some(20_000),
            "open files",
            Stop,
            Some(77_516),
            "LimitNOFILE=252064 ",
        ),
        (
            "more workers help too",
            |m, _| m.files_max = Some(20_000),
            "open files",
            Stop,
            Some(77_516),
            "--files per-worker --workers 52",
        ),
        (
            "files, each worker's own, enough",
            |m, _| m.files_max = Some(252_064),
            "open files",
            Ok,
            Some(1_000_000),
            "",
        ),
        ("one fewer is not", |m, _| m.files_max = Some(252_063), "open files", Stop, Some(999_996), "252064"),
        (
            "files, auto, tables cannot be divided",
            |m, _| (m.files_max, m.own_files_refused) = (Some(252_064), Some("EPERM".into())),
            "open files",
            Stop,
            Some(252_064 - 256),
            "--ulimit nofile=1000256:1000256",
        ),
        (
            "tables asked for and refused",
            |m, w| (m.own_files_refused, w.files) = (Some("EPERM".into()), FilesChoice::PerWorker),
            "file tables",
            Stop,
            Some(0),
            "--files shared",
        ),
        (
            "tables refused, auto",
            |m, _| m.own_files_refused = Some("EPERM".into()),
            "file tables",
            Note,
            None,
            "5.9",
        ),
        (
            "nr_open",
            |m, w| (m.nr_open, w.files) = (Some(500_256), FilesChoice::Shared),
            "fs.nr_open",
            Stop,
            Some(500_000),
            "sysctl -w fs.nr_open=1000256",
        ),
        (
            "file-max",
            |m, _| m.file_max = Some(Usage { max: 501_256, used: 1_000 }),
            "fs.file-max",
            Stop,
            Some(500_000),
            "sysctl -w fs.file-max=1001256",
        ),
        (
            "file-max, full",
            |m, _| m.file_max = Some(Usage { max: 5, used: 9 }),
            "fs.file-max",
            Stop,
            Some(0),
            "1000265",
        ),
        // 10,000 in a tenth of a second, for four workers.
        (
            "queue",
            |m, _| m.somaxconn = Some(128),
            "net.core.somaxconn",
            Stop,
            Some(51_200),
            "sysctl -w net.core.somaxconn=2500",
        ),
        (
            "queue, just enough",
            |m, _| m.somaxconn = Some(2_500),
            "net.core.somaxconn",
            Ok,
            Some(1_000_000),
            "",
        ),
        (
            "syn queue with cookies",
            |m, _| m.syn_backlog = Some(1),
            "net.ipv4.tcp_max_syn_backlog",
            Ok,
            None,
            "",
        ),
        (
            "syn queue without",
            |m, _| (m.syn_backlog, m.syncookies) = (Some(1_024), Some(false)),
            "net.ipv4.tcp_max_syn_backlog",
            Stop,
            Some(307_200),
            "net.ipv4.tcp_max_syn_backlog=3334",
        ),
        (
            "ports of a proxy",
            |m, w| (m.ports, w.local_listeners) = (Some((32_768, 60_999)), Some(1)),
            "net.ipv4.ip_local_port_range",
            Note,
            Some(28_232),
            "from 19 addresses",
        ),
        (
            "memory",
            |m, _| m.memory_available = Some(576 * MIB + 4_396_000),
            "memory",
            Stop,
            Some(1_000),
            "--set limits.connections=1000",
        ),
        (
            "no memory at all",
            |m, _| m.memory_available = Some(0),
            "memory",
            Stop,
            Some(0),
            "4,769 MiB more memory",
        ),
        (
            "a container's memory",
            |m, w| {
                (m.cgroups, w.memory_bytes) = (vec![group("/c/memory.max", 1_000, true)], Some(8 << 30));
            },
            "cgroup memory",
            Stop,
            Some(0),
            "MemoryMax=4999979783 ",
        ),
        (
            "a container with enough",
            |m, _| m.cgroups = vec![group("/c/memory.max", 16 << 30, true)],
            "cgroup memory",
            Ok,
            Some(3_770_675),
            "",
        ),
        (
            "what is above a container",
            |m, _| {
                m.cgroups =
                    vec![group("/c/d/memory.max", 16 << 30, true), group("/c/memory.max", 1 << 30, false)]
            },
            "cgroup memory",
            Stop,
            Some(131_071),
            "for the slice (systemctl set-property)",
        ),
        (
            "history gives way to the budget",
            |m, w| (m.memory_available, w.memory_bytes) = (Some(4_600 * MIB), Some(400 * MIB)),
            "memory",
            Ok,
            Some(1_075_200),
            "",
        ),
        (
            "the process's own budget",
            |_, w| w.memory_bytes = Some(256 * MIB),
            "limits.memory_bytes",
            Stop,
            Some(664_098),
            "--set limits.memory_bytes=392460768",
        ),
        (
            "TLS takes more of it",
            |_, w| (w.memory_bytes, w.tls) = (Some(1 << 30), true),
            "limits.memory_bytes",
            Stop,
            Some(294_324),
            "--set limits.memory_bytes=3592460768",
        ),
        (
            "a quota of all",
            |_, w| w.quota = Some(5_000),
            "quotas.node.connections",
            Stop,
            Some(5_000),
            "--set quotas.node.connections=1000000",
        ),
        (
            "a quota of an address",
            |_, w| w.address_quota = Some(50),
            "quotas.address.connections",
            Note,
            Some(50),
            "proxy.trusted",
        ),
        (
            "tcp buffers",
            |m, _| m.tcp_pages_max = Some(575_796),
            "net.ipv4.tcp_mem",
            Note,
            Some(575_796),
            "net.ipv4.tcp_mem=\"500000 750000 1000000\"",
        ),
        (
            "conntrack",
            |m, _| m.conntrack = Some(Usage { max: 262_144, used: 144 }),
            "net.netfilter.nf_conntrack_max",
            Stop,
            Some(262_000),
            "nf_conntrack_max=1000144",
        ),
        (
            "conntrack that tracks nothing",
            |m, _| m.conntrack = Some(Usage { max: 262_144, used: 0 }),
            "net.netfilter.nf_conntrack_max",
            Note,
            Some(262_144),
            "nf_conntrack_max=1000000",
        ),
        (
            "a queue of the kernel's own length is never too short",
            |m, w| (m.somaxconn, w.workers) = (Some(4_096), 1),
            "net.core.somaxconn",
            Ok,
            None,
            "",
        ),
        (
            "a shorter one may be",
            |m, w| (m.somaxconn, w.workers) = (Some(4_095), 1),
            "net.core.somaxconn",
            Stop,
            Some(409_500),
            "sysctl -w net.core.somaxconn=4096,",
        ),
        (
            "io_uring, sysctl",
            |m, _| m.io_uring = refused(By::Sysctl("2".into())),
            "io_uring",
            Note,
            None,
            "kernel.io_uring_disabled=0; until then epoll",
        ),
        (
            "io_uring, seccomp, insisted on",
            |m, w| (m.io_uring, w.driver) = (refused(By::Seccomp), DriverChoice::IoUring),
            "io_uring",
            Stop,
            Some(0),
            "seccomp=tuning/seccomp.json",
        ),
        (
            "io_uring, old kernel",
            |m, _| m.io_uring = refused(By::OldKernel),
            "io_uring",
            Note,
            None,
            "newer kernel",
        ),
        (
            "io_uring, not wanted",
            |m, w| (m.io_uring, w.driver) = (refused(By::Seccomp), DriverChoice::Epoll),
            "io_uring",
            Ok,
            None,
            "",
        ),
        ("files unread", |m, _| m.files_max = None, "open files", Note, None, "ulimit -Hn"),
        ("somaxconn unread", |m, _| m.somaxconn = None, "net.core.somaxconn", Note, None, "sysctl"),
    ];
    for &(name, change, finding_name, level, holds, remedy) in cases {
        let (mut machine, mut wanted) = (ample(), wanted(1_000_000));
        change(&mut machine, &mut wanted);
        let report = examine(&machine, &wanted);
        let finding = find(&report, finding_name);
        assert_eq!((finding.level, finding.holds), (level, holds), "{name}: {finding}");
        let told = finding.remedy.clone().unwrap_or_default();
        assert!(told.contains(remedy) && (level == Level::Ok) == told.is_empty(), "{name}: {told:?}");
        assert_eq!(report.stops, usize::from(level == Level::Stop), "{name}: {report}");
        if level == Level::Stop {
            assert_eq!(Some(report.holds), holds, "{name}");
        }
    }
}

#[test]
fn fewer_connections_need_less() {
    let machine =
        Machine { files_max: Some(20_000), somaxconn: Some(128), memory_available: Some(1 << 30), ..ample() };
    assert_eq!(examine(&machine, &wanted(1_000_000)).stops, 3);
    assert_eq!(examine(&machine, &wanted(50_000)).stops, 0);
}

#[test]
fn nothing_can_be_read() {
    let report = examine(&Machine { cpus: 1, ..Machine::default() }, &wanted(1_000));
    assert_eq!(report.stops, 0, "{report}");
    assert!(report.findings.iter().filter(|finding| finding.says.contains("cannot be read")).count() >= 6);
}

#[test]
fn the_text_says_what_stops_and_how_much_is_held() {
    let report = examine(&Machine { somaxconn: Some(128), ..ample() }, &wanted(1_000_000));
    let text = report.to_string();
    for part in [
        "1,000,000 connections, 4 workers, file tables shared\n",
        "\nok    open files: ",
        "\nSTOP  net.core.somaxconn: ",
        "\n      -> sysctl -w net.core.somaxconn=2500",
        "\n1 thing would stop 1,000,000 connections: as it is, it is good for 51,200.",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
}
