//! One request and its answer over a connection, with limits on what is read.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::pipeline::deliver::failure::{Failure, HeadTooLong, Party, Phase};

use super::pool::Wired;

/// Most bytes of an answer's head.
pub(crate) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most headers of an answer.
pub(super) const HEADERS_MAX: usize = 64;
/// Most bytes that a connection holds in memory for reading: the head has to fit.
pub(super) const BUFFER_BYTES_MAX: usize = HEAD_BYTES_MAX;
/// Most bytes that are read until the head of the answer is complete, interim answers (1xx) included.
const BEFORE_HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Most bytes of an answer's body that are read; then the connection is closed.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of an answer's body that are kept.
const EXCERPT_BYTES_MAX: usize = 16 * 1024;

/// What came back.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) status: Option<StatusCode>,
    pub(crate) retry_after: Option<HeaderValue>,
    /// The beginning of the body.
    pub(crate) excerpt: Vec<u8>,
}

/// How the answer began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// Nothing came.
    Nothing,
    /// A frame of HTTP/2.
    Http2,
    /// A record of TLS.
    Tls,
    /// Anything else.
    Other,
}

/// What passed through a connection since its last request began. The connection and whoever looks at it
/// share it.
#[derive(Default)]
pub(crate) struct Meter {
    bytes_read: AtomicU64,
    bytes_read_max: AtomicU64,
    /// The first eight bytes of the answer.
    first: AtomicU64,
    is_stuck: AtomicBool,
}

impl Meter {
    /// A request begins.
    pub(super) fn begin(&self) {
        self.bytes_read.store(0, Ordering::Relaxed);
        self.bytes_read_max.store(BEFORE_HEAD_BYTES_MAX, Ordering::Relaxed);
        self.first.store(0, Ordering::Relaxed);
        self.is_stuck.store(false, Ordering::Relaxed);
    }

    /// The head came: from here on the reader counts.
    fn head_came(&self) {
        self.bytes_read_max.store(u64::MAX, Ordering::Relaxed);
    }

    /// Takes note of what was read.
    fn read(&self, bytes: &[u8]) -> io::Result<()> {
        let before = self.bytes_read.load(Ordering::Relaxed);
        if before == 0 && !bytes.is_empty() {
            let mut first = [0; 8];
            let length = bytes.len().min(first.len());
            first[..length].copy_from_slice(&bytes[..length]);
            self.first.store(u64::from_be_bytes(first), Ordering::Relaxed);
        }
        let after = before.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.bytes_read.store(after, Ordering::Relaxed);
        if after > self.bytes_read_max.load(Ordering::Relaxed) {
            return Err(io::Error::other(HeadTooLong));
        }
        Ok(())
    }

    /// Whether the other side takes nothing more.
    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    /// How the answer began.
    pub(crate) fn head(&self) -> Head {
        if self.bytes_read.load(Ordering::Relaxed) == 0 {
            return Head::Nothing;
        }
        match self.first.load(Ordering::Relaxed).to_be_bytes() {
            // RFC 9113, 4.1 and 6: a short SETTINGS or GOAWAY frame on stream 0.
            [0, _, _, 4 | 7, 0 | 1, 0, 0, 0] => Head::Http2,
            // RFC 8446, 5.1: an alert or a handshake record.
            [0x15 | 0x16, 3, 0..=4, ..] => Head::Tls,
            _ => Head::Other,
        }
    }
}

/// The bytes below HTTP.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A stream that a [`Meter`] watches.
pub(crate) struct Wire {
    stream: Stream,
    meter: Arc<Meter>,
}

impl Wire {
    pub(super) const fn new(stream: Stream, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }

    fn note<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.meter.is_stuck.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        })?;
        Poll::Ready(self.meter.read(&buffer.filled()[before..]))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            // The kernel has everything that was written.
            Stream::Plain(_) => Poll::Ready(Ok(())),
            Stream::Tls(stream) => {
                let flushed = Pin::new(stream).poll_flush(cx);
                self.note(flushed)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A request whose connection broke.
pub(super) enum Broken {
    /// By what HTTP says.
    Http(hyper::Error),
    /// The connection ended without a word.
    Ended,
}

impl Broken {
    /// Whether the other side had closed the connection before it saw the request, as far as can be known:
    /// not a byte came back. Only on a connection that was idle is this no failure.
    pub(super) fn was_not_answered(&self, meter: &Meter) -> bool {
        meter.head() == Head::Nothing
            && match self {
                Self::Http(error) => !error.is_user() && !error.is_parse(),
                Self::Ended => true,
            }
    }

    pub(super) fn explain(
        &self,
        party: Party,
        meter: &Meter,
        phase: Phase,
        shows_certificate: bool,
    ) -> Failure {
        match self {
            Self::Http(error) => Failure::exchange(party, error, meter, phase, shows_certificate),
            Self::Ended => Failure {
                is_unconnected: meter.head() == Head::Nothing,
                ..Failure::protocol(format!("the {party} closed the connection without an answer"))
            },
        }
    }
}

impl From<hyper::Error> for Broken {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error)
    }
}

impl Wired {
    /// Sends a request and waits for the head of the answer. When dropped, the connection is not used again.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
        answer: &mut Answer,
    ) -> Result<(StatusCode, Incoming), Broken> {
        let mut response = pin!(self.sender.send_request(request));
        let response = poll_fn(|cx| {
            self.drive(cx);
            match response.as_mut().poll(cx) {
                Poll::Ready(response) => Poll::Ready(response.map_err(Broken::from)),
                Poll::Pending if self.has_ended() => Poll::Ready(Err(Broken::Ended)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await?;
        self.meter.head_came();
        let (head, body) = response.into_parts();
        answer.status = Some(head.status);
        answer.retry_after = head.headers.get(header::RETRY_AFTER).cloned();
        Ok((head.status, body))
    }

    /// Reads the body, as far as the limit goes, and keeps its beginning.
    pub(super) async fn read(&mut self, mut body: Incoming, answer: &mut Answer) -> Result<(), Broken> {
        let mut bytes_read = 0;
        while !body.is_end_stream() {
            let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
                Poll::Pending => {
                    let had_ended = self.has_ended();
                    self.drive(cx);
                    match Pin::new(&mut body).poll_frame(cx) {
                        Poll::Pending if had_ended => Poll::Ready(None),
                        frame => frame,
                    }
                }
                frame => frame,
            })
            .await;
            let Some(frame) = frame.transpose()? else { return Ok(()) };
            let Ok(chunk) = frame.into_data() else { continue };
            bytes_read += chunk.len();
            let room = EXCERPT_BYTES_MAX - answer.excerpt.len();
            answer.excerpt.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if bytes_read >= BODY_BYTES_MAX {
                self.is_spent = true;
                return Ok(());
            }
        }
        Ok(())
    }
}
