//! What operators see of connections, and the ending of one.

use super::*;

fn ids(list: &Value) -> Vec<&str> {
    let connections = list["connections"].as_array().expect("a list");
    connections.iter().map(|connection| connection["id"].as_str().expect("an id")).collect()
}

/// One that is slow with its request takes a place as any other: it is seen, and can be sent away.
#[test]
fn who_is_in_the_middle_of_a_request_is_listed_and_can_be_ended() {
    let body = "POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc";
    // More than a socket takes of whoever does not read it; with a body, so that a task answers.
    let answer = "GET /channels/large?limit=20 HTTP/1.1\r\nHost: localhost\r\n\
        Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let more = ["--set", "history.bytes=4MiB", "--set", "slow.kernel_bytes=66KiB"];
    for workers in WORKERS {
        let (server, admin) = start(&[&["--workers", workers], &more[..]].concat());
        (0..20).for_each(|_| drop(publish(server.addr(), "large", &"x".repeat(60_000))));
        for (begun, state) in [("GET / HT", "head"), (body, "body"), (answer, "answer")] {
            let mut conns: Vec<Conn> = (0..3).map(|_| Conn::open(server.addr())).collect();
            conns.iter().for_each(|conn| receive_buffer(conn.stream(), 4_096));
            conns.iter_mut().for_each(|conn| conn.send_raw(begun));
            let found = |query: &str| {
                let list = json(admin, &format!("/connections?limit=1000&{query}"));
                let rows = list["connections"].as_array().expect("a list");
                rows.iter().filter(|row| row["state"] == state).cloned().collect::<Vec<Value>>()
            };
            let rows = until("they are listed", || Some(found("")).filter(|rows| rows.len() == 3));
            for query in ["transport=http", "address=127.0.0.0/8", "lag=0"] {
                assert_eq!(found(query).len(), 3, "{query}");
            }
            for query in ["transport=sse", "address=10.0.0.0/8", "lag=1", "subject=anna", "channel=a"] {
                assert_eq!(found(query).len(), 0, "{query}");
            }
            // Pages: each once.
            let mut after = String::new();
            let mut seen = Vec::new();
            loop {
                let page = json(admin, &format!("/connections?limit=1{after}"));
                seen.extend(ids(&page).iter().map(|id| (*id).to_owned()));
                let Some(next) = page["next"].as_str() else { break };
                after = format!("&after={next}");
            }
            for row in rows {
                let id = row["id"].as_str().expect("an id");
                assert_eq!(seen.iter().filter(|seen| *seen == id).count(), 1, "{seen:?}");
                assert!(row["address"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{row}");
                assert!(row["age_seconds"].as_f64().is_some_and(|age| age < 60.0), "{row}");
                assert_eq!(json(admin, &format!("/connections/{id}"))["state"], state);
                let end = || ask(admin, "DELETE", &format!("/connections/{id}"), &[], "");
                end().expect(204);
                until("it is gone", || (end().status == 404).then_some(()));
            }
            if state != "answer" {
                // Nothing was said to them.
                conns.iter_mut().for_each(Conn::eof);
            }
        }
        // The log is written behind them.
        let is_kicked = |line: &&String| field(line, "reason").as_deref() == Some("kicked");
        until("each is in the log", || (server.log().iter().filter(is_kicked).count() == 9).then_some(()));
    }
}

#[test]
fn connections_are_found_by_what_is_known_of_them() {
    for workers in WORKERS {
        let (server, admin) = start(&["--workers", workers]);
        let addr = server.addr();
        let streams: Vec<Stream> = (0..8).map(|_| Stream::open(addr, "/channels/a")).collect();
        let raw = Socket::open(addr, "/channels/b");
        let (mut v1, _) = V1::subscribed(addr, "a");
        v1.ask(json!({ "type": "subscribe", "channel": "b" }), "subscribed");
        let found = |query: &str| ids(&json(admin, &format!("/connections?{query}"))).len();
        until("all are held", || (found("limit=1000") == 10).then_some(()));
        for (query, count) in [
            ("channel=a", 9),
            ("channel=b", 2),
            ("channel=c", 0),
            ("transport=sse", 8),
            ("transport=websocket", 1),
            ("transport=pushline.v1", 1),
            ("transport=long_poll", 0),
            ("channel=b&transport=pushline.v1", 1),
            ("address=127.0.0.1", 10),
            ("address=127.0.0.0/8", 10),
            ("address=10.0.0.0/8", 0),
            ("address=unix", 0),
            ("subject=anna", 0),
            ("lag=1", 0),
            ("lag=0", 10),
        ] {
            assert_eq!(found(query), count, "{query}");
        }
        // Pages: each once, whatever their size.
        for limit in [1, 3, 10] {
            let (mut seen, mut target) = (Vec::new(), format!("/connections?limit={limit}"));
            loop {
                let page = json(admin, &target);
                assert!(ids(&page).len() <= limit, "{page}");
                seen.extend(ids(&page).iter().map(|id| (*id).to_owned()));
                let Some(next) = page["next"].as_str() else { break };
                target = format!("/connections?limit={limit}&after={next}");
            }
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 10, "by {limit}");
        }
        let all = json(admin, "/connections");
        let told = ids(&all);
        assert!(streams.iter().all(|stream| told.contains(&stream.connection.as_str())));
        assert!(told.contains(&v1.connection.as_str()));
        drop(raw);
    }
}

#[test]
fn all_that_is_known_of_one() {
    let (server, admin) = start(&[]);
    let addr = server.addr();
    let (mut v1, _) = V1::subscribed(addr, "a");
    v1.ask(json!({ "type": "subscribe", "channel": "b" }), "subscribed");
    let id = publish(addr, "a", "hello");
    v1.expect("message");
    let target = format!("/connections/{}", v1.connection);
    let one = until("the message is counted", || {
        let one = json(admin, &target);
        (one["reads"][0]["sent_messages"] == 1).then_some(one)
    });
    let port = v1.socket.conn().stream().local_addr().expect("an address").port();
    assert_eq!(one["address"], format!("127.0.0.1:{port}"));
    assert_eq!((&one["transport"], &one["state"]), (&json!("pushline.v1"), &json!("streaming")));
    assert_eq!(
        (&one["channels"], &one["lag_messages"], &one["owed_bytes"]),
        (&json!(2), &json!(0), &json!(0))
    );
    assert_eq!(
        (&one["blocked_seconds"], &one["subject"], &one["token_id"]),
        (&json!(null), &json!(null), &json!(null))
    );
    let reads = one["reads"].as_array().expect("a list");
    let a = &reads[0];
    assert_eq!((&a["channel"], &a["cursor"], &a["standing"]), (&json!("a"), &json!(id), &json!("live")));
    assert_eq!(reads[1]["channel"], "b");
    assert!(one["sent_bytes"].as_u64() > a["sent_bytes"].as_u64(), "{one}");
    assert!(one["tcp"]["congestion_window_segments"].as_u64().is_some_and(|segments| segments > 0), "{one}");
    assert_eq!(one["flags"]["blocked"], false);
    for age in ["age_seconds", "heard_seconds_ago", "said_seconds_ago"] {
        assert!(one[age].as_f64().is_some_and(|seconds| (0.0..60.0).contains(&seconds)), "{age}: {one}");
    }
}

/// Who somebody is, but never by what they showed it.
#[test]
fn connections_of_a_subject_and_their_tokens() {
    let (server, admin) = start(&["--set", token::KEYS]);
    let addr = server.addr();
    let until_s = token::now_s() + 600;
    let token_of = |subject: &str, id: &str| token::of(subject).until(until_s).with("jti", id).sign();
    let (anna, bert) = (token_of("anna", "t-1"), token_of("bert", "t-2"));
    let open =
        |token: &str| Stream::open_with(addr, "/channels/a", &[("Authorization", &token::bearer(token))]);
    let streams = [open(&anna), open(&anna), open(&bert)];
    assert_eq!(ids(&json(admin, "/connections?subject=anna")).len(), 2);
    let list = json(admin, "/connections?subject=bert");
    assert_eq!(ids(&list), [streams[2].connection.as_str()]);
    assert_eq!(list["connections"][0]["subject"], "bert");
    let one = get(admin, &format!("/connections/{}", streams[0].connection)).expect(200);
    assert_eq!((&one.json()["token_id"], &one.json()["expires_at"]), (&json!("t-1"), &json!(until_s)));
    let signature = anna.rsplit('.').next().expect("three parts");
    assert!(!one.text().contains(signature), "{one}");

    // Refusals are counted, by whether anybody was known.
    get(addr, "/channels/a").problem(401);
    let reads_b = token::of("anna").subscribe(&["b"]).sign();
    ask(addr, "GET", "/channels/a", &[("Authorization", &token::bearer(&reads_b))], "").problem(403);
    let metrics = common::admin::Metrics::scrape(admin);
    for reason in ["unauthenticated", "forbidden"] {
        assert_eq!(metrics.sum("pushline_refusals_total", &[("reason", reason)]), 1.0, "{reason}");
    }
    assert!(!metrics.text.contains(signature));
}

#[test]
fn one_is_ended_as_its_transport_says() {
    for workers in WORKERS {
        let (server, admin) = start(&["--workers", workers]);
        let addr = server.addr();
        let kick = |id: &str| ask(admin, "DELETE", &format!("/connections/{id}"), &[], "");

        let mut stream = Stream::open(addr, "/channels/a");
        kick(&stream.connection).expect(204);
        let close = stream.event().named("$close").json();
        assert_eq!(close["reason"], "kicked");
        assert!(close["reconnect_ms"].as_u64().is_some_and(|ms| ms >= 1_000), "{close}");
        stream.ended();

        let mut v1 = V1::open(addr, "/channels/a");
        kick(&v1.connection).expect(204);
        v1.expect("subscribed");
        assert_eq!(v1.expect("closing")["reason"], "kicked");
        v1.socket.expect_close(1008);

        // Raw connections, polls and idle ones are told of no id: operators find it.
        let id_of = |query: &str| {
            until("it is held", || {
                let list = json(admin, &format!("/connections?{query}"));
                ids(&list).first().map(|id| (*id).to_owned())
            })
        };
        let mut raw = Socket::open(addr, "/channels/raw");
        kick(&id_of("channel=raw")).expect(204);
        raw.expect_close(1008);

        let cursor = head_cursor(addr, "polled");
        let mut poll = Conn::open(addr);
        poll.send("GET", &format!("/channels/polled?cursor={cursor}&wait=50"), &[], "");
        kick(&id_of("channel=polled")).expect(204);
        let answer = poll.read_response().expect(204);
        assert!(answer.closes() && answer.get("retry-after").is_some(), "{answer}");
        poll.eof();

        drop((stream, v1, raw));
        let mut idle = Conn::open(addr);
        idle.get("/healthz").expect(200);
        let port = idle.stream().local_addr().expect("an address").port();
        let id = until("it is idle", || {
            let list = json(admin, "/connections?transport=http");
            let connections = list["connections"].as_array().expect("a list");
            let own = connections.iter().find(|one| one["address"] == format!("127.0.0.1:{port}"));
            own.filter(|one| one["state"] == "idle").and_then(|one| one["id"].as_str().map(str::to_owned))
        });
        kick(&id).expect(204);
        idle.eof();

        // Gone is gone.
        let detail = kick(&id).problem(404);
        assert!(detail.contains("is not open"), "{detail}");
        drop((idle, poll));
        until("its socket is closed", || {
            (get(admin, &format!("/connections/{id}")).status == 404).then_some(())
        });
        let closed = |transport: &str| {
            let labels = [("transport", transport), ("reason", "kicked")];
            common::admin::Metrics::scrape(admin).sum("pushline_connections_closed_total", &labels)
        };
        for transport in ["sse", "websocket", "pushline.v1", "long_poll", "http"] {
            until("it is counted", || (closed(transport) == 1.0).then_some(()));
        }
    }
}

#[test]
fn an_id_of_another_process_names_nobody() {
    let (first, admin) = start(&[]);
    let (second, other) = start(&[]);
    let stream = Stream::open(first.addr(), "/channels/a");
    let target = format!("/connections/{}", stream.connection);
    get(admin, &target).expect(200);
    get(other, &target).problem(404);
    ask(other, "DELETE", &target, &[], "").problem(404);
    get(admin, &target).expect(200);
    drop(second);
}
