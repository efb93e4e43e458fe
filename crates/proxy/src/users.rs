//! How many clients of each user there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The users that have clients. The limit of clients bounds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Users(Arc<Mutex<HashMap<String, usize>>>);

/// A client counts until this is dropped, also when its task panics.
#[derive(Debug)]
pub(crate) struct Counted {
    users: Users,
    user: String,
}

impl Users {
    /// Counts one more client of this user, unless there are `limit` already.
    pub(crate) fn enter(&self, user: &str, limit: usize) -> Option<Counted> {
        let mut counts = self.lock();
        let count = counts.get(user).copied().unwrap_or(0);
        if count >= limit {
            return None;
        }
        counts.insert(user.to_owned(), count + 1);
        Some(Counted { users: self.clone(), user: user.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Every change is one call on the map, so a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.users.lock();
        match counts.get_mut(&self.user) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                counts.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_count_of_its_own_and_leaves_nothing() {
        let users = Users::default();
        let (first, other) = (users.enter("a", 1), users.enter("b", 2));
        assert!(first.is_some() && other.is_some());
        assert!(users.enter("a", 1).is_none());
        assert!(users.enter("b", 2).is_some(), "and gone at once");
        drop(first);
        let again = users.enter("a", 1);
        assert!(again.is_some());
        drop((again, other));
        assert!(users.lock().is_empty());
    }
}
