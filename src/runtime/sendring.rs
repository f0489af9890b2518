//! The send ring: synchronous sends on many connected sockets, a batch to one system call.
//!
//! Owns an io_uring of its own, used for nothing else, or the `send(2)` loop that takes its place.
//! Every send of a batch is over when the call returns, so that bytes are only borrowed for the
//! call, and only what did not go out whole is reported. Never waits, keeps or copies bytes;
//! never decides what a short send means.
//!
//! It rests on three facts of Linux (5.18 and later), which `probe` checks on the machine at hand:
//! `MSG_DONTWAIT` lets no send outlive `io_uring_enter`; `MSG_WAITALL` makes a short send a failed
//! one, which posts its count; `IOSQE_CQE_SKIP_SUCCESS` silences all others.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, squeue, types};

use super::stderr;

/// The most sends in one call. Larger batches gain nothing (`bench/RESULTS.md`) and hold the thread.
pub const BATCH_MAX: usize = 64;

/// Completion entries for each submission entry, so that the completion queue never overflows.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// Enters that may fail for want of kernel memory before we give up. The bytes are still
/// referred to by the queue, so giving up means to abort.
const ENTER_RETRIES_MAX: u32 = 10_000;

const RING_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
const PLAIN_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// One send: all of `bytes` to the connected stream socket `fd`.
#[derive(Debug, Clone, Copy)]
pub struct Send<'a> {
    pub fd: RawFd,
    pub bytes: &'a [u8],
}

/// How a send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All bytes are in the socket's buffer.
    Whole,
    /// The first so many bytes are (at least one, not all); the buffer is full now.
    Short(usize),
    /// None is: the buffer was full (`EAGAIN`).
    Full,
    /// None is, and none will be: the `errno`.
    Failed(i32),
}

/// Sends batches for one thread. Not `Send`: the ring belongs to the thread (and the file table)
/// that made it.
pub struct SendRing {
    by: By,
    /// Rings with one issuer refuse every other thread.
    _of_one_thread: PhantomData<*const ()>,
}

enum By {
    Uring(Box<IoUring>),
    Plain,
}

impl SendRing {
    /// Sends through an io_uring with room for `entries`, at least [`BATCH_MAX`].
    ///
    /// # Errors
    /// What the kernel says to `io_uring_setup` or `io_uring_enter`, or `Unsupported` if it lacks
    /// `IORING_FEAT_CQE_SKIP`.
    pub fn uring(entries: u32) -> io::Result<Self> {
        let entries = entries.max(BATCH_MAX as u32);
        let ring = match Self::build(entries, true) {
            // IORING_SETUP_SINGLE_ISSUER came with 6.0; it is worth a little, and no need.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Self::build(entries, false)?,
            other => other?,
        };
        if !ring.params().is_feature_skip_cqe_on_success() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel lacks IORING_FEAT_CQE_SKIP"));
        }
        assert!(ring.params().cq_entries() >= COMPLETIONS_PER_ENTRY * BATCH_MAX as u32);
        // A profile may permit the set-up and refuse this; once bytes are borrowed there is no way back.
        ring.submitter().submit()?;
        Ok(Self { by: By::Uring(Box::new(ring)), _of_one_thread: PhantomData })
    }

    /// Sends through `send(2)`: for where io_uring is forbidden or too old.
    pub fn plain() -> Self {
        Self { by: By::Plain, _of_one_thread: PhantomData }
    }

    fn build(entries: u32, single_issuer: bool) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_submit_all().setup_cqsize(entries * COMPLETIONS_PER_ENTRY);
        if single_issuer {
            builder.setup_single_issuer();
        }
        builder.build(entries)
    }

    /// Sends all of `sends` and appends to `outcomes` those that did not go out whole, each with
    /// its index in `sends`, in no order. At most [`BATCH_MAX`], and no descriptor twice: a second
    /// send could go out whole after a first one that was short.
    pub fn send_batch(&mut self, sends: &[Send<'_>], outcomes: &mut Vec<(u32, Outcome)>) {
        assert!(sends.len() <= BATCH_MAX, "{} sends in one batch", sends.len());
        debug_assert!(is_each_descriptor_once(sends), "one descriptor twice in a batch");
        match &mut self.by {
            By::Uring(ring) => send_by_ring(ring, sends, outcomes),
            By::Plain => {
                for (index, send) in sends.iter().enumerate() {
                    let outcome = send_now(send.fd, send.bytes);
                    if outcome != Outcome::Whole {
                        outcomes.push((index as u32, outcome));
                    }
                }
            }
        }
    }
}

