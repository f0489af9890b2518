//! Any header: how much it asks for and takes, and that cutting it changes nothing.
#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::proto::ws::frame::{HEADER_BYTES_MAX, Parsed, parse_header};

fuzz_target!(|input: &[u8]| {
    let whole = parse_header(input, 65_536);
    match whole {
        Ok(Parsed::Done { used, value }) => {
            assert!(used <= input.len() && used <= HEADER_BYTES_MAX);
            assert!(value.payload_bytes <= 65_536);
        }
        Ok(Parsed::Partial { want }) => assert!(want > input.len() && want <= HEADER_BYTES_MAX),
        Err(_) => {}
    }
    for cut in 0..input.len().min(HEADER_BYTES_MAX) {
        match parse_header(&input[..cut], 65_536) {
            Ok(Parsed::Partial { want }) => assert!(want > cut),
            done_or_refused => assert_eq!(done_or_refused, whole),
        }
    }
});
