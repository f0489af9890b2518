//! Revocations: what each takes, until when, and how many there may be.

use super::*;
use crate::domain::auth::Grants;

const LIFETIME_S: u64 = 1_000;
const NOW_S: u64 = 50_000;

fn bearer(subject: &str, token_id: &str, issued_s: Option<u64>) -> Bearer {
    Bearer {
        proof: Proof::Token,
        subject: Some(subject.into()),
        token_id: Some(token_id.into()),
        issued_s,
        expires_s: Some(NOW_S + 500),
        digest: [token_id.len() as u8; 32],
        grants: Grants::all(),
    }
}

fn target(subject: Option<&str>, token_id: Option<&str>, channel: Option<&str>) -> Target {
    Target {
        subject: subject.map(Into::into),
        token_id: token_id.map(Into::into),
        digest: None,
        channel: channel.map(Into::into),
    }
}

fn revoked(target: Target) -> Revocations {
    let revocations = Revocations::new(10, LIFETIME_S);
    revocations.add(Asked { target, ..Asked::default() }, NOW_S).expect("room");
    revocations
}

#[test]
fn whom_a_revocation_concerns() {
    let anna = bearer("anna", "t1", Some(NOW_S - 10));
    for (name, target, token, channel) in [
        ("her subject", target(Some("anna"), None, None), true, false),
        ("another subject", target(Some("bert"), None, None), false, false),
        ("her token", target(None, Some("t1"), None), true, false),
        ("another token", target(None, Some("t2"), None), false, false),
        ("her token, as somebody else's", target(Some("bert"), Some("t1"), None), false, false),
        ("her token, as hers", target(Some("anna"), Some("t1"), None), true, false),
        ("the channel", target(None, None, Some("a/b")), false, true),
        ("a pattern", target(None, None, Some("a/*")), false, true),
        ("another channel", target(None, None, Some("a")), false, false),
        ("hers of the channel", target(Some("anna"), None, Some("a/**")), false, true),
        ("somebody else's of the channel", target(Some("bert"), None, Some("a/b")), false, false),
    ] {
        let revocations = revoked(target);
        assert_eq!(revocations.has_at(&anna, NOW_S), token, "{name}");
        let channel_name = Name::parse("a/b").expect("a name");
        assert_eq!(revocations.has_channel_at(&anna, &channel_name, NOW_S), channel, "{name}");
        // What the configuration permits is not a token's.
        let other = Bearer { proof: Proof::None, ..anna.clone() };
        assert!(!revocations.has_at(&other, NOW_S), "{name}");
        assert!(!revocations.has_channel_at(&other, &channel_name, NOW_S), "{name}");
        let other = Bearer { proof: Proof::ApiKey, ..anna.clone() };
        assert_eq!(revocations.has_at(&other, NOW_S), token, "{name}");
        let is_named = name.starts_with("hers");
        assert_eq!(revocations.has_channel_at(&other, &channel_name, NOW_S), is_named, "{name}");
    }
}

/// Patterns are found by what stands before their first wildcard.
#[test]
fn patterns_are_found_among_many() {
    for (pattern, prefix, fit, others) in [
        ("**", "", vec!["a", "a/b"], vec![]),
        ("*", "", vec!["a"], vec!["a/b"]),
        ("*/b", "", vec!["a/b"], vec!["a", "a/c"]),
        ("a/**", "a", vec!["a/b", "a/b/c"], vec!["a", "ab/c"]),
        ("a/*/c", "a", vec!["a/b/c"], vec!["a/b", "a/b/d"]),
        ("a/b/*", "a/b", vec!["a/b/c"], vec!["a/b", "a/c/d"]),
        ("a/b*", "a/b*", vec!["a/b*"], vec!["a/bc"]),
    ] {
        assert_eq!(literal_prefix(pattern), prefix, "{pattern}");
        let revocations = revoked(target(None, None, Some(pattern)));
        for at in 0..9 {
            let asked = Asked { target: target(None, None, Some(&format!("x/{at}/**"))), ..Asked::default() };
            revocations.add(asked, NOW_S).expect("room");
        }
        let anna = bearer("anna", "t1", None);
        let has = |name: &str| revocations.has_channel_at(&anna, &Name::parse(name).expect("a name"), NOW_S);
        assert!(fit.iter().all(|name| has(name)), "{pattern}");
        assert!(!others.iter().any(|name| has(name)), "{pattern}");
        assert_eq!((has("x/8/y"), has("x/9/y")), (true, pattern == "**"), "{pattern}");
    }
}

