//! How many agents may open their config stream within a second, and when the others are to come again.
//!
//! After a restart of the control plane a whole fleet comes back at once, and each agent may need a
//! configuration of many megabytes. So in any second at most a tenth of the fleet is admitted; each of the
//! others is told a turn of its own, so that those who keep it find room. A small fleet may come at once.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// A fleet of so many agents may come back at once.
pub const UNPACED_MAX: usize = 100;
/// Beyond that one agent in so many is admitted within a second: everybody is back within about 10 s.
const SHARE: usize = 10;
/// What admissions are counted over.
const WINDOW: Duration = Duration::from_secs(1);

/// Longest time until a turn. Turns that were given and not kept, as to one who asks again and again, push those of
/// the others no further.
const TURN_MAX: Duration = Duration::from_secs(30);

/// Admissions of the last second, and the turns given to those who were refused.
#[derive(Debug, Default)]
pub struct Pace {
    /// When each was admitted, oldest first; never more than the limit.
    admitted: VecDeque<Instant>,
    /// The turn that was given last.
    last_turn: Option<Instant>,
}

/// How many of a fleet of `agents` are admitted within a second.
pub fn limit(agents: usize) -> usize {
    if agents <= UNPACED_MAX { UNPACED_MAX } else { agents / SHARE }
}

impl Pace {
    /// Admits one more of a fleet of `agents`.
    ///
    /// # Errors
    /// When too many were admitted within the last second: how long the caller is to wait.
    pub fn admit(&mut self, agents: usize, now: Instant) -> Result<(), Duration> {
        let limit = limit(agents);
        while self.admitted.front().is_some_and(|first| now.duration_since(*first) > WINDOW) {
            self.admitted.pop_front();
        }
        if self.admitted.len() < limit {
            self.admitted.push_back(now);
            return Ok(());
        }
        let step = WINDOW / u32::try_from(limit).unwrap_or(u32::MAX);
        // There is room again when the oldest admissions are a second old.
        let soonest = self.admitted.front().map_or(now, |first| *first + WINDOW);
        let last = self.last_turn.filter(|last| *last < now + TURN_MAX);
        let turn = last.map_or(soonest, |last| soonest.max(last)) + step;
        self.last_turn = Some(turn);
        Err(turn.duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In any second at most a tenth of a large fleet is admitted, whatever the clients do: here they all
    /// come in one instant, and then keep the turns they were told or come up to a fifth later. All are in
    /// soon after ten seconds.
    #[test]
    fn a_tenth_of_the_fleet_within_any_second() {
        const AGENTS: usize = 500;
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut waiting: Vec<Instant> = vec![start; AGENTS];
        let mut admitted = Vec::new();
        while let Some((place, now)) = waiting.iter().copied().enumerate().min_by_key(|(_, turn)| *turn) {
            waiting.swap_remove(place);
            match pace.admit(AGENTS, now) {
                Ok(()) => admitted.push(now),
                Err(wait) => {
                    assert!(wait > Duration::ZERO);
                    let late = u32::try_from(waiting.len() % 5).unwrap();
                    waiting.push(now + wait + wait / 25 * late);
                }
            }
        }
        assert_eq!(admitted.len(), AGENTS);
        for (place, first) in admitted.iter().enumerate() {
            let within = admitted[place..].iter().take_while(|next| **next - *first <= WINDOW).count();
            assert!(within <= AGENTS / SHARE, "{within} within a second");
        }
        let took = *admitted.last().unwrap() - start;
        assert!(took < Duration::from_secs(16), "{took:?}");
    }

    /// Whoever asks on and on is told no later turn than anybody else, and takes nobody's.
    #[test]
    fn turns_are_never_far_off() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        while pace.admit(1_000, now).is_ok() {}
        let longest = (0..100_000).filter_map(|_| pace.admit(1_000, now).err()).max().unwrap();
        assert!(longest <= TURN_MAX + WINDOW, "{longest:?}");
    }

    /// A small fleet is not paced, and who is turned away is admitted when the second is over.
    #[test]
    fn a_small_fleet_comes_at_once() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!((0..UNPACED_MAX).all(|_| pace.admit(3, now).is_ok()));
        let wait = pace.admit(3, now).unwrap_err();
        assert!(wait > WINDOW && wait < WINDOW * 2, "{wait:?}");
        assert!(pace.admit(3, now + wait).is_ok());
        assert_eq!([100, 101, 500, 10_000].map(limit), [100, 10, 50, 1_000]);
    }
}
