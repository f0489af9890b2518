//! From a message to the bytes of each encoding: where `domain` and `proto` meet.

use crate::domain::channel::Name;
use crate::domain::cursor::CursorText;
use crate::domain::lane::Encoding;
use crate::domain::message::{Body, Message};
use crate::proto::payload::{MessageView, Payload};
use crate::proto::ws::frame::{self, Opcode};
use crate::proto::{envelope, sse};

/// The message as codecs take it; `None` for a deletion, which is none.
pub fn view<'m>(message: &'m Message, id: &'m CursorText) -> Option<MessageView<'m>> {
    let payload = match &message.body {
        Body::Json(text) => Payload::Json(text),
        Body::Text(text) => Payload::Text(text),
        Body::Binary(bytes) => Payload::Binary(bytes),
        Body::Deletion => return None,
    };
    Some(MessageView {
        id,
        channel: message.channel.as_str(),
        event: message.event.as_deref(),
        ts_ms: message.ts_ms,
        payload,
    })
}

/// Appends `message` as `encoding` has it. Returns how many of the last bytes are the id line that ends an SSE event.
pub fn frame(encoding: Encoding, message: &Message, out: &mut Vec<u8>) -> u16 {
    let id = message.cursor.text();
    let Some(view) = view(message, &id) else {
        gap(encoding, &message.channel, &id, out);
        return 0;
    };
    match encoding {
        Encoding::Sse => sse::write_message_body(out, &view),
        Encoding::SseEnvelope => sse::write_envelope_body(out, &view),
        Encoding::Raw => {
            let opcode = match view.payload {
                Payload::Json(_) | Payload::Text(_) => Opcode::Text,
                Payload::Binary(_) => Opcode::Binary,
            };
            frame::write_frame(out, opcode, message.body.bytes());
            return 0;
        }
        Encoding::V1 => {
            text_frame(out, |json| envelope::write_v1_message(json, &view));
            return 0;
        }
        Encoding::Poll => return 0,
    }
    let before = out.len();
    sse::write_id(out, &id);
    (out.len() - before) as u16
}

/// Appends the notice that messages before `cursor` are lost to a reader.
pub fn gap(encoding: Encoding, channel: &Name, cursor: &str, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Sse | Encoding::SseEnvelope => sse::write_gap(out, channel.as_str(), cursor, cursor),
        Encoding::V1 => text_frame(out, |json| envelope::write_v1_gap(json, channel.as_str(), cursor)),
        Encoding::Raw | Encoding::Poll => {}
    }
}

/// Appends a text frame of what `write` writes.
pub fn text_frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    frame::write_frame_with(out, Opcode::Text, write);
}
