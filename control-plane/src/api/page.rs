//! Pages of lists. A token is opaque to callers, and valid for one list with the same filters only.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::status;
pub use crate::inbound_log::PAGE_BYTES_MAX;

/// Entries of a page when the caller does not say.
pub const PAGE_SIZE_DEFAULT: u32 = 50;
/// Most entries of a page; more is lowered.
pub const PAGE_SIZE_MAX: u32 = 1_000;
/// Bytes of a token that name the list and its filters.
const SCOPE_BYTES: usize = 12;
/// Most bytes of the tag and the length before an entry of a page.
const FIELD_HEAD_BYTES: usize = 8;
/// Entries that are read at once where they may be large, so that no more than a page of them is in memory.
pub const LARGE_CHUNK: i64 = 64;
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 1_024;

/// Which entries of a list are asked for.
#[derive(Debug)]
pub struct Page {
    /// How many entries.
    pub size: u32,
    /// The key after which they begin; None for the first page.
    pub after: Option<String>,
    scope: [u8; SCOPE_BYTES],
}

impl Page {
    /// Reads `page_size` and `page_token` of a request. `list` names the method, `filters` all filters of
    /// the request in a fixed order.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a negative size, and for a token that is malformed, of another list or of
    /// other filters.
    pub fn read(list: &str, filters: &[&str], page_size: i32, page_token: &str) -> Result<Self, Status> {
        let size = match u32::try_from(page_size) {
            Ok(0) => PAGE_SIZE_DEFAULT,
            Ok(size) => size.min(PAGE_SIZE_MAX),
            Err(_) => return Err(status::invalid_field("page_size", "must not be negative; 0 means 50")),
        };
        let scope = scope(list, filters);
        let after = if page_token.is_empty() { None } else { Some(open(page_token, &scope)?) };
        Ok(Self { size, after, scope })
    }

    /// One more than the page's size, to see whether another page follows.
    pub fn limit(&self) -> i64 {
        i64::from(self.size) + 1
    }

    /// Whether `entries` are already more than a page has, so that nothing more need be read.
    pub fn is_full<T: Message>(&self, entries: &[T]) -> bool {
        entries.len() > self.fitting(entries, Message::encoded_len)
    }

    /// The token of the page that begins after `last_key`.
    pub fn token_after(&self, last_key: &str) -> String {
        URL_SAFE_NO_PAD.encode([&self.scope, last_key.as_bytes()].concat())
    }

    /// Cuts what was read with [`Page::limit`] to the page's size and to [`PAGE_BYTES_MAX`], and gives the next
    /// page's token, empty when this is the last page. Every list ends with it, on its entries as they are given.
    pub fn cut<T: Message>(&self, entries: &mut Vec<T>, key: impl Fn(&T) -> &str) -> String {
        self.cut_by(entries, Message::encoded_len, |entry| key(entry).to_owned())
    }

    /// The same for entries that are given as something else; `len` says how many bytes that has.
    pub fn cut_by<T>(
        &self,
        entries: &mut Vec<T>,
        len: impl Fn(&T) -> usize,
        key: impl Fn(&T) -> String,
    ) -> String {
        let kept = self.fitting(entries, len);
        if entries.len() <= kept {
            return String::new();
        }
        entries.truncate(kept);
        entries.last().map(|last| self.token_after(&key(last))).unwrap_or_default()
    }

    /// How many entries a page has: one at least, however large it is.
    fn fitting<T>(&self, entries: &[T], len: impl Fn(&T) -> usize) -> usize {
        let size = usize::try_from(self.size).expect("a page size fits usize");
        fitting(&entries[..entries.len().min(size)], PAGE_BYTES_MAX, len).max(1)
    }
}

/// How many of `entries`, from the first on, have together at most `bytes_max` in an answer.
pub fn fitting<T>(entries: &[T], bytes_max: usize, len: impl Fn(&T) -> usize) -> usize {
    let mut bytes = 0;
    let fit = entries.iter().take_while(|entry| {
        bytes += len(entry) + FIELD_HEAD_BYTES;
        bytes <= bytes_max
    });
    fit.count()
}

fn scope(list: &str, filters: &[&str]) -> [u8; SCOPE_BYTES] {
    let mut hash = Sha256::new();
    for part in std::iter::once(&list).chain(filters) {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut scope = [0; SCOPE_BYTES];
    scope.copy_from_slice(&hash.finalize()[..SCOPE_BYTES]);
    scope
}

fn open(token: &str, scope: &[u8; SCOPE_BYTES]) -> Result<String, Status> {
    let bad = || {
        let description =
            "must be the `next_page_token` of the page before, of the same list with the same filters";
        status::invalid_field("page_token", description)
    };
    if token.len() > TOKEN_BYTES_MAX {
        return Err(bad());
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let key = bytes.strip_prefix(scope.as_slice()).ok_or_else(bad)?;
    String::from_utf8(key.to_vec()).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token leads on in its own list with its own filters, and nowhere else.
    #[test]
    fn token_is_bound_to_list_and_filters() {
        let page = Page::read("ListInstances", &["route_1"], 2, "").unwrap();
        let mut entries = ["a", "b", "c"].map(str::to_owned).to_vec();
        let token = page.cut(&mut entries, |entry| entry);
        assert_eq!(entries, ["a", "b"]);
        let next = Page::read("ListInstances", &["route_1"], 2, &token).unwrap();
        assert_eq!(next.after.as_deref(), Some("b"));
        for (list, filters) in [("ListOptOuts", ["route_1"]), ("ListInstances", ["route_2"])] {
            assert!(Page::read(list, &filters, 2, &token).is_err());
        }
        for bad in ["!", "AAAA", &token[..token.len() - 3], &"A".repeat(5_000)] {
            let read = Page::read("ListInstances", &["route_1"], 2, bad);
            assert!(read.is_err(), "{bad}");
        }
        assert_eq!(page.cut(&mut ["a", "b"].map(str::to_owned).to_vec(), |entry| entry), "");
    }

    /// A page ends before it has too many bytes, and goes on right behind what it gave; what is too large for any page
    /// comes alone.
    #[test]
    fn pages_are_bounded_in_bytes() {
        const KIB: usize = 1_024;
        let kib = [1_000, 1_000, 1_000, 1_000, 4_000, 2_999, 1];
        let all: Vec<String> =
            (b'a'..).zip(kib).map(|(name, size)| char::from(name).to_string().repeat(size * KIB)).collect();
        let (mut pages, mut place) = (Vec::new(), 0);
        loop {
            let mut entries = all[place..].to_vec();
            let page = Page::read("List", &[], 6, "").unwrap();
            let token = page.cut(&mut entries, |entry| &entry[..1]);
            place += entries.len();
            pages.push(entries.len());
            let last = &entries[entries.len() - 1][..1];
            let is_last = place == all.len();
            assert_eq!(token, if is_last { String::new() } else { page.token_after(last) });
            if is_last {
                break;
            }
        }
        assert_eq!(pages, [3, 1, 1, 2]);
    }

    /// Sizes are lowered to the maximum, 0 is the default, negative ones are refused.
    #[test]
    fn sizes_are_bounded() {
        let size = |size| Page::read("List", &[], size, "").map(|page| page.size);
        assert_eq!(size(0).unwrap(), 50);
        assert_eq!(size(1_001).unwrap(), 1_000);
        assert_eq!(size(7).unwrap(), 7);
        assert_eq!(size(-1).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
