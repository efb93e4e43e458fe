//! The task that owns the router.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use route::{Action, ClientId, Event, Port, Router, Target};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use types::{ClusterView, Millis, Revision};

use crate::cancel::CancelKeys;
use crate::client::{Client, Command};
use crate::config::ProxyConfig;
use crate::lowering::Lowering;
use crate::words::Ending;
use crate::{Status, ViewSource};

/// Events of clients that wait to be taken; the clients wait when it is full.
const EVENTS_MAX: usize = 1024;
/// Events taken before the other sources are looked at again.
const EVENTS_BATCH: usize = 256;
/// Accepted sockets that wait for their task.
const ACCEPTED_MAX: usize = 64;
/// Connections beyond the limit of clients: cancel requests, and clients to be told of the limit.
const CONNECTIONS_BEYOND_LIMIT: usize = 64;
/// After a failed accept (no file descriptors left, mostly).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long clients may take to hear that the proxy stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

struct Accepted {
    socket: TcpStream,
    port: Port,
    permit: OwnedSemaphorePermit,
}

/// State of the core task.
pub(crate) struct Core {
    config: Arc<ProxyConfig>,
    router: Router,
    started: Instant,
    wake: Option<Instant>,
    view: Option<Arc<ClusterView>>,
    /// The revision of the dynamic configuration in force.
    configured: Option<Revision>,
    lowering: Arc<Lowering>,
    fresh: bool,
    route: Option<Target>,
    next_client: u64,
    commands: HashMap<ClientId, watch::Sender<Command>>,
    tasks: JoinSet<()>,
    clients_of_tasks: HashMap<task::Id, ClientId>,
    cancel_keys: CancelKeys,
    panics: u64,
    status: watch::Sender<Status>,
}

impl Core {
    pub(crate) fn new(config: ProxyConfig, status: watch::Sender<Status>) -> Core {
        Core {
            router: Router::new(config.router()),
            config: Arc::new(config),
            started: Instant::now(),
            wake: None,
            view: None,
            configured: None,
            lowering: Arc::default(),
            fresh: false,
            route: None,
            next_client: 1,
            commands: HashMap::new(),
            tasks: JoinSet::new(),
            clients_of_tasks: HashMap::new(),
            cancel_keys: CancelKeys::default(),
            panics: 0,
            status,
        }
    }

