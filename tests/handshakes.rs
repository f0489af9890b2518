//! TLS handshakes as `/metrics` tells of them: each that was awaited ended well, failed for one of the reasons of the list,
//! or goes on.

use crate::common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use common::admin::{Metrics, addr_of};
use common::http::Conn;
use common::tls::{ClientTls, Identity, TlsServer, client, speaks_tls};
use common::{DEADLINE, until};
use rustls::ClientConfig;

const REASONS: [&str; 7] = ["gone", "late", "plain", "incompatible", "alert", "malformed", "server"];

struct Counts {
    begun: f64,
    done: f64,
    resumed: f64,
    failed: f64,
}

fn counts(admin: SocketAddr) -> Counts {
    let metrics = Metrics::scrape(admin);
    let of = |what: &str| metrics.sum(&format!("pushline_tls_handshakes_{what}_total"), &[]);
    Counts { begun: of("begun"), done: of("done"), resumed: of("resumed"), failed: of("failed") }
}

fn failed(admin: SocketAddr, reason: &str) -> f64 {
    Metrics::scrape(admin).sum("pushline_tls_handshakes_failed_total", &[("reason", reason)])
}

fn start(args: &[&str]) -> (TlsServer, SocketAddr) {
    let server = TlsServer::start(&[&["--set", "admin.listen=127.0.0.1:0"], args].concat());
    let admin = addr_of(&server.server);
    (server, admin)
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the server accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("above zero");
    stream
}

/// As far as it goes.
fn shake(addr: SocketAddr, config: ClientConfig) {
    let mut stream = connect(addr);
    let mut tls = ClientTls::new(Arc::new(config), "localhost");
    let _ = tls.conn.complete_io(&mut stream);
    // What it has to say to a failure.
    let _ = tls.conn.write_tls(&mut stream);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn those_that_end_well() {
    let (server, admin) = start(&["--workers", "2"]);
    // Plain connections are none.
    Conn::open(server.plain).get("/healthz").expect(200);
    let Counts { begun, done, resumed, failed } = counts(admin);
    assert_eq!((begun, done, resumed, failed), (0.0, 0.0, 0.0, 0.0));
    speaks_tls(server.tls, client(&[&server.identity], rustls::DEFAULT_VERSIONS));
    for _ in 0..3 {
        let mut conn = Conn::open(server.tls);
        conn.get("/healthz").expect(200);
        // A ticket of TLS 1.3 comes behind the handshake.
        conn.get("/healthz").expect(200);
    }
    let Counts { begun, done, resumed, failed } = counts(admin);
    assert_eq!((begun, done, resumed, failed), (3.0, 3.0, 2.0, 0.0));
}

#[test]
fn those_that_fail_and_why() {
    let (server, admin) = start(&["--workers", "1", "--set", "timeouts.head_seconds=0.5"]);
    let hello = server.hello();
    let says = |bytes: &[u8]| {
        let mut stream = connect(server.tls);
        stream.write_all(bytes).expect("the server reads");
        stream
    };
    let ways: [(&str, &dyn Fn()); 9] = [
        ("gone", &|| drop(connect(server.tls))),
        ("gone", &|| drop(says(&hello[..20]))),
        ("late", &|| drop(says(&[]).read_to_end(&mut Vec::new()))),
        ("late", &|| drop(says(&hello[..20]).read_to_end(&mut Vec::new()))),
        ("plain", &|| drop(says(b"GET / HTTP/1.1\r\n").read_to_end(&mut Vec::new()))),
        ("incompatible", &|| {
            let mut config = client(&[&server.identity], rustls::DEFAULT_VERSIONS);
            config.alpn_protocols = vec![b"h2".to_vec()];
            shake(server.tls, config);
        }),
        // It does not trust the certificate, and says so.
        ("alert", &|| {
            shake(server.tls, client(&[&Identity::new(&["localhost"])], &[&rustls::version::TLS12]))
        }),
        ("malformed", &|| drop(says(b"\x00\x01\x02\x03\x04\x05\x06").read_to_end(&mut Vec::new()))),
        ("malformed", &|| drop(says(&[0x16, 3, 1, 0xFF, 0xFF, 1]).read_to_end(&mut Vec::new()))),
    ];
    for (at, (reason, way)) in ways.iter().enumerate() {
        let before: Vec<f64> = REASONS.iter().map(|reason| failed(admin, reason)).collect();
        way();
        until(&format!("{at}: {reason}"), || {
            (counts(admin).failed == before.iter().sum::<f64>() + 1.0).then_some(())
        });
        for (name, before) in REASONS.iter().zip(before) {
            let more = failed(admin, name) - before;
            assert_eq!(more, f64::from(u8::from(name == reason)), "{at}: {name} in place of {reason}");
        }
    }
    let Counts { begun, done, failed, .. } = counts(admin);
    assert_eq!((begun, done, failed), (ways.len() as f64, 0.0, ways.len() as f64));
    assert_eq!(
        Metrics::scrape(admin).values("pushline_tls_handshakes_failed_total", "reason").len(),
        REASONS.len()
    );
}

/// One that the server itself ends: it drains.
#[test]
fn those_that_the_server_ends() {
    let (mut server, admin) = start(&["--workers", "1", "--set", "drain.window_seconds=3"]);
    let mut reader = common::sse::Stream::open(server.plain, "/channels/a");
    let mut begun = connect(server.tls);
    begun.write_all(&server.hello()[..20]).expect("the server reads");
    until("it has begun", || (counts(admin).begun == 1.0).then_some(()));
    // A request that has begun is waited for: the server is there to be asked.
    let mut half = connect(server.plain);
    let head = format!("POST /channels/a HTTP/1.1\r\nHost: {}\r\nContent-Length: 9\r\n\r\nha", server.plain);
    half.write_all(head.as_bytes()).expect("the server reads");
    server.server.signal(libc::SIGTERM);
    let _ = begun.read_to_end(&mut Vec::new());
    until("it is counted", || (failed(admin, "server") == 1.0).then_some(()));
    reader.event().named("$close");
}

/// More come at once than there is time for: they wait for their turn, and then all are served.
#[test]
fn those_that_wait() {
    let (server, admin) = start(&["--workers", "1"]);
    let hello = server.hello();
    let mut opened = 0.0;
    let most = until("some wait", || {
        opened += 200.0;
        let streams: Vec<TcpStream> = (0..200).map(|_| connect(server.tls)).collect();
        for mut stream in &streams {
            stream.write_all(&hello).expect("the server reads");
        }
        let waiting = Metrics::scrape(admin).sum("pushline_tls_handshakes_waiting", &[]);
        (waiting > 0.0).then_some(waiting)
    });
    // Those that left before their turn may wait yet.
    assert!(most <= opened, "{most} of {opened}");
    until("none waits", || {
        (Metrics::scrape(admin).sum("pushline_tls_handshakes_waiting", &[]) == 0.0).then_some(())
    });
    let Counts { begun, done, failed, .. } = counts(admin);
    assert!(begun >= 200.0 && done == 0.0 && failed <= begun, "{begun} {done} {failed}");
}
