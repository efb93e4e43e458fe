//! Figures in Prometheus' text format.

use api::exposition::{Exposition, label};
use route::{CutReason, Port, Snapshot};

use super::{Cluster, Figures, PORTS, Pool, Work};
use crate::histogram::Spread;
use crate::hub::PoolKey;
use crate::process;
use crate::stats::Totals;
use crate::tally::{Cancelled, Outcome};

/// These are there from the first moment on, so that the first of them is seen as a growth.
const SQLSTATES: [&str; 8] =
    ["08007", "08P01", "28000", "28P01", "40001", "53300", "57P01", "57P03"];

type Lines<V> = Vec<(String, V)>;

impl Figures {
    /// All of them.
    pub(crate) fn to_text(&self) -> String {
        let mut out = Exposition::default();
        self.of_proxy(&mut out);
        self.of_routes(&mut out);
        self.of_held_and_cut(&mut out);
        self.of_views(&mut out);
        self.of_pools(&mut out);
        self.of_work(&mut out);
        self.of_sessions(&mut out);
        process::write(&mut out);
        out.into_text()
    }

    fn of_proxy(&self, out: &mut Exposition) {
        let version = [(label("version", env!("CARGO_PKG_VERSION")), 1)];
        out.family("pgherd_proxy_info", "gauge", "The program.", version);
        let help = "Connections from clients, signed in or not.";
        out.gauge("pgherd_proxy_client_connections", help, self.clients);
        let help = "Most clients that there may be (client_limit).";
        out.gauge("pgherd_proxy_client_connections_max", help, self.clients_max);
        let help = "Clients whose task panicked; each one is a bug.";
        out.counter("pgherd_proxy_panics_total", help, self.panics);
        let help = "Logins by how they ended.";
        let logins = PORTS.into_iter().flat_map(|port| {
            let line = move |(outcome, name): (Outcome, &str)| {
                let count = self.logins.get(&(port, outcome)).copied().unwrap_or_default();
                (format!("{},{}", at(port), label("outcome", name)), count)
            };
            Outcome::ALL.map(line)
        });
        out.family("pgherd_proxy_logins_total", "counter", help, logins);
        let mut errors = self.errors.clone();
        for (port, sqlstate) in PORTS.iter().flat_map(|port| SQLSTATES.map(|s| (*port, s))) {
            errors.entry((port, sqlstate.to_owned())).or_default();
        }
        let errors = errors.iter().map(|((port, sqlstate), count)| {
            (format!("{},{}", at(*port), label("sqlstate", sqlstate)), *count)
        });
        let help = "Errors that clients were told by the proxy.";
        out.family("pgherd_proxy_errors_total", "counter", help, errors);
        let cancels = Cancelled::ALL.map(|(led, name)| {
            (label("led_to", name), self.cancels.get(&led).copied().unwrap_or_default())
        });
        let help = "Cancel requests: of own clients, led to another proxy, of nobody.";
        out.family("pgherd_proxy_cancel_requests_total", "counter", help, cancels);
    }

    fn of_routes(&self, out: &mut Exposition) {
        let open =
            self.each(|cluster| by_port(|port| u8::from(!cluster.routes.targets(port).is_empty())));
        let help = "Whether clients of the port are led to a server.";
        out.family("pgherd_proxy_route_open", "gauge", help, open);
        let members = self.each(led);
        let help = "The servers that clients of the port are led to.";
        out.family("pgherd_proxy_route_member", "gauge", help, members);
        let help = "Connections to each member, open or being made.";
        let connections = self.each(|cluster| {
            let lines = cluster.routes.connections.iter();
            lines.map(|(member, count)| (label("member", &member.0), *count)).collect()
        });
        out.family("pgherd_proxy_member_connections", "gauge", help, connections);
    }

    fn of_held_and_cut(&self, out: &mut Exposition) {
        type Counter = fn(&route::PortMetrics) -> u64;
        let families: [(&str, &str, Counter); 4] = [
            ("clients_held", "Clients that had to wait for a route.", |m| m.held),
            ("clients_refused", "Clients that waited too long, or were too many.", |m| m.refused),
            ("session_attempts_failed", "Servers that a session did not reach.", |m| {
                m.connect_failures
            }),
            ("sessions_lost", "Sessions that their server ended.", |m| m.server_lost),
        ];
        for (name, help, counter) in families {
            let lines =
                self.each(|cluster| by_port(|port| counter(cluster.routes.metrics.at(port))));
            out.family(&format!("pgherd_proxy_{name}_total"), "counter", help, lines);
        }
        let cuts = self.each(cuts);
        let help = "Connections taken from clients because the primary changed.";
        out.family("pgherd_proxy_cuts_total", "counter", help, cuts);
        let help = "Sessions that set synchronous_commit below on.";
        let sessions = self.one(|cluster| cluster.lowered.sessions);
        out.family("pgherd_proxy_lowered_sessions_total", "counter", help, sessions);
        let help = "Startup packets and statements that were refused for it.";
        let refused = self.one(|cluster| cluster.lowered.refused);
        out.family("pgherd_proxy_lowered_refused_total", "counter", help, refused);
    }

