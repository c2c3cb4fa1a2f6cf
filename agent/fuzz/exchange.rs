//! A request as text, so that corpora can be read: a line with method and target, a line per header, an empty line,
//! the body.

use std::sync::Arc;

use bytes::Bytes;
use gateway_agent::provider::CallbackRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

/// Where providers call.
pub const PUBLIC_BASE_URL: &str = "https://gw.example.com";

/// A request, by its parts.
#[derive(Clone)]
pub struct Exchange {
    /// `POST` or `GET`.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// Names and values.
    pub headers: Vec<(HeaderName, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Exchange {
    /// What an input says. Whatever is malformed is left out: a server would have refused it before us.
    pub fn read(input: &[u8]) -> Self {
        let end = input.windows(2).position(|pair| pair == b"\n\n");
        let (head, body) = end.map_or((input, &[][..]), |end| (&input[..end], &input[end + 2..]));
        let mut lines = head.split(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let (method, target) = match first.strip_prefix(b"GET ") {
            Some(target) => (Method::GET, target),
            None => (Method::POST, first.strip_prefix(b"POST ").unwrap_or_default()),
        };
        let target = std::str::from_utf8(target).ok().filter(|target| is_target(target)).unwrap_or("/");
        let header = |line: &[u8]| {
            let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
            let value = value[1..].trim_ascii();
            HeaderValue::from_bytes(value).ok()?;
            Some((HeaderName::from_bytes(name).ok()?, value.to_vec()))
        };
        // Servers bound the number of headers.
        let headers = lines.filter_map(header).take(100).collect();
        Self { method, target: target.to_owned(), headers, body: body.to_vec() }
    }

    /// The query.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The URL that is called.
    pub fn url(&self) -> String {
        format!("{PUBLIC_BASE_URL}{}", self.target)
    }

    /// The request.
    pub fn request(&self) -> CallbackRequest {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(name, HeaderValue::from_bytes(value).expect("it was checked"));
        }
        CallbackRequest {
            method: self.method.clone(),
            headers,
            uri: self.target.parse().expect("it was checked"),
            body: Bytes::copy_from_slice(&self.body),
            public_base_url: Some(Arc::from(PUBLIC_BASE_URL)),
        }
    }
}

/// Whether a server takes this as path and query, and passes it on byte for byte.
pub fn is_target(text: &str) -> bool {
    let uri = || text.parse::<Uri>().ok();
    text.starts_with('/')
        && uri().is_some_and(|uri| uri.path_and_query().is_some_and(|target| target == text))
}
