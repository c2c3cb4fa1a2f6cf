//! The wire contract of WhatsApp Gateway, generated from `proto/whatsapp_gateway/v1`.
//!
//! Messages are always there; the features `client` and `server` add the generated gRPC code.

/// Package `whatsapp_gateway.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    tonic::include_proto!("whatsapp_gateway.v1");
}

/// The encoded `FileDescriptorSet` of the contract, as the proto compiler made it, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));
