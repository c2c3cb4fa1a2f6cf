//! The promise, on system calls: an answer of 200 begins to be written to a callback's connection only after
//! a sync has returned that began after the callback's record had been written to that file.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use anyhow::{Context as _, ensure};

use crate::calls::Call;

/// How ids of messages begin in a traced run; digits follow.
pub const WAMID_PREFIX: &str = "wamid.TRACE";
/// How many digits.
pub const WAMID_DIGITS: usize = 8;

const READS: [&str; 4] = ["read", "readv", "recvfrom", "recvmsg"];
const WRITES: [&str; 7] = ["write", "writev", "sendto", "sendmsg", "pwrite64", "pwritev", "pwritev2"];
const SYNCS: [&str; 2] = ["fdatasync", "fsync"];

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Answers of 200 that were looked at.
    pub answers: usize,
    /// Syncs of the journal that returned well.
    pub syncs: usize,
    /// Most messages that one sync covered.
    pub messages_per_sync_max: usize,
    /// Answers that came too early, and why.
    pub exceptions: Vec<String>,
}

/// A file of the journal: what is written, and what of it is on disk since when.
#[derive(Default)]
struct File {
    /// Messages and the line on which their write returned; not synced yet.
    written: Vec<(String, usize)>,
}

/// A connection of the provider: the request that is not answered yet.
#[derive(Default)]
struct Connection {
    request: String,
}

/// Checks the calls of an agent that takes callbacks at `callbacks` and keeps its journal in files whose path
/// contains `journal`.
///
/// # Errors
/// When the trace is not that of such an agent: an answer without a request, a record that was written in
/// part.
pub fn check(calls: &[Call], callbacks: SocketAddr, journal: &str) -> anyhow::Result<Findings> {
    let local = format!("TCP:[{callbacks}->");
    let mut checker = Checker::default();
    // An answer counts from its beginning, everything else from its end.
    let mut steps: Vec<(usize, &Call)> = calls
        .iter()
        .map(|call| {
            let is_answer = call.target.starts_with(&local) && WRITES.contains(&call.name.as_str());
            (if is_answer { call.start } else { call.end }, call)
        })
        .collect();
    steps.sort_by_key(|(line, _)| *line);
    for (_, call) in steps {
        let name = call.name.as_str();
        if call.target.contains(journal) {
            if SYNCS.contains(&name) {
                checker.sync(call);
            } else if WRITES.contains(&name) {
                checker.record(call)?;
            }
        } else if call.target.starts_with(&local) {
            if READS.contains(&name) {
                checker.request(call);
            } else if WRITES.contains(&name) {
                checker.answer(call)?;
            }
        }
    }
    Ok(checker.findings)
}

#[derive(Default)]
struct Checker {
    files: HashMap<String, File>,
    connections: HashMap<String, Connection>,
    durable: BTreeSet<String>,
    findings: Findings,
}

impl Checker {
    fn record(&mut self, call: &Call) -> anyhow::Result<()> {
        if call.result < 0 {
            return Ok(());
        }
        let length = length_asked(call);
        let is_whole = length.is_none_or(|length| length == call.result);
        ensure!(is_whole, "line {}: {} bytes of {length:?} were written", call.end + 1, call.result);
        let file = self.files.entry(call.target.clone()).or_default();
        file.written.extend(messages(&call.data()).into_iter().map(|message| (message, call.end)));
        Ok(())
    }

    fn sync(&mut self, call: &Call) {
        if call.result != 0 {
            return;
        }
        self.findings.syncs += 1;
        let Some(file) = self.files.get_mut(&call.target) else { return };
        let before = file.written.len();
        let covered = file.written.extract_if(.., |(_, written)| *written < call.start);
        self.durable.extend(covered.map(|(message, _)| message));
        let count = before - file.written.len();
        self.findings.messages_per_sync_max = self.findings.messages_per_sync_max.max(count);
    }

    fn request(&mut self, call: &Call) {
        if call.result > 0 {
            self.connections.entry(call.target.clone()).or_default().request.push_str(&call.data());
        }
    }

    fn answer(&mut self, call: &Call) -> anyhow::Result<()> {
        let data = call.data();
        if !data.contains("HTTP/1.1 ") {
            return Ok(());
        }
        let line = call.start + 1;
        let connection = self.connections.get_mut(&call.target);
        let request =
            std::mem::take(&mut connection.with_context(|| format!("line {line}: no request"))?.request);
        if !data.contains("HTTP/1.1 200") {
            return Ok(());
        }
        let messages = messages(&request);
        ensure!(!messages.is_empty(), "line {line}: an answer to a request without a message");
        self.findings.answers += 1;
        for message in messages {
            if !self.durable.contains(&message) {
                let exception = format!("line {line}: 200 for {message}, which no finished sync covers");
                self.findings.exceptions.push(exception);
            }
        }
        Ok(())
    }
}

/// How many bytes a call was to write, where strace says so in one number.
fn length_asked(call: &Call) -> Option<i64> {
    let from_the_right = match call.name.as_str() {
        "write" => 0,
        "pwrite64" => 1,
        _ => return None,
    };
    call.arguments.rsplit(", ").nth(from_the_right)?.trim_end_matches(')').parse().ok()
}

