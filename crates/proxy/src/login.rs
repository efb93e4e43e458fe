//! Logins: of clients at the proxy, and of the proxy at servers.
//!
//! - [`authenticate`]: a client proves to the proxy who it is, which learns [`Credentials`] by it;
//! - [`sign_in`]: with these the proxy opens a session at a server;
//! - [`UsersFile`], [`auth_query`], [`rules`]: what is known of users, and who is let in;
//! - [`proxy_protocol`]: where a client behind another proxy comes from.
//!
//! Every exchange has a limit in time and in bytes. No secret is logged or shown (I6). Passwords
//! and keys are wiped when they are dropped; copies in buffers of sockets are not.

pub mod auth_query;
mod cache;
mod client;
mod messages;
pub mod proxy_protocol;
pub mod rules;
mod secret;
mod server;
#[cfg(test)]
mod tests;
mod users;

pub use cache::Cache;
pub use client::{Login, Rejected, Shown, authenticate};
pub use messages::MessageError;
pub(crate) use messages::Messages;
pub use secret::{Channel, Credentials, Password, Secret, StoredSecret, UnknownSecret};
pub use server::{ServerRefusal, SignInError, SignedIn, Verdict, sign_in};
pub use users::{Users, UsersError, UsersFile, read_password};
