//! What is so when a script begins.

use std::collections::BTreeSet;

use decide::{Brain, Node};
use serde_json::{Value, json};
use types::{
    ControlState, Durable, Fence, LeaderKey, Lsn, Member, MemberName, Pledge, Position, Revision,
    Status, SyncNames, SyncState, Tags, Term, TermRecord, Timeline,
};

use crate::data::{Data, OUR_SYSTEM, Proc};
use crate::store::{lead, put};
use crate::world::{Agent, Host, World};

/// How long before the end of the claim the guard kills.
const STOP_MARGIN: types::Millis = types::Millis(1_000);

/// The dynamic configuration, unless the script changes it: what `pgherd init` recommends.
pub(crate) fn configuration() -> Value {
    json!({
        "ttl": 10,
        "loop_wait": 2,
        "retry_timeout": 3,
        "synchronous_mode": "quorum",
        "synchronous_node_count": 1,
        "maximum_lag_on_failover": 1000,
        "postgresql": {
            "use_pg_rewind": true,
            "use_slots": true,
            "remove_data_directory_on_rewind_failure": true,
            "remove_data_directory_on_diverged_timelines": true,
        },
    })
}

/// `key=value` and plain words behind a node's name.
pub(crate) struct Options<'a>(pub(crate) &'a [&'a str]);

impl<'a> Options<'a> {
    /// The value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&'a str> {
        let mut pairs = self.0.iter().filter_map(|word| word.split_once('='));
        pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// The number of `key`, or `default`.
    pub(crate) fn number(&self, key: &str, default: u64) -> Result<u64, String> {
        let Some(text) = self.get(key) else { return Ok(default) };
        text.parse().map_err(|_| format!("{key}={text} is no number"))
    }

    pub(crate) fn timeline(&self) -> Result<Timeline, String> {
        let number = self.number("timeline", 1)?;
        u32::try_from(number).map(Timeline).map_err(|_| format!("timeline={number} is too big"))
    }

    pub(crate) fn names(&self, key: &str) -> BTreeSet<MemberName> {
        let text = self.get(key).unwrap_or_default();
        text.split(',').filter(|n| !n.is_empty() && *n != "-").map(MemberName::from).collect()
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.0.contains(&flag)
    }

    /// Refuses what nobody reads.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), String> {
        for word in self.0 {
            let key = word.split_once('=').map_or(*word, |(key, _)| key);
            if !known.contains(&key) {
                return Err(format!("`{word}` is not known here; known are {}", known.join(", ")));
            }
        }
        Ok(())
    }
}

impl World {
    /// `node a primary timeline=1 lsn=100 …`.
    pub(crate) fn add_node(
        &mut self,
        name: &str,
        kind: &str,
        words: &[&str],
    ) -> Result<(), String> {
        let options = Options(words);
        options.only(&[
            "timeline",
            "lsn",
            "term",
            "priority",
            "from",
            "crashed",
            "clean",
            "nofailover",
            "nosync",
            "clonefrom",
            "patroni",
            "noagent",
            "nobootstrap",
            "norewind",
            "system",
            "names",
        ])?;
        let (process, state) = match kind {
            "primary" => (Proc::Primary, ControlState::InProduction),
            "replica" => (Proc::Standby, ControlState::InArchiveRecovery),
            "stopped" if options.has("crashed") => (Proc::Stopped, ControlState::InProduction),
            "stopped" => (Proc::Stopped, ControlState::ShutDown),
            "empty" => (Proc::Stopped, ControlState::ShutDown),
            _ => return Err(format!("a node is primary, replica, stopped or empty, not `{kind}`")),
        };
        let data = if kind == "empty" { None } else { Some(self.data(&options, process, state)?) };
        let mut tags = json!({
            "nofailover": options.has("nofailover"),
            "nosync": options.has("nosync"),
            "clonefrom": options.has("clonefrom"),
        });
        if let Some(priority) = options.get("priority") {
            // Beside a priority a switch that is off would win.
            tags = json!({ "failover_priority": priority, "nosync": tags["nosync"] });
        }
        let tags = Tags::from(tags);
        let term = Term(options.number("term", u64::from(data.is_some()))?);
        let lease = if kind == "empty" { 0 } else { self.store.grant() };
        let host = Host {
            tags,
            patroni: options.has("patroni"),
            may_bootstrap: !options.has("nobootstrap"),
            lease,
            agent: None,
            agents: 0,
            data,
            process,
            durable: Durable { term, ..Durable::default() },
            compared: None,
            guard: None,
            cut: false,
            deaf: false,
            frozen: None,
            cut_off: None,
            misses: BTreeSet::new(),
            starts: 0,
            stream_cut: false,
            promoting: None,
            health: types::Health::default(),
            strangers: BTreeSet::new(),
            lags_at: None,
            ways: std::collections::BTreeMap::new(),
        };
        let name = MemberName::from(name);
        self.hosts.insert(name.clone(), host);
        if lease != 0 {
            self.publish_member(&name);
        }
        if !options.has("patroni") && !options.has("noagent") {
            self.start_agent(&name);
        }
        Ok(())
    }

