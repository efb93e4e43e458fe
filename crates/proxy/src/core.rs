//! The task beside the workers: it follows the cluster, keeps the time, and publishes.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use route::{Drain, DrainStep, Event, Port, Target};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use types::{ClusterView, Millis, Revision};

use crate::hot_restart::Drains;
use crate::hub::Hub;
use crate::words::Ending;
use crate::{Status, ViewSource, worker};

/// How long clients may take to hear that the proxy stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// What happens within so long is published together.
const PUBLISH_PAUSE: Duration = Duration::from_millis(5);
/// How often idle server connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How long the accept loops may take to end.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The workers, from outside.
pub(crate) struct Workers {
    close: CancellationToken,
    /// Ends when no worker accepts any more.
    accepting: mpsc::Receiver<Infallible>,
    /// Ends the workers when it is dropped.
    _stop: DropGuard,
}

impl Workers {
    /// Has no client accepted from now on.
    async fn close(&mut self) {
        self.close.cancel();
        let closed = timeout(CLOSE_LIMIT, self.accepting.recv());
        if closed.await.is_err() {
            tracing::error!("a worker does not stop accepting clients");
        }
    }
}

/// State of the task.
pub(crate) struct Core {
    hub: Arc<Hub>,
    view: Option<Arc<ClusterView>>,
    /// The revision of the dynamic configuration in force.
    configured: Option<Revision>,
    fresh: bool,
    route: Option<Target>,
    status: watch::Sender<Status>,
    reload: Arc<Notify>,
    drains: Drains,
    /// Since when a successor accepts the clients.
    drain: Option<(Instant, Drain)>,
}

impl Core {
    pub(crate) fn new(
        hub: Arc<Hub>,
        status: watch::Sender<Status>,
        reload: Arc<Notify>,
        drains: Drains,
    ) -> Core {
        let (view, configured, route, drain) = (None, None, None, None);
        Core { hub, view, configured, fresh: false, route, status, reload, drains, drain }
    }

