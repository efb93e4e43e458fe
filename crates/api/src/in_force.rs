//! What would happen now if the leader were lost: for the footer of `list` and the metrics.

use std::collections::BTreeSet;

use config::{Dynamic, FailoverMode};
use types::{ClusterView, MemberName, Millis, Unfenced};

use crate::snapshot::FailoverTier;

/// The failover that is in force now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// What may start one.
    pub tier: FailoverTier,
    /// Who could take over without loss.
    pub candidates: BTreeSet<MemberName>,
    /// Nothing is done by itself: maintenance mode.
    pub paused: bool,
    /// The lease that has to run out.
    pub ttl: Millis,
    /// How long a leader that is fenced must have been silent.
    pub detection: Millis,
    /// Why the lease has to run out although the settings wish otherwise.
    pub unfenced: Option<Unfenced>,
    /// A leadership younger than this is not given up for what a restart in place may cure.
    pub min_interval: Millis,
    /// The leader goes on without the DCS while all members agree.
    pub failsafe: bool,
    /// Members that are no candidates, and why.
    pub troubled: Vec<(MemberName, String)>,
}

/// Reads it from the cluster's keys.
#[must_use]
pub fn in_force(view: &ClusterView) -> InForce {
    let dynamic = view.config.as_ref().and_then(|c| Dynamic::from_json(&c.value).ok());
    let dynamic = dynamic.map(|(dynamic, _)| dynamic).unwrap_or_default();
    let nobody = MemberName::from("");
    let candidates = view.successors(view.leader_name().unwrap_or(&nobody));
    let wished = dynamic.pgherd.failover_mode == FailoverMode::Fenced;
    let unfenced = view.unfenced().filter(|_| wished);
    let tier = if dynamic.pause || candidates.is_empty() {
        FailoverTier::None
    } else if wished && unfenced.is_none() {
        FailoverTier::Fenced
    } else {
        FailoverTier::Lease
    };
    let trouble = |(name, m): (&MemberName, &types::Versioned<types::Member>)| {
        Some((name.clone(), m.value.trouble.clone()?))
    };
    InForce {
        tier,
        candidates,
        paused: dynamic.pause,
        ttl: dynamic.ttl,
        detection: dynamic.pgherd.failure_detection_timeout,
        unfenced,
        min_interval: dynamic.pgherd.failover_min_interval,
        failsafe: dynamic.failsafe_mode,
        troubled: view.members.iter().filter_map(trouble).collect(),
    }
}

impl InForce {
    fn names(&self) -> String {
        let names: Vec<&str> = self.candidates.iter().map(MemberName::as_str).collect();
        names.join(", ")
    }

    /// Lines for people, each with a line feed.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from(" Failover: ");
        text.push_str(&match (self.paused, self.tier) {
            (true, _) => "off (maintenance mode)".to_owned(),
            (false, FailoverTier::None) => "none, nobody could take over without loss".to_owned(),
            (false, FailoverTier::Lease) => {
                let why = self.unfenced.as_ref().map(|why| format!("; not fenced, as {why}"));
                let (ttl, why) = (seconds(self.ttl), why.unwrap_or_default());
                format!("lease ({ttl}{why}), candidates {}", self.names())
            }
            (false, FailoverTier::Fenced) => {
                format!("fenced ({}), candidates {}", seconds(self.detection), self.names())
            }
        });
        if self.min_interval > Millis::ZERO {
            text.push_str(&format!(", damped for {}", seconds(self.min_interval)));
        }
        if self.failsafe {
            text.push_str(", failsafe mode");
        }
        text.push('\n');
        for (name, trouble) in &self.troubled {
            text.push_str(&format!(" {name} is no candidate: {trouble}\n"));
        }
        text
    }
}

fn seconds(span: Millis) -> String {
    format!("{} s", span.as_duration().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{KeyValue, Revision};

    fn view(keys: &[(&str, &str)]) -> ClusterView {
        let keys: Vec<KeyValue> = keys
            .iter()
            .map(|(key, value)| KeyValue {
                key: (*key).to_owned(),
                value: value.as_bytes().to_vec(),
                create_revision: Revision(1),
                mod_revision: Revision(1),
                lease: 1,
            })
            .collect();
        ClusterView::from_keys(Revision(1), &keys)
    }

    const RUNS: &str = r#"{"state":"running","role":"replica","pgherd":"1"}"#;

    #[test]
    fn candidates_are_the_fit_voters_if_enough_are_fit() {
        let sync = r#"{"leader":"a","quorum":1,"sync_standby":"b,c"}"#;
        let full = r#"{"state":"running","role":"replica","pgherd":"1","trouble":"disk full"}"#;
        let config = r#"{"ttl":10,"synchronous_mode":"quorum","failsafe_mode":true}"#;
        let keys = [("leader", "a"), ("config", config), ("sync", sync), ("members/b", RUNS)];
        let with = |c| in_force(&view(&[keys.as_slice(), &[("members/c", c)]].concat()));
        let text = with(RUNS).text();
        assert_eq!(text, " Failover: lease (10 s), candidates b, c, failsafe mode\n");
        let text = with(full).text();
        let expected = " Failover: none, nobody could take over without loss, failsafe mode\n \
                        c is no candidate: disk full\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_fence_is_in_force_where_enough_voters_pledge_and_the_reason_is_told_where_not() {
        let sync = r#"{"leader":"a","quorum":1,"sync_standby":"b,c"}"#;
        let config =
            r#"{"ttl":30,"synchronous_mode":"quorum","pgherd":{"failover_mode":"fenced"}}"#;
        let term = r#"{"term":4,"leader":"a","timeline":2}"#;
        let keys = [
            ("leader", "a"),
            ("config", config),
            ("pgherd/term", term),
            ("members/b", RUNS),
            ("members/c", RUNS),
        ];
        let synchronous = in_force(&view(&[keys.as_slice(), &[("sync", sync)]].concat()));
        assert_eq!(synchronous.tier, FailoverTier::Fenced);
        assert_eq!(synchronous.text(), " Failover: fenced (1 s), candidates b, c\n");
        let text = " Failover: lease (30 s; not fenced, as replication is not synchronous), \
                    candidates b, c\n";
        assert_eq!(in_force(&view(&keys)).text(), text);
    }

    #[test]
    fn pause_is_the_off_switch() {
        let keys = [("leader", "a"), ("config", r#"{"pause":true}"#), ("members/b", RUNS)];
        let force = in_force(&view(&keys));
        assert_eq!(force.tier, FailoverTier::None);
        assert_eq!(force.text(), " Failover: off (maintenance mode)\n");
    }
}
