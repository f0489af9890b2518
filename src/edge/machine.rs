//! What this machine allows: its limits and what of them is in use, read once.
//! Owns the reading, of /proc and /sys and by asking the kernel. Never judges: `doctor` does.

use std::fs;
use std::path::{Path, PathBuf};

use crate::runtime::probe::{self, Refused};
use crate::runtime::{files, host};

/// Readings. `None`: this kernel or sandbox does not tell.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Cores that this process may use.
    pub cpus: usize,
    /// The hard limit on open files of this process.
    pub files_max: Option<usize>,
    /// Why workers cannot have file tables of their own.
    pub own_files_refused: Option<String>,
    /// Whether io_uring works; `None` when it was not tried.
    pub io_uring: Option<Result<(), Refused>>,
    /// The highest limit on open files that can be given.
    pub nr_open: Option<usize>,
    /// Open files of the whole machine.
    pub file_max: Option<Usage>,
    /// Connections that may wait in one listener's queue.
    pub somaxconn: Option<usize>,
    pub syn_backlog: Option<usize>,
    /// Whether a full queue of half-open connections is answered with cookies.
    pub syncookies: Option<bool>,
    /// Ports that clients and proxies on this machine connect from: first and last.
    pub ports: Option<(usize, usize)>,
    /// Bytes of the whole machine.
    pub memory: Option<usize>,
    /// Bytes that can be had without swapping.
    pub memory_available: Option<usize>,
    /// Pages that all TCP buffers together may take.
    pub tcp_pages_max: Option<usize>,
    /// Tracked connections, where the firewall tracks any.
    pub conntrack: Option<Usage>,
    /// The control groups of this process that have a limit, from its own up: each limits those below it.
    pub cgroups: Vec<Cgroup>,
}

/// A limit, and how much of it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub max: usize,
    pub used: usize,
}

impl Usage {
    pub fn left(self) -> usize {
        self.max.saturating_sub(self.used)
    }
}

/// A control group that limits memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// The file that holds the limit.
    pub limit_file: PathBuf,
    /// Bytes; what the kernel gives back by itself (cached files) is not counted as used.
    pub memory: Usage,
    /// The process's own, not one above it.
    pub is_own: bool,
}

impl Machine {
    /// Reads everything, and tries io_uring.
    pub fn read() -> Self {
        let io_uring = Some(probe::io_uring_works());
        Self { io_uring, ..Self::read_quickly() }
    }

    /// Reads everything but does not try io_uring: a node that starts does that itself.
    pub fn read_quickly() -> Self {
        Self {
            cpus: host::allowed_cpus().map_or(1, |cpus| cpus.len()),
            // As the node does when it starts: the soft limit does not matter.
            files_max: host::set_nofile_to_hard_limit().ok().map(|limit| limit as usize),
            own_files_refused: files::can_unshare().err().map(|error| error.to_string()),
            ..Self::read_files(Path::new("/"))
        }
    }

    /// What a node may take for itself where nobody says: half of what the machine has, or its control group may have. As
    /// much again may go to sockets, which the kernel holds, and to others.
    pub fn memory_share(&self) -> Option<usize> {
        let groups = self.cgroups.iter().map(|group| group.memory.max);
        let whole = self.memory.into_iter().chain(groups).min()?;
        Some(whole / 2)
    }

