//! A callback as it came in, and the URL that the provider called.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header};

use super::Refusal;

/// One HTTP request of a provider, its body whole and as received.
pub struct CallbackRequest {
    /// `POST`, or `GET` of providers that call so.
    pub method: Method,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The request's target, for providers that sign it.
    pub uri: Uri,
    /// The raw body: what is signed.
    pub body: Bytes,
    /// The address that providers call, without a slash at its end, when it is not the request's own.
    pub public_base_url: Option<Arc<str>>,
}

impl CallbackRequest {
    /// The URL that the provider called, which some sign: the public base URL, or else `http` and the request's
    /// own `Host`, then path and query byte for byte as received.
    ///
    /// # Errors
    /// Without a public base URL when the request has not exactly one `Host`.
    pub fn url(&self) -> Result<String, Refusal> {
        let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
        match &self.public_base_url {
            Some(base) => Ok(format!("{base}{target}")),
            None => {
                let host = self.single_header(header::HOST.as_str()).map_err(|_| Refusal::MissingHost)?;
                let host = host.filter(|host| !host.is_empty()).ok_or(Refusal::MissingHost)?;
                Ok(format!("http://{host}{target}"))
            }
        }
    }

    /// The value of a header (its name in lower case), without white space around it; None when there is none.
    ///
    /// # Errors
    /// When there are two, or it is not visible ASCII: what was proved would be open to doubt.
    pub fn single_header(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let mut values = self.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => {
                value.to_str().map(|text| Some(text.trim())).map_err(|_| Refusal::MalformedSignature)
            }
            (Some(_), Some(_)) => Err(Refusal::MalformedSignature),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request(base: Option<&str>, hosts: &[&str]) -> CallbackRequest {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        CallbackRequest {
            method: Method::POST,
            headers,
            uri: "/callbacks/twilio/abc?tenant=7&x=%2f".parse().unwrap(),
            body: Bytes::new(),
            public_base_url: base.map(Arc::from),
        }
    }

    /// The public base URL wins over the request's host, its path prefix included; path and query stay as they
    /// came.
    #[test]
    fn url_is_the_one_that_was_called() {
        let own = request(None, &["127.0.0.1:8090"]);
        assert_eq!(own.url().unwrap(), "http://127.0.0.1:8090/callbacks/twilio/abc?tenant=7&x=%2f");
        let proxied = request(Some("https://gw.example.com:8443/in"), &["127.0.0.1:8090"]);
        assert_eq!(
            proxied.url().unwrap(),
            "https://gw.example.com:8443/in/callbacks/twilio/abc?tenant=7&x=%2f"
        );
        for hosts in [&[][..], &[""], &["one", "two"]] {
            assert_eq!(request(None, hosts).url(), Err(Refusal::MissingHost));
        }
    }

    /// A header that comes twice proves nothing.
    #[test]
    fn headers_are_single() {
        assert_eq!(request(None, &[" a "]).single_header("host"), Ok(Some("a")));
        assert_eq!(request(None, &[]).single_header("host"), Ok(None));
        assert_eq!(request(None, &["a", "a"]).single_header("host"), Err(Refusal::MalformedSignature));
    }
}
