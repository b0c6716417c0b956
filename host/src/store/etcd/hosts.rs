//! Which hosts live, and until when those that died may have believed in their leases.
//!
//! The rule. A host believes in its lease until its TTL has passed since an instant *before* it wrote its last beat,
//! which is a write through the cluster's consensus. We see every beat (one watch on all hosts), a little after it was
//! written. So when a host's key is gone, whatever the reason (its lease ran out; somebody revoked it; a restored
//! backup never had it), its last belief is over a TTL after *we saw* its last beat. What the cluster's clocks do
//! cannot harm: its leases only decide how soon a death is noticed.
//!
//! A host that we never saw alive, and whose record is older than our list of hosts, was dead when we listed them, so
//! its belief is over a TTL after that. If its record is younger, the watch lags behind, and all we know is that the host
//! is dead now.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use turnstile_core::Instant;

/// Dead hosts that are remembered; one that is forgotten only counts as believing for longer.
const DEAD_MAX: usize = 4_096;

/// A host as a list or an event shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    pub(super) name: String,
    /// Of its key; the smallest is the oldest host.
    pub(super) created: i64,
    pub(super) ttl: Duration,
}

/// What a watch tells about hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It was written at this revision.
    Beat { sight: Sight, revision: i64 },
    /// Its key is gone since this revision.
    Gone { name: String, revision: i64 },
}

#[derive(Debug)]
struct Alive {
    created: i64,
    ttl: Duration,
    believes_until: Instant,
}

/// All we know. Pure: instants come in as arguments.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    alive: BTreeMap<String, Alive>,
    dead: HashMap<String, Instant>,
    dead_in_order: VecDeque<String>,
    /// The revision of the last list; older events are in it already.
    listed: i64,
    listed_at: Instant,
    /// None of those that were forgotten believes longer.
    forgotten_until: Instant,
}

impl Hosts {
    /// Takes in a complete list, read at `revision` and received before `now`. True if somebody is gone.
    pub(super) fn list(&mut self, sights: Vec<Sight>, revision: i64, now: Instant) -> bool {
        if revision < self.listed {
            return false;
        }
        let mut before = std::mem::take(&mut self.alive);
        (self.listed, self.listed_at) = (revision, now);
        // The watch may be ahead of the list. Names never come again.
        before.retain(|name, alive| {
            let newer = alive.created > revision;
            if newer {
                let Alive { created, ttl, believes_until } = *alive;
                self.alive.insert(name.clone(), Alive { created, ttl, believes_until });
            }
            !newer
        });
        for sight in sights {
            if self.dead.contains_key(&sight.name) {
                continue;
            }
            // Nobody tells when it wrote its last beat: before now.
            before.remove(&sight.name);
            self.saw(sight, now);
        }
        let news = !before.is_empty();
        for (name, alive) in before {
            // It may have beaten after our last sight of it, until just now.
            self.bury(name, now + alive.ttl);
        }
        news
    }

    /// Takes in what the watch told, at `now`. True if somebody is gone.
    pub(super) fn hear(&mut self, news: News, now: Instant) -> bool {
        match news {
            News::Beat { sight, revision } => {
                if revision > self.listed {
                    self.saw(sight, now);
                }
                false
            }
            News::Gone { name, revision } => {
                if revision <= self.listed {
                    return false;
                }
                let believes_until = match self.alive.remove(&name) {
                    Some(alive) => alive.believes_until,
                    None => return false,
                };
                self.bury(name, believes_until);
                true
            }
        }
    }

    pub(super) fn is_alive(&self, name: &str) -> bool {
        self.alive.contains_key(name)
    }

    /// Whether this one has lived longest.
    pub(super) fn is_oldest(&self, name: &str) -> bool {
        let oldest = self.alive.iter().min_by_key(|(_, alive)| alive.created);
        oldest.is_some_and(|(oldest, _)| oldest == name)
    }

    /// When the belief of a host is over that is dead `now`; `ttl` and `revision` are those of a record of its.
    pub(super) fn believed_until(&self, name: &str, ttl: Duration, revision: i64, now: Instant) -> Instant {
        match self.dead.get(name) {
            Some(until) => *until,
            None if revision > self.listed => now + ttl,
            None => (self.listed_at + ttl).max(self.forgotten_until),
        }
    }

    /// The longest TTL among those alive.
    pub(super) fn longest_ttl(&self) -> Duration {
        self.alive.values().map(|alive| alive.ttl).max().unwrap_or_default()
    }

