//! Tables as patronictl draws them, and the rows of `list` and `topology`: pure functions of a
//! view.

use std::collections::{BTreeMap, BTreeSet};

use api::cluster::{MemberInfo, Progress, members};
use api::{Settings, json::spaced};
use serde_json::{Map, Value, json};
use types::{ClusterView, MemberName, RestartRequest, Tags};

use super::output::yaml;

const MIB: u64 = 1 << 20;

/// The port that is left out of the Host column while nobody uses another.
const DEFAULT_PORT: u16 = 5432;

/// `-f`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    Pretty,
    /// One line, an array of objects.
    Json,
    /// Tab-separated, with a header line.
    Tsv,
    /// A list of mappings.
    #[value(alias = "yml")]
    Yaml,
}

/// How the members are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// `-f`.
    pub(crate) format: Format,
    /// `-e`: also the columns that are empty.
    pub(crate) extended: bool,
    /// A tree by `replicatefrom` instead of a list by name.
    pub(crate) tree: bool,
}

/// The members of a cluster as text, with a line feed at the end.
#[must_use]
pub(crate) fn members_text(view: &ClusterView, scope: &str, layout: Layout) -> String {
    let infos = members(view);
    let ordered = if layout.tree { as_tree(infos) } else { as_list(infos) };
    let with_ports = ports_matter(&ordered);
    let rows: Vec<Row> =
        ordered.iter().map(|(prefix, info)| Row::new(scope, prefix, info, with_ports)).collect();
    let columns = columns(&rows, layout);
    match layout.format {
        Format::Json => {
            let rows = rows.iter().map(|row| row.to_json(&columns));
            spaced(&Value::Array(rows.collect())) + "\n"
        }
        Format::Yaml => {
            let rows = rows.iter().map(|row| row.to_json(&columns));
            yaml(&Value::Array(rows.collect()))
        }
        Format::Tsv => {
            let line = |cells: Vec<String>| cells.join("\t") + "\n";
            let header = columns.iter().map(|c| c.name().to_owned()).collect();
            let cells = |row: &Row| columns.iter().map(|c| row.flat_text(*c)).collect();
            rows.iter().fold(line(header), |text, row| text + &line(cells(row)))
        }
        Format::Pretty => {
            let table = Table {
                title: format!(" Cluster: {scope} ({}) ", identifier(view)),
                columns: columns.iter().map(|c| (c.title().to_owned(), c.right())).collect(),
                rows: rows
                    .iter()
                    .map(|row| columns.iter().map(|c| row.text(*c)).collect())
                    .collect(),
            };
            table.render() + &footer(view)
        }
    }
}

/// The system identifier, or why there is none.
fn identifier(view: &ClusterView) -> &str {
    match &view.initialize {
        None => "uninitialized",
        Some(key) if key.value.is_empty() => "initializing",
        Some(key) => &key.value,
    }
}

fn footer(view: &ClusterView) -> String {
    let mut text = String::new();
    if Settings::from_view(view).paused {
        text.push_str(" Maintenance mode: on\n");
    }
    if let Some(request) = view.failover_request()
        && let Some(at) = &request.scheduled_at
    {
        text.push_str(&format!(" Switchover scheduled at: {at}\n"));
        let ends = [("from", &request.leader), ("to", &request.member)];
        for (name, member) in ends {
            if let Some(member) = member {
                text.push_str(&format!("{name:>24}: {member}\n"));
            }
        }
    }
    text
}

type Placed<'a> = Vec<(String, MemberInfo<'a>)>;

