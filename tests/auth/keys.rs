//! Keys that change while the server runs, and those of others.

use super::*;

/// Files of a test's own, removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pushline-auth-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("a file");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn private(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(name))
        .expect("a key of the tests")
}

/// Sends SIGHUP and waits for what it comes to: one more line than before that fits.
pub fn reload(server: &mut Server, fits: impl Fn(&str) -> bool) {
    let before = server.log().iter().filter(|line| fits(line)).count();
    server.signal(libc::SIGHUP);
    let mut seen = 0;
    server.wait_log(|line| {
        seen += usize::from(fits(line));
        seen > before
    });
}

pub fn is_loaded(line: &str) -> bool {
    message_of(line).is_some_and(|message| message.contains("loaded anew"))
}

fn is_refused(line: &str) -> bool {
    message_of(line).is_some_and(|message| message.starts_with("reload: "))
        && field(line, "level").as_deref() == Some("ERROR")
}

#[test]
fn keys_change_without_a_restart_and_drop_nobody() {
    let folder = Folder::new("reload");
    let secret = |letter: &str| letter.repeat(40);
    let signed = |letter: &str| {
        let claims =
            json!({ "sub": "anna", "exp": token::now_s() + 600, "subscribe": ["**"], "publish": ["**"] });
        encode(&Header::default(), &claims, &EncodingKey::from_secret(secret(letter).as_bytes()))
            .expect("a token")
    };
    let keys = |more: &str| {
        format!(
            "[auth]\nkeys = [{{ algorithm = 'HS256', secret_file = '{}' }}]\n{more}",
            folder.path("secret")
        )
    };
    folder.write("secret", &(secret("a") + "\n"));
    folder.write("pushline.toml", &keys(""));
    let mut server = Server::start(&["--config", &folder.path("pushline.toml"), "--workers", "2"]);
    let status = |server: &Server, token: Option<&str>| {
        let value = token.map(bearer);
        let headers: Vec<_> = value.iter().map(|value| ("Authorization", value.as_str())).collect();
        ask(server.addr(), "GET", "/channels/news", &headers, "").status
    };
    let (old, new) = (signed("a"), signed("b"));
    assert_eq!((status(&server, Some(&old)), status(&server, Some(&new))), (200, 401));
    let mut stream = Stream::open_with(server.addr(), "/channels/news", &[("Authorization", &bearer(&old))]);
    let mut raw = Socket::open_with(server.addr(), "/channels/news", &[("Authorization", &bearer(&old))]);

    // What is wrong changes nothing, and is said.
    folder.write("secret", "short");
    reload(&mut server, |line| is_refused(line) && line.contains("5 bytes"));
    folder.write("pushline.toml", "[auth]\nkeys = 5");
    reload(&mut server, |line| is_refused(line) && line.contains("auth.keys"));
    folder.write("pushline.toml", "");
    reload(&mut server, |line| is_refused(line) && line.contains("restart"));
    assert_eq!(
        (status(&server, Some(&old)), status(&server, Some(&new)), status(&server, None)),
        (200, 401, 401)
    );

    // A new key, and a rule for strangers.
    folder.write("secret", &secret("b"));
    folder.write("pushline.toml", &keys("anonymous = { subscribe = ['news'] }"));
    reload(&mut server, is_loaded);
    assert_eq!(
        (status(&server, Some(&old)), status(&server, Some(&new)), status(&server, None)),
        (401, 200, 200)
    );

    // Nobody was dropped: both still read, and the old token's WebSocket still publishes.
    raw.text("still here");
    assert_eq!(raw.expect_text(), "still here");
    assert_eq!(stream.texts(1), ["still here"]);
}

/// What is not read anew is said by name; and a secret under a mistyped name is not.
#[test]
fn a_reload_says_what_takes_a_restart() {
    let folder = Folder::new("restart");
    let config = |secret: &str, more: &str| {
        let key = format!("keys = [{{ algorithm = 'HS256', {secret} = '{}' }}]", token::SECRET);
        folder.write("pushline.toml", &format!("[auth]\n{key}\n{more}"));
    };
    config("secret", "");
    let mut server = Server::start(&["--config", &folder.path("pushline.toml"), "--workers", "1"]);
    let is_told = |line: &str| message_of(line).is_some_and(|message| message.contains("a restart alone"));
    let more = "[limits]\nconnections = 5\n[quotas.address]\nconnections = 1\n[origins]\nallow = ['https://a.example']";
    config("secret", more);
    reload(&mut server, is_told);
    let line = server.wait_log(is_told);
    assert_eq!(field(&line, "level").as_deref(), Some("WARN"));
    let changed = field(&line, "changed").expect("their names");
    assert_eq!(changed, "limits.connections, origins.allow, quotas.address.connections");
    config("secrett", more);
    reload(&mut server, |line| is_refused(line) && line.contains("secrett"));
    // Back to what it was: nothing waits any more.
    config("secret", "");
    reload(&mut server, is_loaded);
    assert_eq!(server.log().iter().filter(|line| is_told(line)).count(), 1);
    assert_eq!(server.log().iter().find(|line| line.contains(token::SECRET)), None);
}

#[test]
fn keys_of_others_come_as_a_jwks_file() {
    let folder = Folder::new("jwks");
    let pem = private("eddsa.pub.pem");
    let pem = String::from_utf8(pem).expect("PEM");
    let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(der).expect("PEM");
    let x = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&der[12..]);
    let set = json!({ "keys": [
        { "kty": "OKP", "crv": "Ed25519", "x": x, "kid": "theirs", "use": "sig", "alg": "EdDSA" },
        { "kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "enc", "alg": "RSA-OAEP-256" },
    ]});
    folder.write("jwks.json", &set.to_string());
    let server = Server::start(&["--set", &format!("auth.jwks_file={}", folder.path("jwks.json"))]);
    let left_out = server.wait_log(|line| field(line, "left_out").is_some());
    assert!(left_out.contains("keys[1]") && left_out.contains("use"), "{left_out}");
    let claims = json!({ "sub": "anna", "exp": token::now_s() + 60, "subscribe": ["**"] });
    let key = EncodingKey::from_ed_pem(&private("eddsa.pem")).expect("a key");
    for (kid, status) in [(Some("theirs"), 200), (None, 200), (Some("another"), 401)] {
        let header = Header { kid: kid.map(Into::into), ..Header::new(Algorithm::EdDSA) };
        let token = bearer(&encode(&header, &claims, &key).expect("a token"));
        let answer = ask(server.addr(), "GET", "/channels/news", &[("Authorization", &token)], "");
        assert_eq!(answer.status, status, "{kid:?}: {answer}");
    }
}