/// One send at once, by `send(2)`.
pub fn send_now(fd: RawFd, bytes: &[u8]) -> Outcome {
    loop {
        // SAFETY: the pointer and the length are those of one live slice; the kernel only reads it.
        let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), PLAIN_FLAGS) };
        if let Ok(sent) = usize::try_from(sent) {
            return if sent == bytes.len() { Outcome::Whole } else { Outcome::Short(sent) };
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return Outcome::Full,
            errno => return Outcome::Failed(errno.unwrap_or(libc::EIO)),
        }
    }
}

/// Ends the process if it is dropped: while it lives, the kernel may still hold pointers to bytes
/// that are only borrowed, and unwinding would free them.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        stderr::flush();
        std::process::abort();
    }
}

fn send_by_ring(ring: &mut IoUring, sends: &[Send<'_>], outcomes: &mut Vec<(u32, Outcome)>) {
    let (submitter, mut queue, mut completions) = ring.split();
    // Every batch collects its own completions: what stands here would be told of the wrong send.
    assert!(completions.is_empty() && queue.is_empty(), "the send ring was left unfinished");

    assert!(sends.iter().all(|send| send.bytes.len() <= i32::MAX as usize), "a send of 2 GiB");

    let guard = AbortOnUnwind;
    for (index, send) in sends.iter().enumerate() {
        let bytes = send.bytes.len() as u32;
        let entry = opcode::Send::new(types::Fd(send.fd), send.bytes.as_ptr(), bytes)
            .flags(RING_FLAGS)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(index as u64);
        // SAFETY: the entry points into `sends`, borrowed until this function returns, and it does
        // not return (`guard`) before the kernel has taken every entry. `MSG_DONTWAIT` makes it
        // finish with the bytes within the `io_uring_enter` that takes it.
        unsafe { queue.push(&entry) }.expect("the queue holds a whole batch");
    }
    queue.sync();

    let mut retries = 0;
    while !queue.is_empty() {
        match submitter.submit() {
            Ok(_) => {}
            // No memory for requests, or a signal: what was taken is done, the rest still stands.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::EBUSY)) => {
                retries += 1;
                assert!(retries < ENTER_RETRIES_MAX, "io_uring_enter of the send ring: {e}");
                std::thread::yield_now();
            }
            Err(e) => panic!("io_uring_enter of the send ring: {e}"),
        }
        queue.sync();
    }
    std::mem::forget(guard);

    assert!(!queue.cq_overflow(), "the send ring's completions overflowed");
    completions.sync();
    assert_eq!(completions.overflow(), 0, "the send ring lost completions");
    for completion in completions {
        let index = completion.user_data() as usize;
        let send = sends.get(index).expect("a completion of this batch");
        let outcome = match completion.result() {
            // Not known to happen to a send that cannot wait; if it did, nothing went out.
            result if result == -libc::EINTR => send_now(send.fd, send.bytes),
            result if result == -libc::EAGAIN => Outcome::Full,
            result if result < 0 => Outcome::Failed(-result),
            // Nothing taken and no error: for the caller the same as a full buffer.
            0 if !send.bytes.is_empty() => Outcome::Full,
            result if result as usize >= send.bytes.len() => Outcome::Whole,
            result => Outcome::Short(result as usize),
        };
        if outcome != Outcome::Whole {
            outcomes.push((index as u32, outcome));
        }
    }
}

