//! What is left out of `data` wherever it is passed on or kept: files in Base64 (tens of megabytes when the
//! webhook asks for them), previews, keys of the instance, of files and of WhatsApp's encryption, and what links
//! the phone, should an event carry it whose name does not say so.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::provider::login;

/// The names, as [`login::cut`] wants them.
const LEFT_OUT: [&str; 11] = [
    "qr",
    "qrcode",
    "pairingcode",
    "apikey",
    "token",
    "base64",
    "mediakey",
    "jpegthumbnail",
    "thumbnail",
    "senderkeydistributionmessage",
    "messagecontextinfo",
];

/// Whether what has this name is left out.
pub fn is_left_out(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| login::is_one_of(name, &LEFT_OUT))
}

/// `data`, or a part of it, without it: null stands in its place.
pub fn cut(data: &RawValue) -> Cow<'_, str> {
    login::cut(data.get(), &LEFT_OUT)
}
