//! A stream in pieces tells what it tells in one. The first byte says how many of the next choose where it is cut.
#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::proto::ws::reader::{Control, Fed, ReaderState};

const LIMIT: u64 = 4096;

fuzz_target!(|input: &[u8]| {
    let Some((&cuts, rest)) = input.split_first() else { return };
    let Some((cuts, wire)) = rest.split_at_checked(usize::from(cuts % 16)) else { return };
    let mut pieces = Vec::new();
    let mut left = wire;
    for &cut in cuts {
        let (piece, tail) = left.split_at(usize::from(cut).min(left.len()));
        pieces.push(piece);
        left = tail;
    }
    pieces.push(left);
    assert_eq!(told(&pieces), told(&[wire]));
});

fn told(pieces: &[&[u8]]) -> Vec<String> {
    let (mut told, mut state) = (Vec::new(), ReaderState::default());
    for piece in pieces {
        let fed = state.feed(&mut piece.to_vec(), LIMIT, &mut |event| {
            told.push(format!("{event:?}"));
            Control::Continue
        });
        assert!(state.kept_bytes() < 3 * LIMIT as usize);
        match fed {
            Ok(Fed::All) => {}
            Ok(Fed::Stopped { .. }) => panic!("nobody stopped it"),
            Ok(Fed::Closed) => break,
            Err(error) => {
                told.push(format!("{error:?}"));
                break;
            }
        }
    }
    told
}
