//! Promises of the whole system, one module each, on the real programs with real sockets and disks.
//! Only providers and customers are fake.
#![cfg(test)]

mod layering;
mod first_event;
mod clean_start;
mod authenticity;
mod providers;
mod duplicates;
mod unrouted;
mod opt_out;
mod retries;
mod isolation;
mod backlog;
mod pace;
mod durable_before_ack;
mod two_agents;
mod refuse_when_full;
mod disk_faults;
mod damage;
mod config_stream;
mod control_plane_away;
mod static_stability;
mod fleet;
mod hand_over;
mod backup;
mod exported_snapshot;
mod versions;
mod identities;
mod store_trouble;
mod watch;
mod large_events;
mod api_edges;
mod grpc_edges;
mod tls;
mod privacy;
mod cli;
mod commands;
