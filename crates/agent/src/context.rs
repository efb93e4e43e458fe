//! What the executing tasks share.

use std::sync::{Arc, Mutex, PoisonError};

use api::RestClient;
use dcs::{ClusterStore, Session};
use postgres::{Instance, OsUser};
use tokio::sync::watch;
use types::{Compared, Health, LocalPostgres, MemberName, Millis};

use crate::clock;
use crate::guarding::Guard;
use crate::recorded::Recorded;
use crate::state::StateDir;
use crate::watchdog::Timing;

/// Everything that an action needs; each part is used by one lane, or guards itself.
pub(crate) struct Context<I> {
    pub(crate) name: MemberName,
    pub(crate) instance: I,
    pub(crate) store: ClusterStore,
    pub(crate) session: Session,
    pub(crate) guard: Guard,
    pub(crate) initial_config: serde_json::Value,
    /// User and password of the other members' REST interfaces: ours.
    pub(crate) rest_credentials: Option<(String, String)>,
    rest: watch::Receiver<RestClient>,
    /// The durable state.
    pub(crate) recorded: Recorded,
    compared: Mutex<Option<Compared>>,
    settings: Mutex<Limits>,
    hooks: Mutex<config::Hooks>,
    /// Whom the operator's commands run as.
    pub(crate) os_user: Option<OsUser>,
    /// Wakes the observer.
    pub(crate) look_again: Arc<tokio::sync::Notify>,
}

/// `pg_ctl_timeout` where nobody sets it (as Patroni has it).
const PG_CTL_TIMEOUT: Millis = Millis(60_000);

/// Time limits that follow the dynamic configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) ttl: Millis,
    pub(crate) loop_wait: Millis,
    pub(crate) stop_margin: Millis,
    pub(crate) retry_timeout: Millis,
    pub(crate) primary_start_timeout: Millis,
    pub(crate) pg_ctl_timeout: Millis,
    /// How many entries of the history are kept; 0 for all.
    pub(crate) history_max: usize,
}

impl Limits {
    /// The limits that a dynamic configuration asks for.
    pub(crate) fn of(dynamic: &config::Dynamic) -> Limits {
        Limits {
            ttl: dynamic.ttl,
            loop_wait: dynamic.loop_wait,
            stop_margin: dynamic.pgherd.stop_margin,
            retry_timeout: dynamic.retry_timeout,
            primary_start_timeout: dynamic.primary_start_timeout,
            pg_ctl_timeout: dynamic.postgresql.hooks.pg_ctl_timeout.unwrap_or(PG_CTL_TIMEOUT),
            history_max: dynamic.max_timelines_history,
        }
    }

    /// The times that the watchdog device follows.
    pub(crate) fn timing(self) -> Timing {
        Timing { ttl: self.ttl, loop_wait: self.loop_wait, stop_margin: self.stop_margin }
    }
}

/// What a context is made of.
pub(crate) struct ContextParts<I> {
    pub(crate) name: MemberName,
    pub(crate) instance: I,
    pub(crate) store: ClusterStore,
    pub(crate) session: Session,
    pub(crate) guard: Guard,
    pub(crate) initial_config: serde_json::Value,
    pub(crate) rest_credentials: Option<(String, String)>,
    pub(crate) rest: watch::Receiver<RestClient>,
    pub(crate) state: StateDir,
    pub(crate) limits: Limits,
    pub(crate) hooks: config::Hooks,
    pub(crate) os_user: Option<OsUser>,
}

impl<I: Instance> Context<I> {
    pub(crate) fn new(parts: ContextParts<I>) -> Arc<Context<I>> {
        Arc::new(Context {
            name: parts.name,
            instance: parts.instance,
            store: parts.store,
            session: parts.session,
            guard: parts.guard,
            initial_config: parts.initial_config,
            rest_credentials: parts.rest_credentials,
            rest: parts.rest,
            recorded: Recorded::new(parts.state),
            compared: Mutex::new(None),
            settings: Mutex::new(parts.limits),
            hooks: Mutex::new(parts.hooks),
            os_user: parts.os_user,
            look_again: Arc::default(),
        })
    }

    /// How the other members' REST interfaces are reached.
    pub(crate) fn rest(&self) -> RestClient {
        self.rest.borrow().clone()
    }

    pub(crate) fn limits(&self) -> Limits {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        self.guard.set_timing(limits.timing());
    }

    /// The operator's commands.
    pub(crate) fn hooks(&self) -> config::Hooks {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_hooks(&self, hooks: &config::Hooks) {
        hooks.clone_into(&mut self.hooks.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn set_compared(&self, compared: Option<Compared>) {
        *self.compared.lock().unwrap_or_else(PoisonError::into_inner) = compared;
    }

    /// One complete observation.
    pub(crate) async fn observe(&self) -> LocalPostgres {
        let at = clock::now();
        let observed = self.instance.observe().await;
        let watchdog = self.guard.watchdog_trouble().await;
        let durable = self.recorded.of(&observed.data_dir).await;
        let compared = self.compared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        LocalPostgres {
            at,
            data_dir: observed.data_dir,
            process: observed.process,
            health: Health { watchdog, ..observed.health },
            durable,
            compared,
        }
    }
}
