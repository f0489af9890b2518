//! What the kernel holds to be sent on a server's sockets, by `sock_diag(7)`, which tells apart what `/proc/net/tcp`
//! adds up.

use std::collections::HashMap;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

/// Bytes of one socket that its peer has not acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct SendQueue {
    /// Not sent yet: what `TCP_NOTSENT_LOWAT` bounds.
    pub unsent: usize,
    /// Sent: on the way, or dropped by a receiver whose buffer is full, to be sent again. The receiver's window bounds it.
    pub in_flight: usize,
}

/// The established IPv4 connections of a local port, by the peer's port.
pub fn send_queues(port: u16) -> HashMap<u16, SendQueue> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).expect("a netlink socket");
    socket.bind_auto().expect("an address");
    socket.connect(&SocketAddr::new(0, 0)).expect("the kernel");
    socket.send(&request(port), 0).expect("the kernel takes it");
    let mut queues = HashMap::new();
    let mut received = Vec::with_capacity(64 * 1024);
    loop {
        received.clear();
        socket.recv(&mut received, 0).expect("the kernel answers");
        let mut rest = &received[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).expect("an answer");
            rest = rest.get(message.header.length as usize..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) => {
                    let Some(unsent) = answer.nlas.iter().find_map(unsent_bytes) else { continue };
                    let id = &answer.header.socket_id;
                    if id.source_port == port {
                        let in_flight = (answer.header.send_queue as usize).saturating_sub(unsent);
                        queues.insert(id.destination_port, SendQueue { unsent, in_flight });
                    }
                }
                NetlinkPayload::Done(_) => return queues,
                other => panic!("{other:?}"),
            }
        }
    }
}

fn unsent_bytes(attribute: &Nla) -> Option<usize> {
    match attribute {
        Nla::TcpInfo(info) => Some(info.notsent_bytes as usize),
        _ => None,
    }
}

fn request(port: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family: AF_INET,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::ESTABLISHED,
        socket_id: SocketId { source_port: port, ..SocketId::new_v4() },
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
