//! The static file of a node or a proxy: read, checked and built in one go, so that all problems
//! are reported at once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};
use types::{MemberName, Tags};

use crate::check::check;
use crate::dynamic::{Dynamic, is_ours, parameters};
use crate::etcd;
use crate::hooks::{self, Hooks};
use crate::keys::{CONNECTION_KEYS, STATIC};
use crate::log::Log;
use crate::problem::{ConfigError, Problem, Warning};
use crate::proxy_section::ProxySection;
use crate::restapi::RestapiExtras;
use crate::sections::{
    Authentication, BasicAuth, Bootstrap, CertificateFiles, Credentials, Etcd, PgherdSection,
    PostgresqlSection, RestClient, Restapi, VerifyClient, Watchdog, WatchdogDriver, WatchdogMode,
};
use crate::sources::{Sources, named};
use crate::text::{HostPort, Secret};
use crate::tree::{Kind, Node};
use crate::values;

/// The member name that Patroni's strict synchronous mode reserves.
const RESERVED_NAME: &str = "__patroni_strict_sync_replica_placeholder__";
const NAMESPACE_DEFAULT: &str = "/service/";
const CONFIG_BASE_NAME_DEFAULT: &str = "postgresql";
const WATCHDOG_DEFAULT: &str = "/dev/watchdog";
const WATCHDOG_MARGIN_DEFAULT: i64 = 5;

/// The programs of PostgreSQL's that are run, and may have another name.
const PROGRAMS: [&str; 4] = ["postgres", "initdb", "pg_basebackup", "pg_rewind"];

/// A node's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Static {
    /// The cluster's name.
    pub scope: String,
    /// Prefix of all keys.
    pub namespace: String,
    /// This member.
    pub name: MemberName,
    /// How to reach etcd.
    pub etcd3: Etcd,
    /// The REST API.
    pub restapi: Restapi,
    /// What commands log in with, if not with restapi's user.
    pub ctl_authentication: Option<BasicAuth>,
    /// How the members' REST is reached.
    pub rest_client: RestClient,
    /// What the log looks like and where it goes.
    pub log: Log,
    /// Member tags.
    pub tags: Tags,
    /// How a new cluster begins.
    pub bootstrap: Bootstrap,
    /// The local instance.
    pub postgresql: PostgresqlSection,
    /// The watchdog device.
    pub watchdog: Watchdog,
    /// Ours.
    pub pgherd: PgherdSection,
}

/// A proxy's file: the same format, with what a proxy needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyFile {
    /// The cluster's name.
    pub scope: String,
    /// Prefix of all keys.
    pub namespace: String,
    /// How to reach etcd; `None` only where the proxy's section names members.
    pub etcd3: Option<Etcd>,
    /// How the members' REST is reached.
    pub rest_client: RestClient,
    /// The proxy; at least one of its two addresses is there.
    pub proxy: ProxySection,
    /// Where the proxy answers HTTP, if it does.
    pub restapi: Option<Restapi>,
    /// What the log looks like and where it goes.
    pub log: Log,
}

impl Static {
    /// Reads a node's configuration.
    ///
    /// # Errors
    /// Every problem at once, one line each.
    pub fn read(sources: &Sources) -> Result<(Static, Vec<Warning>), ConfigError> {
        Reader::run(sources, Reader::node)
    }

    /// Reads a proxy's configuration; sections that only an agent needs may stand in it.
    ///
    /// # Errors
    /// Every problem at once, one line each.
    pub fn read_proxy(sources: &Sources) -> Result<(ProxyFile, Vec<Warning>), ConfigError> {
        Reader::run(sources, Reader::proxy_file)
    }

    /// Where a node's agent keeps its state unless told otherwise: `<data_dir>.pgherd`.
    #[must_use]
    pub fn default_state_dir(data_dir: &std::path::Path) -> PathBuf {
        let mut name = data_dir.components().collect::<PathBuf>().into_os_string();
        name.push(".pgherd");
        PathBuf::from(name)
    }
}

pub(crate) struct Reader {
    pub(crate) tree: Node,
    pub(crate) errors: Vec<Problem>,
    warnings: Vec<Warning>,
}

