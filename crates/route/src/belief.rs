//! What is believed of a cluster when several tell of it: the DCS, and members beside it.
//!
//! The DCS, while it is followed closely, is right: [`Belief::follow`]. Otherwise only news is
//! taken: [`Belief::hear`]. Views are ordered by term first, since nothing else is ordered over
//! all stores; within a term by the store's revision, if it is the same store. A member of another
//! store (etcd was replaced) is believed if it follows that store now, and from then on nobody who
//! tells of the former one.

use std::sync::Arc;

use types::{ClusterView, Term};

/// What stands behind a view that is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Whoever tells it follows the DCS closely now.
    Current,
    /// It leads by this view, and its claim holds; it may not reach the DCS.
    Leaders,
    /// It is what it saw last.
    Remembered,
}

/// The view that counts.
#[derive(Debug, Clone, Default)]
pub struct Belief {
    view: Option<Arc<ClusterView>>,
    /// The newest term of all that was believed.
    term: Term,
    /// The store that was believed before the present one.
    left: Option<u64>,
}

impl Belief {
    /// The view that counts now.
    #[must_use]
    pub fn view(&self) -> Option<&Arc<ClusterView>> {
        self.view.as_ref()
    }

    /// Takes what the DCS shows while it is followed.
    pub fn follow(&mut self, view: Arc<ClusterView>) {
        self.take(view);
    }

    /// Takes what somebody tells, if that is news; `true` if it is.
    pub fn hear(&mut self, view: Arc<ClusterView>, word: Word) -> bool {
        let is_news = self.is_news(&view, word);
        if is_news {
            self.take(view);
        }
        is_news
    }

    fn is_news(&self, view: &ClusterView, word: Word) -> bool {
        let Some(known) = &self.view else {
            // A memory alone opens no route: its leader may be long deposed.
            return word != Word::Remembered;
        };
        match view.newest_term().cmp(&self.term) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal if view.store == known.store => {
                view.revision > known.revision
            }
            std::cmp::Ordering::Equal => word == Word::Current && self.left != Some(view.store),
        }
    }

    fn take(&mut self, view: Arc<ClusterView>) {
        self.term = self.term.max(view.newest_term());
        if let Some(known) = self.view.replace(view.clone())
            && known.store != view.store
        {
            self.left = Some(known.store);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{KeyValue, Revision};

    fn view(store: u64, term: u64, revision: i64) -> Arc<ClusterView> {
        let record = format!(r#"{{"term":{term},"leader":"a","timeline":1}}"#);
        let key = KeyValue {
            key: "pgherd/term".to_owned(),
            value: record.into_bytes(),
            create_revision: Revision(1),
            mod_revision: Revision(1),
            lease: 0,
        };
        let keys = if term == 0 { vec![] } else { vec![key] };
        Arc::new(ClusterView { store, ..ClusterView::from_keys(Revision(revision), &keys) })
    }

    /// What is told one after another, as (store, term, revision), and whether it is taken.
    fn check(story: &[((u64, u64, i64), Word, bool)]) {
        let mut belief = Belief::default();
        for (number, ((store, term, revision), word, taken)) in story.iter().enumerate() {
            let told = view(*store, *term, *revision);
            let line = number + 1;
            assert_eq!(belief.hear(told.clone(), *word), *taken, "line {line}");
            let is_believed = belief.view().is_some_and(|view| Arc::ptr_eq(view, &told));
            assert_eq!(is_believed, *taken, "line {line}");
        }
    }

    #[test]
    fn views_go_forward_by_term_and_then_by_revision() {
        check(&[
            ((1, 4, 10), Word::Current, true),
            ((1, 4, 10), Word::Current, false),
            ((1, 4, 9), Word::Current, false),
            ((1, 4, 11), Word::Remembered, true),
            // An older term never counts, whatever its revision and whoever tells it.
            ((1, 3, 99), Word::Current, false),
            ((1, 3, 99), Word::Leaders, false),
            // A newer one always does, also from who has lost the DCS since.
            ((1, 5, 2), Word::Remembered, true),
            ((1, 4, 12), Word::Current, false),
        ]);
    }

    #[test]
    fn nothing_begins_with_a_memory() {
        check(&[
            ((1, 4, 10), Word::Remembered, false),
            ((1, 4, 10), Word::Leaders, true),
            ((1, 4, 11), Word::Remembered, true),
        ]);
        check(&[((1, 0, 1), Word::Remembered, false), ((1, 0, 1), Word::Current, true)]);
    }

    #[test]
    fn revisions_of_another_store_are_not_compared() {
        check(&[
            ((1, 4, 1000), Word::Current, true),
            ((2, 4, 7), Word::Remembered, false),
            ((2, 4, 7), Word::Current, true),
            ((2, 4, 8), Word::Remembered, true),
            // Who has not come over yet does not lead back.
            ((1, 4, 1001), Word::Current, false),
            ((1, 5, 1002), Word::Current, true),
            ((2, 4, 9), Word::Current, false),
        ]);
    }

    #[test]
    fn the_dcs_counts_while_it_is_followed_and_its_newest_term_stays() {
        let mut belief = Belief::default();
        assert!(belief.hear(view(1, 5, 10), Word::Current));
        let restored = view(1, 3, 2);
        belief.follow(restored.clone());
        assert!(belief.view().is_some_and(|view| Arc::ptr_eq(view, &restored)));
        assert!(!belief.hear(view(1, 4, 20), Word::Current), "term 5 was seen");
        assert!(belief.hear(view(1, 6, 1), Word::Remembered));
    }
}
