//! The words of the scripts; `testdata/README.md` explains them to a reader.

use decide::Request;
use serde_json::Value;
use types::{
    FailoverRequest, Fault, Health, Lsn, MemberName, Millis, ProxyRecord, RestartRequest, Trouble,
};

use crate::data::Proc;
use crate::say;
use crate::store::put;
use crate::world::{Way, World};

/// Names of actions that a script may let fail or hang.
const ACTIONS: [&str; 23] = [
    "take_leadership",
    "release_leader",
    "arm_guard",
    "renew",
    "retake_leadership",
    "initdb",
    "clone",
    "rewind",
    "compare",
    "start",
    "stop",
    "stop_for_hand_over",
    "follow",
    "stop_receiving",
    "promote",
    "set_sync",
    "confirm_write",
    "checkpoint",
    "write_sync",
    "write_hold",
    "remove_hold",
    "move_lease",
    "end_orphans",
];

/// Does what one line of a script says.
pub(crate) fn obey(world: &mut World, line: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["healthy", rest @ ..] => world.healthy(rest),
        ["mode", mode] => world.set_mode(mode),
        ["config", setting] => config(world, setting),
        ["node", name, kind, rest @ ..] => world.add_node(name, kind, rest),
        ["leader", name, rest @ ..] => world.set_leader(name, rest),
        ["cluster", "without", "leader", rest @ ..] => world.set_cluster(rest),
        ["sync", rest @ ..] => world.set_sync(rest),
        ["tick", span] => world.tick(span_of(span)?),
        ["pause"] => config(world, "pause=true"),
        ["resume"] => config(world, "pause=false"),
        ["show", "all"] => shows(world, true),
        ["show", "usual"] => shows(world, false),
        ["show", "cluster"] => {
            world.settle()?;
            show_cluster(world);
            Ok(())
        }
        ["proxy", id, rest @ ..] => proxy(world, id, rest),
        ["operator", "takes", "the", "request", "back"] => {
            world.store.change(|view, at| put(&mut view.failover, at, 0, None));
            Ok(())
        }
        ["operator", "asks", rest @ ..] => request(world, rest),
        ["operator", verb, rest @ ..] => errand(world, verb, rest),
        _ => obey_more(world, &words),
    }
}

fn obey_more(world: &mut World, words: &[&str]) -> Result<(), String> {
    match words {
        ["the", "leader", "key", "vanishes"] => {
            world.store.change(|view, _| view.leader = None);
            Ok(())
        }
        ["the", "keys", "of", name, "vanish"] => {
            let lease = world.host(name)?.lease;
            world.store.end_lease(lease);
            Ok(())
        }
        ["the", "fence", "is", "opened", "by", name] => {
            world.open_fence(name, false, false);
            Ok(())
        }
        ["the", "fence", "is", "opened", "by", name, "against", "the", "leader"] => {
            world.open_fence(name, false, true);
            Ok(())
        }
        ["the", "fence", "is", "opened", "by", name, "under", "an", "older", "/sync"] => {
            world.open_fence(name, true, false);
            Ok(())
        }
        [name, "pledges", rest @ ..] => world.pledge(name, rest),
        ["the", "agent", "of", name, "dies"] => {
            world.host(name)?.agent = None;
            Ok(())
        }
        ["the", "agent", "of", name, "starts"] => {
            world.host(name)?;
            world.start_agent(&MemberName::from(*name));
            Ok(())
        }
        ["the", "guard", "of", name, "dies"] => {
            world.host(name)?.guard = None;
            Ok(())
        }
        ["host", name, "dies"] => {
            let host = world.host(name)?;
            host.agent = None;
            host.process = Proc::Stopped;
            host.guard = None;
            Ok(())
        }
        [name, "is", "told", "SIGTERM"] => match &mut world.host(name)?.agent {
            Some(agent) => {
                agent.shutdown = true;
                Ok(())
            }
            None => Err(format!("no agent runs on {name}")),
        },
        [name, "is", "cut", "from", "the", "keys"] => {
            world.host(name)?.cut = true;
            Ok(())
        }
        [name, "reaches", "the", "keys", "again"] => {
            world.host(name)?.cut = false;
            world.end_under_way(&MemberName::from(*name), None, false);
            Ok(())
        }
        [name, "is", "frozen"] => {
            let now = world.now;
            world.host(name)?.frozen = Some(now);
            Ok(())
        }
        [name, "goes", "on"] => {
            world.host(name)?.frozen = None;
            Ok(())
        }
        [name, "is", "cut", "off"] => {
            let now = world.now;
            let host = world.host(name)?;
            host.cut_off = Some(now);
            host.cut = true;
            Ok(())
        }
        [name, "is", "cut", "off", "from", "the", "members"] => {
            let now = world.now;
            world.host(name)?.cut_off = Some(now);
            Ok(())
        }
        [name, "is", "back"] => {
            let host = world.host(name)?;
            host.cut_off = None;
            host.cut = false;
            world.end_under_way(&MemberName::from(*name), None, false);
            Ok(())
        }
        [name, "does", "not", "hear", other] => {
            world.host(name)?.misses.insert(MemberName::from(*other));
            Ok(())
        }
        [name, "hears", other, "again"] => {
            world.host(name)?.misses.remove(&MemberName::from(*other));
            Ok(())
        }
        [name, "answers", "nobody"] => {
            world.host(name)?.deaf = true;
            Ok(())
        }
        [name, "answers", "again"] => {
            world.host(name)?.deaf = false;
            Ok(())
        }
        ["the", "data", "of", name, "is", "lost"] => {
            let host = world.host(name)?;
            host.data = None;
            host.process = Proc::Stopped;
            Ok(())
        }
        [name, "is", "a", "fresh", "copy"] => {
            world.host(name)?.durable.fresh_copy = true;
            Ok(())
        }
        _ => postgres(world, words),
    }
}

