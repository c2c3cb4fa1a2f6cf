//! `InboundLogService`: what came in and what became of it.

use futures_util::{Stream, StreamExt as _, stream};
use gateway_core::{
    event::EventType,
    filter::{EventFilter, UnknownEvent},
    phone::normalize_phone,
};
use gateway_proto::v1::{self, inbound_log_service_server::InboundLogService};
use std::pin::Pin;
use tonic::{Request, Response, Status};

use super::{authorize, driven::driven, page::Page, period, status};
use crate::{
    app::State,
    inbound_log::{LogChange, LogFilter, LogWatch, WatchFrom, alone},
};

/// Most patterns in `events`.
const EVENTS_MAX: usize = gateway_core::filter::PATTERNS_MAX;

/// The service.
#[derive(Clone)]
pub struct InboundLogApi {
    state: State,
}

impl InboundLogApi {
    /// Answers from `state`.
    pub const fn new(state: State) -> Self {
        Self { state }
    }
}

/// A response stream.
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl InboundLogService for InboundLogApi {
    async fn list_inbound_logs(
        &self,
        request: Request<v1::ListInboundLogsRequest>,
    ) -> Result<Response<v1::ListInboundLogsResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let (start_time, end_time) = period::read(request.start_time.as_ref(), request.end_time.as_ref())?;
        let filter = LogFilter {
            tenant_id: caller.tenants().tenant_id(),
            start_time,
            end_time,
            ..filter(
                &request.instance_id,
                &request.events,
                &request.from_phone,
                &request.external_message_id,
            )?
        };
        let times = [request.start_time, request.end_time]
            .map(|time| time.map_or_else(String::new, |time| time.to_string()));
        let events = request.events.join(",");
        let filters = [
            caller.page_owner(),
            &request.instance_id,
            &events,
            &request.from_phone,
            &request.external_message_id,
            &times[0],
            &times[1],
        ];
        let page = Page::read("ListInboundLogs", &filters, request.page_size, &request.page_token)?;
        let found = self.state.logs.list(&filter, place(&page)?, size(&page)).await?;
        let next_page_token = found.next.map_or_else(String::new, |seq| page.token_after(&seq.to_string()));
        Ok(Response::new(v1::ListInboundLogsResponse { inbound_logs: found.logs, next_page_token }))
    }

    async fn get_inbound_log(
        &self,
        request: Request<v1::GetInboundLogRequest>,
    ) -> Result<Response<v1::GetInboundLogResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let event_id = required("event_id", request.into_inner().event_id)?;
        let log = self.state.logs.get(caller.tenants().tenant_id().as_ref(), &event_id).await?;
        let log = log.ok_or_else(|| status::not_found("inbound log", &event_id))?;
        Ok(Response::new(v1::GetInboundLogResponse { inbound_log: Some(alone(log)) }))
    }

    type WatchInboundLogsStream = Streamed<v1::WatchInboundLogsResponse>;

    async fn watch_inbound_logs(
        &self,
        request: Request<v1::WatchInboundLogsRequest>,
    ) -> Result<Response<Self::WatchInboundLogsStream>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let mut filter =
            filter(&request.instance_id, &request.events, &request.from_phone, &request.external_message_id)?;
        filter.tenant_id = caller.tenants().tenant_id();
        let start_time = period::timestamp("start_time", request.start_time.as_ref())?;
        let from = match start_time {
            _ if !request.cursor.is_empty() => WatchFrom::Cursor(&request.cursor),
            Some(time) => WatchFrom::Time(time),
            None => WatchFrom::Now,
        };
        let open = self.state.keys.open_stream(&caller)?;
        let watch = self.state.logs.watch(filter, from).await?;
        // The client pulls: each step reads at most one page, so a slow one makes nothing grow here.
        let changes = stream::unfold(Some(watch), |watch| async move {
            let mut watch: LogWatch = watch?;
            match watch.next().await? {
                Ok(change) => Some((Ok(response(change)), Some(watch))),
                Err(error) => Some((Err(error.into()), None)),
            }
        });
        Ok(Response::new(driven(open.around(changes)).boxed()))
    }

    async fn list_delivery_attempts(
        &self,
        request: Request<v1::ListDeliveryAttemptsRequest>,
    ) -> Result<Response<v1::ListDeliveryAttemptsResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let event_id = required("event_id", request.event_id)?;
        let filters = [caller.page_owner(), &event_id, &request.subscription_id];
        let page = Page::read("ListDeliveryAttempts", &filters, request.page_size, &request.page_token)?;
        let subscription_id = optional(&request.subscription_id);
        let found = self
            .state
            .logs
            .list_attempts(
                caller.tenants().tenant_id().as_ref(),
                &event_id,
                subscription_id,
                place(&page)?,
                size(&page),
            )
            .await?
            .ok_or_else(|| status::not_found("inbound log", &event_id))?;
        let next_page_token = found.next.map_or_else(String::new, |seq| page.token_after(&seq.to_string()));
        Ok(Response::new(v1::ListDeliveryAttemptsResponse {
            delivery_attempts: found.attempts,
            next_page_token,
        }))
    }
}

fn response(change: LogChange) -> v1::WatchInboundLogsResponse {
    let kind = match change.subscription_id {
        None => v1::InboundLogChange::Recorded,
        Some(_) => v1::InboundLogChange::Delivery,
    };
    v1::WatchInboundLogsResponse {
        inbound_log: Some(change.log),
        cursor: change.cursor,
        change: kind.into(),
        subscription_id: change.subscription_id.unwrap_or_default(),
    }
}

fn filter(
    instance_id: &str,
    events: &[String],
    from_phone: &str,
    external_message_id: &str,
) -> Result<LogFilter, Status> {
    if events.len() > EVENTS_MAX {
        return Err(status::invalid_field("events", format!("must have at most {EVENTS_MAX} values")));
    }
    // Test events are logged like all others, although no subscription selects them; `*` means them too.
    let mut compiled = EventFilter::default();
    for (index, pattern) in events.iter().enumerate() {
        let selected = if pattern == EventType::WebhookTest.name() {
            EventFilter::only(EventType::WebhookTest)
        } else {
            let refused =
                |error: UnknownEvent| status::invalid_field(format!("events[{index}]"), error.to_string());
            EventFilter::parse(&[pattern]).map_err(refused)?
        };
        compiled = compiled.or(selected);
    }
    let is_everything = events.is_empty() || events.iter().any(|pattern| pattern == "*");
    let from_phone = optional(from_phone)
        .map(|phone| {
            normalize_phone(phone).ok_or_else(|| {
                status::invalid_field(
                    "from_phone",
                    "must be a phone number in E.164, for example +966500000001",
                )
            })
        })
        .transpose()?;
    Ok(LogFilter {
        tenant_id: None,
        instance_id: optional(instance_id).map(str::to_owned),
        events: (!is_everything).then_some(compiled),
        from_phone: from_phone.map(|phone| phone.as_str().to_owned()),
        external_message_id: optional(external_message_id).map(str::to_owned),
        start_time: None,
        end_time: None,
    })
}

fn required(field: &str, value: String) -> Result<String, Status> {
    if value.is_empty() { Err(status::missing_field(field)) } else { Ok(value) }
}

fn optional(value: &str) -> Option<&str> {
    (!value.is_empty()).then_some(value)
}

fn place(page: &Page) -> Result<Option<i64>, Status> {
    let parse =
        |key: &String| key.parse().map_err(|_| status::invalid_field("page_token", "is not a page token"));
    page.after.as_ref().map(parse).transpose()
}

fn size(page: &Page) -> usize {
    usize::try_from(page.size).expect("a page size fits usize")
}
