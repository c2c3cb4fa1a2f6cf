//! Reading a request's body within limits: of one body, and of all that are being read.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Largest body; a larger one is answered 413. Meta sends at most 3 MB
/// (developers.facebook.com/docs/whatsapp/cloud-api/guides/set-up-webhooks).
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes of all bodies in memory, from their first byte to the answer. Beyond it callbacks are answered
/// 503 at once: bodies are read before anybody is proved genuine.
pub const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How much of a refused body is read and dropped, and for how long, so that the caller, who is still
/// writing, gets to read the answer instead of a reset.
const DISCARD_BYTES_MAX: usize = 16 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Room for bodies. Cheap to clone.
#[derive(Clone)]
pub struct BodyBudget(Arc<Semaphore>);

impl Default for BodyBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_BYTES_MAX)))
    }
}

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBodyError {
    /// It is over [`BODY_BYTES_MAX`].
    TooLarge,
    /// All bodies together are over [`BODIES_BYTES_MAX`].
    Busy,
    /// The connection broke, or the body is not what HTTP says.
    Broken,
}

impl BodyBudget {
    /// The whole body, and its room, which is free again when that is dropped. Room is taken as bytes come
    /// in, so that announcing a large body takes none.
    ///
    /// Cancel safe: what was read is dropped.
    pub async fn read(
        &self,
        headers: &HeaderMap,
        mut body: Incoming,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), ReadBodyError> {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: u64| length > BODY_BYTES_MAX as u64) {
            discard(body).await;
            return Err(ReadBodyError::TooLarge);
        }
        let (mut read, mut rest, mut room) = (Bytes::new(), BytesMut::new(), None);
        while let Some(frame) = body.frame().await {
            let Ok(chunk) = frame.map_err(|_| ReadBodyError::Broken)?.into_data() else { continue };
            if read.len() + rest.len() + chunk.len() > BODY_BYTES_MAX {
                drop((read, rest, room));
                discard(body).await;
                return Err(ReadBodyError::TooLarge);
            }
            if !self.take(chunk.len(), &mut room) {
                discard(body).await;
                return Err(ReadBodyError::Busy);
            }
            // Nearly every body is one chunk, which is then not copied.
            if read.is_empty() && rest.is_empty() {
                read = chunk;
            } else {
                if rest.is_empty() {
                    rest.extend_from_slice(&std::mem::take(&mut read));
                }
                rest.extend_from_slice(&chunk);
            }
        }
        Ok((if rest.is_empty() { read } else { rest.freeze() }, room))
    }

    pub(super) fn take(&self, bytes: usize, room: &mut Option<OwnedSemaphorePermit>) -> bool {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Ok(more) = Arc::clone(&self.0).try_acquire_many_owned(bytes) else { return false };
        match room {
            Some(room) => room.merge(more),
            None => *room = Some(more),
        }
        true
    }
}

/// Reads and drops a body that is refused, within limits. Cancel safe.
pub async fn discard(mut body: Incoming) {
    if body.size_hint().lower() > DISCARD_BYTES_MAX as u64 {
        return;
    }
    let reading = async {
        let mut dropped = 0;
        while let Some(Ok(frame)) = body.frame().await {
            dropped += frame.data_ref().map_or(0, Bytes::len);
            if dropped > DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    // Whether it all came does not matter any more.
    drop(timeout(DISCARD_TIMEOUT, reading).await);
}
