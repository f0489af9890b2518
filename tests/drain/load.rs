//! Everybody is told under load: hundreds of readers by every transport, while publishers go on.

use super::*;

const WINDOW: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    SeveralStream,
    Raw,
    V1,
    /// A long poll of a busy channel, asked again and again.
    BusyPoll,
    /// A long poll that is held when the signal comes.
    HeldPoll,
}

const KINDS: [(Kind, usize); 6] = [
    (Kind::Stream, 80),
    (Kind::SeveralStream, 40),
    (Kind::Raw, 60),
    (Kind::V1, 80),
    (Kind::BusyPoll, 20),
    (Kind::HeldPoll, 40),
];

/// How a reader was told to come back.
struct Told {
    kind: Kind,
    at: Instant,
    /// When the server wants it back; raw and polls answered with messages are not told.
    delay: Option<Duration>,
    /// The last message it got of the busy channel, each in order.
    last: Option<usize>,
}

/// What the publishers share.
struct Busy {
    /// Messages answered with 201 before the signal.
    before: AtomicUsize,
    signalled: AtomicBool,
}

#[test]
fn every_reader_is_told() {
    let window = format!("drain.window_seconds={}", WINDOW.as_secs());
    let mut server = Server::start(&["--workers", "4", "--set", &window, "--set", "history.messages=100000"]);
    let addr = server.addr();
    let readers: usize = KINDS.iter().map(|(_, count)| count).sum();
    let (ready, busy) =
        (Barrier::new(readers + 2), Busy { before: AtomicUsize::new(0), signalled: AtomicBool::new(false) });
    let (told, signalled, published) = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (kind, count) in KINDS {
            for _ in 0..count {
                let ready = &ready;
                threads.push(scope.spawn(move || read(addr, kind, ready)));
            }
        }
        let publisher = scope.spawn(|| {
            ready.wait();
            publish_through_it(addr, &busy)
        });
        ready.wait();
        until("publishing has begun", || (busy.before.load(Ordering::SeqCst) > 200).then_some(()));
        busy.signalled.store(true, Ordering::SeqCst);
        let signalled = Instant::now();
        server.signal(libc::SIGTERM);
        let told: Vec<Told> = threads.into_iter().map(|thread| thread.join().expect("it was told")).collect();
        (told, signalled, publisher.join().expect("each publish was answered"))
    });
    assert_eq!(server.wait_exit(), 0);
    let ended = signalled.elapsed();
    assert!(ended < WINDOW + Duration::from_secs(8), "{ended:?}");
    eprintln!("{published:?}, ended after {ended:?}");

    // What was answered before the signal, everyone got who has a stream of that channel. (A poll is answered with what
    // there was when it was asked.)
    let before = busy.before.load(Ordering::SeqCst);
    for told in told.iter().filter(|told| !matches!(told.kind, Kind::HeldPoll | Kind::BusyPoll)) {
        assert!(
            told.last.is_some_and(|last| last + 1 >= before),
            "{:?}: {:?} of {before}",
            told.kind,
            told.last
        );
    }
    spread(&told, signalled);
}

/// Both the goodbyes and the delays are spread over the window.
fn spread(told: &[Told], signalled: Instant) {
    let mut closes: Vec<Duration> = told.iter().map(|told| told.at.duration_since(signalled)).collect();
    closes.sort();
    let (first, last) = (closes[0], closes[closes.len() - 1]);
    assert!(last - first >= WINDOW / 2, "goodbyes from {first:?} to {last:?}");
    assert!(last <= WINDOW + Duration::from_secs(3), "goodbyes until {last:?}");
    for start in 0..closes.len() {
        let busiest = closes[start..].iter().take_while(|close| **close - closes[start] < WINDOW / 4).count();
        assert!(busiest <= closes.len() * 6 / 10, "{busiest} of {} within a quarter", closes.len());
    }
    let delays: Vec<Duration> = told.iter().filter_map(|told| told.delay).collect();
    let distinct: HashSet<Duration> = delays.iter().copied().collect();
    let (least, most) = (delays.iter().min().expect("some"), delays.iter().max().expect("some"));
    eprintln!("{} goodbyes from {first:?} to {last:?}, delays from {least:?} to {most:?}", closes.len());
    assert!(distinct.len() > delays.len() / 5, "{} of {} delays differ", distinct.len(), delays.len());
    assert!(*most - *least >= WINDOW / 2, "delays from {least:?} to {most:?}");
    assert!(*most <= Duration::from_secs(60), "{most:?}");
    for (kind, count) in KINDS {
        assert_eq!(told.iter().filter(|told| told.kind == kind).count(), count);
    }
}

#[derive(Debug, Default)]
struct Published {
    accepted: usize,
    refused: usize,
    unanswered: usize,
}

