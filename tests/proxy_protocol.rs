//! The PROXY protocol before everything else of a connection: who must speak it, who may not, and what it changes.

use crate::common;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::http::{AT_ONCE, Conn, End, publish, timed, wire};
use common::server::{Server, field, message_of};
use common::sse::Stream;
use common::tls::TlsServer;
use common::until;
use common::ws::{Message, Socket, request};

const TRUSTED: &[&str] = &["--set", "proxy.protocol=true", "--set", "proxy.trusted=127.0.0.0/8"];
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n";
const V1_CLIENT: &str = "192.0.2.7:4711";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
    [SIGNATURE, &[0x20 | command, family], &length, rest].concat()
}

/// One of version 2 for [2001:db8::7]:9, with something that proxies add.
fn v2_tcp6() -> Vec<u8> {
    let mut rest = vec![0; 36];
    rest[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    (rest[15], rest[33]) = (7, 9);
    rest.extend([0x04, 0x02, 0x00]);
    rest.extend([0; 512]);
    v2(1, 0x21, &rest)
}

fn started(args: &[&str]) -> Server {
    Server::start(&[TRUSTED, args].concat())
}

/// A connection that began with `header`.
fn conn(addr: SocketAddr, header: &[u8]) -> Conn {
    let mut conn = Conn::open(addr);
    conn.send_raw(header);
    conn
}

/// What the log says of the connection that ended for `reason`, and nothing before it did.
fn closed_for(server: &Server, reason: &str) -> String {
    server.wait_log(|line| {
        message_of(line).as_deref() == Some("closed") && field(line, "reason").as_deref() == Some(reason)
    })
}

/// The address that the server knows for the one connection that `header` begins.
fn known_as(header: &[u8]) -> String {
    let server = started(&[]);
    let mut conn = conn(server.addr(), header);
    conn.get("/healthz").expect(200);
    drop(conn);
    field(&closed_for(&server, "gone"), "peer").expect("an address")
}

#[test]
fn the_header_says_who_the_client_is() {
    assert_eq!(known_as(V1), V1_CLIENT);
    assert_eq!(known_as(b"PROXY TCP6 2001:db8::7 ::1 9 80\r\n"), "[2001:db8::7]:9");
    assert_eq!(known_as(&v2(1, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x67, 0, 80])), V1_CLIENT);
    assert_eq!(known_as(&v2_tcp6()), "[2001:db8::7]:9");
}

#[test]
fn one_that_says_nothing_leaves_the_proxys_address() {
    for header in [&b"PROXY UNKNOWN\r\n"[..], &v2(0, 0, &[]), &v2(1, 0, &[])] {
        assert!(known_as(header).starts_with("127.0.0.1:"), "{header:?}");
    }
}

#[test]
fn it_may_come_in_any_pieces() {
    let server = started(&[]);
    let get = wire(server.addr(), "GET", "/healthz", &[], b"");
    for header in [V1, &v2_tcp6()[..]] {
        let mut conn = Conn::open(server.addr());
        for byte in [header, &get].concat() {
            conn.send_raw([byte]);
        }
        conn.expect_answer_to("GET");
        conn.read_response().expect(200);
        // At once with the request, and cut in the middle of both.
        let all = [header, &get].concat();
        for cut in [1, header.len() - 1, header.len(), header.len() + 1] {
            let mut conn = Conn::open(server.addr());
            conn.send_raw(&all[..cut]);
            conn.quiet(Duration::from_millis(30));
            conn.send_raw(&all[cut..]);
            conn.expect_answer_to("GET");
            conn.read_response().expect(200);
            conn.get("/healthz").expect(200);
        }
    }
}

#[test]
fn every_transport_works_behind_it() {
    let server = started(&[]);
    let addr = server.addr();
    let mut asking = conn(addr, V1);
    asking.send("GET", "/channels/c", &[("Accept", "text/event-stream")], "");
    let mut events = Stream::of(asking);
    events.event().named("$open");
    let mut socket = conn(addr, &v2_tcp6());
    socket.send_raw(request(addr, "/channels/c", &[]));
    let mut socket = Socket::of(socket).expect("a handshake");
    socket.text("hello");
    assert_eq!(socket.message(), Message::Text("hello".into()));
    assert_eq!(events.message().data, "hello");
    drop((events, socket));
    let mut clients: Vec<_> = ["sse", "websocket"]
        .map(|transport| {
            let line = server.wait_log(|line| {
                message_of(line).as_deref() == Some("closed")
                    && field(line, "transport").as_deref() == Some(transport)
            });
            field(&line, "peer").expect("an address")
        })
        .into();
    clients.sort();
    assert_eq!(clients, [V1_CLIENT, "[2001:db8::7]:9"]);
}

#[test]
fn without_one_a_proxys_connection_is_closed_unanswered() {
    let get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let long = [b"PROXY UNKNOWN ", &[b'x'; 200][..], b"\r\n"].concat();
    for header in [&get[..], b"PROXY TCP4 nonsense\r\n", &v2(1, 0x11, &[1]), &long] {
        let server = started(&[]);
        let mut conn = Conn::open(server.addr());
        let _ = conn.try_send_raw(header);
        let end = conn.end_within(AT_ONCE);
        assert!(matches!(end, End::Closed | End::Reset), "{end:?}: {header:?}");
        let line = closed_for(&server, "bad_proxy");
        assert!(field(&line, "peer").expect("an address").starts_with("127.0.0.1:"), "{line}");
    }
}

