//! What we recommend for a new cluster, and the proof that its times fit each other.

use serde_json::{Value, json};

pub(crate) const TTL_S: u64 = 10;
pub(crate) const LOOP_WAIT_S: u64 = 2;
pub(crate) const RETRY_TIMEOUT_S: u64 = 3;
pub(crate) const STOP_MARGIN_S: u64 = 1;

// A renewal that begins `loop_wait` after the last one, and needs the whole `retry_timeout` twice
// (two operations), still ends within the lease.
const _: () = assert!(LOOP_WAIT_S + 2 * RETRY_TIMEOUT_S <= TTL_S);
// A renewal that needs one whole `retry_timeout` ends before the agent stops PostgreSQL (I1).
const _: () = assert!(LOOP_WAIT_S + RETRY_TIMEOUT_S + 2 * STOP_MARGIN_S <= TTL_S);

/// The dynamic configuration that we recommend for a new cluster; absent keys mean Patroni's
/// defaults.
#[must_use]
pub fn recommended_dynamic() -> Value {
    json!({
        "ttl": TTL_S,
        "loop_wait": LOOP_WAIT_S,
        "retry_timeout": RETRY_TIMEOUT_S,
        "synchronous_mode": "quorum",
        "pgherd": { "failover_mode": "fenced" },
        "postgresql": {
            "use_pg_rewind": true,
            "remove_data_directory_on_rewind_failure": false,
            "remove_data_directory_on_diverged_timelines": false,
            "parameters": {
                "wal_retrieve_retry_interval": "200ms",
                "wal_sender_timeout": "5s",
                "wal_receiver_timeout": "5s",
                "tcp_user_timeout": "5s",
            },
        },
    })
}

/// The same with another `ttl`, in seconds, and a `loop_wait` and a `retry_timeout` that fit it.
#[must_use]
pub fn recommended_with_ttl(ttl: u64) -> Value {
    let (loop_wait, retry_timeout) = times_for(ttl);
    let mut dynamic = recommended_dynamic();
    dynamic["ttl"] = json!(ttl);
    dynamic["loop_wait"] = json!(loop_wait);
    dynamic["retry_timeout"] = json!(retry_timeout);
    dynamic
}

/// `loop_wait` and `retry_timeout` in the proportions that we recommend, in whole seconds.
fn times_for(ttl: u64) -> (u64, u64) {
    let loop_wait = (ttl.saturating_mul(LOOP_WAIT_S) / TTL_S).max(1);
    (loop_wait, ttl.saturating_mul(RETRY_TIMEOUT_S).div_ceil(TTL_S).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_fit_every_lease() {
        assert_eq!(times_for(TTL_S), (LOOP_WAIT_S, RETRY_TIMEOUT_S));
        for ttl in 5..=600 {
            let (loop_wait, retry_timeout) = times_for(ttl);
            assert!(loop_wait + 2 * retry_timeout <= ttl, "{ttl}");
            assert!(loop_wait + retry_timeout + 2 * STOP_MARGIN_S <= ttl, "{ttl}");
        }
    }
}
