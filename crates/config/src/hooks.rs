//! Commands of the operator's: how a cluster or a copy is made, and what is called when.
//!
//! They are split into words as by a shell when they are read, so that a quote that does not close
//! is found before anything runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use types::Millis;

use crate::keys::STATIC;
use crate::problem::Problem;
use crate::roles::{self, ByRole};
use crate::sections::ProgramOption;
use crate::tree::{Kind, Node};
use crate::values;

/// A command, split into words as by a shell; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(Vec<String>);

impl CommandLine {
    /// `None` if a quote does not close, or nothing is left.
    #[must_use]
    pub fn parse(text: &str) -> Option<CommandLine> {
        shlex::split(text).filter(|words| !words.is_empty()).map(CommandLine)
    }

    /// The program and its arguments.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

/// What is called about the local PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Callback {
    /// It was started, or taken over running.
    OnStart,
    /// It was stopped.
    OnStop,
    /// It was stopped and started again.
    OnRestart,
    /// It was told to read its configuration again.
    OnReload,
    /// It has another role.
    OnRoleChange,
}

impl Callback {
    /// All of them.
    pub const ALL: [Callback; 5] = [
        Callback::OnStart,
        Callback::OnStop,
        Callback::OnRestart,
        Callback::OnReload,
        Callback::OnRoleChange,
    ];

    /// The key, which is also what the command is told.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Callback::OnStart => "on_start",
            Callback::OnStop => "on_stop",
            Callback::OnRestart => "on_restart",
            Callback::OnReload => "on_reload",
            Callback::OnRoleChange => "on_role_change",
        }
    }
}

/// `bootstrap.<method>`: a cluster that is not made by initdb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomBootstrap {
    /// The method's name.
    pub method: String,
    /// The command.
    pub command: CommandLine,
    /// `--scope` and `--datadir` are not added.
    pub no_params: bool,
    /// What the command wrote about recovery is used.
    pub keep_existing_recovery_conf: bool,
    /// Recovery runs with these settings, up to its end.
    pub recovery_conf: Option<BTreeMap<String, String>>,
    /// Further arguments, `--name=value`.
    pub arguments: Vec<(String, String)>,
}

/// One of `create_replica_methods`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// pg_basebackup.
    Basebackup,
    /// A command.
    Custom(CustomMethod),
}

/// `postgresql.<method>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomMethod {
    /// The method's name.
    pub name: String,
    /// The command; the name, if the section has none.
    pub command: CommandLine,
    /// The data directory is not emptied for it.
    pub keep_data: bool,
    /// It needs no running leader.
    pub no_leader: bool,
    /// Nothing is added to its arguments.
    pub no_params: bool,
    /// Further arguments, `--name=value`.
    pub arguments: Vec<(String, String)>,
}

impl CustomMethod {
    /// A method without a section.
    fn bare(name: &str) -> Option<CustomMethod> {
        Some(CustomMethod {
            command: CommandLine::parse(name)?,
            name: name.to_owned(),
            keep_data: false,
            no_leader: false,
            no_params: false,
            arguments: Vec::new(),
        })
    }
}

impl ReplicaMethod {
    /// Whether it works while nobody leads.
    #[must_use]
    pub fn needs_no_leader(&self) -> bool {
        matches!(self, ReplicaMethod::Custom(method) if method.no_leader)
    }
}

/// Settings of `postgresql` that stand in the node's file or in the dynamic configuration; `None`
/// where a document says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// `callbacks`.
    pub callbacks: Option<BTreeMap<Callback, CommandLine>>,
    /// `create_replica_methods`: their names.
    pub replica_methods: Option<Vec<String>>,
    /// The sections that a method may name.
    pub sections: BTreeMap<String, CustomMethod>,
    /// `basebackup`: options of pg_basebackup.
    pub basebackup: Option<Vec<ProgramOption>>,
    /// `rewind`: options of pg_rewind.
    pub rewind: Option<Vec<ProgramOption>>,
    /// `recovery_conf`.
    pub recovery_conf: Option<BTreeMap<String, String>>,
    /// `custom_conf`.
    pub custom_conf: Option<PathBuf>,
    /// `krbsrvname`: the service name of PostgreSQL in Kerberos.
    pub krbsrvname: Option<String>,
    /// Whether probes use the unix socket.
    pub use_unix_socket: Option<bool>,
    /// `pg_ctl_timeout`: how long a start that nobody else bounds is waited for.
    pub pg_ctl_timeout: Option<Millis>,
    /// What holds in one role.
    pub by_role: ByRole,
    /// `pre_promote`.
    pub pre_promote: Option<CommandLine>,
    /// `before_stop`.
    pub before_stop: Option<CommandLine>,
}