/// The ids of messages in some data, each once.
fn messages(data: &str) -> BTreeSet<String> {
    data.match_indices(WAMID_PREFIX)
        .filter_map(|(start, _)| data.get(start..start + WAMID_PREFIX.len() + WAMID_DIGITS))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::parse;

    const CALLBACKS: &str = "127.0.0.1:8090";

    /// Findings of a made-up trace, in which `W` stands for the descriptor of the journal, `V` for that of
    /// its next segment, `C` and `D` for those of two connections.
    fn findings(lines: &[&str]) -> anyhow::Result<Findings> {
        let trace: String = lines
            .iter()
            .map(|line| {
                line.replace("(W", "(9</data/buffer/journal/1.journal>")
                    .replace("(V", "(8</data/buffer/journal/2.journal>")
                    .replace("(C", "(5<TCP:[127.0.0.1:8090->127.0.0.1:5001]>")
                    .replace("(D", "(6<TCP:[127.0.0.1:8090->127.0.0.1:5002]>")
                    .replace('@', WAMID_PREFIX)
                    + "\n"
            })
            .collect();
        check(&parse(&trace)?, CALLBACKS.parse()?, "/buffer/journal/")
    }

    fn exceptions(lines: &[&str]) -> usize {
        findings(lines).unwrap().exceptions.len()
    }

    const READ: &str = r#"1 recvfrom(C, "POST / \"id\":\"@00000001\"", 9, 0, NULL, NULL) = 9"#;
    const WRITE: &str = r#"2 pwrite64(W, "\267@00000001\0", 9, 0) = 9"#;
    const SYNC: &str = "2 fdatasync(W) = 0";
    const ANSWER: &str = r#"1 writev(C, [{iov_base="HTTP/1.1 200 OK\r\n", iov_len=17}], 1) = 17"#;

    /// Read, write, sync, answer is right, also when the calls of two threads overlap.
    #[test]
    fn answers_after_their_sync_are_right() {
        let found = findings(&[READ, WRITE, SYNC, ANSWER]).unwrap();
        assert_eq!((found.answers, found.syncs, found.messages_per_sync_max), (1, 1, 1));
        assert!(found.exceptions.is_empty(), "{found:?}");
        let overlapping = [
            READ,
            r#"3 recvfrom(D,  <unfinished ...>"#,
            WRITE,
            "2 fdatasync(W <unfinished ...>",
            r#"3 <... recvfrom resumed>"@00000002", 9, 0, NULL, NULL) = 9"#,
            "2 <... fdatasync resumed>) = 0",
            ANSWER,
            r#"2 pwrite64(W, "@00000002", 9, 9) = 9"#,
            SYNC,
            r#"3 writev(D, [{iov_base="HTTP/1.1 200 OK", iov_len=15}], 1) = 15"#,
        ];
        let found = findings(&overlapping).unwrap();
        assert_eq!((found.answers, found.exceptions.len()), (2, 0), "{found:?}");
    }

    /// Every way to answer too early is found: without a sync, before the sync returns, after a sync that
    /// began before the record was written, that failed, or that was of another file, and without a record at
    /// all.
    #[test]
    fn answers_before_their_sync_are_found() {
        assert_eq!(exceptions(&[READ, WRITE, ANSWER, SYNC]), 1);
        let unfinished = "2 fdatasync(W <unfinished ...>";
        let resumed = "2 <... fdatasync resumed>) = 0";
        assert_eq!(exceptions(&[READ, WRITE, unfinished, ANSWER, resumed]), 1);
        let other_writer = r#"3 pwrite64(W, "@00000001", 9, 0) = 9"#;
        assert_eq!(exceptions(&[READ, unfinished, other_writer, resumed, ANSWER]), 1);
        assert_eq!(exceptions(&[READ, WRITE, "2 fdatasync(W) = -1 EIO (Input/output error)", ANSWER]), 1);
        assert_eq!(exceptions(&[READ, WRITE, "2 fdatasync(V) = 0", ANSWER]), 1);
        assert_eq!(exceptions(&[READ, SYNC, ANSWER]), 1);
        let begun = r#"1 writev(C, [{iov_base="HTTP/1.1 200 OK\r\n", iov_len=17}], 1 <unfinished ...>"#;
        assert_eq!(exceptions(&[READ, WRITE, begun, SYNC, "1 <... writev resumed>) = 17"]), 1);
    }

    /// Refusals need no sync; an answer to nothing is an error, not a success.
    #[test]
    fn refusals_are_not_answers() {
        let refusal = r#"1 writev(C, [{iov_base="HTTP/1.1 503 Service Unavailable", iov_len=32}], 1) = 32"#;
        let found = findings(&[READ, refusal]).unwrap();
        assert_eq!((found.answers, found.exceptions.len()), (0, 0));
        assert!(findings(&[ANSWER]).is_err());
        assert!(findings(&[READ, refusal, ANSWER]).is_err());
    }
}
