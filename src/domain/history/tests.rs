//! What history keeps, lets go and tells.

use super::*;

const BOUNDS: Bounds = Bounds { messages: 3, bytes: 1 << 20, age_ms: 60_000 };
const ALL: PageMax = PageMax { messages: 100, bytes: usize::MAX };

fn draft(text: &str, ttl_seconds: Option<u32>) -> Draft {
    Draft { event: None, body: Body::Text(text.into()), ttl_seconds }
}

fn name() -> Name {
    Name::parse("a").expect("a name")
}

/// Read by somebody when it comes, and by nobody: readers are told the same.
const BOTH: [bool; 2] = [true, false];

fn add(history: &mut History, is_read: bool, draft: Draft, bounds: Bounds, now_ms: u64) {
    if is_read {
        history.append(&name(), draft, bounds, now_ms);
    } else {
        history.append_unread(&name(), draft, bounds, now_ms);
    }
}

fn seen(page: &Page) -> (Vec<String>, bool) {
    let texts = page.messages.iter().map(|m| String::from_utf8_lossy(m.body.bytes()).into_owned());
    (texts.collect(), page.gap)
}

fn after(seq: u64) -> From {
    From::After(Cursor { incarnation: 7, seq })
}

#[test]
fn what_is_read_leaves_the_shelf_and_is_shared() {
    const LARGE: Bounds = Bounds { messages: 1_000, ..BOUNDS };
    let mut history = History::new(7);
    for number in 0..100 {
        add(&mut history, false, draft(&format!("{number:01000}"), None), LARGE, 0);
    }
    let unread = |history: &History| {
        history.kept.iter().filter(|kept| matches!(kept.form, Form::Shelved { .. })).count()
    };
    let few = PageMax { messages: 100, bytes: 10 * (OVERHEAD_BYTES + 1_000) };
    let newest = history.read_newest(&name(), few, LARGE, 0);
    assert_eq!(
        (newest.after, newest.messages.len(), unread(&history)),
        (90, 10, 90),
        "no more than asked for"
    );
    let page = history.read(&name(), after(95), ALL, LARGE, 0);
    for (one, other) in page.messages.iter().zip(&newest.messages[5..]) {
        assert!(Arc::ptr_eq(one, other), "one message for all that read it");
    }
    let page = history.read(&name(), after(0), ALL, LARGE, 0);
    let texts: Vec<String> = (0..100).map(|number| format!("{number:01000}")).collect();
    assert_eq!(seen(&page).0, texts);
    assert_eq!((unread(&history), history.shelf.slack_bytes()), (0, 0), "and nothing is left there");
    add(&mut history, false, draft(&"x".repeat(shelf::MESSAGE_BYTES_MAX + 1), None), LARGE, 0);
    assert_eq!(unread(&history), 0, "what is large is not put there");
    let none = PageMax { messages: 100, bytes: 1_000 };
    let newest = history.read_newest(&name(), none, LARGE, 0);
    assert_eq!((newest.after, newest.messages.len(), newest.gap), (101, 0, false), "what is too large");
}

#[test]
fn one_that_is_never_read_keeps_nothing_of_those_that_were() {
    const MANY: Bounds = Bounds { messages: 1_000, bytes: 1 << 20, age_ms: 1 << 40 };
    let mut history = History::new(7);
    add(&mut history, false, draft("stays", None), MANY, 0);
    for number in 0..2_000 {
        add(&mut history, false, draft("goes", Some(1)), MANY, number * 1_000);
        history.read(&name(), From::Newest(1), ALL, MANY, number * 1_000);
    }
    assert!(history.bytes() < 1_000, "{}", history.bytes());
}

