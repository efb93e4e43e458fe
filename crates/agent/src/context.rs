//! What the executing tasks share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dcs::{ClusterStore, Session};
use postgres::Instance;
use types::{Compared, LocalPostgres, MemberName, Millis};

use crate::clock;
use crate::guarding::Guard;
use crate::state::StateDir;

/// Everything that an action needs; each part is used by one lane, or guards itself.
pub(crate) struct Context<I> {
    pub(crate) name: MemberName,
    pub(crate) instance: I,
    pub(crate) store: ClusterStore,
    pub(crate) session: Session,
    pub(crate) guard: Guard,
    pub(crate) initial_config: serde_json::Value,
    state: Mutex<StateDir>,
    compared: Mutex<Option<Compared>>,
    settings: Mutex<Limits>,
    /// Wakes the observer.
    pub(crate) look_again: tokio::sync::Notify,
}

/// Time limits that follow the dynamic configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) loop_wait: Millis,
    pub(crate) retry_timeout: Millis,
    pub(crate) primary_start_timeout: Millis,
    /// How many entries of the history are kept; 0 for all.
    pub(crate) history_max: usize,
}

impl Limits {
    /// The limits that a dynamic configuration asks for.
    pub(crate) fn of(dynamic: &config::Dynamic) -> Limits {
        Limits {
            loop_wait: dynamic.loop_wait,
            retry_timeout: dynamic.retry_timeout,
            primary_start_timeout: dynamic.primary_start_timeout,
            history_max: dynamic.max_timelines_history,
        }
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
    pub(crate) state: StateDir,
    pub(crate) limits: Limits,
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
            state: Mutex::new(parts.state),
            compared: Mutex::new(None),
            settings: Mutex::new(parts.limits),
            look_again: tokio::sync::Notify::new(),
        })
    }

    /// The durable state. Held only for a moment, never across an await.
    pub(crate) fn state(&self) -> MutexGuard<'_, StateDir> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self) -> Limits {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    pub(crate) fn set_compared(&self, compared: Option<Compared>) {
        *self.compared.lock().unwrap_or_else(PoisonError::into_inner) = compared;
    }

    /// One complete observation.
    pub(crate) async fn observe(&self) -> LocalPostgres {
        let at = clock::now();
        let observed = self.instance.observe().await;
        let durable = self.state().durable().clone();
        let compared = self.compared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        LocalPostgres {
            at,
            data_dir: observed.data_dir,
            process: observed.process,
            health: observed.health,
            durable,
            compared,
        }
    }
}