impl Hooks {
    /// Those of a node, whose own file beats the dynamic configuration.
    #[must_use]
    pub fn over(&self, shared: &Hooks) -> Hooks {
        fn first<T: Clone>(own: &Option<T>, shared: &Option<T>) -> Option<T> {
            own.clone().or_else(|| shared.clone())
        }
        Hooks {
            callbacks: first(&self.callbacks, &shared.callbacks),
            replica_methods: first(&self.replica_methods, &shared.replica_methods),
            sections: shared.sections.clone().into_iter().chain(self.sections.clone()).collect(),
            basebackup: first(&self.basebackup, &shared.basebackup),
            rewind: first(&self.rewind, &shared.rewind),
            recovery_conf: first(&self.recovery_conf, &shared.recovery_conf),
            custom_conf: first(&self.custom_conf, &shared.custom_conf),
            krbsrvname: first(&self.krbsrvname, &shared.krbsrvname),
            use_unix_socket: first(&self.use_unix_socket, &shared.use_unix_socket),
            pg_ctl_timeout: first(&self.pg_ctl_timeout, &shared.pg_ctl_timeout),
            by_role: roles::over(&self.by_role, &shared.by_role),
            pre_promote: first(&self.pre_promote, &shared.pre_promote),
            before_stop: first(&self.before_stop, &shared.before_stop),
        }
    }

    /// How a copy of another member is made, in order.
    #[must_use]
    pub fn methods(&self) -> Vec<ReplicaMethod> {
        self.methods_named(self.replica_methods.as_deref().unwrap_or_default())
    }

    /// Those of these names, in order; pg_basebackup if there are none. A name without a section
    /// is a command itself.
    #[must_use]
    pub fn methods_named(&self, names: &[String]) -> Vec<ReplicaMethod> {
        let method = |name: &String| {
            if name == "basebackup" {
                return Some(ReplicaMethod::Basebackup);
            }
            let bare = || CustomMethod::bare(name);
            self.sections.get(name).cloned().or_else(bare).map(ReplicaMethod::Custom)
        };
        let methods: Vec<ReplicaMethod> = names.iter().filter_map(method).collect();
        if methods.is_empty() { vec![ReplicaMethod::Basebackup] } else { methods }
    }

    /// Reads them; what is wrong with them goes to `problems`.
    pub(crate) fn read(tree: &Node, problems: &mut Vec<Problem>) -> Hooks {
        let reader = &mut Reader { tree, problems };
        let text = |key| tree.at(key).and_then(values::text);
        Hooks {
            callbacks: reader.callbacks(),
            replica_methods: method_names(tree),
            sections: reader.sections(),
            basebackup: tree.at("postgresql.basebackup").and_then(values::options),
            rewind: tree.at("postgresql.rewind").and_then(values::options),
            recovery_conf: reader.settings("postgresql.recovery_conf"),
            custom_conf: text("postgresql.custom_conf").map(PathBuf::from),
            krbsrvname: text("postgresql.krbsrvname").filter(|name| !name.is_empty()),
            use_unix_socket: tree.at("postgresql.use_unix_socket").and_then(values::boolean),
            pg_ctl_timeout: tree.at("postgresql.pg_ctl_timeout").and_then(values::duration),
            by_role: roles::read(tree),
            pre_promote: reader.command("postgresql.pre_promote"),
            before_stop: reader.command("postgresql.before_stop"),
        }
    }
}

/// The method of `bootstrap` where it is another than initdb; one without a command is initdb (as
/// Patroni has it).
pub(crate) fn custom_bootstrap(
    tree: &Node,
    problems: &mut Vec<Problem>,
) -> Option<CustomBootstrap> {
    const RESERVED: [&str; 6] = [
        "command",
        "no_params",
        "keep_existing_recovery_conf",
        "recovery_conf",
        "scope",
        "datadir",
    ];
    let method = tree.at("bootstrap.method").and_then(values::text)?;
    if method == "initdb" {
        return None;
    }
    let section = format!("bootstrap.{method}");
    let reader = &mut Reader { tree, problems };
    let command = reader.command(&format!("{section}.command"))?;
    Some(CustomBootstrap {
        no_params: reader.flag(&section, "no_params"),
        keep_existing_recovery_conf: reader.flag(&section, "keep_existing_recovery_conf"),
        recovery_conf: reader.settings(&format!("{section}.recovery_conf")),
        arguments: reader.arguments(&section, &RESERVED),
        method,
        command,
    })
}

