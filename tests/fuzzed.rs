//! Each fuzz target (`tests/fuzz`) with thousands of made-up inputs: that it builds, and that what it asks for holds at first
//! sight. `cargo fuzz` looks for longer, and learns from what it sees.

use crate::common::rng::{Rng, seed};

const INPUTS: usize = 20_000;
const INPUT_BYTES_MAX: usize = 600;
/// What protocols are made of: more than by chance is nearly right.
const LETTERS: &[u8] =
    b"GET POST /channels?a=b&c%20:,;.-_\"\\{}[]=\r\n\r\n0123456789abcdefxyz HTTP/1.1\0\x81\xfe\xc3\xa9";

/// In the place of libfuzzer's.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: $kind:ty| $body:block) => {
        pub fn check(bytes: &[u8]) {
            fn with($input: $kind) $body
            let bytes = arbitrary::Unstructured::new(bytes);
            if let Ok(input) = <$kind as arbitrary::Arbitrary>::arbitrary_take_rest(bytes) {
                with(input);
            }
        }
    };
}

macro_rules! targets {
    ($($name:ident: $path:literal;)*) => {$(
        #[path = $path]
        #[allow(unused_attributes, unused_imports)] // What a program of its own has.
        mod $name;
    )*

        #[test]
        fn every_one_holds_for_thousands_of_inputs() {
            $(for input in inputs() {
                $name::check(&input);
            })*
        }

        #[test]
        fn every_one_is_here() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/fuzz_targets");
            let files = std::fs::read_dir(folder).expect("the targets").map(|file| file.expect("a file").file_name());
            let mut names: Vec<String> = files.map(|name| name.to_string_lossy().replace(".rs", "")).collect();
            names.sort();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

targets! {
    batch_line: "fuzz/fuzz_targets/batch_line.rs";
    cursor: "fuzz/fuzz_targets/cursor.rs";
    forwarded: "fuzz/fuzz_targets/forwarded.rs";
    http_body: "fuzz/fuzz_targets/http_body.rs";
    http_head: "fuzz/fuzz_targets/http_head.rs";
    http_target: "fuzz/fuzz_targets/http_target.rs";
    proxy_header: "fuzz/fuzz_targets/proxy_header.rs";
    sse: "fuzz/fuzz_targets/sse.rs";
    token: "fuzz/fuzz_targets/token.rs";
    v1_frame: "fuzz/fuzz_targets/v1_frame.rs";
    ws_frame: "fuzz/fuzz_targets/ws_frame.rs";
    ws_reader: "fuzz/fuzz_targets/ws_reader.rs";
}

fn inputs() -> impl Iterator<Item = Vec<u8>> {
    let mut rng = Rng::new(seed(), 0);
    (0..INPUTS).map(move |number| {
        let length = rng.below(INPUT_BYTES_MAX);
        let mut byte =
            || if number % 2 == 0 { rng.below(256) as u8 } else { LETTERS[rng.below(LETTERS.len())] };
        (0..length).map(|_| byte()).collect()
    })
}
