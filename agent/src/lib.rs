//! The edge of WhatsApp Gateway: takes provider callbacks, proves them genuine, normalizes them, keeps them
//! durably until they are delivered to the customers' webhooks, and reports what happened.
//!
//! Reading order: [`config`] and [`app`] put the parts together; [`snapshot`], [`opt_out`] and [`work`] are
//! what comes from the control plane over [`control_plane`]; [`provider`] knows the companies that call us;
//! [`pipeline`] is the way of an event.

pub mod config;
pub mod metrics;
pub mod app;
pub mod control_plane;
pub mod snapshot;
pub mod opt_out;
pub mod work;
pub mod provider;
pub mod pipeline;

use gateway_runtime::private;

/// This program's version, as it goes out in `user-agent` and to the control plane.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