    fn saw(&mut self, sight: Sight, now: Instant) {
        let Sight { name, created, ttl } = sight;
        self.alive.insert(name, Alive { created, ttl, believes_until: now + ttl });
    }

    fn bury(&mut self, name: String, believes_until: Instant) {
        if self.dead.insert(name.clone(), believes_until).is_none() {
            self.dead_in_order.push_back(name);
        }
        if self.dead_in_order.len() > DEAD_MAX
            && let Some(oldest) = self.dead_in_order.pop_front()
        {
            let believed_until = self.dead.remove(&oldest).unwrap_or_default();
            self.forgotten_until = self.forgotten_until.max(believed_until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1_000)
    }

    fn sight(name: &str, created: i64) -> Sight {
        Sight { name: name.into(), created, ttl: TTL }
    }

    fn beat(name: &str, revision: i64) -> News {
        News::Beat { sight: sight(name, 1), revision }
    }

    fn gone(name: &str, revision: i64) -> News {
        News::Gone { name: name.into(), revision }
    }

    #[test]
    fn a_belief_ends_a_ttl_after_the_last_beat_that_was_seen() {
        let mut hosts = Hosts::default();
        hosts.list(vec![sight("a", 1)], 10, at(1_000));
        hosts.hear(beat("a", 11), at(2_000));
        assert!(hosts.is_alive("a"));
        assert!(hosts.hear(gone("a", 12), at(2_500)), "revoked by hand");
        assert_eq!(hosts.believed_until("a", TTL, 11, at(2_500)), at(7_000));
        assert!(!hosts.hear(gone("a", 12), at(2_500)), "no news");
    }

    #[test]
    fn whoever_vanished_while_we_did_not_look_may_have_beaten_until_just_now() {
        let mut hosts = Hosts::default();
        hosts.list(vec![sight("a", 1), sight("b", 2)], 10, at(1_000));
        assert!(hosts.list(vec![sight("b", 2)], 20, at(9_000)));
        assert_eq!(hosts.believed_until("a", TTL, 11, at(9_000)), at(14_000));
        assert_eq!(hosts.believed_until("never seen", TTL * 2, 15, at(60_000)), at(19_000));
    }

    /// It joined after the list, and died before the watch told of either.
    #[test]
    fn whoever_is_younger_than_the_list_may_have_lived_until_now() {
        let mut hosts = Hosts::default();
        hosts.list(Vec::new(), 20, at(1_000));
        assert_eq!(hosts.believed_until("young", TTL, 21, at(60_000)), at(65_000));
    }

    #[test]
    fn a_list_that_comes_late_revives_nobody_and_buries_nobody() {
        let mut hosts = Hosts::default();
        hosts.list(vec![sight("a", 1), sight("b", 2)], 10, at(1_000));
        hosts.hear(gone("a", 12), at(1_100));
        hosts.hear(News::Beat { sight: sight("c", 13), revision: 13 }, at(1_100));
        hosts.list(vec![sight("a", 1), sight("b", 2)], 11, at(1_200));
        assert!(!hosts.is_alive("a") && hosts.is_alive("b") && hosts.is_alive("c"));
        assert!(!hosts.list(Vec::new(), 10, at(1_300)), "older than the last one");
        assert!(hosts.is_alive("b"));
    }

    #[test]
    fn events_from_before_the_list_are_in_it_already() {
        let mut hosts = Hosts::default();
        hosts.list(vec![sight("b", 2)], 10, at(1_000));
        hosts.hear(beat("a", 9), at(1_100));
        assert!(!hosts.is_alive("a"), "it was gone again when the list was made");
        assert!(!hosts.hear(gone("b", 10), at(1_200)));
        assert!(hosts.is_alive("b"));
    }

    #[test]
    fn the_oldest_lives_longest() {
        let mut hosts = Hosts::default();
        hosts.list(vec![sight("a", 7), sight("b", 3)], 10, at(1_000));
        assert!(hosts.is_oldest("b") && !hosts.is_oldest("a"));
        hosts.hear(gone("b", 11), at(1_100));
        assert!(hosts.is_oldest("a"));
    }

    #[test]
    fn what_is_forgotten_counts_as_believing_longer() {
        let mut hosts = Hosts::default();
        hosts.list(Vec::new(), 1, at(0));
        for number in 0..=DEAD_MAX {
            let name = format!("host-{number}");
            hosts.hear(beat(&name, 2), at(60_000));
            hosts.hear(gone(&name, 3), at(60_000));
        }
        assert_eq!(hosts.believed_until("host-0", TTL, 1, at(99_000)), at(65_000));
    }
}