/// A command of the file.
pub(crate) fn command(tree: &Node, key: &str, problems: &mut Vec<Problem>) -> Option<CommandLine> {
    Reader { tree, problems }.command(key)
}

/// Sections that carry the name of a method that the document itself declares.
pub(crate) fn declared_methods(tree: &Node) -> Vec<String> {
    let mut names = method_names(tree).unwrap_or_default();
    let sections = tree.at("postgresql").map(Node::entries).unwrap_or_default();
    let with_command = sections.iter().filter(|entry| entry.node.at("command").is_some());
    names.extend(with_command.map(|entry| entry.key.clone()));
    names.retain(|name| !is_known(name));
    let mut paths: Vec<String> = names.iter().map(|name| format!("postgresql.{name}")).collect();
    let method = tree.at("bootstrap.method").and_then(values::text);
    paths.extend(method.filter(|m| m != "initdb").map(|method| format!("bootstrap.{method}")));
    paths
}

/// Whether `postgresql` has a key of this name of its own.
fn is_known(name: &str) -> bool {
    let path = format!("postgresql.{name}");
    let below = format!("{path}.");
    STATIC.iter().any(|key| key.path == path || key.path.starts_with(&below))
}

fn method_names(tree: &Node) -> Option<Vec<String>> {
    ["postgresql.create_replica_methods", "postgresql.create_replica_method"]
        .iter()
        .find_map(|key| values::comma_list(tree.at(key)?))
}

struct Reader<'a> {
    tree: &'a Node,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn wrong(&mut self, key: &str, text: impl Into<String>) {
        self.problems.push(Problem::new(self.tree.place_of(key), key, text));
    }

    fn command(&mut self, key: &str) -> Option<CommandLine> {
        let text = values::text(self.tree.at(key)?)?;
        let command = CommandLine::parse(&text);
        // An empty command is none.
        if command.is_none() && !text.trim().is_empty() {
            self.wrong(key, format!("{text:?} has a quote that does not close"));
        }
        command
    }

    fn flag(&self, section: &str, name: &str) -> bool {
        let node = self.tree.at(&format!("{section}.{name}"));
        node.and_then(values::boolean).unwrap_or(false)
    }

    fn callbacks(&mut self) -> Option<BTreeMap<Callback, CommandLine>> {
        self.tree.at("postgresql.callbacks")?;
        let mut found = BTreeMap::new();
        for callback in Callback::ALL {
            let key = format!("postgresql.callbacks.{}", callback.name());
            found.extend(self.command(&key).map(|command| (callback, command)));
        }
        Some(found)
    }

    fn sections(&mut self) -> BTreeMap<String, CustomMethod> {
        let entries = self.tree.at("postgresql").map(Node::entries).unwrap_or_default();
        let maps = entries.iter().filter(|entry| matches!(entry.node.kind, Kind::Map(_)));
        let methods = maps.filter(|entry| !is_known(&entry.key));
        methods.filter_map(|entry| Some((entry.key.clone(), self.section(&entry.key)?))).collect()
    }

    fn section(&mut self, name: &str) -> Option<CustomMethod> {
        const RESERVED: [&str; 2] = ["command", "no_params"];
        let section = format!("postgresql.{name}");
        let key = format!("{section}.command");
        let bare = CustomMethod::bare(name)?;
        let command = match self.tree.at(&key) {
            Some(_) => self.command(&key)?,
            None => bare.command.clone(),
        };
        let no_params = self.flag(&section, "no_params");
        let mut arguments = self.arguments(&section, &RESERVED);
        if no_params {
            arguments.retain(|(name, _)| name != "keep_data" && name != "no_leader");
        }
        let (keep_data, no_leader) =
            (self.flag(&section, "keep_data"), self.flag(&section, "no_leader"));
        Some(CustomMethod { command, keep_data, no_leader, no_params, arguments, ..bare })
    }

    /// The other keys of a method's section, as arguments in the order of the file.
    fn arguments(&mut self, section: &str, reserved: &[&str]) -> Vec<(String, String)> {
        let entries = self.tree.at(section).map(Node::entries).unwrap_or_default();
        let mut arguments = Vec::new();
        for entry in entries.iter().filter(|entry| !reserved.contains(&entry.key.as_str())) {
            match argument(&entry.node) {
                Some(value) => arguments.push((entry.key.clone(), value)),
                None => {
                    let key = format!("{section}.{}", entry.key);
                    self.wrong(&key, "cannot be passed as an argument: it is no scalar");
                }
            }
        }
        arguments
    }

    /// Recovery settings.
    fn settings(&mut self, key: &str) -> Option<BTreeMap<String, String>> {
        let node = self.tree.at(key)?;
        let mut found = BTreeMap::new();
        for entry in node.entries().iter().filter(|entry| entry.node.kind != Kind::Null) {
            match values::parameter(&entry.node) {
                Some(value) => _ = found.insert(entry.key.to_ascii_lowercase(), value),
                None => self.wrong(&format!("{key}.{}", entry.key), "must be a text or number"),
            }
        }
        Some(found)
    }
}

