//! What the kernel knows of one TCP connection (`TCP_INFO`, tcp(7)): for an operator who asks about it.
#![allow(unsafe_code)]

use std::os::fd::RawFd;

/// The state of a connection, as far as it explains why somebody is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct TcpState {
    /// Smoothed round-trip time, and the shortest seen.
    pub rtt_us: u32,
    pub rtt_min_us: u32,
    /// Sent and not acknowledged, in segments.
    pub unacked_segments: u32,
    /// Not sent yet.
    pub unsent_bytes: u32,
    /// What the client's window still takes; 0: it does not read.
    pub send_window_bytes: u32,
    pub congestion_window_segments: u32,
    pub retransmitted_segments: u32,
    /// Since the client last acknowledged anything.
    pub acked_ms_ago: u32,
}

/// `None`: the descriptor is no TCP socket.
pub fn tcp_state(fd: RawFd) -> Option<TcpState> {
    // SAFETY: the struct has integers alone, for which zeros are valid. A kernel that knows fewer fields leaves the rest.
    let mut known: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&known) as libc::socklen_t;
    // SAFETY: the struct and its length live through the call, and the length is its size.
    let rc = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut known).cast(), &raw mut len)
    };
    (rc == 0).then_some(TcpState {
        rtt_us: known.tcpi_rtt,
        rtt_min_us: known.tcpi_min_rtt,
        unacked_segments: known.tcpi_unacked,
        unsent_bytes: known.tcpi_notsent_bytes,
        send_window_bytes: known.tcpi_snd_wnd,
        congestion_window_segments: known.tcpi_snd_cwnd,
        retransmitted_segments: known.tcpi_total_retrans,
        acked_ms_ago: known.tcpi_last_ack_recv,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_kernel_tells_of_tcp_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        let state = tcp_state(client.as_raw_fd()).expect("TCP");
        assert!(state.congestion_window_segments > 0, "{state:?}");
        let (unix, _other) = UnixStream::pair().expect("a pair");
        assert_eq!(tcp_state(unix.as_raw_fd()), None);
    }
}
