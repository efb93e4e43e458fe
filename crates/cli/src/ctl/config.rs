//! What the commands need from a configuration file: a complete node file or patronictl's own.

use std::path::{Path, PathBuf};

use anyhow::Context;
use api::RestClient;
use config::{CertificateFiles, Sources};
use serde_json::Value;
use types::Millis;

/// The variables that stand in for the options.
const CONFIG_FILE_VARIABLE: &str = "PATRONICTL_CONFIG_FILE";
const DCS_URL_VARIABLE: &str = "DCS_URL";

/// Below the home directory; silently optional.
const DEFAULT_FILE: &str = ".config/patroni/patronictl.yaml";

/// Patroni's default of `retry_timeout`; bounds every operation of a command.
const RETRY_TIMEOUT: Millis = Millis::from_secs(10);

/// Ports without one.
const ETCD_PORT: u16 = 2379;

/// The options that every command has.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct CtlOptions {
    /// Configuration file
    #[arg(short = 'c', long, value_name = "FILE", global = true)]
    pub(crate) config_file: Option<PathBuf>,
    /// Where the DCS is (before the command, as with patronictl):
    /// HOST:PORT[,HOST:PORT…][/NAMESPACE], instead of the file's
    #[arg(short = 'd', long, visible_alias = "dcs", value_name = "URL")]
    pub(crate) dcs_url: Option<String>,
    /// Do not check the members' certificates (with ctl.certfile: not the host in them)
    #[arg(short = 'k', long)]
    pub(crate) insecure: bool,
}

/// Where the cluster's DCS is, and how to be let in.
#[derive(Clone)]
pub(crate) struct CtlConfig {
    /// `scope`, if the file has one.
    pub(crate) scope: Option<String>,
    /// `namespace`.
    pub(crate) namespace: String,
    /// `host:port` of each etcd member.
    pub(crate) endpoints: Vec<String>,
    /// etcd's user.
    pub(crate) username: Option<String>,
    /// etcd's password.
    pub(crate) password: Option<String>,
    /// How TLS is spoken to etcd, if it is.
    pub(crate) etcd_tls: Option<tls::ClientSettings>,
    /// How the members' REST is reached.
    pub(crate) rest: RestClient,
    /// What it is reached with, by the file.
    rest_files: config::RestClient,
    /// User and password of the members' REST.
    pub(crate) rest_credentials: Option<(String, String)>,
    /// Upper bound of one operation on the DCS.
    pub(crate) retry_timeout: Millis,
    /// The state directory of the agent whose file this is.
    pub(crate) state_dir: Option<PathBuf>,
}

impl Default for CtlConfig {
    fn default() -> CtlConfig {
        CtlConfig {
            scope: None,
            namespace: "service".to_owned(),
            endpoints: Vec::new(),
            username: None,
            password: None,
            etcd_tls: None,
            rest: RestClient::default(),
            rest_files: config::RestClient::default(),
            rest_credentials: None,
            retry_timeout: RETRY_TIMEOUT,
            state_dir: None,
        }
    }
}

