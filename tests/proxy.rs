//! The snippets of tuning/ before Pushline: nginx, HAProxy and Caddy, one message over each transport through each.
//! Needs all three (tests/run installs them, as root, on Debian).

use crate::common;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::http::{AT_ONCE, Conn, Poll, get, head_cursor, publish, timed};
use common::server::Server;
use common::until;
use common::ws::Socket;

const SSE: (&str, &str) = ("Accept", "text/event-stream");

/// A proxy before a server, killed when dropped.
struct Proxy {
    child: Child,
    addr: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A snippet, with the lines that stand there as comments after `#many ` too when `many`, and the replacements, each of
/// which must be found.
fn snippet(name: &str, many: bool, replacements: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(name);
    let mut text = fs::read_to_string(&path).expect("the snippet");
    if many {
        text = text.replace("#many ", "");
    }
    for (from, to) in replacements {
        assert!(text.contains(from), "{from:?} in {name}");
        text = text.replace(from, to);
    }
    text
}

/// A folder of its own, the proxy's file in it, and the commands that check the file and serve by it.
fn prepare(name: &str, many: bool, port: u16, server: SocketAddr) -> (PathBuf, Vec<String>, Vec<String>) {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("proxy-{name}-{many}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a folder");
    let upstream = ("127.0.0.1:8080", &*server.to_string());
    let file = dir.join(name);
    let at = file.to_str().expect("UTF-8");
    let folder = dir.to_str().expect("UTF-8");
    let (text, check, serve): (String, String, String) = match name {
        "nginx.conf" => {
            let inner =
                snippet(name, many, &[("listen 80;", &format!("listen 127.0.0.1:{port};")), upstream]);
            // What the main file of a distribution has; all that is written goes to the folder.
            let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|of| format!("{of}_temp_path {of};"));
            let text = format!(
                "daemon off; master_process off; pid pid; error_log stderr; events {{}}\nhttp {{ access_log off; {} \
                 gzip on;\n{inner}}}\n",
                paths.join(" ")
            );
            (text, format!("nginx -t -p {folder} -c {at}"), format!("nginx -p {folder} -c {at}"))
        }
        "haproxy.cfg" => {
            let text = snippet(name, many, &[("bind :80\n", &format!("bind 127.0.0.1:{port}\n")), upstream]);
            // A limit that an unprivileged user with 20,000 files can have.
            let text = text.replace("maxconn 100000", "maxconn 1000");
            (text, format!("haproxy -c -f {at}"), format!("haproxy -db -f {at}"))
        }
        _ => {
            let site = format!("http://127.0.0.1:{port} {{\n\tbind 127.0.0.1\n");
            let text = snippet(name, many, &[("example.com {\n", &site), upstream]);
            let words = |verb: &str| format!("caddy {verb} --config {at} --adapter caddyfile");
            (format!("{{\n\tadmin off\n}}\n{text}"), words("validate"), words("run"))
        }
    };
    fs::write(&file, text).expect("a file");
    let words = |line: String| line.split(' ').map(str::to_owned).collect();
    (dir, words(check), words(serve))
}

#[allow(unsafe_code)]
fn command(words: &[String], dir: &Path) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(dir).stdin(Stdio::null());
    // Caddy keeps its state below these.
    command.env("HOME", dir).env("XDG_DATA_HOME", dir).env("XDG_CONFIG_HOME", dir);
    // SAFETY: between fork and exec only an async-signal-safe system call is made.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command
}

fn start(name: &str, many: bool, server: SocketAddr) -> Proxy {
    // None of the three tells a port of the kernel's choice: a free one may be taken in between, so try again.
    for _ in 0..5 {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let (dir, check, serve) = prepare(name, many, free.port(), server);
        let checked = command(&check, &dir).output().unwrap_or_else(|error| panic!("{}: {error}", check[0]));
        assert!(checked.status.success(), "{check:?}: {}", String::from_utf8_lossy(&checked.stderr));
        let log = fs::File::create(dir.join("log")).expect("a log");
        let mut child =
            command(&serve, &dir).stdout(Stdio::null()).stderr(log).spawn().expect("it ran a moment ago");
        let up = until(name, || match TcpStream::connect(free) {
            Ok(_) => Some(true),
            Err(_) => child.try_wait().expect("our own child").map(|_| false),
        });
        if up && child.try_wait().expect("our own child").is_none() {
            return Proxy { child, addr: free };
        }
        eprintln!("{name} ended: {}", fs::read_to_string(dir.join("log")).unwrap_or_default());
    }
    panic!("{name} does not serve");
}

/// One message over each transport, through the proxy, each at once: nothing on the way waits for more.
fn carries(name: &str, many: bool) {
    let server = Server::start(&[]);
    let proxy = start(name, many, server.addr());
    let addr = proxy.addr;

    // The proxy frames the stream as it likes: what is looked for is the text.
    let mut stream = Conn::open(addr);
    stream.send("GET", "/channels/c", &[SSE, ("Accept-Encoding", "gzip")], "");
    stream.take_through(b"event: $open").unwrap_or_else(|error| panic!("{name}: the stream opens: {error}"));
    let mut socket = Socket::open(addr, "/channels/c");
    let cursor = head_cursor(addr, "c");
    let mut held = Conn::open(addr);
    held.send("GET", &format!("/channels/c?cursor={cursor}&wait=40"), &[], "");
    // Held over there, not on its way: the answer to another request comes first.
    get(addr, "/healthz").expect(200);

    let ((), took) = timed(|| {
        let id = publish(addr, "c", "through the proxy");
        stream.take_through(b"data: through the proxy\n").unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(socket.expect_text(), "through the proxy", "{name}");
        assert_eq!(Poll::of(&held.read_response()).ids(), [id], "{name}");
    });
    assert!(took < AT_ONCE, "{name}: {took:?}");
    // And the other way.
    socket.text("from the socket");
    stream.take_through(b"data: from the socket\n").unwrap_or_else(|error| panic!("{name}: {error}"));
    // A short poll is confirmed by its tag.
    let tag = get(addr, "/channels/c").expect(200).header("etag").to_owned();
    let mut again = Conn::open(addr);
    again.send("GET", "/channels/c", &[("If-None-Match", &tag)], "");
    again.read_response().expect(304);
}

#[test]
fn nginx() {
    carries("nginx.conf", false);
}

#[test]
fn nginx_from_several_addresses() {
    carries("nginx.conf", true);
}

#[test]
fn haproxy() {
    carries("haproxy.cfg", false);
}

#[test]
fn caddy() {
    carries("Caddyfile", false);
}