fn as_list(infos: Vec<MemberInfo<'_>>) -> Placed<'_> {
    infos.into_iter().map(|info| (String::new(), info)).collect()
}

/// The leader first, below each member those that stream from it, by name. A member that names
/// nobody we know, or takes part in a circle, stands below the leader.
fn as_tree(infos: Vec<MemberInfo<'_>>) -> Placed<'_> {
    let known: BTreeSet<&MemberName> = infos.iter().map(|i| i.name).collect();
    let leader = infos.iter().find(|i| i.receive.is_none()).map(|i| i.name);
    let mut children: BTreeMap<Option<&MemberName>, Vec<&MemberName>> = BTreeMap::new();
    for info in infos.iter().filter(|i| Some(i.name) != leader) {
        let source = info.member.tags.replicatefrom();
        // As long as `infos` live, unlike the tag.
        let known = source.as_ref().and_then(|s| known.get(s).copied());
        let source = known.filter(|s| *s != info.name).or(leader);
        children.entry(source).or_default().push(info.name);
    }
    let mut order: Vec<(&MemberName, usize)> = Vec::new();
    let mut seen = BTreeSet::new();
    // A stack with the last child at the bottom; each member is placed once, so this ends.
    let mut stack: Vec<(&MemberName, usize)> = Vec::new();
    match leader {
        Some(leader) => stack.push((leader, 0)),
        None => push_children(&mut stack, &children, None, 0),
    }
    loop {
        while let Some((name, depth)) = stack.pop() {
            if seen.insert(name) {
                order.push((name, depth));
                push_children(&mut stack, &children, Some(name), depth + 1);
            }
        }
        let Some(left) = known.iter().find(|name| !seen.contains(*name)) else { break };
        stack.push((left, 1));
    }
    let mut by_name: BTreeMap<&MemberName, MemberInfo<'_>> =
        infos.into_iter().map(|info| (info.name, info)).collect();
    let prefix = |depth: usize| match depth {
        0 => String::new(),
        deeper => "  ".repeat(deeper - 1) + "+ ",
    };
    order
        .into_iter()
        .filter_map(|(name, depth)| Some((prefix(depth), by_name.remove(name)?)))
        .collect()
}

fn push_children<'a>(
    stack: &mut Vec<(&'a MemberName, usize)>,
    children: &BTreeMap<Option<&'a MemberName>, Vec<&'a MemberName>>,
    parent: Option<&'a MemberName>,
    depth: usize,
) {
    let names = children.get(&parent).into_iter().flatten();
    stack.extend(names.rev().map(|name| (*name, depth)));
}

fn ports_matter(members: &Placed<'_>) -> bool {
    let mut hosts = BTreeSet::new();
    let addresses = members.iter().filter_map(|(_, info)| info.address.as_ref());
    let mut matter = false;
    for (host, port) in addresses {
        matter |= *port != DEFAULT_PORT || !hosts.insert(host);
    }
    matter
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Cluster,
    Member,
    Host,
    Role,
    State,
    Timeline,
    ReceiveLsn,
    ReceiveLag,
    ReplayLsn,
    ReplayLag,
    PendingRestart,
    PendingRestartReason,
    ScheduledRestart,
    Tags,
}

impl Column {
    const ALWAYS: [Column; 10] = [
        Column::Cluster,
        Column::Member,
        Column::Host,
        Column::Role,
        Column::State,
        Column::Timeline,
        Column::ReceiveLsn,
        Column::ReceiveLag,
        Column::ReplayLsn,
        Column::ReplayLag,
    ];
    const OPTIONAL: [Column; 4] = [
        Column::PendingRestart,
        Column::PendingRestartReason,
        Column::ScheduledRestart,
        Column::Tags,
    ];

    /// The name in JSON and TSV.
    const fn name(self) -> &'static str {
        match self {
            Column::Cluster => "Cluster",
            Column::Member => "Member",
            Column::Host => "Host",
            Column::Role => "Role",
            Column::State => "State",
            Column::Timeline => "TL",
            Column::ReceiveLsn => "Receive LSN",
            Column::ReceiveLag => "Receive Lag",
            Column::ReplayLsn => "Replay LSN",
            Column::ReplayLag => "Replay Lag",
            Column::PendingRestart => "Pending restart",
            Column::PendingRestartReason => "Pending restart reason",
            Column::ScheduledRestart => "Scheduled restart",
            Column::Tags => "Tags",
        }
    }

    /// The title in a table.
    const fn title(self) -> &'static str {
        match self {
            Column::ReceiveLag | Column::ReplayLag => "Lag",
            other => other.name(),
        }
    }

    /// Whether the column is aligned to the right.
    const fn right(self) -> bool {
        match self {
            Column::Timeline
            | Column::ReceiveLsn
            | Column::ReceiveLag
            | Column::ReplayLsn
            | Column::ReplayLag => true,
            Column::Cluster
            | Column::Member
            | Column::Host
            | Column::Role
            | Column::State
            | Column::PendingRestart
            | Column::PendingRestartReason
            | Column::ScheduledRestart
            | Column::Tags => false,
        }
    }
}

