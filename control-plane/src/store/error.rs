//! What can go wrong with a store, in words that fit every database.

use std::error::Error;

use gateway_core::violation::FieldViolations;

pub use super::body::Damage;
use crate::sealing::SealingError;

/// The error of a database, as its driver tells it.
pub type Cause = Box<dyn Error + Send + Sync>;

/// What is wrong with a database, as far as somebody can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Others keep it busy: trying again helps.
    Busy,
    /// It cannot be written: its disk or its permissions must be mended.
    NotWritable,
    /// Its disk is full.
    Full,
    /// A row would break a rule of the tables: a key that is taken, or a reference to nothing.
    Conflict,
    /// Anything else: a bug, or a damaged file.
    Other,
}

/// The store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened.
    #[error("open configuration database `{database}`")]
    Open {
        /// The file or the address.
        database: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The database was written by a newer program.
    #[error(
        "open configuration database with schema version {found}: this program knows versions up to {known}; \
         start a newer one"
    )]
    NewerSchema {
        /// The version of the database.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// A statement failed; its transaction is rolled back.
    #[error("use the configuration database")]
    Database {
        /// What can be done about it.
        trouble: Trouble,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A stored resource cannot be read.
    #[error("read {} `{id}` of the configuration database", resource_type.replace('_', " "))]
    Damaged {
        /// Its type: one of [`super::damaged::TYPES`].
        resource_type: &'static str,
        /// Its id.
        id: String,
        /// What is wrong with it.
        #[source]
        source: Damage,
    },
    /// What was sealed is no message.
    #[error("decode a row of the configuration database")]
    Corrupt(#[from] prost::DecodeError),
    /// A secret cannot be opened.
    #[error(transparent)]
    Sealed(#[from] SealingError),
    /// A stored resource breaks a rule that held when it was written.
    #[error("use a row of table `{table}`")]
    Invalid {
        /// The table.
        table: &'static str,
        /// The rule.
        #[source]
        source: FieldViolations,
    },
}

impl StoreError {
    /// Whether a stored resource cannot be read, while the database itself can be used.
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Sealed(_) | Self::Corrupt(_) | Self::Damaged { .. })
    }
}
