//! What is secret is told to nobody.

use super::keys::is_loaded;
use super::*;

/// The log at its loudest, the access log, a trace, metrics and what operators see of connections, with tokens by every
/// carrier, good and bad, and tickets: none of them stands in any of it.
#[test]
fn no_token_or_ticket_is_ever_told() {
    let (key, line) = api_key(&["shop"]);
    let api_keys = format!("auth.api_keys=[{line}]");
    let loud =
        ["--set", "log.level=trace", "--set", "access_log.to=stderr", "--set", "admin.listen=127.0.0.1:0"];
    let mut server = strict(&[&loud[..], &["--set", &api_keys]].concat());
    let operators = server.wait_log(|line| message_of(line).as_deref() == Some("admin"));
    let operators =
        field(&operators, "listen").expect("where operators look in").parse().expect("an address");
    let mut trace = Conn::open(operators);
    trace.send("GET", "/trace?channel=private/a", &[EVENTS], "");
    trace.read_head().expect(200);
    let good = token::of("anna").sign();
    let expired = token::of("anna").until(token::now_s() - 5).sign();
    let forbidden = token::of("anna").subscribe(&[]).publish(&[]).sign();
    let answer =
        ask(server.addr(), "POST", "/tickets", &[("Authorization", &bearer(&good))], "").expect(201).json();
    let ticket = answer["ticket"].as_str().expect("a ticket").to_owned();
    let mut secrets = vec![ticket.clone(), "a-ticket-that-was-never-given".to_owned(), key.clone()];
    let altered = format!("{}x", expired.trim_end_matches(char::is_alphanumeric));
    for token in [&good, &expired, &forbidden, &altered, &"no.such.token".to_owned(), &key] {
        secrets.push(token.clone());
        let (authorization, cookie) = (bearer(token), format!("pushline_token={token}"));
        let carriers: [(Headers, &str); 3] = [
            (&[("Authorization", &authorization)], ""),
            (&[], &format!("token={token}")),
            (&[("Cookie", &cookie)], ""),
        ];
        for (credentials, query) in carriers {
            for (method, target, headers, body, _) in ways("private/a") {
                let all = [&headers[..], credentials].concat();
                asked(&mut Conn::open(server.addr()), method, &with_query(&target, query), &all, &body);
            }
            let target = with_query("/channels/private/a", query);
            for protocol in ["", V1_NAME] {
                let mut all = credentials.to_vec();
                all.extend((!protocol.is_empty()).then_some(("Sec-WebSocket-Protocol", protocol)));
                let mut socket = Socket::open_with(server.addr(), &target, &all);
                socket.text(&json!({"type": "auth", "token": token}).to_string());
                socket.frame();
            }
            // What cannot be read at all, and a request that ends in the middle.
            let mut conn = Conn::open(server.addr());
            conn.send_raw(format!(
                "GET {target} HTTP/1.1\r\nHost: x y\r\nAuthorization: Bearer {token}\r\n\r\n"
            ));
            conn.read_response();
            let mut conn = Conn::open(server.addr());
            conn.send_raw(format!(
                "GET {target} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nCookie: {cookie}"
            ));
        }
    }
    for ticket in &secrets[..2] {
        for (method, target, headers, body, _) in ways("private/a") {
            let target = with_query(&target, &format!("ticket={ticket}"));
            asked(&mut Conn::open(server.addr()), method, &target, &headers, &body);
        }
    }
    let open = Stream::open_with(server.addr(), "/channels/private/a", &[("Authorization", &bearer(&good))]);
    let mut told: Vec<String> = ["/metrics", "/connections", "/channels"]
        .map(|target| get(operators, target).expect(200).text())
        .into();
    assert!(told[1].contains("anna"), "{}", told[1]);
    drop(open);
    server.signal(libc::SIGHUP);
    server.wait_log(is_loaded);
    server.signal(libc::SIGTERM);
    server.wait_exit();
    while trace.fill().is_ok_and(|bytes| bytes > 0) {}
    told.push(String::from_utf8_lossy(trace.ahead()).into_owned());
    assert!(told[3].contains("private/a"), "{}", told[3]);
    let log = server.log();
    assert!(log.iter().any(|line| line.contains("signature")), "why tokens were refused");
    assert!(log.iter().any(|line| line.contains("token=-")), "the access log");
    told.extend(log);
    secrets.push(token::SECRET.to_owned());
    for secret in &secrets {
        // Of a token each part: a header or claims in the log would be as bad.
        for part in secret.split('.').filter(|part| part.len() > 12) {
            let line = told.iter().find(|line| line.contains(part));
            assert_eq!(line, None, "{part}");
        }
    }
}