fn columns(rows: &[Row], layout: Layout) -> Vec<Column> {
    let pretty = layout.format == Format::Pretty;
    let filled = |c: &Column| layout.extended || rows.iter().any(|r| !r.text(*c).is_empty());
    let always = Column::ALWAYS.into_iter().filter(|c| !pretty || *c != Column::Cluster);
    always.chain(Column::OPTIONAL.into_iter().filter(filled)).collect()
}

/// When a restart is scheduled, and for which versions.
fn when(restart: &RestartRequest) -> String {
    let mut text = restart.schedule.clone().unwrap_or_default();
    if let Some(version) = &restart.postgres_version {
        text.push_str(&format!(" if version < {version}"));
    }
    text
}

/// A longer line shows the parameter alone in a table.
const PENDING_CHARS_MAX: usize = 50;

fn pending_lines(member: &types::Member) -> Vec<String> {
    let reason = member.pending_restart_reason.iter();
    reason.map(|(name, c)| format!("{name}: {}->{}", c.old_value, c.new_value)).collect()
}

fn shortened(line: &str) -> String {
    match line.split_once(": ") {
        Some((name, _)) if line.chars().count() > PENDING_CHARS_MAX => {
            format!("{name}: [hidden - too long]")
        }
        Some(_) | None => line.to_owned(),
    }
}

/// One member's cells. An empty text is a missing value.
struct Row {
    cluster: String,
    member: String,
    host: String,
    role: &'static str,
    state: String,
    timeline: Option<u32>,
    receive: (String, Option<u64>),
    replay: (String, Option<u64>),
    pending_restart: bool,
    scheduled_restart: String,
    /// Parameters, with what is in force and what is configured.
    pending: Vec<String>,
    tags: Map<String, Value>,
}

impl Row {
    fn new(scope: &str, prefix: &str, info: &MemberInfo<'_>, with_port: bool) -> Row {
        let host = match &info.address {
            Some((host, port)) if with_port => format!("{host}:{port}"),
            Some((host, _)) => host.clone(),
            None => String::new(),
        };
        let (receive, replay) = positions(info);
        Row {
            cluster: scope.to_owned(),
            member: format!("{prefix}{}", info.name),
            host,
            role: info.role.title(),
            state: info.state.to_owned(),
            timeline: info.member.timeline.map(|t| t.0),
            receive: progress_cells(receive),
            replay: progress_cells(replay),
            pending_restart: info.member.pending_restart,
            scheduled_restart: info
                .member
                .scheduled_restart
                .as_ref()
                .map_or_else(String::new, when),
            pending: pending_lines(info.member),
            tags: sorted_tags(&info.member.tags),
        }
    }

    fn value(&self, column: Column) -> Value {
        let number = |n: Option<u64>| n.map_or(Value::Null, |n| json!(n));
        match column {
            Column::Cluster => json!(self.cluster),
            Column::Member => json!(self.member),
            Column::Host => json!(self.host),
            Column::Role => json!(self.role),
            Column::State => json!(self.state),
            Column::Timeline => number(self.timeline.map(u64::from)),
            Column::ReceiveLsn => json!(self.receive.0),
            Column::ReceiveLag => number(self.receive.1),
            Column::ReplayLsn => json!(self.replay.0),
            Column::ReplayLag => number(self.replay.1),
            Column::PendingRestart => json!(if self.pending_restart { "*" } else { "" }),
            Column::PendingRestartReason => json!(self.pending.join("\n")),
            Column::ScheduledRestart => json!(self.scheduled_restart),
            Column::Tags if self.tags.is_empty() => Value::Null,
            Column::Tags => Value::Object(self.tags.clone()),
        }
    }

    /// The cell of a table; several lines for several tags or parameters.
    fn text(&self, column: Column) -> String {
        match self.value(column) {
            Value::String(text) if column == Column::PendingRestartReason => {
                text.lines().map(shortened).collect::<Vec<_>>().join("\n")
            }
            Value::Null => String::new(),
            Value::String(text) => text,
            Value::Object(tags) => {
                let line = |(key, value): (&String, &Value)| format!("{key}: {}", plain(value));
                tags.iter().map(line).collect::<Vec<_>>().join("\n")
            }
            other => other.to_string(),
        }
    }

