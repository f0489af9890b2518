//! Any text as a cursor, and any positions as text: a position has one text, whether alone or joined with others.
#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::domain::cursor::{CURSOR_BYTES_MAX, Cursor, CursorError, parse_joined, write_joined};

fuzz_target!(|input: (&str, Vec<(u64, u64)>)| {
    let (text, positions) = input;
    // From text.
    if let Ok(cursor) = Cursor::parse(text) {
        assert_eq!(&*cursor.text(), text);
    }
    let parts = text.split('.').count();
    match parse_joined(text, parts) {
        Ok(cursors) => {
            let texts: Vec<String> =
                cursors.iter().map(|part| part.map_or(String::new(), |cursor| cursor.text().to_string())).collect();
            assert_eq!((cursors.len(), texts.join(".").as_str()), (parts, text));
        }
        Err(error) => assert_eq!(error, CursorError::Form),
    }
    assert_eq!(parse_joined(text, parts - 1), Err(CursorError::Parts));
    assert_eq!(parse_joined(text, parts + 1), Err(CursorError::Parts));

    // From positions.
    let cursors: Vec<Cursor> =
        positions.into_iter().map(|(incarnation, seq)| Cursor { incarnation, seq }).collect();
    for &cursor in &cursors {
        assert!(cursor.text().len() <= CURSOR_BYTES_MAX);
        assert_eq!(Cursor::parse(&cursor.text()), Ok(cursor));
    }
    let mut joined = Vec::new();
    write_joined(&mut joined, cursors.iter().copied());
    let joined = std::str::from_utf8(&joined).expect("the alphabet is ASCII");
    // No cursor at all is the text of one empty part.
    if !cursors.is_empty() {
        let back = parse_joined(joined, cursors.len());
        assert_eq!(back, Ok(cursors.into_iter().map(Some).collect()));
    }
});
