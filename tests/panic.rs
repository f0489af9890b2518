//! A panic in one connection's code closes that connection, is counted, and harms no other. Debug builds panic when asked to.

use crate::common;

use common::http::{Conn, publish};
use common::server::{Server, descriptors, field, message_of};
use common::sse::Stream;
use common::ws::{Socket, V1};

#[test]
fn a_panic_closes_its_connection_alone() {
    let mut server = Server::start(&["--workers", "1"]);
    server.expect_panics();
    let addr = server.addr();
    let mut stream = Stream::open(addr, "/channels/a");
    let (mut v1, _) = V1::subscribed(addr, "a");
    let before = descriptors(server.pid());

    // In the task that serves a request.
    let mut conn = Conn::open(addr);
    conn.send("GET", "/$debug/panic", &[], "");
    conn.eof();
    // In the session of a WebSocket.
    for _ in 0..3 {
        let mut socket = Socket::open(addr, "/channels/a");
        socket.text("$debug/panic");
        socket.expect_close(1011);
    }

    publish(addr, "a", "still here");
    assert_eq!(stream.texts(1), ["still here"]);
    assert_eq!(v1.texts(1), ["still here"]);
    common::until("the descriptors are closed", || (descriptors(server.pid()) <= before).then_some(()));

    drop((stream, v1));
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    let stopped = server.wait_log(|line| message_of(line).as_deref() == Some("stopped"));
    assert_eq!(field(&stopped, "panics").as_deref(), Some("4"), "{stopped}");
}
