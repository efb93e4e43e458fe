//! The wire protocol, versions 3.0 and 3.2, as far as a relay needs it.
//!
//! - [`parse_first_packet`]: what a client sends before anything else;
//! - [`FrameScanner`]: message boundaries of a stream, fed in any split, without copying payloads;
//! - [`Cutter`]: messages of a stream, as whole as the reader needs them;
//! - [`Exchange`]: what one session's two streams say about each other: whether an answer is owed,
//!   whether the client stands between two messages, the cancel key;
//! - [`ErrorResponse`]: the errors that a relay itself tells a client;
//! - [`Authentication`] and [`SaslInitial`]: the messages of a login, both ways.
//!
//! Not here: SQL. A relay of sessions does not need to know what a statement does, but for whether
//! it lowers a guarantee, which [`crate::lowered`] reads.

mod auth;
mod cut;
mod error_response;
mod exchange;
mod frame;
mod startup;

pub use auth::{
    Authentication, LOGIN_MESSAGE_BYTES_MAX, LoginMessageError, PASSWORD_BYTES_MAX, SASL_BYTES_MAX,
    SaslInitial, parameter_status, password, password_message, sasl_response, without_plus,
};
pub use cut::{Cut, Cutter};
pub use error_response::{ErrorResponse, Severity, field_of, is_standby_not_awaited, sqlstate_of};
pub use exchange::{Exchange, TransactionStatus};
pub use frame::{FrameError, FrameScanner, MESSAGE_BYTES_MAX, Step};
pub use startup::{
    ACCEPTED_ENCRYPTION, CANCEL_KEY_BYTES_MAX, CancelKey, FirstPacket, REFUSED_ENCRYPTION,
    REQUEST_TLS, STARTUP_BYTES_MAX, Startup, StartupError, parse_first_packet, startup_packet,
};
