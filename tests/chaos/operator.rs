//! What operators do while all goes on: load configuration and certificates anew, take tokens back, look at metrics.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::door::Site;
use super::{World, liar};
use crate::common::http::{ask, get};
use crate::common::rng::Rng;
use crate::common::server::Server;
use crate::common::tls::{ClientTls, Identity, client};
use crate::common::{DEADLINE, until};

/// Has the configuration loaded anew, now and then, with another certificate; or half of it, when the server still reads what
/// was there before.
pub fn hang_up(world: &World, site: &Site, mut rng: Rng) {
    while world.goes_on() {
        rng.pick(&site.identities).write(&site.dir.lock().expect("no panic under the lock").0, "own");
        let pid = world.pid();
        let done = std::process::Command::new("kill").args(["-HUP", &pid.to_string()]).status();
        if !done.expect("kill runs").success() {
            until("the server is gone, and another is in its place", || (world.pid() != pid).then_some(()));
        }
        std::thread::sleep(Duration::from_millis(rng.within(50..=400) as u64));
    }
}

/// Takes the tokens of liars back, now and then.
pub fn take_back(world: &World, mut rng: Rng) {
    const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];
    while world.goes_on() {
        let what = format!("{{\"subject\":\"{}\"}}", liar::subject(&mut rng));
        let answer = ask(world.admin, "POST", "/revocations", JSON, what);
        assert!(answer.status < 500, "{answer}");
        // What operators look at while all this goes on.
        get(world.admin, "/metrics").expect(200);
        std::thread::sleep(Duration::from_millis(rng.within(100..=600) as u64));
    }
}

/// From now on, this certificate is shown.
pub fn renew(server: &mut Server, tls: SocketAddr, site: &Site, identity: &Identity) {
    identity.write(&site.dir.lock().expect("no panic under the lock").0, "own");
    server.signal(libc::SIGHUP);
    let config = Arc::new(client(&[identity], rustls::DEFAULT_VERSIONS));
    until("the certificate that was there last", || {
        let mut stream = TcpStream::connect(tls).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        ClientTls::new(Arc::clone(&config), "localhost").conn.complete_io(&mut stream).ok().map(drop)
    });
}