impl Reader {
    fn run<T>(
        sources: &Sources,
        build: impl FnOnce(&mut Reader) -> Option<T>,
    ) -> Result<(T, Vec<Warning>), ConfigError> {
        let (tree, names) = sources.read()?;
        let found = check(&tree, STATIC, &hooks::declared_methods(&tree));
        let mut reader = Reader { tree, errors: found.refused, warnings: Vec::new() };
        reader.errors.extend(found.ill_typed);
        for problem in found.unknown {
            let list =
                if is_ours(&problem.key) { &mut reader.errors } else { &mut reader.warnings };
            list.push(problem);
        }
        match build(&mut reader) {
            Some(value) if reader.errors.is_empty() => Ok((value, named(reader.warnings, &names))),
            Some(_) | None => {
                // An ill-typed required key is not also a missing one.
                let mut problems = named(reader.errors, &names);
                problems.dedup_by(|b, a| a.at == b.at && a.key == b.key);
                Err(ConfigError { problems })
            }
        }
    }

    fn node(&mut self) -> Option<Static> {
        let (scope, name) = (self.required("scope"), self.required("name"));
        if name.as_deref() == Some(RESERVED_NAME) {
            self.error("name", "is reserved for Patroni's strict synchronous mode");
        }
        let etcd3 = self.etcd();
        let restapi = self.restapi();
        let bootstrap = self.bootstrap();
        let postgresql = self.postgresql();
        let tags = self.tags();
        let ctl_authentication = self.basic_auth("ctl.authentication");
        let watchdog = self.watchdog();
        let pgherd = postgresql.as_ref().and_then(|p| self.pgherd(&p.data_dir));
        Some(Static {
            scope: scope?,
            namespace: self.namespace(),
            name: MemberName(name?),
            etcd3: etcd3?,
            restapi: restapi?,
            ctl_authentication,
            rest_client: self.rest_client(),
            log: self.log(),
            tags,
            bootstrap,
            postgresql: postgresql?,
            watchdog,
            pgherd: pgherd?,
        })
    }

    fn proxy_file(&mut self) -> Option<ProxyFile> {
        let scope = self.required("scope");
        let restapi = match self.tree.at("restapi") {
            Some(_) => self.restapi(),
            None => None,
        };
        let proxy = self.proxy_section();
        let has_members = proxy.as_ref().is_some_and(|proxy| !proxy.members.is_empty());
        let etcd3 = self.tree.at("etcd3").is_some().then(|| self.etcd()).flatten();
        if self.tree.at("etcd3").is_none() && !has_members {
            let text = "is required: the etcd members under etcd3.hosts; or pgherd.proxy.members, \
                        the REST interfaces of the cluster's members";
            self.error("etcd3", text);
        }
        if proxy.as_ref().is_none_or(|p| p.read_write.is_none() && p.read_only.is_none()) {
            self.error("pgherd.proxy", "read_write or read_only is required (host:port)");
        }
        Some(ProxyFile {
            scope: scope?,
            namespace: self.namespace(),
            etcd3,
            rest_client: self.rest_client(),
            proxy: proxy?,
            restapi,
            log: self.log(),
        })
    }

    pub(crate) fn error(&mut self, key: &str, text: impl Into<String>) {
        self.errors.push(Problem::new(self.tree.place_of(key), key, text));
    }

    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.tree.at(key).and_then(values::text)
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    pub(crate) fn boolean(&self, key: &str) -> Option<bool> {
        self.tree.at(key).and_then(values::boolean)
    }

    fn secret(&self, key: &str) -> Option<Secret> {
        self.text(key).map(Secret::new)
    }

    pub(crate) fn address(&self, key: &str) -> Option<HostPort> {
        HostPort::parse(&self.text(key)?, None)
    }

    fn lines(&self, key: &str) -> Option<Vec<String>> {
        self.tree.at(key).and_then(values::line_list)
    }

    /// A text that must be there and not be empty.
    fn required(&mut self, key: &str) -> Option<String> {
        let found = self.text(key).filter(|t| !t.trim().is_empty());
        if found.is_none() {
            self.error(key, "is required");
        }
        found
    }

    pub(crate) fn namespace(&self) -> String {
        self.text("namespace").unwrap_or_else(|| NAMESPACE_DEFAULT.to_owned())
    }