    fn data(&self, o: &Options<'_>, process: Proc, state: ControlState) -> Result<Data, String> {
        let timeline = o.timeline()?;
        let end = Lsn(o.number("lsn", 100)?);
        let primary = self.hosts.iter().find(|(_, h)| h.process == Proc::Primary);
        let from = o.get("from").map(MemberName::from).or(primary.map(|(name, _)| name.clone()));
        let names = o.names("names");
        let slots = self.hosts.keys().map(|n| (types::slot_name(n), None)).collect();
        Ok(Data {
            system: o.get("system").unwrap_or(OUR_SYSTEM).to_owned(),
            state,
            timeline,
            end,
            checkpoint: end,
            checkpoint_timeline: timeline,
            standby_signal: process == Proc::Standby,
            can_rewind: !o.has("norewind"),
            upstream: from.filter(|_| process == Proc::Standby),
            names: SyncNames { number: usize::from(!names.is_empty()), names },
            slots,
            ..Data::new()
        })
    }

    /// The member key as its agent would write it.
    fn publish_member(&mut self, name: &MemberName) {
        let host = &self.hosts[name];
        let (role, state) = match host.process {
            Proc::Primary => ("primary", "running"),
            Proc::Standby => ("replica", "running"),
            Proc::Stopped | Proc::Orphaned | Proc::NotReady(_) | Proc::Silent(_) => {
                ("replica", "stopped")
            }
        };
        let member = Member {
            role: role.to_owned(),
            state: state.to_owned(),
            replication_state: self.streams_from(name).map(|_| "streaming".to_owned()),
            timeline: host.data.as_ref().map(|d| d.timeline),
            xlog_location: host.data.as_ref().map(|d| d.end),
            ..constant_member(name, host)
        };
        let (name, lease) = (name.clone(), host.lease);
        self.store.change(|view, at| {
            let mut slot = view.members.remove(&name);
            put(&mut slot, at, lease, member);
            view.members.extend(slot.map(|value| (name, value)));
        });
    }

    /// Starts an agent that has seen nothing yet.
    pub(crate) fn start_agent(&mut self, name: &MemberName) {
        let config = self.config.clone();
        let Some(host) = self.hosts.get_mut(name) else { return };
        host.agents += 1;
        let seed = name.0.bytes().fold(host.agents, |seed, b| seed * 256 + u64::from(b));
        let node = Node {
            name: name.clone(),
            tags: host.tags.clone(),
            member: constant_member(name, host),
            may_bootstrap: host.may_bootstrap,
            stop_margin: STOP_MARGIN,
            initial_config: config,
        };
        host.agent = Some(Agent {
            brain: Brain::new(node, seed),
            revision: Revision(-1),
            local: None,
            lease_told: 0,
            heard: std::collections::BTreeMap::new(),
            under_way: Vec::new(),
            ended: Vec::new(),
            tick: false,
            shutdown: false,
            asked: Vec::new(),
        });
    }

    /// `leader a term=1 timeline=1`: the keys of a cluster that a leads.
    pub(crate) fn set_leader(&mut self, name: &str, words: &[&str]) -> Result<(), String> {
        let options = Options(words);
        options.only(&["term", "timeline", "unknown"])?;
        let lease = self.host(name)?.lease;
        // A Patroni node's key, whoever has its name now.
        let patroni = self.host(name)?.patroni || words.contains(&"unknown");
        self.set_cluster(words)?;
        let leader = MemberName::from(name);
        let record = TermRecord {
            position: None,
            term: Term(options.number("term", 1)?),
            leader: leader.clone(),
            timeline: options.timeline()?,
        };
        self.store.change(|view, at| {
            let sync = view.sync.as_ref().map(|s| s.value.clone());
            view.leader = None;
            if patroni {
                put(&mut view.leader, at, lease, LeaderKey { name: leader, lease });
            } else {
                lead(view, at, lease, &record, sync.as_ref());
            }
        });
        Ok(())
    }

    /// `initialize`, `config` and the last term, without a leader.
    pub(crate) fn set_cluster(&mut self, words: &[&str]) -> Result<(), String> {
        let options = Options(words);
        let record = TermRecord {
            position: None,
            term: Term(options.number("term", 1)?),
            leader: "nobody".into(),
            timeline: options.timeline()?,
        };
        let config = self.config.clone();
        self.store.change(|view, at| {
            put(&mut view.initialize, at, 0, OUR_SYSTEM.to_owned());
            put(&mut view.config, at, 0, config);
            put(&mut view.term, at, 0, record);
            put(&mut view.status, at, 0, Status::default());
        });
        Ok(())
    }

