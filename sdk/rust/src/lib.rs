//! What operators and customers of WhatsApp Gateway import.
//!
//! - [`client`]: a typed client of the control plane: authentication, deadlines, paging, and a watch that
//!   resumes after every break without gap or repeat.
//! - [`webhook`]: what a receiver of webhooks needs: verify first, then parse.
//!
//! ```no_run
//! use futures_util::TryStreamExt as _;
//! use gateway_sdk::{Client, ClientOptions, v1};
//!
//! # async fn run() -> Result<(), gateway_sdk::Error> {
//! let client = Client::connect(ClientOptions::new("http://127.0.0.1:50051", "the admin key")).await?;
//! let mut logs = std::pin::pin!(client.list(v1::ListInboundLogsRequest::default()));
//! while let Some(log) = logs.try_next().await? {
//!     assert!(!log.event_id.is_empty());
//! }
//! # Ok(())
//! # }
//! ```

pub mod client;
pub mod webhook;

pub use client::{Client, ClientOptions, Error};
pub use gateway_proto::v1;
/// The time type of this crate's interface.
pub use jiff::Timestamp;
