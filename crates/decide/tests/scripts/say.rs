//! One action, and its reason, as one readable line.

use decide::{Act, Action, Reason, StartAs, StopMode, SyncRule, Winner};
use serde_json::Value;
use types::{Lsn, MemberName, Position, SlotChange, SyncNames, SyncState};

/// Whether the action would fill a script without telling anything.
pub(crate) fn is_routine(act: &Act) -> bool {
    matches!(
        act,
        Act::TouchMember { .. }
            | Act::Renew { .. }
            | Act::ArmGuard { .. }
            | Act::StandDownGuard
            | Act::SyncSlots { .. }
            | Act::DecodeSlots { .. }
    )
}

/// The name by which scripts say that an action fails: the journal's.
pub(crate) fn name_of(act: &Act) -> String {
    let value = serde_json::to_value(act).unwrap_or_default();
    value["action"].as_str().unwrap_or_default().to_owned()
}

/// What is done, and why.
pub(crate) fn action(action: &Action) -> String {
    format!("{}, because {}", act(&action.act), reason(&action.why))
}

/// What is done.
pub(crate) fn act(act: &Act) -> String {
    match act {
        Act::TouchMember { .. }
        | Act::Renew { .. }
        | Act::MoveLease { .. }
        | Act::TakeInitialize
        | Act::CancelInitialize
        | Act::FinishBootstrap { .. }
        | Act::OpenFence { .. }
        | Act::WritePledge { .. }
        | Act::VoidFence { .. }
        | Act::TakeLeadership(_)
        | Act::RetakeLeadership(_)
        | Act::WriteFailsafe { .. }
        | Act::ReleaseLeader { .. }
        | Act::WriteSync { .. }
        | Act::PublishHistory { .. }
        | Act::WriteHold { .. }
        | Act::RemoveHold { .. }
        | Act::ClearFailover { .. } => on_keys(act),
        Act::ArmGuard { kill_at } => format!("arms the guard to kill at {}", seconds(kill_at.0)),
        Act::StandDownGuard => "stands the guard down".to_owned(),
        Act::Initdb => "runs initdb".to_owned(),
        Act::Restore => "restores a backup".to_owned(),
        Act::Clone { source, replace: false, .. } => format!("copies {}", source.name),
        Act::Clone { source, replace: true, .. } => {
            format!("copies {} in place of the old copy", source.name)
        }
        Act::Rewind { source, .. } => format!("runs pg_rewind against {}", source.name),
        Act::Compare { leader, .. } => format!("compares its timeline with {}", leader.name),
        Act::Start { start_as, .. } => match start_as {
            StartAs::Primary => "starts PostgreSQL as primary".to_owned(),
            StartAs::Standby(None) => "starts PostgreSQL in recovery, following nobody".to_owned(),
            StartAs::Standby(Some(upstream)) => {
                format!("starts PostgreSQL as standby of {}", upstream.name)
            }
        },
        Act::Stop { mode: StopMode::Fast } => "stops PostgreSQL in order".to_owned(),
        Act::Stop { mode: StopMode::Immediate } => "stops PostgreSQL at once".to_owned(),
        Act::StopForHandOver { candidate: Some(name), .. } => {
            format!("stops PostgreSQL, handing over to {name}")
        }
        Act::StopForHandOver { candidate: None, .. } => {
            "stops PostgreSQL, handing over to nobody".to_owned()
        }
        Act::ArchiveShutdownCheckpoint => "archives its shutdown checkpoint".to_owned(),
        Act::EndOrphans => "kills what is left of PostgreSQL".to_owned(),
        Act::Follow { upstream: Some(upstream), .. } => format!("streams from {}", upstream.name),
        Act::Follow { upstream: None, .. } => "streams from nobody".to_owned(),
        Act::StopReceiving { .. } => "stops receiving and notes its position".to_owned(),
        Act::Promote { term, timeline, sync } => {
            format!("promotes to timeline {timeline} in term {term}, {}", rule(sync))
        }
        Act::AskFailsafe { members, .. } => {
            format!("asks {} whether it may go on", list(members.keys().map(MemberName::as_str)))
        }
        Act::Knock { leader, .. } => format!("knocks at {}'s PostgreSQL", leader.name),
        Act::AskPositions { members, .. } => {
            let asked = list(members.keys().map(MemberName::as_str));
            format!("asks {asked} what they hold")
        }
        Act::AskTerms { members, .. } => {
            format!("asks {} for the newest term", list(members.keys().map(MemberName::as_str)))
        }
        Act::SetSync { sync } => format!("sets {}", rule(sync)),
        Act::ConfirmWrite => "makes a write that its rule must acknowledge".to_owned(),
        Act::Checkpoint => "makes a checkpoint".to_owned(),
        Act::EndStrangers { names } => {
            format!(
                "ends walsenders that call themselves {}",
                list(names.iter().map(MemberName::as_str))
            )
        }
        Act::SyncSlots { changes } | Act::DecodeSlots { changes } => {
            changes.iter().map(slot_change).collect::<Vec<_>>().join(", ")
        }
        Act::FetchSlots { source, names, .. } => {
            format!("fetches slots {} of {}", list(names.iter().map(String::as_str)), source.name)
        }
        Act::CopySlots { names } => {
            format!("restarts with slots {}", list(names.iter().map(String::as_str)))
        }
        Act::ForgetFreshCopy => "notes that its copy counts again".to_owned(),
        Act::Exit { code } => format!("ends the agent with status {code}"),
    }
}

