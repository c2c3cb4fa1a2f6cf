//! The call `ReportLogs` with requests that are encoded already: a report is kept encoded in the buffer, and
//! decoding it only to encode it again would be a large part of the work that a quick delivery costs.

use bytes::{Buf as _, Bytes};
use gateway_proto::v1;
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio_stream::Stream;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    service::interceptor::InterceptedService,
};

use super::{Calls, Credential, MESSAGE_BYTES_MAX};

const REPORT_LOGS: PathAndQuery =
    PathAndQuery::from_static("/whatsapp_gateway.v1.AgentSyncService/ReportLogs");

/// What a control plane that takes over deliveries answers with, as the contract says of `ReportLogs`.
const TAKES_HAND_OVERS_HEADER: &str = "gateway-takes-hand-overs";

/// An open report stream.
pub struct ReportStream {
    /// What the control plane acks.
    pub acks: Streaming<v1::ReportLogsResponse>,
    /// Whether the control plane at the other end takes over deliveries. One that does not say so would ack them
    /// unseen.
    pub takes_hand_overs: bool,
}

/// Opens report streams. Cheap to clone.
#[derive(Clone)]
pub struct ReportClient(Grpc<InterceptedService<Calls, Credential>>);

impl ReportClient {
    pub(super) fn new(calls: InterceptedService<Calls, Credential>) -> Self {
        let grpc = Grpc::new(calls);
        Self(grpc.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Opens a report stream. Each of `requests` is one encoded `ReportLogsRequest`.
    ///
    /// # Errors
    /// What the control plane answers, or that it cannot be reached.
    pub async fn report_logs(
        &mut self,
        requests: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<ReportStream, Status> {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let response = self.0.streaming(Request::new(requests), REPORT_LOGS, EncodedRequests).await?;
        let answer = response.metadata().get(TAKES_HAND_OVERS_HEADER);
        let takes_hand_overs = answer.is_some_and(|answer| answer == "true");
        Ok(ReportStream { acks: response.into_inner(), takes_hand_overs })
    }
}

#[derive(Default)]
struct EncodedRequests;

impl Codec for EncodedRequests {
    type Encode = Bytes;
    type Decode = v1::ReportLogsResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for EncodedRequests {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(out, request);
        Ok(())
    }
}

impl Decoder for EncodedRequests {
    type Item = v1::ReportLogsResponse;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let response = v1::ReportLogsResponse::decode(input.copy_to_bytes(input.remaining()));
        response.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
