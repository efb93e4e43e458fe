//! `/failsafe`: whom a leader asks when the DCS does not answer, and its question (as Patroni 4.1
//! has it, with two fields of ours).

use std::collections::BTreeMap;

use serde_json::Value;
use types::{Lsn, MemberName, Millis, Term};

use crate::json::spaced;
use crate::snapshot::Snapshot;

/// What a leader that cannot reach the DCS sends to each member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailsafePost {
    /// `name`: who asks.
    pub leader: MemberName,
    /// `pgherd_term`; a Patroni leader sends none.
    pub term: Option<Term>,
    /// `pgherd_ttl_ms`: for how long it will go on; a Patroni leader does not say.
    pub ttl: Option<Millis>,
    /// `slots`: where its slots are.
    pub slots: BTreeMap<String, Lsn>,
}

impl FailsafePost {
    /// Reads the body; `None` if it names nobody. Addresses are not used; what are no positions
    /// of slots is left out.
    #[must_use]
    pub fn from_json(body: &Value) -> Option<FailsafePost> {
        let name = body.get("name")?.as_str().filter(|name| !name.is_empty())?;
        let number = |key: &str| body.get(key).and_then(Value::as_u64);
        Some(FailsafePost {
            leader: MemberName::from(name),
            term: number("pgherd_term").map(Term),
            ttl: number("pgherd_ttl_ms").map(Millis),
            slots: positions(body.get("slots")),
        })
    }
}

fn positions(slots: Option<&Value>) -> BTreeMap<String, Lsn> {
    let slots = slots.and_then(Value::as_object).into_iter().flatten();
    slots.filter_map(|(name, lsn)| Some((name.clone(), Lsn(lsn.as_u64()?)))).collect()
}

/// The map of `GET /failsafe`, if there is one.
pub(crate) fn map(snapshot: &Snapshot) -> Option<String> {
    let map = snapshot.view.as_deref()?.failsafe.as_ref()?;
    let map = map.value.iter().map(|(name, url)| (name.0.clone(), Value::from(url.as_str())));
    Some(spaced(&Value::Object(map.collect())))
}

/// The `lsn` header of an answer to a leader: what this standby holds.
pub(crate) fn held(snapshot: &Snapshot, now: Millis) -> u64 {
    snapshot.standby(now).map_or(0, |standby| standby.received.max(standby.replayed).0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_question_needs_a_name() {
        let slots = json!({"s": 768, "odd": "x"});
        let patroni = json!({"name": "a", "conn_url": "x", "api_url": "y", "slots": slots});
        let slots = BTreeMap::from([("s".to_owned(), Lsn(0x300))]);
        let expected = FailsafePost { leader: "a".into(), term: None, ttl: None, slots };
        assert_eq!(FailsafePost::from_json(&patroni), Some(expected));
        let ours = json!({"name": "a", "pgherd_term": 3, "pgherd_ttl_ms": 10_000});
        let post = FailsafePost::from_json(&ours).expect("complete");
        assert_eq!((post.term, post.ttl), (Some(Term(3)), Some(Millis(10_000))));
        for bad in [json!({}), json!({"name": ""}), json!({"name": 1})] {
            assert_eq!(FailsafePost::from_json(&bad), None);
        }
    }
}