#[test]
fn tokens_that_were_issued_later_are_good() {
    for (issued_s, by_subject) in
        [(Some(NOW_S - 1), true), (Some(NOW_S), true), (Some(NOW_S + 1), false), (None, true)]
    {
        let anna = bearer("anna", "t1", issued_s);
        assert_eq!(
            revoked(target(Some("anna"), None, None)).has_at(&anna, NOW_S),
            by_subject,
            "{issued_s:?}"
        );
        // That very token is never good again.
        assert!(revoked(target(None, Some("t1"), None)).has_at(&anna, NOW_S), "{issued_s:?}");
        let by_digest = Target { digest: Some(anna.digest), ..Target::default() };
        assert!(revoked(by_digest).has_at(&anna, NOW_S), "{issued_s:?}");
    }
}

#[test]
fn kept_until_the_last_token_is_over() {
    let revocations = revoked(target(Some("anna"), None, None));
    let anna = bearer("anna", "t1", None);
    assert!(revocations.has_at(&anna, NOW_S + LIFETIME_S));
    assert!(!revocations.has_at(&anna, NOW_S + LIFETIME_S + 1));
    revocations.allow_lifetime(10);
    assert!(revocations.has_at(&anna, NOW_S + LIFETIME_S), "tokens of the longer time are still about");
    revocations.allow_lifetime(2 * LIFETIME_S);
    assert!(revocations.has_at(&anna, NOW_S + 2 * LIFETIME_S), "tokens that were too long may be good now");
    let until_s = Some(NOW_S + 5);
    let asked = Asked { target: target(None, Some("t9"), None), until_s, ..Asked::default() };
    revocations.add(asked, NOW_S).expect("room");
    let other = bearer("bert", "t9", None);
    assert!(revocations.has_at(&other, NOW_S + 4) && !revocations.has_at(&other, NOW_S + 5));
}

#[test]
fn the_number_is_bounded() {
    let revocations = Revocations::new(3, LIFETIME_S);
    let add = |token_id: &str, now_s| {
        let target = target(None, Some(token_id), None);
        revocations.add(Asked { target, ..Asked::default() }, now_s).map(|one| one.number)
    };
    assert_eq!((add("1", NOW_S), add("2", NOW_S), add("3", NOW_S + 9)), (Ok(1), Ok(2), Ok(3)));
    assert_eq!(add("4", NOW_S + 9), Err(NotRevoked::Full { max: 3 }));
    assert_eq!(add("3", NOW_S + 9), Ok(4), "the same takes no more room");
    assert!(revocations.has_at(&bearer("anna", "1", None), NOW_S));
    assert!(revocations.lift(1) && !revocations.lift(1));
    assert!(!revocations.has_at(&bearer("anna", "1", None), NOW_S));
    assert_eq!(add("5", NOW_S + 9), Ok(5));
    assert_eq!(add("6", NOW_S + LIFETIME_S + 2), Ok(6), "those that are over make room");
    let numbers = |after, count| -> Vec<u64> {
        revocations.list_at(after, count, NOW_S + 9).iter().map(|one| one.number).collect()
    };
    assert_eq!((numbers(0, 9), numbers(4, 1)), (vec![4, 5, 6], vec![5]));
}

#[test]
fn what_names_nothing_is_refused() {
    let revocations = Revocations::new(3, LIFETIME_S);
    let refused = |asked| revocations.add(asked, NOW_S).expect_err("refused");
    assert_eq!(refused(Asked::default()), NotRevoked::Nothing);
    let of = |target| Asked { target, ..Asked::default() };
    assert_eq!(refused(of(target(Some(""), None, None))), NotRevoked::Empty("subject"));
    assert_eq!(refused(of(target(None, None, Some("a//b")))), NotRevoked::Channel(NameError::Empty));
    let good = of(target(Some("anna"), None, None));
    assert_eq!(refused(Asked { made_s: Some(NOW_S + 1), ..good.clone() }), NotRevoked::Future);
    assert_eq!(refused(Asked { until_s: Some(NOW_S), ..good }), NotRevoked::Past);
}
