//! Process scaffolding: supervised tasks, layered settings, telemetry, the clock, backoff, sealing, connections
//! that come in, files for the owner alone, and the admin HTTP server. No domain word in it.

pub mod supervise;
pub mod config;
pub mod telemetry;
pub mod clock;
pub mod system;
pub mod private;
pub mod backoff;
pub mod connections;
pub mod admin;
pub mod tls;
pub mod sealing;
pub mod signed_file;
