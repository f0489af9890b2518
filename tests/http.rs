//! HTTP/1.1 itself (RFC 9110, 9112): what holds for every route.

mod common;

use common::http::{Conn, get};
use common::server::Server;

#[test]
fn healthz_is_200() {
    let server = Server::start(&[]);
    get(server.addr(), "/healthz").expect(200);
    Conn::open(server.addr()).request("HEAD", "/healthz", &[], "").expect(200);
}
