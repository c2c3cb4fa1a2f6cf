//! Who was sent when, and what has arrived.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gateway_tests::figure::Spread;
use tokio::sync::watch;

/// Before the number in every message id.
pub const WAMID_PREFIX: &str = "wamid.LOAD";
/// Digits for the connection and for the message on it.
pub const CONNECTION_DIGITS: usize = 4;
/// See [`CONNECTION_DIGITS`].
pub const SEQUENCE_DIGITS: usize = 8;

/// Everything measured in one run.
pub struct Tally {
    /// Over how many instances the messages go in turn.
    instances: usize,
    /// The first instance whose messages are measured to their end.
    first_measured: usize,
    connections: Vec<Mutex<Vec<Sent>>>,
    end_to_end: Mutex<Vec<Duration>>,
    last_arrival: Mutex<Instant>,
    arrived: watch::Sender<usize>,
}

struct Sent {
    time: Instant,
    arrived: bool,
}

impl Tally {
    /// For this many connections and one instance.
    pub fn new(connections: usize) -> Self {
        Self::over(connections, 1)
    }

    /// For messages that go to so many instances in turn.
    pub fn over(connections: usize, instances: usize) -> Self {
        Self {
            instances,
            first_measured: 0,
            connections: std::iter::repeat_with(Mutex::default).take(connections).collect(),
            end_to_end: Mutex::default(),
            last_arrival: Mutex::new(Instant::now()),
            arrived: watch::Sender::new(0),
        }
    }

    /// The same without what goes to the first so many instances: their destinations are not measured.
    #[must_use]
    pub fn without_first(self, count: usize) -> Self {
        Self { first_measured: count, ..self }
    }

    /// Which instance a message goes to, from 0.
    pub const fn instance(&self, connection: usize, sequence: usize) -> usize {
        (connection + sequence) % self.instances
    }

    /// Whether a message is measured.
    pub const fn is_measured(&self, connection: usize, sequence: usize) -> bool {
        self.instance(connection, sequence) >= self.first_measured
    }

    /// Notes that the next message of a connection is being sent, or should be, at `time`; gives its number
    /// there.
    pub fn sent(&self, connection: usize, time: Instant) -> usize {
        let mut sent = lock(&self.connections[connection]);
        sent.push(Sent { time, arrived: false });
        sent.len() - 1
    }

    /// Notes a webhook by its body; repeats are not counted.
    pub fn arrived(&self, body: &[u8]) {
        let Some((connection, sequence)) = str::from_utf8(body).ok().and_then(numbers) else { return };
        if !self.is_measured(connection, sequence) {
            return;
        }
        let now = Instant::now();
        let time = {
            let mut sent = lock(&self.connections[connection]);
            let Some(sent) = sent.get_mut(sequence).filter(|sent| !sent.arrived) else { return };
            sent.arrived = true;
            sent.time
        };
        lock(&self.end_to_end).push(now - time);
        *lock(&self.last_arrival) = now;
        self.arrived.send_modify(|arrived| *arrived += 1);
    }

    /// Waits until this many messages have arrived.
    pub async fn all_arrived(&self, count: usize) {
        let mut arrived = self.arrived.subscribe();
        arrived.wait_for(|arrived| *arrived >= count).await.expect("the sender is in self");
    }

    /// How many messages have arrived.
    pub fn arrived_count(&self) -> usize {
        *self.arrived.borrow()
    }

    /// When the last one did.
    pub fn last_arrival(&self) -> Instant {
        *lock(&self.last_arrival)
    }

    /// Times from post to webhook.
    pub fn end_to_end(&self) -> Spread {
        Spread::of(lock(&self.end_to_end).clone())
    }
}

/// The id of a message.
pub fn wamid(connection: usize, sequence: usize) -> String {
    format!("{WAMID_PREFIX}{connection:0CONNECTION_DIGITS$}{sequence:0SEQUENCE_DIGITS$}")
}

fn numbers(body: &str) -> Option<(usize, usize)> {
    let start = body.find(WAMID_PREFIX)? + WAMID_PREFIX.len();
    let digits = body.get(start..start + CONNECTION_DIGITS + SEQUENCE_DIGITS)?;
    let (connection, sequence) = digits.split_at(CONNECTION_DIGITS);
    Some((connection.parse().ok()?, sequence.parse().ok()?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