/// A scalar as Patroni's commands get it, which are written for its spelling of booleans.
fn argument(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Bool(value) => Some(if *value { "True" } else { "False" }.to_owned()),
        Kind::Null => Some("None".to_owned()),
        Kind::Text(_) | Kind::Number(..) => values::text(node),
        Kind::Seq(_) | Kind::Map(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Hooks, Option<CustomBootstrap>, Vec<String>) {
        let tree = Node::from_yaml(text, 0).expect("valid YAML");
        let mut problems = Vec::new();
        let hooks = Hooks::read(&tree, &mut problems);
        let bootstrap = custom_bootstrap(&tree, &mut problems);
        (hooks, bootstrap, problems.iter().map(|p| p.key.clone()).collect())
    }

    fn words(command: &CommandLine) -> Vec<&str> {
        command.words().iter().map(String::as_str).collect()
    }

    #[test]
    fn a_custom_bootstrap_passes_its_other_keys_as_arguments() {
        let (_, bootstrap, problems) = read(
            "bootstrap:\n  method: restore\n  restore:\n    command: sh -c 'a b' --x\n    \
             recovery_conf: {recovery_target_name: x, recovery_target_inclusive: false}\n    \
             test-argument: value\n    level: 07\n    quick: true\n",
        );
        let bootstrap = bootstrap.expect("it has a command");
        assert_eq!(problems, [""; 0]);
        assert_eq!(words(&bootstrap.command), ["sh", "-c", "a b", "--x"]);
        let arguments: Vec<String> =
            bootstrap.arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(arguments, ["test-argument=value", "level=07", "quick=True"]);
        let recovery = bootstrap.recovery_conf.expect("it is there");
        assert_eq!(recovery["recovery_target_inclusive"], "off");
    }

    #[test]
    fn replica_methods_in_their_order() {
        let (hooks, _, problems) = read(
            "postgresql:\n  create_replica_methods: [wal_e, basebackup, /bin/mine]\n  wal_e:\n    \
             command: wal restore\n    no_leader: 1\n    keep_data: true\n    retries: 3\n",
        );
        assert_eq!(problems, [""; 0]);
        let methods = hooks.methods();
        let [ReplicaMethod::Custom(first), ReplicaMethod::Basebackup, ReplicaMethod::Custom(last)] =
            methods.as_slice()
        else {
            panic!("{methods:?}")
        };
        assert!(first.no_leader && first.keep_data && !first.no_params);
        let names: Vec<&str> = first.arguments.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["no_leader", "keep_data", "retries"]);
        assert_eq!(words(&last.command), ["/bin/mine"]);
    }

    #[test]
    fn what_cannot_be_run_is_refused_before_anything_is() {
        let (_, bootstrap, problems) = read(
            "bootstrap: {method: x, x: {command: \"a 'b\"}}\npostgresql:\n  pre_promote: 'x \"'\n  \
             callbacks: {on_stop: b c}\n",
        );
        assert_eq!(bootstrap, None);
        assert_eq!(problems, ["postgresql.pre_promote", "bootstrap.x.command"]);
    }

    #[test]
    fn the_nodes_own_file_wins_key_by_key() {
        let (own, ..) = read("postgresql: {pre_promote: mine, callbacks: {on_stop: x}}");
        let (shared, ..) = read("postgresql: {pre_promote: theirs, before_stop: theirs}");
        let merged = own.over(&shared);
        assert_eq!(words(&merged.pre_promote.expect("own")), ["mine"]);
        assert_eq!(words(&merged.before_stop.expect("shared")), ["theirs"]);
    }
}
