#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::proto::http::body::BodyDecoder;
use pushline::proto::http::request::BodyLength;

// The first byte of the input chooses where the rest is cut: the outcome must not depend on it.
fuzz_target!(|input: &[u8]| {
    let Some((&cut, input)) = input.split_first() else { return };
    let outcome = |cut: usize| {
        let mut decoder = BodyDecoder::new(BodyLength::Chunked, 256)?;
        let mut content = Vec::new();
        let mut used = decoder.decode(&input[..cut], &mut content)?;
        used += decoder.decode(&input[used..], &mut content)?;
        assert!(content.len() <= 256 && (decoder.is_done() || used == input.len()));
        Ok::<_, pushline::proto::http::error::HttpError>((content, used, decoder.is_done()))
    };
    assert_eq!(outcome(usize::from(cut).min(input.len())), outcome(0));
});
