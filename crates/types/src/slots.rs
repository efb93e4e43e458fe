//! Replication slots: what is there, and what is done about it.

use serde::Serialize;

use crate::position::Lsn;

/// A replication slot of the local server that outlives its session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Slot {
    /// The slot's name.
    pub name: String,
    /// What it retains from; `None` if it reserves nothing yet.
    pub restart: Option<Lsn>,
    /// Somebody uses it.
    pub active: bool,
    /// It holds back the removal of dead rows for a standby (`xmin`).
    pub holds_rows: bool,
    /// What it needs is gone (`wal_status` = lost); it cannot be used any more.
    pub lost: bool,
    /// `None` for a physical slot.
    pub logical: Option<LogicalSlot>,
}

impl Slot {
    /// What a standby's slot of this name is advanced to: where a physical slot retains from, what
    /// the consumer of a logical one has confirmed.
    #[must_use]
    pub fn position(&self) -> Option<Lsn> {
        self.logical.as_ref().map_or(self.restart, |logical| logical.confirmed)
    }

    /// PostgreSQL itself carries it over to standbys (PostgreSQL 17 and newer, `failover`).
    #[must_use]
    pub fn fails_over(&self) -> bool {
        self.logical.as_ref().is_some_and(|logical| logical.failover)
    }
}

/// What a logical slot has besides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct LogicalSlot {
    /// The database that it decodes.
    pub database: String,
    /// The output plugin.
    pub plugin: String,
    /// What its consumer has confirmed (`confirmed_flush_lsn`).
    pub confirmed: Option<Lsn>,
    /// PostgreSQL carries it over to standbys by itself (17 and newer).
    pub failover: bool,
    /// It is such a copy.
    pub synced: bool,
}

/// One thing to do about a slot. Each is without effect where it is done already.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotChange {
    /// Drop it unless somebody uses it.
    Drop {
        /// The slot.
        name: String,
    },
    /// Create a physical slot that retains from now on.
    Create {
        /// The slot.
        name: String,
    },
    /// Move an unused physical slot forward, never back.
    Advance {
        /// The slot.
        name: String,
        /// Where to.
        to: Lsn,
    },
    /// Create a logical slot; waits for the transactions that run.
    CreateLogical {
        /// The slot.
        name: String,
        /// The database that it decodes.
        database: String,
        /// The output plugin.
        plugin: String,
    },
    /// Move an unused logical slot forward, never back; decodes what lies between.
    AdvanceLogical {
        /// The slot.
        name: String,
        /// The database that it decodes.
        database: String,
        /// Where to.
        to: Lsn,
    },
}

impl SlotChange {
    /// The slot that it is about.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            SlotChange::Drop { name }
            | SlotChange::Create { name }
            | SlotChange::Advance { name, .. }
            | SlotChange::CreateLogical { name, .. }
            | SlotChange::AdvanceLogical { name, .. } => name,
        }
    }
}
