//! Bad fields of a request or a resource, as `google.rpc.BadRequest` reports them.

use std::fmt;

/// One field that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field as in the proto file, for example `webhook_subscription.destination_url`.
    pub field: String,
    /// What was wrong and what to do about it, for people. Never carries a secret or personal data.
    pub description: String,
}

impl FieldViolation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// All bad fields of one resource; never empty when it is an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldViolations(pub Vec<FieldViolation>);

impl FieldViolations {
    /// Nothing wrong so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes one more bad field.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(FieldViolation::new(field, description));
    }

    /// The value, if nothing was wrong with it.
    ///
    /// # Errors
    /// The violations, when there are any.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for FieldViolations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

impl std::error::Error for FieldViolations {}