/// Sentences on PostgreSQL, and on actions that do not succeed.
fn postgres(world: &mut World, words: &[&str]) -> Result<(), String> {
    let now = world.now;
    match words {
        ["PostgreSQL", "dies", "on", name] => set_process(world, name, Proc::Stopped),
        ["PostgreSQL", "dies", "on", name, "and", "leaves", "orphans"] => {
            set_process(world, name, Proc::Orphaned)
        }
        ["PostgreSQL", "is", "silent", "on", name] => set_process(world, name, Proc::Silent(now)),
        ["the", "disk", "of", name, "hangs"] => {
            ails(world, name, |health| &mut health.write, Some(Fault::DiskHangs))
        }
        ["the", "disk", "of", name, "is", "full"] => {
            ails(world, name, |health| &mut health.write, Some(Fault::DiskFull))
        }
        ["the", "disk", "of", name, "is", "well"] => {
            ails(world, name, |health| &mut health.write, None)
        }
        ["the", "connections", "of", name, "are", "taken"] => {
            ails(world, name, |health| &mut health.connection, Some(Fault::NoConnectionLeft))
        }
        ["the", "connections", "of", name, "are", "free"] => {
            ails(world, name, |health| &mut health.connection, None)
        }
        ["PostgreSQL", "restarts", "on", name] => {
            let standby = world.host(name)?.data.as_ref().is_some_and(|d| d.standby_signal);
            let process = if standby { Proc::Standby } else { Proc::Primary };
            world.host(name)?.starts += 1;
            set_process(world, name, process)
        }
        [name, "writes", bytes] => {
            let more: u64 = bytes.parse().map_err(|_| format!("`{bytes}` is no number"))?;
            let host = world.host(name)?;
            match &mut host.data {
                Some(data) if matches!(host.process, Proc::Primary | Proc::Orphaned) => {
                    data.end = Lsn(data.end.0 + more);
                    Ok(())
                }
                _ => Err(format!("{name} is no primary")),
            }
        }
        [name, "receives", "no", "more"] => {
            let host = world.host(name)?;
            host.lags_at = host.data.as_ref().map(|d| d.end);
            Ok(())
        }
        [name, "loses", "its", "stream"] => {
            world.host(name)?.stream_cut = true;
            Ok(())
        }
        ["a", "stranger", "streams", "from", name, "as", called] => {
            world.host(name)?.strangers.insert(MemberName::from(*called));
            Ok(())
        }
        ["somebody", "sets", "the", "names", "of", name, "to", names] => {
            let Some(data) = &mut world.host(name)?.data else {
                return Err(format!("{name} is empty"));
            };
            let names: std::collections::BTreeSet<MemberName> =
                names.split(',').map(MemberName::from).collect();
            data.names = types::SyncNames { number: 1, names };
            Ok(())
        }
        [name, "streams", "again"] => {
            let host = world.host(name)?;
            host.stream_cut = false;
            host.lags_at = None;
            Ok(())
        }
        [action, "of", name, how] => way(world, action, name, how),
        _ => Err(format!("nobody understands `{}`", words.join(" "))),
    }
}