    /// Serves until `shutdown`, or until a successor serves and the clients here have gone.
    pub(crate) async fn run<V: ViewSource>(
        mut self,
        mut workers: Workers,
        mut views: watch::Receiver<V>,
        shutdown: CancellationToken,
    ) {
        let (hub, reload) = (self.hub.clone(), self.reload.clone());
        let drains = self.drains.begin.clone();
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut views_end = false;
        let mut publish_at = Some(Instant::now());
        views.mark_changed();
        loop {
            let wake = hub.wake();
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = drains.cancelled(), if self.drain.is_none() => {
                    workers.close().await;
                    self.begin_drain();
                }
                changed = views.changed(), if !views_end => {
                    views_end = changed.is_err();
                    self.look(&*views.borrow_and_update(), views_end);
                    publish_at = Some(Instant::now());
                }
                () = hub.changed.notified(), if publish_at.is_none() => {
                    publish_at = Instant::now().checked_add(PUBLISH_PAUSE);
                }
                () = sleep_until(publish_at.unwrap_or_else(Instant::now)),
                    if publish_at.is_some() =>
                {
                    publish_at = None;
                    hub.looked();
                    self.publish();
                }
                () = hub.rescheduled.notified() => {}
                () = hub.lowering.counted.notified() => publish_at = Some(Instant::now()),
                () = reload.notified() => match hub.door.reload() {
                    Ok(()) => tracing::info!("read certificates, users and rules again"),
                    Err(error) => tracing::error!(%error, "what cannot be read stays as it was"),
                },
                _ = sweep.tick() => hub.sweep(),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    hub.tick();
                }
            }
            if self.go_on_draining() == DrainStep::Over {
                break;
            }
        }
        self.stop().await;
    }

    fn begin_drain(&mut self) {
        let hub = &self.hub;
        let timeout = hub.config.drain_timeout;
        let (clients, seconds) = (hub.clients.load(Ordering::Relaxed), timeout.as_secs_f64());
        tracing::info!(clients, seconds, "a successor serves; clients that are here may stay");
        hub.drain();
        self.drain = Some((Instant::now(), Drain::new(Millis::ZERO, millis(timeout))));
        self.drains.begun.send_replace(true);
    }

    fn go_on_draining(&mut self) -> DrainStep {
        let Some((begun, drain)) = &mut self.drain else {
            return DrainStep::GoOn;
        };
        let clients = self.hub.clients.load(Ordering::Relaxed);
        let step = drain.step(millis(begun.elapsed()), clients);
        match step {
            DrainStep::GoOn => {}
            DrainStep::Tell => tracing::info!(clients, "clients are left"),
            DrainStep::EndResting => {
                tracing::info!(
                    clients,
                    "drain_timeout is over: sessions end with their transaction"
                );
                self.hub.close();
            }
            DrainStep::Over => tracing::info!(clients, "the drain is over"),
        }
        step
    }

    /// Starts the threads that serve clients.
    pub(crate) fn start_workers(&self, sockets: &[(Port, TcpListener)]) -> Workers {
        let (stop, close) = (CancellationToken::new(), CancellationToken::new());
        let (open, accepting) = mpsc::channel(1);
        let until = worker::Until { close: close.clone(), accepting: open, stop: stop.clone() };
        for number in 1..=self.hub.config.workers.max(1) {
            // All accept from the same sockets: who is idle takes the next client.
            let own =
                sockets.iter().filter_map(|(port, socket)| Some((*port, socket.try_clone().ok()?)));
            let started = worker::start(number, self.hub.clone(), own.collect(), until.clone());
            if let Err(error) = started {
                tracing::error!(number, %error, "cannot start a worker");
            }
        }
        Workers { close, accepting, _stop: stop.drop_guard() }
    }

    /// Takes what the DCS shows.
    fn look(&mut self, source: &impl ViewSource, source_ended: bool) {
        let fresh = source.fresh() && !source_ended;
        if let Some(view) = source.view() {
            let known = self.view.as_ref().is_some_and(|known| Arc::ptr_eq(known, &view));
            if !known {
                self.view = Some(view.clone());
                self.configure(&view);
                self.hub.step(Event::View(view));
            }
        }
        if fresh != self.fresh {
            self.fresh = fresh;
            tracing::info!(proxy = %self.hub.config.name, fresh, "the view of the DCS");
            self.hub.step(if fresh { Event::DcsBack } else { Event::DcsLost });
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
            Ok((dynamic, _)) => {
                let ours = dynamic.pgherd;
                let refused = self.hub.lowering.refuses();
                self.hub.lowering.set_refuse(ours.refuse_lowered_commit);
                if ours.refuse_lowered_commit && !refused {
                    // The sessions that are there were not looked at.
                    self.hub.step(Event::Reconnect);
                }
                let of_file = self.hub.config.hold_timeout;
                self.hub.step(Event::Configured {
                    hold_timeout: of_file.map_or(ours.hold_timeout, millis),
                    lag_bytes_max: self.hub.config.maximum_lag_bytes.or(ours.maximum_lag),
                });
            }
            Err(problems) => tracing::warn!(?problems, "the dynamic configuration is not valid"),
        }
    }

    fn publish(&mut self) {
        let routes = self.hub.snapshot();
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
            name: self.hub.config.name.clone(),
            clients: self.hub.clients.load(Ordering::Relaxed),
            panics: self.hub.panics.load(Ordering::Relaxed),
            lowered: self.hub.lowering.counters(),
            routes,
        };
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    /// Tells every client and waits a moment for them to hear it.
    async fn stop(self) {
        self.hub.end_all(Ending::Shutdown);
        let all_ended = timeout(SHUTDOWN_TIMEOUT, async {
            while self.hub.clients.load(Ordering::Relaxed) > 0 {
                self.hub.looked();
                self.hub.changed.notified().await;
            }
        });
        if all_ended.await.is_err() {
            let clients = self.hub.clients.load(Ordering::Relaxed);
            tracing::warn!(clients, "closing clients that did not hear it");
        }
    }
}

fn millis(span: Duration) -> Millis {
    Millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}
