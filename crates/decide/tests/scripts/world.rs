//! The nodes, the keys and the time; and how news reach the brains.

use std::collections::BTreeMap;
use std::sync::Arc;

use decide::{Act, Action, ActionId, Brain, Event, Outcome, Request, RequestId};
use serde_json::Value;
use types::{
    Compared, Durable, Heartbeat, LocalPostgres, MemberName, Millis, Revision, Tags, UnixMillis,
};

use crate::data::{Data, Proc};
use crate::say;
use crate::store::Store;

/// After so many exchanges of news without an end a script is wrong, or the brain is.
const ROUNDS_MAX: usize = 300;
/// An evaluation is due this often, whatever the brain asks for: `loop_wait`.
const LOOP_WAIT: Millis = Millis(2_000);

/// In fenced mode everybody sends a heartbeat this often, and at each other instant at which
/// something is due.
const HEARTBEAT: Millis = Millis(200);

/// How actions of one name end on a node, unless they just succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Fails,
    Hangs,
}

/// A node under test, or one that only stands in the keys.
pub(crate) struct Host {
    pub(crate) tags: Tags,
    /// A Patroni member: it has no pledges and no brain of ours.
    pub(crate) patroni: bool,
    pub(crate) may_bootstrap: bool,
    pub(crate) lease: i64,
    pub(crate) agent: Option<Agent>,
    pub(crate) agents: u64,
    pub(crate) data: Option<Data>,
    pub(crate) process: Proc,
    pub(crate) durable: Durable,
    pub(crate) compared: Option<Compared>,
    pub(crate) guard: Option<Millis>,
    /// It does not reach the keys.
    pub(crate) cut: bool,
    /// It answers no other member.
    pub(crate) deaf: bool,
    /// Since when it has been frozen: nothing of it runs.
    pub(crate) frozen: Option<Millis>,
    /// Since when it has been cut off from every other member.
    pub(crate) cut_off: Option<Millis>,
    /// Whose heartbeats do not reach it.
    pub(crate) misses: std::collections::BTreeSet<MemberName>,
    /// How often PostgreSQL was started.
    pub(crate) starts: u64,
    /// Its receiver does not reach anybody.
    pub(crate) stream_cut: bool,
    /// The timeline that a promotion under way has in its files.
    pub(crate) promoting: Option<types::Timeline>,
    /// What trial runs on it show.
    pub(crate) health: types::Health,
    /// Who streams from it under the name of a member and is none.
    pub(crate) strangers: std::collections::BTreeSet<MemberName>,
    /// It receives nothing past this position.
    pub(crate) lags_at: Option<types::Lsn>,
    pub(crate) ways: BTreeMap<String, Way>,
}

/// A running agent.
pub(crate) struct Agent {
    pub(crate) brain: Brain,
    pub(crate) revision: Revision,
    pub(crate) local: Option<LocalPostgres>,
    pub(crate) lease_told: i64,
    /// What each member's last heartbeat said.
    pub(crate) heard: BTreeMap<MemberName, Heartbeat>,
    pub(crate) under_way: Vec<Action>,
    pub(crate) ended: Vec<(ActionId, Outcome)>,
    pub(crate) tick: bool,
    pub(crate) shutdown: bool,
    /// What operators ask of this member.
    pub(crate) asked: Vec<Request>,
}

/// The stories begin at midnight, Greenwich.
pub(crate) fn wall(now: Millis) -> UnixMillis {
    let midnight = UnixMillis::parse("2026-11-24T00:00:00Z").expect("an instant");
    UnixMillis(midnight.0 + i64::try_from(now.0).expect("a short story"))
}

/// Everything that a script talks about.
pub(crate) struct World {
    pub(crate) now: Millis,
    pub(crate) store: Store,
    pub(crate) hosts: BTreeMap<MemberName, Host>,
    pub(crate) config: Value,
    pub(crate) show_all: bool,
    pub(crate) quiet: bool,
    said: String,
}

impl World {
    pub(crate) fn new() -> World {
        World {
            now: Millis(0),
            store: Store::default(),
            hosts: BTreeMap::new(),
            config: crate::setup::configuration(),
            show_all: false,
            quiet: false,
            said: String::new(),
        }
    }

    /// Adds a line to the answer.
    pub(crate) fn say(&mut self, line: &str) {
        if !self.quiet {
            self.said.push_str(line);
            self.said.push('\n');
        }
    }

    /// Adds a line on a node, with the time.
    pub(crate) fn tell(&mut self, name: &MemberName, what: &str) {
        let at = say::seconds(self.now.0);
        self.say(&format!("{at} {name}: {what}"));
    }

    pub(crate) fn take_said(&mut self) -> String {
        std::mem::take(&mut self.said)
    }

    pub(crate) fn host(&mut self, name: &str) -> Result<&mut Host, String> {
        self.hosts
            .get_mut(&MemberName::from(name))
            .ok_or_else(|| format!("there is no node {name}"))
    }

