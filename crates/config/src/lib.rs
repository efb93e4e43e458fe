//! Configuration: the static file of a node or proxy (Patroni's format and our `pgherd:` section),
//! and the dynamic configuration of a cluster (Patroni's `config` key).
//!
//! Pure: texts, variables and JSON come in, values or complete lists of problems go out. Reading
//! them and the decision whether warnings count (`--strict`) are the caller's. One table of known
//! keys ([`reference()`] prints it) drives both the checks and the documentation; another one maps
//! Patroni's variables to keys.
#![forbid(unsafe_code)]

mod check;
mod dynamic;
mod environment;
mod etcd;
mod generate;
mod hooks;
mod keys;
mod log;
mod parameters;
mod problem;
mod proxy_auth;
mod proxy_clusters;
mod proxy_http;
mod proxy_limits;
mod proxy_rules;
mod proxy_section;
mod recommended;
mod reference;
mod restapi;
mod roles;
mod sections;
mod slots;
mod sources;
mod standby_cluster;
mod static_file;
mod text;
mod tree;
mod values;

pub use dynamic::{
    Dynamic, DynamicPgherd, DynamicPostgresql, FailoverMode, HEARTBEAT_INTERVAL_MAX,
    HEARTBEAT_INTERVAL_MIN, SynchronousMode,
};
pub use generate::{FIXME, Host, Running, Template};
pub use hooks::{Callback, CommandLine, CustomBootstrap, CustomMethod, Hooks, ReplicaMethod};
pub use keys::CONNECTION_KEYS;
pub use log::{Log, LogLevel, LogPiece, LogShape};
pub use parameters::{CONTROLLED, effective_parameters};
pub use problem::{ConfigError, Problem, Warning};
pub use proxy_auth::{
    AuthMethod, AuthQuery, ClientTls, ClientTlsMode, ProxyAuth, ProxyProtocol, ProxySecurity,
    ServerTls, ServerTlsMode,
};
pub use proxy_clusters::{ProxyCluster, ProxyDatabase, ProxyDatabases};
pub use proxy_http::{HttpUser, ProxyHttp};
pub use proxy_limits::ProxyLimits;
pub use proxy_rules::{Arrival, Decision, RuleError, Rules};
pub use proxy_section::{PoolMode, ProxySection, SessionState};
pub use recommended::{recommended_dynamic, recommended_with_ttl};
pub use reference::reference;
pub use restapi::{Allowed, Network, RestapiExtras, ServerTokens};
pub use roles::{ByRole, NodeRole, RoleSettings};
pub use sections::{
    Authentication, BasicAuth, Bootstrap, CertificateFiles, Credentials, Etcd, PgherdSection,
    PostgresqlSection, ProgramOption, RestClient, Restapi, VerifyClient, Watchdog, WatchdogDriver,
    WatchdogMode,
};
pub use slots::{ClusterType, IgnoredSlot, PermanentSlot};
pub use sources::Sources;
pub use standby_cluster::StandbyCluster;
pub use static_file::{ProxyFile, Static};
pub use text::{HostPort, Secret};
