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
