//! Whether io_uring can be used here: asked of the kernel by doing it, once, at start.
//! Owns the questions, and who refused in words. Never chooses a driver.
#![allow(unsafe_code)]

use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use io_uring::{IoUring, opcode};

use super::sendring::{BATCH_MAX, Outcome, Send, SendRing};

/// Entries of the ring that monoio makes unless told otherwise.
const RUNTIME_ENTRIES: u32 = 1024;

/// More than a socket's send buffer takes by default, so that a send must be short.
const TOO_MANY_BYTES: usize = 4 << 20;

/// The operations that monoio's io_uring driver uses.
const RUNTIME_OPCODES: [(&str, u8); 11] = [
    ("accept", opcode::Accept::CODE),
    ("async cancel", opcode::AsyncCancel::CODE),
    ("close", opcode::Close::CODE),
    ("connect", opcode::Connect::CODE),
    ("poll add", opcode::PollAdd::CODE),
    ("read", opcode::Read::CODE),
    ("recv", opcode::Recv::CODE),
    ("send", opcode::Send::CODE),
    ("timeout", opcode::Timeout::CODE),
    ("write", opcode::Write::CODE),
    ("writev", opcode::Writev::CODE),
];

/// Why io_uring cannot be used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    what: &'static str,
    pub by: By,
}

/// Who refused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// `kernel.io_uring_disabled`, with its value.
    Sysctl(String),
    /// `EPERM`, and this thread has a seccomp filter.
    Seccomp,
    /// `EPERM`, without one.
    SecurityModule,
    /// `ENOSYS`: compiled out, before Linux 5.1, or a seccomp profile that says so.
    Unknown,
    OldKernel,
    LockedMemory,
    Descriptors,
    /// It is there and does not do what is needed.
    Misbehaviour(String),
}

impl Refused {
    pub fn new(what: &'static str, by: By) -> Self {
        Self { what, by }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        f.write_str(match &self.by {
            By::Sysctl(value) => {
                return write!(f, "forbidden by the sysctl kernel.io_uring_disabled={value}");
            }
            By::Seccomp => "forbidden by a seccomp profile (a container's default does)",
            By::SecurityModule => "forbidden by a security module (SELinux, AppArmor)",
            By::Unknown => "unknown to this kernel, or hidden by a seccomp profile",
            By::OldKernel => "this kernel is too old for it (5.18 is needed)",
            By::LockedMemory => "not enough memory may be locked (RLIMIT_MEMLOCK, or the cgroup)",
            By::Descriptors => "no descriptor is left for it",
            By::Misbehaviour(told) => told,
        })
    }
}

/// Whether the send ring and monoio's ring both work on this kernel, for this process.
///
/// # Errors
/// Who refused, for the one line at start and for `pushline doctor`.
pub fn io_uring_works() -> Result<(), Refused> {
    let mut ring = SendRing::uring(BATCH_MAX as u32).map_err(|e| refusal("the send ring", &e))?;
    let misbehaves = |what| move |told| Refused { what, by: By::Misbehaviour(told) };
    sends_once(&mut ring).map_err(misbehaves("the send ring"))?;
    runtime_ring_works()
}

/// Sends a short text whole and a long one short, and reads both: the silence of the one and the
/// count of the other are what fan-out relies on (kernels before 6.1 may lose the count).
fn sends_once(ring: &mut SendRing) -> Result<(), String> {
    let (near, mut far) = UnixStream::pair().map_err(|e| format!("no socket pair to try it with: {e}"))?;
    // Only against a kernel that says it sent and did not: the bytes are there before we read.
    far.set_read_timeout(Some(Duration::from_secs(1))).map_err(|e| e.to_string())?;
    let mut outcomes = Vec::new();

    ring.send_batch(&[Send { fd: near.as_raw_fd(), bytes: b"probe" }], &mut outcomes);
    if !outcomes.is_empty() {
        return Err(format!("a first send through it ended as {outcomes:?}"));
    }
    let mut got = [0; 5];
    match far.read_exact(&mut got) {
        Ok(()) if &got == b"probe" => {}
        Ok(()) => return Err("a first send through it arrived changed".into()),
        Err(e) => return Err(format!("a first send through it did not arrive: {e}")),
    }

    let bytes = vec![b'p'; TOO_MANY_BYTES];
    ring.send_batch(&[Send { fd: near.as_raw_fd(), bytes: &bytes }], &mut outcomes);
    drop(near);
    let mut arrived = Vec::new();
    far.read_to_end(&mut arrived).map_err(|e| format!("a short send through it did not arrive: {e}"))?;
    match outcomes[..] {
        [(0, Outcome::Short(sent))] if sent == arrived.len() => Ok(()),
        [] if arrived.len() == TOO_MANY_BYTES => Ok(()),
        _ => Err(format!(
            "this kernel does not tell the count of a short send ({} bytes arrived, told {outcomes:?})",
            arrived.len()
        )),
    }
}

fn runtime_ring_works() -> Result<(), Refused> {
    const WHAT: &str = "a ring for the runtime";
    let ring = IoUring::new(RUNTIME_ENTRIES).map_err(|e| refusal(WHAT, &e))?;
    let mut known = io_uring::Probe::new();
    ring.submitter().register_probe(&mut known).map_err(|e| refusal("asking the ring what it can do", &e))?;
    match RUNTIME_OPCODES.iter().find(|(_, code)| !known.is_supported(*code)) {
        None => Ok(()),
        Some((name, _)) => {
            Err(Refused { what: WHAT, by: By::Misbehaviour(format!("this kernel's io_uring lacks {name}")) })
        }
    }
}

fn refusal(what: &'static str, error: &io::Error) -> Refused {
    let by = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => match disabled_by_sysctl() {
            Some(value) => By::Sysctl(value),
            None if has_seccomp_filter() => By::Seccomp,
            None => By::SecurityModule,
        },
        Some(libc::ENOSYS) => By::Unknown,
        Some(libc::EINVAL) => By::OldKernel,
        Some(libc::ENOMEM) => By::LockedMemory,
        Some(libc::EMFILE | libc::ENFILE) => By::Descriptors,
        _ => By::Misbehaviour(error.to_string()),
    };
    Refused { what, by }
}

/// Without /proc, a filter is likelier than a security module: containers have one by default.
fn has_seccomp_filter() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("Seccomp:")).is_none_or(|mode| mode.trim() == "2")
}

fn disabled_by_sysctl() -> Option<String> {
    let value = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    let value = value.trim();
    (value != "0").then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_here() {
        assert_eq!(io_uring_works(), Ok(()));
    }

    /// Refuses a system call to the calling thread for good.
    fn forbid(call: libc::c_long, errno: u32) {
        let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut program = [
            statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
            statement((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, call as u32),
            statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
            statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        // SAFETY: `filter` points to a live program of that length; the kernel copies it.
        let rc = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
        assert_eq!(rc, 0, "{}", io::Error::last_os_error());
    }

    #[test]
    fn a_refusal_is_put_in_words() {
        let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
        let errnos = [(libc::EPERM, "seccomp"), (libc::ENOSYS, "kernel"), (libc::EINVAL, "too old")];
        for (call, (errno, word)) in calls.into_iter().flat_map(|call| errnos.map(|told| (call, told))) {
            let told = std::thread::spawn(move || {
                forbid(call, errno as u32);
                io_uring_works()
            });
            let reason = told.join().unwrap().unwrap_err().to_string();
            assert!(reason.contains(word), "{call}, {errno}: {reason}");
        }
    }
}