    fn of_views(&self, out: &mut Exposition) {
        type Gauge = fn(&Snapshot) -> u64;
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let families: [(&str, &str, Gauge); 4] = [
            ("term", "The newest term ever seen.", |routes| routes.term.0),
            ("view_fresh", "The view of the cluster is known to be current.", |routes| {
                u64::from(routes.fresh)
            }),
            (
                "hold_followed",
                "The leader is about to hand over, and no transaction begins.",
                |r| u64::from(r.hold.is_some()),
            ),
            ("paused", "An operator has paused the pools.", |routes| u64::from(routes.paused)),
        ];
        for (name, help, gauge) in families {
            let lines = self.one(|cluster| gauge(&cluster.routes));
            out.family(&format!("pgherd_proxy_{name}"), "gauge", help, lines);
        }
        let help = "For how long the view has not been known to be current.";
        let ages = self.one(|cluster| cluster.view_age.as_secs_f64());
        out.family("pgherd_proxy_view_age_seconds", "gauge", help, ages);
        let help = "Clients that wait, for a route or for a connection.";
        let waiting = self.one(|cluster| number(cluster.routes.waiting));
        out.family("pgherd_proxy_clients_waiting", "gauge", help, waiting);
        let help = "Those of them for whose port no server is known.";
        let on_hold = self.one(|cluster| number(cluster.routes.on_hold));
        out.family("pgherd_proxy_clients_on_hold", "gauge", help, on_hold);
    }

    fn of_pools(&self, out: &mut Exposition) {
        let clients = self.pools(|pool| {
            // A connection that is lent has its client.
            let active = pool.now.lent.min(pool.now.clients);
            let idle = pool.now.clients.saturating_sub(pool.now.lent);
            let states = [("active", active), ("idle", idle), ("waiting", pool.now.waiting)];
            states.map(|(state, count)| (label("state", state), count)).to_vec()
        });
        let help = "Clients of pools.";
        out.family("pgherd_proxy_pool_clients", "gauge", help, clients);
        let longest = self.pools(|pool| vec![(String::new(), pool.now.longest.as_secs_f64())]);
        let help = "How long the client has waited that has waited longest.";
        out.family("pgherd_proxy_pool_longest_wait_seconds", "gauge", help, longest);
        let servers = self.pools(|pool| {
            let line = |((member, state), count): (&(String, &str), &usize)| {
                (format!("{},{}", label("member", member), label("state", state)), *count)
            };
            pool.servers.iter().map(line).collect()
        });
        let help = "Connections of pools to servers.";
        out.family("pgherd_proxy_pool_connections", "gauge", help, servers);
        let sizes = self.pools(|pool| vec![(String::new(), pool.size)]);
        let help = "Most connections of a pool to one member.";
        out.family("pgherd_proxy_pool_size", "gauge", help, sizes);
        let opened = self.one(|cluster| cluster.opened);
        let help = "How long it took to open a connection of a pool, signed in.";
        let opened = opened.into_iter().map(|(label, spread)| spread.exposed(label));
        out.histograms("pgherd_proxy_pool_connect_seconds", help, opened);
        let failed = self.one(|cluster| cluster.not_opened);
        let help = "Connections of pools that could not be opened.";
        out.family("pgherd_proxy_pool_connect_failures_total", "counter", help, failed);
    }

    fn of_work(&self, out: &mut Exposition) {
        type Counter = fn(&Totals) -> u64;
        let families: [(&str, &str, Counter); 3] = [
            ("transactions", "Transactions of pools that ended.", |totals| totals.transactions),
            ("queries", "Queries of pools that were answered.", |totals| totals.queries),
            ("statements_prepared_again", "Statements given to a further connection.", |t| {
                t.prepared_again
            }),
        ];
        for (name, help, counter) in families {
            let lines = self.pools(|pool| by_work(&pool.work, |work| counter(&work.totals)));
            out.family(&format!("pgherd_proxy_{name}_total"), "counter", help, lines);
        }
        type Part = fn(&Work) -> Spread;
        let families: [(&str, &str, Part); 2] = [
            ("transaction_seconds", "How long clients had a connection of a pool.", |w| w.lent),
            ("wait_seconds", "How long those waited for one who had to.", |work| work.waited),
        ];
        for (name, help, part) in families {
            let lines = self.pools(|pool| by_work(&pool.work, part));
            let lines = lines.into_iter().map(|(label, spread)| spread.exposed(label));
            out.histograms(&format!("pgherd_proxy_{name}"), help, lines);
        }
    }