fn is_each_descriptor_once(sends: &[Send<'_>]) -> bool {
    sends.iter().enumerate().all(|(index, send)| sends[..index].iter().all(|other| other.fd != send.fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::net::UnixStream;

    /// Both ways of sending, so that each test holds for each.
    fn both() -> Vec<(&'static str, SendRing)> {
        vec![("plain", SendRing::plain()), ("uring", SendRing::uring(64).expect("io_uring on this machine"))]
    }

    fn set_buffer(fd: RawFd, option: i32, bytes: i32) {
        // SAFETY: an int option's pointer and length.
        let rc = unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        assert_eq!(rc, 0);
    }

    /// A connection over loopback whose buffers are as small as the kernel permits.
    fn tiny_tcp_pair() -> (TcpStream, TcpStream) {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        // SAFETY: just made, owned by nothing else.
        let client = unsafe { TcpStream::from_raw_fd(fd) };
        set_buffer(client.as_raw_fd(), libc::SO_RCVBUF, 1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let addr = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        // SAFETY: a sockaddr_in and its length.
        let rc = unsafe { libc::connect(fd, (&raw const addr).cast(), size_of_val(&addr) as u32) };
        assert_eq!(rc, 0);
        let server = listener.accept().unwrap().0;
        set_buffer(server.as_raw_fd(), libc::SO_SNDBUF, 1);
        (server, client)
    }

    fn batch(ring: &mut SendRing, sends: &[Send<'_>]) -> Vec<(u32, Outcome)> {
        let mut outcomes = Vec::new();
        ring.send_batch(sends, &mut outcomes);
        outcomes.sort_by_key(|(index, _)| *index);
        outcomes
    }

    fn read_some(stream: &mut impl Read, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        stream.read_exact(&mut read).unwrap();
        read
    }

    #[test]
    fn whole_sends_are_silent_and_arrive() {
        for (name, mut ring) in both() {
            let mut pairs: Vec<_> = (0..BATCH_MAX).map(|_| UnixStream::pair().unwrap()).collect();
            for round in 0..10 {
                let texts: Vec<String> = (0..BATCH_MAX).map(|i| format!("{round}:{i};")).collect();
                let sends: Vec<_> = pairs
                    .iter()
                    .zip(&texts)
                    .map(|((near, _), text)| Send { fd: near.as_raw_fd(), bytes: text.as_bytes() })
                    .collect();
                assert_eq!(batch(&mut ring, &sends), [], "{name}");
                drop(sends);
                for ((_, far), text) in pairs.iter_mut().zip(&texts) {
                    assert_eq!(read_some(far, text.len()), text.as_bytes(), "{name}");
                }
            }
            assert_eq!(batch(&mut ring, &[]), [], "{name}: an empty batch");
        }
    }

    /// Each socket gets as much of one long text as it takes, over and over, while the far end
    /// reads: the count of a short send must be exact, or the text would have holes or repeats.
    #[test]
    fn short_sends_tell_their_count_and_every_byte_arrives_once() {
        const TEXT_BYTES: usize = 300_000;
        for (name, mut ring) in both() {
            let text: Vec<u8> = (0..TEXT_BYTES).map(|i| (i % 251) as u8).collect();
            let pairs: Vec<_> = (0..8).map(|_| tiny_tcp_pair()).collect();
            let (mut positions, mut got) = (vec![0; pairs.len()], vec![Vec::new(); pairs.len()]);
            let (mut shorts, mut fulls, mut rounds) = (0, 0, 0);
            while got.iter().any(|got| got.len() < TEXT_BYTES) {
                let waiting: Vec<usize> = (0..pairs.len()).filter(|i| positions[*i] < TEXT_BYTES).collect();
                let sends: Vec<_> = waiting
                    .iter()
                    .map(|i| Send { fd: pairs[*i].0.as_raw_fd(), bytes: &text[positions[*i]..] })
                    .collect();
                let outcomes = batch(&mut ring, &sends);
                for (nth, i) in waiting.iter().enumerate() {
                    let outcome = outcomes.iter().find(|(index, _)| *index == nth as u32);
                    match outcome.map_or(Outcome::Whole, |(_, outcome)| *outcome) {
                        Outcome::Whole => positions[*i] = TEXT_BYTES,
                        Outcome::Short(bytes) => {
                            assert!(bytes > 0 && bytes < TEXT_BYTES - positions[*i], "{name}");
                            positions[*i] += bytes;
                            shorts += 1;
                        }
                        Outcome::Full => fulls += 1,
                        Outcome::Failed(errno) => panic!("{name}: errno {errno}"),
                    }
                }
                rounds += 1;
                // Every other round nobody reads, so that full buffers are met too.
                for (i, (_, far)) in pairs.iter().enumerate().filter(|_| rounds % 2 == 0) {
                    far.set_nonblocking(true).unwrap();
                    let mut buffer = [0; 4096];
                    if let Ok(n) = (&mut &*far).read(&mut buffer) {
                        got[i].extend_from_slice(&buffer[..n]);
                    }
                }
            }
            assert!(got.iter().all(|got| *got == text), "{name}");
            assert!(shorts > 0 && fulls > 0, "{name}: {shorts} short, {fulls} full");
        }
    }

    #[test]
    fn full_buffers_say_so_and_nothing_is_sent() {
        for (name, mut ring) in both() {
            let (near, mut far) = UnixStream::pair().unwrap();
            let mut filled = 0;
            loop {
                match send_now(near.as_raw_fd(), &[7; 1000]) {
                    Outcome::Whole => filled += 1000,
                    Outcome::Short(bytes) => filled += bytes,
                    Outcome::Full => break,
                    Outcome::Failed(errno) => panic!("errno {errno}"),
                }
            }
            let (open, mut open_far) = UnixStream::pair().unwrap();
            let sends = [
                Send { fd: near.as_raw_fd(), bytes: b"no room" },
                Send { fd: open.as_raw_fd(), bytes: b"room" },
            ];
            assert_eq!(batch(&mut ring, &sends), [(0, Outcome::Full)], "{name}");
            assert_eq!(read_some(&mut open_far, 4), b"room", "{name}");
            drop((near, open));
            let mut rest = Vec::new();
            far.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, vec![7; filled], "{name}");
        }
    }

    #[test]
    fn failures_are_told_apart_and_harm_no_other_send() {
        for (name, mut ring) in both() {
            let (gone, far) = UnixStream::pair().unwrap();
            drop(far);
            let (mut reset, peer) = tiny_tcp_pair();
            // Unread input at close makes the peer's kernel send RST.
            reset.write_all(b"x").unwrap();
            peer.set_nonblocking(false).unwrap();
            while peer.peek(&mut [0; 1]).unwrap() == 0 {}
            drop(peer);
            // The reset's first mark is what a read meets.
            assert!(reset.peek(&mut [0; 1]).is_err());
            let (good, mut good_far) = UnixStream::pair().unwrap();
            let file = std::fs::File::open("/dev/null").unwrap();
            let sends = [
                Send { fd: gone.as_raw_fd(), bytes: b"a" },
                Send { fd: reset.as_raw_fd(), bytes: b"b" },
                Send { fd: -1, bytes: b"c" },
                Send { fd: file.as_raw_fd(), bytes: b"d" },
                Send { fd: good.as_raw_fd(), bytes: b"e" },
            ];
            let outcomes = batch(&mut ring, &sends);
            assert_eq!(outcomes.len(), 4, "{name}: {outcomes:?}");
            assert_eq!(outcomes[0], (0, Outcome::Failed(libc::EPIPE)), "{name}");
            let (1, Outcome::Failed(libc::ECONNRESET | libc::EPIPE)) = outcomes[1] else {
                panic!("{name}: {outcomes:?}");
            };
            assert_eq!(outcomes[2], (2, Outcome::Failed(libc::EBADF)), "{name}");
            assert_eq!(outcomes[3], (3, Outcome::Failed(libc::ENOTSOCK)), "{name}");
            assert_eq!(read_some(&mut good_far, 1), b"e", "{name}");
        }
    }

    /// A reset that nothing has read yet is met by the send itself.
    #[test]
    fn a_reset_not_yet_met_is_told_by_the_send() {
        for (name, mut ring) in both() {
            let (mut reset, peer) = tiny_tcp_pair();
            reset.write_all(b"x").unwrap();
            while peer.peek(&mut [0; 1]).unwrap() == 0 {}
            drop(peer);
            let mut outcomes = Vec::new();
            while outcomes.is_empty() {
                ring.send_batch(&[Send { fd: reset.as_raw_fd(), bytes: b"b" }], &mut outcomes);
            }
            assert_eq!(outcomes, [(0, Outcome::Failed(libc::ECONNRESET))], "{name}");
        }
    }

    /// The bytes are the caller's again when the call returns, also those of short sends: changed
    /// at once, they must not arrive changed.
    #[test]
    fn bytes_are_only_borrowed_for_the_call() {
        for (name, mut ring) in both() {
            let (near, mut far) = tiny_tcp_pair();
            let mut bytes = vec![1; 200_000];
            let outcomes = batch(&mut ring, &[Send { fd: near.as_raw_fd(), bytes: &bytes }]);
            bytes.fill(2);
            let [(0, Outcome::Short(sent))] = outcomes[..] else { panic!("{name}: {outcomes:?}") };
            drop(near);
            let mut got = Vec::new();
            far.read_to_end(&mut got).unwrap();
            assert_eq!(got, vec![1; sent], "{name}");
        }
    }

    #[test]
    #[should_panic(expected = "65 sends in one batch")]
    fn larger_batches_are_a_bug() {
        SendRing::plain().send_batch(&[Send { fd: -1, bytes: b"x" }; 65], &mut Vec::new());
    }
}