fn on_keys(act: &Act) -> String {
    match act {
        Act::TouchMember { member } => {
            format!("writes its member key as {} {}", member.state, member.role)
        }
        Act::MoveLease { ttl, leading, .. } => {
            let keys = if leading.is_some() { "leader and member key" } else { "its member key" };
            format!("moves {keys} to a lease of {}", seconds(ttl.0))
        }
        Act::Renew { .. } => "renews the lease".to_owned(),
        Act::TakeInitialize => "enters the bootstrap race".to_owned(),
        Act::CancelInitialize => "gives the bootstrap back".to_owned(),
        Act::FinishBootstrap { sync, .. } => {
            format!("publishes the new cluster and leads in term 1, {}", sync_key(sync.as_ref()))
        }
        Act::OpenFence { .. } => "opens an election".to_owned(),
        Act::WritePledge { pledge, .. } => format!("pledges {}", position(&pledge.position)),
        Act::VoidFence { .. } => "voids the election and its pledges".to_owned(),
        Act::TakeLeadership(winner) => take(winner),
        Act::RetakeLeadership(retake) => format!(
            "takes the leader key again in term {} on timeline {}, {}",
            retake.term.term,
            retake.term.timeline,
            sync_key(retake.sync.as_ref())
        ),
        Act::WriteFailsafe { members, .. } => {
            format!("writes /failsafe {}", list(members.keys().map(MemberName::as_str)))
        }
        Act::ReleaseLeader { .. } => "releases the leader key".to_owned(),
        Act::WriteSync { sync, .. } => format!("writes {}", sync_key(sync.as_ref())),
        Act::PublishHistory { timeline, .. } => {
            format!("publishes the history up to timeline {timeline}")
        }
        Act::WriteHold { .. } => "asks the proxies to hold their clients".to_owned(),
        Act::RemoveHold { .. } => "lets the proxies' clients go on".to_owned(),
        Act::ClearFailover { .. } => "clears the request".to_owned(),
        other => panic!("{other:?} is not on keys"),
    }
}

fn take(winner: &Winner) -> String {
    format!(
        "takes the leader key in term {} with timeline {}, {}",
        winner.term.term,
        winner.term.timeline,
        sync_key(winner.sync.as_ref())
    )
}

/// `/sync`.
pub(crate) fn sync_key(sync: Option<&SyncState>) -> String {
    match sync {
        Some(sync) => {
            let leader = sync.leader.as_ref().map_or("-", MemberName::as_str);
            let voters = list(sync.voters.iter().map(MemberName::as_str));
            format!("/sync leader={leader} quorum={} voters={voters}", sync.quorum)
        }
        None => "no /sync".to_owned(),
    }
}

fn rule(rule: &SyncRule) -> String {
    match rule {
        SyncRule::Off => "no synchronous names".to_owned(),
        SyncRule::First(names) => format!("synchronous names FIRST {}", names_text(names)),
        SyncRule::Any(names) => format!("synchronous names ANY {}", names_text(names)),
    }
}

/// `2 (b,c)`.
pub(crate) fn names_text(names: &SyncNames) -> String {
    format!("{} ({})", names.number, list(names.names.iter().map(MemberName::as_str)))
}

fn position(position: &Position) -> String {
    let Position { term, timeline, lsn: Lsn(lsn) } = position;
    format!("term {term} timeline {timeline} at {lsn}")
}

/// Names with commas, `-` for none.
pub(crate) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

/// Milliseconds as seconds.
pub(crate) fn seconds(millis: u64) -> String {
    format!("{}.{:03}s", millis / 1000, millis % 1000)
}

/// The journal's reason: its name, then its fields.
fn reason(why: &Reason) -> String {
    let value = serde_json::to_value(why).unwrap_or_default();
    let mut text = value["reason"].as_str().unwrap_or_default().to_owned();
    let fields = value.as_object().into_iter().flatten();
    for (key, value) in fields.filter(|(key, _)| *key != "reason") {
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            // The number in a fence's id only makes it unique.
            ("fence", Value::String(id)) => {
                let opener = id.rsplit_once('-').map_or(id.as_str(), |(name, _)| name);
                text.push_str(&format!(" opener={opener}"));
            }
            ("claim_until", Value::Number(millis)) => {
                let millis = millis.as_u64().unwrap_or_default();
                text.push_str(&format!(" claim_until={}", seconds(millis)));
            }
            (key, value) => text.push_str(&format!(" {key}={}", field(value))),
        }
    }
    text
}

fn field(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(field).collect();
            list(items.iter().map(String::as_str))
        }
        Value::Object(fields) => {
            let parts = fields.iter().map(|(key, value)| format!("{key}:{}", field(value)));
            parts.collect::<Vec<_>>().join("/")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn slot_change(change: &SlotChange) -> String {
    match change {
        SlotChange::Drop { name } => format!("drops slot {name}"),
        SlotChange::Create { name } => format!("creates slot {name}"),
        SlotChange::CreateLogical { name, .. } => format!("creates logical slot {name}"),
        SlotChange::Advance { name, to } | SlotChange::AdvanceLogical { name, to, .. } => {
            format!("moves slot {name} to {to}")
        }
    }
}