    fn log(&mut self) -> Log {
        let (log, wrong) = Log::read(&self.tree);
        for (key, text) in wrong {
            self.warnings.push(Problem::new(self.tree.place_of(key), key, text));
        }
        log
    }

    fn etcd(&mut self) -> Option<Etcd> {
        etcd::read(&self.tree, &mut self.errors)
    }

    fn restapi(&mut self) -> Option<Restapi> {
        let authentication = self.basic_auth("restapi.authentication");
        let (listen, connect_address) = self.listener("restapi")?;
        let certificate = self.certificate("restapi.certfile", "restapi.keyfile");
        let verify_client = match self.text("restapi.verify_client").as_deref() {
            Some("optional") => VerifyClient::Optional,
            Some("required") => VerifyClient::Required,
            Some(_) | None => VerifyClient::None,
        };
        let cafile = self.path("restapi.cafile");
        let extras = RestapiExtras::read(&self.tree, certificate.is_some(), &mut self.errors);
        Some(Restapi {
            listen,
            connect_address,
            authentication,
            certificate,
            cafile,
            verify_client,
            extras,
        })
    }

    fn certificate(&mut self, certfile: &str, keyfile: &str) -> Option<CertificateFiles> {
        CertificateFiles::read(&self.tree, certfile, keyfile, &mut self.errors)
    }

    fn rest_client(&mut self) -> RestClient {
        RestClient {
            cacert: self.path("ctl.cacert").or_else(|| self.path("restapi.cafile")),
            certificate: self.certificate("ctl.certfile", "ctl.keyfile"),
            insecure: self.boolean("ctl.insecure").unwrap_or(false),
        }
    }

    /// `listen` and `connect_address` of a section.
    fn listener(&mut self, section: &str) -> Option<(HostPort, HostPort)> {
        let key = format!("{section}.listen");
        self.required(&key)?;
        let listen = self.address(&key)?;
        let connect_key = format!("{section}.connect_address");
        match self.address(&connect_key) {
            Some(address) if address.is_wildcard() => {
                self.error(&connect_key, "must be an address that others can connect to");
                None
            }
            Some(address) => Some((listen, address)),
            None if listen.is_wildcard() => {
                self.error(&connect_key, "is required when listen stands for all addresses");
                None
            }
            None => {
                let host = (*listen.hosts().first()?).to_owned();
                let port = listen.port;
                Some((listen, HostPort { host, port }))
            }
        }
    }

    fn basic_auth(&mut self, section: &str) -> Option<BasicAuth> {
        let username = self.text(&format!("{section}.username"));
        let password = self.secret(&format!("{section}.password"));
        match (username, password) {
            (Some(username), Some(password)) => Some(BasicAuth { username, password }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                self.error(section, "username and password must be given together");
                None
            }
        }
    }

    /// Modes and their aliases as Patroni reads them; `off` may have become a boolean.
    fn watchdog(&mut self) -> Watchdog {
        let mode = self.text("watchdog.mode").map(|mode| mode.to_ascii_lowercase());
        let mode = match mode.as_deref() {
            None | Some("auto" | "automatic") => WatchdogMode::Automatic,
            Some("require" | "required") => WatchdogMode::Required,
            Some("off" | "false" | "disable" | "disabled") => WatchdogMode::Off,
            Some(other) => {
                let text = format!(
                    "is one of off, automatic, required; {other:?} is taken for off, as Patroni \
                     does"
                );
                let at = self.tree.place_of("watchdog.mode");
                self.warnings.push(Problem::new(at, "watchdog.mode", text));
                WatchdogMode::Off
            }
        };
        let driver = match self.text("watchdog.driver").as_deref() {
            None | Some("default") => WatchdogDriver::Default,
            Some("testing") => WatchdogDriver::Testing,
            Some(_) => {
                self.error("watchdog.driver", "must be default or testing");
                WatchdogDriver::Default
            }
        };
        let safety_margin = self.tree.at("watchdog.safety_margin").and_then(values::integer);
        if safety_margin.is_some_and(|margin| margin < -1) {
            self.error("watchdog.safety_margin", "must be seconds, or -1 for half of ttl");
        }
        Watchdog {
            mode,
            device: self.path("watchdog.device").unwrap_or_else(|| WATCHDOG_DEFAULT.into()),
            safety_margin: safety_margin.unwrap_or(WATCHDOG_MARGIN_DEFAULT),
            driver,
            played: mode != WatchdogMode::Off
                && driver == WatchdogDriver::Testing
                && self.tree.at("pgherd").is_none(),
        }
    }