/// Publishes until nobody answers any more. Each is answered by 201, or by 503 and the end of the connection.
fn publish_through_it(addr: SocketAddr, busy: &Busy) -> Published {
    let mut published = Published::default();
    let mut n = 0;
    loop {
        let Ok(mut conn) = Conn::try_open(addr) else { return published };
        let mut used = false;
        loop {
            let wire = common::http::wire(addr, "POST", "/channels/busy", TEXT, n.to_string().as_bytes());
            let answer = conn.try_send_raw(wire).and_then(|()| conn.try_read_response());
            match answer {
                Ok(answer) if answer.status == 201 => {
                    n += 1;
                    published.accepted += 1;
                    used = true;
                    if !busy.signalled.load(Ordering::SeqCst) {
                        busy.before.store(n, Ordering::SeqCst);
                    }
                    if answer.closes() {
                        break;
                    }
                }
                Ok(answer) => {
                    answer.problem(503);
                    assert!(answer.closes(), "{answer}");
                    answer.header("retry-after").parse::<u64>().expect("seconds");
                    assert!(busy.signalled.load(Ordering::SeqCst), "not before the signal");
                    published.refused += 1;
                    break;
                }
                // The end of a connection between two requests: HTTP says that the client cannot know.
                Err(error) => {
                    assert!(
                        busy.signalled.load(Ordering::SeqCst)
                            && (used || error.kind() != ErrorKind::UnexpectedEof),
                        "{error}"
                    );
                    published.unanswered += 1;
                    n += 1;
                    break;
                }
            }
        }
    }
}

fn read(addr: SocketAddr, kind: Kind, ready: &Barrier) -> Told {
    let mut last = None;
    // After an unanswered publish a number may be missing; else each follows the one before.
    let mut next = |data: &str| {
        let n: usize = data.parse().expect("a number");
        assert!(
            last.map_or(0, |last| last + 1) <= n && n <= last.map_or(0, |last| last + 4),
            "{n} after {last:?}"
        );
        last = Some(n);
    };
    let delay = match kind {
        Kind::Stream | Kind::SeveralStream => {
            let several = kind == Kind::SeveralStream;
            let target = if several { "/channels/calm,busy" } else { "/channels/busy" };
            let mut stream = Stream::open(addr, target);
            ready.wait();
            let mut retry = 0;
            let told = loop {
                match stream.item().expect("`$close` comes before the end") {
                    Item::Retry(ms) => retry = ms,
                    Item::Comment(_) => {}
                    Item::Event(event) if event.name == "$close" => break event.json(),
                    Item::Event(event) if several => next(&text_of(&event.json(), "data")),
                    Item::Event(event) => next(&event.expect_message().data),
                }
            };
            assert_eq!((&told["reason"], &told["reconnect_ms"]), (&json!("drain"), &json!(retry)));
            stream.ended();
            Some(retry)
        }
        Kind::Raw => {
            let mut socket = Socket::open(addr, "/channels/busy");
            ready.wait();
            loop {
                match socket.message() {
                    Message::Text(text) => next(&text),
                    end => break assert_eq!(end, Message::Close(1012)),
                }
            }
            socket.close(1012, "");
            assert_eq!(socket.frame(), None);
            None
        }
        Kind::V1 => {
            let (mut v1, _) = V1::subscribed(addr, "busy");
            ready.wait();
            let told = loop {
                let object = v1.next();
                match &text_of(&object, "type")[..] {
                    "message" => next(&text_of(&object, "data")),
                    "closing" => break object,
                    _ => panic!("{object}"),
                }
            };
            assert_eq!(told["reason"], "drain");
            v1.socket.expect_close(1012);
            told["reconnect_ms"].as_u64()
        }
        Kind::BusyPoll | Kind::HeldPoll => {
            let channel = if kind == Kind::BusyPoll { "busy" } else { "calm" };
            let mut cursor = head_cursor(addr, channel);
            let mut conn = Conn::open(addr);
            conn.get("/healthz").expect(200);
            let mut wait = Some(ready);
            loop {
                conn.send("GET", &format!("/channels/{channel}?wait=50&cursor={cursor}"), &[], "");
                if let Some(ready) = wait.take() {
                    ready.wait();
                }
                let answer = conn.read_response();
                if answer.status == 204 {
                    assert!(answer.closes(), "{answer}");
                    assert_eq!(answer.header("pushline-cursor"), cursor);
                    conn.eof();
                    break Some(answer.header("retry-after").parse::<u64>().expect("seconds") * 1_000);
                }
                let poll = Poll::of(&answer);
                poll.data().iter().for_each(|data| next(data.as_str().expect("a text")));
                cursor = poll.cursor;
                if answer.closes() {
                    conn.eof();
                    break None;
                }
            }
        }
    };
    Told { kind, at: Instant::now(), delay: delay.map(Duration::from_millis), last }
}
