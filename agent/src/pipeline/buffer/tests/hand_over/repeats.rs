//! How a provider's repeats of an event that was taken over are counted.
//!
//! The control plane adds one for the first callback with the event at every agent but the one that reported it. So what
//! an agent reports is one less than the callbacks that came to it.

use super::*;
use crate::pipeline::buffer::record::Mark;

/// The counts of the reports of repeats behind a sequence, and the last sequence.
async fn counts_after(buffer: &Buffer, mut after: u64, count: usize) -> (Vec<u32>, u64) {
    let mut counts = Vec::new();
    while counts.len() < count {
        let batch = reports_after(buffer, Lane::Logs, after).await;
        after = batch.last;
        let of = |report: v1::Report| match report.report {
            Some(v1::report::Report::Duplicate(duplicate)) => Some(duplicate.duplicate_count),
            _ => None,
        };
        counts.extend(batch.reports().into_iter().filter_map(of));
    }
    (counts, after)
}

async fn repeat(buffer: &Buffer, number: u32) {
    assert_eq!(buffer.append(entry([event(number, &["sub_a"])])).await, KNOWN);
}

/// The first callback with an event that came in a hand-over is no repeat of one at this agent, and is reported as
/// none. That the event came so is remembered like the count: after a kill, a further hand-over, and when both the
/// index and the journal's segment are gone.
#[tokio::test]
async fn repeats_count_from_the_first_callback() {
    let directory = tempfile::tempdir().unwrap();
    let remove_index = || std::fs::remove_dir_all(config(directory.path()).directory.join("index")).unwrap();
    let buffer = open(directory.path()).await;
    take(&buffer, foreign("h1", 1, "sub_a", 1)).await.unwrap();
    take(&buffer, foreign("h2", 2, "sub_a", 1)).await.unwrap();
    repeat(&buffer, 1).await;
    let (counts, last) = counts_after(&buffer, 0, 1).await;
    assert_eq!(counts, [0]);
    kill(buffer).await;

    // From the journal alone.
    remove_index();
    let buffer = open(directory.path()).await;
    let known = || [1, 2].iter().all(|number| buffer.contains(&event_id(*number)));
    eventually("the marks are back", known).await;
    repeat(&buffer, 1).await;
    take(&buffer, foreign("h3", 1, "sub_b", 1)).await.unwrap();
    take(&buffer, foreign("h4", 2, "sub_b", 1)).await.unwrap();
    repeat(&buffer, 1).await;
    repeat(&buffer, 2).await;
    let (counts, last) = counts_after(&buffer, last, 3).await;
    assert_eq!(counts, [1, 2, 0]);

    // From the mark files alone, and then from the index.
    let newest = || read::list(&config(directory.path()).directory.join("journal")).unwrap();
    let written = newest().last().unwrap().number;
    fill_until(&buffer, || newest()[0].number > written).await;
    buffer.close().await;
    remove_index();
    for expected in [[3, 1], [4, 2]] {
        let buffer = open(directory.path()).await;
        let known = || [1, 2].iter().all(|number| buffer.contains(&event_id(*number)));
        eventually("the marks are back", known).await;
        repeat(&buffer, 1).await;
        repeat(&buffer, 2).await;
        let first = if expected[0] == 3 { last } else { last + 2 };
        assert_eq!(counts_after(&buffer, first, 2).await.0, expected);
        buffer.close().await;
    }
}

/// An agent that had a callback with the event before it took a delivery over counts on.
#[tokio::test]
async fn repeats_count_on_where_the_event_was_seen() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"]), event(2, &["sub_a"])])).await.unwrap();
    repeat(&buffer, 1).await;
    take(&buffer, foreign("h1", 1, "sub_b", 1)).await.unwrap();
    take(&buffer, foreign("h2", 2, "sub_b", 1)).await.unwrap();
    repeat(&buffer, 1).await;
    repeat(&buffer, 2).await;
    assert_eq!(counts_after(&buffer, 0, 3).await.0, [1, 2, 1]);
}

/// What marks of before say is what they said, and a program of before counts on in one that is of a hand-over.
#[test]
fn marks_are_as_before() {
    let plain = Mark { duplicates: 7, ..Mark::new(0, 5) };
    let taken = Mark { is_taken_over: true, ..plain };
    assert_eq!(plain.encode()[4..], [0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5]);
    assert_eq!(taken.encode()[..8], plain.encode()[..8], "the day and the count");
    for mark in [plain, taken] {
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
    }
    assert_eq!((plain.repeats(), taken.repeats()), (7, 6));
    assert_eq!(Mark { duplicates: 0, ..taken }.repeats(), 0);
}