fn ails(
    world: &mut World,
    name: &str,
    which: impl FnOnce(&mut Health) -> &mut Option<Trouble>,
    fault: Option<Fault>,
) -> Result<(), String> {
    let since = world.now;
    *which(&mut world.host(name)?.health) = fault.map(|fault| Trouble { since, fault });
    Ok(())
}

fn set_process(world: &mut World, name: &str, process: Proc) -> Result<(), String> {
    world.host(name)?.process = process;
    Ok(())
}

fn way(world: &mut World, action: &str, name: &str, how: &str) -> Result<(), String> {
    if !ACTIONS.contains(&action) {
        return Err(format!("`{action}` is no action; known are {}", ACTIONS.join(", ")));
    }
    let host = world.host(name)?;
    match how {
        "fails" => {
            host.ways.insert(action.to_owned(), Way::Fails);
            world.end_under_way(&MemberName::from(name), Some(action), false);
        }
        "hangs" => {
            host.ways.insert(action.to_owned(), Way::Hangs);
        }
        "works" => {
            host.ways.remove(action);
            world.end_under_way(&MemberName::from(name), Some(action), true);
        }
        _ => return Err(format!("an action fails, hangs or works, not `{how}`")),
    }
    Ok(())
}

/// `config postgresql.use_pg_rewind=false`.
fn config(world: &mut World, setting: &str) -> Result<(), String> {
    let (key, text) = setting.split_once('=').ok_or("a setting is key=value")?;
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    world.set_config(&key.split('.').collect::<Vec<_>>(), value);
    Ok(())
}

/// `switchover [from a] [to c] [at 00:00:05]`, `failover to c`.
fn request(world: &mut World, words: &[&str]) -> Result<(), String> {
    let (words, at) = match words {
        [rest @ .., "at", at] => (rest, Some(format!("2026-11-24T{at}Z"))),
        all => (all, None),
    };
    let (leader, member) = match words {
        ["switchover", "from", leader] => (Some(*leader), None),
        ["switchover", "from", leader, "to", member] => (Some(*leader), Some(*member)),
        ["failover", "to", member] => (None, Some(*member)),
        _ => return Err("switchover from <a> [to <b>], or failover to <b>".to_owned()),
    };
    let request = FailoverRequest {
        leader: leader.map(MemberName::from),
        member: member.map(MemberName::from),
        scheduled_at: at,
    };
    world.store.change(|view, at| put(&mut view.failover, at, 0, Some(request)));
    Ok(())
}

/// `proxy p registers`, `proxy p holds`, `… with 2 busy`, `proxy p is gone`.
fn proxy(world: &mut World, id: &str, words: &[&str]) -> Result<(), String> {
    let (holds, busy) = match words {
        ["registers"] => (false, "0"),
        ["holds"] => (true, "0"),
        ["holds", "with", busy, "busy"] => (true, *busy),
        ["is", "gone"] => {
            world.store.change(|view, _| _ = view.proxies.remove(id));
            return Ok(());
        }
        _ => return Err("a proxy registers, holds (with <n> busy), or is gone".to_owned()),
    };
    // What it saw last: the agents have had their say on all that came before.
    world.settle()?;
    let hold = world.store.view.active_hold().map(|hold| hold.value.id).filter(|_| holds);
    if holds && hold.is_none() {
        return Err(format!("proxy {id} sees no hold"));
    }
    let busy = busy.parse().map_err(|_| format!("`{busy}` is no number"))?;
    let record = ProxyRecord { address: format!("{id}:5000"), hold, busy };
    world.store.change(|view, at| {
        let mut slot = view.proxies.remove(id);
        put(&mut slot, at, 0, record);
        view.proxies.extend(slot.map(|value| (id.to_owned(), value)));
    });
    Ok(())
}

