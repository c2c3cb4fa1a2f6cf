//! Just enough HTTP/1.1 for a load generator: whole messages with `content-length` over one connection.
//! A full client or server would cost more than what is measured.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const READ_BYTES: usize = 16 * 1024;

/// One message.
pub struct Message {
    bytes: Bytes,
    head: usize,
}

impl Message {
    /// The request line or status line, and the headers.
    pub fn head(&self) -> &[u8] {
        &self.bytes[..self.head]
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// The status of an answer; 0 when this is none.
    pub fn status(&self) -> u16 {
        let digits = self.bytes.get(9..12).and_then(|digits| str::from_utf8(digits).ok());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
    }
}

/// A connection on which whole messages go to and fro.
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    /// Over this stream.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::with_capacity(READ_BYTES) })
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next message; None when the other side has closed.
    pub async fn receive(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some((head, body)) = lengths(&self.buffer)
                && self.buffer.len() >= head + body
            {
                return Ok(Some(Message { bytes: self.buffer.split_to(head + body).freeze(), head }));
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Lengths of head and body, once the head is whole.
fn lengths(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let length = header(&bytes[..head], "content-length").and_then(|value| str::from_utf8(value).ok());
    Some((head, length.and_then(|length| length.trim().parse().ok()).unwrap_or_default()))
}

/// The value of a header.
pub fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (start, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        start.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
    })
}
