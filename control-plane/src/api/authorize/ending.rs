//! Answers to calls of API keys, which end when their key does.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, body::Body};

use super::keys::OpenCall;
use crate::api::status;

/// Frames of an answer that still go out when its key ends: those of a call that answers once, its message and
/// its trailers, so that a call that revokes its own key has its answer. A stream that always has something ready
/// is cut.
const FRAMES_AFTER_END: usize = 2;

/// The answer to a call, which ends with UNAUTHENTICATED when its key does. One that is over with its headers, as
/// a refusal is, stays as it is.
pub(super) fn ending(body: Body, call: OpenCall) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let ended = Box::pin(call.ended().clone().cancelled_owned());
    Body::new(Ending { body, ended, is_ended: false, left: FRAMES_AFTER_END, is_over: false, _call: call })
}

/// What a call is told whose key has ended.
pub(super) fn ended_status() -> Status {
    status::unauthenticated("the API key of this call was revoked, or has expired")
}

/// A body that is the one inside until the key ends. It knows its end and its size as that one does: a server
/// that is not told of the end sends one more, empty frame, which gRPC clients take for a broken answer.
struct Ending {
    body: Body,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    is_ended: bool,
    /// Frames that still go out after the end of the key.
    left: usize,
    /// Whether the last frame has gone out.
    is_over: bool,
    /// The call is open as long as its answer.
    _call: OpenCall,
}

impl Ending {
    fn cut(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        self.is_over = true;
        let mut trailers = HeaderMap::new();
        Some(ended_status().add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
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
        this.is_ended = this.is_ended || this.ended.as_mut().poll(context).is_ready();
        if this.is_ended && this.left == 0 {
            return Poll::Ready(this.cut());
        }
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Pending if this.is_ended => Poll::Ready(this.cut()),
            Poll::Pending => Poll::Pending,
            Poll::Ready(frame) => {
                this.is_over = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
                this.left -= usize::from(this.is_ended);
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

    use super::*;
    use crate::api::authorize::keys::KeyRing;

    fn call() -> OpenCall {
        KeyRing::default().enter(&gateway_proto::v1::ApiKey::default())
    }

    fn ended_call() -> OpenCall {
        let call = call();
        call.ended().cancel();
        call
    }

    fn frame() -> Full<Bytes> {
        Full::new(Bytes::from_static(b"frame"))
    }

    /// When the key of a call ends, an answer that is ready still goes out whole, and a stream that always has
    /// something ready is cut.
    #[tokio::test]
    async fn ended_keys_cut_streams() {
        let endless = Body::new(StreamBody::new(stream::repeat_with(|| BodyStream::new(frame())).flatten()));
        let mut frames = BodyStream::new(ending(endless, ended_call()));
        let (mut data, mut trailers) = (0, None);
        while let Some(frame) = frames.next().await {
            match frame.unwrap().into_trailers() {
                Ok(found) => trailers = Some(found),
                Err(_) => data += 1,
            }
        }
        assert_eq!(data, FRAMES_AFTER_END);
        assert_eq!(trailers.unwrap()["grpc-status"], "16");
        let mut frames = BodyStream::new(ending(Body::new(frame()), ended_call()));
        assert!(frames.next().await.unwrap().unwrap().is_data());
    }

    /// A stream that has nothing to say ends with its key.
    #[tokio::test]
    async fn ended_keys_cut_silent_streams() {
        let call = call();
        let ended = call.ended().clone();
        let silent = stream::pending::<Result<Frame<Bytes>, Status>>();
        let mut frames = BodyStream::new(ending(Body::new(StreamBody::new(silent)), call));
        assert!(futures_util::poll!(frames.next()).is_pending());
        ended.cancel();
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
        for call in [call(), ended_call()] {
            assert!(ending(Body::default(), call).is_end_stream());
        }
        assert!(refusal.map(|body| ending(body, call())).body().is_end_stream());
    }

    /// An answer is over exactly when the one inside is, and as large; what it said of its end stays the only one.
    #[tokio::test]
    async fn answers_keep_their_end_and_size() {
        let mut body = ending(Body::new(frame()), call());
        assert_eq!((body.is_end_stream(), body.size_hint().exact()), (false, Some(5)));
        let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        assert!(next.unwrap().unwrap().is_data());
        assert!(body.is_end_stream());
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames =
            [Ok::<_, Status>(Frame::data(Bytes::from_static(b"frame"))), Ok(Frame::trailers(trailers))];
        let answer = Body::new(StreamBody::new(stream::iter(frames)));
        let frames: Vec<_> = BodyStream::new(ending(answer, ended_call())).collect().await;
        let last = frames.into_iter().map(Result::unwrap).filter_map(|frame| frame.into_trailers().ok());
        assert_eq!(last.map(|found| found["grpc-status"].clone()).collect::<Vec<_>>(), ["0"]);
    }
}