    /// Lets every news reach everybody, without time going on, until nothing is new.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        for _ in 0..ROUNDS_MAX {
            self.replicate();
            let mut issued = Vec::new();
            let mut news = self.proofs();
            let running = self.hosts.iter().filter(|(_, host)| host.frozen.is_none());
            let names: Vec<MemberName> = running.map(|(name, _)| name.clone()).collect();
            for name in &names {
                for event in self.news_for(name) {
                    news = true;
                    issued.extend(self.step(name, event));
                }
            }
            // What two nodes decide on the same picture happens in the order of their names.
            for (name, action) in issued {
                self.perform(&name, action);
            }
            if !news {
                return Ok(());
            }
        }
        Err(format!("the nodes do not come to rest within {ROUNDS_MAX} exchanges"))
    }

    fn step(&mut self, name: &MemberName, event: Event) -> Vec<(MemberName, Action)> {
        let now = self.now;
        let Some(agent) = self.hosts.get_mut(name).and_then(|h| h.agent.as_mut()) else {
            return Vec::new();
        };
        let actions = agent.brain.step(now, event);
        for (_, answer) in agent.brain.take_answers() {
            self.tell(name, &format!("answers {answer:?}"));
        }
        actions.into_iter().map(|action| (name.clone(), action)).collect()
    }

    /// What the agent does not know yet, in the order of the shell's contract: what is so now,
    /// before the end of the action that made it so.
    fn news_for(&mut self, name: &MemberName) -> Vec<Event> {
        let local = self.observe(name);
        let view = Arc::clone(&self.store.view);
        let ttl = self.config["ttl"].as_u64().unwrap_or_default();
        let mut news = self.beats_for(name);
        let now = self.now;
        let Some(host) = self.hosts.get_mut(name) else { return news };
        let Some(agent) = &mut host.agent else { return news };
        if std::mem::take(&mut agent.shutdown) {
            news.push(Event::Shutdown);
        }
        if agent.lease_told != host.lease {
            agent.lease_told = host.lease;
            news.push(Event::Lease { ttl: Millis::from_secs(ttl) });
        }
        if !host.cut && agent.revision < view.revision {
            agent.revision = view.revision;
            news.push(Event::View(view));
        }
        let known = agent.local.as_ref().is_some_and(|known| {
            LocalPostgres { at: Millis::ZERO, ..known.clone() }
                == LocalPostgres { at: Millis::ZERO, ..local.clone() }
        });
        let old = agent.local.as_ref().is_none_or(|known| known.at < now);
        if !known || (old && agent.brain.is_worried()) {
            agent.local = Some(local.clone());
            news.push(Event::Local(Box::new(local)));
        }
        for (id, outcome) in std::mem::take(&mut agent.ended) {
            news.push(Event::Finished { id, outcome });
        }
        if std::mem::take(&mut agent.tick) {
            news.push(Event::WallClock { unix: wall(now) });
        }
        for request in std::mem::take(&mut agent.asked) {
            news.push(Event::WallClock { unix: wall(now) });
            news.push(Event::Asked { id: RequestId(0), request });
        }
        news
    }

    /// Heartbeats that say something new, or are due.
    fn beats_for(&mut self, name: &MemberName) -> Vec<Event> {
        let to = &self.hosts[name];
        let reach = |from: &MemberName, host: &Host| {
            let gone = host.frozen.is_some() || host.cut_off.is_some() || to.cut_off.is_some();
            from != name && !gone && !to.misses.contains(from)
        };
        let senders = self.hosts.iter().filter(|(from, host)| reach(from, host));
        let beats: Vec<(MemberName, Heartbeat)> = senders
            .filter_map(|(from, h)| Some((from.clone(), h.agent.as_ref()?.brain.heartbeat())))
            .collect();
        let Some(agent) = self.hosts.get_mut(name).and_then(|host| host.agent.as_mut()) else {
            return Vec::new();
        };
        let mut news = Vec::new();
        for (from, said) in beats {
            if agent.heard.get(&from) != Some(&said) {
                agent.heard.insert(from.clone(), said.clone());
                news.push(Event::Heard { from, said });
            }
        }
        news
    }

    /// Writes that wait until their rule acknowledges them.
    fn proofs(&mut self) -> bool {
        let names: Vec<MemberName> = self.hosts.keys().cloned().collect();
        let mut any = false;
        for name in names {
            let proved = self.acknowledges(&name);
            let Some(host) = self.hosts.get_mut(&name) else { continue };
            let (up, hangs) = (host.process == Proc::Primary, host.ways.get("confirm_write"));
            if hangs.is_some() {
                continue;
            }
            let Some(agent) = &mut host.agent else { continue };
            let waits = |action: &Action| matches!(action.act, Act::ConfirmWrite);
            let Some(at) = agent.under_way.iter().position(waits) else { continue };
            if proved || !up {
                let action = agent.under_way.remove(at);
                let outcome = if up { Outcome::Done } else { Outcome::Failed };
                agent.ended.push((action.id, outcome));
                any = true;
            }
        }
        any
    }

    /// Lets time go on, from one instant at which something is due to the next.
    pub(crate) fn tick(&mut self, span: Millis) -> Result<(), String> {
        self.settle()?;
        let end = self.now.plus(span);
        while self.now < end {
            let fenced = self.config["pgherd"]["failover_mode"] == "fenced";
            let longest = if fenced { HEARTBEAT } else { LOOP_WAIT };
            let mut next = end.min(self.now.plus(longest));
            for host in self.hosts.values() {
                let wake = host.agent.as_ref().and_then(|a| a.brain.next_wake());
                for at in [wake, host.guard].into_iter().flatten() {
                    if at > self.now {
                        next = next.min(at);
                    }
                }
            }
            self.now = next;
            self.guards_strike();
            for host in self.hosts.values_mut() {
                if let Some(agent) = &mut host.agent {
                    agent.tick = true;
                    if fenced {
                        agent.heard.clear();
                    }
                }
            }
            self.settle()?;
        }
        Ok(())
    }

    fn guards_strike(&mut self) {
        let now = self.now;
        let due = |host: &Host| host.guard.is_some_and(|at| at <= now);
        let names: Vec<MemberName> =
            self.hosts.iter().filter(|(_, h)| due(h)).map(|(n, _)| n.clone()).collect();
        for name in names {
            let Some(host) = self.hosts.get_mut(&name) else { continue };
            host.guard = None;
            if host.process != Proc::Stopped {
                host.process = Proc::Stopped;
                self.tell(&name, "the guard kills PostgreSQL");
            }
        }
    }
}
