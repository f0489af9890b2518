//! Publishers at full speed: pipelined POSTs, batches and `pushline.v1`, each over one connection.
//! Owns what it sent and was answered, which it writes into the ledger.

use std::io::Write as _;

use serde_json::Value;

use super::World;
use super::ledger::{Channel, digest};
use super::message::{Key, Message};
use crate::common::http::Conn;
use crate::common::rng::Rng;
use crate::common::ws::{V1, text_of};

enum Way {
    Http(Conn),
    Batch(Conn),
    V1(V1),
}

/// Publishes `world.per_publisher` messages, a few to one channel at a time.
pub fn run(world: &World, publisher: usize) {
    let mut rng = Rng::new(world.seed, 1_000 + publisher as u64);
    let mut way = match publisher % 4 {
        0 | 3 => Way::Http(Conn::open(world.addr)),
        1 => Way::V1(V1::open(world.addr, "/channels")),
        _ => Way::Batch(Conn::open(world.addr)),
    };
    let mut left = world.per_publisher;
    while left > 0 {
        let count = rng.by_scale(3).min(left);
        left -= count;
        let at = rng.below(world.channels.len());
        let channel = &world.channels[at];
        // Whoever holds the lock is the only one to publish, and so knows the order.
        let mut order = channel.ordered.then(|| channel.order.lock().expect("no publisher failed"));
        let messages: Vec<Message> = (0..count)
            .map(|_| {
                let key = Key { channel: at, publisher, n: channel.send(publisher) };
                channel.message(world.seed, key)
            })
            .collect();
        let ids = publish(&mut way, world, channel, &messages);
        for (message, id) in messages.iter().zip(ids) {
            channel.acked(publisher);
            if let Some(order) = &mut order {
                order.messages.push((message.key, digest(&id)));
            }
        }
        if let (Some(order), true) = (&mut order, world.lossy && rng.once_in(400)) {
            delete(world, channel);
            let place = order.messages.len();
            order.deletions.push(place);
        }
    }
}

/// The last message of a channel, by which readers know that they have all.
pub fn end(world: &World, at: usize) {
    let channel = &world.channels[at];
    let publisher = world.publishers;
    let mut order = channel.order.lock().expect("publishers ended well");
    let key = Key { channel: at, publisher, n: channel.send(publisher) };
    let message = channel.message(world.seed, key);
    let ids = publish(&mut Way::Http(Conn::open(world.addr)), world, channel, &[message]);
    channel.acked(publisher);
    if channel.ordered {
        order.messages.push((key, digest(&ids[0])));
    }
}

fn publish(way: &mut Way, world: &World, channel: &Channel, messages: &[Message]) -> Vec<String> {
    match way {
        Way::Http(conn) => {
            let mut wire = Vec::new();
            for message in messages {
                let (bytes, _) = message.bytes();
                write!(
                    wire,
                    "POST /channels/{} HTTP/1.1\r\nHost: {}\r\n{}Content-Length: {}\r\n\r\n",
                    channel.name,
                    world.addr,
                    message.fields(),
                    bytes.len()
                )
                .expect("into memory");
                wire.extend_from_slice(bytes);
            }
            conn.send_raw(wire);
            messages.iter().map(|_| crate::common::http::published(&conn.read_response())).collect()
        }
        Way::Batch(conn) => {
            let body: String =
                messages.iter().map(|message| message.line(&channel.name, "") + "\n").collect();
            let answer = conn.request("POST", "/publish", &[("Content-Type", "application/x-ndjson")], body);
            assert!((200..300).contains(&answer.status), "{answer}");
            let text = answer.text();
            let lines: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
            assert_eq!(lines.len(), messages.len(), "{text}");
            lines.iter().map(|line| text_of(line, "id")).collect()
        }
        Way::V1(v1) => {
            for message in messages {
                let kind = format!("\"type\":\"publish\",\"seq\":{},", message.key.n);
                v1.socket.text(&message.line(&channel.name, &kind));
            }
            let mut answers: Vec<Value> = messages.iter().map(|_| v1.expect("published")).collect();
            answers.sort_by_key(|answer| answer["seq"].as_u64());
            answers.iter().map(|answer| text_of(answer, "id")).collect()
        }
    }
}

fn delete(world: &World, channel: &Channel) {
    Conn::open(world.addr).request("DELETE", &format!("/channels/{}", channel.name), &[], "").expect(204);
}
