//! The part of etcd's v3 API that pgherd speaks: trimmed protocol files, generated messages and
//! client stubs, nothing else. Field numbers are etcd's, so both sides of the wire may be any etcd
//! of 3.4 or newer.
#![forbid(unsafe_code)]

/// Stored keys and events (`kv.proto`).
#[allow(missing_docs, unused_qualifications, unreachable_pub, clippy::all)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Requests, answers and client stubs (`rpc.proto`).
#[allow(missing_docs, unused_qualifications, unreachable_pub, clippy::all)]
#[allow(clippy::large_futures, clippy::cast_possible_truncation)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");

    impl std::fmt::Debug for AuthenticateRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("AuthenticateRequest").field("name", &self.name).finish_non_exhaustive()
        }
    }
}