#[test]
fn one_that_comes_too_slowly_is_closed_unanswered() {
    let server = started(&["--set", "timeouts.head_seconds=0.5", "--set", "timeouts.idle_seconds=60"]);
    for part in [&b""[..], &V1[..10]] {
        let mut conn = conn(server.addr(), part);
        let ((), took) = timed(|| conn.eof());
        assert!(took < AT_ONCE, "{took:?}");
    }
    closed_for(&server, "request_timeout");
}

#[test]
fn nobody_elses_header_counts() {
    let args = ["--set", "proxy.protocol=true", "--set", "proxy.trusted=192.0.2.0/24,unix"];
    let server = Server::start(&args);
    publish(server.addr(), "c", "without a header");
    let mut conn = conn(server.addr(), &[V1, b"\r\n"].concat());
    conn.expect_answer_to("GET");
    conn.read_response().problem(400);
    conn.eof();
}

#[test]
fn a_second_header_is_no_request() {
    let server = started(&[]);
    let mut conn = conn(server.addr(), &[V1, V1, b"\r\n"].concat());
    conn.expect_answer_to("GET");
    conn.read_response().problem(400);
}

/// Before TLS too: the header goes before the handshake, whole or in pieces, together with it or not.
#[test]
fn the_header_goes_before_the_handshake() {
    let node = TlsServer::start(TRUSTED);
    for header in [V1, &v2_tcp6()[..]] {
        for cut in [0, 1, header.len() - 1] {
            let mut conn = Conn::open(node.tls);
            conn.send_bare(&header[..cut]);
            if cut > 0 {
                std::thread::sleep(Duration::from_millis(30));
            }
            conn.send_bare(&header[cut..]);
            conn.get("/healthz").expect(200);
            conn.get("/channels/c").expect(200);
        }
    }
    let clients = |line: &str| field(line, "peer").is_some_and(|peer| peer == V1_CLIENT);
    node.server.wait_log(|line| message_of(line).as_deref() == Some("closed") && clients(line));
    let mut conn = Conn::open(node.tls);
    conn.send_bare(b"PROXY TCP4 nonsense\r\n");
    assert!(matches!(conn.end_within(AT_ONCE), End::Closed | End::Reset));
    closed_for(&node.server, "bad_proxy");
}

/// A proxy's check that comes and goes is no fault of the server's, plainly or by TLS.
#[test]
fn one_that_comes_and_goes_is_told_as_that() {
    let node = TlsServer::start(TRUSTED);
    for addr in [node.plain, node.tls] {
        for (header, resets, reason) in [
            (&b""[..], false, "gone"),
            (&V1[..10], false, "gone"),
            (&b""[..], true, "reset"),
            (&V1[..10], true, "reset"),
        ] {
            let mut conn = Conn::open(addr);
            conn.send_bare(header);
            let own = conn.stream().local_addr().expect("an address").to_string();
            if resets {
                conn.abort();
            } else {
                drop(conn);
            }
            let line = node.server.wait_log(|line| {
                message_of(line).as_deref() == Some("closed") && field(line, "peer").as_deref() == Some(&own)
            });
            assert_eq!(field(&line, "reason").as_deref(), Some(reason), "{addr}: {line}");
        }
    }
}

#[test]
fn proxies_come_by_unix_sockets_too() {
    let path = std::env::temp_dir().join(format!("pushline-pp-{}.sock", std::process::id()));
    let listen = format!("unix:{}", path.display());
    let server = Server::start_bare(&[
        "--listen",
        &listen,
        "--set",
        "proxy.protocol=true",
        "--set",
        "proxy.trusted=unix",
    ]);
    let mut conn = Conn::open_unix(&path);
    conn.send_raw(V1);
    conn.get("/healthz").expect(200);
    drop(conn);
    assert_eq!(field(&closed_for(&server, "gone"), "peer").as_deref(), Some(V1_CLIENT));
}

/// A proxy that ends with the test.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// HAProxy, if it is installed (tests/run installs it), with either version, by a port.
#[test]
fn haproxy_speaks_it() {
    if Command::new("haproxy").arg("-v").stdout(Stdio::null()).status().is_err() {
        return eprintln!("skipped: no haproxy here");
    }
    for send in ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"] {
        let server = started(&[]);
        let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("proxy-protocol-{send}-{}.cfg", std::process::id()));
        let text = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n\
             frontend f\n bind {free}\n default_backend b\nbackend b\n server s {} {send}\n",
            server.addr()
        );
        fs::write(&file, text).expect("a file");
        let child =
            Command::new("haproxy").args(["-db", "-f"]).arg(&file).spawn().expect("it ran a moment ago");
        let _proxy = Proxy(child);
        until("haproxy listens", || TcpStream::connect(free).ok().map(drop));
        let mut conn = Conn::open(free);
        conn.get("/healthz").expect(200);
        let own = conn.stream().local_addr().expect("an address").to_string();
        drop(conn);
        let line = server.wait_log(|line| {
            message_of(line).as_deref() == Some("closed") && field(line, "peer").as_deref() == Some(&own)
        });
        assert_eq!(field(&line, "reason").as_deref(), Some("gone"), "{line}");
        let _ = fs::remove_file(&file);
    }
}
