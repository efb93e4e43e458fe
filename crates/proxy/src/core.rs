//! The task beside the workers: it follows the cluster, keeps the time, and publishes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use route::{Event, Port, Target};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use types::{ClusterView, Millis, Revision};

use crate::hub::Hub;
use crate::words::Ending;
use crate::{Status, ViewSource, worker};

/// How long clients may take to hear that the proxy stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// What happens within so long is published together.
const PUBLISH_PAUSE: Duration = Duration::from_millis(5);
/// How often idle server connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

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
}

impl Core {
    pub(crate) fn new(hub: Arc<Hub>, status: watch::Sender<Status>, reload: Arc<Notify>) -> Core {
        Core { hub, view: None, configured: None, fresh: false, route: None, status, reload }
    }

    /// Serves until `shutdown`.
    pub(crate) async fn run<V: ViewSource>(
        mut self,
        listeners: Vec<(Port, TcpListener)>,
        mut views: watch::Receiver<V>,
        shutdown: CancellationToken,
    ) {
        let stop = CancellationToken::new();
        let _stop_at_the_end = stop.clone().drop_guard();
        self.start_workers(listeners, &stop);
        let (hub, reload) = (self.hub.clone(), self.reload.clone());
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut views_end = false;
        let mut publish_at = Some(Instant::now());
        views.mark_changed();
        loop {
            let wake = hub.wake();
            tokio::select! {
                () = shutdown.cancelled() => break,
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
        }
        self.stop().await;
    }

    fn start_workers(&self, listeners: Vec<(Port, TcpListener)>, stop: &CancellationToken) {
        let sockets: Vec<(Port, std::net::TcpListener)> = listeners
            .into_iter()
            .filter_map(|(port, listener)| Some((port, listener.into_std().ok()?)))
            .collect();
        for number in 1..=self.hub.config.workers.max(1) {
            // All accept from the same sockets: who is idle takes the next client.
            let own =
                sockets.iter().filter_map(|(port, socket)| Some((*port, socket.try_clone().ok()?)));
            let started = worker::start(number, self.hub.clone(), own.collect(), stop.clone());
            if let Err(error) = started {
                tracing::error!(number, %error, "cannot start a worker");
            }
        }
    }

    /// Takes what is known of the cluster.
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
            tracing::info!(proxy = %self.hub.config.name, fresh, "the view of the cluster");
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
                let millis = |d: Duration| Millis(u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
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
