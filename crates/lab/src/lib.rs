//! Real clusters on one machine, for the demo, tests and benchmarks: processes, hosts that can be
//! lost or frozen, network relays that can be cut, workloads, and the ledger of what was
//! acknowledged.
//!
//! Nothing here knows how pgherd decides; it starts programs, breaks things and keeps books. The
//! [`ledger`] is pure.

pub mod cgroup;
pub mod cluster;
pub mod crowd;
pub mod etcd;
pub mod ground;
pub mod host;
pub mod http;
pub mod ledger;
pub mod load;
pub mod memory;
pub mod network;
pub mod ports;
pub mod process;
pub mod processor;
pub mod relay;
pub mod secret;
pub mod service;
pub mod tools;
pub mod usage;
pub mod view;
pub mod volume;
pub mod workload;
