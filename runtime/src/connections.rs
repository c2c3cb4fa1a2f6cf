//! Connections that come in: how many at most, and how long one may keep silent.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tracing::warn;

/// Pause after a failure to accept, which is usually one of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener with a bounded number of open connections. Beyond it new ones wait in the listen queue.
#[derive(Debug)]
pub struct BoundedListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl BoundedListener {
    /// Lets in at most `connections_max` at a time.
    pub fn new(listener: TcpListener, connections_max: usize) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections_max)) }
    }

    /// The next connection, where it comes from, and its place, which is free again when dropped. Failures to
    /// accept are logged and retried. Cancel safe.
    pub async fn accept(&self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                // Nobody closes it.
                std::future::pending().await
            };
            match self.listener.accept().await {
                Ok((stream, address)) => return (stream, address, place),
                Err(error) => {
                    warn!(%error, "failed to accept a connection");
                    drop(place);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As of [`TcpListener::local_addr`].
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// How long a connection may keep silent, and how old it may become. Reads beyond that fail with
/// [`io::ErrorKind::TimedOut`], with which servers close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Bytes with which the other side opens.
    pub opening_bytes: usize,
    /// How long these may take.
    pub opening: Duration,
    /// How long there may be nothing to read after them; None when the server itself knows.
    pub idle: Option<Duration>,
    /// How old it may become; None for any age.
    pub age: Option<Duration>,
}

/// An open connection: it has a place among the bounded number, and is waited for only with [`Patience`].
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    patience: Patience,
    received: usize,
    /// Runs while it is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// Runs until it is too old.
    age: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    /// A connection that has to open from now on.
    pub fn new(stream: S, patience: Patience, place: OwnedSemaphorePermit) -> Self {
        let timer = Some(Box::pin(sleep(patience.opening)));
        let age = patience.age.map(|age| Box::pin(sleep(age)));
        Self { stream, patience, received: 0, timer, age, _place: place }
    }

    /// What it reads from and writes to.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// When it becomes too old; None when it never does.
    pub fn end(&self) -> Option<Instant> {
        self.age.as_ref().map(|age| age.deadline())
    }

    fn received(&mut self, count: usize) {
        self.received = self.received.saturating_add(count);
        if self.received < self.patience.opening_bytes {
            return;
        }
        match (self.patience.idle, &mut self.timer) {
            (Some(idle), Some(timer)) => timer.as_mut().reset(Instant::now() + idle),
            _ => self.timer = None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.age.as_mut().is_some_and(|age| age.as_mut().poll(context).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        match &outcome {
            Poll::Ready(Ok(())) => self.received(buffer.filled().len() - before),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let timer = self.timer.as_mut().map(|timer| timer.as_mut().poll(context));
                if timer.is_some_and(|timer| timer.is_ready()) {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const OPENING: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    fn connection(idle: Option<Duration>) -> (DuplexStream, Connection<DuplexStream>) {
        let (near, far) = duplex(64);
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let patience = Patience { opening_bytes: 3, opening: OPENING, idle, age: None };
        (far, Connection::new(near, patience, place))
    }

    /// One that has become too old ends, however busy it is.
    #[tokio::test(start_paused = true)]
    async fn old_ones_end() {
        let (near, mut far) = duplex(64);
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let patience = Patience { opening_bytes: 1, opening: OPENING, idle: None, age: Some(IDLE) };
        let mut connection = Connection::new(near, patience, place);
        let start = Instant::now();
        assert_eq!(connection.end(), Some(start + IDLE));
        let error = loop {
            far.write_all(b"a").await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Err(error) = connection.read_exact(&mut [0]).await {
                break error;
            }
        };
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, IDLE.as_secs()));
    }

    /// A connection must open in time as a whole: a first byte alone buys no more.
    #[tokio::test(start_paused = true)]
    async fn opening_takes_its_time_at_most() {
        for said in [&b""[..], b"ab"] {
            let (mut far, mut connection) = connection(None);
            let start = Instant::now();
            far.write_all(said).await.unwrap();
            let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 10));
        }
    }

    /// What has opened may keep silent for ever, or as long as it is let.
    #[tokio::test(start_paused = true)]
    async fn idle_ones_end_where_wanted() {
        let (mut far, mut without) = connection(None);
        far.write_all(b"abc").await.unwrap();
        let read = tokio::time::timeout(IDLE * 100, without.read_to_end(&mut Vec::new())).await;
        assert!(read.is_err(), "{read:?}");
        let (mut far, mut with) = connection(Some(IDLE));
        far.write_all(b"abc").await.unwrap();
        with.read_exact(&mut [0; 3]).await.unwrap();
        tokio::time::sleep(IDLE / 2).await;
        far.write_all(b"d").await.unwrap();
        with.read_exact(&mut [0]).await.unwrap();
        let start = Instant::now();
        let error = with.read_exact(&mut [0]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, IDLE.as_secs()));
    }

    /// No more connections are accepted than there are places, and one that ends makes room.
    #[tokio::test]
    async fn connections_are_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = BoundedListener::new(listener, 1);
        let address = listener.local_addr().unwrap();
        let (_first, _second) =
            (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let (_stream, _, place) = listener.accept().await;
        assert_eq!(listener.places.available_permits(), 0);
        let next = listener.accept();
        tokio::pin!(next);
        tokio::select! {
            biased;
            _ = &mut next => panic!("accepted without a place"),
            () = tokio::task::yield_now() => {}
        }
        drop(place);
        let (_stream, _, _place) = tokio::time::timeout(Duration::from_secs(5), next).await.unwrap();
    }
}
