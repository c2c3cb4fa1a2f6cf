//! Answers that end before they are over: because the key of the call does, or the connection.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

/// Frames of an answer that still go out at its end: those of a call that answers once, its message and its trailers,
/// so that a call that revokes its own key has its answer. A stream that always has something ready is cut.
const FRAMES_AFTER_END: usize = 2;

/// The answer to a call, which ends with the status that `end` gives, once it does. One that is over with its headers,
/// as a refusal is, stays as it is.
pub(super) fn ending(body: Body, end: impl Future<Output = Status> + Send + 'static) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(Ending { body, end: Box::pin(end), status: None, left: FRAMES_AFTER_END, is_over: false })
}

/// A body that is the one inside until its end comes. It knows its end and its size as that one does: a server
/// that is not told of the end sends one more, empty frame, which gRPC clients take for a broken answer.
struct Ending {
    body: Body,
    end: Pin<Box<dyn Future<Output = Status> + Send>>,
    /// With which it ends, once it does.
    status: Option<Status>,
    /// Frames that still go out then.
    left: usize,
    /// Whether the last frame has gone out.
    is_over: bool,
}

impl Ending {
    fn cut(&mut self, status: &Status) -> Option<Result<Frame<Bytes>, Status>> {
        self.is_over = true;
        let mut trailers = HeaderMap::new();
        Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
    }
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(None);
        }
        if this.status.is_none()
            && let Poll::Ready(status) = this.end.as_mut().poll(context)
        {
            this.status = Some(status);
        }
        let next = match &this.status {
            Some(_) if this.left == 0 => Poll::Pending,
            Some(_) | None => Pin::new(&mut this.body).poll_frame(context),
        };
        match (next, this.status.take()) {
            (Poll::Pending, Some(status)) => Poll::Ready(this.cut(&status)),
            (Poll::Pending, None) => Poll::Pending,
            (Poll::Ready(frame), status) => {
                this.is_over = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
                this.left -= usize::from(status.is_some());
                this.status = status;
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyStream, Full, StreamBody};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::api::status;

    /// Ends once the token is cancelled.
    fn ending_with(body: Body, token: CancellationToken) -> Body {
        ending(body, async move {
            token.cancelled().await;
            status::unauthenticated("the key has ended")
        })
    }

    fn ended() -> CancellationToken {
        let token = CancellationToken::new();
        token.cancel();
        token
    }

    fn frame() -> Full<Bytes> {
        Full::new(Bytes::from_static(b"frame"))
    }

    /// When its end comes, an answer that is ready still goes out whole, and a stream that always has
    /// something ready is cut.
    #[tokio::test]
    async fn ends_cut_streams() {
        let endless = Body::new(StreamBody::new(stream::repeat_with(|| BodyStream::new(frame())).flatten()));
        let mut frames = BodyStream::new(ending_with(endless, ended()));
        let (mut data, mut trailers) = (0, None);
        while let Some(frame) = frames.next().await {
            match frame.unwrap().into_trailers() {
                Ok(found) => trailers = Some(found),
                Err(_) => data += 1,
            }
        }
        assert_eq!(data, FRAMES_AFTER_END);
        assert_eq!(trailers.unwrap()["grpc-status"], "16");
        let mut frames = BodyStream::new(ending_with(Body::new(frame()), ended()));
        assert!(frames.next().await.unwrap().unwrap().is_data());
    }

    /// A stream that has nothing to say ends all the same.
    #[tokio::test]
    async fn ends_cut_silent_streams() {
        let end = CancellationToken::new();
        let silent = stream::pending::<Result<Frame<Bytes>, Status>>();
        let mut frames = BodyStream::new(ending_with(Body::new(StreamBody::new(silent)), end.clone()));
        assert!(futures_util::poll!(frames.next()).is_pending());
        end.cancel();
        let trailers = frames.next().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "16");
        assert!(frames.next().await.is_none());
    }

    /// A refusal, whose status is in its headers, is over with them (gRPC over HTTP/2, "Trailers-Only"): the server
    /// must see that, or it sends an empty frame after them, which is no answer to a gRPC client.
    #[tokio::test]
    async fn refusals_are_over_with_their_headers() {
        let refusal: http::Response<Body> = status::not_found("instance", "inst_1").into_http();
        assert!(refusal.headers().contains_key("grpc-status"));
        for token in [CancellationToken::new(), ended()] {
            assert!(ending_with(Body::default(), token).is_end_stream());
        }
        assert!(refusal.map(|body| ending_with(body, ended())).body().is_end_stream());
    }

    /// An answer is over exactly when the one inside is, and as large; what it said of its end stays the only one.
    #[tokio::test]
    async fn answers_keep_their_end_and_size() {
        let mut body = ending_with(Body::new(frame()), CancellationToken::new());
        assert_eq!((body.is_end_stream(), body.size_hint().exact()), (false, Some(5)));
        let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        assert!(next.unwrap().unwrap().is_data());
        assert!(body.is_end_stream());
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames =
            [Ok::<_, Status>(Frame::data(Bytes::from_static(b"frame"))), Ok(Frame::trailers(trailers))];
        let answer = Body::new(StreamBody::new(stream::iter(frames)));
        let frames: Vec<_> = BodyStream::new(ending_with(answer, ended())).collect().await;
        let last = frames.into_iter().map(Result::unwrap).filter_map(|frame| frame.into_trailers().ok());
        assert_eq!(last.map(|found| found["grpc-status"].clone()).collect::<Vec<_>>(), ["0"]);
    }
}