#[test]
fn gaps() {
    for is_read in BOTH {
        let mut history = History::new(7);
        for text in ["1", "2", "3", "4", "5"] {
            add(&mut history, is_read, draft(text, None), BOUNDS, 0);
        }
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        for (what, from, want, gap) in [
            ("dropped by count", after(0), texts(&["3", "4", "5"]), true),
            ("last dropped was seen", after(2), texts(&["3", "4", "5"]), false),
            ("inside", after(4), texts(&["5"]), false),
            ("head", after(5), texts(&[]), false),
            ("ahead of the head", after(6), texts(&["3", "4", "5"]), true),
            (
                "another channel's",
                From::After(Cursor { incarnation: 8, seq: 5 }),
                texts(&["3", "4", "5"]),
                true,
            ),
            ("newest", From::Newest(2), texts(&["4", "5"]), false),
            ("newest of fewer", From::Newest(9), texts(&["3", "4", "5"]), false),
            ("now", From::Now, texts(&[]), false),
        ] {
            assert_eq!(seen(&history.read(&name(), from, ALL, BOUNDS, 0)), (want, gap), "{what}");
        }
        history.delete(&name(), 0);
        assert_eq!(seen(&history.read(&name(), after(5), ALL, BOUNDS, 0)), (vec![], true), "deleted");
        assert_eq!(
            seen(&history.read(&name(), after(6), ALL, BOUNDS, 0)),
            (vec![], false),
            "after the deletion"
        );
    }
}

#[test]
fn the_newest_message_is_kept_whatever_its_size() {
    for is_read in BOTH {
        let bounds = Bounds { bytes: 200, ..BOUNDS };
        let big = "x".repeat(1_000);
        let mut history = History::new(7);
        add(&mut history, is_read, draft("small", None), bounds, 0);
        add(&mut history, is_read, draft(&big, None), bounds, 0);
        assert_eq!(seen(&history.read(&name(), From::Newest(1), ALL, bounds, 0)), (vec![big.clone()], false));
        assert_eq!(seen(&history.read(&name(), after(1), ALL, bounds, 0)), (vec![big.clone()], false));
        assert_eq!(
            seen(&history.read(&name(), after(0), ALL, bounds, 0)),
            (vec![big], true),
            "the one before it went"
        );
        add(&mut history, is_read, draft("small", None), bounds, 0);
        assert_eq!(seen(&history.read(&name(), after(1), ALL, bounds, 0)), (vec!["small".to_owned()], true));
        // Age still ends it, and so do deletion and the node's limit, which take it by name.
        assert_eq!(seen(&history.read(&name(), after(2), ALL, bounds, 60_000)), (vec![], true));
        add(&mut history, is_read, draft(&"x".repeat(1_000), None), bounds, 60_000);
        assert_eq!((history.drop_oldest(), history.len()), (1_160, 0));
    }
}

#[test]
fn own_ttl_is_no_loss() {
    for is_read in BOTH {
        let mut history = History::new(7);
        add(&mut history, is_read, draft("kept", None), BOUNDS, 0);
        add(&mut history, is_read, draft("short", Some(1)), BOUNDS, 0);
        add(&mut history, is_read, draft("never", Some(0)), BOUNDS, 0);
        assert_eq!(history.len(), 2);
        let page = history.read(&name(), after(0), ALL, BOUNDS, 1_000);
        assert_eq!((seen(&page), page.next), ((vec!["kept".to_owned()], false), 3));
        assert_eq!(
            seen(&history.read(&name(), after(0), ALL, BOUNDS, 60_000)),
            (vec![], true),
            "age is a loss"
        );
        assert_eq!(history.bytes(), 0);
    }
}

#[test]
fn a_ttl_beyond_the_channels_age_is_cut_and_its_end_is_a_gap() {
    for is_read in BOTH {
        let mut history = History::new(7);
        add(&mut history, is_read, draft("long", Some(61)), BOUNDS, 0);
        assert_eq!(seen(&history.read(&name(), after(0), ALL, BOUNDS, 60_000)), (vec![], true));
    }
}

#[test]
fn pages_join_up() {
    for is_read in BOTH {
        let mut history = History::new(7);
        for text in ["1", "2", "3"] {
            add(&mut history, is_read, draft(text, None), BOUNDS, 0);
        }
        let one = PageMax { messages: 1, bytes: 1 };
        let (mut at, mut all) = (0, Vec::new());
        while at < 3 {
            let page = history.read(&name(), after(at), one, BOUNDS, 0);
            all.extend(seen(&page).0);
            at = page.next;
        }
        assert_eq!(all, ["1", "2", "3"]);
    }
}

