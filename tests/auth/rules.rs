//! What the configuration permits no more is lost by those who had it.

use super::keys::{Folder, is_loaded, reload};
use super::*;

/// A stream, a `pushline.v1` and a raw WebSocket that read `a`, and what ends them.
struct Held {
    stream: Stream,
    v1: V1,
    raw: Socket,
}

impl Held {
    fn open(server: &Server, headers: Headers) -> Self {
        let v1_headers = [headers, &[("Sec-WebSocket-Protocol", V1_NAME)]].concat();
        let mut v1 = V1::of(Socket::open_with(server.addr(), "/channels/a", &v1_headers));
        v1.expect("subscribed");
        Self {
            stream: Stream::open_with(server.addr(), "/channels/a", headers),
            v1,
            raw: Socket::open_with(server.addr(), "/channels/a", headers),
        }
    }

    #[track_caller]
    fn are_revoked(mut self) {
        assert_eq!(self.stream.event().named("$close").json()["reason"], "revoked");
        assert_eq!(self.v1.expect("closing")["reason"], "revoked");
        self.v1.socket.expect_close(4401);
        assert_eq!(self.raw.message(), Message::Close(4401));
    }
}

#[test]
fn what_the_configuration_permits_no_more_is_lost_at_once() {
    let folder = Folder::new("rules");
    let digest = |key: &str| Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let key = |grants: &str| format!("{{ name = 'shop', sha256 = '{}', {grants} }}", digest("pushline_key"));
    let rules = |keys: &str, anonymous: &str| {
        format!(
            "[auth]\nkeys = [{{ algorithm = 'HS256', secret = '{}' }}]\napi_keys = [{keys}]\nanonymous = {{ {anonymous} }}",
            token::SECRET
        )
    };
    let every = "publish = ['**'], subscribe = ['**']";
    folder.write("pushline.toml", &rules(&key(every), every));
    let mut server = Server::start(&["--config", &folder.path("pushline.toml"), "--workers", "2"]);
    let shop: Headers = &[("Authorization", "Bearer pushline_key")];
    let (shops, strangers) = (Held::open(&server, shop), Held::open(&server, &[]));
    let mut anna = Held::open(&server, &[("Authorization", &bearer(&token::of("anna").sign()))]);
    let publish = |v1: &mut V1, channel: &str| {
        v1.send(json!({ "type": "publish", "channel": channel, "data": "x", "seq": 1 }));
    };

    // What is changed without any difference ends nobody; what is narrowed holds from then on.
    folder.write("pushline.toml", &rules(&key("publish = ['b'], subscribe = ['**']"), every));
    reload(&mut server, is_loaded);
    let Held { mut stream, mut v1, raw } = shops;
    publish(&mut v1, "a");
    assert_eq!(v1.expect("error")["code"], "forbidden");
    publish(&mut v1, "b");
    v1.expect("published");
    let body = ask(server.addr(), "POST", "/channels/a", &[TEXT], "still").expect(201);
    drop(body);
    assert_eq!((stream.texts(1), v1.texts(1)), (vec!["still".to_owned()], vec!["still".to_owned()]));

    // The key is gone, and strangers may nothing more.
    folder.write("pushline.toml", &rules("", ""));
    reload(&mut server, is_loaded);
    let mut shops = Held { stream, v1, raw };
    assert_eq!(shops.raw.expect_text(), "still");
    shops.are_revoked();
    let Held { mut stream, mut v1, mut raw } = strangers;
    assert_eq!(
        (stream.texts(1), v1.texts(1), raw.expect_text()),
        (vec!["still".to_owned()], vec!["still".to_owned()], "still".into())
    );
    assert_eq!(stream.event().named("$close").json()["reason"], "revoked");
    assert_eq!(v1.expect("error")["code"], "subscription_ended");
    publish(&mut v1, "a");
    assert_eq!(v1.expect("error")["code"], "unauthorized");
    v1.send(json!({ "type": "subscribe", "channel": "c", "seq": 2 }));
    assert_eq!(v1.expect("error")["code"], "unauthorized");
    assert_eq!(raw.message(), Message::Close(4401));

    // A token grants what it did.
    publish(&mut anna.v1, "a");
    assert_eq!(anna.stream.texts(2), ["still", "x"]);
    assert_eq!(anna.raw.expect_text(), "still");
}
