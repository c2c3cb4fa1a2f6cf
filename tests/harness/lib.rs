//! The harness of the system tests: the real programs on free ports, a provider that signs, a receiver
//! that records.
//!
//! In reading order:
//! - [`world`]: all of it joined: a control plane, an agent, an instance, a subscription, a receiver
//! - [`condition`]: waiting for a condition with a deadline; nothing here sleeps
//! - [`programs`]: builds the programs once per test process
//! - [`process`]: one running program, its log, its end
//! - [`server`]: a program with its readiness and restarts
//! - [`control_plane`], [`agent`]: the two of them
//! - [`meta`]: callbacks as Meta sends them
//! - [`receiver`]: the customer's side: records webhooks and answers as scripted
//! - [`schemas`]: the published JSON Schemas
//! - [`python`]: a virtual environment with what customers and providers use
//! - [`signer`]: proves callbacks as any provider does, with the providers' own libraries
//! - [`http`]: requests that no well-behaved client would send
//! - [`proxy`]: a line that counts, records, goes dead and breaks
//! - [`raw`]: one side of the agents' protocol, played by the test
//! - [`relay`]: keeps every message between agents and a control plane
//! - [`versions`]: what programs of earlier versions said and left
//! - [`preload`]: libraries in C that stand between a program and the system
//! - [`database`]: another process at the databases of the control plane
//! - [`faults`]: a disk that fails when asked to
//! - [`clock`]: clocks that a test sets
//! - [`random`]: repeatable chance
//! - [`mod@figure`]: shows what was measured

pub mod world;
pub mod condition;
pub mod programs;
pub mod process;
pub mod server;
pub mod control_plane;
pub mod agent;
pub mod meta;
pub mod receiver;
pub mod schemas;
pub mod python;
pub mod signer;
pub mod http;
pub mod proxy;
pub mod raw;
pub mod relay;
pub mod versions;
pub mod preload;
pub mod database;
pub mod faults;
pub mod clock;
pub mod random;
pub mod figure;

pub use agent::Agent;
pub use clock::Clock;
pub use condition::{DEADLINE, Within, eventually};
pub use control_plane::ControlPlane;
pub use figure::figure;
pub use meta::MetaProvider;
pub use proxy::Proxy;
pub use receiver::{Receiver, Reply, Webhook};
pub use signer::Signer;
pub use world::World;