/// A message that stays does not keep the memory of all those that came with it and ended.
#[test]
fn what_ends_between_others_gives_its_memory_back() {
    let bounds = Bounds { messages: 10_000, bytes: usize::MAX, ..BOUNDS };
    let mut history = History::new(7);
    for number in 0..10_000 {
        let ttl_seconds = if number % 100 == 0 { None } else { Some(1) };
        add(&mut history, false, draft(&format!("{number:0100}"), ttl_seconds), bounds, 0);
    }
    assert!(history.bytes() > 1_000_000);
    history.trim(bounds, 1_000);
    assert_eq!(history.len(), 100);
    assert!(history.bytes() < 100 * 260 + 32 * 1_024, "{}", history.bytes());
    let (texts, gap) = seen(&history.read(&name(), after(0), ALL, bounds, 1_000));
    let numbers: Vec<usize> = texts.iter().map(|text| text.parse().expect("a number")).collect();
    assert_eq!((numbers, gap), ((0..100).map(|number| number * 100).collect(), false));
}

proptest::proptest! {
    #[test]
    fn it_knows_what_it_holds(
        steps in proptest::collection::vec((0_u8..12, 0_u64..40_000, proptest::bool::ANY), 1..60),
    ) {
        let bounds = Bounds { messages: 5, ..BOUNDS };
        let (mut history, mut now_ms) = (History::new(7), 0);
        for (at, (what, pause_ms, is_read)) in steps.into_iter().enumerate() {
            match what {
                0 => drop(history.delete(&name(), now_ms)),
                1 => add(&mut history, is_read, draft("brief", Some(0)), bounds, now_ms),
                2 | 3 => add(&mut history, is_read, draft("short", Some(20)), bounds, now_ms),
                4 => drop(history.drop_oldest()),
                5 | 6 => now_ms += pause_ms,
                7 => add(&mut history, is_read, draft(&"y".repeat(at * 100), None), bounds, now_ms),
                _ => add(&mut history, is_read, draft("x", None), bounds, now_ms),
            }
            history.trim(bounds, now_ms);
            for seq in 0..=history.head + 2 {
                let holds = history.kept.iter().any(|kept| kept.seq == seq);
                proptest::prop_assert_eq!(history.holds(seq), holds, "{}", seq);
            }
            let is_old = |kept: &Kept| kept.ts_ms + bounds.age_ms <= now_ms;
            proptest::prop_assert!(!history.kept.iter().any(is_old));
            proptest::prop_assert!(history.kept.len() <= bounds.messages);
            let bytes: usize = history.kept.iter().map(Kept::cost_bytes).sum();
            proptest::prop_assert_eq!(history.kept_bytes, bytes);
            proptest::prop_assert!(history.bytes() >= bytes);
        }
    }

    /// What nobody read when it came is, when it is asked for, what it would be otherwise.
    #[test]
    fn a_shelved_message_is_the_same(
        messages in proptest::collection::vec((0_u8..3, "\\PC{0,40}", proptest::option::of("[a-z]{1,64}"), 0_u32..90), 1..12),
    ) {
        let [mut read, mut unread] = [History::new(7), History::new(7)];
        let bounds = Bounds { messages: 10, ..BOUNDS };
        for (kind, text, event, ttl) in messages {
            let body = match kind {
                0 => Body::Json(text.into()),
                1 => Body::Text(text.into()),
                _ => Body::Binary(text.into_bytes().iter().map(|byte| byte ^ 0x80).collect()),
            };
            let draft = Draft { event: event.map(Into::into), body, ttl_seconds: Some(ttl).filter(|&ttl| ttl < 80) };
            add(&mut read, true, draft.clone(), bounds, 5);
            add(&mut unread, false, draft, bounds, 5);
        }
        for now_ms in [5, 20_000, 65_005] {
            let [read, unread] =
                [&mut read, &mut unread].map(|history| history.read(&name(), after(0), ALL, bounds, now_ms));
            proptest::prop_assert_eq!(format!("{read:?}"), format!("{unread:?}"));
        }
    }
}