    fn of_sessions(&self, out: &mut Exposition) {
        let open = self.each(|cluster| {
            let of = |sessions: &super::Sessions| {
                let lines = sessions.open.iter();
                let lines = lines.map(|(port, count)| (at(*port), *count)).collect();
                named(&sessions.key, lines)
            };
            cluster.sessions.iter().flat_map(of).collect()
        });
        let help = "Clients that have a connection of their own.";
        out.family("pgherd_proxy_sessions", "gauge", help, open);
        type Counter = fn(&Totals) -> u64;
        let families: [(&str, &str, Counter); 2] = [
            ("received_bytes", "Bytes that came from clients.", |totals| totals.received),
            ("sent_bytes", "Bytes that servers sent.", |totals| totals.sent),
        ];
        for (name, help, counter) in families {
            let lines = self.each(|cluster| bytes(cluster, counter));
            out.family(&format!("pgherd_proxy_{name}_total"), "counter", help, lines);
        }
    }

    /// Lines of each cluster.
    fn each<V>(&self, lines: impl Fn(&Cluster) -> Lines<V>) -> Lines<V> {
        let of = |cluster: &Cluster| within(&label("cluster", &cluster.name), lines(cluster));
        self.clusters.iter().flat_map(of).collect()
    }

    /// One line of each cluster.
    fn one<V>(&self, value: impl Fn(&Cluster) -> V) -> Lines<V> {
        self.each(|cluster| vec![(String::new(), value(cluster))])
    }

    /// Lines of each pool.
    fn pools<V>(&self, lines: impl Fn(&Pool) -> Lines<V>) -> Lines<V> {
        self.each(|cluster| {
            let pools = cluster.pools.iter();
            pools.flat_map(|pool| named(&pool.key, lines(pool))).collect()
        })
    }
}

fn at(port: Port) -> String {
    let name = match port {
        Port::ReadWrite => "read_write",
        Port::ReadOnly => "read_only",
    };
    label("port", name)
}

/// The same lines with more labels, which come first.
fn within<V>(labels: &str, lines: Lines<V>) -> Lines<V> {
    let line = |(label, value): (String, V)| match label.is_empty() {
        true => (labels.to_owned(), value),
        false => (format!("{labels},{label}"), value),
    };
    lines.into_iter().map(line).collect()
}

fn named<V>(key: &PoolKey, lines: Lines<V>) -> Lines<V> {
    within(&format!("{},{}", label("database", &key.database), label("user", &key.user)), lines)
}

fn by_port<V>(value: impl Fn(Port) -> V) -> Lines<V> {
    PORTS.map(|port| (at(port), value(port))).into()
}

fn by_work<V>(work: &[Work], value: impl Fn(&Work) -> V) -> Lines<V> {
    work.iter().map(|work| (at(work.port), value(work))).collect()
}

fn led(cluster: &Cluster) -> Lines<u8> {
    let line = |target: &route::Target| (label("member", &target.member.0), 1);
    let of = |port| {
        let lines = cluster.routes.targets(port).into_iter().map(line);
        within(&at(port), lines.collect())
    };
    PORTS.into_iter().flat_map(of).collect()
}

/// The router counts those of sessions.
fn cuts(cluster: &Cluster) -> Lines<u64> {
    let of = |port| {
        let metrics = cluster.routes.metrics.at(port);
        let kinds = [
            (CutReason::Planned, "planned", metrics.cut_planned),
            (CutReason::Unplanned, "unplanned", metrics.cut_unplanned),
        ];
        let lines = kinds.map(|(reason, name, of_sessions)| {
            let of_pools = cluster.cuts.get(&(port, reason)).copied().unwrap_or_default();
            (label("kind", name), of_sessions + of_pools)
        });
        within(&at(port), lines.into())
    };
    PORTS.into_iter().flat_map(of).collect()
}

/// What clients of pools moved, and what those with a connection of their own did.
fn bytes(cluster: &Cluster, counter: fn(&Totals) -> u64) -> Lines<u64> {
    let of = |kind: &str, key: &PoolKey, work: &[Work]| {
        named(key, within(&label("kind", kind), by_work(work, |work| counter(&work.totals))))
    };
    let pools = cluster.pools.iter().flat_map(|pool| of("pool", &pool.key, &pool.work));
    let sessions = cluster.sessions.iter();
    pools.chain(sessions.flat_map(|own| of("session", &own.key, &own.work))).collect()
}
