//! A broadcast server as one would write it with care on axum: a `broadcast` channel to each name, messages as
//! shared bytes, a task to each reader. A reader that has several messages waiting gets them in one write.
//!
//! `pushline-peer-axum PORT WORKERS`. Keeps no history, gives no ids; a reader that falls behind is cut off.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::serve::ListenerExt as _;
use dashmap::DashMap;
use futures_util::{SinkExt as _, StreamExt as _, stream};
use tokio::net::TcpSocket;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use tokio::time::{self, Instant, MissedTickBehavior};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Messages that a reader may lag behind.
const LAG_MAX: usize = 1024;
const BODY_BYTES_MAX: usize = 64 * 1024;
const PING_EVERY: Duration = Duration::from_secs(25);
/// tungstenite's own is 128 KiB for each connection, which readers that only listen never fill.
const READ_BUFFER_BYTES: usize = 1024;
/// What one write gathers at most, when several messages wait.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// A message in each form that it is read in: made once, shared by all readers.
#[derive(Clone)]
struct Shared {
    text: Utf8Bytes,
    event: Bytes,
}

impl Shared {
    fn new(text: Utf8Bytes) -> Self {
        let event = [b"data: ", text.as_bytes(), b"\n\n"].concat().into();
        Self { text, event }
    }
}

type Channels = Arc<DashMap<String, broadcast::Sender<Shared>>>;

fn join(channels: &Channels, channel: &str) -> broadcast::Receiver<Shared> {
    match channels.get(channel) {
        Some(sender) => sender.subscribe(),
        None => {
            channels.entry(channel.to_owned()).or_insert_with(|| broadcast::channel(LAG_MAX).0).subscribe()
        }
    }
}

/// The last reader takes its channel with it.
fn leave(channels: &Channels, channel: &str, receiver: broadcast::Receiver<Shared>) {
    drop(receiver);
    channels.remove_if(channel, |_, sender| sender.receiver_count() == 0);
}

fn deliver(channels: &Channels, channel: &str, text: Utf8Bytes) {
    if let Some(sender) = channels.get(channel) {
        // Fails only when the last reader has just left.
        let _ = sender.send(Shared::new(text));
    }
}

async fn publish(State(channels): State<Channels>, Path(channel): Path<String>, body: Bytes) -> StatusCode {
    match Utf8Bytes::try_from(body) {
        Ok(text) => {
            deliver(&channels, &channel, text);
            StatusCode::CREATED
        }
        Err(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
    }
}

async fn read_ws(
    State(channels): State<Channels>,
    Path(channel): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade.read_buffer_size(READ_BUFFER_BYTES).max_message_size(BODY_BYTES_MAX).on_upgrade(
        async move |socket| {
            let mut receiver = join(&channels, &channel);
            // Whatever ends a reader, its channel is left.
            let _ = serve_ws(socket, &channels, &channel, &mut receiver).await;
            leave(&channels, &channel, receiver);
        },
    )
}

async fn serve_ws(
    mut socket: WebSocket,
    channels: &Channels,
    channel: &str,
    receiver: &mut broadcast::Receiver<Shared>,
) -> Result<(), axum::Error> {
    let mut pings = time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = receiver.recv() => match message {
                Ok(message) => {
                    socket.feed(Message::Text(message.text)).await?;
                    loop {
                        match receiver.try_recv() {
                            Ok(message) => socket.feed(Message::Text(message.text)).await?,
                            Err(TryRecvError::Empty) => break,
                            Err(TryRecvError::Lagged(_) | TryRecvError::Closed) => return Ok(()),
                        }
                    }
                    socket.flush().await?;
                }
                Err(RecvError::Lagged(_) | RecvError::Closed) => return Ok(()),
            },
            frame = socket.recv() => match frame {
                Some(Ok(Message::Text(text))) => deliver(channels, channel, text),
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
            },
            _ = pings.tick() => socket.send(Message::Ping(Bytes::new())).await?,
        }
    }
}

/// Leaves the channel when the body is dropped, which is how hyper tells that a reader has gone.
struct StreamReader {
    receiver: Option<broadcast::Receiver<Shared>>,
    channels: Channels,
    channel: String,
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            leave(&self.channels, &self.channel, receiver);
        }
    }
}

impl StreamReader {
    /// What waits, in one piece when it is more than one event; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        let receiver = self.receiver.as_mut()?;
        let first = match time::timeout(PING_EVERY, receiver.recv()).await {
            Ok(Ok(message)) => message.event,
            Ok(Err(RecvError::Lagged(_) | RecvError::Closed)) => return None,
            Err(_) => return Some(Bytes::from_static(b":\n")),
        };
        let mut gathered = Vec::new();
        while gathered.len() < WRITE_BYTES_MAX {
            match receiver.try_recv() {
                Ok(message) => {
                    if gathered.is_empty() {
                        gathered.extend_from_slice(&first);
                    }
                    gathered.extend_from_slice(&message.event);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Lagged(_) | TryRecvError::Closed) => return None,
            }
        }
        Some(if gathered.is_empty() { first } else { gathered.into() })
    }
}

async fn read_sse(State(channels): State<Channels>, Path(channel): Path<String>) -> impl IntoResponse {
    let receiver = Some(join(&channels, &channel));
    let reader = StreamReader { receiver, channels, channel };
    // A comment first: hyper sends the head with the first bytes of the body.
    let opening = stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from_static(b":\n\n"))]);
    let events = stream::unfold(reader, async |mut reader| Some((Ok(reader.next().await?), reader)));
    let head = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (head, Body::from_stream(opening.chain(events)))
}

async fn serve(port: u16) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    let listener = socket.listen(65_535)?.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let router = Router::new()
        .route("/ws/{channel}", any(read_ws))
        .route("/sse/{channel}", get(read_sse))
        .route("/pub/{channel}", post(publish))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Channels::default());
    axum::serve(listener, router).await
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(port), Some(workers)) = (args.next(), args.next()) else {
        return Err("pushline-peer-axum PORT WORKERS".into());
    };
    let workers: usize = workers.parse()?;
    // One worker needs no work stealing.
    let mut builder = match workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(workers).enable_all().build()?.block_on(serve(port.parse()?))?;
    Ok(())
}
