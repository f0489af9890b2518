//! Any line of a batch: what is accepted keeps the rules.
#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::proto::json;
use pushline::proto::publish::{PublishData, check_event, check_key, parse_batch_line};

fuzz_target!(|line: &[u8]| {
    let Ok(publish) = parse_batch_line(line) else { return };
    if let Some(event) = &publish.event {
        assert!(check_event(event.as_bytes()).is_ok());
    }
    if let Some(key) = &publish.key {
        assert!(check_key(key.as_bytes()).is_ok());
    }
    match &publish.data {
        PublishData::Json(value) => assert_eq!(json::check(value.as_bytes()), Ok(*value)),
        PublishData::Text(text) => assert!(text.len() <= line.len()),
        PublishData::Binary(bytes) => assert!(bytes.len() <= line.len()),
    }
});
