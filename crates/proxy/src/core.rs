//! A task beside the workers: it follows one cluster, keeps the time, and publishes.

use std::sync::Arc;
use std::time::Duration;

use route::{Event, Target};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use types::{ClusterView, Millis, Revision};

use crate::front::Front;
use crate::hub::Hub;
use crate::{Status, ViewSource};

/// What happens within so long is published together: each time takes as long as a connection does.
const PUBLISH_PAUSE: Duration = Duration::from_millis(50);
/// The same while the leader waits for the end of transactions.
const PUBLISH_PAUSE_OF_HOLDS: Duration = Duration::from_millis(5);
/// How often idle server connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// State of the task.
pub(crate) struct Core {
    front: Arc<Front>,
    hub: Arc<Hub>,
    view: Option<Arc<ClusterView>>,
    /// The revision of the dynamic configuration in force.
    configured: Option<Revision>,
    fresh: bool,
    route: Option<Target>,
    status: watch::Sender<Status>,
}

impl Core {
    pub(crate) fn new(front: Arc<Front>, hub: Arc<Hub>, status: watch::Sender<Status>) -> Core {
        Core { front, hub, view: None, configured: None, fresh: false, route: None, status }
    }

    /// Follows the cluster for as long as the proxy runs.
    pub(crate) async fn run<V: ViewSource>(mut self, mut views: watch::Receiver<V>) {
        let hub = self.hub.clone();
        hub.tally.view_is(self.fresh);
        let mut sweep = interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut views_end = false;
        let mut publish_at = Some(Instant::now());
        views.mark_changed();
        loop {
            let wake = hub.look_at_time();
            tokio::select! {
                changed = views.changed(), if !views_end => {
                    views_end = changed.is_err();
                    self.look(&*views.borrow_and_update(), views_end);
                    publish_at = Some(Instant::now());
                }
                () = hub.changed.notified(), if publish_at.is_none() => {
                    let pause = if hub.holds() { PUBLISH_PAUSE_OF_HOLDS } else { PUBLISH_PAUSE };
                    publish_at = Instant::now().checked_add(pause);
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
                _ = sweep.tick() => hub.sweep(),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    hub.tick();
                }
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
            self.hub.tally.view_is(fresh);
            let cluster = &self.hub.name;
            let proxy = &self.hub.config.name;
            tracing::info!(proxy, cluster, fresh, "the view of the cluster");
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
            Err(problems) => {
                let cluster = &self.hub.name;
                tracing::warn!(cluster, ?problems, "the dynamic configuration is not valid");
            }
        }
    }

    fn publish(&mut self) {
        let routes = self.hub.snapshot();
        if routes.read_write != self.route {
            let cluster = &self.hub.name;
            match (&routes.read_write, &routes.awaiting) {
                (Some(to), _) => {
                    let (member, term) = (&to.member, routes.term);
                    tracing::info!(cluster, %member, %term, "the read-write route is open");
                }
                (None, why) => tracing::info!(cluster, why, "the read-write route is closed"),
            }
            self.route.clone_from(&routes.read_write);
        }
        let status = Status {
            name: self.hub.config.name.clone(),
            cluster: self.hub.name.clone(),
            clients: self.front.count(),
            panics: self.front.panics(),
            lowered: self.hub.lowering.counters(),
            routes,
        };
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}