    fn tags(&mut self) -> Tags {
        let mut object = Map::new();
        let Some(node) = self.tree.at("tags").cloned() else { return Tags::default() };
        if !matches!(node.kind, Kind::Map(_)) {
            self.error("tags", "must be a mapping of tags");
        }
        for entry in node.entries().iter().filter(|e| e.node.kind != Kind::Null) {
            let value = match entry.key.as_str() {
                // Published as they stand, so only their types are looked at.
                "nofailover" | "nosync" | "noloadbalance" | "clonefrom" | "nostream" => {
                    values::boolean(&entry.node).map(|_| entry.node.to_json())
                }
                "failover_priority" | "sync_priority" => {
                    values::integer(&entry.node).map(|_| entry.node.to_json())
                }
                "replicatefrom" => values::text(&entry.node).map(Value::String),
                _ => Some(entry.node.to_json()),
            };
            match value {
                Some(value) => {
                    object.insert(entry.key.clone(), value);
                }
                None => self.error(&format!("tags.{}", entry.key), "has a value of another type"),
            }
        }
        let tags = Tags::from(Value::Object(object));
        for text in tags.conflicts() {
            self.warnings.push(Problem::new(node.at, "tags", text));
        }
        tags
    }

    fn bootstrap(&mut self) -> Bootstrap {
        let dcs = self.tree.at("bootstrap.dcs").cloned();
        let below = |problem: Problem| {
            let key = format!("bootstrap.dcs.{}", problem.key);
            let key = key.trim_end_matches('.').to_owned();
            let at = self.tree.place_of(&key);
            Problem { key, at, ..problem }
        };
        match dcs.as_ref().map(Dynamic::from_tree) {
            None => {}
            Some(Ok((_, warnings))) => {
                let warnings: Vec<Warning> = warnings.into_iter().map(below).collect();
                self.warnings.extend(warnings);
            }
            Some(Err(problems)) => {
                let problems: Vec<Problem> = problems.into_iter().map(below).collect();
                self.errors.extend(problems);
            }
        }
        let custom = hooks::custom_bootstrap(&self.tree, &mut self.errors);
        let method = self.text("bootstrap.method").filter(|method| method != "initdb");
        if let Some(method) = method.filter(|_| custom.is_none()) {
            let text =
                format!("bootstrap.{method} has no command; initdb is used, as Patroni does");
            let at = self.tree.place_of("bootstrap.method");
            self.warnings.push(Problem::new(at, "bootstrap.method", text));
        }
        let post = ["bootstrap.post_bootstrap", "bootstrap.post_init"];
        let post_bootstrap =
            post.iter().find_map(|key| hooks::command(&self.tree, key, &mut self.errors));
        Bootstrap {
            custom,
            post_bootstrap,
            dcs: dcs.map_or_else(|| Value::Object(Map::new()), |node| node.to_json()),
            initdb: self.tree.at("bootstrap.initdb").and_then(values::options).unwrap_or_default(),
            pg_hba: self.lines("bootstrap.pg_hba"),
        }
    }

