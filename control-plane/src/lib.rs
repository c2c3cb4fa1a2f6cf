//! The control plane: the source of truth for instances, inbound routes, webhook subscriptions, opt-out
//! policies and opt-outs, and the keeper of inbound logs.
//!
//! Reading order: [`config`] (every setting), [`app`] (parts joined, run, drained), [`api`] (gRPC: limits,
//! who may call what, one file per service), [`audit`] (who did what), [`sealing`] (secrets at rest), [`store`] (configuration and opt-outs,
//! one version counter; below it an engine, SQLite), [`publish`] (store change to delta per agent), [`fleet`] (connected
//! agents), [`work`] (what agents are asked to do), [`inbound_log`] (reported events and attempts),
//! [`pause`] (subscriptions that only fail), [`writable`] (whether anything can be stored), `scrub` (rows that cannot be read), [`backup`] (copies of the databases, and starting from one), [`export`] (files with
//! which agents start while the control plane is away).

pub mod config;
pub mod app;
pub mod metrics;
pub mod api;
pub mod audit;
pub mod sealing;
pub mod store;
pub mod publish;
pub mod fleet;
pub mod ca;
pub mod tls;
pub mod admission;
pub mod work;
pub mod inbound_log;
pub mod pause;
pub mod writable;
mod scrub;
pub mod backup;
pub mod export;
