//! Answers of a server about users, kept for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An answer that a login has put in doubt is asked for anew, but not more often than this: who
/// guesses passwords must not have the server asked each time.
const DOUBTED_AFTER: Duration = Duration::from_secs(1);

/// Answers by the user's name, bounded in number and age.
#[derive(Debug)]
pub struct Cache<T> {
    entries: BTreeMap<String, Entry<T>>,
    entries_max: usize,
    age_max: Duration,
}

#[derive(Debug)]
struct Entry<T> {
    answer: T,
    at: Instant,
    doubted: bool,
}

impl<T: Clone> Cache<T> {
    /// An empty one. The oldest answer makes place for the one after `entries_max`.
    #[must_use]
    pub fn new(entries_max: usize, age_max: Duration) -> Cache<T> {
        Cache { entries: BTreeMap::new(), entries_max: entries_max.max(1), age_max }
    }

    /// The answer about a user, unless it is too old or in doubt.
    #[must_use]
    pub fn get(&self, user: &str, now: Instant) -> Option<T> {
        let entry = self.entries.get(user)?;
        let limit = if entry.doubted { DOUBTED_AFTER.min(self.age_max) } else { self.age_max };
        let young = now.saturating_duration_since(entry.at) < limit;
        young.then(|| entry.answer.clone())
    }

    /// Keeps an answer.
    pub fn put(&mut self, user: &str, answer: T, now: Instant) {
        if self.entries.len() >= self.entries_max && !self.entries.contains_key(user) {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.at);
            if let Some(oldest) = oldest.map(|(user, _)| user.clone()) {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(user.to_owned(), Entry { answer, at: now, doubted: false });
    }

    /// A login failed by this answer: it may be no longer true.
    pub fn doubt(&mut self, user: &str) {
        if let Some(entry) = self.entries.get_mut(user) {
            entry.doubted = true;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_with_their_time_with_doubt_and_with_too_many() {
        let (start, mut cache) = (Instant::now(), Cache::new(2, Duration::from_secs(60)));
        let at = |seconds| start + Duration::from_secs(seconds);
        cache.put("a", 1, at(0));
        assert_eq!((cache.get("a", at(59)), cache.get("a", at(60))), (Some(1), None));
        cache.put("b", 2, at(10));
        cache.doubt("b");
        assert_eq!(cache.get("b", at(10)), Some(2), "not asked for at every guess");
        assert_eq!(cache.get("b", at(11)), None);
        cache.put("b", 3, at(11));
        assert_eq!(cache.get("b", at(30)), Some(3));
        cache.put("c", 4, at(12));
        assert_eq!((cache.get("a", at(12)), cache.get("b", at(12))), (None, Some(3)));
        assert_eq!(cache.get("c", at(12)), Some(4));
        cache.clear();
        assert_eq!(cache.get("c", at(12)), None);
    }
}
