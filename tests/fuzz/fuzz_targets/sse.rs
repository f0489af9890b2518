//! A message, written as an event and read back as the WHATWG's parser would: its data, event and id are the message's.
#![no_main]
use libfuzzer_sys::fuzz_target;
use pushline::proto::payload::{MessageView, Payload, read_base64};
use pushline::proto::publish::check_event;
use pushline::proto::{json, sse};

#[derive(Debug, Default)]
struct Event {
    name: String,
    data: String,
    id: String,
}

fuzz_target!(|input: (u8, &str, &[u8])| {
    let (kind, event, bytes) = input;
    let event = check_event(event.as_bytes()).ok();
    let payload = match kind % 3 {
        0 => Payload::Binary(bytes),
        1 => match std::str::from_utf8(bytes) {
            Ok(text) => Payload::Text(text),
            Err(_) => return,
        },
        _ => match json::check(bytes) {
            Ok(text) => Payload::Json(text),
            Err(_) => return,
        },
    };
    let message = MessageView { id: "id-1", channel: "a\"b", event, ts_ms: 7, payload };

    let read = read_back(|out| sse::write_message(out, &message));
    let named = event.unwrap_or_default();
    match payload {
        Payload::Text(text) => {
            assert_eq!(read.data, text.replace("\r\n", "\n").replace('\r', "\n"));
            assert_eq!(read.name, named);
        }
        Payload::Json(text) => {
            assert_eq!(read.data, text.replace(['\r', '\n'], " "));
            assert!(json::check(read.data.as_bytes()).is_ok());
            assert_eq!(read.name, named);
        }
        Payload::Binary(bytes) => {
            assert_eq!(read_base64(&read.data).as_deref(), Some(bytes));
            let want = event.map_or("$binary".to_owned(), |name| format!("$binary:{name}"));
            assert_eq!(read.name, want);
        }
    }

    let read = read_back(|out| sse::write_envelope(out, &message));
    assert_eq!(read.name, named);
    match json::check(read.data.as_bytes()) {
        // The object around it may be what makes it too deep.
        Ok(_) | Err(json::JsonError::TooDeep) => {}
        Err(error) => panic!("{error:?}: {}", read.data),
    }
});

/// Parses what was written (WHATWG HTML, "Interpreting an event stream"): exactly one event, with its id.
fn read_back(write: impl FnOnce(&mut Vec<u8>)) -> Event {
    let mut wire = Vec::new();
    write(&mut wire);
    let wire = String::from_utf8(wire).expect("UTF-8");
    let (mut done, mut event) = (Vec::new(), Event::default());
    let lines = wire.replace("\r\n", "\n").replace('\r', "\n");
    for line in lines.strip_suffix('\n').expect("ends with a line end").split('\n') {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            _ if line.is_empty() => {
                let mut whole = std::mem::take(&mut event);
                if whole.data.pop().is_some() {
                    done.push(whole);
                }
            }
            "event" => event.name = value.to_owned(),
            "data" => event.data.extend([value, "\n"]),
            "id" if !value.contains('\0') => event.id = value.to_owned(),
            _ => panic!("unexpected line {line:?}"),
        }
    }
    assert_eq!(done.len(), 1, "{wire:?}");
    let event = done.remove(0);
    assert_eq!(event.id, "id-1");
    event
}
