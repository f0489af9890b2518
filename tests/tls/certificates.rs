//! Certificates: which is shown to whom, their change while the server runs, their end, and files that are of no use.

use super::*;

#[test]
fn new_certificates_are_shown_to_new_clients_and_bad_files_change_nothing() {
    let mut server = TlsServer::start(&[]);
    let addr = server.tls;
    let mut old = Stream::open(addr, "/channels/news");
    let new = Identity::new(&["localhost"]);
    let new_config = Arc::new(client(&[&new], rustls::DEFAULT_VERSIONS));
    let old_config = Arc::new(client(&[&server.identity], rustls::DEFAULT_VERSIONS));
    assert!(shake(addr, &new_config, "localhost").2.is_err(), "not the new one yet");

    new.write(server.dir(), "own");
    server.server.signal(libc::SIGHUP);
    until("the new certificate", || shake(addr, &new_config, "localhost").2.is_ok().then_some(()));
    assert!(shake(addr, &old_config, "localhost").2.is_err(), "the old one is shown no more");
    publish(server.plain, "news", "still here");
    assert_eq!(old.message().data, "still here", "nobody was dropped");

    std::fs::write(server.dir().join("own.key"), "nothing of use").expect("our own file");
    server.server.signal(libc::SIGHUP);
    let told = server.server.wait_log(|line| line.contains("\"ERROR\""));
    assert!(told.contains("own.key has no private key") && told.contains("old ones are kept"), "{told}");
    shake(addr, &new_config, "localhost").2.expect("what was there before still serves");
}

#[test]
fn the_name_that_is_asked_for_chooses_the_certificate() {
    let files = Files::new();
    let identities = [
        Identity::new(&["localhost"]),
        Identity::new(&["a.example", "*.wild.example"]),
        Identity::new(&["b.example"]),
    ];
    let elements: Vec<String> = (identities.iter().enumerate())
        .map(|(at, identity)| identity.write(&files.0, &format!("identity-{at}")))
        .collect();
    let certificates = format!("tls.certificates=[{}]", elements.join(", "));
    let server = Server::start(&["--set", "tls.listen=127.0.0.1:0", "--set", &certificates]);
    let addr = server.tls_addrs()[0];
    for (name, want) in
        [("localhost", 0), ("a.example", 1), ("A.Example", 1), ("x.wild.example", 1), ("b.example", 2)]
    {
        for (at, identity) in identities.iter().enumerate() {
            let config = Arc::new(client(&[identity], rustls::DEFAULT_VERSIONS));
            assert_eq!(shake(addr, &config, name).2.is_ok(), at == want, "{name} with certificate {at}");
        }
    }
    // Nobody's name, or none: the first is shown, and the client tells its user what is wrong.
    for name in ["c.example", "127.0.0.1"] {
        let config = Arc::new(client(&[&identities[0]], rustls::DEFAULT_VERSIONS));
        let error = shake(addr, &config, name).2.expect_err("another's certificate").to_string();
        assert!(error.contains("NotValidForName") || error.contains("not valid for name"), "{name}: {error}");
    }
}

#[test]
fn files_that_are_of_no_use_are_told_at_start() {
    let files = Files::new();
    let (one, two) = (Identity::new(&["localhost"]), Identity::new(&["localhost"]));
    one.write(&files.0, "one");
    two.write(&files.0, "two");
    let path = |name: &str| files.0.join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(path("empty.pem"), "").expect("our own file");
    let sealed = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(path("sealed.key"), sealed).expect("our own file");
    for (certificate, key, words) in [
        ("none.pem", "one.key", "cannot read"),
        ("one.pem", "none.key", "cannot read"),
        ("empty.pem", "one.key", "has no certificate"),
        ("one.pem", "empty.pem", "has no private key"),
        ("one.pem", "sealed.key", "without a passphrase"),
        ("one.pem", "two.key", "does not belong to"),
    ] {
        let element = format!(
            "tls.certificates=[{{ certificate_file = '{}', key_file = '{}' }}]",
            path(certificate),
            path(key)
        );
        let refusal = Server::refused(&[
            "--listen",
            "127.0.0.1:0",
            "--set",
            "tls.listen=127.0.0.1:0",
            "--set",
            &element,
        ]);
        assert_eq!(refusal.code, Some(2), "{}", refusal.stderr);
        assert!(refusal.stderr.contains(words), "{certificate}, {key}: {}", refusal.stderr);
        let named = if words.contains("read") || words.contains("passphrase") { key } else { certificate };
        let named = if certificate == "none.pem" { certificate } else { named };
        let named = if key == "empty.pem" { key } else { named };
        assert!(refusal.stderr.contains(&path(named)), "{certificate}, {key}: {}", refusal.stderr);
    }
}

/// Keys of every kind that is usual, in each form that files have.
#[test]
fn keys_of_every_kind_serve() {
    let files = Files::new();
    let path = |name: &str| files.0.join(name).to_str().expect("UTF-8").to_owned();
    let run = |args: &[&str]| {
        let output = Command::new("openssl").args(args).output().expect("openssl is installed");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &path("rsa8.key")]);
    run(&["rsa", "-in", &path("rsa8.key"), "-traditional", "-out", &path("rsa1.key")]);
    run(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &path("sec1.key")]);
    run(&["genpkey", "-algorithm", "ED25519", "-out", &path("ed.key")]);
    for key in ["rsa8", "rsa1", "sec1", "ed"] {
        let (key_file, certificate) = (path(&format!("{key}.key")), path(&format!("{key}.pem")));
        run(&[
            "req",
            "-x509",
            "-new",
            "-key",
            &key_file,
            "-subj",
            "/CN=localhost",
            "-days",
            "30",
            "-out",
            &certificate,
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]);
        let element =
            format!("tls.certificates=[{{ certificate_file = '{certificate}', key_file = '{key_file}' }}]");
        let server = Server::start(&["--set", "tls.listen=127.0.0.1:0", "--set", &element]);
        let addr = server.tls_addrs()[0];
        let identity = Identity {
            certificate: std::fs::read_to_string(&certificate).expect("just made"),
            key: String::new(),
        };
        for versions in VERSIONS {
            speaks_tls(addr, client(&[&identity], versions));
            get(addr, "/healthz").expect(200);
        }
    }
}

/// An operator hears of a certificate that ends soon, or has.
#[test]
fn the_end_of_a_certificate_is_told() {
    let server = TlsServer::start(&[]);
    let told = server.server.wait_log(|line| line.contains("\"certificate\""));
    assert!(told.contains("own.pem") && told.contains(" GMT") && told.contains("INFO"), "{told}");

    let files = Files::new();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("a name");
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate().expect("a key");
    let ended = params.self_signed(&key).expect("a certificate");
    let identity = Identity { certificate: ended.pem(), key: key.serialize_pem() };
    let server = TlsServer::start_with(identity, &[]);
    let told = server.server.wait_log(|line| line.contains("certificate has ended"));
    assert!(told.contains("WARN") && told.contains("01 Jan 2021"), "{told}");
    drop(files);
}
