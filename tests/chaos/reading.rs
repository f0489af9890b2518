//! One connection of an honest reader's, on any transport, as what it is told on it.
//! Owns the connection and its transport's words. What they mean for a reader is `honest`'s.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::http::{Conn, Poll, Response};
use crate::common::sse::{Event, Item, Stream};
use crate::common::token;
use crate::common::ws::{CLOSE, Frame, PING, PONG, Socket, TEXT, V1_NAME, request, text_of};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Sse,
    V1,
    LongPoll,
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::Sse, Self::V1, Self::LongPoll];
}

/// What a reader is told.
#[derive(Debug)]
pub enum Told {
    Message {
        text: String,
        cursor: String,
    },
    /// Messages were lost to it, before this cursor where one is given.
    Gap {
        cursor: Option<String>,
    },
    /// What concerns no reader.
    Nothing,
    /// Nothing came for a moment.
    Waiting,
    /// Nothing more will come, for this reason if it was told one.
    End(Option<String>),
}

const RENEWAL: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(100);

pub enum Reading {
    Sse(Box<Stream>),
    V1 {
        socket: Box<Socket>,
        /// Whose token it has, and when that was renewed.
        renews: Option<(String, Instant)>,
    },
    LongPoll {
        conn: Conn,
        target: String,
        ahead: VecDeque<Told>,
    },
}

/// An end that was not told.
fn cut<E>(_: E) -> Told {
    Told::End(None)
}

/// An end that a status tells.
fn refused(answer: &Response) -> Told {
    assert_eq!(answer.status, 503, "{answer}");
    assert!(answer.get("retry-after").is_some(), "{answer}");
    Told::End(Some("503".to_owned()))
}

impl Reading {
    /// Asks for the channel from the cursor on.
    ///
    /// # Errors
    /// [`Told::End`]: the server does not begin.
    pub fn begin(
        mut conn: Conn,
        transport: Transport,
        channel: &str,
        cursor: &str,
        subject: Option<String>,
    ) -> Result<Self, Told> {
        let target = format!("/channels/{channel}");
        match transport {
            Transport::Sse => {
                let url = format!("{target}?cursor={cursor}");
                conn.try_send("GET", &url, &[("Accept", "text/event-stream")], "").map_err(cut)?;
                let head = conn.try_read_head().map_err(cut)?;
                Ok(Self::Sse(Box::new(Stream::of_head(conn, head))))
            }
            Transport::V1 => {
                let mut url = format!("{target}?cursor={cursor}");
                if let Some(subject) = &subject {
                    url += &format!("&token={}", token::of(subject).sign());
                }
                let wire = request(conn.addr(), &url, &[("Sec-WebSocket-Protocol", V1_NAME)]);
                conn.try_send_raw(wire).map_err(cut)?;
                let head = conn.try_read_head().map_err(cut)?;
                let socket = Socket::of_head(conn, head).map_err(|answer| refused(&answer))?;
                let renews = subject.map(|subject| (subject, Instant::now()));
                Ok(Self::V1 { socket: Box::new(socket), renews })
            }
            Transport::LongPoll => Ok(Self::LongPoll { conn, target, ahead: VecDeque::new() }),
        }
    }

    /// What comes next, within a moment. A poll goes on from the reader's cursor.
    pub fn next(&mut self, cursor: &str) -> Told {
        match self {
            Self::Sse(stream) => match stream.try_item_within(LOOK) {
                Ok(Some(Some(Item::Event(event)))) => of_event(event),
                Ok(Some(Some(Item::Comment(_) | Item::Retry(_)))) => Told::Nothing,
                Ok(None) => Told::Waiting,
                Ok(Some(None)) | Err(_) => Told::End(None),
            },
            Self::V1 { socket, renews } => {
                if let Some((subject, renewed)) = renews
                    && renewed.elapsed() > RENEWAL
                {
                    let auth = json!({"type": "auth", "token": token::of(subject).sign()});
                    socket.text(&auth.to_string());
                    *renewed = Instant::now();
                }
                match socket.frame_within(LOOK) {
                    Some(Some(Frame { opcode: PING, payload, .. })) => {
                        socket.send(true, PONG, payload);
                        Told::Nothing
                    }
                    Some(Some(frame)) => of_frame(&frame),
                    Some(None) => Told::End(None),
                    None => Told::Waiting,
                }
            }
            Self::LongPoll { conn, target, ahead } => ahead.pop_front().unwrap_or_else(|| {
                let url = format!("{target}?cursor={cursor}&wait=1");
                let Ok(answer) = conn.try_send("GET", &url, &[], "").and_then(|()| conn.try_read_response())
                else {
                    return Told::End(None);
                };
                *ahead = of_poll(&answer);
                ahead.pop_front().unwrap_or(Told::Waiting)
            }),
        }
    }
}

fn of_event(event: Event) -> Told {
    match event.name.as_str() {
        "$open" => Told::Nothing,
        "$gap" => Told::Gap { cursor: Some(event.id) },
        "$close" => Told::End(Some(text_of(&event.json(), "reason"))),
        _ => {
            let event = event.expect_message();
            Told::Message { text: event.data, cursor: event.id }
        }
    }
}

fn of_frame(frame: &Frame) -> Told {
    if frame.opcode == CLOSE {
        return Told::End(Some(frame.close_code().to_string()));
    }
    assert_eq!(frame.opcode, TEXT, "{frame:?}");
    let object: Value = serde_json::from_slice(&frame.payload).expect("JSON");
    match object["type"].as_str().expect("a type") {
        "message" => Told::Message { text: text_of(&object, "data"), cursor: text_of(&object, "id") },
        "gap" => Told::Gap { cursor: Some(text_of(&object, "cursor")) },
        "subscribed" if object["gap"] == true => Told::Gap { cursor: Some(text_of(&object, "cursor")) },
        "closing" => Told::End(Some(text_of(&object, "reason"))),
        "open" | "subscribed" | "authenticated" => Told::Nothing,
        _ => panic!("{object}"),
    }
}

fn of_poll(answer: &Response) -> VecDeque<Told> {
    let mut told = VecDeque::new();
    match answer.status {
        200 => {
            let poll = Poll::of(answer);
            if poll.gap {
                // Whoever leaves before the messages behind it comes back to the gap.
                let cursor = poll.messages.is_empty().then(|| poll.cursor.clone());
                told.push_back(Told::Gap { cursor });
            }
            if let Some(last) = poll.messages.last() {
                assert_eq!(text_of(last, "id"), poll.cursor, "{answer}");
            }
            let messages = poll.messages.iter();
            told.extend(messages.map(|message| Told::Message {
                text: text_of(message, "data"),
                cursor: text_of(message, "id"),
            }));
        }
        204 if answer.closes() => {
            assert!(answer.get("retry-after").is_some(), "{answer}");
            told.push_back(Told::End(Some("204".to_owned())));
        }
        204 => told.push_back(Told::Nothing),
        _ => told.push_back(refused(answer)),
    }
    if answer.closes() && !matches!(told.back(), Some(Told::End(_))) {
        told.push_back(Told::End(Some("close".to_owned())));
    }
    told
}