    /// `sync leader=a quorum=1 voters=b,c`.
    pub(crate) fn set_sync(&mut self, words: &[&str]) -> Result<(), String> {
        let options = Options(words);
        options.only(&["leader", "quorum", "voters"])?;
        let sync = SyncState {
            leader: options.get("leader").map(MemberName::from),
            quorum: usize::try_from(options.number("quorum", 0)?).unwrap_or(0),
            voters: options.names("voters"),
        };
        self.store.change(|view, at| put(&mut view.sync, at, 0, sync));
        Ok(())
    }

    /// `healthy quorum a b c`: a leads, the others stream, everybody knows everything.
    pub(crate) fn healthy(&mut self, words: &[&str]) -> Result<(), String> {
        let [mode, leader, replicas @ ..] = words else {
            return Err("healthy <async|on|quorum> <leader> <replicas…>".to_owned());
        };
        self.set_mode(mode)?;
        let flags = |word: &str| {
            let mut parts = word.split('/').map(str::to_owned);
            (parts.next().unwrap_or_default(), parts.collect::<Vec<String>>())
        };
        let names: Vec<String> = replicas.iter().map(|word| flags(word).0).collect();
        let able: Vec<&str> = replicas.iter().filter(|w| !w.contains("nosync")).copied().collect();
        let able: Vec<String> = able.into_iter().map(|word| flags(word).0).collect();
        let sync = match *mode {
            "async" => Vec::new(),
            "on" => able.iter().take(1).cloned().collect(),
            _ => able,
        };
        let listed = format!("names={}", sync.join(","));
        self.add_node(leader, "primary", &[&listed])?;
        for (word, name) in replicas.iter().zip(&names) {
            let given = flags(word).1;
            let given: Vec<&str> = given.iter().map(String::as_str).collect();
            self.add_node(name, "replica", &given)?;
        }
        if *mode != "async" {
            let quorum = format!("quorum={}", sync.len().saturating_sub(1));
            let voters = format!("voters={}", sync.join(","));
            self.set_sync(&[&format!("leader={leader}"), &quorum, &voters])?;
        }
        self.set_leader(leader, &[])?;
        self.quiet = true;
        self.settle()?;
        self.quiet = false;
        Ok(())
    }

    /// `mode async|on|quorum`.
    pub(crate) fn set_mode(&mut self, mode: &str) -> Result<(), String> {
        let value = match mode {
            "async" => "off",
            "on" => "on",
            "quorum" => "quorum",
            _ => return Err(format!("a mode is async, on or quorum, not `{mode}`")),
        };
        self.set_config(&["synchronous_mode"], Value::from(value));
        Ok(())
    }

    /// Changes the dynamic configuration, for those who run too.
    pub(crate) fn set_config(&mut self, path: &[&str], value: Value) {
        let mut place = &mut self.config;
        for key in path {
            place = &mut place[*key];
        }
        *place = value;
        let config = self.config.clone();
        if self.store.view.config.is_some() {
            self.store.change(|view, at| put(&mut view.config, at, 0, config));
        }
    }

    /// `fence opened by b`, as another member's agent would write it.
    /// Against the present leader key, if there is one and `against_leader`.
    pub(crate) fn open_fence(&mut self, by: &str, old_sync: bool, against_leader: bool) {
        let candidate = MemberName::from(by);
        self.store.change(|view, at| {
            let sync = view.sync.as_ref().map_or(Revision(0), |s| s.mod_revision);
            let sync_revision = if old_sync { Revision(sync.0 - 1) } else { sync };
            let id = format!("{by}-{at}");
            let key = view.leader.as_ref().map(|l| l.mod_revision).filter(|_| against_leader);
            let leader_revision = key.unwrap_or(Revision(0));
            let fence = Fence { id, leader_revision, sync_revision, candidate };
            put(&mut view.fence, at, 0, fence);
        });
    }

    /// `b pledges term=1 timeline=1 lsn=100`, as another member's agent would write it.
    pub(crate) fn pledge(&mut self, by: &str, words: &[&str]) -> Result<(), String> {
        let options = Options(words);
        options.only(&["term", "timeline", "lsn"])?;
        let position = Position {
            term: Term(options.number("term", 1)?),
            timeline: options.timeline()?,
            lsn: Lsn(options.number("lsn", 100)?),
        };
        let Some(fence) = self.store.view.fence.as_ref().map(|f| f.value.id.clone()) else {
            return Err("no election is open".to_owned());
        };
        let pledge = Pledge { fence, position };
        self.store.change(|view, at| {
            let mut slot = view.pledges.remove(&MemberName::from(by));
            put(&mut slot, at, 0, pledge);
            view.pledges.extend(slot.map(|value| (MemberName::from(by), value)));
        });
        Ok(())
    }
}

fn constant_member(name: &MemberName, host: &Host) -> Member {
    Member {
        conn_url: format!("postgres://host-{name}:5432/postgres"),
        api_url: format!("http://host-{name}:8008/patroni"),
        version: "4.1.0".to_owned(),
        pgherd: (!host.patroni).then(|| "0.1.0".to_owned()),
        tags: host.tags.clone(),
        ..Member::default()
    }
}