    /// The cell of a TSV line.
    fn flat_text(&self, column: Column) -> String {
        match self.value(column) {
            Value::Object(tags) => {
                let item = |(key, value): (&String, &Value)| format!("{key}: {}", plain(value));
                let items: Vec<String> = tags.iter().map(item).collect();
                format!("{{{}}}", items.join(", "))
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => self.text(column),
        }
    }

    fn to_json(&self, columns: &[Column]) -> Value {
        let cells = columns.iter().map(|c| (c.name().to_owned(), self.value(*c)));
        let filled = cells.filter(|(_, value)| !value.is_null() && value != "");
        Value::Object(filled.collect())
    }
}

/// What the position columns show: a member that only publishes the old `xlog_location` shows it
/// as received while it streams, else as replayed.
fn positions(info: &MemberInfo<'_>) -> (Option<Progress>, Option<Progress>) {
    let empty = |p: Option<Progress>| p.is_some_and(|p| p.lsn.is_none());
    let old = info.newest.filter(|p| p.lsn.is_some());
    if empty(info.receive) && empty(info.replay) && old.is_some() {
        return match info.state {
            "streaming" => (old, info.replay),
            _ => (info.receive, old),
        };
    }
    (info.receive, info.replay)
}

/// LSN and lag in rounded MiB.
fn progress_cells(progress: Option<Progress>) -> (String, Option<u64>) {
    let Some(progress) = progress else { return (String::new(), None) };
    let lsn = progress.lsn.map_or_else(|| "unknown".to_owned(), |lsn| lsn.to_string());
    let rounded = |lag: u64| lag.saturating_add(MIB / 2) / MIB;
    (lsn, progress.lag.map(rounded))
}

fn sorted_tags(tags: &Tags) -> Map<String, Value> {
    // Tags are plain data with string keys; what does not serialize is no tag.
    let map = match serde_json::to_value(tags) {
        Ok(Value::Object(map)) => map,
        Ok(_) | Err(_) => Map::new(),
    };
    let sorted: BTreeMap<String, Value> = map.into_iter().collect();
    sorted.into_iter().collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => spaced(other),
    }
}

/// A table with `title` laid over its top rule.
pub(crate) struct Table {
    /// The text over the top rule, with a blank at both ends; empty for none.
    pub(crate) title: String,
    /// Title of each column, and whether it is aligned to the right.
    pub(crate) columns: Vec<(String, bool)>,
    /// The cells; one may have several lines.
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// The drawn table, with a line feed at the end.
    #[must_use]
    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.columns.len()).map(|i| self.width(i)).collect();
        let rule = widths.iter().fold("+".to_owned(), |rule, w| rule + &"-".repeat(w + 2) + "+");
        let several_lines = self.rows.iter().flatten().any(|cell| cell.contains('\n'));
        let header = self.columns.iter().map(|c| c.0.clone()).collect::<Vec<_>>();
        let mut text = format!("{}\n", titled(&rule, &self.title));
        text.push_str(&self.line(&widths, &header));
        text.push_str(&format!("{rule}\n"));
        for row in &self.rows {
            text.push_str(&self.line(&widths, row));
            if several_lines {
                text.push_str(&format!("{rule}\n"));
            }
        }
        if !several_lines {
            text.push_str(&format!("{rule}\n"));
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        let lines = cells.flat_map(|cell| cell.lines());
        let widest = lines.map(|line| line.chars().count()).max().unwrap_or(0);
        widest.max(self.columns[column].0.chars().count())
    }

    fn line(&self, widths: &[usize], cells: &[String]) -> String {
        let height = cells.iter().map(|cell| cell.lines().count()).max().unwrap_or(0).max(1);
        let mut text = String::new();
        for row in 0..height {
            text.push('|');
            for ((cell, width), (_, right)) in cells.iter().zip(widths).zip(&self.columns) {
                let part = cell.lines().nth(row).unwrap_or("");
                if *right {
                    text.push_str(&format!(" {part:>width$} |"));
                } else {
                    text.push_str(&format!(" {part:<width$} |"));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// Lays the title over the rule behind its first `+`, and leaves its last one.
fn titled(rule: &str, title: &str) -> String {
    let inner = rule.len().saturating_sub(2);
    let title: String = title.chars().take(inner).collect();
    format!("+{title}{}", &rule[(1 + title.chars().count()).min(rule.len())..])
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
