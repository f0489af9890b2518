#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::proto::http::head::HeadScanner;
use pushline::proto::http::request::{FieldSlots, Parsed, scan};

// The first byte of the input chooses where the rest is cut: the outcome must not depend on it.
fuzz_target!(|input: &[u8]| {
    let Some((&cut, input)) = input.split_first() else { return };
    let outcome = |scanner: &mut HeadScanner, input: &[u8]| match scan(scanner, input, &mut FieldSlots::new())
    {
        Ok(Parsed::Done { request, used }) => Some(Ok((format!("{request:?}"), used))),
        Ok(Parsed::Partial) => None,
        Err(error) => Some(Err(error)),
    };
    let whole = outcome(&mut HeadScanner::new(512), input);
    assert!(!matches!(&whole, Some(Ok((_, used))) if *used > input.len()));
    let mut scanner = HeadScanner::new(512);
    let first = outcome(&mut scanner, &input[..usize::from(cut).min(input.len())]);
    assert_eq!(first.or_else(|| outcome(&mut scanner, input)), whole);
});
