//! Compiles the `.proto` files in pure Rust (protox), so that no `protoc` is needed, and keeps the
//! descriptor set, comments included, for gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = fs::read_dir("whatsapp_gateway/v1")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<PathBuf>, _>>()?;
    files.sort();
    println!("cargo:rerun-if-changed=whatsapp_gateway");
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.binpb"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".whatsapp_gateway.v1.DeliveryAttempt.response_excerpt")
        .compile_fds(descriptors)?;
    Ok(())
}
