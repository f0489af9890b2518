#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::proto::http::target::{Query, decode_path};

fuzz_target!(|input: &str| {
    if let Ok(path) = decode_path(input) {
        assert!(path.len() <= input.len());
    }
    let query = Query::new(input);
    for (key, value) in query.pairs().filter_map(Result::ok) {
        // A key that is there is found, unless it or another pair is refused.
        assert!(query.get(&key).is_ok_and(|got| got == Some(value)) || query.get(&key).is_err());
    }
});