    fn postgresql(&mut self) -> Option<PostgresqlSection> {
        let addresses = self.listener("postgresql");
        let data_dir = self.required("postgresql.data_dir").map(PathBuf::from);
        if data_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            self.error("postgresql.data_dir", "must be an absolute path");
        }
        let (config_dir, config_base_name) = self.config_files();
        let authentication = self.authentication();
        let (listen, connect_address) = addresses?;
        let hooks = Hooks::read(&self.tree, &mut self.errors);
        let database = self.text("postgresql.database");
        Some(PostgresqlSection {
            listen,
            connect_address,
            proxy_address: self.address("postgresql.proxy_address"),
            data_dir: data_dir?,
            config_dir,
            config_base_name,
            bin_name: self.bin_names(),
            bin_dir: self.path("postgresql.bin_dir").filter(|p| !p.as_os_str().is_empty()),
            database: database.unwrap_or_else(|| "postgres".to_owned()),
            pgpass: self.path("postgresql.pgpass"),
            authentication: authentication?,
            parameters: parameters(&self.tree, "postgresql.parameters"),
            pg_hba: self.lines("postgresql.pg_hba"),
            pg_ident: self.lines("postgresql.pg_ident"),
            hooks,
            use_pg_rewind: self.boolean("postgresql.use_pg_rewind"),
            remove_data_directory_on_rewind_failure: self
                .boolean("postgresql.remove_data_directory_on_rewind_failure"),
            remove_data_directory_on_diverged_timelines: self
                .boolean("postgresql.remove_data_directory_on_diverged_timelines"),
        })
    }

    /// Where the configuration files are, and what the main one is called.
    fn config_files(&mut self) -> (Option<PathBuf>, String) {
        let dir = self.path("postgresql.config_dir").filter(|dir| !dir.as_os_str().is_empty());
        if dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            self.error("postgresql.config_dir", "must be an absolute path");
        }
        let name = self.text("postgresql.config_base_name");
        let name = name.unwrap_or_else(|| CONFIG_BASE_NAME_DEFAULT.to_owned());
        if name.is_empty() || name.contains('/') {
            self.error("postgresql.config_base_name", "must be a name without slashes");
        }
        (dir, name)
    }

    /// The programs that have another name.
    fn bin_names(&mut self) -> BTreeMap<&'static str, String> {
        let mut names = BTreeMap::new();
        for program in PROGRAMS {
            let key = format!("postgresql.bin_name.{program}");
            let Some(name) = self.text(&key).filter(|name| !name.is_empty()) else { continue };
            if name.contains('/') {
                self.error(&key, "must be a name without slashes; the directory is bin_dir");
            }
            names.insert(program, name);
        }
        names
    }

    fn authentication(&mut self) -> Option<Authentication> {
        let role = |reader: &Reader, role: &str| {
            let key = |name: &str| format!("postgresql.authentication.{role}.{name}");
            let given = |name: &&'static str| Some((*name, reader.text(&key(name))?));
            Credentials {
                username: reader.text(&key("username")).unwrap_or_default(),
                password: reader.secret(&key("password")),
                connection: CONNECTION_KEYS.iter().filter_map(given).collect(),
                sslpassword: reader.secret(&key("sslpassword")),
            }
        };
        let mut superuser = role(self, "superuser");
        if superuser.username.is_empty() {
            "postgres".clone_into(&mut superuser.username);
        }
        self.required("postgresql.authentication.replication.username")?;
        let replication = role(self, "replication");
        let rewind = Some(role(self, "rewind")).filter(|r| !r.username.is_empty());
        Some(Authentication { superuser, replication, rewind })
    }

    fn pgherd(&mut self, data_dir: &std::path::Path) -> Option<PgherdSection> {
        let state_dir =
            self.path("pgherd.state_dir").unwrap_or_else(|| Static::default_state_dir(data_dir));
        if !state_dir.is_absolute() {
            self.error("pgherd.state_dir", "must be an absolute path");
        }
        // pg_rewind and a new copy rewrite the data directory; the state has to outlive that.
        if state_dir.starts_with(data_dir) {
            self.error("pgherd.state_dir", "must not be inside postgresql.data_dir");
        }
        let peers_secret_file = self.path("pgherd.peers.secret_file");
        if peers_secret_file.as_ref().is_some_and(|file| !file.is_absolute()) {
            self.error("pgherd.peers.secret_file", "must be an absolute path");
        }
        let margin = self.tree.at("pgherd.stop_margin").and_then(values::duration);
        Some(PgherdSection {
            declared: self.tree.at("pgherd").is_some(),
            state_dir,
            os_user: self.text("pgherd.os_user").unwrap_or_else(|| "postgres".to_owned()),
            peers_secret_file,
            stop_margin: margin,
            proxy: self.proxy_section(),
        })
    }
}

#[cfg(test)]
#[path = "static_tests.rs"]
mod tests;