    /// Serves until `shutdown`.
    pub(crate) async fn run<V: ViewSource>(
        mut self,
        listeners: Vec<(Port, TcpListener)>,
        mut views: watch::Receiver<V>,
        shutdown: CancellationToken,
    ) {
        let (accepted_in, mut accepted) = mpsc::channel(ACCEPTED_MAX);
        let (events_in, mut events) = mpsc::channel(EVENTS_MAX);
        let connections_max = self.config.client_limit.saturating_add(CONNECTIONS_BEYOND_LIMIT);
        let permits = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
        // Dropping the set at the end ends the accept loops.
        let mut accept_loops = JoinSet::new();
        for (port, listener) in listeners {
            accept_loops.spawn(accept(port, listener, permits.clone(), accepted_in.clone()));
        }
        let lowering = self.lowering.clone();
        let mut batch = Vec::with_capacity(EVENTS_BATCH);
        let mut views_end = false;
        views.mark_changed();
        loop {
            self.publish();
            let wake = self.wake;
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = views.changed(), if !views_end => {
                    views_end = changed.is_err();
                    self.look(&*views.borrow_and_update(), views_end);
                }
                _ = events.recv_many(&mut batch, EVENTS_BATCH) => {
                    batch.drain(..).for_each(|event| self.step(event));
                }
                Some(accepted) = accepted.recv() => self.begin(accepted, &events_in),
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                () = lowering.counted.notified() => {}
                () = sleep_until(wake.unwrap_or(self.started)), if wake.is_some() => {
                    self.wake = None;
                    self.step(Event::Tick);
                }
            }
        }
        drop(accept_loops);
        self.stop(events).await;
    }

    fn step(&mut self, event: Event) {
        let elapsed = self.started.elapsed().as_millis();
        let now = Millis(u64::try_from(elapsed).unwrap_or(u64::MAX));
        for action in self.router.step(now, event) {
            match action {
                Action::Connect { client, attempt, target } => {
                    self.command(client, Command::Connect { attempt, target });
                }
                Action::Hold { client } => self.command(client, Command::Wait),
                Action::Refuse { client, refusal } => {
                    self.command(client, Command::Refuse(refusal));
                }
                Action::Cut { client, reason } => {
                    self.command(client, Command::End(Ending::Cut(reason)));
                }
                Action::WakeAt(when) => {
                    // Up to the next whole millisecond, so that the router finds its time come.
                    let when = self.started.checked_add(when.as_duration());
                    self.wake = when.and_then(|when| when.checked_add(Duration::from_micros(1)));
                }
            }
        }
    }

    fn command(&self, client: ClientId, command: Command) {
        if let Some(commands) = self.commands.get(&client) {
            commands.send_replace(command);
        }
    }

    /// Takes what the DCS shows.
    fn look(&mut self, source: &impl ViewSource, source_ended: bool) {
        let fresh = source.fresh() && !source_ended;
        if let Some(view) = source.view() {
            let known = self.view.as_ref().is_some_and(|known| Arc::ptr_eq(known, &view));
            if !known {
                self.view = Some(view.clone());
                self.configure(&view);
                self.step(Event::View(view));
            }
        }
        if fresh != self.fresh {
            self.fresh = fresh;
            tracing::info!(proxy = %self.config.name, fresh, "the view of the DCS");
            self.step(if fresh { Event::DcsBack } else { Event::DcsLost });
        }
    }

    /// Takes over what the dynamic configuration says to proxies; one that is not valid leaves the
    /// last one in force.
    fn configure(&mut self, view: &ClusterView) {
        let Some(config) = &view.config else {
            return;
        };
        if self.configured == Some(config.mod_revision) {
            return;
        }
        self.configured = Some(config.mod_revision);
        match ::config::Dynamic::from_json(&config.value) {
            Ok((dynamic, _)) => self.lowering.set_refuse(dynamic.pgherd.refuse_lowered_commit),
            Err(problems) => tracing::warn!(?problems, "the dynamic configuration is not valid"),
        }
    }

    fn begin(&mut self, accepted: Accepted, events: &mpsc::Sender<Event>) {
        let id = ClientId(self.next_client);
        self.next_client += 1;
        let (commands, receiver) = watch::channel(Command::Wait);
        let client = Client {
            id,
            port: accepted.port,
            config: self.config.clone(),
            events: events.clone(),
            cancel_keys: self.cancel_keys.clone(),
            lowering: self.lowering.clone(),
        };
        self.commands.insert(id, commands);
        let Accepted { socket, permit, .. } = accepted;
        let task = self.tasks.spawn(async move {
            client.serve(socket, receiver).await;
            drop(permit);
        });
        self.clients_of_tasks.insert(task.id(), id);
    }

    fn ended(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(error) => error.id(),
        };
        let Some(client) = self.clients_of_tasks.remove(&task) else {
            return;
        };
        if ended.is_err_and(|error| error.is_panic()) {
            self.panics += 1;
            tracing::error!(%client, "a client's task panicked; its connection is closed");
        }
        self.commands.remove(&client);
        self.step(Event::ClientGone { client });
    }

    fn publish(&mut self) {
        let routes = self.router.snapshot();
        if routes.read_write != self.route {
            match (&routes.read_write, &routes.awaiting) {
                (Some(to), _) => {
                    let term = routes.term;
                    tracing::info!(member = %to.member, %term, "the read-write route is open");
                }
                (None, why) => tracing::info!(why, "the read-write route is closed"),
            }
            self.route.clone_from(&routes.read_write);
        }
        let status = Status {
            name: self.config.name.clone(),
            clients: self.commands.len(),
            panics: self.panics,
            lowered: self.lowering.counters(),
            routes,
        };
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    /// Tells every client and waits a moment for them to hear it.
    async fn stop(mut self, mut events: mpsc::Receiver<Event>) {
        // Clients that report something now must not wait for a core that reads no more.
        events.close();
        for commands in self.commands.values() {
            commands.send_replace(Command::End(Ending::Shutdown));
        }
        let all_ended =
            timeout(SHUTDOWN_TIMEOUT, async { while self.tasks.join_next().await.is_some() {} });
        if all_ended.await.is_err() {
            tracing::warn!(clients = self.tasks.len(), "closing clients that did not hear it");
            self.tasks.shutdown().await;
        }
    }
}

async fn accept(
    port: Port,
    listener: TcpListener,
    permits: Arc<Semaphore>,
    accepted: mpsc::Sender<Accepted>,
) {
    // The semaphore is never closed; the loop ends with its task or with the core.
    while let Ok(permit) = permits.clone().acquire_owned().await {
        let socket = loop {
            match listener.accept().await {
                Ok((socket, _)) => break socket,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        };
        if accepted.send(Accepted { socket, port, permit }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_costs_one_client_and_is_counted() {
        let config = ProxyConfig::new("test", vec![], vec![]);
        let mut core = Core::new(config, watch::Sender::default());
        let client = ClientId(1);
        let task = core.tasks.spawn(async { panic!("on purpose") });
        core.clients_of_tasks.insert(task.id(), client);
        core.commands.insert(client, watch::Sender::new(Command::Wait));
        core.step(Event::ClientArrived { client, port: Port::ReadWrite });
        assert_eq!(core.router.snapshot().waiting, 1);
        let ended = core.tasks.join_next_with_id().await.expect("the task has ended");
        core.ended(ended);
        assert_eq!((core.panics, core.commands.len()), (1, 0));
        assert_eq!(core.router.snapshot().waiting, 0);
    }
}
