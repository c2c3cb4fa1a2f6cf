//! One stream over all pages of any List method.

use std::{collections::VecDeque, future::Future};

use futures_util::{Stream, stream};
use gateway_proto::v1;
use tonic::{Response, Status};

use super::{Client, Error};

/// A request of a List method: what [`Client::list`] needs to go through its pages.
pub trait ListRequest: Clone + Send + Sync + 'static {
    /// What is listed.
    type Item: Send;

    /// Continues where a page ended.
    fn set_page_token(&mut self, page_token: String);

    /// Fetches one page: its items, and the token of the next page, empty on the last.
    fn fetch(self, client: &Client)
    -> impl Future<Output = Result<(Vec<Self::Item>, String), Status>> + Send;
}

impl Client {
    /// Streams over everything that `request` lists, page by page, fetching the next page when the one
    /// before is used up. `page_size` of the request sets the size of a page, not an end. After an error
    /// the stream ends.
    pub fn list<R: ListRequest>(
        &self,
        request: R,
    ) -> impl Stream<Item = Result<R::Item, Error>> + Send + use<R> {
        let pages = Pages { client: self.clone(), next: Some(request), items: VecDeque::new() };
        stream::try_unfold(pages, Pages::next)
    }
}

struct Pages<R: ListRequest> {
    client: Client,
    /// The request of the next page; none after the last one.
    next: Option<R>,
    items: VecDeque<R::Item>,
}

impl<R: ListRequest> Pages<R> {
    async fn next(mut self) -> Result<Option<(R::Item, Self)>, Error> {
        loop {
            if let Some(item) = self.items.pop_front() {
                return Ok(Some((item, self)));
            }
            let Some(mut request) = self.next.take() else { return Ok(None) };
            let (items, page_token) = request.clone().fetch(&self.client).await?;
            self.items = items.into();
            if !page_token.is_empty() {
                request.set_page_token(page_token);
                self.next = Some(request);
            }
        }
    }
}

macro_rules! lists {
    ($($service:ident.$method:ident: $request:ident => $items:ident: $item:ident;)*) => {$(
        impl ListRequest for v1::$request {
            type Item = v1::$item;

            fn set_page_token(&mut self, page_token: String) {
                self.page_token = page_token;
            }

            async fn fetch(self, client: &Client) -> Result<(Vec<Self::Item>, String), Status> {
                let page = client.$service().$method(self).await.map(Response::into_inner)?;
                Ok((page.$items, page.next_page_token))
            }
        }
    )*};
}

lists! {
    instances.list_instances: ListInstancesRequest => instances: Instance;
    inbound_routes.list_inbound_routes: ListInboundRoutesRequest => inbound_routes: InboundRoute;
    inbound_routes.list_unrouted_callbacks: ListUnroutedCallbacksRequest => unrouted_callbacks: UnroutedCallback;
    webhook_subscriptions.list_webhook_subscriptions:
        ListWebhookSubscriptionsRequest => webhook_subscriptions: WebhookSubscription;
    opt_outs.list_opt_outs: ListOptOutsRequest => opt_outs: OptOut;
    inbound_logs.list_inbound_logs: ListInboundLogsRequest => inbound_logs: InboundLog;
    inbound_logs.list_delivery_attempts: ListDeliveryAttemptsRequest => delivery_attempts: DeliveryAttempt;
    tenants.list_tenants: ListTenantsRequest => tenants: Tenant;
    tenants.list_api_keys: ListApiKeysRequest => api_keys: ApiKey;
    agents.list_agents: ListAgentsRequest => agents: Agent;
    audit_log.list_audit_entries: ListAuditEntriesRequest => audit_entries: AuditEntry;
}
