//! The first format of `config.log`, with everything in the open: 8 bytes that name it, then each response as
//! length (u32 little endian), CRC32C (u32 little endian) and the protobuf bytes. Only read, to be converted.

use gateway_proto::v1;
use prost::Message as _;

const FORMAT: &[u8; 8] = b"WAGWCFG1";
const FRAME_HEADER_BYTES: usize = 8;

/// Gives the whole responses at the beginning of a file of this format to `take`, oldest first. False when it
/// is of another one.
pub fn read(bytes: &[u8], take: &mut impl FnMut(v1::StreamConfigResponse)) -> bool {
    let Some(mut rest) = bytes.strip_prefix(FORMAT.as_slice()) else {
        // A file that was torn while its first bytes were written is an empty one.
        return FORMAT.starts_with(bytes);
    };
    while let Some((response, after)) = read_frame(rest) {
        take(response);
        rest = after;
    }
    true
}

fn read_frame(bytes: &[u8]) -> Option<(v1::StreamConfigResponse, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>()?;
    let (length, crc) = header.split_at(4);
    let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
    let body = rest.get(..length)?;
    let good = crc32c::crc32c(body) == u32::from_le_bytes(crc.try_into().ok()?);
    let response = v1::StreamConfigResponse::decode(body).ok().filter(|_| good)?;
    Some((response, &rest[length..]))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A file as the program before this one wrote it.
    pub fn written(responses: &[v1::StreamConfigResponse]) -> Vec<u8> {
        let mut bytes = FORMAT.to_vec();
        for response in responses {
            let body = response.encode_to_vec();
            bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
            bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
            bytes.extend_from_slice(&body);
        }
        bytes
    }
}