    /// What stands in files, below `root`.
    fn read_files(root: &Path) -> Self {
        let sysctl = |name: &str| numbers(&root.join("proc/sys").join(name));
        let single = |name: &str| sysctl(name).first().copied();
        let file_max = match sysctl("fs/file-nr")[..] {
            [open, _, max] => Some(Usage { max, used: open }),
            _ => None,
        };
        let ports = match sysctl("net/ipv4/ip_local_port_range")[..] {
            [first, last] => Some((first, last)),
            _ => None,
        };
        let conntrack = single("net/netfilter/nf_conntrack_max")
            .map(|max| Usage { max, used: single("net/netfilter/nf_conntrack_count").unwrap_or(0) });
        let meminfo = read(&root.join("proc/meminfo")).unwrap_or_default();
        let memory = |name| after(&meminfo, name).map(|kib| kib << 10);
        Self {
            nr_open: single("fs/nr_open"),
            file_max,
            somaxconn: single("net/core/somaxconn"),
            syn_backlog: single("net/ipv4/tcp_max_syn_backlog"),
            syncookies: single("net/ipv4/tcp_syncookies").map(|value| value != 0),
            ports,
            memory: memory("MemTotal:"),
            memory_available: memory("MemAvailable:"),
            tcp_pages_max: sysctl("net/ipv4/tcp_mem").get(2).copied(),
            conntrack,
            cgroups: cgroups(root),
            ..Self::default()
        }
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// All numbers of a file; none when it cannot be read.
fn numbers(path: &Path) -> Vec<usize> {
    let text = read(path).unwrap_or_default();
    text.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect()
}

/// The number after `name` at the beginning of a line.
fn after(text: &str, name: &str) -> Option<usize> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
}

/// What one version of control groups calls things.
struct Names {
    kind: &'static str,
    limit: &'static str,
    used: &'static str,
    /// In `memory.stat`: cached files that are given back when memory is short.
    cached: &'static str,
}

const V2: Names =
    Names { kind: "cgroup2", limit: "memory.max", used: "memory.current", cached: "inactive_file" };
const V1: Names = Names {
    kind: "cgroup",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: "total_inactive_file",
};
/// Version 1 has no word for "no limit", only numbers as large as this.
const V1_UNLIMITED: usize = 1 << 60;

/// The groups of this process that limit memory, from its own up to the root.
fn cgroups(root: &Path) -> Vec<Cgroup> {
    let groups = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = read(&root.join("proc/self/mountinfo")).unwrap_or_default();
    let mut limited = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let names = match controllers {
            "" => V2,
            _ if controllers.split(',').any(|controller| controller == "memory") => V1,
            _ => continue,
        };
        let Some((mount, below)) = mounts.lines().find_map(|line| mounted(line, &names)) else { continue };
        // In a container the mount may begin at the group itself.
        let inside = Path::new(path).strip_prefix(below).unwrap_or(Path::new(""));
        let mount = root.join(mount.trim_start_matches('/'));
        let group = mount.join(inside);
        let up = group.ancestors().take_while(|ancestor| ancestor.starts_with(&mount));
        limited.extend(up.filter_map(|above| memory_of(above, &names, above == group)));
    }
    limited
}

/// Mount point and root of a line of mountinfo, when memory is controlled there.
fn mounted<'a>(line: &'a str, names: &Names) -> Option<(&'a str, &'a str)> {
    let (mount, of) = line.split_once(" - ")?;
    let mut of = of.split(' ');
    let (kind, options) = (of.next()?, of.nth(1)?);
    let is_it =
        kind == names.kind && (kind == V2.kind || options.split(',').any(|option| option == "memory"));
    let mut fields = mount.split(' ').skip(3);
    let (below, point) = (fields.next()?, fields.next()?);
    is_it.then_some((point, below))
}

