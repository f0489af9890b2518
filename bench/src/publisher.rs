//! The one who publishes: HTTP over one keep-alive connection, one by one or many together.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{http, transport};

/// How messages that belong together are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// As many `POST`s, written at once.
    Pipeline,
    /// One `POST` of NDJSON lines.
    Batch,
}

/// Where and what is published.
#[derive(Debug, Clone)]
pub struct Target {
    pub dest: SocketAddrV4,
    pub host: String,
    pub channel: String,
    /// Path of a single publish.
    pub path: String,
    pub batch_path: String,
    pub message_bytes: usize,
}

const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// One open connection. Made anew for each round: servers end idle ones.
pub struct Publisher<'a> {
    target: &'a Target,
    stream: TcpStream,
    /// Bytes read beyond the last answer.
    answers: Vec<u8>,
    request: Vec<u8>,
    message: Vec<u8>,
}

impl<'a> Publisher<'a> {
    pub fn connect(target: &'a Target) -> Result<Self> {
        let stream = TcpStream::connect(target.dest).context("connecting the publisher")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
        Ok(Self { target, stream, answers: Vec::new(), request: Vec::new(), message: Vec::new() })
    }

    /// Publishes the numbers `from..from + count` together. `before` is called just before the write.
    pub fn publish(&mut self, from: u32, count: u32, by: By, before: impl FnOnce()) -> Result<()> {
        self.request.clear();
        let answers = match by {
            By::Pipeline => {
                for number in from..from + count {
                    self.write_single(number);
                }
                count
            }
            By::Batch => {
                self.write_batch(from, count);
                1
            }
        };
        before();
        self.stream.write_all(&self.request)?;
        for _ in 0..answers {
            self.read_answer()?;
        }
        Ok(())
    }

    fn write_single(&mut self, number: u32) {
        let target = self.target;
        self.message.clear();
        transport::write_numbered(&mut self.message, number, target.message_bytes);
        http::write_post(&mut self.request, &target.host, &target.path, "text/plain", &self.message);
    }

    fn write_batch(&mut self, from: u32, count: u32) {
        let target = self.target;
        self.message.clear();
        for number in from..from + count {
            write!(self.message, "{{\"channel\":\"{}\",\"data\":\"", target.channel)
                .expect("a Vec takes all");
            transport::write_numbered(&mut self.message, number, target.message_bytes);
            self.message.extend_from_slice(b"\"}\n");
        }
        let kind = "application/x-ndjson";
        http::write_post(&mut self.request, &target.host, &target.batch_path, kind, &self.message);
    }

    fn read_answer(&mut self) -> Result<()> {
        let mut room = [0; 16 * 1024];
        loop {
            if let Some(end) = http::head_end(&self.answers) {
                let whole = end + http::content_length(&self.answers[..end]);
                if self.answers.len() >= whole {
                    let status = http::status(&self.answers[..end]);
                    if !matches!(status, Some(200..=299)) {
                        bail!("publish was answered {}", String::from_utf8_lossy(&self.answers[..whole]));
                    }
                    self.answers.drain(..whole);
                    return Ok(());
                }
            }
            match self.stream.read(&mut room).context("waiting for the answer to a publish")? {
                0 => bail!("the server closed the publisher's connection"),
                got => self.answers.extend_from_slice(&room[..got]),
            }
        }
    }
}
