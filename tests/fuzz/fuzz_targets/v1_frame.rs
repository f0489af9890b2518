//! Any text as a `pushline.v1` frame; what is accepted as JSON is JSON, and not too deep.
#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::proto::client_frame::{Operation, parse_v1};
use pushline::proto::json::{self, JsonError};
use pushline::proto::publish::PublishData;

fuzz_target!(|text: &str| {
    let Ok(frame) = parse_v1(text) else { return };
    // The frame around the data may be what makes it too deep.
    assert!(matches!(json::check(text.as_bytes()), Ok(_) | Err(JsonError::TooDeep)));
    if let Operation::Publish(publish) = frame.operation
        && let PublishData::Json(value) = publish.data
    {
        assert_eq!(json::check(value.as_bytes()), Ok(value));
        assert!(text.contains(value));
    }
});
