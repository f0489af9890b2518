//! Any start of a connection from a proxy: what is decided of a part stays decided, and no more is taken than came.
#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::proto::proxy::{Parsed, V1_BYTES_MAX, V2_REST_BYTES_MAX, parse};

fuzz_target!(|input: &[u8]| {
    let whole = parse(input);
    match whole {
        Ok(Parsed::Done { used, .. }) => assert!(used <= input.len() && used <= 16 + V2_REST_BYTES_MAX),
        Ok(Parsed::Partial) => assert!(input.len() < V1_BYTES_MAX.max(16 + V2_REST_BYTES_MAX)),
        Err(_) => {}
    }
    for cut in 0..input.len() {
        let part = parse(&input[..cut]);
        assert!(part == Ok(Parsed::Partial) || part == whole, "cut at {cut}");
    }
});