fn memory_of(group: &Path, names: &Names, is_own: bool) -> Option<Cgroup> {
    let limit_file = group.join(names.limit);
    let max = *numbers(&limit_file).first().filter(|max| **max < V1_UNLIMITED)?;
    let used = *numbers(&group.join(names.used)).first()?;
    let cached = read(&group.join("memory.stat")).and_then(|text| after(&text, names.cached)).unwrap_or(0);
    Some(Cgroup { limit_file, memory: Usage { max, used: used.saturating_sub(cached) }, is_own })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine made of files, removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let tree =
                Self(std::env::temp_dir().join(format!("pushline-machine-{}-{name}", std::process::id())));
            for (path, text) in files {
                let path = tree.0.join(path);
                fs::create_dir_all(path.parent().expect("in a folder")).expect("a folder");
                fs::write(path, text).expect("a file");
            }
            tree
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_are_read() {
        let tree = Tree::new(
            "files",
            &[
                ("proc/sys/fs/file-nr", "366\t0\t2466174\n"),
                ("proc/sys/fs/nr_open", "1048576\n"),
                ("proc/sys/net/core/somaxconn", "4096\n"),
                ("proc/sys/net/ipv4/tcp_max_syn_backlog", "2048\n"),
                ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
                ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
                ("proc/sys/net/ipv4/tcp_mem", "287898\t383866\t575796\n"),
                ("proc/sys/net/netfilter/nf_conntrack_max", "262144\n"),
                ("proc/sys/net/netfilter/nf_conntrack_count", "12\n"),
                ("proc/meminfo", "MemTotal:       24683656 kB\nMemAvailable:   1000 kB\n"),
            ],
        );
        let machine = Machine::read_files(&tree.0);
        assert_eq!(machine.file_max, Some(Usage { max: 2_466_174, used: 366 }));
        assert_eq!((machine.nr_open, machine.somaxconn), (Some(1_048_576), Some(4_096)));
        assert_eq!((machine.syn_backlog, machine.syncookies), (Some(2_048), Some(true)));
        assert_eq!((machine.ports, machine.tcp_pages_max), (Some((32_768, 60_999)), Some(575_796)));
        assert_eq!(machine.conntrack, Some(Usage { max: 262_144, used: 12 }));
        assert_eq!(machine.memory_available, Some(1_024_000));
        assert_eq!(machine.memory_share(), Some(24_683_656 * 1_024 / 2));
        let group =
            |max, is_own| Cgroup { limit_file: PathBuf::new(), memory: Usage { max, used: 0 }, is_own };
        let contained = Machine { cgroups: vec![group(2_000, true), group(1_000, false)], ..machine.clone() };
        assert_eq!(contained.memory_share(), Some(500));
        assert_eq!(machine.cgroups, []);
    }

    #[test]
    fn what_is_not_told_is_not_invented() {
        let tree = Tree::new("empty", &[("proc/sys/fs/file-nr", "nonsense\n")]);
        let machine = Machine::read_files(&tree.0);
        assert!(
            machine.file_max.is_none() && machine.memory_available.is_none() && machine.cgroups.is_empty()
        );
    }

    #[test]
    fn groups_are_read_from_the_process_s_own_up() {
        const V2_MOUNT: &str = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let v1_mount = "40 31 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                        41 31 0:2 /docker/abc /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";
        /// Name, files, and the groups found: file, limit, in use.
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [(&'a str, usize, usize, bool)]);
        let cases: [Case; 4] = [
            (
                "v2-parent",
                &[
                    ("proc/self/cgroup", "0::/system.slice/pushline.service\n"),
                    ("proc/self/mountinfo", V2_MOUNT),
                    ("sys/fs/cgroup/system.slice/memory.max", "1000\n"),
                    ("sys/fs/cgroup/system.slice/memory.current", "900\n"),
                    ("sys/fs/cgroup/system.slice/memory.stat", "anon 100\ninactive_file 300\n"),
                    ("sys/fs/cgroup/system.slice/pushline.service/memory.max", "5000\n"),
                    ("sys/fs/cgroup/system.slice/pushline.service/memory.current", "10\n"),
                ],
                &[
                    ("sys/fs/cgroup/system.slice/pushline.service/memory.max", 5_000, 10, true),
                    ("sys/fs/cgroup/system.slice/memory.max", 1_000, 600, false),
                ],
            ),
            (
                "v2-none",
                &[
                    ("proc/self/cgroup", "0::/\n"),
                    ("proc/self/mountinfo", V2_MOUNT),
                    ("sys/fs/cgroup/memory.max", "max\n"),
                    ("sys/fs/cgroup/memory.current", "10\n"),
                ],
                &[],
            ),
            (
                "v1-container",
                &[
                    ("proc/self/cgroup", "5:cpu:/docker/abc\n4:memory:/docker/abc\n0::/\n"),
                    ("proc/self/mountinfo", v1_mount),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
                    ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n"),
                    ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 2000\n"),
                ],
                &[("sys/fs/cgroup/memory/memory.limit_in_bytes", 536_870_912, 0, true)],
            ),
            (
                "v1-none",
                &[
                    ("proc/self/cgroup", "4:memory:/docker/abc\n"),
                    ("proc/self/mountinfo", v1_mount),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n"),
                ],
                &[],
            ),
        ];
        for (name, files, want) in cases {
            let tree = Tree::new(name, files);
            let want = want.iter().map(|&(file, max, used, is_own)| Cgroup {
                limit_file: tree.0.join(file),
                memory: Usage { max, used },
                is_own,
            });
            assert_eq!(Machine::read_files(&tree.0).cgroups, want.collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn this_machine_is_read() {
        let machine = Machine::read();
        assert!(machine.cpus >= 1 && machine.files_max.is_some_and(|files| files >= 256));
        assert!(machine.somaxconn.is_some() && machine.memory_available.is_some());
        assert!(machine.io_uring.is_some() && Machine::read_quickly().io_uring.is_none());
    }
}