impl std::fmt::Debug for CtlConfig {
    /// Without passwords (I6).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CtlConfig")
            .field("scope", &self.scope)
            .field("namespace", &self.namespace)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl CtlOptions {
    /// Reads the file or directory, if one is named or stands at the default place, with the
    /// environment over it, and applies `-d`.
    ///
    /// # Errors
    /// A file cannot be read or is no YAML mapping; an address in it is malformed.
    pub(crate) fn load(&self) -> anyhow::Result<CtlConfig> {
        let named = self.config_file.clone().or_else(|| variable(CONFIG_FILE_VARIABLE));
        let mut config = match &named {
            Some(path) => {
                // Whoever names a file means it: the environment alone is not enough.
                let there = std::fs::metadata(path).map_err(anyhow::Error::from);
                let sources =
                    there.and_then(|_| Ok(agent::gather(Some(path))?)).with_context(|| {
                        format!(
                            "Provided config file {} not existing or no read rights. \
                         Check the -c/--config-file parameter",
                            path.display()
                        )
                    })?;
                CtlConfig::of(&sources)?
            }
            None => default_config()?,
        };
        let url =
            variable(DCS_URL_VARIABLE).and_then(|v: PathBuf| v.into_os_string().into_string().ok());
        if let Some(url) = self.dcs_url.clone().or(url) {
            config.replace_dcs(&url)?;
        }
        let insecure = self.insecure || config.rest_files.insecure;
        config.rest = RestClient::new(agent::rest_client(&config.rest_files, insecure));
        Ok(config)
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn default_config() -> anyhow::Result<CtlConfig> {
    let path = variable("HOME").map(|home| home.join(DEFAULT_FILE));
    // It is optional, and a file of a home that is not ours is none.
    let sources = path.and_then(|path| agent::gather(Some(&path)).ok());
    match sources.or_else(|| agent::gather(None).ok()) {
        Some(sources) => CtlConfig::of(&sources),
        None => Ok(CtlConfig::default()),
    }
}

impl CtlConfig {
    /// Takes the few keys that the commands need; the agent checks the rest.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub(crate) fn of(sources: &Sources) -> anyhow::Result<CtlConfig> {
        let file = sources.to_spelled_json()?;
        let text_at = |path: &str| file.pointer(path).and_then(plain_text);
        let pair = |section: &str| {
            let user = text_at(&format!("{section}/authentication/username"))?;
            Some((user, text_at(&format!("{section}/authentication/password"))?))
        };
        let data_dir = text_at("/postgresql/data_dir");
        let beside = data_dir.map(|d| config::Static::default_state_dir(Path::new(&d)));
        let default = CtlConfig::default();
        let certificate = |section: &str, certfile: &str, keyfile: &str| {
            Some(CertificateFiles {
                certfile: text_at(&format!("/{section}/{certfile}"))?.into(),
                keyfile: text_at(&format!("/{section}/{keyfile}")).map(PathBuf::from),
                keyfile_password: text_at(&format!("/{section}/{keyfile}_password"))
                    .map(config::Secret::new),
            })
        };
        let path_at = |path: &str| text_at(path).map(PathBuf::from);
        let etcd = config::Etcd::of(sources)?;
        let endpoints = etcd.iter().flat_map(|etcd| &etcd.endpoints);
        Ok(CtlConfig {
            scope: text_at("/scope"),
            namespace: text_at("/namespace").unwrap_or(default.namespace),
            endpoints: endpoints.map(ToString::to_string).collect(),
            username: etcd.as_ref().and_then(|etcd| etcd.username.clone()),
            password: etcd
                .as_ref()
                .and_then(|etcd| Some(etcd.password.as_ref()?.expose().to_owned())),
            etcd_tls: etcd.as_ref().and_then(agent::etcd_client),
            rest: RestClient::default(),
            rest_files: config::RestClient {
                cacert: path_at("/ctl/cacert").or_else(|| path_at("/restapi/cafile")),
                certificate: certificate("ctl", "certfile", "keyfile"),
                insecure: truth(text_at("/ctl/insecure").as_deref()),
            },
            rest_credentials: pair("/ctl").or_else(|| pair("/restapi")),
            retry_timeout: RETRY_TIMEOUT,
            state_dir: text_at("/pgherd/state_dir").map(PathBuf::from).or(beside),
        })
    }

    /// `-d`: replaces every DCS setting of the file.
    ///
    /// # Errors
    /// Another scheme than etcd's, or no host.
    pub(crate) fn replace_dcs(&mut self, url: &str) -> anyhow::Result<()> {
        let rest = match url.split_once("://") {
            Some(("etcd3" | "etcd" | "http" | "https", rest)) => rest,
            Some((scheme @ ("consul" | "exhibitor" | "zookeeper"), _)) => {
                anyhow::bail!("-d {url}: {scheme} is not supported, use etcd3")
            }
            Some((scheme, _)) => anyhow::bail!("Unknown dcs scheme: {scheme}"),
            None => url,
        };
        let (hosts, namespace) = rest.split_once('/').unwrap_or((rest, ""));
        // As patronictl has it, a host that is left out is this one.
        let local = hosts.is_empty() || hosts.starts_with(':');
        self.endpoints =
            split_hosts(&if local { format!("localhost{hosts}") } else { hosts.into() });
        anyhow::ensure!(!self.endpoints.is_empty(), "-d {url}: HOST:PORT is expected");
        (self.username, self.password) = (None, None);
        let https = url.starts_with("https://");
        self.etcd_tls = https.then(tls::ClientSettings::default);
        if !namespace.is_empty() {
            self.namespace = namespace.to_owned();
        }
        Ok(())
    }

    /// The cluster named on the command line, else the file's.
    ///
    /// # Errors
    /// Neither is there.
    pub(crate) fn scope_or<'a>(&'a self, named: Option<&'a str>) -> anyhow::Result<&'a str> {
        named
            .or(self.scope.as_deref())
            .context("no cluster name is known; give CLUSTER_NAME, or -c FILE with a scope")
    }

    /// User and password for the members' REST.
    #[must_use]
    pub(crate) fn auth(&self) -> Option<(&str, &str)> {
        self.rest_credentials.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }
}

/// A switch of the file, in YAML's and Patroni's words.
fn truth(text: Option<&str>) -> bool {
    text.is_some_and(|text| {
        ["true", "on", "yes", "1"].iter().any(|word| text.eq_ignore_ascii_case(word))
    })
}

fn split_hosts(text: &str) -> Vec<String> {
    let hosts = text.split(',').map(|h| h.trim().trim_end_matches('/'));
    hosts.filter(|h| !h.is_empty()).map(with_port).collect()
}

fn with_port(host: &str) -> String {
    let after_brackets = host.rsplit_once(']').map_or(host, |(_, tail)| tail);
    let complete = after_brackets.contains(':');
    if complete { host.to_owned() } else { format!("{host}:{ETCD_PORT}") }
}

fn plain_text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<CtlConfig> {
        CtlConfig::of(&Sources::default().with_file("x.yml", text))
    }

    #[test]
    fn a_node_file_is_enough() {
        let config = parse(
            "scope: demo\nnamespace: /ns/\nname: a\netcd3:\n  hosts: [h1:1, 'h2:2', h3]\n\
             restapi:\n  authentication: {username: u, password: hush}\n\
             postgresql:\n  data_dir: /data/a/\nunknown: {}\n",
        )
        .expect("valid");
        assert_eq!(config.scope.as_deref(), Some("demo"));
        assert_eq!(config.endpoints, ["h1:1", "h2:2", "h3:2379"]);
        assert_eq!(config.auth(), Some(("u", "hush")));
        assert_eq!(config.state_dir, Some(PathBuf::from("/data/a.pgherd")));
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn the_ctl_section_goes_before_restapi() {
        let text = "ctl: {authentication: {username: c, password: 7}}\n\
                    restapi: {authentication: {username: r, password: x}}\n\
                    pgherd: {state_dir: /s}\netcd3: {host: h, port: 9}\n";
        let config = parse(text).expect("valid");
        assert_eq!(config.auth(), Some(("c", "7")));
        assert_eq!(config.endpoints, ["h:9"]);
        assert_eq!(config.state_dir, Some(PathBuf::from("/s")));
        assert!(config.scope_or(None).is_err());
        assert_eq!(config.scope_or(Some("x")).expect("named"), "x");
    }

    #[test]
    fn hosts_in_every_form() {
        let check = |text: &str| parse(text).map(|c| c.endpoints).map_err(|e| e.to_string());
        assert_eq!(check("etcd3: {hosts: 'a:1, b'}"), Ok(vec!["a:1".into(), "b:2379".into()]));
        assert_eq!(check("etcd3: {host: '[::1]'}"), Ok(vec!["[::1]:2379".into()]));
        assert_eq!(check("etcd3: {url: 'http://h:1/'}"), Ok(vec!["h:1".into()]));
        assert_eq!(check(""), Ok(vec![]));
        assert!(check("etcd3: {}").is_err());
        assert!(check("- a").is_err());
        assert!(check("a: [").is_err());
    }

    #[test]
    fn the_dcs_option_replaces_the_file() {
        let mut config = CtlConfig { username: Some("u".into()), ..CtlConfig::default() };
        config.replace_dcs("etcd3://h:1,i:2/ns").expect("valid");
        assert_eq!(config.endpoints, ["h:1", "i:2"]);
        assert_eq!((config.namespace.as_str(), config.username), ("ns", None));
        let mut config = CtlConfig::default();
        config.replace_dcs("h").expect("valid");
        assert_eq!(
            (config.endpoints[0].as_str(), config.namespace.as_str()),
            ("h:2379", "service")
        );
        assert!(config.replace_dcs("consul://h:1").is_err());
        config.replace_dcs("etcd3://:2399/x").expect("valid");
        assert_eq!(
            (config.endpoints[0].as_str(), config.namespace.as_str()),
            ("localhost:2399", "x")
        );
        config.replace_dcs("/ns").expect("valid");
        assert_eq!(config.endpoints, ["localhost:2379"]);
        let unknown = config.replace_dcs("nosuch://h").expect_err("unknown").to_string();
        assert_eq!(unknown, "Unknown dcs scheme: nosuch");
    }
}
