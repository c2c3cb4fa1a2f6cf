//! Domain types and pure decisions of WhatsApp Gateway. No I/O, no clock, no randomness, no logging.
//!
//! Reading order: who owns and who may do what ([`tenant`], [`api_key`]), what is configured ([`instance`],
//! [`inbound_route`], [`webhook_subscription`], [`opt_out`], together a [`snapshot`]), what happens
//! ([`event`], written as a [`payload`]), who gets it ([`filter`], [`route`]), and how it is delivered
//! ([`destination`], [`delivery`], [`retry`], [`signature`]).

pub mod id;
pub mod violation;
pub mod phone;
pub mod time;
pub mod tenant;
pub mod api_key;
pub mod instance;
pub mod inbound_route;
pub mod webhook_subscription;
pub mod opt_out;
pub mod snapshot;
pub mod event;
pub mod payload;
pub mod filter;
pub mod route;
pub mod destination;
pub mod delivery;
pub mod retry;
pub mod signature;