/// `restarts a [if replica] [within 5s] [at 00:00:05]`, `forgets the restart of a`,
/// `reinitializes c [by force | from the leader]`.
fn errand(world: &mut World, verb: &str, words: &[&str]) -> Result<(), String> {
    let wrong = || format!("no operator {verb} {}", words.join(" "));
    let (name, asked) = match (verb, words) {
        ("restarts", [name, rest @ ..]) => {
            let mut wanted = RestartRequest::default();
            for pair in rest.chunks(2) {
                let [how, what] = pair else { return Err(wrong()) };
                match (*how, *what) {
                    ("if", "pending") => wanted.restart_pending = true,
                    ("if", role) => wanted.role = Some(role.to_owned()),
                    ("within", span) => wanted.timeout = Some(span_of(span)?.0 / 1000),
                    ("at", at) => wanted.schedule = Some(format!("2026-11-24T{at}Z")),
                    _ => return Err(wrong()),
                }
            }
            (name, Request::Restart(wanted))
        }
        ("forgets", ["the", "restart", "of", name]) => (name, Request::CancelRestart),
        ("reinitializes", [name, how @ ..]) => {
            let (force, from_leader) = match how {
                [] => (false, false),
                ["by", "force"] => (true, false),
                ["from", "the", "leader"] => (false, true),
                _ => return Err(wrong()),
            };
            (name, Request::Reinitialize { force, from_leader })
        }
        _ => return Err(wrong()),
    };
    let agent = world.host(name)?.agent.as_mut().ok_or_else(|| format!("no agent on {name}"))?;
    agent.asked.push(asked);
    Ok(())
}

fn shows(world: &mut World, all: bool) -> Result<(), String> {
    world.settle()?;
    world.show_all = all;
    Ok(())
}

/// `2s`, `500ms`.
fn span_of(text: &str) -> Result<Millis, String> {
    let wrong = || format!("`{text}` is no span such as 2s or 500ms");
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, 1000),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    Ok(Millis(number * unit))
}

/// Who leads, and what runs where.
fn show_cluster(world: &mut World) {
    let view = std::sync::Arc::clone(&world.store.view);
    let leader = match (view.leader_name(), view.leader_term()) {
        (Some(name), Some(term)) if term.0 > 0 => format!("leader {name} in term {term}"),
        (Some(name), _) => format!("leader {name} in an unknown term"),
        (None, _) => "no leader".to_owned(),
    };
    let sync = say::sync_key(view.sync.as_ref().map(|s| &s.value));
    world.say(&format!("= {leader}; {sync}"));
    if view.active_hold().is_some() {
        world.say("= proxies hold their clients");
    }
    let names: Vec<MemberName> = world.hosts.keys().cloned().collect();
    for name in names {
        let line = node_line(world, &name);
        world.say(&format!("= {name}: {line}"));
    }
}

fn node_line(world: &World, name: &MemberName) -> String {
    let host = &world.hosts[name];
    let role = match host.process {
        Proc::Stopped => "stopped",
        Proc::Orphaned => "dead, processes are left",
        Proc::NotReady(_) => "not ready",
        Proc::Silent(_) => "silent",
        Proc::Primary => "primary",
        Proc::Standby => "replica",
    };
    let mut line = match &host.data {
        Some(data) => format!("{role}, timeline {} at {}", data.timeline, data.end.0),
        None => format!("{role}, empty"),
    };
    if let (Proc::Primary, Some(data)) = (host.process, &host.data)
        && !data.names.names.is_empty()
    {
        line.push_str(&format!(", waits for {}", say::names_text(&data.names)));
    }
    if host.process == Proc::Standby {
        match world.streams_from(name) {
            Some(up) => line.push_str(&format!(", streams from {up}")),
            None => line.push_str(", does not stream"),
        }
    }
    if let Some(pledge) = &host.durable.pledge {
        line.push_str(&format!(", pledged at {}", pledge.position.lsn.0));
    }
    line
}
