//! System calls from what `strace -f -yy -o FILE` writes: one line a call, or two when another thread's call
//! came between its beginning and its end.

use std::collections::HashMap;

use anyhow::{Context as _, ensure};

/// One system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// What strace shows of its first argument's descriptor: a path, or `TCP:[local->peer]`.
    pub target: String,
    /// All arguments, as strace shows them.
    pub arguments: String,
    /// What it returned; -1 for an error.
    pub result: i64,
    /// The line on which it began.
    pub start: usize,
    /// The line on which it returned.
    pub end: usize,
}

impl Call {
    /// The bytes that it wrote or read, as strace shows them: what is between quotes, one after the other.
    pub fn data(&self) -> String {
        let mut data = String::new();
        let mut rest = self.arguments.as_str();
        while let Some((_, begun)) = rest.split_once('"') {
            let end = end_of_string(begun);
            data.push_str(&begun[..end]);
            rest = begun.get(end + 1..).unwrap_or_default();
        }
        data
    }
}

/// Where the string that has begun ends: at the first quote without a backslash before it.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return index,
            _ => {}
        }
    }
    text.len()
}

/// All calls that have returned, in the order of their returns. A call that never returned, because the
/// program was killed, is left out.
///
/// # Errors
/// When a line is not what strace writes.
pub fn parse(trace: &str) -> anyhow::Result<Vec<Call>> {
    let mut unfinished: HashMap<&str, (usize, &str, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let context = || format!("read line {}: {}", number + 1, line.get(..200).unwrap_or(line));
        let (thread, text) = line.split_once(' ').with_context(context)?;
        let text = text.trim_start();
        if text.starts_with("+++") || text.starts_with("---") {
            continue;
        }
        if let Some(resumed) = text.strip_prefix("<... ") {
            let (name, rest) = resumed.split_once(" resumed>").with_context(context)?;
            let Some((start, begun_name, begun)) = unfinished.remove(thread) else { continue };
            ensure!(name == begun_name, "line {}: `{name}` resumes `{begun_name}`", number + 1);
            calls.extend(call(name, &[begun, rest].concat(), start, number));
            continue;
        }
        let (name, arguments) = text.split_once('(').with_context(context)?;
        match arguments.strip_suffix("<unfinished ...>") {
            Some(begun) => {
                let before = unfinished.insert(thread, (number, name, begun));
                ensure!(before.is_none(), "line {}: thread {thread} is in two calls", number + 1);
            }
            None => calls.extend(call(name, arguments, number, number)),
        }
    }
    Ok(calls)
}

/// The call of `name(text`; none if it never returned (`= ?`).
fn call(name: &str, text: &str, start: usize, end: usize) -> Option<Call> {
    let (arguments, result) = text.rsplit_once(" = ")?;
    let result = result.split_whitespace().next()?.parse().ok()?;
    Some(Call {
        name: name.to_owned(),
        target: target(arguments).unwrap_or_default().to_owned(),
        arguments: arguments.to_owned(),
        result,
        start,
        end,
    })
}

/// What stands in `12<…>` at the beginning. Within it `>` is followed by something else than an end: `->`.
fn target(arguments: &str) -> Option<&str> {
    let (digits, rest) = arguments.split_once('<')?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ends = rest.match_indices('>').map(|(index, _)| index);
    let end = ends
        .into_iter()
        .find(|index| matches!(rest.as_bytes().get(index + 1), None | Some(b',' | b')' | b' ')))?;
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole lines and interleaved ones give the same calls; what is no call, or never returned, is left out.
    #[test]
    fn interleaved_calls_are_joined() {
        let trace = concat!(
            "7  pwrite64(9</b/1.journal>, \"a\\\"b\", 3, 128) = 3\n",
            "7  fdatasync(9</b/1.journal> <unfinished ...>\n",
            "8  recvfrom(5<TCP:[127.0.0.1:1->127.0.0.1:2]>,  <unfinished ...>\n",
            "8  <... recvfrom resumed>\"x\", 100, 0, NULL, NULL) = 1\n",
            "7  <... fdatasync resumed>) = -1 EIO (Input/output error)\n",
            "8  --- SIGTERM {si_signo=SIGTERM} ---\n",
            "8  sendto(5<TCP:[127.0.0.1:1->127.0.0.1:2]>, \"y\", 1, MSG_NOSIGNAL, NULL, 0) = ?\n",
            "8  +++ exited with 0 +++\n",
        );
        let calls = parse(trace).unwrap();
        let seen: Vec<_> = calls
            .iter()
            .map(|call| (call.name.as_str(), call.target.as_str(), call.result, call.start, call.end))
            .collect();
        let expected = [
            ("pwrite64", "/b/1.journal", 3, 0, 0),
            ("recvfrom", "TCP:[127.0.0.1:1->127.0.0.1:2]", 1, 2, 3),
            ("fdatasync", "/b/1.journal", -1, 1, 4),
        ];
        assert_eq!(seen, expected);
        assert_eq!(calls[0].data(), "a\\\"b");
        assert_eq!(calls[1].data(), "x");
    }

    /// A trace that is not one is refused.
    #[test]
    fn nonsense_is_refused() {
        assert!(parse("nonsense").is_err());
        assert!(parse("7  <... write resumed").is_err());
    }
}
